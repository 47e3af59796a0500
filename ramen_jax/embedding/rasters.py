"""Georeferenced images of one place, read window by window on the token grid.

The first raster decides the coordinate system, the origin and the token grid. A pixel's size is measured in metres on
the ground, in any coordinate system. Windows always begin and end on tokens and on whole pixels: where a raster's own
pixels do not allow that (another grid or coordinate system, pixels that are not square in metres, a target GSD that is
no simple multiple of the pixel), it is read through GDAL's warper, bilinearly, at a pixel size that does.

Words: a window is (first token row, end row, first column, end column). Shape letters: T dates, C bands, H, W pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as warp_coordinates
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from ramen_jax import samples
from ramen_jax.console import USAGE, UserError
from ramen_jax.no_data import missing_pixels
from ramen_jax.sensors import Sensor

SAME_SIZE = 0.02  # pixel sizes that differ by less count as equal: a nominal 10 m is 9.96 m here and there
GRID_TOLERANCE = 1e-6
OVERVIEW = 256  # pixels per side of the decimated reading that checks and statistics use
SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".nc", ".img", ".png")
DATE = re.compile(r"(?<!\d)(19|20)(\d\d)[-_]?(0[1-9]|1[0-2])[-_]?(0[1-9]|[12]\d|3[01])(?!\d)")

Tokens = tuple[int, int, int, int]


@dataclass
class Layer:
    """One modality: dated rasters of one sensor, on the place's grid."""

    name: str
    sensor: Sensor
    files: list[Path]
    days: np.ndarray
    dtype: str = ""
    pixels_per_token: float = 1.0
    readers: list[Any] = field(default_factory=list)

    @property
    def bands(self) -> list[int]:
        """GDAL's numbers of the sensor's bands (a warped view has one more, for what it does not cover)."""
        return list(range(1, len(self.sensor.bands) + 1))

    def read(self, window: Tokens) -> samples.Image:
        """The window's pixels; what no raster covers, its nodata and NaN are not valid."""
        top, bottom, left, right = (round(token * self.pixels_per_token) for token in window[:4])
        shape = (max(bottom - top, 1), max(right - left, 1))
        frames, masks = [], []
        for reader in self.readers:
            inside = Window(left, top, shape[1], shape[0]).intersection(
                Window(0, 0, reader.width, reader.height)
            )
            rows, columns = int(inside.height), int(inside.width)
            pad = ((0, shape[0] - rows), (0, shape[1] - columns))
            frames.append(np.pad(reader.read(self.bands, window=inside), ((0, 0), *pad), mode="edge"))
            masks.append(np.pad(reader.dataset_mask(window=inside) > 0, pad))
        values_TxCxHxW = np.stack(frames)
        if values_TxCxHxW.dtype.name not in samples.DTYPES:
            values_TxCxHxW = values_TxCxHxW.astype(np.float32)
        valid = np.stack(masks) & ~missing_pixels(values_TxCxHxW, self.sensor.nodata)
        if values_TxCxHxW.dtype.kind == "f":
            values_TxCxHxW = np.nan_to_num(values_TxCxHxW, nan=0.0, posinf=0.0, neginf=0.0)
        return samples.Image(values_TxCxHxW, self.days, np.ones(values_TxCxHxW.shape[1], bool), valid)


@dataclass
class Place:
    """Rasters of one place and the token grid over them.

    Attributes:
        layers: the modalities.
        rows, columns: tokens.
        step: tokens between places where a window may begin: there, pixels of every layer begin too.
        crs, transform: of the token grid; the origin is the first raster's.
        notes: sentences a person should read.
    """

    layers: list[Layer]
    target_gsd: float
    rows: int
    columns: int
    step: int
    crs: Any
    transform: Affine
    notes: list[str]


def find_frames(path: Path) -> list[Path]:
    """A raster, or the rasters of a folder, oldest first. Each of several must have a date in its name."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no raster or folder {path}", USAGE)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{path} holds no raster ({', '.join(SUFFIXES)})")
    if len(files) > 1:
        undated = [file.name for file in files if date_of(file) is None]
        if undated:
            raise UserError(
                f"{path / undated[0]}: no date in the file's name; write one as 2021-04-02 or 20210402"
            )
        files.sort(key=lambda file: str(date_of(file)))
    return files


def date_of(file: Path) -> datetime.date | None:
    """The date in a file's name."""
    found = DATE.search(file.stem)
    return datetime.date(int(found[1] + found[2]), int(found[3]), int(found[4])) if found else None


def open_place(
    sources: Sequence[tuple[str, Path, Sensor]], target_gsd: float, stack: contextlib.ExitStack, max_step: int
) -> Place:
    """Opens (modality, raster or folder, sensor) triples as one place; `stack` closes the files.

    Windows will begin at multiples of `step` tokens, at most `max_step`.

    Raises:
        UserError: no CRS, a rotated raster, a band count unlike the sensor's, a target GSD larger than the image.
    """
    layers: list[Layer] = []
    notes: list[str] = []
    for name, path, sensor in sources:
        files = find_frames(path)
        readers = [_open(file, sensor, stack) for file in files]
        place = layers[0].readers[0] if layers else readers[0]
        here = [i for i, reader in enumerate(readers) if _overlap(reader, place)]
        if len(here) < len(files):
            told = f"{len(files) - len(here)} of the {len(files)} rasters of {path} do not touch {place.name}"
            if not here or not layers:
                raise UserError(f"{told}; give rasters of one place")
            notes.append(f"{told} and are left out")
        dates = [date_of(files[i]) for i in here]
        days = np.array([0 if date is None else date.timetuple().tm_yday for date in dates], np.int16)
        layers.append(Layer(name, sensor, [files[i] for i in here], days, readers=[readers[i] for i in here]))
    first = layers[0].readers[0]
    across, down = ground_size(first)
    gsd = _pixel_gsd(first, layers[0].sensor, (across, down), notes)
    # Metres that one pixel of the first raster counts for, along x and y.
    square = abs(across / down - 1) <= SAME_SIZE
    pixel_x, pixel_y = (gsd, gsd) if square else (across, down)
    extent = (first.height * pixel_y, first.width * pixel_x)
    rows, columns = (math.floor(side / target_gsd + GRID_TOLERANCE) for side in extent)
    if rows < 1 or columns < 1:
        raise UserError(
            f"target GSD {target_gsd:g} m is larger than the image, {extent[1]:g} x {extent[0]:g} m; use at most "
            f"{min(extent):g} m",
            USAGE,
        )
    step = 1
    for index, layer in enumerate(layers):
        if index:
            gsd = _pixel_gsd(layer.readers[0], layer.sensor, ground_size(layer.readers[0]), notes)
        if gsd > 8 * target_gsd:
            notes.append(
                f"target GSD {target_gsd:g} m is finer than the {gsd:g} m pixels of {layer.name} by more than 8: "
                "neighbouring tokens will be near copies"
            )
        working, layer_step = working_gsd(gsd, target_gsd, step, max_step)
        step = math.lcm(step, layer_step)
        if abs(working / gsd - 1) > GRID_TOLERANCE:
            notes.append(
                f"{layer.name} is read at {working:g} m per pixel instead of {gsd:g} m, to fit the token grid"
            )
        grid = _scaled(first.transform, working / pixel_x, working / pixel_y)
        size = tuple(math.ceil(side / working - GRID_TOLERANCE) for side in extent)
        layer.readers = [_on_grid(reader, first.crs, grid, size, stack) for reader in layer.readers]
        layer.dtype = layer.readers[0].dtypes[0]
        layer.dtype = layer.dtype if layer.dtype in samples.DTYPES else "float32"
        layer.pixels_per_token = target_gsd / working
        # A hair more than the GSD, so that the truncation of a whole number of tokens never loses one.
        layer.sensor = dataclasses.replace(layer.sensor, gsd=working * (1 + 1e-9))
    token = _scaled(first.transform, target_gsd / pixel_x, target_gsd / pixel_y)
    return Place(layers, target_gsd, rows, columns, step, first.crs, token, notes)


def working_gsd(gsd: float, target_gsd: float, step: int, max_step: int) -> tuple[float, int]:
    """A pixel size, the given one if it can be, and the number of tokens after which pixels and tokens meet."""
    ratio = target_gsd / gsd
    for tokens in range(1, max_step + 1):
        pixels = tokens * ratio
        if round(pixels) >= 1 and abs(pixels - round(pixels)) < GRID_TOLERANCE * max(pixels, 1):
            if math.lcm(step, tokens) <= max_step:
                return gsd, tokens
            break
    if ratio >= 1:
        return target_gsd / round(ratio), 1
    tokens = step * max(round(1 / (ratio * step)), 1)
    if tokens <= max_step:
        return target_gsd * tokens, tokens
    return target_gsd, 1


def ground_size(reader: Any) -> tuple[float, float]:
    """Metres on the ground of the central pixel, (across, down), on the WGS 84 ellipsoid."""
    pixel = reader.transform
    x, y = pixel.c + pixel.a * reader.width / 2, pixel.f + pixel.e * reader.height / 2
    corners = [(x, y), (x + pixel.a, y), (x, y + pixel.e)]
    try:
        lon, lat = warp_coordinates(reader.crs, "EPSG:4326", *zip(*corners, strict=True))[:2]
    except rasterio.errors.RasterioError as error:
        raise UserError(
            f"{reader.name}: its coordinates cannot be turned into longitude and latitude ({error})"
        ) from error
    phi = math.radians(lat[0])
    metres_lat = 111132.954 - 559.822 * math.cos(2 * phi) + 1.175 * math.cos(4 * phi)
    metres_lon = 111412.84 * math.cos(phi) - 93.5 * math.cos(3 * phi) + 0.118 * math.cos(5 * phi)
    across, down = (
        math.hypot((lon[i] - lon[0]) * metres_lon, (lat[i] - lat[0]) * metres_lat) for i in (1, 2)
    )
    return across, down


def _scaled(transform: Affine, across: float, down: float) -> Affine:
    """The same origin with pixels that many times wider and higher; not rotated."""
    return Affine(transform.a * across, 0.0, transform.c, 0.0, transform.e * down, transform.f)


def overview(layer: Layer) -> np.ndarray:
    """Physical values of a decimated reading of the middle frame, [C, n], NaN where nothing was measured."""
    reader = layer.readers[len(layer.readers) // 2]
    shape = tuple(min(side, OVERVIEW) for side in (reader.height, reader.width))
    values = reader.read(layer.bands, out_shape=(len(layer.bands), *shape))
    missing = missing_pixels(values[None], layer.sensor.nodata)[0]
    missing |= reader.dataset_mask(out_shape=shape) == 0
    physical = values.astype(np.float64) * layer.sensor.scale + layer.sensor.offset
    physical[:, missing] = np.nan
    return physical.reshape(len(values), -1)


def implausible(layer: Layer, values_Cxn: np.ndarray) -> str:
    """A sentence when more than a hundredth of the values lies outside the sensor's plausible range, else ""."""
    known = values_Cxn[np.isfinite(values_Cxn)]
    if layer.sensor.plausible is None or not known.size:
        return ""
    low, high = layer.sensor.plausible
    outside = float(np.mean((known < low) | (known > high)))
    # Reflectance given where digital numbers are expected fills no range either.
    shrunk = known.max() < low + (high - low) * 1e-3
    if outside <= 0.01 and not shrunk:
        return ""
    return (
        f"{layer.files[0].name}: values from {known.min():g} to {known.max():g} where sensor '{layer.sensor.name}' has "
        f"{layer.sensor.units or 'values'} from {low:g} to {high:g}; are these raw digital numbers, or other units? "
        "Declare scale and offset in the sensor's YAML"
    )


def _open(file: Path, sensor: Sensor, stack: contextlib.ExitStack) -> Any:
    try:
        reader = stack.enter_context(rasterio.open(file))
    except rasterio.errors.RasterioError as error:
        raise UserError(f"{file} cannot be read as a raster: {error}") from error
    if reader.crs is None:
        raise UserError(
            f"{file} has no CRS, so its place and pixel size are unknown; set one with gdal_edit.py -a_srs"
        )
    if reader.transform.b or reader.transform.d:
        raise UserError(f"{file} is rotated against its coordinate system; straighten it with gdalwarp first")
    if reader.count != len(sensor.bands):
        raise UserError(
            f"{file} has {reader.count} bands, sensor '{sensor.name}' has {len(sensor.bands)}: "
            f"{', '.join(band.name for band in sensor.bands)}"
        )
    return reader


def _overlap(reader: Any, place: Any) -> bool:
    """Whether a raster touches the ground of another."""
    left, bottom, right, top = transform_bounds(reader.crs, place.crs, *reader.bounds)
    return bool(
        left < place.bounds.right
        and right > place.bounds.left
        and bottom < place.bounds.top
        and top > place.bounds.bottom
    )


def _pixel_gsd(reader: Any, sensor: Sensor, ground: tuple[float, float], notes: list[str]) -> float:
    """Metres per pixel: the sensor's where the ground agrees, else the file's nominal or measured one."""
    across, down = ground
    if all(abs(side / sensor.gsd - 1) <= SAME_SIZE for side in ground):
        return sensor.gsd
    if abs(across / down - 1) > SAME_SIZE:
        notes.append(f"{Path(reader.name).name}: pixels of {across:.3g} x {down:.3g} m are read as squares")
        return sensor.gsd if min(ground) <= sensor.gsd <= max(ground) else min(ground)
    nominal = abs(reader.transform.a)
    found = nominal if abs(nominal / across - 1) <= SAME_SIZE else math.sqrt(across * down)
    notes.append(
        f"{Path(reader.name).name}: pixels of {found:g} m count, not the {sensor.gsd:g} m of sensor '{sensor.name}'"
    )
    return found


def _on_grid(reader: Any, crs: Any, grid: Affine, size: tuple[int, ...], stack: contextlib.ExitStack) -> Any:
    """The reader itself where its pixels are the grid's, else a warped view of it."""
    offsets = [a - b for a, b in zip(reader.transform, grid, strict=True)]
    if reader.crs == crs and max(map(abs, offsets)) < GRID_TOLERANCE * abs(grid.a) and reader.shape == size:
        return reader
    return stack.enter_context(
        WarpedVRT(
            reader,
            crs=crs,
            transform=grid,
            height=size[0],
            width=size[1],
            resampling=Resampling.bilinear,
            add_alpha=reader.nodata is None,
        )
    )
