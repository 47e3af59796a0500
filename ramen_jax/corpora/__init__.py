"""Readers of original files. A corpus lists its items and turns one item into samples; `prepare` does the rest.

A corpus of your own is a subclass of `Corpus` with three methods (see `treesatai.py` and `worldcereal.py` for h5 and
NetCDF series), or no code at all: `geofolder` reads any folder of rasters described by a YAML file.

A corpus is described by one YAML file or dictionary: `kind`, `name` and the options of that kind.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ramen_jax import storage
from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.documents import parse_yaml, read_text
from ramen_jax.no_data import missing_pixels
from ramen_jax.recipe import Recipe
from ramen_jax.samples import Image, ModalitySpec, Sample

KINDS = {
    "geofolder": "Geofolder",
    "flairhub": "FlairHub",
    "mmearth": "MMEarth",
    "worldstrat": "WorldStrat",
    "treesatai": "TreeSatAI",
    "worldcereal": "WorldCereal",
    "synthetic": "Synthetic",
}
# Options of readers that are traps of the official code: the recipe decides them, and nothing else can.
TRAP_OPTIONS = {
    "mmearth": {"draw": "mmearth_draw", "zero_planes": "mmearth_zero_planes"},
    "worldstrat": {"repeats": "worldstrat_repeats", "leaks": "worldstrat_leaks"},
}
SHIPPED = Path(__file__).parent / "descriptions"


class BadItem(ValueError):
    """One file or entry that cannot become a sample: prepare lists it in rejected.jsonl and goes on."""

    def __init__(self, file: str | Path, cause: str) -> None:
        super().__init__(f"{file}: {cause}")
        self.file = str(file)
        self.cause = " ".join(cause.split())

    def __reduce__(self) -> tuple[Any, ...]:
        return BadItem, (self.file, self.cause)


class Corpus(ABC):
    """Original files of one corpus.

    Args:
      source: the folder of the original files.
      options: the description; keys that no reader of this kind knows are an error.

    Attributes:
      name: of the corpus.
      modalities: without statistics; `prepare` fills in max_dates, has_valid and the statistics.
      samples_per_item: about how many samples `read` returns (it only sizes the shards).
      notes: sentences about the files that a person should read; `prepare` prints them.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {}  # option -> default
    name: str
    modalities: tuple[ModalitySpec, ...]
    samples_per_item = 1
    notes: tuple[str, ...] = ()

    def __init__(self, source: Path, options: Mapping[str, Any]) -> None:
        self.source = source
        self.name = options["name"]
        known = ("kind", "name", *self.OPTIONS)
        self.options = {**self.OPTIONS, **check_keys(options, known, f"corpus {self.name}")}

    @abstractmethod
    def items(self) -> tuple[dict[str, list[str]], list[BadItem]]:
        """(items by split in a fixed order, what the index names but cannot be read)."""

    @abstractmethod
    def read(self, item: str, split: str) -> list[Sample]:
        """The samples of one item. Raises BadItem."""

    def facts(self) -> dict[str, Any]:
        """What else the manifest should record about this corpus (called after `items`)."""
        return {}

    def settings(self) -> dict[str, Any]:
        """What the manifest records about how this corpus was read."""
        return settings_of(self.options)


def load_description(name: str | Path) -> dict[str, Any]:
    """A corpus description: a YAML file, or the name of one that ships (corpora/descriptions). Errors: UserError."""
    path = storage.local(str(name))
    if not path.suffix:
        path = SHIPPED / f"{name}.yaml"
    if not path.is_file():
        shipped = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
        raise UserError(
            f"corpus {name}: no file {path}; {close_names(str(name), shipped)} (or give a YAML file)", USAGE
        )
    description = parse_yaml(read_text(path, USAGE), str(path), USAGE)
    if not isinstance(description, dict) or "kind" not in description:
        raise UserError(f"{path}: expected a mapping with the key kind (one of {', '.join(KINDS)})", USAGE)
    odd = next((key for key in description if not isinstance(key, str)), None)
    if odd is not None:
        raise UserError(f"{path}: the key {odd!r} is no text", USAGE)
    if isinstance(description.get("sensors"), str):
        # A file of user sensors is named relative to the description that uses it.
        description["sensors"] = str((path.parent / storage.local(description["sensors"])).resolve())
    if not isinstance(description.get("name", ""), str):
        raise UserError(f"{path}: name is {description['name']!r}, expected a text", USAGE)
    return {"name": path.stem, **description}


def with_recipe(description: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The description with what the recipe decides, by whatever way the corpus was named.

    Raises:
        UserError: an option that only the recipe may set.
    """
    decided = TRAP_OPTIONS.get(str(description.get("kind")), {})
    for option, trap in decided.items():
        if option in description:
            raise UserError(
                f"corpus {description.get('name')}: option {option} is decided by the recipe; leave it out and set "
                f"config.traps.{trap} (`ramen_jax.prepare --trap {trap}=VALUE`)",
                USAGE,
            )
    return {**description, **{option: getattr(recipe, trap) for option, trap in decided.items()}}


def settings_of(description: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a description, defaults filled in.

    Without the name, which stands beside them, and without the path of a sensor file, whose sensors stand in the
    manifest: where a file lies is no property of the corpus.
    """
    options = {"kind": description["kind"], **_reader(description).OPTIONS, **description}
    return {key: _plain(value) for key, value in options.items() if key not in ("name", "sensors")}


def _plain(value: Any) -> Any:
    """The value as JSON gives it back: lists for tuples, texts for NaN and the infinities (a nodata may be one)."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def _reader(description: Mapping[str, Any]) -> type[Corpus]:
    kind = description.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"corpus kind {kind!r} is unknown; {close_names(str(kind), KINDS)}", USAGE)
    module = importlib.import_module(f"ramen_jax.corpora.{kind}")
    reader: type[Corpus] = getattr(module, KINDS[kind])
    return reader


def open_corpus(description: Mapping[str, Any], source: Path) -> Corpus:
    """The reader for a description. Errors: UserError for an unknown kind or option, or a missing folder."""
    reader = _reader(description)
    if description["kind"] != "synthetic" and not source.is_dir():
        raise UserError(f"source {source}: no such folder")
    return reader(source, description)


# -- what readers share ----------------------------------------------------------------------------------------------


def check_keys(values: Mapping[str, Any], known: Any, where: str) -> dict[str, Any]:
    """The values, if every key is known; otherwise UserError naming the close ones."""
    for key in values:
        if key not in known:
            raise UserError(f"{where}: unknown option {key!r}; {close_names(str(key), known)}", USAGE)
    return dict(values)


def read_table(path: Path, columns: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """Rows of a comma-separated table with a header. Errors: UserError (missing, damaged, or lacks a column)."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header, rows = list(reader.fieldnames or ()), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error})") from error
    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; it has {', '.join(header) or 'none'}")
    return rows


def day_of_year(text: str, file: str | Path, form: str = "%Y%m%d") -> int:
    """1..366. Raises BadItem for a text that is no date of that form, or a year outside 1900..2100."""
    try:
        date = datetime.datetime.strptime(text, form)
    except (ValueError, TypeError) as error:
        raise BadItem(file, f"date {text!r} is not of the form {form}") from error
    if not 1900 <= date.year <= 2100:
        raise BadItem(file, f"date {text!r} is out of range, expected a year from 1900 to 2100")
    return date.timetuple().tm_yday


def make_image(
    values: np.ndarray,
    dates: list[int],
    nodata: float | None,
    file: str | Path,
    present: np.ndarray | None = None,
    measured: np.ndarray | None = None,
) -> Image:
    """An image with its no-data pixels marked.

    Args:
      values: [T, C, H, W].
      dates: day of year per frame, 0 = unknown.
      nodata: the stored value that means "no measurement", or None. NaN and the infinities are one case: any
        non-finite pixel. With 0, a pixel is missing only where every present band is 0, because 0 is also what
        a very dark surface measures; any other value marks the pixel in whichever band it stands.
      file: named in errors.
      present: [C], False for bands that were not delivered; None = all.
      measured: [T, H, W], False where the file's masks say that nothing was measured; NaN and the infinities then are
        no measurements either. None: the values alone tell.

    Errors: BadItem for pixels that are NaN or infinite although `nodata` does not say so, for frames without a
    date, and for an image without a single valid pixel.
    """
    frames, bands = values.shape[:2]
    if frames == 0:
        raise BadItem(file, "no dates are left, expected at least one frame")
    if len(dates) != frames:
        raise BadItem(file, f"{frames} frames but {len(dates)} dates")
    present = np.ones(bands, bool) if present is None else present
    missing_TxHxW = missing_pixels(values, nodata, present)
    if measured is not None:
        missing_TxHxW |= ~measured
    if values.dtype.kind == "f":
        broken = ~np.isfinite(values)
        if broken.any():
            if measured is None and (nodata is None or np.isfinite(nodata)):
                raise BadItem(
                    file, f"{int(broken.sum())} NaN or infinite pixels (`nodata: nan` would mask them)"
                )
            values = np.where(broken, values.dtype.type(0), values)
    if not present.any() or missing_TxHxW.all():
        raise BadItem(file, "no valid pixel at all (every pixel is no-data)")
    valid = ~missing_TxHxW if missing_TxHxW.any() else None
    return Image(np.ascontiguousarray(values), np.array(dates, np.int16), present, valid)


def check_sample(sample: Sample, modalities: tuple[ModalitySpec, ...], file: str) -> None:
    """Raises BadItem naming the first way in which a sample differs from what its corpus declares."""
    for spec in modalities:
        image = sample.images.get(spec.name)
        where = f"{file} ({spec.name})"
        if image is None:
            raise BadItem(where, "modality is missing")
        frames, bands, height, width = image.values.shape
        if bands != len(spec.sensor.bands):
            raise BadItem(where, f"{bands} bands, but sensor {spec.sensor.name} has {len(spec.sensor.bands)}")
        if (height, width) != (spec.height, spec.width):
            raise BadItem(where, f"{height}x{width} pixels, expected {spec.height}x{spec.width}")
        if image.values.dtype.name != spec.dtype:
            raise BadItem(where, f"dtype {image.values.dtype.name}, expected {spec.dtype}")
        if frames < 1 or (frames > 1 and not spec.series):
            raise BadItem(where, f"{frames} frames, expected {'at least 1' if spec.series else '1'}")
        if image.valid is not None and not image.valid.any():
            raise BadItem(where, "no valid pixel at all (every pixel is no-data)")
        if image.dates.min() < 0 or image.dates.max() > 366:
            raise BadItem(
                where, f"day of year {image.dates.max()} is out of range, expected 0 (unknown) to 366"
            )


def split_by_id(places: list[str], rule: Any, corpus: str) -> dict[str, list[str]]:
    """Train and val by whole places: `rule` is {val: share, seed: number}, or {val: [place, place]}."""
    rule = check_keys(rule or {}, ("val", "seed"), f"corpus {corpus}, split")
    val = rule.get("val", 0)
    if isinstance(val, (list, tuple)):
        unknown = sorted(set(val) - set(places))
        if unknown:
            raise UserError(
                f"corpus {corpus}, split: val names places that are not there: {', '.join(unknown)}"
            )
        chosen = set(val)
    elif isinstance(val, (int, float)) and 0 <= val < 1:
        seed = rule.get("seed", 0)
        shuffled = sorted(places, key=lambda place: hashlib.sha256(f"{seed}/{place}".encode()).digest())
        chosen = set(shuffled[: round(val * len(places))])
    else:
        raise UserError(
            f"corpus {corpus}, split: val is {val!r}, expected a share below 1 or a list of ids", USAGE
        )
    splits = {"train": [place for place in places if place not in chosen], "val": sorted(chosen)}
    return {name: members for name, members in splits.items() if members}


def clear_dates(snow_TxHxW: np.ndarray, cloud_TxHxW: np.ndarray, max_covered: float) -> np.ndarray:
    """[T] bool: the dates of which at most `max_covered` of the pixels are snow or cloud.

    When there are none: those of which at most that share is snow, whatever the clouds (the rule of the official
    FLAIR-HUB loader).
    """
    enough = (1 - max_covered) * snow_TxHxW[0].size
    kept = (~(snow_TxHxW | cloud_TxHxW)).sum(axis=(1, 2)) >= enough
    return kept if kept.any() else (~snow_TxHxW).sum(axis=(1, 2)) >= enough
