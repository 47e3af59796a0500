"""PASTIS-R (Garnot et al. 2021): crop types of French parcels from year-long Sentinel-2 and Sentinel-1.

    metadata.geojson                    ID_PATCH, Fold 1..5, dates-S2, dates-S1A ({"0": 20180917, ...})
    DATA_S2/S2_{id}.npy                 [T, 10, 128, 128], reflectance x 10000
    DATA_S1A/S1A_{id}.npy               [T, 3, 128, 128], VV, VH and VV - VH in dB; the third is not used
    ANNOTATIONS/TARGET_{id}.npy         [3, 128, 128], the first channel is the class

Folds 1 to 3 train, 4 validates, 5 tests. Six dates of each series are used; which ones is the protocol's: `published`
takes 50 at random, unordered, where there are more (Sentinel-1 nearly always), anew at every access, and six positions
of those; `sorted` takes six in order. The SPOT images, which the benchmark opens and does not use, are not needed.
"""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem, day_of_year
from ramen_jax.counter_rng import combine, permute
from ramen_jax.evaluation.pangaea.tasks.reading import evenly, read_array, read_json, whole_numbers
from ramen_jax.evaluation.pangaea.tasks.task import Example, Rejected, Task
from ramen_jax.samples import Image, Sample

_FOLDS = {1: "train", 2: "train", 3: "train", 4: "val", 5: "test"}
_FILES = {"optical": ("S2", "dates-S2"), "sar": ("S1A", "dates-S1A")}
_LONGEST = 50  # dates the benchmark holds at most
_DAY_ZERO = datetime.date(2018, 9, 1)


class Pastis(Task):
    """See the module's docstring."""

    @cached_property
    def _patches(self) -> dict[str, dict[str, Any]]:
        """Properties of each patch, fold by fold, in the order of the file."""
        path = self.source / "metadata.geojson"
        content = read_json(path)
        rows = [feature.get("properties", {}) for feature in content.get("features", [])]
        for row in rows:
            absent = [key for key in ("ID_PATCH", "Fold", "dates-S2", "dates-S1A") if key not in row]
            if absent:
                raise UserError(
                    f"{path}: a patch has no {', '.join(absent)}; PASTIS-R has (PASTIS without radar has not)"
                )
        if not rows:
            raise UserError(f"{path}: no patches, expected the features of PASTIS-R")
        return {str(row["ID_PATCH"]): row for row in sorted(rows, key=lambda row: int(row["Fold"]))}

    def _list(self) -> tuple[dict[str, list[str]], Rejected]:
        splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        rejected: Rejected = defaultdict(list)
        for patch, row in self._patches.items():
            if int(row["Fold"]) not in _FOLDS:
                raise UserError(
                    f"{self.source / 'metadata.geojson'}: patch {patch} is in fold {row['Fold']}, expected 1..5"
                )
            split = _FOLDS[int(row["Fold"])]
            absent = [path for path in self._paths(patch).values() if not path.is_file()]
            if absent:
                rejected[split].append(BadItem(absent[0], "no such file"))
            else:
                splits[split].append(patch)
        return splits, rejected

    def _paths(self, patch: str) -> dict[str, Path]:
        paths = {
            spec.name: self.source / f"DATA_{_FILES[spec.name][0]}" / f"{_FILES[spec.name][0]}_{patch}.npy"
            for spec in self.modalities
        }
        return {**paths, "target": self.source / "ANNOTATIONS" / f"TARGET_{patch}.npy"}

    def _read(self, item: str, split: str, draw: int) -> Example:
        paths = self._paths(item)
        target = read_array(paths.pop("target"))
        labels = whole_numbers(target[0] if target.ndim == 3 else target, paths["optical"])
        images = {name: self._series(item, name, path, draw) for name, path in paths.items()}
        return Example(Sample(item, images), labels)

    def _series(self, patch: str, name: str, path: Path, draw: int) -> Image:
        spec = self.modality(name)
        values_TxCxHxW = read_array(path)
        bands = len(spec.sensor.bands)
        if values_TxCxHxW.ndim != 4 or values_TxCxHxW.shape[1] < bands:
            raise BadItem(
                path,
                f"shape {values_TxCxHxW.shape}, expected dates x at least {bands} bands x rows x columns",
            )
        table = self._patches[patch][_FILES[name][1]]
        table = json.loads(table) if isinstance(table, str) else table
        dates = [str(table[key]) for key in sorted(table, key=int)]
        if len(dates) != len(values_TxCxHxW):
            raise BadItem(path, f"{len(values_TxCxHxW)} frames but {len(dates)} dates in metadata.geojson")
        chosen = self._choose(patch, name, dates, spec.max_dates, draw)
        if self.protocol.date_values == "day_of_year":
            days = [day_of_year(dates[i], path) for i in chosen]
        else:
            days = [(datetime.datetime.strptime(dates[i], "%Y%m%d").date() - _DAY_ZERO).days for i in chosen]
        values = values_TxCxHxW[chosen, :bands].astype(spec.dtype)
        return self.make_image(values, days, spec.sensor.nodata, path)

    def _choose(self, patch: str, name: str, dates: list[str], wanted: int, draw: int) -> list[int]:
        if self.protocol.dates == "sorted":
            order = sorted(range(len(dates)), key=dates.__getitem__)
            return [order[i] for i in evenly(len(order), wanted)]
        order = list(range(len(dates)))
        if len(order) > _LONGEST:
            key = combine(self.protocol.seed, "pastis dates", patch, name, draw)
            order = permute(np.arange(_LONGEST), len(order), key).tolist()
        return [order[i] for i in evenly(len(order), wanted)]
