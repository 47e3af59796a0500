"""What a raster file says about its own pixels, for a given sensor: applied, refused or told, never passed over.

Bands are found by their descriptions where these name the sensor's bands without doubt; an alpha band is a mask and no
band; no-data tags, mask bands and alpha decide what was measured; scale and offset tags are applied. Complex numbers,
colour tables, containers of several rasters and files placed by control points only are refused, each with the command
that makes something readable of them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags

from ramen_jax.corpora import BadItem
from ramen_jax.no_data import NoData
from ramen_jax.sensors import Band, Sensor

COLOURS = {"blue": (430, 520), "green": (520, 600), "red": (610, 700), "nir": (760, 950)}
ALPHA_SHARE = 0.9  # of a true alpha band, this share of the pixels is opaque or transparent
ALPHA_LOOK = 256  # pixels per side of the decimated reading that tells one
SEVERAL_SHOWN = 4
NUMBERED = re.compile(r"(band|layer|channel)?\d*")  # a description that says nothing

Units = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Declared:
    """How the pixels of one file are to be read.

    Attributes:
        bands: GDAL's numbers of the sensor's bands, in the sensor's order.
        alpha: number of the band that is a mask, or None.
        masks: numbers of the bands whose mask bands count.
        nodata: every no-data value that counts, each of all bands or one per band.
        units: (scale, offset) per band of the file's tags, to be applied to the stored values; None where there is
            nothing to do, or where the sensor does it.
        dtype: of the stored values.
        notes: sentences a person should read.
    """

    bands: tuple[int, ...]
    alpha: int | None
    masks: tuple[int, ...]
    nodata: tuple[NoData, ...]
    units: Units | None
    dtype: str
    notes: tuple[str, ...]

    @property
    def all_measured(self) -> bool:
        """Whether nothing in the file could mark a pixel as not measured."""
        marks = any(value is not None for rule in self.nodata for value in _values(rule))
        return not (marks or self.masks or self.alpha is not None or np.dtype(self.dtype).kind == "f")


def declare(file: Any, sensor: Sensor, nodata_of_description: tuple[NoData, ...] | None = None) -> Declared:
    """What an open rasterio dataset declares.

    Args:
        file: the dataset.
        sensor: of its pixels.
        nodata_of_description: a description's own value in the place of the tags' and the sensor's.

    Raises:
        BadItem: bands that are not the sensor's, or pixels that are no measurements.
    """
    path = Path(file.name)
    if file.count == 0:
        raise BadItem(file.name, _container(file))
    for i, meaning in enumerate(file.colorinterp, 1):
        if meaning == ColorInterp.palette:
            raise BadItem(
                file.name,
                f"band {i} holds indices into a colour table (a palette), not measurements; expand it first with "
                f"`gdal_translate -expand rgb {path.name} expanded.tif`",
            )
    alphas = [i for i, meaning in enumerate(file.colorinterp, 1) if meaning == ColorInterp.alpha]
    alpha, notes = _alpha(file, alphas, len(sensor.bands))
    data = [i for i in file.indexes if i != alpha]
    bands, told = _bands(file, data, sensor)
    notes += told
    for i in bands:
        dtype = file.dtypes[i - 1]
        if dtype.startswith("complex"):
            raise BadItem(
                file.name,
                f"band {i} holds complex numbers ({dtype}), of which no single part is a measurement; write their "
                "amplitude or intensity first, as the sensor's statistics have it",
            )
    steps = {key for i in bands for key in file.tags(i) if key.startswith("NETCDF_DIM_")}
    varying = [key for key in sorted(steps) if len({file.tags(i).get(key) for i in bands}) > 1]
    if varying:
        raise BadItem(
            file.name,
            f"its bands are steps along {varying[0].removeprefix('NETCDF_DIM_')}, not bands of a sensor; write one "
            "raster per step",
        )
    units, told = _units(file, bands, sensor)
    notes += told
    tags = tuple(None if value is None else float(value) for value in (file.nodatavals[i - 1] for i in bands))
    nodata = (tags, sensor.nodata) if nodata_of_description is None else nodata_of_description
    dtypes = {file.dtypes[i - 1] for i in bands}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    return Declared(tuple(bands), alpha, _masks(file, bands), nodata, units, dtype, tuple(notes))


def unplaced(file: Any) -> str:
    """Why a file without a coordinate system has no place, and what would give it one."""
    name = Path(file.name).name
    if file.gcps[0]:
        return (
            "is placed by ground control points only; resample it to a map grid first with "
            f"`gdalwarp -t_srs EPSG:CODE {name} placed.tif`"
        )
    if file.rpcs is not None:
        return (
            "is placed by rational polynomial coefficients only; resample it to a map grid first with "
            f"`gdalwarp -rpc -t_srs EPSG:CODE {name} placed.tif`"
        )
    return (
        "has no CRS, so its place and pixel size are unknown; say it with "
        f"`gdal_translate -a_srs EPSG:CODE {name} placed.tif`"
    )


def odd_units(sizes: Sequence[float], factor: float) -> tuple[list[int], list[int]] | None:
    """(few, many) of the dates of a series whose values differ by more than a factor; None where they are alike.

    Args:
        sizes: a typical absolute value per date; 0 where there is none, which is never odd.
        factor: between neighbours in size.
    """
    ranked = sorted((size, index) for index, size in enumerate(sizes) if size > 0)
    gaps = [upper[0] / lower[0] for lower, upper in itertools.pairwise(ranked)]
    if not gaps or max(gaps) <= factor:
        return None
    cut = gaps.index(max(gaps)) + 1
    few, many = sorted(([i for _, i in ranked[:cut]], [i for _, i in ranked[cut:]]), key=len)
    return few, many


def typical_size(values: np.ndarray) -> float:
    """Median of the absolute values that are finite; 0 where there is none."""
    known = np.abs(values[np.isfinite(values)].astype(np.float64))
    return float(np.median(known)) if known.size else 0.0


def _values(rule: NoData) -> list[float | None]:
    return list(rule) if isinstance(rule, Sequence) else [rule]


def _container(file: Any) -> str:
    inner = list(file.subdatasets)
    if not inner:
        return "holds no raster band"
    shown = ", ".join(name.rpartition(":")[2] for name in inner[:SEVERAL_SHOWN])
    more = f" and {len(inner) - SEVERAL_SHOWN} more" if len(inner) > SEVERAL_SHOWN else ""
    return (
        f"is a container of {len(inner)} rasters (subdatasets or variables {shown}{more}); write the one you mean to a "
        f"file of its own: `gdal_translate '{inner[0]}' raster.tif`"
    )


def _alpha(file: Any, alphas: list[int], wanted: int) -> tuple[int | None, list[str]]:
    """The band that is a mask. Some writers call the fourth of any four bands alpha; its pixels tell."""
    if not alphas:
        return None, []
    last = alphas[-1]
    shape = tuple(min(side, ALPHA_LOOK) for side in (file.height, file.width))
    pixels = file.read(last, out_shape=shape)
    if np.mean((pixels == 0) | (pixels == pixels.max())) >= ALPHA_SHARE:
        return last, []
    name = Path(file.name).name
    if file.count == wanted + 1:
        return last, [f"{name}: band {last} is tagged as alpha; where it is 0, nothing was measured"]
    return None, [f"{name}: band {last} is tagged as alpha, but its values are no mask; it is read as a band"]


def _bands(file: Any, data: list[int], sensor: Sensor) -> tuple[list[int], list[str]]:
    """The sensor's bands among the file's, by what the file calls them where that is certain, else by position."""
    names = ", ".join(band.name for band in sensor.bands)
    aliases = _aliases(sensor.bands)
    called = _called(file, data, aliases)
    meant = {i: aliases.get(_plain(called[i])) for i in data}
    named = {index: [i for i in data if meant[i] == index] for index in range(len(sensor.bands))}
    lost = [index for index, found in named.items() if not found]
    nameless = [i for i in data if not called[i]]
    if len(lost) == len(nameless) == 1 < len(data) == len(sensor.bands):
        named[lost[0]] = nameless  # the one that is left
    file_name = Path(file.name).name
    described = ", ".join(called[i] or "nothing" for i in data)
    if all(len(found) == 1 for found in named.values()):
        order = [named[index][0] for index in range(len(sensor.bands))]
        if order == data:
            return order, []
        return order, [
            f"{file_name}: its bands are described as {described}; sensor '{sensor.name}' wants {names}, so bands "
            f"{', '.join(map(str, order))} are read, in this order"
        ]
    if len(data) != len(sensor.bands):
        alpha = " and an alpha band" if len(data) < file.count else ""
        raise BadItem(
            file.name,
            f"has {len(data)} bands{alpha}, sensor '{sensor.name}' has {len(sensor.bands)}: {names}",
        )
    for index, i in enumerate(data):
        other = meant[i]
        if other is not None and other != index:
            raise BadItem(
                file.name,
                f"band {i} is described as '{called[i]}', but band {i} of sensor '{sensor.name}' is "
                f"'{sensor.bands[index].name}', and the other descriptions do not tell the order; describe every "
                f"band as one of {names}",
            )
    if all(called.values()) and not any(index is not None for index in meant.values()):
        return data, [
            f"{file_name}: its bands are described as {described}, which are no names of sensor '{sensor.name}'; they "
            f"are read in the file's order as {names}"
        ]
    return data, []


def _called(file: Any, data: list[int], known: Container[str]) -> dict[int, str]:
    """What a file calls its bands: descriptions, else colours unless they are the order that writers give unasked."""
    called = {i: file.descriptions[i - 1] or "" for i in data}
    for i, text in called.items():
        if NUMBERED.fullmatch(_plain(text)) and _plain(text) not in known:
            called[i] = ""
    colours = [file.colorinterp[i - 1].name for i in data]
    unasked = colours[:3] == ["red", "green", "blue"] and "nir" not in colours
    if any(called.values()) or unasked:
        return called
    return {i: colour if colour in COLOURS else "" for i, colour in zip(data, colours, strict=True)}


def _aliases(bands: tuple[Band, ...]) -> dict[str, int]:
    """What a description may call each band; names that fit several bands are left out."""
    found: dict[str, set[int]] = {}
    for index, band in enumerate(bands):
        names = {band.name}
        if band.wavelength_nm is not None:
            names |= {name for name, (low, high) in COLOURS.items() if low <= band.wavelength_nm <= high}
        elif band.radar is not None:
            names |= {band.radar, band.radar.partition("_")[2]}
        elif band.elevation is not None:
            names.add(band.elevation)
        for name in names:
            found.setdefault(_plain(name), set()).add(index)
    aliases = {name: min(indices) for name, indices in found.items() if len(indices) == 1}
    # A band's own name beats what another band's wavelength would be called.
    return aliases | {_plain(band.name): index for index, band in enumerate(bands)}


def _plain(name: str) -> str:
    """B02, b2 and "B 2" are one name."""
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    return re.sub(r"^b0+(?=\d)", "b", letters)


def _masks(file: Any, bands: list[int]) -> tuple[int, ...]:
    """Bands whose mask says something that neither a no-data value nor the alpha band says."""
    found = []
    for i in bands:
        flags = file.mask_flag_enums[i - 1]
        if MaskFlags.all_valid in flags or MaskFlags.alpha in flags:
            continue
        if MaskFlags.per_dataset in flags:
            return (i,)
        if MaskFlags.nodata not in flags:
            found.append(i)
    return tuple(found)


def _units(file: Any, bands: list[int], sensor: Sensor) -> tuple[Units | None, list[str]]:
    """(scale, offset) of the file's tags where they are to be applied, and what is to be said of them."""
    scale = tuple(float(file.scales[i - 1]) for i in bands)
    offset = tuple(float(file.offsets[i - 1]) for i in bands)
    if set(scale) == {1} and set(offset) == {0}:
        return None, []
    tags = f"scale {brief(scale)} and offset {brief(offset)}"
    if not all(math.isfinite(value) for value in (*scale, *offset)) or 0 in scale:
        raise BadItem(file.name, f"its tags say {tags}, which makes no numbers of the stored values")
    name = Path(file.name).name
    if (sensor.scale, sensor.offset) == (1, 0):
        return (scale, offset), [f"{name}: {tags} of its tags are applied to the stored values"]
    if (set(scale), set(offset)) == ({sensor.scale}, {sensor.offset}):
        return None, []
    return None, [
        f"{name}: its tags say {tags}, but sensor '{sensor.name}' says scale {sensor.scale:g} and offset "
        f"{sensor.offset:g}, which count"
    ]


def brief(values: tuple[float, ...]) -> str:
    """One number where all are equal, else the list."""
    return f"{values[0]:g}" if len(set(values)) == 1 else "[" + ", ".join(f"{v:g}" for v in values) + "]"
