"""Rasters that say the same thing in different ways, for the tests of everything that reads one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp

from ramen_jax.sensors import Sensor

UTM = "EPSG:32631"
PIXEL = 10.0
HIDDEN = 60_000  # stored where nothing was measured
WAYS = ("tag", "one band", "mask band", "outside mask", "alpha", "zeros", "sensor", "nan", "infinite")


def eye(bands: int, nodata: float | None = None, gsd: float = PIXEL) -> Sensor:
    described = {f"band {i}": 450.0 + 40 * i for i in range(bands)}
    return Sensor.from_dict(
        {"name": "eye", "gsd": gsd, "bands": described, "nodata": nodata}
    ).with_statistics([2000.0] * bands, [1000.0] * bands)


def scene(bands: int, rows: int = 40, columns: int = 40, seed: int = 0, dtype: str = "uint16") -> np.ndarray:
    """[C, H, W], 500 to 5000, rough and smooth."""
    random = np.random.default_rng(seed)
    coarse = random.random((bands, -(-rows // 8), -(-columns // 8)))
    smooth = np.kron(coarse, np.ones((1, 8, 8)))[:, :rows, :columns]
    return (500 + 3500 * smooth + 1000 * random.random((bands, rows, columns))).astype(dtype)


def gaps(rows: int = 40, columns: int = 40) -> np.ndarray:
    """[H, W] bool, False in a strip and in a hole."""
    keep = np.ones((rows, columns), bool)
    keep[:, :13] = False
    keep[15:21, 25:33] = False
    return keep


def write(path: Path, values: np.ndarray, pixel: float = PIXEL, mask: Any = None, **how: Any) -> Path:
    """`how`: of the profile, and `colours`, `descriptions`, `scales`, `offsets`."""
    told = {key: how.pop(key) for key in ("colours", "descriptions", "scales", "offsets") if key in how}
    outside = how.pop("outside_mask", False)
    profile = {
        "driver": "GTiff",
        "count": values.shape[0],
        "height": values.shape[1],
        "width": values.shape[2],
        "dtype": values.dtype.name,
        "crs": UTM,
        "transform": Affine(pixel, 0, 500_000.0, 0, -pixel, 5_600_000.0),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=not outside),
        rasterio.open(path, "w", **(profile | how)) as file,
    ):
        if "colours" in told:
            file.colorinterp = told.pop("colours")
        for key, value in told.items():
            setattr(file, key, value)
        file.write(values)
        if mask is not None:
            file.write_mask(mask)
    return path


def hide(
    path: Path, values: np.ndarray, keep: np.ndarray, way: str, hidden: float = HIDDEN
) -> tuple[Path, float | None]:
    """Writes the values with the pixels of ~keep marked in that way; and the no-data value the sensor must have."""
    bands = len(values)
    spoilt = np.where(keep, values, hidden).astype(values.dtype)
    if way == "tag":
        return write(path, spoilt, nodata=hidden), None
    if way == "one band":
        one = values.copy()
        one[bands // 2] = spoilt[bands // 2]
        return write(path, one, nodata=hidden), None
    if way in ("mask band", "outside mask"):
        mask = keep.astype(np.uint8) * 255
        return write(path, spoilt, mask=mask, outside_mask=way == "outside mask"), None
    if way == "alpha":
        opaque = np.where(keep, np.iinfo(values.dtype).max, 0).astype(values.dtype)[None]
        colours = [ColorInterp.gray, *[ColorInterp.undefined] * (bands - 1), ColorInterp.alpha]
        return write(path, np.concatenate([spoilt, opaque]), colours=colours), None
    if way == "zeros":
        return write(path, np.where(keep, values, 0).astype(values.dtype), nodata=0), None
    if way == "sensor":
        return write(path, spoilt), hidden
    number = {"nan": np.nan, "infinite": -np.inf}[way]
    floats = values.astype(np.float32)
    floats[bands // 2][~keep] = number
    return write(path, floats), None
