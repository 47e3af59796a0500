"""What the procedural Earth is made of: spectra, phenology and radar backscatter of its materials.

A material is a mixture of a few endmember spectra (leaf, dry straw, soil, water, ...) whose shares follow the day of
the year. Spectra are coarse readings typical of public spectral libraries: right in shape (chlorophyll, red edge,
water absorption), not measurements of any one surface.

Legend of shape suffixes: T days, K materials, E endmembers, C bands.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from ramen_jax.sensors import Sensor

# Wavelengths (nm) of the readings below.
_KNOTS = (400, 450, 490, 560, 610, 675, 705, 740, 800, 900, 970, 1100, 1200, 1450, 1650, 1950, 2200, 2500)
# fmt: off
_SPECTRA = {  # reflectance in percent
    "leaf":     (2.5, 3, 4, 8.5, 5.5, 3.5, 12, 35, 46, 48, 45, 47, 43, 12, 27, 5, 13, 7),
    "needle":   (2, 2.2, 2.8, 5, 3.5, 2.6, 7, 21, 28, 29, 27, 28, 25, 7, 14, 3, 6.5, 3.5),
    "straw":    (6, 8.5, 11, 17, 22, 26, 29, 31, 34, 38, 39, 42, 42, 33, 44, 27, 33, 26),
    "flower":   (3, 4, 6, 21, 25, 20, 27, 38, 47, 49, 47, 48, 44, 15, 29, 8, 15, 9),
    "soil":     (5, 6.2, 7.6, 11, 14.5, 17.5, 19, 20.5, 22.5, 25, 26, 29, 31, 28, 36, 26, 33, 29),
    "sand":     (11, 15, 19, 26, 31, 35, 37, 38, 40, 43, 44, 47, 49, 46, 53, 44, 50, 45),
    "rock":     (11, 13, 15, 18, 19.5, 20.5, 21, 21.5, 22, 23, 23.5, 25, 26, 26, 28, 26, 28, 26),
    "water":    (4.5, 5, 5, 4.6, 2.8, 1.8, 1.3, 0.9, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05, 0.05, 0.02, 0.02, 0.02),
    "silt":     (4, 5, 6.5, 10, 9, 7, 6, 3.5, 3, 2.2, 1.2, 1, 0.5, 0.1, 0.1, 0.05, 0.05, 0.05),
    "asphalt":  (6, 7, 7.6, 8.6, 9.2, 9.8, 10, 10.2, 10.6, 11, 11.2, 12, 12.3, 12.6, 13.2, 13, 14, 14),
    "gravel":   (14, 17, 19, 23, 25.5, 27.5, 28, 28.5, 29, 30, 30.5, 32, 33, 32, 35, 31, 33, 31),
    "tile":     (5, 6, 7.2, 10.5, 17, 23.5, 25, 26, 28, 31, 32, 34, 35, 36, 40, 38, 40, 38),
    "slate":    (7.5, 8.5, 9, 9.4, 9.4, 9.3, 9.3, 9.5, 10, 10.5, 10.8, 11.5, 12, 12.4, 13, 13, 13.5, 13.5),
    "metal":    (27, 34, 38, 42, 43.5, 44, 44, 44, 44, 43, 43, 42, 42, 41, 40, 38, 37, 35),
    "pool":     (12, 24, 30, 28, 11, 4.5, 3, 1.5, 1, 0.6, 0.4, 0.3, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05),
    "snow":     (91, 94, 95, 95, 94, 93, 92, 90, 88, 83, 77, 68, 48, 5, 8, 2, 5, 3),
    "cloud":    (78, 78, 78, 77, 77, 76, 76, 75, 74, 72, 70, 70, 66, 45, 52, 30, 42, 35),
}
# fmt: on
ENDMEMBERS = tuple(_SPECTRA)


class Material(NamedTuple):
    """One surface.

    Attributes:
      base: endmember shares of the surface without its growing vegetation.
      growth: name of a curve of `growth_curves`, or "" when nothing grows on it.
      plant: endmember of the growing vegetation.
      cover: share of the ground the vegetation hides at full growth.
      height: metres above ground (trees and buildings get their own shapes on top).
      backscatter: (vv, vh) in dB without vegetation; growing: dB added at full growth (vv, vh).
      cosia, worldcover, lpis: class numbers of FLAIR-HUB (COSIA, LPIS level 1) and ESA WorldCover.
    """

    base: dict[str, float]
    growth: str
    plant: str
    cover: float
    height: float
    backscatter: tuple[float, float]
    growing: tuple[float, float]
    cosia: int
    worldcover: int
    lpis: int = 22


# fmt: off
MATERIALS: dict[str, Material] = {
    "water":      Material({"water": .75, "silt": .25}, "", "leaf", 0, 0, (-20, -27), (0, 0), 6, 80),
    "tile roof":  Material({"tile": 1}, "", "leaf", 0, 0, (-4, -12), (0, 0), 0, 50),
    "slate roof": Material({"slate": 1}, "", "leaf", 0, 0, (-4, -12), (0, 0), 0, 50),
    "metal roof": Material({"metal": .9, "slate": .1}, "", "leaf", 0, 0, (-1, -10), (0, 0), 0, 50),
    "greenhouse": Material({"metal": .6, "leaf": .4}, "", "leaf", 0, 0, (-5, -14), (0, 0), 1, 50),
    "pool":       Material({"pool": 1}, "", "leaf", 0, 0, (-18, -26), (0, 0), 2, 50),
    "asphalt":    Material({"asphalt": 1}, "", "leaf", 0, 0, (-14, -22), (0, 0), 3, 50),
    "gravel":     Material({"gravel": .8, "soil": .2}, "", "leaf", 0, 0, (-12, -20), (0, 0), 4, 50),
    "bare soil":  Material({"soil": 1}, "sparse", "leaf", .2, 0, (-11, -19), (.5, 1), 5, 60),
    "sand":       Material({"sand": .8, "rock": .2}, "sparse", "leaf", .1, 0, (-14, -23), (.3, .5), 5, 60),
    "rock":       Material({"rock": .85, "soil": .15}, "sparse", "leaf", .15, 0, (-9, -16), (.3, .5), 5, 60),
    "snow":       Material({"snow": 1}, "", "leaf", 0, 0, (-14, -21), (0, 0), 7, 70),
    "grass":      Material({"soil": .35, "straw": .65}, "grass", "leaf", .9, .1, (-12, -19), (1, 1.5), 8, 30, 0),
    "lawn":       Material({"soil": .5, "straw": .5}, "grass", "leaf", .85, .05, (-12, -19), (.7, 1), 8, 30),
    "wheat":      Material({"soil": .75, "straw": .25}, "wheat", "leaf", .95, .4, (-11, -19), (-2.5, .5), 9, 40, 1),
    "barley":     Material({"soil": .7, "straw": .3}, "barley", "leaf", .93, .4, (-11, -19), (-2, 1), 9, 40, 2),
    "maize":      Material({"soil": .9, "straw": .1}, "maize", "leaf", .95, .9, (-11, -19), (2, 4), 9, 40, 3),
    "sunflower":  Material({"soil": .9, "straw": .1}, "sunflower", "leaf", .9, .8, (-11, -19), (2.5, 4), 9, 40, 7),
    "rapeseed":   Material({"soil": .85, "straw": .15}, "rapeseed", "leaf", .95, .7, (-11, -19), (1.5, 4.5), 9, 40, 8),
    "plowed":     Material({"soil": 1}, "catch crop", "leaf", .5, 0, (-10, -18), (-.5, .5), 10, 40),
    "vineyard":   Material({"soil": .7, "straw": .3}, "vine", "leaf", .5, .8, (-9, -17), (.5, 1), 11, 40, 16),
    "brushwood":  Material({"soil": .5, "straw": .5}, "brush", "needle", .8, .8, (-10, -16), (.7, 1), 14, 20),
    "deciduous":  Material({"soil": .6, "straw": .4}, "deciduous", "leaf", .92, 2, (-9, -15), (.6, .8), 12, 10),
    "coniferous": Material({"needle": 1}, "", "needle", 0, 2, (-8.5, -14.5), (0, 0), 13, 10),
}
# fmt: on
NAMES = tuple(MATERIALS)
INDEX = {name: index for index, name in enumerate(NAMES)}


def growth_curves(days_T: np.ndarray, south: bool = False) -> dict[str, np.ndarray]:
    """Share of full growth, 0..1, per curve and day of year; half a year later in the southern hemisphere."""
    day = (np.asarray(days_T, np.float64) + (182.5 if south else 0.0)) % 365.0

    def season(rise: float, fall: float, ramp: float = 12.0, drop: float = 8.0) -> np.ndarray:
        return 1 / (1 + np.exp(-(day - rise) / ramp)) / (1 + np.exp((day - fall) / drop))

    return {
        "sparse": 0.3 + 0.7 * season(90, 190, 25, 25),
        "grass": 0.45 + 0.55 * season(75, 330, 20, 25) * (1 - 0.45 * np.exp(-(((day - 215) / 35) ** 2))),
        "wheat": np.maximum(season(95, 188), 0.25 * (day > 310) + 0.25 * season(-20, 95, 20, 20)),
        "barley": np.maximum(season(85, 172), 0.3 * (day > 305) + 0.3 * season(-20, 85, 20, 20)),
        "maize": season(165, 262, 10, 10),
        "sunflower": season(150, 230, 10, 10),
        "rapeseed": np.maximum(season(70, 178, 12, 9), 0.5 * (day > 270) + 0.5 * season(-20, 70, 20, 20)),
        "catch crop": 0.8 * season(270, 340, 12, 10),
        "vine": season(125, 300, 14, 12),
        "brush": 0.5 + 0.5 * season(90, 290, 20, 25),
        "deciduous": season(112, 302, 9, 11),
    }


def endmember_shares(days_T: np.ndarray, south: bool, snow_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares [T, K, E] of every material, and their change [T, K, E] per unit of a pixel's vigour.

    snow_T: share of the open ground under snow, 0..1.
    """
    curves = growth_curves(days_T, south)
    day = (np.asarray(days_T) + (182.5 if south else 0.0)) % 365.0
    flowering_T = np.exp(-(((day - 118) / 14) ** 2))
    shares_TxKxE = np.zeros((len(days_T), len(NAMES), len(ENDMEMBERS)))
    change_TxKxE = np.zeros_like(shares_TxKxE)
    end = {name: index for index, name in enumerate(ENDMEMBERS)}
    for k, material in enumerate(MATERIALS.values()):
        grown_T = material.cover * curves[material.growth] if material.growth else np.zeros(len(days_T))
        for name, share in material.base.items():
            shares_TxKxE[:, k, end[name]] += share * (1 - grown_T)
            change_TxKxE[:, k, end[name]] -= 0.25 * share * grown_T
        plant = end[material.plant]
        shares_TxKxE[:, k, plant] += grown_T
        change_TxKxE[:, k, plant] += 0.25 * grown_T
        if material.growth == "rapeseed":
            shares_TxKxE[:, k, end["flower"]] += 0.85 * grown_T * flowering_T
            shares_TxKxE[:, k, plant] -= 0.85 * grown_T * flowering_T
        if material.growth == "deciduous":  # autumn colours
            autumn_T = 0.7 * grown_T * np.exp(-(((day - 295) / 16) ** 2))
            shares_TxKxE[:, k, end["straw"]] += autumn_T
            shares_TxKxE[:, k, plant] -= autumn_T
        if material.cosia not in (2, 6):  # snow melts on water
            white_T = (snow_T * (0.4 if material.height >= 2 else 0.95))[:, None]
            shares_TxKxE[:, k] *= 1 - white_T
            shares_TxKxE[:, k, end["snow"]] += white_T[:, 0]
            change_TxKxE[:, k] *= 1 - white_T
    return shares_TxKxE, change_TxKxE


@functools.lru_cache(maxsize=256)
def endmember_reflectance(sensor: Sensor, toa: bool = False) -> np.ndarray:
    """Reflectance [E, C] (0..1) of the endmembers in the optical bands of a sensor, integrated over their response.

    The registry knows centres only, so the response is a Gaussian with a width typical of multispectral instruments:
    FWHM 4 % of the wavelength, at least 20 nm. `toa` lets the water vapour band at 1370 nm absorb, as seen from orbit.
    """
    grid = np.arange(380.0, 2521.0, 4.0)
    spectra = np.stack([np.interp(grid, _KNOTS, values) for values in _SPECTRA.values()]) / 100
    if toa:
        spectra = spectra * (1 - 0.995 * np.exp(-(((grid - 1380) / 70) ** 4)))
    columns = []
    for band in sensor.bands:
        if band.wavelength_nm is None:
            columns.append(np.zeros(len(spectra)))
            continue
        sigma = max(20.0, 0.04 * band.wavelength_nm) / 2.355
        response = np.exp(-0.5 * ((grid - np.clip(band.wavelength_nm, 400, 2500)) / sigma) ** 2)
        columns.append(spectra @ (response / response.sum()))
    result = np.stack(columns, axis=1)
    result.flags.writeable = False
    return result


def path_reflectance(sensor: Sensor) -> np.ndarray:
    """Reflectance [C] that a clear atmosphere adds at the top (Rayleigh, with a little haze)."""
    wavelength = np.array([band.wavelength_nm or np.inf for band in sensor.bands])
    return 0.095 * (443.0 / wavelength) ** 4 + 0.012 * (443.0 / wavelength)


def backscatter(days_T: np.ndarray, south: bool, moisture_T: np.ndarray, wind_T: np.ndarray) -> np.ndarray:
    """Mean backscatter [T, K, 2] (vv, vh) as linear power.

    moisture_T: soil moisture, -1..1, worth up to 2 dB on open ground; wind_T: 0..1, up to 10 dB on water.
    """
    curves = growth_curves(days_T, south)
    db_TxKx2 = np.empty((len(days_T), len(NAMES), 2))
    for k, material in enumerate(MATERIALS.values()):
        grown_T = curves[material.growth] if material.growth else np.zeros(len(days_T))
        db_TxKx2[:, k] = np.array(material.backscatter) + grown_T[:, None] * np.array(material.growing)
        if material.cosia == 6:
            db_TxKx2[:, k] += 10 * wind_T[:, None]
        elif material.worldcover in (30, 40, 60):
            db_TxKx2[:, k] += 2 * (moisture_T * (1 - 0.6 * grown_T))[:, None]
    return 10 ** (db_TxKx2 / 10)
