"""ISPRS Potsdam: six classes of a city in infrared, red and green, 5 cm.

    {train,val,test}/images/{number}.png    near infrared, red, green, in tiles of 512 x 512 pixels
    {train,val,test}/labels/{number}.png    a colour per class: white, blue, cyan, green, yellow, red

The benchmark's preparation cuts the orthophotos into tiles that overlap by 128 pixels, puts those of the official
test areas into `val` and leaves `test` empty. Where it is empty, as it then is, `val` is what is tested, and the last
tenth of `train`, whose tiles are numbered orthophoto by orthophoto, validates. Colours of no class, which the benchmark
takes for its first class, are ignored.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem
from ramen_jax.corpora.raster import read_raster
from ramen_jax.evaluation.pangaea.tasks.reading import paired
from ramen_jax.evaluation.pangaea.tasks.task import SPLITS, Example, Rejected, Task
from ramen_jax.samples import Sample

_COLOURS = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0))


class Potsdam(Task):
    """See the module's docstring. An item is folder/number."""

    def _list(self) -> tuple[dict[str, list[str]], Rejected]:
        splits: dict[str, list[str]] = {}
        rejected: Rejected = defaultdict(list)
        for split in SPLITS:
            names, lost = paired(
                self.source / split, ".png", ("",), f"task {self.name}", may_be_empty=split == "test"
            )
            splits[split] = [f"{split}/{name}" for name in sorted(names, key=_number)]
            rejected[split] += lost
        if not splits["test"]:
            held = math.ceil(len(splits["train"]) / 10)
            splits = {
                "train": splits["train"][:-held],
                "val": splits["train"][-held:],
                "test": splits["val"],
            }
            cause = f"no tiles: those of val are tested, the last {held} of train validate"
            note = BadItem(self.source / "test", cause)
            rejected = {"train": rejected["train"], "test": rejected["val"], "": [note]}
        return splits, rejected

    def _read(self, item: str, split: str, draw: int) -> Example:
        folder, name = item.split("/")
        spec, root = self.modalities[0], self.source / folder
        path = root / "images" / f"{name}.png"
        image = self.make_image(
            read_raster(path).values[None].astype(spec.dtype), self.one_date(0), spec.sensor.nodata, path
        )
        return Example(Sample(item, {spec.name: image}), self._classes(root / "labels" / f"{name}.png"))

    def _classes(self, path: Path) -> np.ndarray:
        """int32 [H, W] of a picture of colours. Raises BadItem for another form of labels."""
        colours = read_raster(path).values
        if len(colours) != 3:
            raise BadItem(
                path, f"{len(colours)} bands, expected the red, green and blue of a colour per class"
            )
        code = colours.astype(np.int32).transpose(1, 2, 0) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        target = np.full(code.shape, -1, np.int32)
        for number, (red, green, blue) in enumerate(_COLOURS):
            target[code == (red << 16) + (green << 8) + blue] = number
        if (target < 0).all():
            raise BadItem(path, "no pixel has the colour of a class; another version of the labels?")
        return np.where(target < 0, np.int32(self.ignore_index), target)


def _number(name: str) -> int:
    if not name.isdigit():
        raise UserError(f"tile {name}.png: expected a number, as the benchmark's preparation names the tiles")
    return int(name)
