"""A task of one's own: a folder of co-registered rasters and labels, described by one YAML file.

    kind: geotask
    family: segmentation                # or regression
    classes: [other, water]
    ignore: 255                         # label without truth
    split: {val: 0.2, test: 0.2, seed: 0}       # shares of the places, or {val: [id, id], test: [id]}
    sensors: my_sensors.yaml            # optional, as in a geofolder
    modalities:                         # as in a geofolder; the labels lie on the grid of the FIRST one
      s2: {sensor: sentinel2_l2a, pattern: "S2/{id}_{date}.tif"}
    labels:
      pattern: "labels/{id}.tif"        # first band
      values: {10: 0, 80: 1}            # optional: value in the file -> class; all others are ignored
    command: {crop: 128, target_gsd: 40, decoder: seg_upernet, loss: cross_entropy}

Images are read by `corpora.geofolder`, whose documentation has the options of a modality. Their sensors need a mean
and a std (in the registry, or in a sensor file): missing statistics are an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ramen_jax.console import USAGE, UserError
from ramen_jax.corpora import BadItem, check_keys, split_by_id
from ramen_jax.corpora.geofolder import Geofolder
from ramen_jax.corpora.raster import read_raster
from ramen_jax.evaluation.pangaea.protocol import PUBLISHED, Protocol
from ramen_jax.evaluation.pangaea.tasks.reading import whole_numbers
from ramen_jax.evaluation.pangaea.tasks.task import Example, Rejected, Task


class GeoTask(Task):
    """See the module's docstring."""

    OPTIONS: ClassVar[dict[str, Any]] = {**Task.OPTIONS, "sensors": None, "split": None, "labels": None}

    def __init__(self, source: Path, options: Mapping[str, Any], protocol: Protocol = PUBLISHED) -> None:
        super().__init__(source, options, protocol)
        if self.family not in ("segmentation", "regression"):
            raise UserError(
                f"task {self.name}: a geotask is a segmentation or a regression, not {self.family}", USAGE
            )
        labels = self.options["labels"]
        where = f"task {self.name}, labels"
        if not isinstance(labels, Mapping) or not isinstance(labels.get("pattern"), str):
            raise UserError(f"{where}: expected a mapping with pattern, such as labels/{{id}}.tif", USAGE)
        check_keys(labels, ("pattern", "values"), where)
        self._pattern: str = labels["pattern"]
        self._values: dict[int, int] = labels.get("values") or {}
        if (
            self._pattern.count("{id}") != 1
            or ".." in Path(self._pattern).parts
            or Path(self._pattern).is_absolute()
        ):
            raise UserError(
                f"{where}: pattern {self._pattern!r} needs one {{id}} and must stay inside the source", USAGE
            )
        self._folder = Geofolder(
            source, {key: self.options[key] for key in ("name", "sensors", "modalities")}
        )
        without = [spec.sensor.name for spec in self._folder.modalities if spec.sensor.mean is None]
        if without:
            raise UserError(
                f"task {self.name}: sensor {without[0]} has no mean and std; give them in a sensor file "
                "(`prepare` measures them)"
            )
        self.modalities = tuple(
            dataclasses.replace(spec, has_valid=True, max_dates=self._longest(spec.name))
            if spec.series
            else dataclasses.replace(spec, has_valid=True)
            for spec in self._folder.modalities
        )

    def _modalities(self) -> tuple[()]:
        return ()  # those of the folder, which knows the sizes

    def _longest(self, name: str) -> int:
        return max(len(files) for files in self._folder.files[name].values())

    def _list(self) -> tuple[dict[str, list[str]], Rejected]:
        found, rejected = self._folder.items()
        places = [place for members in found.values() for place in members]
        labelled = [place for place in places if self._label(place).is_file()]
        rejected = rejected + [
            BadItem(self._label(place), "the label is missing") for place in places if place not in labelled
        ]
        if not labelled and rejected:
            raise UserError(f"task {self.name}: no complete place; the first problem: {rejected[0]}")
        rule = check_keys(self.options["split"] or {}, ("val", "test", "seed"), f"task {self.name}, split")
        seed = rule.get("seed", 0)
        held = split_by_id(labelled, {"val": rule.get("test", 0), "seed": seed}, self.name)
        rest, val = held.get("train", []), rule.get("val", 0)
        if isinstance(val, (int, float)) and not isinstance(val, bool):
            val = val * len(labelled) / max(len(rest), 1)  # a share of all places, not of the rest
        kept = split_by_id(rest, {"val": val, "seed": seed + 1}, self.name)
        splits = {"train": kept.get("train", []), "val": kept.get("val", []), "test": held.get("val", [])}
        return splits, {"": rejected}  # the split counts complete places only

    def _label(self, place: str) -> Path:
        return self.source / self._pattern.replace("{id}", place)

    def _read(self, item: str, split: str, draw: int) -> Example:
        sample = self._folder.read(item, split)[0]
        path = self._label(item)
        values = read_raster(path).values[0]
        if self.family == "regression":
            return Example(sample, values.astype(np.float32))
        labels = whole_numbers(values, path)
        if self._values:
            mapped = np.full_like(labels, self.ignore_index)
            for value, number in self._values.items():
                mapped[labels == value] = number
            labels = mapped
        return Example(sample, labels)
