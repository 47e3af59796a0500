"""GEO-Bench's m-* sets as they lie on disk: one hdf5 file per place with a pickled attribute, and a list of splits.

Shape letters: C channels, H rows, W columns.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ramen_jax.earth.layouts import files
from ramen_jax.earth.layouts.pangaea.site import OPEN, ROOFS, SEALED, Site
from ramen_jax.sensors import Sensor, sensor

_Channels = Mapping[str, tuple[str, ...]]

_SENTINEL_2: _Channels = {
    "01 - Coastal aerosol": ("1", "01"),
    "02 - Blue": ("2", "02", "blue"),
    "03 - Green": ("3", "03", "green"),
    "04 - Red": ("4", "04", "red"),
    "05 - Vegetation Red Edge": ("5", "05"),
    "06 - Vegetation Red Edge": ("6", "06"),
    "07 - Vegetation Red Edge": ("7", "07"),
    "08 - NIR": ("8", "08", "NIR"),
    "08A - Vegetation Red Edge": ("8A", "08A"),
    "09 - Water vapour": ("9", "09"),
    "10 - SWIR - Cirrus": ("10",),
    "11 - SWIR": ("11",),
    "12 - SWIR": ("12",),
}
_LANDSAT_8: _Channels = {
    "02 - Blue": ("2", "02", "B2", "blue"),
    "03 - Green": ("3", "03", "B3", "green"),
    "04 - Red": ("4", "04", "B4", "red"),
    "05 - NIR": ("5", "05", "B5", "nir"),
    "06 - SWIR1": ("6", "06", "B6", "swir1"),
    "07 - SWIR2": ("7", "07", "B7", "swir2"),
}
_COLOUR: _Channels = {"Red": ("red",), "Green": ("green",), "Blue": ("blue",)}
_NO_CIRRUS = {name: others for name, others in _SENTINEL_2.items() if not name.startswith("10")}
_SO2SAT = {name: others for name, others in _NO_CIRRUS.items() if name[:2] not in ("01", "09")}
_AERIAL: _Channels = {"Blue": ("blue",), "Green": ("green",), "Red": ("red",), "NearInfrared": ("nir",)}
_DIGITAL, _REFLECTANCE = "DN (uint8)", "reflectance x 10000"

# Landscapes that a classification tells apart, as many as it has classes at most; maps show the first two.
_LANDSCAPES = ("lake", "suburb", "desert", "forest")
_BARE = (*ROOFS, *SEALED, *OPEN)


@dataclasses.dataclass(frozen=True)
class _Set:
    """How a set is stored. `channels`: name -> other names, in the order of its sensor's bands."""

    channels: _Channels
    family: str
    classes: int
    dtype: str
    units: str = _REFLECTANCE


_SETS = {
    "m-bigearthnet": _Set(_NO_CIRRUS, "multi_label", 43, "int16"),
    "m-brick-kiln": _Set(
        _SENTINEL_2, "classification", 2, "float64", ", ".join([_REFLECTANCE] * 10 + [_DIGITAL] * 3)
    ),
    "m-eurosat": _Set(_SENTINEL_2, "classification", 10, "uint16"),
    "m-forestnet": _Set(_LANDSAT_8, "classification", 12, "uint8", _DIGITAL),
    "m-pv4ger": _Set(_COLOUR, "classification", 2, "uint8", _DIGITAL),
    "m-so2sat": _Set(_SO2SAT, "classification", 17, "float64", "reflectance"),
    "m-cashew-plantation": _Set(_NO_CIRRUS, "segmentation", 7, "float64"),
    "m-chesapeake": _Set(_AERIAL, "segmentation", 7, "float32", _DIGITAL),
    "m-neontree": _Set(_COLOUR, "segmentation", 2, "uint8", _DIGITAL),
    "m-nz-cattle": _Set(_COLOUR, "segmentation", 2, "uint8", _DIGITAL),
    "m-pv4ger-seg": _Set(_COLOUR, "segmentation", 2, "uint8", _DIGITAL),
    "m-sa-crop-type": _Set(_NO_CIRRUS, "segmentation", 10, "uint8", _DIGITAL),
}
SETS = tuple(_SETS)
_PRESENT = 0.03  # share of the pixels from which on a class is a label of its place


def write_geobench(name: str, output: Path, places: int = 8, seed: int = 0, *, pixels: int = 64) -> None:
    """One of SETS. Maps and multiple labels stand for groups of surfaces, classes for landscapes.

    In maps of two classes the second one is where nothing grows: roofs, roads, soil. The channels hold what they hold
    in the originals, which for m-eurosat and m-brick-kiln is not what they are called; m-eurosat is level 1C.
    """
    kind, seen_by = _SETS[name], sensor(f"pangaea_{name.replace('-', '_')}")
    stored = Sensor(seen_by.name, seen_by.bands, seen_by.gsd, kind.units)
    partition: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    output.mkdir(parents=True, exist_ok=True)
    landscapes = _LANDSCAPES[: 2 if kind.family == "segmentation" else kind.classes]
    for index, split in enumerate(files.split_of(places)):
        site = Site(seed, index, pixels, seen_by.gsd, landscapes)
        values_CxHxW = site.optical(stored, [180], kind.dtype, toa=name == "m-eurosat")[0]
        sample = f"id_{index:06d}"
        partition["valid" if split == "val" else split].append(sample)
        facts: dict[str, Any] = {}
        if kind.family == "classification":
            facts["label"] = index % len(landscapes)
        elif kind.family == "multi_label":
            shares = np.bincount(site.numbered(kind.classes).ravel(), minlength=kind.classes) / pixels**2
            facts["label"] = (shares > _PRESENT).astype(np.uint8)
        with h5py.File(output / f"{sample}.hdf5", "w") as file:
            for (channel, others), values in zip(kind.channels.items(), values_CxHxW, strict=True):
                file.create_dataset(channel, data=values)
                facts[channel] = _facts(channel, others, seen_by.gsd)
            if kind.family == "segmentation":
                two = kind.classes == 2
                label = site.classes({1: _BARE}, other=0) if two else site.numbered(kind.classes)
                file.create_dataset("label", data=label.astype(np.int64))
                facts["label"] = _facts("label", (), seen_by.gsd)
            file.attrs["pickle"] = str(pickled({**facts, "bands_order": list(kind.channels)}))
    (output / "default_partition.json").write_text(json.dumps(partition))


@dataclasses.dataclass(frozen=True)
class Named:
    """An object of a class, as a pickle stream has it: the class's name and the object's attributes."""

    module: str
    name: str
    state: dict[str, Any]


def _facts(channel: str, others: tuple[str, ...], gsd: float) -> dict[str, Any]:
    kind = "SegmentationClasses" if channel == "label" else "SpectralBand"
    state = {"name": channel, "alt_names": others, "spatial_resolution": gsd}
    return {
        "date": None,
        "date_id": None,
        "spatial_resolution": gsd,
        "band_info": Named("geobench.dataset", kind, state),
        "meta_info": None,
    }


def pickled(value: Any) -> bytes:
    """A pickle stream (protocol 3) of plain values, arrays of numbers and `Named` objects, written opcode by opcode."""
    return b"\x80\x03" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_opcodes, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(key) + _opcodes(each) for key, each in value.items()) + b"u"
    if isinstance(value, Named):
        return _class(value.module, value.name) + b")\x81" + _opcodes(value.state) + b"b"
    if isinstance(value, np.ndarray):
        empty = b"(" + _class("numpy", "ndarray") + _opcodes((0,)) + _opcodes(b"b") + b"t"
        kind = _class("numpy", "dtype") + _opcodes((value.dtype.str[1:], False, True)) + b"R"
        order = value.dtype.str[0]
        kind += _opcodes((3, order, None, None, None, -1, -1, 0)) + b"b"
        state = (
            b"(" + _opcodes(1) + _opcodes(value.shape) + kind + _opcodes(False) + _opcodes(value.tobytes())
        )
        return _class("numpy.core.multiarray", "_reconstruct") + empty + b"R" + state + b"tb"
    raise TypeError(f"{type(value).__name__} cannot be written")


def _class(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()
