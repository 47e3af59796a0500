"""Any folder of co-registered rasters, described by one YAML file.

    kind: geofolder
    name: my_places
    sensors: my_sensors.yaml        # optional: sensors of your own, beside the registry
    crop: 64                        # optional: cut each place into crops of 64 x 64 pixels of the first modality
    split: {val: 0.2, seed: 0}      # share of the places (not of the crops), or {val: [id, id]}
    modalities:                     # the FIRST one defines extent and grid
      s2:
        sensor: sentinel2_l2a
        pattern: "S2/{id}_{date}.tif"   # {date}: YYYYMMDD or YYYY-MM-DD, makes it a time series
        nodata: 0                   # optional, in the place of the file's own tag and the sensor's value
        dtype: uint16               # optional, default the file's; needed to store float64 files (as float32)
        add: {"433D_*": -1000}      # optional: added to the stored values of the places matching the pattern
        # optional: physical = stored * scale + offset, default the sensor's, else those of the files' tags
        scale: 1.0
        offset: 0.0
    warp: false                     # optional: resample rasters that do not lie on the first one's ground

A file's own declarations count: bands described in another order, mask and alpha bands, no-data, scale and offset (see
`declared`), rows that run from south to north. Every raster must lie on the ground of its place's first one, or it is
rejected with the distance; with `warp` it is resampled to it, bilinearly, after masking what was not measured.

`add` is for files whose producer shifted the values, such as Sentinel-2's +1000 since processing baseline 04.00,
where a folder mixes both; the first matching pattern holds. Nothing is ever guessed from the pixels. What was added
is recorded per sample in `extra["added"]`, so that the file's own value can be had back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ramen_jax.console import USAGE, UserError
from ramen_jax.corpora import BadItem, Corpus, check_keys, day_of_year, make_image, split_by_id
from ramen_jax.corpora.declared import Declared, Units, brief, odd_units, typical_size, unplaced
from ramen_jax.corpora.placement import Footprint, misplaced, wrong_pixel_size
from ramen_jax.corpora.raster import SensorRaster, WarpedRaster, location, open_sensor_raster, physical
from ramen_jax.no_data import NoData
from ramen_jax.samples import DTYPES, Image, ModalitySpec, Sample
from ramen_jax.sensors import Sensor, load_sensors, sensor

_WILDCARDS = {"id": r"(?P<id>[^/]+?)", "date": r"(?P<date>\d{8}|\d{4}-\d{2}-\d{2})"}
_SHAPES_LOOKED_AT = 32
_MIXED_UNITS = 300  # between two dates of a series; reflectance and its digital numbers differ by 10,000
_MODALITY_OPTIONS = ("sensor", "pattern", "nodata", "dtype", "add", "scale", "offset")


@dataclasses.dataclass(frozen=True)
class _Layer:
    """One modality of a geofolder: which files, and how to read them."""

    name: str
    sensor: Sensor
    pattern: str
    dtype: str | None
    add: tuple[tuple[str, float], ...]
    nodata: tuple[NoData, ...] | None  # of the description, None = what files and sensor say
    declared_units: bool  # whether the description gives scale or offset
    # Scales and offsets of the files' tags: the sensor takes them in (`scaled`), or they are `applied` to the values.
    units: Units | None = None
    scaled: Sensor | None = None
    applied: bool = False

    @property
    def series(self) -> bool:
        return "{date}" in self.pattern

    def added(self, place: str) -> float:
        return next((value for glob, value in self.add if fnmatch.fnmatchcase(place, glob)), 0)


@dataclasses.dataclass(frozen=True)
class _Header:
    """What one file says before its pixels are read."""

    height: int
    width: int
    declared: Declared


@dataclasses.dataclass(frozen=True)
class _Frame:
    """The pixels of one file: stored values [C, H, W], what was measured [H, W], and where they lie."""

    values: np.ndarray
    measured: np.ndarray
    footprint: Footprint


class Geofolder(Corpus):
    """See the module's docstring. Samples of one place stay in one split."""

    OPTIONS: ClassVar[dict[str, Any]] = dict.fromkeys(("sensors", "crop", "split", "modalities", "warp"))

    def __init__(self, source: Path, options: Mapping[str, Any]) -> None:
        super().__init__(source, options)
        if not isinstance(self.options["modalities"], dict) or not self.options["modalities"]:
            raise UserError(f"corpus {self.name}: modalities must name at least one modality", USAGE)
        own = load_sensors(self.options["sensors"]) if self.options["sensors"] else {}
        self.layers = [
            _layer(name, values, own, self.name) for name, values in self.options["modalities"].items()
        ]
        if self.options["warp"] not in (None, True, False):
            raise UserError(
                f"corpus {self.name}: warp is {self.options['warp']!r}, expected true or false", USAGE
            )
        self.files = {layer.name: _find(source, layer) for layer in self.layers}
        headers = {layer.name: self._common_header(layer) for layer in self.layers}
        self.layers = [self._with_units(layer, headers[layer.name].declared) for layer in self.layers]
        self.modalities = tuple(self._modality(layer, headers) for layer in self.layers)

    def _modality(self, layer: _Layer, headers: Mapping[str, _Header]) -> ModalitySpec:
        """Size and dtype as in the layer's files, the size cut to the crop."""
        first, header = self.layers[0], headers[layer.name]
        height, width, dtype = header.height, header.width, header.declared.dtype
        if self.options["warp"] and layer is not first:
            ratio = first.sensor.gsd / layer.sensor.gsd
            height, width = (
                max(round(side * ratio), 1)
                for side in (headers[first.name].height, headers[first.name].width)
            )
        dtype = layer.dtype or dtype
        if dtype not in DTYPES:
            raise UserError(
                f"corpus {self.name}, modality {layer.name}: files hold {dtype}, records hold "
                f"{', '.join(DTYPES)}; say `dtype: float32` to store them rounded to single precision"
            )
        if self.options["crop"]:
            pixels = self.options["crop"] * first.sensor.gsd / layer.sensor.gsd
            if pixels < 1 or abs(pixels - round(pixels)) > 1e-6:
                raise UserError(
                    f"corpus {self.name}: a crop of {self.options['crop']} pixels of {first.name} is "
                    f"{pixels:g} pixels of {layer.name}; choose one that gives a whole number",
                    USAGE,
                )
            if layer is first:
                self.samples_per_item = max(1, (height // round(pixels)) * (width // round(pixels)))
            height = width = round(pixels)
        return ModalitySpec(layer.name, layer.scaled or layer.sensor, height, width, layer.series, 1, dtype)

    def _common_header(self, layer: _Layer) -> _Header:
        """The header of most of the layer's first files; a file that differs is rejected when it is read."""
        paths = [path for frames in self.files[layer.name].values() for path in frames.values()]
        headers: list[_Header] = []
        refused: list[BadItem] = []
        for path in paths:
            try:
                with open_sensor_raster(path, layer.sensor, layer.nodata) as raster:
                    headers.append(_Header(raster.height, raster.width, raster.declared))
            except BadItem as error:
                refused.append(error)
            if len(headers) == _SHAPES_LOOKED_AT:
                break
        where = f"corpus {self.name}, modality {layer.name}"
        if not headers:
            cause = f"; {refused[0]}" if refused else ""
            raise UserError(f"{where}: no readable file matches {layer.pattern} in {self.source}{cause}")
        alike = Counter((h.height, h.width, h.declared.dtype, h.declared.units) for h in headers)
        common = alike.most_common(1)[0][0]
        found = next(h for h in headers if (h.height, h.width, h.declared.dtype, h.declared.units) == common)
        self.notes += tuple(f"modality {layer.name}: {note}" for note in found.declared.notes)
        return found

    def _with_units(self, layer: _Layer, declared: Declared) -> _Layer:
        """The layer with the scale and offset of its files' tags: the records keep the stored values."""
        if declared.units is None:
            return layer
        if layer.declared_units:
            self.notes += (
                f"modality {layer.name}: the description's scale {layer.sensor.scale:g} and offset "
                f"{layer.sensor.offset:g} count, not those of the files' tags",
            )
            return dataclasses.replace(layer, units=None)
        (scale, offset), *others = sorted(set(zip(*declared.units, strict=True)))
        if not others:
            scaled = dataclasses.replace(layer.sensor, scale=scale, offset=offset)
            return dataclasses.replace(layer, scaled=scaled, units=declared.units)
        if layer.dtype != "float32":
            raise UserError(
                f"corpus {self.name}, modality {layer.name}: the scale and offset tags of its files differ from band "
                "to band; say `dtype: float32` to store the values they give, or declare one scale and offset"
            )
        return dataclasses.replace(layer, units=declared.units, applied=True)

    def items(self) -> tuple[dict[str, list[str]], list[BadItem]]:
        places = sorted(set().union(*self.files.values()))
        rejected = []
        for place in list(places):
            absent = [layer for layer in self.layers if place not in self.files[layer.name]]
            if absent:
                places.remove(place)
                files = ", ".join(
                    f"{layer.name} ({layer.pattern.replace('{id}', place)})" for layer in absent
                )
                rejected.append(BadItem(place, f"missing {files}"))
        return split_by_id(places, self.options["split"], self.name), rejected

    def read(self, item: str, split: str) -> list[Sample]:
        frames: dict[str, dict[str, _Frame]] = {}
        for layer in self.layers:
            first = next(iter(frames[self.layers[0].name].values())).footprint if frames else None
            frames[layer.name] = self._read_layer(layer, item, first)
        added = {layer.name: layer.added(item) for layer in self.layers if layer.added(item)}
        extra = {"added": added} if added else {}
        spec = self.modalities[0]
        place = next(iter(frames[spec.name].values())).footprint
        samples = []
        for row in range(place.height // spec.height):
            for col in range(place.width // spec.width):
                images = {
                    one.name: self._cut(layer, one, item, frames[one.name], row, col)
                    for layer, one in zip(self.layers, self.modalities)
                }
                name = f"{item}/{row}-{col}" if self.options["crop"] else item
                at = ((row + 0.5) * spec.height, (col + 0.5) * spec.width)
                centre = location(place.crs, place.transform, *at) if place.known else None
                samples.append(Sample(name, images, centre, dict(extra)))
        if not samples:
            raise BadItem(item, f"{place.height}x{place.width} pixels of {spec.name}, smaller than the crop")
        return samples

    def _read_layer(self, layer: _Layer, place: str, first: Footprint | None) -> dict[str, _Frame]:
        """Frames by date text, checked against each other and against the ground of the place's first raster."""
        frames: dict[str, _Frame] = {}
        days: dict[str, Path] = {}
        for date, path in self.files[layer.name][place].items():
            other = days.setdefault(date.replace("-", ""), path)
            if other is not path:
                raise BadItem(path, f"has the same date as {other.name}; a series needs one file per date")
            frames[date] = self._read_frame(layer, path, first)
            first = first or frames[date].footprint
        sizes = {frame.values.shape for frame in frames.values()}
        if len(sizes) > 1:
            raise BadItem(
                next(iter(self.files[layer.name][place].values())),
                f"the dates of {layer.name} differ in size: {sorted(sizes)}",
            )
        dates = list(frames)
        sizes_of_values = [typical_size(frame.values[:, frame.measured]) for frame in frames.values()]
        odd = odd_units(sizes_of_values, _MIXED_UNITS)
        if odd is not None:
            few, many = (group[0] for group in odd)
            raise BadItem(
                self.files[layer.name][place][dates[few]],
                f"values of about {sizes_of_values[few]:g}, where other dates of {layer.name} have about "
                f"{sizes_of_values[many]:g}; the units of the series are mixed",
            )
        return frames

    def _read_frame(self, layer: _Layer, path: Path, first: Footprint | None) -> _Frame:
        with (
            open_sensor_raster(path, layer.sensor, layer.nodata) as raster,
            contextlib.ExitStack() as stack,
        ):
            placed, footprint = self._placed(layer, raster, first, stack)
            values, measured = placed.read()
            units = None if layer.declared_units else raster.declared.units
            if units != layer.units:
                raise BadItem(
                    path,
                    f"its tags say {_units(units)}, the other files of {layer.name} {_units(layer.units)}",
                )
            if layer.applied:
                values = physical(values, raster.declared)
        return _Frame(values, measured, footprint)

    def _placed(
        self, layer: _Layer, raster: SensorRaster, first: Footprint | None, stack: contextlib.ExitStack
    ) -> tuple[SensorRaster | WarpedRaster, Footprint]:
        """The raster where it belongs, resampled where that was asked for. Raises BadItem."""
        if raster.crs is None and raster.file.gcps[0]:
            raise BadItem(raster.name, unplaced(raster.file))
        footprint = Footprint(
            Path(raster.name).name, raster.crs, raster.transform, raster.height, raster.width
        )
        ratio = layer.sensor.gsd / self.layers[0].sensor.gsd
        wrong = wrong_pixel_size(footprint, layer.sensor.gsd)
        if first is not None and not wrong:
            wrong = misplaced(footprint, first, ratio if self.options["crop"] else None)
        if not wrong:
            return raster, footprint
        if first is None or not first.known:
            raise BadItem(raster.name, wrong)
        if not self.options["warp"]:
            raise BadItem(raster.name, f"{wrong}; `warp: true` resamples what lies on its ground")
        shape = (max(round(first.height / ratio), 1), max(round(first.width / ratio), 1))
        grid = first.transform @ first.transform.scale(ratio)
        return (
            WarpedRaster(raster, first.crs, grid, shape, stack),
            Footprint(footprint.name, first.crs, grid, *shape),
        )

    def _cut(
        self, layer: _Layer, spec: ModalitySpec, place: str, frames: dict[str, _Frame], row: int, col: int
    ) -> Image:
        path = next(iter(self.files[layer.name][place].values()))
        top, left = (row * spec.height, col * spec.width) if self.options["crop"] else (0, 0)
        rows, columns = slice(top, top + spec.height), slice(left, left + spec.width)
        for frame in frames.values():
            window = frame.values[:, rows, columns]
            if window.shape[1:] != (spec.height, spec.width) or (
                not self.options["crop"] and window.shape != frame.values.shape
            ):
                raise BadItem(
                    path,
                    f"{frame.values.shape[1]}x{frame.values.shape[2]} pixels do not cover "
                    f"{spec.height}x{spec.width} at row {top}, column {left}",
                )
        dates = [day_of_year(date.replace("-", ""), path) if date else 0 for date in frames]
        stacked = np.stack([frame.values[:, rows, columns] for frame in frames.values()])
        measured = np.stack([frame.measured[rows, columns] for frame in frames.values()])
        image = make_image(
            _cast(stacked, measured, spec.dtype, layer, path), dates, None, path, measured=measured
        )
        if layer.added(place):
            image.values = _add(image, layer.added(place), path)
        return image


def _layer(name: str, values: Any, own: Mapping[str, Sensor], corpus: str) -> _Layer:
    where = f"corpus {corpus}, modality {name}"
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a mapping with sensor and pattern, found {values!r}", USAGE)
    check_keys(values, _MODALITY_OPTIONS, where)
    for key in ("sensor", "pattern"):
        if not isinstance(values.get(key), str):
            raise UserError(f"{where}: {key} is missing", USAGE)
    pattern = values["pattern"]
    if pattern.count("{id}") != 1 or pattern.count("{date}") > 1:
        raise UserError(
            f"{where}: pattern {pattern!r} needs one {{id}} and at most one {{date}} "
            "(an {id} may also be part of a fixed name)",
            USAGE,
        )
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise UserError(f"{where}: pattern {pattern!r} must stay inside the source folder", USAGE)
    chosen = own.get(values["sensor"]) or sensor(values["sensor"])
    changes = {key: values[key] for key in ("nodata", "scale", "offset") if key in values}
    add = values.get("add", {})
    if not isinstance(add, dict):
        raise UserError(f"{where}: add must map place patterns to numbers, found {add!r}", USAGE)
    return _Layer(
        name,
        dataclasses.replace(chosen, **changes),
        pattern,
        values.get("dtype"),
        tuple(add.items()),
        (changes["nodata"],) if "nodata" in values else None,
        "scale" in values or "offset" in values,
    )


def _find(source: Path, layer: _Layer) -> dict[str, dict[str, Path]]:
    """{id: {date text or "": file}}, sorted. Links that lead out of the source folder are an error."""
    parts = re.split(r"\{(id|date)\}", layer.pattern)
    regex = re.compile(
        "".join(_WILDCARDS[part] if i % 2 else re.escape(part) for i, part in enumerate(parts))
    )
    found: dict[str, dict[str, Path]] = {}
    root = source.resolve()
    for path in source.glob("".join("*" if i % 2 else part for i, part in enumerate(parts))):
        match = regex.fullmatch(path.relative_to(source).as_posix())
        if match is None:
            continue
        if not path.resolve().is_relative_to(root):
            raise UserError(f"{path}: leads outside {source}")
        date = match.groupdict().get("date", "")
        found.setdefault(match["id"], {})[date] = path
    return {
        place: dict(sorted(files.items(), key=lambda entry: entry[0].replace("-", "")))
        for place, files in sorted(found.items())
    }


def _units(units: Units | None) -> str:
    if units is None:
        return "no scale and offset"
    return "scale {} and offset {}".format(*(brief(numbers) for numbers in units))


def _cast(
    values: np.ndarray, measured_TxHxW: np.ndarray, dtype: str, layer: _Layer, path: Path
) -> np.ndarray:
    """The values in the corpus's dtype. Only what was declared is converted, and only without loss of integers."""
    if values.dtype.name == dtype:
        return values
    if layer.dtype is None:
        raise BadItem(path, f"dtype {values.dtype.name}, the other files of {layer.name} hold {dtype}")
    if np.dtype(dtype).kind == "f":
        with np.errstate(over="ignore"):
            return values.astype(dtype)
    # What was not measured (NaN, or a no-data value outside the integers' range) becomes 0 and stays masked.
    values = np.where(measured_TxHxW[:, None], values, 0)
    cast = values.astype(dtype)
    if not np.array_equal(cast, values):
        raise BadItem(path, f"its {values.dtype.name} values do not fit {dtype}")
    return cast


def _add(image: Image, number: float, path: Path) -> np.ndarray:
    """The declared number added to the valid pixels; no-data pixels keep their value."""
    values = image.values
    shifted = values.astype(np.float64) + number
    if image.valid is not None:
        shifted = np.where(image.valid[:, None], shifted, values)
    cast = shifted.astype(values.dtype)
    if values.dtype.kind != "f" and not np.array_equal(cast, shifted):
        raise BadItem(
            path, f"adding {number:g} leaves the range of {values.dtype.name}; declare a wider dtype"
        )
    return cast
