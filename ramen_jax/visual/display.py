"""From the bands of any sensor to something an eye can read: true colour, false colour, backscatter, relief.

numpy only. A `Look` says how one modality is shown. It is fitted on the original image and then applied to the
original and to its reconstruction alike, so that the two can be compared.

Shape letters: C bands, H rows, W columns.
"""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ramen_jax.sensors import Sensor

RED, GREEN, BLUE, NIR = 660.0, 560.0, 485.0, 840.0  # nm
TOLERANCE = 70.0  # nm between a colour and the band that stands for it
MANY_BANDS = 6  # a sensor with as many optical bands is shown in false colour too
LEAST_CONTRAST = 0.5  # standard deviations of the corpus between the limits of an optical band
HIDDEN = (0.86, 0.86, 0.88)  # colour of what the encoder did not see
SHADE = 0.55  # how much darker than its own colour a slope in full shade is


@dataclass(frozen=True)
class Look:
    """How one modality is shown.

    Attributes:
        title: what is shown, in two lines: `true colour`, `(B4, B3, B2)`.
        kind: `colour`, `radar`, `relief` or `grey`.
        bands: the channels used, three for `colour`, one otherwise.
        limits: lowest and highest value shown, per channel used, in the units shown.
        unit: the units shown; empty for colour.
        linear_power: radar values are linear power and are shown in dB.
        gsd: metres per pixel.
    """

    title: str
    kind: str
    bands: tuple[int, ...]
    limits: tuple[tuple[float, float], ...]
    unit: str
    linear_power: bool
    gsd: float

    def values(self, physical_CxHxW: np.ndarray) -> np.ndarray:
        """The channels shown, [H, W, 3] or [H, W], in the units shown."""
        return _shown(physical_CxHxW, self.bands, self.linear_power)

    def picture(self, physical_CxHxW: np.ndarray) -> np.ndarray:
        """[H, W, 3] colours in 0..1."""
        values = self.values(physical_CxHxW)
        low, high = np.array(self.limits).T
        if self.kind == "colour":
            return np.clip((values - low) / (high - low), 0, 1)
        shade = np.clip((values - low[0]) / (high[0] - low[0]), 0, 1)
        colours = colour_map(self.kind)(shade)[..., :3]
        return colours * hillshade(values, self.gsd)[..., None] if self.kind == "relief" else colours


def looks(sensor: Sensor, physical_CxHxW: np.ndarray, valid_HxW: np.ndarray | None = None) -> list[Look]:
    """The ways to show an image of this sensor.

    Limits are the 2nd and 98th percentile of its valid pixels, but optical ones lie at least half a standard deviation
    of the corpus apart: an image without contrast is shown without contrast.
    """
    found: list[tuple[str, str, tuple[int, ...]]] = []
    names = [band.name for band in sensor.bands]
    red, green, blue, nir = (_nearest(sensor, colour) for colour in (RED, GREEN, BLUE, NIR))
    optical = [i for i, band in enumerate(sensor.bands) if band.kind == "optical"]
    if red is not None and green is not None and blue is not None:
        found.append(("true colour", "colour", (red, green, blue)))
    if (
        nir is not None
        and red is not None
        and green is not None
        and (not found or len(optical) >= MANY_BANDS)
    ):
        found.append(("false colour", "colour", (nir, red, green)))
    if optical and not found:
        found.append((names[optical[0]], "grey", (optical[0],)))
    for kind, label in (("radar", "radar"), ("elevation", "relief")):
        first = next((i for i, band in enumerate(sensor.bands) if band.kind == kind), None)
        if first is not None:
            found.append(("backscatter" if kind == "radar" else "relief", label, (first,)))
    result = []
    for title, kind, bands in found:
        linear = kind == "radar" and "db" not in sensor.units.lower()
        shown = _shown(physical_CxHxW, bands, linear)
        shown = shown.reshape(*shown.shape[:2], -1)
        pixels = (
            shown[valid_HxW] if valid_HxW is not None and valid_HxW.any() else shown.reshape(-1, len(bands))
        )
        unit = {"radar": "dB", "colour": ""}.get(kind, sensor.units)
        listed = ", ".join(names[band] for band in bands)
        apart = [0.0] * len(bands)
        if sensor.std is not None and kind in ("colour", "grey"):
            apart = [LEAST_CONTRAST * sensor.std[band] for band in bands]
        limits = tuple(_limits(pixels[:, channel], apart[channel]) for channel in range(len(bands)))
        result.append(Look(f"{title}\n({listed})", kind, bands, limits, unit, linear, sensor.gsd))
    return result


def hide(picture_HxWx3: np.ndarray, hidden_HxW: np.ndarray) -> np.ndarray:
    """The picture with the hidden pixels greyed out."""
    return np.where(hidden_HxW[..., None], np.array(HIDDEN), picture_HxWx3)


def stretch(values_CxHxW: np.ndarray, like_CxHxW: np.ndarray, bands: tuple[int, ...]) -> np.ndarray:
    """Bands of an array without units in 0..1, [H, W, 3] or [H, W], between the limits of another array."""
    low, high = np.array([_limits(like_CxHxW[band]) for band in bands]).T[:, :, None, None]
    shown = np.clip((values_CxHxW[list(bands)] - low) / (high - low), 0, 1)
    return np.moveaxis(shown, 0, -1) if len(bands) == 3 else shown[0]


def hillshade(height_HxW: np.ndarray, gsd: float) -> np.ndarray:
    """Light on a relief from the north-west, 45 degrees high: [H, W] from 1 - SHADE to 1.

    Slopes are exaggerated until the steeper parts of the image are clearly shaded: lowlands have form too.
    """
    if min(height_HxW.shape) < 2:
        return np.ones_like(height_HxW)
    down, across = np.gradient(height_HxW.astype(np.float64), gsd)
    steep = np.percentile(np.hypot(down, across), 90)
    exaggeration = 0.8 / max(steep, 1e-6) if steep > 1e-6 else 1.0
    down, across = down * exaggeration, across * exaggeration
    # Surface normal (-dz/dx, -dz/dy, 1); light from x = -1 (west), y = -1 (north: rows grow southwards).
    light = (across + down + math.sqrt(2)) / (2 * np.sqrt(1 + across**2 + down**2))
    return 1 - SHADE * (1 - np.clip(light, 0, 1))


def colour_map(kind: str) -> Any:
    """The matplotlib colour map of a kind of picture."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    if kind == "relief":  # without its deep sea and its white: neither would show the shading
        return ListedColormap(colormaps["gist_earth"](np.linspace(0.32, 0.93, 256)))
    return colormaps["gray"]


def day_of_year(day: int) -> str:
    """`day 187 (6 Jul)`; empty for an unknown day (0)."""
    if not day:
        return ""
    date = datetime.date(2001, 1, 1) + datetime.timedelta(days=int(day) - 1)
    return f"day {day} ({date.day} {date:%b})"


def _nearest(sensor: Sensor, wavelength: float) -> int | None:
    distances = [
        (abs(band.wavelength_nm - wavelength), i)
        for i, band in enumerate(sensor.bands)
        if band.wavelength_nm is not None
    ]
    distance, index = min(distances, default=(math.inf, -1))
    return index if distance <= TOLERANCE else None


def _shown(physical_CxHxW: np.ndarray, bands: tuple[int, ...], linear_power: bool) -> np.ndarray:
    values = np.moveaxis(physical_CxHxW[list(bands)].astype(np.float64), 0, -1)
    if linear_power:
        values = 10 * np.log10(np.maximum(values, 1e-4))
    return values if len(bands) == 3 else values[..., 0]


def _limits(values: np.ndarray, apart: float = 0.0) -> tuple[float, float]:
    low, high = (float(v) for v in np.percentile(values, (2, 98)))
    missing = max(0.0, apart - (high - low)) / 2
    low, high = low - missing, high + missing
    if high - low < 1e-6 * max(1.0, abs(high)):
        return low - 0.5, high + 0.5
    return low, high
