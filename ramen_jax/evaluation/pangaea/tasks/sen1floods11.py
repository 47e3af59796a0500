"""Sen1Floods11 (Bonafilia et al. 2020): flood water in co-registered Sentinel-1 and Sentinel-2, labelled by hand.

    v1.1/splits/flood_handlabeled/flood_{train,valid,test}_data.csv      radar file, label file; no header
    v1.1/data/flood_events/HandLabeled/{S1Hand,S2Hand,LabelHand}/{event}_{number}_{folder}.tif
    v1.1/Sen1Floods11_Metadata.geojson                                  orbit and dates of each event

The benchmark calls every orbit ascending and tells no dates. With the protocol's true bands the radar modality has VV
and VH of both orbits, of which a chip has those of its event's.
"""

from __future__ import annotations

import csv
import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem, day_of_year
from ramen_jax.corpora.raster import Raster, read_raster
from ramen_jax.evaluation.pangaea.protocol import PUBLISHED, Protocol
from ramen_jax.evaluation.pangaea.tasks.reading import read_json, read_label
from ramen_jax.evaluation.pangaea.tasks.task import Example, Rejected, Task
from ramen_jax.samples import Image, Sample
from ramen_jax.sensors import Band, Sensor

_SPLITS = {"train": "train", "val": "valid", "test": "test"}
_FOLDERS = {"optical": "S2Hand", "sar": "S1Hand"}
_ELSEWHERE = {"Mekong": "Cambodia"}  # events whose files have another name than the table


class Sen1Floods11(Task):
    """See the module's docstring."""

    def __init__(self, source: Path, options: Mapping[str, Any], protocol: Protocol = PUBLISHED) -> None:
        super().__init__(source, options, protocol)
        if protocol.bands == "true":
            self.modalities = tuple(
                dataclasses.replace(spec, sensor=both_orbits(spec.sensor)) if spec.name == "sar" else spec
                for spec in self.modalities
            )

    def _list(self) -> tuple[dict[str, list[str]], Rejected]:
        splits: dict[str, list[str]] = {}
        rejected: Rejected = defaultdict(list)
        for split, word in _SPLITS.items():
            path = self.source / "v1.1/splits/flood_handlabeled" / f"flood_{word}_data.csv"
            splits[split] = []
            for chip in _chips(path):
                absent = [file for file in self._paths(chip).values() if not file.is_file()]
                if absent:
                    rejected[split].append(
                        BadItem(absent[0], f"missing, so chip {chip} of split {split} is left out")
                    )
                else:
                    splits[split].append(chip)
        return splits, rejected

    def _paths(self, chip: str) -> dict[str, Path]:
        folder = self.source / "v1.1/data/flood_events/HandLabeled"
        names = {spec.name: _FOLDERS[spec.name] for spec in self.modalities}
        return {
            name: folder / part / f"{chip}_{part}.tif"
            for name, part in {**names, "target": "LabelHand"}.items()
        }

    @cached_property
    def _events(self) -> dict[str, dict[str, Any]]:
        """Facts of each event by its name."""
        path = self.source / "v1.1" / "Sen1Floods11_Metadata.geojson"
        rows = [feature["properties"] for feature in read_json(path).get("features", [])]
        return {row["location"]: row for row in rows}

    def _read(self, item: str, split: str, draw: int) -> Example:
        paths = self._paths(item)
        target = read_label(paths.pop("target"))
        event = item.rsplit("_", 1)[0]
        facts = self._events.get(_ELSEWHERE.get(event, event), {})
        rasters = {name: read_raster(path) for name, path in paths.items()}
        images = {name: self._image(name, raster, paths[name], facts) for name, raster in rasters.items()}
        height, width = target.shape
        location = next(iter(rasters.values())).location(height / 2, width / 2)
        extra = {"orbit": str(facts["orbit"]).lower()} if "orbit" in facts else {}
        return Example(Sample(item, images, location, extra), target)

    def _image(self, name: str, raster: Raster, path: Path, facts: Mapping[str, Any]) -> Image:
        spec = self.modality(name)
        text = facts.get("s1_date" if name == "sar" else "s2_date")
        dates = self.one_date(day_of_year(text, path, "%Y/%m/%d") if text else 0)
        image = self.make_image(raster.values[None].astype(spec.dtype), dates, spec.sensor.nodata, path)
        if name == "sar" and len(spec.sensor.bands) == 2 * image.values.shape[1]:
            return _place(image, descending=str(facts.get("orbit", "")).upper() == "DESCENDING")
        return image


def both_orbits(sensor: Sensor) -> Sensor:
    """The radar sensor with its bands once for the ascending and once for the descending orbit."""
    pairs = [(orbit, band) for orbit in ("asc", "des") for band in sensor.bands]
    bands = tuple(Band.of(f"{orbit}_{band.name}", f"{orbit}_{str(band.radar)[4:]}") for orbit, band in pairs)
    both = dataclasses.replace(sensor, name=f"{sensor.name}_both_orbits", bands=bands, mean=None, std=None)
    return both.with_statistics(2 * (sensor.mean or ()), 2 * (sensor.std or ()))


def _place(image: Image, descending: bool) -> Image:
    """The bands of one orbit among those of both; the others are absent."""
    absent = np.zeros_like(image.values)
    pair = (absent, image.values) if descending else (image.values, absent)
    half = image.values.shape[1]
    present = np.repeat(np.array([not descending, descending]), half)
    return dataclasses.replace(image, values=np.concatenate(pair, axis=1), present=present)


def _chips(path: Path) -> list[str]:
    """Chips of a split list, such as Spain_7370579. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: no such split file")
    chips = []
    with open(path, newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.reader(file), 1):
            if not row:
                continue
            if len(row) < 2 or not row[0].strip().endswith("_S1Hand.tif"):
                raise UserError(
                    f"{path}, line {number}: found {','.join(row)!r}, expected a S1Hand and a LabelHand file"
                )
            chips.append(row[0].strip().removesuffix("_S1Hand.tif"))
    return chips
