"""Samples on disk: lossless records, and a prepared corpus (`manifest.json` + ArrayRecord shards).

Numpy only: data workers import this module and must never import jax, TensorFlow or TFDS.

A record is a small JSON header followed by the pixels in their native dtype, with the bytes of multi-byte numbers
regrouped by significance: ArrayRecord compresses every entry with zstd, which then shrinks 16-bit imagery by a further
10-25 % and decodes faster. Non-finite pixels never reach a record (readers store 0 and mark them invalid).

Legend of shape suffixes: T dates, C bands, H rows, W columns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_module

from ramen_jax.console import UserError, progress
from ramen_jax.own_files import file_hash
from ramen_jax.recipe import FIXED, Recipe
from ramen_jax.samples import CorpusSpec, Image, ModalitySpec, Sample
from ramen_jax.sensors import Sensor, sensor

FORMAT = 1
MANIFEST = "manifest.json"
EVERY_VARIANT = "all"  # statistics over all samples of a modality, whatever their variant
MMEARTH_S2 = {"fixed": "mmearth_s2", "reference": "mmearth_s2_reference"}
_MAGIC = b"RJR1"
_NOT_AS_WRITTEN = "content differs from its sha256 in the manifest; delete the folder and prepare it again"
_LONG_TO_HASH = 1 << 30  # bytes
_HASHING = 8  # threads


# -- records ---------------------------------------------------------------------------------------------------------


def encode(sample: Sample) -> bytes:
    """Packs a sample losslessly (ArrayRecord will compress it). Errors: ValueError on non-finite pixels."""
    buffers: list[bytes] = []
    images = {}
    for name, image in sample.images.items():
        if image.values.dtype.kind == "f" and not np.isfinite(image.values).all():
            raise ValueError(f"sample {sample.id}, modality {name}: NaN or infinite pixels")
        images[name] = {
            "dtype": image.values.dtype.name,
            "shape": list(image.values.shape),
            "dates": image.dates.tolist(),
            "present": image.present.tolist(),
            "valid": image.valid is not None,
        }
        buffers.append(_group_bytes(image.values))
        if image.valid is not None:
            buffers.append(np.packbits(image.valid).tobytes())
    header = json.dumps(
        {
            "id": sample.id,
            "location": sample.location,
            "extra": sample.extra,
            "images": images,
        },
        separators=(",", ":"),
        allow_nan=False,
    ).encode()
    return b"".join([_MAGIC, len(header).to_bytes(4, "little"), header, *buffers])


def decode(record: bytes | memoryview, modalities: Collection[str] | None = None) -> Sample:
    """The inverse of `encode`: equal values, dtype and shape. `modalities`: unpack only these; None = all.

    Errors: ValueError on anything that is not a record.
    """
    if record[:4] != _MAGIC:
        raise ValueError(f"not a ramen_jax record: starts with {bytes(record[:4])!r}, expected {_MAGIC!r}")
    start = 8 + int.from_bytes(record[4:8], "little")
    header = json.loads(bytes(record[8:start]))
    images = {}
    for name, entry in header["images"].items():
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        pixels = shape[0] * shape[2] * shape[3]
        valid_start = start + pixels * shape[1] * dtype.itemsize
        end = valid_start + (-(-pixels // 8) if entry["valid"] else 0)
        if len(record) < end:
            raise ValueError(f"record is cut off: {len(record)} bytes, at least {end} expected")
        if modalities is None or name in modalities:
            valid = None
            if entry["valid"]:
                bits = np.frombuffer(record, np.uint8, end - valid_start, valid_start)
                flat = np.unpackbits(bits, count=pixels).astype(bool)
                valid = flat.reshape(shape[0], shape[2], shape[3])
            images[name] = Image(
                _ungroup_bytes(np.frombuffer(record, np.uint8, valid_start - start, start), dtype, shape),
                np.array(entry["dates"], np.int16),
                np.array(entry["present"], bool),
                valid,
            )
        start = end
    location = header["location"] and tuple(header["location"])
    return Sample(header["id"], images, location, header["extra"])


def _group_bytes(values: np.ndarray) -> bytes:
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    if little.itemsize == 1:
        return little.tobytes()
    return little.reshape(-1).view(np.uint8).reshape(-1, little.itemsize).T.tobytes()


def _ungroup_bytes(stored: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `_group_bytes`."""
    if dtype.itemsize == 1:
        return stored.view(dtype).reshape(shape)
    # Shift-and-or over whole planes: four times faster than a strided byte transpose.
    planes = stored.reshape(dtype.itemsize, -1)
    word = np.dtype(f"u{dtype.itemsize}")
    values = planes[0].astype(word)
    for significance in range(1, dtype.itemsize):
        values |= planes[significance].astype(word) << word.type(8 * significance)
    return values.view(dtype).reshape(shape)


def record_of_example(example: bytes) -> memoryview:
    """The `record` feature of a serialised tf.train.Example, the envelope in which TFDS stores entries.

    Walks the protocol-buffer wire format (Example.features.feature[key].bytes_list.value[0]), so that data workers
    need neither protobuf nor TFDS.
    """
    for features in _fields(example, 1):
        for entry in _fields(features, 1):
            if bytes(next(_fields(entry, 1))) == b"record":
                return next(_fields(next(_fields(next(_fields(entry, 2)), 1)), 1))
    raise ValueError("entry is not a tf.train.Example with a feature named record")


def _fields(message: bytes | memoryview, number: int) -> Iterator[memoryview]:
    """The length-delimited fields `number` of a protocol-buffer message."""
    view, place = memoryview(message), 0
    while place < len(view):
        tag, place = _varint(view, place)
        if tag & 7 != 2:
            raise ValueError(f"unexpected wire type {tag & 7} in a tf.train.Example")
        length, place = _varint(view, place)
        if tag >> 3 == number:
            yield view[place : place + length]
        place += length


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while place < len(view):
        byte = view[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
    raise ValueError("tf.train.Example is cut off")


# -- a prepared corpus -----------------------------------------------------------------------------------------------


def fingerprint(manifest: dict[str, Any]) -> str:
    """Hash over everything a manifest says except itself: shards (with their hashes), statistics, sensors, settings."""
    content = {key: value for key, value in manifest.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that the file is either absent, the old one, or complete."""
    part = path.with_name(path.name + f".{os.getpid()}.part")
    with open(part, "w") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def inside(root: Path, name: str) -> Path:
    """`root / name`; an error when that lies outside `root` (absolute paths, `..`, links leading out)."""
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ValueError(f"{name}: leads outside {root}")
    return path


class Place(NamedTuple):
    """Where a sample lies."""

    shard: Path
    record: int
    id: str

    def __str__(self) -> str:
        return f"{self.shard}, record {self.record} ({self.id})"


class Prepared(Sequence[Sample]):
    """A prepared corpus folder, read by random access. Cheap to pickle: files are opened on first use per process.

    Args:
      folder: holds manifest.json and the shards it names.
      split: a split of the manifest, usually "train" or "val".
      recipe: which statistics (`statistics`), and whose wavelengths MMEarth's B8 and B8A carry.

    Errors: ValueError naming the file when the manifest is missing, was edited (its hash no longer matches), names a
    file outside the folder, or a shard is missing or has another size. Contents are checked by `verify`, and of each
    sample its id on reading.
    """

    def __init__(self, folder: str | os.PathLike[str], split: str = "train", recipe: Recipe = FIXED) -> None:
        self.folder = Path(folder)
        self.split = split
        self.manifest = read_manifest(self.folder)
        if split not in self.manifest["splits"]:
            raise ValueError(
                f"{self.folder / MANIFEST}: no split {split!r}; it has {', '.join(self.manifest['splits'])}"
            )
        entry = self.manifest["splits"][split]
        self._shards = [inside(self.folder, shard["file"]) for shard in entry["shards"]]
        for path, shard in zip(self._shards, entry["shards"], strict=True):
            found = path.stat().st_size if path.is_file() else None
            if found != shard["bytes"]:
                raise ValueError(
                    f"{path}: {'missing' if found is None else f'{found} bytes'}, "
                    f"the manifest says {shard['bytes']} bytes; delete the folder and prepare it again"
                )
        self._ends = np.cumsum([shard["samples"] for shard in entry["shards"]])
        self._ids = inside(self.folder, entry["ids"]["file"])
        self._statistics = self._read_statistics(recipe.statistics)
        self.spec = self._read_spec(recipe)
        self._readers: dict[int, Any] = {}
        self._id_lines: tuple[bytes, np.ndarray] | None = None

    def _read_statistics(self, which: str) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
        return {
            modality: {
                variant: (_numbers(values[which]["mean"], 0.0), _numbers(values[which]["std"], 1.0))
                for variant, values in variants.items()
            }
            for modality, variants in self.manifest["statistics"].items()
        }

    def _read_spec(self, recipe: Recipe) -> CorpusSpec:
        modalities = []
        for values in self.manifest["modalities"]:
            spec = ModalitySpec.from_dict(values)
            mean, std = self._statistics[spec.name][EVERY_VARIANT]
            seen = as_encoded(spec.sensor, recipe).with_statistics(tuple(mean.tolist()), tuple(std.tolist()))
            modalities.append(dataclasses.replace(spec, sensor=seen))
        return CorpusSpec(self.manifest["name"], tuple(modalities), self.manifest["fingerprint"])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self.read(index)

    def read(self, index: int, modalities: Collection[str] | None = None) -> Sample:
        """One sample; with `modalities`, its images hold only these and the others are not unpacked.

        Errors: ValueError naming shard, record and id when the record is damaged or is not the sample of that id.
        """
        shard, record, place = self._locate(index)
        try:
            sample = decode(record_of_example(self._reader(shard).read([record])[0]), modalities)
        except Exception as error:  # whatever a damaged record raises
            told = (str(error).splitlines() or [""])[0]
            raise ValueError(f"{place}: {type(error).__name__}: {told}") from error
        if sample.id != place.id:
            raise ValueError(
                f"{place}: holds the sample {sample.id!r}; shard and id list do not belong together"
            )
        return sample

    def place(self, index: int) -> Place:
        """Where a sample lies, and the id that it must have."""
        return self._locate(index)[2]

    def _locate(self, index: int) -> tuple[int, int, Place]:
        """Number of the shard, number of the record in it, and both for a person."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} in {self.folder}, split {self.split}")
        index = int(index) % len(self)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        record = index - (int(self._ends[shard - 1]) if shard else 0)
        text, ends = self._read_ids()
        sample_id = json.loads(text[ends[index - 1] if index else 0 : ends[index]])
        return shard, record, Place(self._shards[shard], record, sample_id)

    def _read_ids(self) -> tuple[bytes, np.ndarray]:
        """The list of ids as it is on disk, and the end of every line: millions of ids stay small."""
        if self._id_lines is None:
            entry = self.manifest["splits"][self.split]
            text = self._ids.read_bytes()
            ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
            if hashlib.sha256(text).hexdigest() != entry["ids"]["sha256"] or len(ends) != len(self):
                raise ValueError(f"{self._ids}: {_NOT_AS_WRITTEN}")
            self._id_lines = text, ends
        return self._id_lines

    def _reader(self, shard: int) -> Any:
        if shard not in self._readers:
            # Random access: no read-ahead, no thread pool per file.
            options = "readahead_buffer_size:0,max_parallelism:0"
            self._readers[shard] = array_record_module.ArrayRecordReader(str(self._shards[shard]), options)
        return self._readers[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}, "_id_lines": None}

    @property
    def ids(self) -> list[str]:
        """Sample ids in order."""
        return [json.loads(line) for line in self._read_ids()[0].splitlines()]

    def statistics(self, sample: Sample, modality: str) -> tuple[np.ndarray, np.ndarray]:
        """(mean [C], std [C]) float64 in physical units, of the sample's variant.

        A band that no sample has: 0 and 1; one that never varies: std 1.
        """
        variants = self._statistics[modality]
        variant = sample.extra.get("variant", {}).get(modality, EVERY_VARIANT)
        return variants.get(variant, variants[EVERY_VARIANT])

    def files(self) -> dict[Path, str]:
        """Every file of the split with the hash that the manifest says."""
        entry = self.manifest["splits"][self.split]
        return {
            inside(self.folder, file["file"]): file["sha256"] for file in [*entry["shards"], entry["ids"]]
        }

    def verify(self) -> None:
        """Hashes every file of the split (reads all of it). Errors: ValueError naming the first file that differs."""
        verify_files(self.files())


def verify_files(files: Mapping[Path, str], label: str = "verifying files") -> None:
    """Hashes files, several at a time, with a progress bar where that takes a while.

    Errors: ValueError naming the first that differs from its hash.
    """
    size = sum(path.stat().st_size for path in files)
    bar = progress(len(files), label, "files") if size > _LONG_TO_HASH else None
    with bar or contextlib.nullcontext(), ThreadPoolExecutor(_HASHING) as pool:
        for (path, expected), found in zip(files.items(), pool.map(file_hash, files), strict=True):
            if found != expected:
                pool.shutdown(cancel_futures=True)
                raise ValueError(f"{path}: {_NOT_AS_WRITTEN}")
            if bar:
                bar.advance()


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a prepared corpus, its fingerprint checked. Errors: UserError naming the file."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{path}: missing; `python -m ramen_jax.prepare --output {folder}` writes it")
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(manifest, dict):
        raise UserError(
            f"{path}: holds a {type(manifest).__name__}, expected the manifest of a prepared corpus"
        )
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path}: format {manifest.get('format')!r}, this version reads {FORMAT}")
    try:
        whole = manifest.get("fingerprint") == fingerprint(manifest)
    except ValueError:  # NaN, which no manifest of ours holds
        whole = False
    if not whole:
        raise UserError(
            f"{path}: its fingerprint no longer matches its content, it was edited or damaged; "
            "delete the folder and prepare it again"
        )
    return manifest


def as_encoded(found: Sensor, recipe: Recipe) -> Sensor:
    """The sensor as the recipe encodes it: `mmearth_wavelengths` says whose wavelength B8 and B8A carry."""
    if found.name in MMEARTH_S2.values():
        return sensor(MMEARTH_S2[recipe.mmearth_wavelengths])
    return found


def _numbers(values: list[float | None], otherwise: float) -> np.ndarray:
    return np.array([otherwise if value is None else value for value in values], np.float64)
