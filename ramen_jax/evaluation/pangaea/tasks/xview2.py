"""xView2 (xBD, Gupta et al. 2019): damage to buildings, from an image before and one after a disaster.

    {train,tier3,test}/images/{disaster}_{number}_{pre,post}_disaster.png     red, green, blue
    {train,tier3,test}/masks/{disaster}_{number}_post_disaster.png            0 no building, 1 undamaged .. 4 destroyed
    {train,tier3,test}/labels/{disaster}_{number}_{pre,post}_disaster.json    metadata.capture_date; optional here

The masks are not part of the download: the benchmark's script draws them from the polygons of `labels`, buildings that
nobody classified as undamaged. A tenth of `train` and `tier3` together validates, drawn with a fixed seed and in the
same proportion of every disaster. Training places that show damage come twice per epoch, those that show minor or major
damage once more (`oversample`).

The benchmark reads the images as blue, green, red, which is the order of its statistics, and calls them red, green,
blue; the published protocol encodes them by those names.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem, day_of_year
from ramen_jax.corpora.raster import read_raster
from ramen_jax.evaluation.pangaea.tasks.reading import held_out_of_groups, read_json, read_label
from ramen_jax.evaluation.pangaea.tasks.task import Example, Rejected, Task
from ramen_jax.samples import Sample

_BEFORE, _AFTER = "_pre_disaster", "_post_disaster"


class XView2(Task):
    """See the module's docstring. An item is folder/place, with #2 and #3 for a place's second and third copy."""

    OPTIONS: ClassVar[dict[str, Any]] = {**Task.OPTIONS, "oversample": True}

    def _list(self) -> tuple[dict[str, list[str]], Rejected]:
        places = self._places("train") + self._places("tier3")
        disasters = [Path(place).name.split("_")[0] for place in places]
        rest, chosen = held_out_of_groups(disasters, 0.1, seed=23)
        drawn = {
            "train": [places[i] for i in rest],
            "val": [places[i] for i in chosen],
            "test": self._places("test"),
        }
        splits: dict[str, list[str]] = {}
        rejected: Rejected = defaultdict(list)
        for split, members in drawn.items():
            splits[split] = []
            for place in members:
                absent = [file for file in self._paths(place) if not file.is_file()]
                try:
                    if absent:
                        cause = "the label is missing" if "masks" in absent[0].parts else "no such file"
                        raise BadItem(absent[0], cause)
                    splits[split] += self._copies(place, split)
                except BadItem as error:
                    rejected[split].append(error)
        return splits, rejected

    def _places(self, folder: str) -> list[str]:
        """Places of a folder in the order of their names, with and without a mask: the draw counts both."""
        if not (self.source / folder / "masks").is_dir():
            raise UserError(
                f"task {self.name}: {self.source / folder / 'masks'}: no such folder; the benchmark's "
                "xView2_create_masks.py makes the masks from the polygons in labels"
            )
        images = sorted((self.source / folder / "images").glob(f"*{_BEFORE}.png"))
        if not images:
            raise UserError(f"task {self.name}: no file *{_BEFORE}.png in {self.source / folder / 'images'}")
        return [f"{folder}/{path.name.removesuffix(f'{_BEFORE}.png')}" for path in images]

    def _paths(self, place: str) -> tuple[Path, Path, Path]:
        """Image before, image after, mask after."""
        folder, name = place.split("/")
        root = self.source / folder
        return (
            root / "images" / f"{name}{_BEFORE}.png",
            root / "images" / f"{name}{_AFTER}.png",
            root / "masks" / f"{name}{_AFTER}.png",
        )

    def _copies(self, place: str, split: str) -> list[str]:
        if split != "train" or not self.options["oversample"]:
            return [place]
        found = set(np.unique(read_label(self._paths(place)[2])).tolist())
        return [place, *[f"{place}#2"] * bool(found & {2, 3, 4}), *[f"{place}#3"] * bool(found & {2, 3})]

    def _read(self, item: str, split: str, draw: int) -> Example:
        place, spec = item.split("#")[0], self.modalities[0]
        *paths, mask = self._paths(place)
        frames = []
        for path in paths:
            values = read_raster(path).values
            if len(values) != 3:
                raise BadItem(path, f"{len(values)} bands, expected red, green and blue")
            frames.append(values[::-1])
        if frames[0].shape != frames[1].shape:
            raise BadItem(
                paths[1], f"{frames[1].shape[1:]} pixels, the image before has {frames[0].shape[1:]}"
            )
        days = [self.one_date(self._day(place, when))[0] for when in (_BEFORE, _AFTER)]
        image = self.make_image(np.stack(frames).astype(spec.dtype), days, spec.sensor.nodata, paths[0])
        return Example(Sample(item, {spec.name: image}), read_label(mask))

    def _day(self, place: str, when: str) -> int:
        """Day of the year of an image, 0 where its polygons are not there."""
        folder, name = place.split("/")
        path = self.source / folder / "labels" / f"{name}{when}.json"
        if not path.is_file():
            return 0
        try:
            return day_of_year(str(read_json(path)["metadata"]["capture_date"])[:10], path, "%Y-%m-%d")
        except (UserError, KeyError, TypeError) as error:
            raise BadItem(path, f"no metadata.capture_date ({error})") from error
