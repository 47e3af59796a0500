"""Open-Canopy (Fogel et al. 2024): height of the canopy in SPOT 6 and 7 images of France, 1.5 m.

    canopy_height/geometries.geojson                                    a square of 1 km per tile, with its split and
                                                                        image_name
    canopy_height/{year}/spot/{image_name}                              red, green, blue, near infrared (uint8)
    canopy_height/{year}/lidar/compressed_lidar_{end of image_name}     decimetres, on the same grid

The year is the first four figures after the last underscore of image_name, from which on it ends the lidar's name. A
tile is read from the pixel nearest to its upper left corner. Squares of the split `buffer` are not used. The target is
what the lidar files hold, in their unit, as in the benchmark.

The benchmark calls the bands blue, green, red and near infrared; the published protocol encodes them so.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem
from ramen_jax.corpora.raster import read_tile
from ramen_jax.evaluation.pangaea.tasks.reading import read_json
from ramen_jax.evaluation.pangaea.tasks.task import SPLITS, Example, Rejected, Task
from ramen_jax.samples import Sample


class OpenCanopy(Task):
    """See the module's docstring. An item is image/left_top of the tile, in metres."""

    @cached_property
    def _tiles(self) -> dict[str, dict[str, tuple[str, float, float]]]:
        """Split -> item -> (image name, left, top), in the order of the file."""
        path = self.source / "canopy_height" / "geometries.geojson"
        content = read_json(path)
        tiles: dict[str, dict[str, tuple[str, float, float]]] = {split: {} for split in SPLITS}
        try:
            for feature in content["features"]:
                facts: dict[str, Any] = feature["properties"]
                name, split = str(facts["image_name"]), facts["split"]
                if split not in tiles:
                    continue
                if Path(name).name != name or len(_end(name)) < 4:
                    raise UserError(
                        f"{path}: image_name {name!r} is no file name that ends in _YEAR... or such"
                    )
                corners = np.asarray(feature["geometry"]["coordinates"][0], np.float64)
                left, top = float(corners[:, 0].min()), float(corners[:, 1].max())
                tiles[split][f"{Path(name).stem}/{left:.0f}_{top:.0f}"] = (name, left, top)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise UserError(
                f"{path}: expected tiles with image_name, split and a polygon ({error!r})"
            ) from error
        return tiles

    def _list(self) -> tuple[dict[str, list[str]], Rejected]:
        splits: dict[str, list[str]] = {}
        rejected: Rejected = defaultdict(list)
        for split, tiles in self._tiles.items():
            splits[split] = []
            for item, (name, _, _) in tiles.items():
                spot, lidar = self._paths(name)
                if not spot.is_file():
                    rejected[split].append(BadItem(spot, "no such file"))
                elif not lidar.is_file():
                    rejected[split].append(BadItem(lidar, "the label is missing"))
                else:
                    splits[split].append(item)
        return splits, rejected

    def _paths(self, name: str) -> tuple[Path, Path]:
        folder = self.source / "canopy_height" / _end(name)[:4]
        return folder / "spot" / name, folder / "lidar" / f"compressed_lidar_{_end(name)}"

    def _read(self, item: str, split: str, draw: int) -> Example:
        name, left, top = self._tiles[split][item]
        spec, (spot, lidar) = self.modalities[0], self._paths(name)
        raster = read_tile(spot, left, top, spec.height, spec.width)
        height = read_tile(lidar, left, top, spec.height, spec.width)
        grids = (height.footprint.transform, raster.footprint.transform)
        if not np.allclose(*grids, rtol=0, atol=spec.sensor.gsd / 100):
            raise BadItem(lidar, f"its pixels are not those of {spot.name}")
        # 0 is a height; any other no-data value marks what has none.
        if height.nodata and (height.values[0] == height.nodata).any():
            raise BadItem(lidar, f"tile {item} has pixels without a height ({height.nodata:g})")
        image = self.make_image(
            raster.values[None].astype(spec.dtype), self.one_date(0), spec.sensor.nodata, spot
        )
        location = raster.location(spec.height / 2, spec.width / 2)
        return Example(Sample(item, {spec.name: image}, location), height.values[0].astype(np.float32))


def _end(name: str) -> str:
    """What follows the last underscore: 2021.tif, 2021-2.tif."""
    return name.rsplit("_", 1)[-1]
