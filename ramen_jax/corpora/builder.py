"""Originals -> ArrayRecord shards, as TensorFlow Datasets builders (TFDS needs no TensorFlow for this).

One builder serves three ways to run it:

- `python -m ramen_jax.prepare` (or `prepare()`): shards written by parallel processes, restartable;
- `tfds build --imports ramen_jax.corpora.builder flairhub --manual_dir SOURCE --file_format array_record`
  (the `tfds` command wants TensorFlow for its other subcommands; `tensorflow_datasets.scripts.cli.build` does not);
- Apache Beam: the same shards as Beam work items, when a `beam_runner` is given.

Every way ends with the same shards, byte for byte, and with `manifest.json` beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered, splits

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem, Corpus, load_description, open_corpus, records
from ramen_jax.corpora.records import EVERY_VARIANT
from ramen_jax.corpora.shards import ShardJob, features, place_file, plan_shards, rejection, run_all
from ramen_jax.corpora.statistics import BandStatistics
from ramen_jax.own_files import file_hash
from ramen_jax.samples import ModalitySpec

REJECTED = "rejected.jsonl"
_PARTS = ".parts"


class CorpusBuilder(tfds.core.ShardBasedBuilder):
    """The TFDS builder of one corpus description.

    Args:
      description: as `load_description` returns it; None = the description shipped under this builder's name.
      source: folder of the original files; None = TFDS's manual_dir.
      parts: folder that keeps finished shards for a restart; None = inside the builder's own folder.
      rejected: what was rejected before (members of archives), to be listed with the rest.
      workers: processes.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The folder of the original files is the manual_dir."
    SHIPPED: ClassVar[str] = ""

    def __init__(
        self,
        *,
        description: Mapping[str, Any] | None = None,
        source: Path | None = None,
        parts: Path | None = None,
        rejected: Sequence[BadItem] = (),
        workers: int = 1,
        file_format: Any = "array_record",
        **kwargs: Any,
    ) -> None:
        self._description = description or load_description(self.SHIPPED)
        self._source, self._parts_folder, self._workers = source, parts, workers
        self._rejected = list(rejected)
        self._jobs: dict[str, list[ShardJob]] = {}
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=f"Corpus {self._description['name']} of ramen_jax (kind {self._description['kind']}).",
            features=features(),
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[ShardJob]]:
        return self._jobs

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        source = (self._source or Path(dl_manager.manual_dir)).absolute()
        try:
            corpus = open_corpus(self._description, source)
            items, rejected = corpus.items()
        except BadItem as error:
            raise UserError(str(error)) from error
        parts = self._parts_folder or Path(self.data_dir) / _PARTS
        self._jobs = plan_shards(self._description, corpus, items, parts)
        _bind(parts, corpus, items)
        if download_config is not None and (download_config.beam_runner or download_config.beam_options):
            super()._download_and_prepare(dl_manager, download_config)
            for leftover in Path(self.data_dir).glob("*.shard_infos.json"):  # TFDS's notes to itself
                leftover.unlink()
        else:
            self._write_in_parallel(corpus.name)
        manifest = self._manifest(corpus, [*self._rejected, *rejected])
        records.write_json(Path(self.data_dir) / records.MANIFEST, manifest)
        if self._parts_folder is None:
            shutil.rmtree(parts)

    def _write_in_parallel(self, name: str) -> None:
        jobs = [job for split in self._jobs.values() for job in split]
        run_all(jobs, self._workers, name)
        found = []
        for split, split_jobs in self._jobs.items():
            template = self._get_filename_template(split_name=split)
            lengths, size = [], 0
            for index, job in enumerate(split_jobs):
                target = Path(template.sharded_filepath(shard_index=index, num_shards=len(split_jobs)))
                place_file(Path(job.part + ".array_record"), target)
                lengths.append(len(_part(job)["ids"]))
                size += target.stat().st_size
            found.append(
                splits.SplitInfo(
                    name=split, shard_lengths=lengths, num_bytes=size, filename_template=template
                )
            )
        self.info.set_splits(splits.SplitDict(found))

    def _manifest(self, corpus: Corpus, rejected: list[BadItem]) -> dict[str, Any]:
        """The manifest of the finished shards; also writes the id lists and rejected.jsonl."""
        folder = Path(self.data_dir)
        lines = [rejection("", "", error) for error in rejected]
        parts = {split: [_part(job) for job in jobs] for split, jobs in self._jobs.items()}
        entries = {}
        for split, of_split in parts.items():
            template = self._get_filename_template(split_name=split)
            shards: list[dict[str, Any]] = []
            ids: list[str] = []
            for index, part in enumerate(of_split):
                path = Path(template.sharded_filepath(shard_index=index, num_shards=len(of_split)))
                ids += part["ids"]
                lines += part["rejected"]
                shards.append(
                    {
                        "file": path.name,
                        "samples": len(part["ids"]),
                        "bytes": path.stat().st_size,
                        "sha256": part.get("sha256") or file_hash(path),
                    }
                )
            _refuse_repeated(corpus, split, ids)
            listed = folder / f"{split}.ids.jsonl"
            write_lines(listed, ids)
            entries[split] = {
                "samples": len(ids),
                "shards": shards,
                "ids": {"file": listed.name, "sha256": file_hash(listed)},
            }
        write_lines(folder / REJECTED, lines)
        _refuse_empty(corpus, entries, lines)
        empty = [split for split, entry in entries.items() if entry["samples"] == 0]
        modalities, statistics = _summary(corpus, parts)
        manifest = {
            "format": records.FORMAT,
            "name": corpus.name,
            "modalities": [spec.to_dict() for spec in modalities],
            "splits": {split: entry for split, entry in entries.items() if split not in empty},
            "statistics": statistics,
            "settings": corpus.settings(),
            "facts": corpus.facts(),
            "rejected": len(lines),
            "warnings": [
                *corpus.notes,
                *(f"split {split} is left out: it has not a single good sample" for split in empty),
                *_warnings(corpus, statistics),
            ],
        }
        return {**manifest, "fingerprint": records.fingerprint(manifest)}


def _summary(
    corpus: Corpus, parts: Mapping[str, list[dict[str, Any]]]
) -> tuple[list[ModalitySpec], dict[str, Any]]:
    """Modalities with the longest series found, and statistics of the train split (of all, if there is none)."""
    measured = parts.get("train") or [part for split in parts.values() for part in split]
    modalities: list[ModalitySpec] = []
    statistics: dict[str, Any] = {}
    for spec in corpus.modalities:
        shapes = [part["shapes"][spec.name] for split in parts.values() for part in split]
        changed = {
            "max_dates": max(shape["max_dates"] for shape in shapes),
            "has_valid": any(shape["has_valid"] for shape in shapes),
        }
        modalities.append(ModalitySpec(**{**spec.__dict__, **changed}))
        variants: dict[str, BandStatistics] = {}
        for part in measured:
            for variant, values in part["statistics"].get(spec.name, {}).items():
                one = BandStatistics.from_dict(values)
                if variant in variants:
                    variants[variant].merge(one)
                else:
                    variants[variant] = one
        statistics[spec.name] = {
            variant: variants[variant].result(spec.sensor.scale, spec.sensor.offset)
            for variant in sorted(variants)
        }
    return modalities, statistics


def write_lines(path: Path, lines: Sequence[Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.replace(part, path)


def _part(job: ShardJob) -> dict[str, Any]:
    return json.loads(Path(job.part + ".json").read_text())


def _bind(parts: Path, corpus: Corpus, items: Mapping[str, Sequence[str]]) -> None:
    """Makes sure that parts left by an earlier run belong to this very work; otherwise they are thrown away."""
    content = [corpus.settings(), [spec.to_dict() for spec in corpus.modalities], items, records.FORMAT]
    work = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
    mark = parts / "work.json"
    if mark.is_file() and json.loads(mark.read_text()) != work:
        shutil.rmtree(parts)
    parts.mkdir(parents=True, exist_ok=True)
    records.write_json(mark, work)


def _refuse_empty(corpus: Corpus, entries: Mapping[str, Any], rejected: list[dict[str, str]]) -> None:
    """A corpus needs samples to train on (or any, if it has no train split)."""
    needed = [entries["train"]] if "train" in entries else list(entries.values())
    if not any(entry["samples"] for entry in needed):
        first = next((line for line in rejected if line["split"] in ("train", "")), None)
        cause = f"; the first one rejected: {first['file']}: {first['cause']}" if first else ""
        raise UserError(f"corpus {corpus.name}: not a single good sample in {corpus.source}{cause}")


def _refuse_repeated(corpus: Corpus, split: str, ids: Sequence[str]) -> None:
    if len(set(ids)) < len(ids):
        name, count = Counter(ids).most_common(1)[0]
        raise UserError(f"corpus {corpus.name}: split {split} has {count} samples called {name}")


def _warnings(corpus: Corpus, statistics: Mapping[str, Any]) -> list[str]:
    """Sentences about bands that never vary, and about means that a sensor calls implausible."""
    sentences = []
    for spec in corpus.modalities:
        sensor = spec.sensor
        low, high = sensor.plausible or (-np.inf, np.inf)
        pooled = statistics[spec.name][EVERY_VARIANT]["pooled"]
        for band, mean, std in zip(sensor.bands, pooled["mean"], pooled["std"], strict=True):
            if mean is not None and std is None:
                sentences.append(
                    f"modality {spec.name}: band {band.name} is {mean:g} in every pixel of the corpus; it says nothing "
                    "and is normalised to 0 (leave the band out, or correct its nodata value)"
                )
            if mean is not None and not low <= mean <= high:
                sentences.append(
                    f"modality {spec.name}: band {band.name} has mean {mean:g}, but {low:g} to {high:g} is plausible "
                    f"for sensor {sensor.name} ({sensor.units}); are its units, scale and offset right?"
                )
    return sentences


class FlairHub(CorpusBuilder):
    name = SHIPPED = "flairhub"


class MMEarth64(CorpusBuilder):
    name = SHIPPED = "mmearth"


class WorldStrat(CorpusBuilder):
    name = SHIPPED = "worldstrat"


class TerraMesh(CorpusBuilder):
    name = SHIPPED = "terramesh"


class TreeSatAI(CorpusBuilder):
    name = SHIPPED = "treesatai"


class WorldCereal(CorpusBuilder):
    name = SHIPPED = "worldcereal"


def builder_class(name: str) -> type[CorpusBuilder]:
    """A builder under a corpus's own name, for descriptions that are not shipped. Errors: UserError."""
    if not name.isidentifier():
        raise UserError(
            f"corpus name {name!r}: use letters, digits and _ only, it becomes part of file names"
        )

    with registered.skip_registration():
        builder: type[CorpusBuilder] = type(name, (CorpusBuilder,), {"name": name, "__module__": __name__})
    return builder
