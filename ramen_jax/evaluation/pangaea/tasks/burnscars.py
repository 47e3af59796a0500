"""HLS Burn Scars (IBM-NASA): Harmonized Landsat Sentinel-2 scenes of the USA, burnt or not.

    {training,validation}/{scene}_merged.tif    6 bands, reflectance 0..1 (float32), 9999 = no data
    {training,validation}/{scene}.mask.tif      0, 1, and -1 where nothing is known

A tenth of `training`, drawn with a fixed seed, is the validation split; the folder `validation` is the test split.
Scene names hold the day: subsetted_512x512_HLS.S30.T10SDH.2020248.v1.4.
"""

from __future__ import annotations

import re

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem
from ramen_jax.corpora.raster import read_raster
from ramen_jax.evaluation.pangaea.tasks.reading import held_out, read_label
from ramen_jax.evaluation.pangaea.tasks.task import Example, Rejected, Task
from ramen_jax.samples import Sample

_IMAGE, _MASK = "_merged.tif", ".mask.tif"
_DAY = re.compile(r"\.\d{4}(\d{3})\.")


class BurnScars(Task):
    """See the module's docstring."""

    def _list(self) -> tuple[dict[str, list[str]], Rejected]:
        train, test = self._scenes("training"), self._scenes("validation")
        rest, chosen = held_out(len(train), 0.1, seed=23)
        drawn = {"train": [train[i] for i in rest], "val": [train[i] for i in chosen], "test": test}
        splits: dict[str, list[str]] = {}
        rejected: Rejected = {}
        for split, scenes in drawn.items():
            masks = {scene: self.source / f"{scene}{_MASK}" for scene in scenes}
            splits[split] = [scene for scene, mask in masks.items() if mask.is_file()]
            rejected[split] = [
                BadItem(mask, "the label is missing") for mask in masks.values() if not mask.is_file()
            ]
        return splits, rejected

    def _scenes(self, folder: str) -> list[str]:
        """Scenes in the order of their names, those without a mask too: the draw counts them."""
        if not (self.source / folder).is_dir():
            raise UserError(
                f"task {self.name}: {self.source / folder}: no such folder, expected training and validation"
            )
        images = sorted((self.source / folder).glob(f"*{_IMAGE}"))
        if not images:
            raise UserError(f"task {self.name}: no file *{_IMAGE} in {self.source / folder}")
        return [f"{folder}/{path.name.removesuffix(_IMAGE)}" for path in images]

    def _read(self, item: str, split: str, draw: int) -> Example:
        path = self.source / f"{item}{_IMAGE}"
        raster = read_raster(path)
        match = _DAY.search(path.name)
        dates = self.one_date(int(match[1]) if match else 0)
        spec = self.modalities[0]
        image = self.make_image(raster.values[None].astype(spec.dtype), dates, spec.sensor.nodata, path)
        location = raster.location(spec.height / 2, spec.width / 2)
        return Example(Sample(item, {spec.name: image}, location), read_label(self.source / f"{item}{_MASK}"))
