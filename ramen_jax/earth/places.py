"""The procedural Earth: co-registered places in the geometry of any corpus, rendered from a seed (nothing to download).

`render_place(seed, place, spec)` returns the same bytes for the same arguments: every modality of the spec seen from
one `Scene`, optical bands by their wavelengths, radar by orbit and polarisation, elevation, each at its own GSD by area
integration, with dates, clouds, speckle, absent bands and no-data where the real corpus has them. `corpus_spec` names
the geometries: those of FLAIR-HUB, MMEarth64 and WorldStrat at full size, small ones of each, and `tiny`.

    spec = corpus_spec("tiny")
    sample = render_place(0, 17, spec)
    sample.images["aerial"].values      # [1, 4, 256, 256] uint8
    sample.extra["landscape"]           # "village"
    render_labels(0, 17, spec, "aerial")  # [256, 256] uint8

Numpy only. Legend of shape suffixes: T dates, C bands, H rows, W columns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.earth import materials
from ramen_jax.earth.ground import LANDSCAPES
from ramen_jax.earth.scene import Scene
from ramen_jax.samples import CorpusSpec, Image, ModalitySpec, Sample
from ramen_jax.sensors import Band, Sensor, sensor

LABEL_SCHEMES = ("cosia", "worldcover", "lpis", "material")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a corpus chose and delivered its images.

    Attributes:
      region: "france" or "world".
      cloudy: share of the dates of an optical series that carry clouds.
      toa_share: share of places whose single-date Sentinel-2 is level 1C (top of the atmosphere).
      cross_polar_only: radar delivers VV and VH; HH and HV planes are absent.
      missing_orbit: share of places without one of the two orbits, where a sensor has both.
    """

    region: str = "world"
    cloudy: float = 0.2
    toa_share: float = 0.0
    cross_polar_only: bool = True
    missing_orbit: float = 0.0


_RECIPES = {
    "flairhub": Recipe("france", cloudy=0.1),
    "mmearth": Recipe("world", toa_share=0.55, missing_orbit=0.15),
    "worldstrat": Recipe("world", cloudy=0.3),
    "tiny": Recipe("france", cloudy=0.1),
}

# Corpus -> modality -> (sensor, pixels, dtype, longest series or 0).
_GEOMETRIES: dict[str, dict[str, tuple[str, int, str, int]]] = {
    "flairhub": {
        "aerial": ("flairhub_aerial", 512, "uint8", 0),
        "dem": ("flairhub_dem", 512, "float32", 0),
        "s2": ("flairhub_s2", 10, "uint16", 8),
        "s1_des": ("flairhub_s1_des", 10, "float32", 8),
    },
    "flairhub_small": {
        "aerial": ("flairhub_aerial", 256, "uint8", 0),
        "dem": ("flairhub_dem", 256, "float32", 0),
        "s2": ("flairhub_s2", 5, "uint16", 6),
        "s1_des": ("flairhub_s1_des", 5, "float32", 6),
    },
    "mmearth": {
        "dem": ("mmearth_dem", 64, "int16", 0),
        "s2": ("mmearth_s2", 64, "uint16", 0),
        "s1": ("mmearth_s1", 64, "float32", 0),
    },
    "mmearth_small": {
        "dem": ("mmearth_dem", 24, "int16", 0),
        "s2": ("mmearth_s2", 24, "uint16", 0),
        "s1": ("mmearth_s1", 24, "float32", 0),
    },
    "worldstrat": {
        "spot": ("worldstrat_spot", 263, "uint16", 0),
        "s2": ("worldstrat_s2", 39, "float32", 8),
    },
    "worldstrat_small": {
        "spot": ("worldstrat_spot", 80, "uint16", 0),
        "s2": ("worldstrat_s2", 12, "float32", 4),
    },
    "tiny": {
        "aerial": ("flairhub_aerial", 256, "uint8", 0),
        "dem": ("tiny_dem", 64, "float32", 0),
        "spot": ("flairhub_spot", 32, "uint16", 0),
        "s2": ("flairhub_s2", 5, "uint16", 6),
        "s1_des": ("flairhub_s1_des", 5, "float32", 4),
    },
}
CORPORA = tuple(_GEOMETRIES)


def corpus_spec(
    name: str, *, max_dates: int | None = None, modalities: Sequence[str] | None = None
) -> CorpusSpec:
    """The spec of a synthetic corpus: one of `CORPORA`.

    Args:
      max_dates: longest series instead of the default (FLAIR-HUB really has about 90 dates).
      modalities: only these, in this order.
    Errors: UserError on an unknown corpus or modality, listing close ones.
    """
    if name not in _GEOMETRIES:
        raise UserError(f"unknown synthetic corpus {name!r}; {close_names(name, _GEOMETRIES)}", USAGE)
    if max_dates is not None and not 1 <= max_dates <= 180:
        raise UserError(f"max_dates is {max_dates}, expected 1..180", USAGE)
    geometry = _GEOMETRIES[name]
    specs = []
    for modality in modalities or geometry:
        if modality not in geometry:
            raise UserError(
                f"synthetic corpus {name} has no modality {modality!r}; {close_names(modality, geometry)}",
                USAGE,
            )
        sensor_name, pixels, dtype, dates = geometry[modality]
        specs.append(
            ModalitySpec(
                name=modality,
                sensor=_sensor(sensor_name),
                height=pixels,
                width=pixels,
                series=dates > 0,
                max_dates=(max_dates or dates) if dates else 1,
                dtype=dtype,
            )
        )
    return CorpusSpec(name, tuple(specs))


def _sensor(name: str) -> Sensor:
    if name == "tiny_dem":
        return dataclasses.replace(sensor("flairhub_dem"), name="tiny_dem", gsd=0.8)
    return sensor(name)


def recipe(spec: CorpusSpec) -> Recipe:
    """The recipe of a spec, by the first word of its name; a plain one for names that are not of `CORPORA`."""
    return _RECIPES.get(spec.name.split("_")[0], Recipe())


def scene_of(seed: int, place: int, spec: CorpusSpec) -> Scene:
    """The scene under a place, fine enough for every modality of the spec."""
    if place < 0 or seed < 0:
        raise UserError(
            f"seed and place must be whole numbers from 0 on, found seed {seed}, place {place}", USAGE
        )
    height = max(modality.height * modality.sensor.gsd for modality in spec.modalities)
    width = max(modality.width * modality.sensor.gsd for modality in spec.modalities)
    finest = min(modality.sensor.gsd for modality in spec.modalities)
    # A coarse sensor needs a scene finer than its pixels, or there would be nothing to integrate.
    gsd = finest / 4 if finest > 4 else finest / 2 if finest > 2 else finest
    return Scene(seed, place, (height, width), gsd, recipe(spec).region)


def render_place(seed: int, place: int, spec: CorpusSpec) -> Sample:
    """One place in the geometry of a spec.

    Args:
      seed, place: whole numbers from 0 on; they decide every byte.
      spec: of `corpus_spec`, or any other: band meanings, GSD, sizes, dtypes, series and `has_valid` are honoured.

    Returns a Sample: images in the spec's order, location, and in `extra`
      landscape (a key of ground.LANDSCAPES), label (its number),
      worldcover ({class: share of the ground}), clouds ({modality: cloud share per date}), variant (MMEarth: l1c, l2a).
    Errors: UserError on units that cannot be rendered, naming the sensor.
    """
    return Place(seed, place, spec).sample()


def render_labels(
    seed: int, place: int, spec: CorpusSpec, modality: str, scheme: str = "cosia"
) -> np.ndarray:
    """Class of each pixel [H, W] uint8 on the grid of a modality. Schemes: LABEL_SCHEMES."""
    if scheme not in LABEL_SCHEMES:
        raise UserError(f"unknown label scheme {scheme!r}; {close_names(scheme, LABEL_SCHEMES)}", USAGE)
    grid = spec.modality(modality)
    return scene_of(seed, place, spec).labels(grid.height, grid.width, grid.sensor.gsd, scheme)


class SyntheticCorpus(Sequence[Sample]):
    """Places first_place .. first_place + places - 1 of a spec, rendered when asked for."""

    def __init__(self, spec: CorpusSpec, places: int, seed: int = 0, first_place: int = 0) -> None:
        self.spec, self.places, self.seed, self.first_place = spec, places, seed, first_place

    def __len__(self) -> int:
        return self.places

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"place {index} of {len(self)}")
        return render_place(self.seed, self.first_place + index % len(self), self.spec)


class Place:
    """One place seen by the sensors of a spec; `render_place` for callers who also want the scene and the clouds.

    Attributes:
      scene: the ground.
      level: "l1c" or "l2a", of single-date Sentinel-2.
      cloud: opacity [T, H, W] (0..1) of each optical modality, filled by `sample`.
    """

    def __init__(self, seed: int, place: int, spec: CorpusSpec, how: Recipe | None = None) -> None:
        self.spec, self.recipe = spec, how or recipe(spec)
        self.scene = scene_of(seed, place, spec)
        self.cloud: dict[str, np.ndarray] = {}
        rng = self.scene.generator("dates")
        self.day = int(rng.integers(110, 280))  # the one season of all single-date images
        self.level = "l1c" if rng.random() < self.recipe.toa_share else "l2a"
        self.missing_orbit = ""
        if rng.random() < self.recipe.missing_orbit:
            self.missing_orbit = "asc" if rng.random() < 0.5 else "des"

    def sample(self) -> Sample:
        images = {modality.name: self._image(modality) for modality in self.spec.as_declared()}
        classes, counts = np.unique(
            self.scene.labels(*self.scene.shape, self.scene.gsd, "worldcover"), return_counts=True
        )
        extra = {
            "landscape": self.scene.landscape,
            "label": list(LANDSCAPES).index(self.scene.landscape),
            "worldcover": {str(c): round(float(n / counts.sum()), 4) for c, n in zip(classes, counts)},
            "clouds": {
                name: np.round(cloud.mean((1, 2), dtype=np.float64), 3).tolist()
                for name, cloud in self.cloud.items()
            },
        }
        if self.recipe.toa_share:
            extra["variant"] = {"s2": self.level}
        seed, place = self.scene.key
        return Sample(f"synthetic-{seed}-{place:07d}", images, self.scene.location, extra)

    def _image(self, modality: ModalitySpec) -> Image:
        seen_by = modality.sensor
        rng = self.scene.generator(modality.name)
        days_T = self._days(rng, modality)
        physical = np.zeros((len(days_T), len(seen_by.bands), modality.height, modality.width), np.float32)
        kinds = {band.kind for band in seen_by.bands}
        absent = np.array([self._is_absent(band) for band in seen_by.bands])
        if "optical" in kinds:
            channels = [band.kind == "optical" for band in seen_by.bands]
            physical[:, channels] = self._optical(rng, modality, days_T)
        if "radar" in kinds:
            self._radar(rng, modality, days_T, physical)
        for channel, band in enumerate(seen_by.bands):
            if band.elevation is not None:
                physical[:, channel] = self.scene.elevation(
                    band.elevation, modality.height, modality.width, seen_by.gsd
                )
        values = np.empty(physical.shape, modality.dtype)
        for channel in range(len(seen_by.bands)):
            values[:, channel] = (
                0 if absent[channel] else encode(physical[:, channel], seen_by, channel, modality.dtype)
            )
        valid = self._swath(rng, modality, len(days_T)) if modality.has_valid else None
        if valid is not None:
            values *= valid[:, None]
        return Image(values, days_T.astype(np.int16), ~absent, valid)

    def _days(self, rng: np.random.Generator, modality: ModalitySpec) -> np.ndarray:
        """Days of the year, increasing: one, or an irregular series of a 5 or 6 day revisit."""
        if not modality.series:
            return np.array([self.day])
        revisit = 6 if any(band.radar for band in modality.sensor.bands) else 5
        passes = np.arange(int(rng.integers(1, revisit + 1)), 366, revisit)
        longest = min(modality.max_dates, len(passes))
        count = int(rng.integers(max(1, -(-longest * 6 // 10)), longest + 1))
        return np.sort(rng.choice(passes, count, replace=False))

    def _is_absent(self, band: Band) -> bool:
        if band.radar is not None:
            orbit, polarisation = band.radar.split("_")
            return orbit == self.missing_orbit or (self.recipe.cross_polar_only and polarisation[0] == "h")
        # Level 2A has no cirrus band.
        return band.wavelength_nm is not None and self._has_cirrus(band) and self.level == "l2a"

    def _has_cirrus(self, band: Band) -> bool:
        return (
            self.recipe.toa_share > 0
            and band.wavelength_nm is not None
            and 1350 <= band.wavelength_nm <= 1400
        )

    def _optical(self, rng: np.random.Generator, modality: ModalitySpec, days_T: np.ndarray) -> np.ndarray:
        """Reflectance [T, C optical, H, W] with clouds and noise."""
        seen_by = modality.sensor
        eyes = seen_by.select([band.name for band in seen_by.bands if band.kind == "optical"])
        toa = self.level == "l1c" and self.recipe.toa_share > 0
        ground = self.scene.optical(eyes, modality.height, modality.width, days_T, toa)
        cloudy_T = rng.random(len(days_T)) < (self.recipe.cloudy if modality.series else 0.0)
        cloud_TxHxW = clouds(rng, cloudy_T, modality.height, modality.width, seen_by.gsd)
        if cloudy_T.any():
            white_C = materials.endmember_reflectance(eyes, toa)[materials.ENDMEMBERS.index("cloud")]
            alpha = cloud_TxHxW[:, None]
            shadow = np.roll(cloud_TxHxW, (2, -2), (1, 2))[:, None]
            bright = white_C.astype(np.float32)[:, None, None] * (0.75 + 0.35 * alpha)
            ground = ground * (1 - 0.45 * shadow) * (1 - alpha) + alpha * bright
        noise = rng.standard_normal(ground.shape, dtype=np.float32)
        ground += noise * (0.0015 + 0.006 * ground)
        self.cloud[modality.name] = cloud_TxHxW
        return np.maximum(ground, 0.0)

    def _radar(
        self, rng: np.random.Generator, modality: ModalitySpec, days_T: np.ndarray, out: np.ndarray
    ) -> None:
        """Backscatter with speckle (about five looks), linear power, into the radar channels of `out`."""
        moisture_T = np.clip(rng.normal(0, 0.6, len(days_T)), -1, 1)
        wind_T = rng.beta(1.5, 3, len(days_T))
        shape = (len(days_T), modality.height, modality.width)
        for channel, band in enumerate(modality.sensor.bands):
            if band.radar is not None:
                mean = self.scene.radar(
                    band.radar, *shape[1:], modality.sensor.gsd, days_T, moisture_T, wind_T
                )
                out[:, channel] = mean * rng.gamma(5.0, 0.2, shape).astype(np.float32)

    def _swath(self, rng: np.random.Generator, modality: ModalitySpec, dates: int) -> np.ndarray:
        """Validity [T, H, W]: on about one date in six, the edge of the swath crosses the image."""
        valid = np.ones((dates, modality.height, modality.width), bool)
        y, x = np.mgrid[0 : modality.height, 0 : modality.width]
        for date in np.flatnonzero(rng.random(dates) < 1 / 6):
            cut = rng.uniform(0.1, 0.6) * modality.width
            valid[date] = x + 0.25 * y > cut
        return valid


def clouds(rng: np.random.Generator, cloudy_T: np.ndarray, height: int, width: int, gsd: float) -> np.ndarray:
    """Cloud opacity [T, H, W], 0..1: zero on clear dates, fields of about 600 m otherwise."""
    opacity = np.zeros((len(cloudy_T), height, width), np.float32)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) * np.float32(2 * np.pi * gsd)
    for date in np.flatnonzero(cloudy_T):
        total = np.zeros((height, width), np.float32)
        for octave in range(5):
            for _ in range(2):
                length, angle, phase = 600 / 1.9**octave, rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
                wave = (x * np.cos(angle) + y * np.sin(angle)) / length + phase
                total += 0.62**octave * np.sin(wave).astype(np.float32)
        opacity[date] = np.clip(rng.uniform(0.1, 0.9) + 0.55 * total, 0, 1)
    return opacity


def encode(physical: np.ndarray, seen_by: Sensor, channel: int, dtype: str) -> np.ndarray:
    """Scene quantities (reflectance 0..1, linear power, metres, degrees) as the numbers a file of this sensor holds.

    The sensor's units decide; "m, degrees" gives each band its own. Integers are rounded towards zero for elevation, as
    MMEarth does, to the nearest otherwise; they never take the no-data value.
    """
    units = seen_by.units.split(", ")
    unit = units[channel] if len(units) == len(seen_by.bands) else seen_by.units
    if unit not in _TO_UNITS:
        raise UserError(
            f"sensor {seen_by.name}: the procedural Earth cannot render units {unit!r}; {close_names(unit, _TO_UNITS)}",
            USAGE,
        )
    values = (_TO_UNITS[unit](physical, seen_by.bands[channel]) - seen_by.offset) / seen_by.scale
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return values.astype(kind)
    limits = np.iinfo(kind)
    low = max(limits.min, 1) if seen_by.nodata == 0 else limits.min
    whole = np.trunc(values) if seen_by.bands[channel].kind == "elevation" else np.rint(values)
    return np.clip(whole, low, limits.max).astype(kind)


def camera(reflectance: np.ndarray, band: Band) -> np.ndarray:
    """8-bit numbers of an aerial camera: exposed per band (near infrared less), with a display-like tone curve."""
    white = np.interp(band.wavelength_nm or 0.0, (480, 640, 720, 810), (0.26, 0.31, 0.45, 1.0))
    exposed = np.sqrt(np.clip(reflectance / np.float32(white), 0, 1))
    return 255 * exposed * np.sqrt(np.sqrt(np.sqrt(exposed)))  # the power 0.5625


_TO_UNITS = {
    "reflectance": lambda reflectance, band: reflectance,
    "reflectance x 10000": lambda reflectance, band: reflectance * 10_000,
    "Rayleigh-corrected reflectance": lambda reflectance, band: reflectance,
    "DN (12 bit)": lambda reflectance, band: np.minimum(reflectance * 8_000, 4095),
    "DN (uint8)": camera,
    "dB": lambda power, band: 10 * np.log10(np.maximum(power, 1e-5)),
    "linear backscatter": lambda power, band: power,
    "m": lambda metres, band: metres,
    "degrees": lambda degrees, band: degrees,
}


@functools.cache
def legend(scheme: str = "worldcover") -> dict[int, str]:
    """Materials behind each class number of a label scheme, for legends of pictures."""
    names: dict[int, list[str]] = {}
    for index, (name, material) in enumerate(materials.MATERIALS.items()):
        names.setdefault(index if scheme == "material" else getattr(material, scheme), []).append(name)
    return {number: " / ".join(group) for number, group in sorted(names.items())}
