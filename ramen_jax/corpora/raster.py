"""Reading rasters with every failure told in one line."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import rasterio.errors
import rasterio.warp
from rasterio.transform import Affine

from ramen_jax.corpora import BadItem


@dataclass(frozen=True)
class Raster:
    """Pixels [bands, H, W] in the file's dtype, where they lie (crs None = not georeferenced), its no-data tag."""

    values: np.ndarray
    crs: str | None
    transform: Affine
    nodata: float | None

    def location(self, row: float, col: float) -> tuple[float, float] | None:
        """(longitude, latitude) in degrees of a pixel position, or None without georeference."""
        if self.crs is None or self.transform.is_identity:
            return None
        x, y = self.transform @ (col, row)
        longitudes, latitudes = rasterio.warp.transform(self.crs, "EPSG:4326", [x], [y])
        return round(longitudes[0], 6), round(latitudes[0], 6)


def read_raster(path: Path) -> Raster:
    """All bands of a file, its no-data tag told but not applied. Raises BadItem: missing, truncated or no raster."""
    if not path.is_file():
        raise BadItem(path, "no such file")
    try:
        with _quiet(), rasterio.open(path) as file:
            crs = file.crs.to_string() if file.crs else None
            return Raster(file.read(), crs, file.transform, file.nodata)
    except (rasterio.errors.RasterioError, OSError) as error:
        # rasterio's sentence may only say "see previous exception"; the cause then holds GDAL's own.
        raise BadItem(
            path, f"cannot be read as a raster, truncated or damaged? ({error.__cause__ or error})"
        ) from error


def raster_shape(path: Path) -> tuple[int, int, int, str]:
    """(bands, H, W, dtype) from the header alone. Raises BadItem."""
    if not path.is_file():
        raise BadItem(path, "no such file")
    try:
        with _quiet(), rasterio.open(path) as file:
            return file.count, file.height, file.width, file.dtypes[0]
    except (rasterio.errors.RasterioError, OSError) as error:
        raise BadItem(path, f"cannot be opened as a raster ({error.__cause__ or error})") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Images without georeference are ordinary (SPOT in WorldStrat): no warning for each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield
