"""Sensors are data: what each channel of an image physically is, at what pixel size, in what units.

A `Sensor` is an ordered tuple of `Band`s with a native ground sampling distance (GSD, metres per pixel) and, once
known, the mean and standard deviation of each band. The registry that ships with the package is `sensors.yaml`;
`load_sensors` reads a user's own file of the same form:

    my_drone:                       # the name of the sensor
      gsd: 0.05                     # metres per pixel
      units: DN
      bands:                        # in the order of the file's channels
        red: 650                    # optical: centre wavelength in nm
        nir: 840
        vv: asc_vv                  # radar: orbit (asc, des) and polarisation (vv, vh, hv, hh)
        height: dsm                 # elevation: dsm, dtm or slope
      nodata: 0                     # optional, with scale, offset, plausible, mean, std

Values: physical = stored * scale + offset; `mean`, `std` and `plausible` are of the physical value, `nodata` is of the
stored one. An offset such as Sentinel-2's +1000 (processing baseline 04.00) is declared here, never guessed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from ramen_jax import storage
from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.documents import parse_yaml, read_text

RADAR = ("asc_vv", "asc_vh", "asc_hv", "asc_hh", "des_vv", "des_vh", "des_hv", "des_hh")
ELEVATION = ("dsm", "dtm", "slope")
REGISTRY_FILE = Path(__file__).with_name("sensors.yaml")

Kind = Literal["optical", "radar", "elevation"]


@dataclasses.dataclass(frozen=True)
class Band:
    """What one channel is: exactly one of `wavelength_nm`, `radar` and `elevation` is set.

    Attributes:
      name: the channel's name, unique within its sensor.
      wavelength_nm: centre wavelength of an optical band, nanometres.
      radar: orbit and polarisation, one of `RADAR`.
      elevation: one of `ELEVATION`; dsm and dtm in metres, slope in degrees.
    """

    name: str
    wavelength_nm: float | None = None
    radar: str | None = None
    elevation: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise UserError(
                f"A band's name must be a non-empty text, found {self.name!r} (quote it in YAML)."
            )
        meanings = [value for value in (self.wavelength_nm, self.radar, self.elevation) if value is not None]
        if len(meanings) != 1:
            raise UserError(
                f"Band {self.name}: exactly one of wavelength_nm, radar and elevation must be given, "
                f"found {len(meanings)}."
            )
        if self.wavelength_nm is not None:
            wavelength = _number(self.wavelength_nm, f"Band {self.name}: wavelength_nm")
            if not 100 <= wavelength <= 20_000:
                raise UserError(
                    f"Band {self.name}: wavelength_nm is {wavelength:g}, expected nanometres between 100 and 20000 "
                    f"(0.665 micrometres are 665 nm)."
                )
            object.__setattr__(self, "wavelength_nm", wavelength)
        if self.radar is not None and self.radar not in RADAR:
            raise UserError(
                f"Band {self.name}: unknown radar channel {self.radar!r}; {close_names(self.radar, RADAR)}"
            )
        if self.elevation is not None and self.elevation not in ELEVATION:
            raise UserError(
                f"Band {self.name}: unknown elevation {self.elevation!r}; {close_names(self.elevation, ELEVATION)}"
            )

    @property
    def kind(self) -> Kind:
        if self.wavelength_nm is not None:
            return "optical"
        return "radar" if self.radar is not None else "elevation"

    @property
    def meaning(self) -> float | str:
        """The one value that says what the band is: nanometres, a radar channel or an elevation."""
        return next(value for value in (self.wavelength_nm, self.radar, self.elevation) if value is not None)

    @classmethod
    def of(cls, name: str, meaning: float | str) -> Band:
        """A band from its short form: a number is a wavelength in nm, a text a radar channel or an elevation."""
        if isinstance(meaning, (int, float)) and not isinstance(meaning, bool):
            return cls(name, wavelength_nm=meaning)
        if meaning in RADAR:
            return cls(name, radar=meaning)
        if meaning in ELEVATION:
            return cls(name, elevation=meaning)
        raise UserError(
            f"Band {name}: {meaning!r} is neither a wavelength in nm, nor a radar channel, nor an elevation; "
            f"{close_names(str(meaning), RADAR + ELEVATION)}"
        )


@dataclasses.dataclass(frozen=True)
class Sensor:
    """Ordered bands, pixel size and normalisation of one instrument or product. Hashable.

    Attributes:
      name: the sensor's name.
      bands: its channels, in the order of the image's channel axis; the kinds may be mixed.
      gsd: native ground sampling distance, metres per pixel.
      units: units of the physical values, for people.
      mean, std: per band, of the physical values; None until known.
      nodata: stored value that means "no measurement", or None.
      scale, offset: physical = stored * scale + offset.
      plausible: lowest and highest physical value to expect, for warnings; None where unknown.
    """

    name: str
    bands: tuple[Band, ...]
    gsd: float
    units: str = ""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    nodata: float | None = None
    scale: float = 1.0
    offset: float = 0.0
    plausible: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise UserError(f"A sensor's name must be a non-empty text, found {self.name!r}.")
        where = f"Sensor {self.name}"
        object.__setattr__(self, "bands", tuple(self.bands))
        if not self.bands:
            raise UserError(f"{where}: bands is empty, expected at least one band.")
        names = [band.name for band in self.bands]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UserError(
                f"{where}: band names must be unique, found {', '.join(repeated)} more than once."
            )
        object.__setattr__(self, "gsd", _number(self.gsd, f"{where}: gsd"))
        if self.gsd <= 0:
            raise UserError(f"{where}: gsd is {self.gsd:g}, expected metres per pixel above 0.")
        if (self.mean is None) != (self.std is None):
            raise UserError(f"{where}: mean and std must be given together.")
        for key in ("mean", "std"):
            values = getattr(self, key)
            if values is not None:
                object.__setattr__(self, key, _numbers(values, len(self.bands), f"{where}: {key}"))
        for name, std in zip(names, self.std or ()):
            if std <= 0:
                raise UserError(f"{where}: std of band {name} is {std:g}, expected a number above 0.")
        if self.nodata is not None:
            # NaN and the infinities are ordinary no-data values, so only the type is checked.
            object.__setattr__(self, "nodata", _number(self.nodata, f"{where}: nodata", finite=False))
        for key in ("scale", "offset"):
            object.__setattr__(self, key, _number(getattr(self, key), f"{where}: {key}"))
        if self.scale == 0:
            raise UserError(f"{where}: scale is 0, which would erase the image; expected any other number.")
        if self.plausible is not None:
            low, high = _numbers(self.plausible, 2, f"{where}: plausible")
            if low >= high:
                raise UserError(f"{where}: plausible is [{low:g}, {high:g}], expected the lower value first.")
            object.__setattr__(self, "plausible", (low, high))

    def band(self, name: str) -> Band:
        """The band of that name. Raises UserError naming close ones."""
        for band in self.bands:
            if band.name == name:
                return band
        raise UserError(
            f"Sensor {self.name} has no band {name!r}; {close_names(name, [band.name for band in self.bands])}",
            USAGE,
        )

    def select(self, names: Sequence[str]) -> Sensor:
        """The same sensor with only these bands, in this order; statistics follow."""
        chosen = tuple(self.band(name) for name in names)
        index = {band.name: i for i, band in enumerate(self.bands)}
        order = [index[name] for name in names]

        def pick(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
            return None if values is None else tuple(values[i] for i in order)

        return dataclasses.replace(self, bands=chosen, mean=pick(self.mean), std=pick(self.std))

    def with_statistics(self, mean: Iterable[float], std: Iterable[float]) -> Sensor:
        """The same sensor with per-band mean and standard deviation of the physical values."""
        return dataclasses.replace(self, mean=tuple(map(float, mean)), std=tuple(map(float, std)))

    def to_dict(self) -> dict[str, Any]:
        """A JSON- and YAML-able dictionary; `from_dict` gives the same sensor back."""
        entry: dict[str, Any] = {
            "name": self.name,
            "gsd": self.gsd,
            "units": self.units,
            "bands": {band.name: band.meaning for band in self.bands},
            "scale": self.scale,
            "offset": self.offset,
        }
        for key in ("nodata", "mean", "std", "plausible"):
            value = getattr(self, key)
            if value is not None:
                entry[key] = list(value) if isinstance(value, tuple) else value
        # JSON has no infinities: a text survives every writer, and `_number` reads it back.
        if self.nodata is not None and not math.isfinite(self.nodata):
            entry["nodata"] = str(self.nodata)
        return entry

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Sensor:
        """A sensor from a dictionary as in the YAML file, with its name. Raises UserError on any wrong key."""
        if not isinstance(entry, Mapping):
            raise UserError(f"A sensor must be a mapping of keys, found {entry!r}.")
        known = [field.name for field in dataclasses.fields(cls)]
        where = f"Sensor {entry.get('name', '(unnamed)')}"
        for key in entry:
            if key not in known:
                raise UserError(f"{where}: unknown key {key!r}; {close_names(str(key), known)}")
        missing = [key for key in ("name", "bands", "gsd") if key not in entry]
        if missing:
            raise UserError(f"{where}: missing {', '.join(missing)}.")
        values = dict(entry)
        values["units"] = str(values.get("units", ""))
        values["bands"] = _bands(values["bands"], where)
        return cls(**values)


def load_sensors(path: str | Path) -> dict[str, Sensor]:
    """Sensors of a YAML file, by name. Raises UserError naming the file and what is wrong in it."""
    path = storage.local(str(path))
    document = parse_yaml(read_text(path), str(path), load=_load_unique)
    if not isinstance(document, dict) or not document:
        raise UserError(
            f"{path}: expected a mapping of sensor names to their description, found {document!r}."
        )
    sensors = {}
    for name, entry in document.items():
        if not isinstance(entry, dict):
            raise UserError(f"{path}: sensor {name} must be a mapping with bands and gsd, found {entry!r}.")
        try:
            sensors[name] = Sensor.from_dict({"name": name, **entry})
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    return sensors


@functools.cache
def _registry() -> dict[str, Sensor]:
    return load_sensors(REGISTRY_FILE)


def registry() -> dict[str, Sensor]:
    """All sensors shipped with the package, by name."""
    return dict(_registry())


def sensor(name: str) -> Sensor:
    """The sensor of that name from the registry. Raises UserError naming close ones."""
    known = _registry()
    if name not in known:
        raise UserError(f"Unknown sensor {name!r}; {close_names(name, known)}", USAGE)
    return known[name]


def _number(value: Any, what: str, finite: bool = True) -> float:
    if isinstance(value, str) and value.lower().lstrip("+-.") in ("nan", "inf"):
        value = float(value.replace(".", ""))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{what} must be a number, found {value!r}.")
    if finite and not math.isfinite(value):
        raise UserError(f"{what} must be a finite number, found {value!r}.")
    return float(value)


def _numbers(values: Any, count: int, what: str) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise UserError(f"{what} must be a list of {count} numbers, found {values!r}.")
    if len(values) != count:
        raise UserError(f"{what} has {len(values)} numbers, expected {count}, one per band.")
    return tuple(_number(value, what) for value in values)


def _bands(bands: Any, where: str) -> tuple[Band, ...]:
    """Bands from the short form {name: meaning} or from a list of {name, wavelength_nm | radar | elevation}."""
    try:
        if isinstance(bands, Mapping):
            return tuple(Band.of(name, meaning) for name, meaning in bands.items())
        if isinstance(bands, Sequence) and not isinstance(bands, str):
            return tuple(band if isinstance(band, Band) else _band(band) for band in bands)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    raise UserError(f"{where}: bands must map band names to their meaning (B2: 490), found {bands!r}.")


def _band(entry: Any) -> Band:
    known = [field.name for field in dataclasses.fields(Band)]
    if not isinstance(entry, Mapping) or "name" not in entry:
        raise UserError(f"a band must be a mapping with a name, found {entry!r}.")
    for key in entry:
        if key not in known:
            raise UserError(f"Band {entry['name']}: unknown key {key!r}; {close_names(str(key), known)}")
    return Band(**entry)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys in silence; a band or sensor written twice is an error here."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _load_unique(text: str) -> Any:
    return yaml.load(text, Loader=_UniqueKeyLoader)  # a SafeLoader: it builds plain values only
