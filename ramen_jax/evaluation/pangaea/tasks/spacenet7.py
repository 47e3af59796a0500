"""SpaceNet 7 (Van Etten et al. 2021): buildings in monthly Planet mosaics, and their change.

    metadata_train.json                 {area: [{aoi_id, year, month, mask, label}, ...]}, made by the benchmark
    train/{area}/images_masked/global_monthly_{year}_{month}_mosaic_{area}.tif             red, green, blue, alpha
    train/{area}/labels_raster/global_monthly_{year}_{month}_mosaic_{area}_Buildings.tif   above 0 = building

Whole areas are trained on, validated and tested (Hafner et al., doi 10.3390/rs15215135; lists in the description).
Scenes of 1023 or 1024 pixels are read as 1024 x 1024 and cut into tiles, row by row. RAMEN's published command tells
the encoder 40 m per pixel; the images have 4 m (see `protocol.spacenet7_gsd`).

Change: an area's first and a later month, building in one of them only. `published` draws two months at least five
apart in training and otherwise takes the first and the middle one; `sorted` takes the first and the last one otherwise.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem
from ramen_jax.corpora.raster import Raster, read_raster
from ramen_jax.counter_rng import below, combine, raw_bits
from ramen_jax.evaluation.pangaea.protocol import PUBLISHED, Protocol
from ramen_jax.evaluation.pangaea.tasks.reading import read_json
from ramen_jax.evaluation.pangaea.tasks.registry import load_task
from ramen_jax.evaluation.pangaea.tasks.task import SPLITS, Example, Rejected, Task
from ramen_jax.samples import Image, Sample

_MONTH_STARTS = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)
Month = tuple[int, int]


class SpaceNet7(Task):
    """Buildings of one month. An item is area/YYYY-MM/row-column of the tile."""

    OPTIONS: ClassVar[dict[str, Any]] = {**Task.OPTIONS, "areas": None, "scene": 1024}

    def __init__(self, source: Path, options: Mapping[str, Any], protocol: Protocol = PUBLISHED) -> None:
        super().__init__(source, options, protocol)
        self.modalities = tuple(
            dataclasses.replace(spec, sensor=dataclasses.replace(spec.sensor, gsd=protocol.spacenet7_gsd))
            for spec in self.modalities
        )
        areas = self.options["areas"]
        self._split_areas = load_task(areas)["areas"] if isinstance(areas, str) else areas
        self._scene = lru_cache(maxsize=8)(self._load)  # the tiles of a scene are read one after the other

    @cached_property
    def _months(self) -> dict[str, list[Month]]:
        """Months of each area that have a label and are not masked out, in the order of the file."""
        path = self.source / "metadata_train.json"
        content = read_json(path)
        try:
            return {
                area: [
                    (int(row["year"]), int(row["month"])) for row in rows if row["label"] and not row["mask"]
                ]
                for area, rows in content.items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: expected year, month, mask and label of each month of an area ({error!r})"
            ) from error

    def _tiles(self) -> list[str]:
        tiles = self.options["scene"] // self.modalities[0].width
        return [f"{row}-{column}" for row in range(tiles) for column in range(tiles)]

    def _areas(self, split: str) -> tuple[list[str], list[BadItem]]:
        """The split's areas that have months, and those that do not lie here."""
        names = self._split_areas[split]
        known = [area for area in names if self._months.get(area)]
        path = self.source / "metadata_train.json"
        lost = [BadItem(path, f"no months of area {name} ({split})") for name in names if name not in known]
        return known, lost

    def _list(self) -> tuple[dict[str, list[str]], Rejected]:
        splits: dict[str, list[str]] = {}
        rejected: Rejected = defaultdict(list)
        for split in SPLITS:
            areas, lost = self._areas(split)
            rejected[split] += lost
            splits[split] = []
            for area in areas:
                for year, month in self._months[area]:
                    absent = [file for file in self._paths(area, (year, month)) if not file.is_file()]
                    if absent:
                        rejected[split].append(BadItem(absent[0], "no such file"))
                        continue
                    splits[split] += [f"{area}/{year}-{month:02d}/{tile}" for tile in self._tiles()]
        return splits, rejected

    def _paths(self, area: str, when: Month) -> tuple[Path, Path]:
        folder = self.source / "train" / area
        stem = f"global_monthly_{when[0]}_{when[1]:02d}_mosaic_{area}"
        return folder / "images_masked" / f"{stem}.tif", folder / "labels_raster" / f"{stem}_Buildings.tif"

    def _load(self, area: str, when: Month) -> tuple[np.ndarray, np.ndarray, Raster]:
        """Image [3, side, side] and building [side, side] of a scene, and where it lies."""
        image_path, label_path = self._paths(area, when)
        side, bands = self.options["scene"], len(self.modalities[0].sensor.bands)
        raster = read_raster(image_path)
        if len(raster.values) not in (bands, bands + 1):
            raise BadItem(image_path, f"{len(raster.values)} bands, expected red, green, blue and alpha")
        image = _nearest(raster.values[:bands], side, image_path)
        return image, _nearest(read_raster(label_path).values[:1], side, label_path)[0] > 0, raster

    def _tile(
        self, area: str, when: Month, tile: str
    ) -> tuple[Image, np.ndarray, tuple[float, float] | None]:
        spec = self.modalities[0]
        image, building, raster = self._scene(area, when)
        top, left = (int(part) * spec.height for part in tile.split("-"))
        window = (slice(top, top + spec.height), slice(left, left + spec.width))
        path = self._paths(area, when)[0]
        values = np.ascontiguousarray(image[None, :, window[0], window[1]]).astype(spec.dtype)
        day = self.one_date(_MONTH_STARTS[when[1] - 1] + 15)
        location = raster.location(top + spec.height / 2, left + spec.width / 2)
        return self.make_image(values, day, spec.sensor.nodata, path), building[window], location

    def _read(self, item: str, split: str, draw: int) -> Example:
        area, month, tile = item.split("/")
        image, building, location = self._tile(area, _month(month), tile)
        return Example(Sample(item, {self.modalities[0].name: image}, location), building.astype(np.int32))


class SpaceNet7Change(SpaceNet7):
    """Change of buildings between two months. An item is area/row-column of the tile."""

    OPTIONS: ClassVar[dict[str, Any]] = {**SpaceNet7.OPTIONS, "minimum_gap": 5}

    def _list(self) -> tuple[dict[str, list[str]], Rejected]:
        splits: dict[str, list[str]] = {}
        rejected: Rejected = defaultdict(list)
        for split in SPLITS:
            areas, lost = self._areas(split)
            rejected[split] += lost
            splits[split] = []
            for area in areas:
                months = self._months[area]
                needed = self.options["minimum_gap"] + 1 if split == "train" else 2
                if len(months) < needed:
                    rejected[split].append(
                        BadItem(area, f"{len(months)} labelled months, expected at least {needed}")
                    )
                    continue
                splits[split] += [f"{area}/{tile}" for tile in self._tiles()]
        return splits, rejected

    def _pair(self, area: str, item: str, split: str, draw: int) -> tuple[Month, Month]:
        months, gap = self._months[area], self.options["minimum_gap"]
        if self.protocol.dates == "sorted":
            months = sorted(months)
        if split == "train":
            bits = raw_bits(combine(self.protocol.seed, "change", item, draw), 2)
            first = int(below(bits[:1], len(months) - gap)[0])
            second = first + gap + int(below(bits[1:], len(months) - gap - first)[0])
            return months[first], months[second]
        return months[0], months[-1 if self.protocol.dates == "sorted" else len(months) // 2]

    def _read(self, item: str, split: str, draw: int) -> Example:
        area, tile = item.split("/")
        first, second = self._pair(area, item, split, draw)
        before, built_before, location = self._tile(area, first, tile)
        after, built_after, _ = self._tile(area, second, tile)
        valid = None
        if before.valid is not None or after.valid is not None:
            valid = np.concatenate([_valid(before), _valid(after)])
        values, dates = (
            np.concatenate([getattr(image, key) for image in (before, after)]) for key in ("values", "dates")
        )
        image = Image(values, dates, before.present, valid)
        extra = {"months": [f"{year}-{month:02d}" for year, month in (first, second)]}
        sample = Sample(item, {self.modalities[0].name: image}, location, extra)
        return Example(sample, (built_before != built_after).astype(np.int32))


def _month(text: str) -> Month:
    year, month = text.split("-")
    return int(year), int(month)


def _valid(image: Image) -> np.ndarray:
    frames, _, height, width = image.values.shape
    return np.ones((frames, height, width), bool) if image.valid is None else image.valid


def _nearest(values: np.ndarray, side: int, path: Path) -> np.ndarray:
    """[C, H, W] as [C, side, side]: the nearest pixel of each; scenes of a quite different size are refused."""
    height, width = values.shape[1:]
    if not (0.95 < height / side < 1.05 and 0.95 < width / side < 1.05):
        raise BadItem(path, f"{height}x{width} pixels, expected about {side}x{side}")
    rows, columns = (np.floor((np.arange(side) + 0.5) * size / side).astype(int) for size in (height, width))
    return values[:, rows[:, None], columns]
