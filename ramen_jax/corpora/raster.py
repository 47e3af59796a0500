"""Reading rasters: north up, what was not measured marked, every failure told in one line.

A raster is seen as its sensor has it: the sensor's bands in their order, rows from north to south, columns from west to
east, with a mask of what was measured that follows the file's declarations (see `declared`). A warped view of a raster
has the same form; what is not measured is masked before pixels are mixed.

Shape letters: C bands, H rows, W columns.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import rasterio.errors
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from ramen_jax.corpora import BadItem
from ramen_jax.corpora.declared import Declared, declare
from ramen_jax.corpora.placement import Footprint, moved
from ramen_jax.no_data import NoData, missing_pixels
from ramen_jax.sensors import Sensor

MASK_ROWS = 1 << 22  # pixels that are looked at together where a mask is made for a whole raster
GDAL_TYPES = {
    "uint8": "Byte",
    "int8": "Int8",
    "uint16": "UInt16",
    "int16": "Int16",
    "uint32": "UInt32",
    "int32": "Int32",
    "uint64": "UInt64",
    "int64": "Int64",
    "float32": "Float32",
    "float64": "Float64",
}
Pixels = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Raster:
    """Pixels [bands, H, W] in the file's dtype, north up, and where they lie."""

    values: np.ndarray
    footprint: Footprint
    nodata: float | None

    def location(self, row: float, col: float) -> tuple[float, float] | None:
        """(longitude, latitude) in degrees of a pixel position, or None without georeference."""
        place = self.footprint
        return location(place.crs, place.transform, row, col) if place.known else None


class SensorRaster:
    """An open raster as its sensor has it.

    Attributes:
        name: its path.
        file: the rasterio dataset.
        declared: what it declares.
        crs, transform, height, width: its grid, north up; `crs` None = not georeferenced.
    """

    def __init__(self, file: Any, declared: Declared) -> None:
        self.file, self.declared = file, declared
        self.name: str = file.name
        self.crs = file.crs
        self.height: int = file.height
        self.width: int = file.width
        self._south_up, self._east_left, self.transform = north_up(file.transform, file.height, file.width)

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) in its coordinate system."""
        left, bottom, right, top = self.file.bounds
        return min(left, right), min(bottom, top), max(left, right), max(bottom, top)

    def read(self, window: Window | None = None, out_shape: tuple[int, int] | None = None) -> Pixels:
        """(stored values [C, H, W], measured [H, W]) of a window; `out_shape` reads nearest neighbours.

        Raises:
            BadItem: pixels that cannot be read.
        """
        if window is None:
            window = Window(0, 0, self.width, self.height)
        top, left = window.row_off, window.col_off
        if self._south_up:
            top = self.height - window.height - top
        if self._east_left:
            left = self.width - window.width - left
        stored = Window(left, top, window.width, window.height)
        with _told(self.name):
            values, measured = _read(self.file, self.declared, stored, out_shape)
        if self._south_up:
            values, measured = values[:, ::-1], measured[::-1]
        if self._east_left:
            values, measured = values[:, :, ::-1], measured[:, ::-1]
        return np.ascontiguousarray(values), np.ascontiguousarray(measured)


class WarpedRaster:
    """A raster on another grid, bilinearly: a token near a gap is the mean of what was measured around it."""

    def __init__(
        self, raster: SensorRaster, crs: Any, transform: Affine, shape: tuple[int, int], stack: Any
    ) -> None:
        self.name, self.declared = raster.name, raster.declared
        self.crs, self.transform = crs, transform
        self.height, self.width = shape
        with _told(self.name), _quiet():
            source = _view(raster, stack)
            self._view = stack.enter_context(
                WarpedVRT(
                    source,
                    crs=crs,
                    transform=transform,
                    height=self.height,
                    width=self.width,
                    resampling=Resampling.bilinear,
                    add_alpha=True,
                )
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    def read(self, window: Window | None = None, out_shape: tuple[int, int] | None = None) -> Pixels:
        """As of SensorRaster; a pixel is measured where anything measured contributes to it."""
        bands = list(range(1, len(self.declared.bands) + 2))
        shape = None if out_shape is None else (len(bands), *out_shape)
        with _told(self.name):
            read = self._view.read(bands, window=window, out_shape=shape)
        values, measured = read[:-1], read[-1] > 0
        if values.dtype.kind == "f":
            measured = measured & np.isfinite(values).all(axis=0)
        return values, measured


@contextlib.contextmanager
def open_sensor_raster(
    path: Path, sensor: Sensor, nodata_of_description: tuple[NoData, ...] | None = None
) -> Iterator[SensorRaster]:
    """A raster, closed again at the end.

    Raises:
        BadItem: missing, no raster, or one that declares what cannot be used.
    """
    with _open(path) as file:
        with _told(file.name), _quiet():
            raster = SensorRaster(file, declare(file, sensor, nodata_of_description))
        yield raster


def physical(values_CxHxW: np.ndarray, declared: Declared) -> np.ndarray:
    """Stored values with the scale and offset of the file's tags applied, float32; as they are where there is none."""
    if declared.units is None:
        return values_CxHxW
    scale, offset = (np.array(numbers)[:, None, None] for numbers in declared.units)
    return (values_CxHxW * scale + offset).astype(np.float32)


def north_up(transform: Affine, height: int, width: int) -> tuple[bool, bool, Affine]:
    """(rows run from south to north, columns from east to west, the transform with neither); rotated ones stay."""
    if rotated(transform, height, width) or transform.is_identity:
        return False, False, transform
    south_up, east_left = transform.e > 0, transform.a < 0
    left = transform.c + (transform.a * width if east_left else 0)
    top = transform.f + (transform.e * height if south_up else 0)
    return south_up, east_left, Affine(abs(transform.a), 0, left, 0, -abs(transform.e), top)


def rotated(transform: Affine, height: int, width: int) -> bool:
    """Whether rows or columns leave their axis by a hundredth of a pixel or more over the whole raster."""
    return bool(
        abs(transform.b) * height > 0.01 * abs(transform.a)
        or abs(transform.d) * width > 0.01 * abs(transform.e)
    )


def location(crs: Any, transform: Affine, row: float, col: float) -> tuple[float, float] | None:
    """(longitude, latitude) in degrees of a pixel position; None where it has none."""
    points = moved([transform @ (col, row)], crs, "EPSG:4326")
    return None if points is None else (round(points[0][0], 6), round(points[0][1], 6))


def read_raster(path: Path) -> Raster:
    """All bands of a file north up, its no-data tag told but not applied: for corpora whose files are known.

    Raises BadItem: missing, truncated, no raster, or complex numbers.
    """
    with _open(path) as file, _told(path):
        if any(dtype.startswith("complex") for dtype in file.dtypes):
            raise BadItem(path, f"holds complex numbers ({file.dtypes[0]}), which are no measurements")
        south_up, east_left, transform = north_up(file.transform, file.height, file.width)
        values = file.read()
        if south_up or east_left:
            values = values[:, :: -1 if south_up else 1, :: -1 if east_left else 1].copy()
        place = Footprint(path.name, file.crs or None, transform, file.height, file.width)
        return Raster(values, place, file.nodata)


def read_tile(path: Path, left: float, top: float, height: int, width: int) -> Raster:
    """As `read_raster`, of `height` x `width` pixels from the one nearest to a corner, in the file's coordinates.

    A tile may stick out by the one pixel that rounding costs; it is then moved inward. Errors: BadItem, also for a tile
    that lies outside.
    """
    with _open(path) as file, _told(path):
        south_up, east_left, transform = north_up(file.transform, file.height, file.width)
        column, row = (round(float(place)) for place in ~transform @ (left, top))
        inside = [
            min(max(first, 0), whole - size)
            for first, size, whole in ((row, height, file.height), (column, width, file.width))
        ]
        if min(inside) < 0 or abs(inside[0] - row) > 1 or abs(inside[1] - column) > 1:
            raise BadItem(
                path,
                f"the tile of {height}x{width} pixels from row {row}, column {column} lies outside its "
                f"{file.height}x{file.width}",
            )
        row, column = inside
        stored = Window(
            file.width - width - column if east_left else column,
            file.height - height - row if south_up else row,
            width,
            height,
        )
        values = file.read(window=stored)[:, :: -1 if south_up else 1, :: -1 if east_left else 1].copy()
        shifted = transform @ Affine.translation(column, row)
        return Raster(values, Footprint(path.name, file.crs or None, shifted, height, width), file.nodata)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    if not path.exists():
        raise BadItem(path, "no such file")
    with contextlib.ExitStack() as stack:
        try:
            with _quiet():
                file = stack.enter_context(rasterio.open(path))
        except (rasterio.errors.RasterioError, OSError) as error:
            raise _unreadable(path, error) from error
        yield file


def _unreadable(name: str | Path, error: Exception) -> BadItem:
    # rasterio's sentence may only say "see previous exception"; the cause then holds GDAL's own.
    return BadItem(name, f"cannot be read as a raster, truncated or damaged? ({error.__cause__ or error})")


@contextlib.contextmanager
def _told(name: str | Path) -> Iterator[None]:
    """GDAL's failures as BadItem."""
    try:
        yield
    except (rasterio.errors.RasterioError, OSError) as error:
        raise _unreadable(name, error) from error


def _read(file: Any, declared: Declared, window: Window, out_shape: tuple[int, int] | None) -> Pixels:
    """Values and what was measured, rows and columns as in the file."""
    bands = list(declared.bands)
    shape = None if out_shape is None else (len(bands), *out_shape)
    if len({file.dtypes[i - 1] for i in bands}) == 1:
        values = file.read(bands, window=window, out_shape=shape)
    else:
        values = np.stack(
            [file.read(i, window=window, out_shape=out_shape).astype(declared.dtype) for i in bands]
        )
    missing = np.zeros(values.shape[1:], bool)
    for rule in declared.nodata:
        missing |= missing_pixels(values[None], rule)[0]
    for i in declared.masks:
        missing |= file.read_masks(i, window=window, out_shape=out_shape) == 0
    if declared.alpha is not None:
        missing |= file.read(declared.alpha, window=window, out_shape=out_shape) == 0
    return values, ~missing


def _view(raster: SensorRaster, stack: Any) -> Any:
    """A dataset for the warper: the sensor's bands alone, with a mask band where anything was not measured."""
    file, declared = raster.file, raster.declared
    plain = declared.bands == tuple(file.indexes) and file.nodata is None and declared.alpha is None
    mask = None if declared.all_measured else _mask_of(file, declared, stack)
    if mask is None and plain and not declared.masks and not _tagged_alpha(file):
        return file
    return stack.enter_context(rasterio.open(_vrt(file, declared, mask)))


def _tagged_alpha(file: Any) -> bool:
    return any(meaning == rasterio.enums.ColorInterp.alpha for meaning in file.colorinterp)


def _mask_of(file: Any, declared: Declared, stack: Any) -> str | None:
    """GDAL's name of a mask of the whole raster, kept compressed in memory; None when everything was measured."""
    memory = stack.enter_context(MemoryFile(ext=".tif"))
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "compress": "deflate", "zlevel": 1}
    rows = max(1, MASK_ROWS // max(file.width, 1))
    complete = True
    with memory.open(height=file.height, width=file.width, BIGTIFF="IF_SAFER", **profile) as target:
        for top in range(0, file.height, rows):
            window = Window(0, top, file.width, min(rows, file.height - top))
            measured = _read(file, declared, window, None)[1]
            complete = complete and bool(measured.all())
            target.write(measured.astype(np.uint8) * 255, 1, window=window)
    return None if complete else memory.name


def _vrt(file: Any, declared: Declared, mask: str | None) -> str:
    """A GDAL virtual raster of some bands of a file and a mask."""

    def band(name: str, number: int, dtype: str, place: str) -> str:
        return (
            f'<VRTRasterBand dataType="{dtype}"{place}><SimpleSource><SourceFilename relativeToVRT="0">'
            f"{escape(name)}</SourceFilename><SourceBand>{number}</SourceBand></SimpleSource></VRTRasterBand>"
        )

    dtype = GDAL_TYPES[declared.dtype]
    bands = "".join(band(file.name, i, dtype, f' band="{n}"') for n, i in enumerate(declared.bands, 1))
    masked = f"<MaskBand>{band(mask, 1, 'Byte', '')}</MaskBand>" if mask else ""
    numbers = ",".join(repr(float(value)) for value in file.transform.to_gdal())
    return (
        f'<VRTDataset rasterXSize="{file.width}" rasterYSize="{file.height}"><SRS>{escape(file.crs.to_wkt())}</SRS>'
        f"<GeoTransform>{numbers}</GeoTransform>{bands}{masked}</VRTDataset>"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Images without georeference are ordinary (SPOT in WorldStrat): no warning for each.

    For opening alone: pixels are read in other threads too, and warnings are the whole process's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield
