"""Whether the rasters of one place lie on the same ground: co-registration is checked, never assumed.

A raster without a coordinate system cannot be checked. All others must have their corners where those of the place's
first raster are, to half a pixel of the coarser one (two in published archives), and pixels of their sensor's size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rasterio.warp
from rasterio.transform import Affine

SAME_GROUND = 0.5  # of a pixel of the coarser raster
SAME_PATCH = 2.0  # the same, of archives whose makers cut each sensor on its own grid
SAME_SIZE = 0.1  # how much a pixel may differ from its sensor's GSD, as a share
POLE = 88.0  # degrees; beyond, metres per degree of longitude mean nothing


@dataclass(frozen=True)
class Footprint:
    """Where a raster lies; `crs` None: nobody knows."""

    name: str
    crs: Any
    transform: Affine
    height: int
    width: int

    @property
    def known(self) -> bool:
        return self.crs is not None and not self.transform.is_identity

    def corners(self, height: float | None = None, width: float | None = None) -> list[tuple[float, float]]:
        """Positions of the four corners in its coordinate system, of the whole or of that many pixels."""
        rows, columns = self.height if height is None else height, self.width if width is None else width
        return [self.transform @ (x, y) for x, y in ((0, 0), (columns, 0), (0, rows), (columns, rows))]


def wrong_pixel_size(place: Footprint, gsd: float) -> str:
    """A sentence when the pixels are not of their sensor's size, neither nominally nor on the ground; else ""."""
    if not place.known:
        return ""
    nominal = [
        math.hypot(place.transform.a, place.transform.d),
        math.hypot(place.transform.b, place.transform.e),
    ]
    metres = place.crs.linear_units_factor[1] if place.crs.is_projected else 0.0
    candidates = [[side * metres for side in nominal]] if metres else []
    ground = pixel_on_the_ground(place)
    if ground is not None:
        candidates.append(ground)
    for sizes in candidates:
        if min(sizes) * (1 - SAME_SIZE) <= gsd <= max(sizes) * (1 + SAME_SIZE):
            return ""
    if not candidates:
        return ""
    found = " x ".join(dict.fromkeys(f"{size:.3g}" for size in candidates[0]))
    return f"has pixels of {found} m, but its sensor has pixels of {gsd:g} m"


def misplaced(
    place: Footprint, first: Footprint, ratio: float | None = None, allowed: float = SAME_GROUND
) -> str:
    """A sentence when a raster does not lie on the ground of the place's first one, else "".

    Args:
        place: the raster.
        first: the raster that defines the place.
        ratio: pixels of `first` that one of `place` should measure; both then begin at the same corner, and may end
            elsewhere. None: both cover the same ground.
        allowed: how far a corner may be off, in pixels of the coarser raster.
    """
    if not (place.known and first.known):
        return ""
    if ratio is None:
        expected = first.corners()
        scale = max(1.0, first.width / place.width, first.height / place.height)
    else:
        expected = first.corners(place.height * ratio, place.width * ratio)
        scale = max(1.0, ratio)
    found = moved(place.corners(), place.crs, first.crs)
    if found is None:
        return f"has coordinates that cannot be turned into those of {first.name}; is its CRS right?"
    inverse = ~first.transform
    there, here = ([inverse @ corner for corner in corners] for corners in (found, expected))
    gap = max(math.dist(a, b) for a, b in zip(there, here, strict=True))
    if gap <= allowed * scale:
        return ""
    metres = max(math.dist(a, b) for a, b in zip(found, expected, strict=True))
    unit = "degrees" if first.crs.is_geographic else "m"
    codes = (
        "" if place.crs == first.crs else f"; one is in {_code(place.crs)}, the other in {_code(first.crs)}"
    )
    if not _touch(there, here):
        return f"does not touch the ground of {first.name}: it lies {metres:.6g} {unit} away{codes}"
    return (
        f"does not cover the ground of {first.name}: a corner is {metres:.4g} {unit} ({gap:.3g} of its pixels) off, "
        f"more than {allowed:g} of the coarser pixel{codes}"
    )


def pixel_on_the_ground(place: Footprint) -> list[float] | None:
    """Metres of the central pixel (across, down) on the WGS 84 ellipsoid; None where that cannot be told."""
    x, y = place.width / 2, place.height / 2
    corners = [place.transform @ corner for corner in ((x, y), (x + 1, y), (x, y + 1))]
    points = moved(corners, place.crs, "EPSG:4326")
    if points is None or abs(points[0][1]) > POLE:
        return None
    phi = math.radians(points[0][1])
    metres_lat = 111132.954 - 559.822 * math.cos(2 * phi) + 1.175 * math.cos(4 * phi)
    metres_lon = 111412.84 * math.cos(phi) - 93.5 * math.cos(3 * phi) + 0.118 * math.cos(5 * phi)
    (lon, lat), *others = points
    return [math.hypot((other[0] - lon) * metres_lon, (other[1] - lat) * metres_lat) for other in others]


def moved(points: Sequence[tuple[float, float]], crs: Any, to: Any) -> list[tuple[float, float]] | None:
    """Points in another coordinate system; None where they have no place in it."""
    xs, ys = zip(*points, strict=True)
    try:
        found = rasterio.warp.transform(crs, to, list(xs), list(ys))[:2]
    except Exception:  # PROJ's errors come in types of their own
        return None
    if not all(math.isfinite(value) for axis in found for value in axis):
        return None
    return list(zip(*found, strict=True))


def _touch(a: Sequence[tuple[float, float]], b: Sequence[tuple[float, float]]) -> bool:
    """Whether the boxes around two lists of points overlap."""
    return all(
        min(p[axis] for p in a) < max(p[axis] for p in b)
        and min(p[axis] for p in b) < max(p[axis] for p in a)
        for axis in (0, 1)
    )


def _code(crs: Any) -> str:
    return str(crs.to_string() if crs.to_epsg() is None else f"EPSG:{crs.to_epsg()}")[:60]
