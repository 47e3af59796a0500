"""Files that several tasks share, read with every failure told in one line. Rasters: `ramen_jax.corpora.raster`."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem
from ramen_jax.corpora.raster import read_raster


def read_lines(path: Path) -> list[str]:
    """Lines of an index file, empty ones left out. Raises UserError when it is missing or no text."""
    if not path.is_file():
        raise UserError(f"{path}: no such split file")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no text file ({error})") from error
    return [line.strip() for line in lines if line.strip()]


def read_json(path: Path) -> Any:
    """The content of an index file. Raises UserError when it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error


def read_array(path: Path, key: str = "") -> np.ndarray:
    """A NumPy file, or the array `key` of an .npz archive. Raises BadItem; arrays of Python objects are refused."""
    if not path.is_file():
        raise BadItem(path, "no such file")
    try:
        loaded = np.load(path, allow_pickle=False)
        if not key:
            if not isinstance(loaded, np.ndarray):
                raise BadItem(path, "an archive of arrays, expected a single array")
            return loaded
        with loaded:
            if key not in loaded:
                raise BadItem(path, f"no array {key!r}; it has {', '.join(loaded)}")
            return np.asarray(loaded[key])
    except BadItem:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise BadItem(path, f"cannot be read as a NumPy file, truncated or damaged? ({error})") from error


def read_label(path: Path) -> np.ndarray:
    """The first band of a raster, int32 [H, W]. Raises BadItem for values that are no whole numbers."""
    values = read_raster(path).values[0]
    return whole_numbers(values, path)


def whole_numbers(values: np.ndarray, path: Path) -> np.ndarray:
    """Labels as int32. Raises BadItem for values that are no whole numbers."""
    if values.dtype.kind == "f" and not (
        np.isfinite(values).all() and np.array_equal(values, np.trunc(values))
    ):
        raise BadItem(path, "label values are no whole numbers")
    return values.astype(np.int32)


def held_out(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """(training, held-out) numbers below `count`, as scikit-learn's train_test_split draws them with `random_state`.

    Its rule: a permutation of a Mersenne twister, whose first ceil(count x share) numbers are held out.
    """
    order = np.random.RandomState(seed).permutation(count)
    held = math.ceil(count * share)
    return order[held:].tolist(), order[:held].tolist()


def evenly(count: int, wanted: int) -> list[int]:
    """`wanted` positions from 0 to count - 1 in equal steps, rounded down; all of them where there are fewer."""
    if count <= wanted:
        return list(range(count))
    return np.floor(np.linspace(0, count - 1, wanted)).astype(int).tolist()
