"""Files that several tasks share, read with every failure told in one line. Rasters: `ramen_jax.corpora.raster`."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Sequence
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


def held_out_of_groups(groups: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """As `held_out`, in the same proportion of every group: train_test_split with `stratify`.

    Its rule: every group gives its part of the numbers, rounded down, and one more each from the groups with the
    largest remainders, ties by lot, first for the training set and then, of what is left, for the other. The members of
    a group are permuted, in the groups' alphabetical order, and both sets are permuted at the end.

    Args:
        groups: the group of each number.
    """
    lots = np.random.RandomState(seed)
    _, member_of, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    held = math.ceil(len(groups) * share)
    kept_of = _parts(sizes, len(groups) - held, lots)
    held_of = _parts(sizes - kept_of, held, lots)
    kept, out = [], []
    for group, size in enumerate(sizes):
        members = np.flatnonzero(member_of == group)[lots.permutation(size)]
        kept.append(members[: kept_of[group]])
        out.append(members[kept_of[group] : kept_of[group] + held_of[group]])
    kept_order = lots.permutation(np.concatenate(kept)).tolist()
    return kept_order, lots.permutation(np.concatenate(out)).tolist()


def _parts(sizes: np.ndarray, wanted: int, lots: np.random.RandomState) -> np.ndarray:
    """How many of each group make up `wanted`, in proportion."""
    shares = sizes / sizes.sum() * wanted
    parts = np.floor(shares)
    missing = int(wanted - parts.sum())
    remainders = shares - parts
    for value in np.unique(remainders)[::-1]:
        if missing <= 0:
            break
        (tied,) = np.nonzero(remainders == value)
        count = min(len(tied), missing)
        parts[lots.choice(tied, size=count, replace=False)] += 1
        missing -= count
    return parts.astype(int)


def paired(
    folder: Path, ending: str, label_endings: Sequence[str], where: str, may_be_empty: bool = False
) -> tuple[dict[str, Path], list[BadItem]]:
    """Name of each image of `folder`/images -> its label in `folder`/labels, in the order of names; those without.

    Args:
        ending: of image and label files, such as .tif.
        label_endings: what may follow the image's name in the label's.
        where: begins an error's sentence.

    Errors: UserError for a folder without images, unless it `may_be_empty`.
    """
    images = sorted((folder / "images").glob(f"*{ending}"))
    if not images and not may_be_empty:
        raise UserError(f"{where}: no file *{ending} in {folder / 'images'}")
    found: dict[str, Path] = {}
    rejected = []
    for image in images:
        labels = [folder / "labels" / f"{image.stem}{extra}{ending}" for extra in label_endings]
        label = next((path for path in labels if path.is_file()), None)
        if label is None:
            rejected.append(BadItem(labels[0], "the label is missing"))
        else:
            found[image.stem] = label
    return found, rejected


def evenly(count: int, wanted: int) -> list[int]:
    """`wanted` positions from 0 to count - 1 in equal steps, rounded down; all of them where there are fewer."""
    if count <= wanted:
        return list(range(count))
    return np.floor(np.linspace(0, count - 1, wanted)).astype(int).tolist()
