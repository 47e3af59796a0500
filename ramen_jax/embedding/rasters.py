"""Georeferenced images of one place, read window by window on the token grid.

The first raster decides the coordinate system, the origin and the token grid. A pixel's size is measured in metres on
the ground, in any coordinate system. Windows always begin and end on tokens and on whole pixels: where a raster's own
pixels do not allow that (another grid or coordinate system, pixels that are not square in metres, a target GSD that is
no simple multiple of the pixel), it is read through GDAL's warper, bilinearly, at a pixel size that does; what was not
measured is masked before that.

Words: a window is (first token row, end row, first column, end column). Shape letters: T dates, C bands, H, W pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from ramen_jax import samples
from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem
from ramen_jax.corpora.declared import odd_units, typical_size, unplaced
from ramen_jax.corpora.placement import Footprint, pixel_on_the_ground
from ramen_jax.corpora.raster import SensorRaster, WarpedRaster, open_sensor_raster, physical, rotated
from ramen_jax.embedding.frames import date_of, find_frames, told
from ramen_jax.embedding.token_grid import LayerGrid, plan_grid
from ramen_jax.sensors import Sensor

SAME_SIZE = 0.02  # pixel sizes that differ by less count as equal: a nominal 10 m is 9.96 m here and there
GRID_TOLERANCE = 1e-6
OVERVIEW = 256  # pixels per side of the decimated reading that checks and statistics use
MIXED_UNITS = 30.0  # values of two dates of a series that differ by more are in different units

Tokens = tuple[int, int, int, int]
Reader = SensorRaster | WarpedRaster


@dataclass
class Layer:
    """One modality: dated rasters of one sensor, on the place's grid."""

    name: str
    sensor: Sensor
    files: list[Path]
    days: np.ndarray
    sources: list[Path] = field(default_factory=list)  # every file the pixels come from
    grid: LayerGrid | None = None
    readers: list[Any] = field(default_factory=list)

    @property
    def pixels_per_token(self) -> float:
        """Pixels along one axis."""
        return 1.0 if self.grid is None else self.grid.pixels_per_token

    def read(self, window: Tokens) -> samples.Image:
        """The window's pixels; what no raster covers and what was not measured is not valid.

        Raises:
            UserError: pixels that cannot be read.
        """
        assert self.grid is not None
        top, left = (self.grid.start(token) for token in window[::2])
        bottom, right = (self.grid.end(token) for token in window[1::2])
        shape = (max(bottom - top, 1), max(right - left, 1))
        frames, masks = [], []
        for reader in self.readers:
            inside = Window(left, top, shape[1], shape[0]).intersection(
                Window(0, 0, reader.width, reader.height)
            )
            rows, columns = int(inside.height), int(inside.width)
            pad = ((0, shape[0] - rows), (0, shape[1] - columns))
            try:
                values, measured = reader.read(inside)
            except BadItem as error:
                raise UserError(str(error)) from error
            frames.append(np.pad(physical(values, reader.declared), ((0, 0), *pad), mode="edge"))
            masks.append(np.pad(measured, pad))
        values_TxCxHxW = np.stack(frames)
        if values_TxCxHxW.dtype.name not in samples.DTYPES:
            with np.errstate(over="ignore"):
                values_TxCxHxW = values_TxCxHxW.astype(np.float32)
        valid = np.stack(masks)
        if values_TxCxHxW.dtype.kind == "f":
            valid &= np.isfinite(values_TxCxHxW).all(axis=1)
            values_TxCxHxW = np.nan_to_num(values_TxCxHxW, nan=0.0, posinf=0.0, neginf=0.0)
        return samples.Image(values_TxCxHxW, self.days, np.ones(values_TxCxHxW.shape[1], bool), valid)


@dataclass
class Place:
    """Rasters of one place and the token grid over them.

    Attributes:
        layers: the modalities.
        rows, columns: tokens.
        step: tokens between places where a window may begin: there, pixels of every layer begin too.
        crs, transform: of the token grid, north up; the origin is the first raster's.
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


def open_place(
    sources: Sequence[tuple[str, Path, Sensor]], target_gsd: float, stack: contextlib.ExitStack, max_step: int
) -> Place:
    """Opens (modality, raster or folder, sensor) triples as one place; `stack` closes the files.

    Windows will begin at multiples of `step` tokens, at most `max_step`.

    Raises:
        UserError: no CRS, a rotated raster, declarations that do not fit the sensor, a target GSD larger than the
            image or finer than makes sense.
    """
    layers: list[Layer] = []
    notes: list[str] = []
    for name, path, sensor in sources:
        files = find_frames(path)
        readers = [_open(file, sensor, stack) for file in files]
        place = layers[0].readers[0] if layers else readers[0]
        here = [i for i, reader in enumerate(readers) if _overlap(reader, place)]
        if len(here) < len(files):
            elsewhere = (
                f"{len(files) - len(here)} of the {len(files)} rasters of {path} do not touch {place.name}"
            )
            if not here or not layers:
                raise UserError(f"{elsewhere}; give rasters of one place")
            notes.append(f"{elsewhere} and are left out")
        dates = [date_of(files[i]) for i in here]
        days = np.array([0 if date is None else date.timetuple().tm_yday for date in dates], np.int16)
        notes.extend(told(name, [date for date in dates if date is not None]))
        notes.extend(dict.fromkeys(note for i in here for note in readers[i].declared.notes))
        kept = [readers[i] for i in here]
        # A virtual raster's pixels lie in other files.
        origins = [Path(origin) for reader in kept for origin in reader.file.files]
        layers.append(Layer(name, sensor, [files[i] for i in here], days, origins, readers=kept))
    first = layers[0].readers[0]
    across, down = ground_size(first)
    gsds = [_pixel_gsd(first, layers[0].sensor, (across, down), notes)]
    # Metres that one pixel of the first raster counts for, along x and y.
    square = abs(across / down - 1) <= SAME_SIZE
    pixel_x, pixel_y = (gsds[0], gsds[0]) if square else (across, down)
    extent = (first.height * pixel_y, first.width * pixel_x)
    for layer in layers[1:]:
        gsds.append(_pixel_gsd(layer.readers[0], layer.sensor, ground_size(layer.readers[0]), notes))
    plan = plan_grid(extent, gsds, target_gsd, max_step)
    for layer, gsd, grid in zip(layers, gsds, plan.layers, strict=True):
        if gsd > 8 * target_gsd:
            notes.append(
                f"target GSD {target_gsd:g} m is finer than the {gsd:g} m pixels of {layer.name} by more than 8: "
                "neighbouring tokens will be near copies"
            )
        working = grid.working_gsd
        if abs(working / gsd - 1) > GRID_TOLERANCE:
            notes.append(
                f"{layer.name} is read at {working:g} m per pixel instead of {gsd:g} m, to fit the token grid"
            )
        transform = _scaled(first.transform, working / pixel_x, working / pixel_y)
        layer.readers = [
            _on_grid(reader, first.crs, transform, (grid.height, grid.width), stack)
            for reader in layer.readers
        ]
        layer.grid = grid
        layer.sensor = dataclasses.replace(layer.sensor, gsd=grid.told_gsd)
    token = _scaled(first.transform, target_gsd / pixel_x, target_gsd / pixel_y)
    return Place(layers, target_gsd, plan.rows, plan.columns, plan.step, first.crs, token, notes)


def ground_size(reader: Any) -> tuple[float, float]:
    """Metres on the ground of the central pixel, (across, down), on the WGS 84 ellipsoid."""
    found = pixel_on_the_ground(
        Footprint(reader.name, reader.crs, reader.transform, reader.height, reader.width)
    )
    if found is None:
        raise UserError(
            f"{reader.name}: its coordinates cannot be turned into longitude and latitude; is its CRS right?"
        )
    return found[0], found[1]


def _scaled(transform: Affine, across: float, down: float) -> Affine:
    """The same origin with pixels that many times wider and higher; not rotated."""
    return Affine(transform.a * across, 0.0, transform.c, 0.0, transform.e * down, transform.f)


def overview(layer: Layer, frame: int | None = None) -> np.ndarray:
    """Physical values of a decimated reading of one frame (the middle one), [C, n], NaN where nothing was measured."""
    reader = layer.readers[len(layer.readers) // 2 if frame is None else frame]
    shape = tuple(min(side, OVERVIEW) for side in reader.shape)
    try:
        values, measured = reader.read(out_shape=shape)
    except BadItem as error:
        raise UserError(str(error)) from error
    stored = physical(values, reader.declared).astype(np.float64)
    result = stored * layer.sensor.scale + layer.sensor.offset
    result[:, ~measured] = np.nan
    return result.reshape(len(values), -1)


def doubts(layer: Layer) -> list[str]:
    """Sentences about frames whose values lie outside the sensor's plausible range, or in other units than the rest."""
    frames = [overview(layer, frame) for frame in range(len(layer.readers))]
    implausible = [
        sentence
        for file, values in zip(layer.files, frames, strict=True)
        if (sentence := _implausible(file, layer.sensor, values))
    ]
    if len(implausible) > 1:
        implausible = [f"{len(implausible)} of {len(frames)} rasters of {layer.name}: {implausible[0]}"]
    mixed = _mixed_units(layer.files, frames)
    dtypes = sorted({reader.declared.dtype for reader in layer.readers})
    if len(dtypes) > 1 and not mixed:
        mixed = [
            f"the rasters of {layer.name} hold different types of numbers ({', '.join(dtypes)}); are their units "
            "the same?"
        ]
    return implausible + mixed


def _implausible(file: Path, sensor: Sensor, values_Cxn: np.ndarray) -> str:
    """A sentence when more than a hundredth of the values lies outside the sensor's plausible range, else ""."""
    known = values_Cxn[np.isfinite(values_Cxn)]
    if sensor.plausible is None or not known.size:
        return ""
    low, high = sensor.plausible
    outside = float(np.mean((known < low) | (known > high)))
    # Reflectance given where digital numbers are expected fills no range either.
    shrunk = known.max() < low + (high - low) * 1e-3
    if outside <= 0.01 and not shrunk:
        return ""
    return (
        f"{file.name}: values from {known.min():g} to {known.max():g} where sensor '{sensor.name}' has "
        f"{sensor.units or 'values'} from {low:g} to {high:g}; are these raw digital numbers, or other units? "
        "Declare scale and offset in the sensor's YAML"
    )


def _mixed_units(files: Sequence[Path], frames: Sequence[np.ndarray]) -> list[str]:
    """A sentence when the values of some dates are many times those of the others; it names the fewer ones."""
    sizes = [typical_size(values) for values in frames]
    odd = odd_units(sizes, MIXED_UNITS)
    if odd is None:
        return []
    few, many = odd
    return [
        f"{', '.join(files[i].name for i in few[:3])}: values of about {sizes[few[0]]:g}, where the other dates of the "
        f"series have about {sizes[many[len(many) // 2]]:g}; are the units of the series mixed?"
    ]


def _open(file: Path, sensor: Sensor, stack: contextlib.ExitStack) -> SensorRaster:
    try:
        reader = stack.enter_context(open_sensor_raster(file, sensor))
    except BadItem as error:
        raise UserError(str(error)) from error
    if reader.crs is None:
        raise UserError(f"{file} {unplaced(reader.file)}")
    if rotated(reader.transform, reader.height, reader.width):
        raise UserError(f"{file} is rotated against its coordinate system; straighten it with gdalwarp first")
    return reader


def _overlap(reader: SensorRaster, place: SensorRaster) -> bool:
    """Whether a raster touches the ground of another."""
    try:
        left, bottom, right, top = transform_bounds(reader.crs, place.crs, *reader.bounds)
    except Exception as error:  # PROJ's errors come in types of their own
        raise UserError(
            f"{reader.name}: its coordinates cannot be turned into those of {place.name} ({error})"
        ) from error
    west, south, east, north = place.bounds
    return bool(left < east and right > west and bottom < north and top > south)


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


def _on_grid(
    reader: SensorRaster, crs: Any, grid: Affine, size: tuple[int, int], stack: contextlib.ExitStack
) -> Reader:
    """The reader itself where its pixels are the grid's, else a warped view of it."""
    offsets = [a - b for a, b in zip(reader.transform, grid, strict=True)]
    if reader.crs == crs and max(map(abs, offsets)) < GRID_TOLERANCE * abs(grid.a) and reader.shape == size:
        return reader
    try:
        return WarpedRaster(reader, crs, grid, size, stack)
    except BadItem as error:
        raise UserError(str(error)) from error
