"""The ground of the procedural Earth: terrain, fields, woods, houses, water, trees and their texture, from a seed.

Legend of shape suffixes: h, w rows and columns of the fine grid.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from ramen_jax.earth.materials import INDEX, MATERIALS, NAMES


class Landscape(NamedTuple):
    """Shares of the ground (0..1), relief (metres rms over one km), elevation range (m), size of fields (m)."""

    forest: float
    urban: float
    water: float
    wild: float
    conifers: float
    relief: float
    elevation: tuple[float, float]
    field: tuple[float, float]
    fields: dict[str, float]
    wilderness: str = "brushwood"


# fmt: off
_ARABLE = {"wheat": 3, "barley": 1.5, "maize": 2, "rapeseed": 1.5, "sunflower": 1, "plowed": 1, "grass": 1}
_PASTURE = {"grass": 6, "maize": 1.5, "wheat": 1.5, "plowed": 0.5}
LANDSCAPES = {
    "farmland": Landscape(.10, .02, .00, .00, .2, 6, (60, 200), (110, 260), _ARABLE),
    "bocage":   Landscape(.16, .05, .01, .04, .1, 12, (30, 300), (60, 120), _PASTURE),
    "village":  Landscape(.10, .40, .00, .02, .2, 8, (20, 300), (60, 140), _ARABLE),
    "suburb":   Landscape(.05, .85, .00, .00, .3, 5, (5, 200), (60, 100), _PASTURE),
    "forest":   Landscape(.80, .00, .01, .06, .4, 20, (100, 600), (90, 160), _PASTURE),
    "lake":     Landscape(.20, .06, .30, .03, .3, 12, (0, 400), (80, 160), _PASTURE),
    "vineyard": Landscape(.10, .07, .00, .12, .3, 18, (50, 350), (45, 110), {"vineyard": 6, "wheat": 1, "grass": 1}),
    "mountain": Landscape(.45, .00, .01, .38, .9, 90, (900, 2200), (90, 150), {"grass": 1}, "rock"),
    "desert":   Landscape(.00, .01, .00, .80, .1, 25, (100, 900), (90, 200), {"bare soil": 3, "grass": .3}, "sand"),
}
# fmt: on
_WEIGHTS = {
    "france": (3, 3, 2.5, 2, 2.5, 1.5, 1.5, 1, 0),
    "world": (3, 2, 2, 2, 3, 1.5, 1, 1.5, 2),
}
_REGIONS = {"france": ((-1.5, 7.0), (43.5, 50.0)), "world": ((-120.0, 150.0), (-38.0, 62.0))}
_CROWN = 7.0  # metres between trees
_TREES = {
    "deciduous": 0.95,
    "coniferous": 0.95,
    "lawn": 0.22,
    "grass": 0.02,
    "brushwood": 0.25,
    "gravel": 0.05,
}


class Ground:
    """A fine grid of land cover, heights and texture over a rectangle.

    Args:
      seed, place: same numbers, same scene.
      extent: (height, width) in metres.
      gsd: metres of the fine grid; images at a finer GSD than this cannot be asked for.
      region: "france" or "world": which landscapes and coordinates occur.
      landscape: a name of LANDSCAPES, or None to draw one.

    Attributes: `cover_hxw` (index into materials.NAMES), `dtm_hxw`, `dsm_hxw` (metres), `parcel_hxw` (field
    numbers), `location` (lon, lat), `landscape`.
    """

    def __init__(
        self,
        seed: int,
        place: int,
        extent: tuple[float, float],
        gsd: float,
        region: str = "world",
        landscape: str | None = None,
    ) -> None:
        self.key = (seed, place)
        self.gsd = gsd
        self.shape = (max(2, round(extent[0] / gsd)), max(2, round(extent[1] / gsd)))
        rng = self.generator("place")
        weights = np.array(_WEIGHTS[region]) / sum(_WEIGHTS[region])
        drawn = list(LANDSCAPES)[rng.choice(len(LANDSCAPES), p=weights)]
        self.landscape = landscape or drawn
        (west, east), (south, north) = _REGIONS[region]
        self.location = (round(rng.uniform(west, east), 5), round(rng.uniform(south, north), 5))
        self._kind = LANDSCAPES[self.landscape]
        self._make_terrain(self.generator("terrain"))
        self._make_cover(self.generator("cover"))
        self._make_trees(self.generator("trees"))
        self._make_texture(self.generator("texture"))

    def generator(self, purpose: str) -> np.random.Generator:
        """A random generator of its own per purpose, so that asking for one image never changes another."""
        seed, place = self.key
        return np.random.default_rng([seed, place, *purpose.encode()])

    # -- the ground --------------------------------------------------------------------------------------------------

    def _noise(
        self, rng: np.random.Generator, feature: float, octaves: int = 1, roughness: float = 0.5
    ) -> np.ndarray:
        """Smooth random field [h, w], mean 0 and standard deviation 1, with features of `feature` metres."""
        height, width = self.shape
        total = np.zeros(self.shape, np.float32)
        for octave in range(octaves):
            step = feature / self.gsd / 2**octave
            if octave and step < 2:
                break
            rows, columns = (max(1, round(side / step)) for side in self.shape)
            knots = rng.standard_normal((rows + 3, columns + 3), dtype=np.float32) * np.float32(
                roughness**octave
            )
            total += _spline(height, rows) @ knots @ _spline(width, columns).T
        total -= total.mean()
        return total / max(float(total.std()), 1e-6)

    def _make_terrain(self, rng: np.random.Generator) -> None:
        kind = self._kind
        side = max(self.shape) * self.gsd
        relief = kind.relief * (side / 1000) ** 0.8 * rng.uniform(0.6, 1.4)
        base = rng.uniform(*kind.elevation)
        self._rise_hxw = self._noise(rng, side / 1.5, octaves=7, roughness=0.42)
        level = np.quantile(self._rise_hxw[::3, ::3], min(0.9, kind.water * rng.uniform(0.4, 1.6)))
        self._water_hxw = self._rise_hxw < level if kind.water else np.zeros(self.shape, bool)
        self.dtm_hxw = (base + relief * np.maximum(self._rise_hxw, level if kind.water else -np.inf)).astype(
            np.float32
        )
        slope_y, slope_x = np.gradient(self.dtm_hxw, self.gsd)
        self.normal_hxw = (np.clip(-slope_x, -0.7, 0.7), np.clip(slope_y, -0.7, 0.7))  # towards east, north

    def _make_cover(self, rng: np.random.Generator) -> None:
        kind = self._kind
        height, width = self.shape
        side = max(self.shape) * self.gsd
        x = (np.arange(width, dtype=np.float32) + 0.5) * self.gsd
        y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) * self.gsd
        angle = rng.uniform(0, np.pi)
        bend = self._noise(rng, max(side / 2, 60)) * np.float32(min(0.05 * side, 12))
        u = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)) + bend
        v = y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle)) + bend[::-1]
        u -= u.min()
        v -= v.min()
        self._rows_hxw = u

        # Fields: strips of random width along u, each cut along v at its own pace.
        across, along = kind.field
        strip_hxw, edge_u_hxw = _cut(
            u, rng.uniform(0.6, 1.4, int(float(u.max()) / across / 0.6) + 2) * across
        )
        pace = (rng.uniform(0.6, 1.4, strip_hxw.max() + 1) * along).astype(np.float32)
        start = rng.uniform(0, along, len(pace)).astype(np.float32)
        place_v = (v + start[strip_hxw]) / pace[strip_hxw]
        piece_hxw = place_v.astype(np.int32)
        edge_v_hxw = (0.5 - np.abs(place_v - piece_hxw - 0.5)) * pace[strip_hxw]
        self.parcel_hxw = strip_hxw * (piece_hxw.max() + 1) + piece_hxw
        parcels = int(self.parcel_hxw.max()) + 1
        crops = np.array([INDEX[name] for name in kind.fields])
        share = np.array(list(kind.fields.values()))
        crop_of_parcel = crops[rng.choice(len(crops), parcels, p=share / share.sum())].astype(np.uint8)
        cover = crop_of_parcel[self.parcel_hxw]
        self._parcel_vigour = rng.normal(0, 0.5, parcels).astype(np.float32)
        self._parcel_tone = rng.normal(1, 0.07, parcels).astype(np.float32)

        # Wild ground, woods, houses, roads, water: each covers what came before it.
        height_hxw = np.zeros(self.shape, np.float32)
        edge_hxw = np.minimum(edge_u_hxw, edge_v_hxw)
        wild = self._noise(rng, max(side / 4, 25), octaves=4)
        if kind.field[0] > 80:
            cover[edge_hxw < 1.2] = INDEX["grass"]
        if kind.wild:
            open_ground = _top(wild, kind.wild * rng.uniform(0.5, 1.5))
            cover[open_ground] = INDEX[kind.wilderness]
            cover[open_ground & (self.dtm_hxw > 1900)] = INDEX["snow"]
        woods = self._noise(rng, max(side / 3, 40), octaves=4, roughness=0.45)
        needles = self._noise(rng, max(side / 3, 40), octaves=3)
        species = np.where(_top(needles, kind.conifers), INDEX["coniferous"], INDEX["deciduous"]).astype(
            np.uint8
        )
        forest = (
            _top(woods, kind.forest * rng.uniform(0.4, 1.6)) if kind.forest else np.zeros(self.shape, bool)
        )
        if kind.field[0] <= 80:  # hedges between small fields
            forest |= (edge_hxw < 2.2) & (wild > -0.6)
        cover[forest] = species[forest]
        settled = np.zeros(self.shape, bool)
        if kind.urban:
            town = self._noise(rng, max(side / 2, 80), octaves=2)
            settled = _top(town, kind.urban * rng.uniform(0.7, 1.2)) & ~self._water_hxw
            _build(rng, u, v, settled, cover, height_hxw)
        roads = rng.poisson(side / 260 + 0.25) + (1 if kind.urban > 0.3 else 0)
        for axis in rng.integers(0, 2, roads):
            along_road = u if axis else v
            middle = rng.uniform(0, float(along_road.max()))
            half = rng.uniform(2.2, 4.0)
            road = np.abs(along_road - np.float32(middle)) < half
            cover[road] = INDEX["asphalt"] if half > 2.6 else INDEX["gravel"]
            height_hxw[road] = 0
        cover[self._water_hxw] = INDEX["water"]
        height_hxw[self._water_hxw] = 0
        stand = np.array([material.height for material in MATERIALS.values()], np.float32)
        np.maximum(height_hxw, stand[cover], out=height_hxw)
        self.cover_hxw = cover
        self.height_hxw = height_hxw

    def _make_trees(self, rng: np.random.Generator) -> None:
        """Round and pointed crowns on a jittered lattice, wherever the ground carries trees."""
        density = np.array([_TREES.get(name, 0.0) for name in NAMES])
        height, width = self.shape
        rows, columns = (int(side * self.gsd / _CROWN) + 3 for side in self.shape)
        centre_y = (np.arange(rows)[:, None] - 0.5 + rng.uniform(-0.28, 0.28, (rows, columns))).astype(
            np.float32
        )
        centre_x = (np.arange(columns) - 0.5 + rng.uniform(-0.28, 0.28, (rows, columns))).astype(np.float32)
        at_y = np.clip((centre_y * _CROWN / self.gsd).astype(int), 0, height - 1)
        at_x = np.clip((centre_x * _CROWN / self.gsd).astype(int), 0, width - 1)
        under = self.cover_hxw[at_y, at_x]
        grows = rng.random((rows, columns)) < density[under]
        radius = np.where(grows, rng.uniform(0.36, 0.66, (rows, columns)), 1e-3).astype(np.float32)
        top = (rng.uniform(7, 17, (rows, columns)) * (radius / 0.6)).astype(np.float32)
        needles = under == INDEX["coniferous"]
        needles |= (under != INDEX["deciduous"]) & (rng.random((rows, columns)) < self._kind.conifers * 0.6)
        tone = rng.normal(1, 0.10, (rows, columns)).astype(np.float32)

        self._crown_tone_hxw = np.ones(self.shape, np.float32)
        if not grows.any():
            self.dsm_hxw = self.dtm_hxw + self.height_hxw
            return
        y = ((np.arange(height, dtype=np.float32) + 0.5) * self.gsd / _CROWN)[:, None]
        x = (np.arange(width, dtype=np.float32) + 0.5) * self.gsd / _CROWN
        cell_hxw = np.rint(y).astype(np.int32) * columns + np.rint(x).astype(np.int32)
        flat_height, flat_cover = self.height_hxw.ravel(), self.cover_hxw.ravel()
        flat_tone = self._crown_tone_hxw.ravel()
        for step in (0, 1, columns, columns + 1):
            near_hxw = cell_hxw + step
            distance = (y - centre_y.take(near_hxw)) ** 2 + (x - centre_x.take(near_hxw)) ** 2
            distance *= (1 / radius**2).take(near_hxw)
            at = np.flatnonzero(distance < 1)
            cell, distance = near_hxw.ravel()[at], distance.ravel()[at]
            pointed = needles.take(cell)
            shape = np.where(pointed, 1 - np.sqrt(distance), 0.35 + 0.65 * np.sqrt(1 - distance))
            crown = top.take(cell) * shape
            higher = crown > flat_height[at]
            at, cell = at[higher], cell[higher]
            flat_height[at] = crown[higher]
            flat_cover[at] = np.where(pointed[higher], INDEX["coniferous"], INDEX["deciduous"])
            flat_tone[at] = tone.take(cell)
        self.dsm_hxw = self.dtm_hxw + self.height_hxw

    def _make_texture(self, rng: np.random.Generator) -> None:
        """`tone` multiplies reflectance, `vigour` moves the balance of plant and soil (about -2..2)."""
        grain = rng.standard_normal(self.shape, dtype=np.float32)
        patch = self._noise(rng, 18.0, octaves=4, roughness=0.7)
        # How far the plants of a material differ from place to place: fields a lot, trees little.
        planted = np.array(
            [(0.35 if m.height >= 2 else 1.0) if m.growth else 0.0 for m in MATERIALS.values()], np.float32
        )
        self.vigour_hxw = (self._parcel_vigour[self.parcel_hxw] + 0.55 * patch) * planted[self.cover_hxw]
        if self.gsd < 1.5:
            rows = self._rows_hxw
            vines = self.cover_hxw == INDEX["vineyard"]
            crops = np.isin(
                self.cover_hxw,
                [INDEX[name] for name in ("wheat", "barley", "maize", "sunflower", "rapeseed")],
            )
            self.vigour_hxw += vines * (2.2 * np.sin(rows * np.float32(2 * np.pi / 2.2)))
            wheel = np.abs(np.mod(rows, 24.0) - 12.0)
            self.vigour_hxw -= crops * (1.6 * ((wheel < 1.2) & (wheel > 0.7)))
        self.tone_hxw = self._crown_tone_hxw * (1 + 0.05 * grain + 0.03 * patch)
        self.tone_hxw *= np.where(planted[self.cover_hxw] == 1, self._parcel_tone[self.parcel_hxw], 1)
        np.clip(self.tone_hxw, 0.5, 1.6, out=self.tone_hxw)
        calm = self.cover_hxw == INDEX["water"]
        self.tone_hxw[calm] = 1 + 0.25 * (self.tone_hxw[calm] - 1)


@functools.lru_cache(maxsize=512)
def _spline(pixels: int, cells: int) -> np.ndarray:
    """Cubic B-spline weights [pixels, cells + 3] of `pixels` points over `cells` cells."""
    position = (np.arange(pixels) + 0.5) * cells / pixels
    cell = np.minimum(position.astype(int), cells - 1)
    t = position - cell
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    matrix = np.zeros((pixels, cells + 3), np.float32)
    for offset, weight in enumerate(weights):
        matrix[np.arange(pixels), cell + offset] = weight / 6
    return matrix


def _top(field: np.ndarray, share: float) -> np.ndarray:
    """Where a field is among its highest `share`."""
    return field > np.quantile(field[::3, ::3], 1 - min(max(share, 0.0), 1.0))


def _cut(along: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the strip each point lies in, and metres to its nearer edge."""
    edges = np.concatenate([[-0.01], np.cumsum(widths)]).astype(np.float32)
    strip = np.searchsorted(edges, along, side="right").astype(np.int32) - 1
    return strip, np.minimum(along - edges[strip], edges[strip + 1] - along)


def _build(
    rng: np.random.Generator,
    u: np.ndarray,
    v: np.ndarray,
    settled: np.ndarray,
    cover: np.ndarray,
    height: np.ndarray,
) -> None:
    """Streets with houses and gardens, or sheds and yards, on the settled ground; writes cover and height."""
    sheds = rng.random() < 0.25
    plot_u, plot_v, street = (42.0, 46.0, 9.0) if sheds else (rng.uniform(15, 21), rng.uniform(22, 28), 6.0)
    period_v, period_u = 2 * plot_v + street, 7 * plot_u + street
    block_v, block_u = np.floor(v / period_v), np.floor(u / period_u)
    in_v, in_u = v - block_v * period_v - street, u - block_u * period_u - street
    on_street = (in_v < 0) | (in_u < 0)
    row = np.floor(np.maximum(in_v, 0) / plot_v)
    column = np.floor(np.maximum(in_u, 0) / plot_u)
    plot_row = (block_v * 2 + row).astype(np.int32)
    plot_column = (block_u * 7 + column).astype(np.int32)
    place_v, place_u = np.maximum(in_v, 0) - row * plot_v, np.maximum(in_u, 0) - column * plot_u
    # Rows face their street: mirror the second one, so that place_v grows away from the street.
    place_v = np.where(row > 0, plot_v - place_v, place_v)

    size = (int(plot_row.max()) + 1, int(plot_column.max()) + 1)
    at = (plot_row, plot_column)

    def per_plot(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, size).astype(np.float32)[at]

    half_u, half_v = per_plot(0.24, 0.36) * plot_u, per_plot(0.16, 0.24) * plot_v
    from_u = np.abs(place_u - plot_u * per_plot(0.44, 0.56)) - half_u
    from_v = np.abs(place_v - plot_v * per_plot(0.36, 0.44)) - half_v
    house = (from_u < 0) & (from_v < 0) & (per_plot(0, 1) < 0.92)
    eaves = per_plot(5, 9) if sheds else per_plot(3, 6)
    roof = eaves + (0.0 if sheds else 0.55) * np.minimum(-from_v, 4.5)
    choice = per_plot(0, 1)
    if sheds:
        material = np.where(choice < 0.7, INDEX["metal roof"], INDEX["slate roof"])
        material = np.where(choice > 0.9, INDEX["greenhouse"], material)
        ground = np.where(choice < 0.7, INDEX["asphalt"], INDEX["gravel"])
    else:
        material = np.where(choice < 0.62, INDEX["tile roof"], INDEX["slate roof"])
        material = np.where(choice > 0.96, INDEX["metal roof"], material)
        pool = (np.hypot((place_u - 0.5 * plot_u) / 2.9, (place_v - 0.82 * plot_v) / 1.7) < 1) & (
            per_plot(0, 1) < 0.16
        )
        drive = (np.abs(place_u - 0.16 * plot_u) < 1.5) & (place_v < 0.4 * plot_v)
        ground = np.where(pool, INDEX["pool"], np.where(drive, INDEX["gravel"], INDEX["lawn"]))
    town = np.where(house, material, ground)
    town = np.where(on_street, INDEX["asphalt"], town).astype(np.uint8)
    # A plot is settled as a whole, so that no house is cut; streets end where the settlement ends.
    plot = plot_row * size[1] + plot_column
    whole = np.bincount(plot.ravel(), settled.ravel()) > 0.5 * np.bincount(plot.ravel())
    settled = np.where(on_street, settled, whole[plot])
    cover[settled] = town[settled]
    built = settled & house & ~on_street
    height[built] = roof[built]
    height[settled & ~built] = 0
