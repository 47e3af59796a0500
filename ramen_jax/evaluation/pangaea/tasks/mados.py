"""MADOS (Kikaki et al. 2024): marine pollutants and sea surface features in Sentinel-2, few pixels labelled.

    splits/{train,val,test}_X.txt                                   one crop a line, Scene_{scene}_{crop}
    Scene_{scene}/{10,20,60}/Scene_{scene}_L2R_rhorc_{nm}_{crop}.tif   one band each, of 10, 20 and 60 m
    Scene_{scene}/10/Scene_{scene}_L2R_cl_{crop}.tif                label 1..15, 0 = not labelled

Bands are told apart by the order of their wavelengths, which differ a little between Sentinel-2A and 2B.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem
from ramen_jax.corpora.raster import read_raster
from ramen_jax.evaluation.pangaea.tasks.reading import read_label, read_lines
from ramen_jax.evaluation.pangaea.tasks.task import SPLITS, Example, Rejected, Task
from ramen_jax.samples import Sample

_CROP = re.compile(r"(Scene_\d+)_(\d+)")


class Mados(Task):
    """See the module's docstring."""

    def _list(self) -> tuple[dict[str, list[str]], Rejected]:
        splits: dict[str, list[str]] = {}
        rejected: Rejected = defaultdict(list)
        for split in SPLITS:
            path = self.source / "splits" / f"{split}_X.txt"
            splits[split] = []
            for crop in read_lines(path):
                if _CROP.fullmatch(crop) is None:
                    raise UserError(f"{path}: {crop!r} is no crop, expected such as Scene_12_3")
                if self._label(crop).is_file():
                    splits[split].append(crop)
                else:
                    rejected[split].append(BadItem(self._label(crop), "the label is missing"))
        return splits, rejected

    def _label(self, crop: str) -> Path:
        scene, number = crop.rsplit("_", 1)
        return self.source / scene / "10" / f"{scene}_L2R_cl_{number}.tif"

    def _bands(self, crop: str) -> list[Path]:
        """Files of the crop's bands by wavelength. Raises BadItem when they are not as many as the sensor's."""
        scene, number = crop.rsplit("_", 1)
        pattern = re.compile(rf"{re.escape(scene)}_L2R_rhorc_(\d+)_{number}\.tif")
        found = {}
        for path in (self.source / scene).glob(f"*/{scene}_L2R_rhorc_*_{number}.tif"):
            match = pattern.fullmatch(path.name)
            if match is not None:
                found[int(match[1])] = path
        expected = len(self.modalities[0].sensor.bands)
        if len(found) != expected:
            names = ", ".join(map(str, sorted(found))) or "none"
            raise BadItem(crop, f"{len(found)} bands (nm: {names}), expected {expected}")
        return [found[nm] for nm in sorted(found)]

    def _read(self, item: str, split: str, draw: int) -> Example:
        spec = self.modalities[0]
        label = read_label(self._label(item)) - 1
        bands = []
        for path in self._bands(item):
            values = read_raster(path).values[0]
            rows, columns = (whole // part for whole, part in zip(label.shape, values.shape))
            # 20 m and 60 m pixels cover whole pixels of 10 m.
            bands.append(np.repeat(np.repeat(values, rows, axis=0), columns, axis=1))
            if bands[-1].shape != label.shape:
                raise BadItem(path, f"{values.shape} pixels do not divide the label's {label.shape}")
        values_TxCxHxW = np.stack(bands)[None].astype(spec.dtype)
        image = self.make_image(values_TxCxHxW, self.one_date(0), spec.sensor.nodata, self._label(item))
        return Example(Sample(item, {spec.name: image}), label)
