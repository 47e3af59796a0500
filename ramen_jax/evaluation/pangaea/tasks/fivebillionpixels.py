"""Five-Billion-Pixels (Tong et al. 2023): land cover of China in Gaofen-2 images, cut into crops.

    {train,val,test}/images/{name}.tif      near infrared, red, green, blue (uint8)
    {train,val,test}/labels/{name}.tif      1..24, 0 = not labelled; the name may end in _label or _24label

The crops of 520 x 520 pixels are the benchmark's own and were not published: make them from the original scenes.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from ramen_jax.corpora import BadItem
from ramen_jax.corpora.raster import read_raster
from ramen_jax.evaluation.pangaea.tasks.reading import paired, read_label
from ramen_jax.evaluation.pangaea.tasks.task import SPLITS, Example, Rejected, Task
from ramen_jax.samples import Sample

_ENDINGS = ("", "_label", "_24label")


class FiveBillionPixels(Task):
    """See the module's docstring. An item is split/name."""

    @cached_property
    def _pairs(self) -> dict[str, tuple[dict[str, Path], list[BadItem]]]:
        """Split -> (name -> label, images without one)."""
        return {split: paired(self.source / split, ".tif", _ENDINGS, f"task {self.name}") for split in SPLITS}

    def _list(self) -> tuple[dict[str, list[str]], Rejected]:
        splits = {split: [f"{split}/{name}" for name in labels] for split, (labels, _) in self._pairs.items()}
        return splits, {split: rejected for split, (_, rejected) in self._pairs.items()}

    def _read(self, item: str, split: str, draw: int) -> Example:
        folder, name = item.split("/")
        spec, path = self.modalities[0], self.source / folder / "images" / f"{name}.tif"
        raster = read_raster(path)
        image = self.make_image(
            raster.values[None].astype(spec.dtype), self.one_date(0), spec.sensor.nodata, path
        )
        location = raster.location(spec.height / 2, spec.width / 2)
        return Example(Sample(item, {spec.name: image}, location), read_label(self._pairs[folder][0][name]))
