"""GEO-Bench's m-* sets (Lacoste et al. 2023) as the `geobench` package stores them.

    default_partition.json      {"train": [name, ...], "valid": [...], "test": [...]}
    {name}.hdf5                 a dataset per band and, for maps, `label`; an attribute `pickle` with its facts

The attribute is read as data (see `pickled`). Bands are found by the names of the description among the names and
alternative names that a file gives them, whatever their case.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem
from ramen_jax.corpora.hdf import open_hdf
from ramen_jax.evaluation.pangaea.tasks.pickled import Opaque, facts, numbers
from ramen_jax.evaluation.pangaea.tasks.reading import read_json, whole_numbers
from ramen_jax.evaluation.pangaea.tasks.task import Example, Rejected, Task
from ramen_jax.samples import Sample

_SPLITS = {"train": "train", "val": "valid", "test": "test"}


class GeoBench(Task):
    """See the module's docstring. Option `channels`: the files' name of each band of the sensor, in its order."""

    OPTIONS: ClassVar[dict[str, Any]] = {**Task.OPTIONS, "channels": ()}

    def _list(self) -> tuple[dict[str, list[str]], Rejected]:
        path = self.source / "default_partition.json"
        content = read_json(path)
        splits: dict[str, list[str]] = {}
        rejected: Rejected = defaultdict(list)
        for split, word in _SPLITS.items():
            if not isinstance(content, dict) or word not in content:
                raise UserError(f"{path}: no split {word}, expected train, valid and test")
            named = [str(name) for name in content[word]]
            splits[split] = [name for name in named if self._path(name).is_file()]
            rejected[split] += [
                BadItem(self._path(name), "no such file") for name in named if name not in set(splits[split])
            ]
        return splits, rejected

    def _path(self, name: str) -> Path:
        return self.source / f"{name}.hdf5"

    def _read(self, item: str, split: str, draw: int) -> Example:
        path, spec = self._path(item), self.modalities[0]
        with open_hdf(path) as hdf:
            try:
                known = facts(ast.literal_eval(str(hdf.file.attrs["pickle"])), path)
            except (KeyError, ValueError, SyntaxError) as error:
                raise BadItem(path, f"no attribute 'pickle' with its facts ({error})") from error
            keys = _names(known, list(hdf.file))
            absent = [name for name in self.options["channels"] if name.lower() not in keys]
            if absent:
                raise BadItem(path, f"no band {', '.join(absent)}; it has {', '.join(hdf.file)}")
            bands = [hdf.read(keys[name.lower()]) for name in self.options["channels"]]
            if "label" in hdf.file:
                target = whole_numbers(hdf.read("label"), path)
            elif isinstance(known, dict) and "label" in known:
                target = np.asarray(numbers(known["label"], path), np.int32)
            else:
                raise BadItem(path, "no label")
        if len({band.shape for band in bands}) > 1:
            raise BadItem(path, f"its bands differ in size: {sorted({band.shape for band in bands})}")
        values = np.stack(bands)[None].astype(spec.dtype)
        image = self.make_image(values, self.one_date(0), spec.sensor.nodata, path)
        return Example(Sample(item, {spec.name: image}), target)


def _names(known: Any, stored: list[str]) -> dict[str, str]:
    """Every lower-case name of a band -> its dataset."""
    keys = {name.lower(): name for name in stored}
    for name in stored:
        info = known.get(name, {}).get("band_info") if isinstance(known, dict) else None
        state = info.state if isinstance(info, Opaque) and isinstance(info.state, dict) else {}
        for other in (state.get("name"), *(state.get("alt_names") or ())):
            if isinstance(other, str):
                keys[other.lower()] = name
    return keys
