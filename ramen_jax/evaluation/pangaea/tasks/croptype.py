"""CropTypeMapping, South Sudan (Rustowicz et al. 2019, SustainBench): four crops from Sentinel-2 and Sentinel-1 series.

    southsudan/list_eval_partition.csv                      id, partition (0 train, 1 val, 2 test)
    southsudan/npy/southsudan_{id}.npz                      s1 and s2, [C, 64, 64, T]; s1: VV, VH first; s2: 10 bands
    first southsudan/truth/southsudan_{id}.npz                    truth [64, 64]: 1..4 are the crops, everything else
    is ignored southsudan/{s1,s2}/{s1,s2}_southsudan_{id}.json         dates, YYYY-MM-DD

`published` takes the six latest dates, the newest first, and fills shorter series with frames of zeros dated 0;
`sorted` takes six spread over the whole series in the order of time, and shorter series stay short.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem, day_of_year, read_table
from ramen_jax.evaluation.pangaea.tasks.reading import evenly, read_array, read_json, whole_numbers
from ramen_jax.evaluation.pangaea.tasks.task import Example, Rejected, Task
from ramen_jax.samples import Image, Sample

_COUNTRY = "southsudan"
_PARTITIONS = {"0": "train", "1": "val", "2": "test"}
_KEYS = {"optical": "s2", "sar": "s1"}


class CropType(Task):
    """See the module's docstring."""

    def _list(self) -> tuple[dict[str, list[str]], Rejected]:
        path = self.source / _COUNTRY / "list_eval_partition.csv"
        splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        rejected: Rejected = defaultdict(list)
        for row in read_table(path, ("id", "partition")):
            if row["partition"] not in _PARTITIONS or not row["id"].isdigit():
                raise UserError(
                    f"{path}: id {row['id']!r} is in partition {row['partition']!r}, expected 0, 1 or 2"
                )
            place = f"{int(row['id']):06d}"
            split = _PARTITIONS[row["partition"]]
            absent = [file for file in self._paths(place) if not file.is_file()]
            if absent:
                rejected[split].append(BadItem(absent[0], "no such file"))
            else:
                splits[split].append(place)
        return splits, rejected

    def _paths(self, place: str) -> tuple[Path, Path]:
        root = self.source / _COUNTRY
        return root / "npy" / f"{_COUNTRY}_{place}.npz", root / "truth" / f"{_COUNTRY}_{place}.npz"

    def _read(self, item: str, split: str, draw: int) -> Example:
        images_path, truth_path = self._paths(item)
        images = {spec.name: self._series(item, spec.name, images_path) for spec in self.modalities}
        truth = whole_numbers(read_array(truth_path, "truth"), truth_path)
        return Example(
            Sample(item, images), np.where((truth >= 1) & (truth <= 4), truth - 1, -1).astype(np.int32)
        )

    def _series(self, place: str, name: str, path: Path) -> Image:
        spec, key = self.modality(name), _KEYS[name]
        stored_CxHxWxT = read_array(path, key)
        bands = len(spec.sensor.bands)
        if stored_CxHxWxT.ndim != 4 or len(stored_CxHxWxT) < bands:
            raise BadItem(
                path,
                f"{key} has shape {stored_CxHxWxT.shape}, expected at least {bands} bands x rows x columns x dates",
            )
        values_TxCxHxW = np.moveaxis(stored_CxHxWxT[:bands], -1, 0).astype(spec.dtype)
        dates_path = self.source / _COUNTRY / key / f"{key}_{_COUNTRY}_{place}.json"
        try:
            texts = [str(text) for text in read_json(dates_path)["dates"]]
        except (UserError, KeyError, TypeError) as error:
            raise BadItem(dates_path, f"no dates ({error})") from error
        if len(texts) != len(values_TxCxHxW):
            raise BadItem(
                path, f"{key} has {len(values_TxCxHxW)} frames, but {dates_path.name} has {len(texts)} dates"
            )
        days = [day_of_year(text, dates_path, "%Y-%m-%d") for text in texts]
        if self.protocol.dates == "sorted":
            chosen = evenly(len(texts), spec.max_dates)
            order = sorted(range(len(texts)), key=texts.__getitem__)
            chosen = [order[i] for i in chosen]
            return self.make_image(
                values_TxCxHxW[chosen], [days[i] for i in chosen], spec.sensor.nodata, path
            )
        latest = list(range(len(texts)))[::-1][: spec.max_dates]
        image = self.make_image(values_TxCxHxW[latest], [days[i] for i in latest], spec.sensor.nodata, path)
        absent = spec.max_dates - len(latest)
        if absent:
            image.values = np.pad(image.values, ((0, absent), (0, 0), (0, 0), (0, 0)))
            image.dates = np.pad(image.dates, (0, absent))
        return image
