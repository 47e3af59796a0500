"""AI4SmallFarms (Persello et al. 2023): crop fields of smallholders in Vietnam and Cambodia, Sentinel-2.

    sentinel-2-asia/{train,val,test}/images/*.tif       4 bands, reflectance x 10000
    sentinel-2-asia/{train,val,test}/masks/*.tif        255 = field, 0 = not

The published folder of the validation split is called `validate`, the benchmark's `val`; both are read. Images and
masks pair in the order of their names. Tiles of another size than the task's are resized to it: images bilinearly,
masks by the nearest pixel.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem
from ramen_jax.corpora.raster import read_raster
from ramen_jax.evaluation.pangaea.tasks.reading import read_label
from ramen_jax.evaluation.pangaea.tasks.regions import resize, resize_labels
from ramen_jax.evaluation.pangaea.tasks.task import SPLITS, Example, Rejected, Task
from ramen_jax.samples import Sample


class SmallFarms(Task):
    """See the module's docstring."""

    def _list(self) -> tuple[dict[str, list[str]], Rejected]:
        splits: dict[str, list[str]] = {}
        rejected: Rejected = defaultdict(list)
        for split in SPLITS:
            images, masks = self._files(split)
            if len(masks) != len(images):
                raise UserError(
                    f"task {self.name}: split {split} has {len(images)} images and {len(masks)} masks, which pair in "
                    "the order of their names; remove what has no counterpart"
                )
            splits[split] = [f"{split}/{number}" for number in range(len(images))]
            if not images and split != "val":
                raise UserError(
                    f"task {self.name}: no images of split {split} in {self.source / 'sentinel-2-asia'}"
                )
            if not images:
                rejected[""].append(
                    BadItem(self._folder(split), "no images: this copy has no validation split")
                )
        return splits, rejected

    def _folder(self, split: str) -> Path:
        root = self.source / "sentinel-2-asia"
        return root / "validate" if split == "val" and not (root / "val").is_dir() else root / split

    def _files(self, split: str) -> tuple[list[Path], list[Path]]:
        folder = self._folder(split)
        return sorted((folder / "images").glob("*.tif")), sorted((folder / "masks").glob("*.tif"))

    def _read(self, item: str, split: str, draw: int) -> Example:
        spec = self.modalities[0]
        image_path, mask_path = (files[int(item.split("/")[1])] for files in self._files(split))
        raster, mask = read_raster(image_path), read_label(mask_path)
        wrong = sorted(set(np.unique(mask).tolist()) - {0, 255})
        if wrong:
            raise BadItem(mask_path, f"mask values {wrong[:8]}, expected 0 and 255")
        if mask.shape != raster.values.shape[1:]:
            raise BadItem(mask_path, f"{mask.shape} pixels, the image has {raster.values.shape[1:]}")
        location = raster.location(mask.shape[0] / 2, mask.shape[1] / 2)
        image = self.make_image(
            raster.values[None].astype(spec.dtype), self.one_date(0), spec.sensor.nodata, image_path
        )
        example = Example(Sample(item, {spec.name: image}, location), (mask > 0).astype(np.int32))
        if mask.shape != (spec.height, spec.width):
            example = resize_labels(resize(example, spec.height, antialias=False), spec.height)
        return example
