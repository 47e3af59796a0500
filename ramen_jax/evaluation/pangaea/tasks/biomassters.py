"""BioMassters (Nascetti et al. 2023): above-ground biomass of Finnish forests from twelve months of two sensors.

    {train,val,test}_Data_list.csv                          chip_id
    {train,test}_features/{chip}_{S1,S2}_{month}.tif        month 00 (September) to 11 (August); S1: ascending VV, VH,
                                                            descending VV, VH in dB, -9999 = no data; S2: ten bands and
                                                            a cloud probability, which is no band and is not used
    {train,test}_agbm/{chip}_agbm.tif                       tonnes per hectare

Validation chips lie in the folders of `train`. The three lists are not part of the download.

Some months were not seen. `published` takes every month and zeros for what was not seen; `sorted` leaves those months
out. With no-data masked, an orbit that never saw a chip is absent, and months that lack an orbit which saw others are
left out of the radar series.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem, read_table
from ramen_jax.corpora.raster import read_raster
from ramen_jax.evaluation.pangaea.tasks.task import SPLITS, Example, Rejected, Task
from ramen_jax.samples import Image, ModalitySpec, Sample

_FILES = {"optical": "S2", "sar": "S1"}
_STORED_BANDS = {"optical": 11, "sar": 4}
_MID_MONTHS = (258, 288, 319, 349, 15, 46, 74, 105, 135, 166, 196, 227)  # from September on


class BioMassters(Task):
    """See the module's docstring. Option `months`: those that are read, as the files number them."""

    OPTIONS: ClassVar[dict[str, Any]] = {**Task.OPTIONS, "months": tuple(range(12))}

    def _list(self) -> tuple[dict[str, list[str]], Rejected]:
        months = self.options["months"]
        if not months or not set(months) <= set(range(12)) or len(months) > self.modalities[0].max_dates:
            raise UserError(
                f"task {self.name}: months is {list(months)}, expected at most {self.modalities[0].max_dates} "
                "numbers from 0 to 11"
            )
        splits: dict[str, list[str]] = {}
        rejected: Rejected = defaultdict(list)
        for split in SPLITS:
            splits[split] = []
            for row in read_table(self.source / f"{split}_Data_list.csv", ("chip_id",)):
                chip = row["chip_id"].strip()
                if Path(chip).name != chip or not chip:
                    raise UserError(f"{self.source / f'{split}_Data_list.csv'}: {chip!r} is no chip_id")
                lost = self._lost(chip, split)
                if lost is None:
                    splits[split].append(chip)
                else:
                    rejected[split].append(lost)
        return splits, rejected

    def _lost(self, chip: str, split: str) -> BadItem | None:
        if not self._label(chip, split).is_file():
            return BadItem(self._label(chip, split), "the label is missing")
        for spec in self.modalities:
            paths = [self._path(chip, split, spec.name, month) for month in self.options["months"]]
            if not any(path.is_file() for path in paths):
                return BadItem(paths[0], f"no such file, nor of another month, so chip {chip} is left out")
        return None

    def _path(self, chip: str, split: str, name: str, month: int) -> Path:
        folder = "test" if split == "test" else "train"
        return self.source / f"{folder}_features" / f"{chip}_{_FILES[name]}_{month:02d}.tif"

    def _label(self, chip: str, split: str) -> Path:
        return self.source / f"{'test' if split == 'test' else 'train'}_agbm" / f"{chip}_agbm.tif"

    def _read(self, item: str, split: str, draw: int) -> Example:
        images = {spec.name: self._series(item, split, spec) for spec in self.modalities}
        target = read_raster(self._label(item, split)).values[0].astype(np.float32)
        return Example(Sample(item, images), np.nan_to_num(target))

    def _series(self, chip: str, split: str, spec: ModalitySpec) -> Image:
        frames, days = [], []
        for month in self.options["months"]:
            path = self._path(chip, split, spec.name, month)
            if path.is_file():
                frames.append(_bands(path, spec))
            elif self.protocol.dates == "published":
                frames.append(np.zeros((len(spec.sensor.bands), spec.height, spec.width), spec.dtype))
            else:
                continue
            days += self.one_date(_MID_MONTHS[month])
        if len({frame.shape for frame in frames}) > 1:
            raise BadItem(path, f"the months differ in size: {sorted({f.shape[1:] for f in frames})}")
        values_TxCxHxW = np.stack(frames)
        known_TxCxHxW = np.isfinite(values_TxCxHxW) & (values_TxCxHxW != spec.sensor.nodata)
        if not known_TxCxHxW.any():
            raise BadItem(path, f"{_FILES[spec.name]} of chip {chip} has no valid pixel in any month")
        if self.protocol.no_data == "zero":
            zeroed = np.where(known_TxCxHxW, values_TxCxHxW, values_TxCxHxW.dtype.type(0))
            return self.make_image(zeroed, days, None, path)
        return self._seen(values_TxCxHxW, known_TxCxHxW.any(axis=(2, 3)), days, spec, path)

    def _seen(
        self,
        values_TxCxHxW: np.ndarray,
        measured_TxC: np.ndarray,
        days: list[int],
        spec: ModalitySpec,
        path: Path,
    ) -> Image:
        """The months in which all bands that ever were measured were measured; the other bands absent."""
        present_C: np.ndarray = np.any(measured_TxC, axis=0)
        if not measured_TxC[:, present_C].all(axis=1).any():
            # No month has both orbits: the bands of the one that was seen more often.
            months_C = measured_TxC.sum(axis=0)
            present_C = measured_TxC[np.argmax(measured_TxC[:, np.argmax(months_C)])]
        kept: np.ndarray = np.all(measured_TxC[:, present_C], axis=1)
        image = self.make_image(
            values_TxCxHxW[kept][:, present_C],
            [day for day, keep in zip(days, kept, strict=True) if keep],
            spec.sensor.nodata,
            path,
        )
        values = np.zeros((len(image.values), len(present_C), *image.values.shape[2:]), spec.dtype)
        values[:, present_C] = image.values
        return Image(values, image.dates, present_C, image.valid)


def _bands(path: Path, spec: ModalitySpec) -> np.ndarray:
    """The sensor's bands of one month, [C, H, W]."""
    values = read_raster(path).values
    if len(values) != _STORED_BANDS[spec.name]:
        raise BadItem(path, f"{len(values)} bands, expected {_STORED_BANDS[spec.name]}")
    return values[: len(spec.sensor.bands)].astype(spec.dtype)
