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
        nodata: 0                   # optional, default the file's own tag, then the sensor's
        dtype: uint16               # optional, default the file's; needed to store float64 files (as float32)
        add: {"433D_*": -1000}      # optional: added to the stored values of the places matching the pattern
        # optional: physical = stored * scale + offset, default the sensor's
        scale: 1.0
        offset: 0.0

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
from ramen_jax.corpora.raster import Raster, raster_shape, read_raster
from ramen_jax.samples import DTYPES, Image, ModalitySpec, Sample
from ramen_jax.sensors import Sensor, load_sensors, sensor

_WILDCARDS = {"id": r"(?P<id>[^/]+?)", "date": r"(?P<date>\d{8}|\d{4}-\d{2}-\d{2})"}
_SHAPES_LOOKED_AT = 32
_MODALITY_OPTIONS = ("sensor", "pattern", "nodata", "dtype", "add", "scale", "offset")


@dataclasses.dataclass(frozen=True)
class _Layer:
    """One modality of a geofolder: which files, and how to read them."""

    name: str
    sensor: Sensor
    pattern: str
    dtype: str | None
    add: tuple[tuple[str, float], ...]
    declared_nodata: bool

    @property
    def series(self) -> bool:
        return "{date}" in self.pattern

    def added(self, place: str) -> float:
        return next((value for glob, value in self.add if fnmatch.fnmatchcase(place, glob)), 0)


class Geofolder(Corpus):
    """See the module's docstring. Samples of one place stay in one split."""

    OPTIONS: ClassVar[dict[str, Any]] = {"sensors": None, "crop": None, "split": None, "modalities": None}

    def __init__(self, source: Path, options: Mapping[str, Any]) -> None:
        super().__init__(source, options)
        if not isinstance(self.options["modalities"], dict) or not self.options["modalities"]:
            raise UserError(f"corpus {self.name}: modalities must name at least one modality", USAGE)
        own = load_sensors(self.options["sensors"]) if self.options["sensors"] else {}
        self.layers = [
            _layer(name, values, own, self.name) for name, values in self.options["modalities"].items()
        ]
        self.files = {layer.name: _find(source, layer) for layer in self.layers}
        self.modalities = tuple(self._modality(layer) for layer in self.layers)

    def _modality(self, layer: _Layer) -> ModalitySpec:
        """Size and dtype as in the layer's files, the size cut to the crop."""
        first = self.layers[0]
        height, width, dtype = self._common_shape(layer)
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
        return ModalitySpec(layer.name, layer.sensor, height, width, layer.series, 1, dtype)

    def _common_shape(self, layer: _Layer) -> tuple[int, int, str]:
        """(H, W, dtype) of most of the layer's first files; a file that differs is rejected when it is read."""
        paths = [path for frames in self.files[layer.name].values() for path in frames.values()]
        shapes: Counter[tuple[int, int, int, str]] = Counter()
        for path in paths:
            with contextlib.suppress(BadItem):
                shapes[raster_shape(path)] += 1
            if shapes.total() == _SHAPES_LOOKED_AT:
                break
        where = f"corpus {self.name}, modality {layer.name}"
        if not shapes:
            raise UserError(f"{where}: no readable file matches {layer.pattern} in {self.source}")
        bands, height, width, dtype = shapes.most_common(1)[0][0]
        if bands != len(layer.sensor.bands):
            names = ", ".join(band.name for band in layer.sensor.bands)
            raise UserError(
                f"{where}: its files have {bands} bands, "
                f"but sensor {layer.sensor.name} has {len(layer.sensor.bands)} ({names})"
            )
        return height, width, dtype

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
        rasters = {layer.name: self._read_layer(layer, item) for layer in self.layers}
        added = {layer.name: layer.added(item) for layer in self.layers if layer.added(item)}
        extra = {"added": added} if added else {}
        first = self.modalities[0]
        frame = next(iter(rasters[first.name].values()))
        height, width = frame.values.shape[1:]
        samples = []
        for row in range(height // first.height):
            for col in range(width // first.width):
                images = {
                    spec.name: self._cut(layer, spec, item, rasters[spec.name], row, col)
                    for layer, spec in zip(self.layers, self.modalities)
                }
                name = f"{item}/{row}-{col}" if self.options["crop"] else item
                centre = frame.location((row + 0.5) * first.height, (col + 0.5) * first.width)
                samples.append(Sample(name, images, centre, dict(extra)))
        if not samples:
            raise BadItem(item, f"{height}x{width} pixels of {first.name}, smaller than the crop")
        return samples

    def _read_layer(self, layer: _Layer, place: str) -> dict[str, Raster]:
        """Rasters by date text, checked against each other and against the first modality's extent."""
        rasters = {date: read_raster(path) for date, path in self.files[layer.name][place].items()}
        shapes = {raster.values.shape for raster in rasters.values()}
        path = next(iter(self.files[layer.name][place].values()))
        if len(shapes) > 1:
            raise BadItem(path, f"the dates of {layer.name} differ in size: {sorted(shapes)}")
        bands = next(iter(shapes))[0]
        if bands != len(layer.sensor.bands):
            raise BadItem(
                path, f"{bands} bands, but sensor {layer.sensor.name} has {len(layer.sensor.bands)}"
            )
        return rasters

    def _cut(
        self, layer: _Layer, spec: ModalitySpec, place: str, rasters: dict[str, Raster], row: int, col: int
    ) -> Image:
        path = next(iter(self.files[layer.name][place].values()))
        frames = []
        for raster in rasters.values():
            top, left = (row * spec.height, col * spec.width) if self.options["crop"] else (0, 0)
            window = raster.values[:, top : top + spec.height, left : left + spec.width]
            if window.shape[1:] != (spec.height, spec.width) or (
                not self.options["crop"] and window.shape != raster.values.shape
            ):
                raise BadItem(
                    path,
                    f"{raster.values.shape[1]}x{raster.values.shape[2]} pixels do not cover "
                    f"{spec.height}x{spec.width} at row {top}, column {left}",
                )
            frames.append(window)
        dates = [day_of_year(date.replace("-", ""), path) if date else 0 for date in rasters]
        values = _cast(np.stack(frames), spec.dtype, layer, path)
        image = make_image(values, dates, _nodata(layer, rasters, path), path)
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
        "nodata" in values,
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


def _nodata(layer: _Layer, rasters: Mapping[str, Raster], path: Path) -> float | None:
    """The stored value without a measurement: the description's, or that of the files' tags, or the sensor's."""
    tags = {str(raster.nodata): raster.nodata for raster in rasters.values()}
    if layer.declared_nodata or set(tags) == {"None"}:
        return layer.sensor.nodata
    if len(tags) > 1:
        raise BadItem(
            path,
            f"the dates of {layer.name} differ in their no-data value ({', '.join(tags)}); declare `nodata`",
        )
    return next(iter(tags.values()))


def _cast(values: np.ndarray, dtype: str, layer: _Layer, path: Path) -> np.ndarray:
    """The values in the corpus's dtype. Only what was declared is converted, and only without loss of integers."""
    if values.dtype.name == dtype:
        return values
    if layer.dtype is None:
        raise BadItem(path, f"dtype {values.dtype.name}, the other files of {layer.name} hold {dtype}")
    cast = values.astype(dtype)
    if np.dtype(dtype).kind != "f" and not np.array_equal(cast, values):
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
