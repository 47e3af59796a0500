"""Reading HDF5 (and NetCDF4, which is HDF5) with every failure told in one line."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from ramen_jax.corpora import BadItem

_UNITS = re.compile(
    r"(seconds|minutes|hours|days) since (\d{4}-\d{2}-\d{2}(?:[ T]\d{2}:\d{2}:\d{2}(?:\.\d+)?)?)"
)


class Hdf:
    """An open file whose datasets are read whole by name."""

    def __init__(self, file: h5py.File, path: Path) -> None:
        self.file, self.path = file, path

    def read(self, key: str, shape: tuple[int | None, ...] = ()) -> np.ndarray:
        """The dataset; `shape` (None = any length) is checked when given. Raises BadItem."""
        if key not in self.file:
            raise BadItem(self.path, f"no dataset {key!r}; it has {', '.join(sorted(self.file))}")
        try:
            values = self.file[key][()]
        except OSError as error:
            raise BadItem(self.path, f"{key} cannot be read ({error})") from error
        matches = len(shape) == values.ndim and all(
            want in (None, size) for want, size in zip(shape, values.shape)
        )
        if shape and not matches:
            expected = " x ".join("any" if size is None else str(size) for size in shape)
            raise BadItem(self.path, f"{key} has shape {values.shape}, expected {expected}")
        return values

    def days(self, key: str) -> list[int]:
        """Day of year of each time of a NetCDF time axis (`seconds since 2017-08-04 10:53:28`). Raises BadItem."""
        counts = self.read(key, (None,))
        units = self.file[key].attrs.get("units", "")
        units = units.decode() if isinstance(units, bytes) else str(units)
        match = _UNITS.match(units)
        if match is None:
            raise BadItem(self.path, f"{key} has units {units!r}, expected such as 'days since 2017-08-04'")
        try:
            start = datetime.datetime.fromisoformat(match[2])
            times = [start + datetime.timedelta(**{match[1]: float(count)}) for count in counts]
        except (ValueError, OverflowError) as error:
            raise BadItem(self.path, f"{key} holds a time out of range ({error})") from error
        return [time.timetuple().tm_yday for time in times]


@contextmanager
def open_hdf(path: Path) -> Iterator[Hdf]:
    """Opens a file for reading. Raises BadItem when it is missing, truncated or no HDF5."""
    if not path.is_file():
        raise BadItem(path, "no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise BadItem(path, f"cannot be opened as HDF5, truncated or damaged? ({error})") from error
    with file:
        yield Hdf(file, path)
