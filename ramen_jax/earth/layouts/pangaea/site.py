"""A place of the procedural Earth as the tasks' writers need it: any days, any sensor, and the truth on the same grid.

Legend of shape suffixes: T dates, C bands, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ramen_jax.earth.ground import LANDSCAPES
from ramen_jax.earth.materials import INDEX, NAMES
from ramen_jax.earth.places import encode
from ramen_jax.earth.scene import Scene
from ramen_jax.sensors import Sensor

ROOFS = ("tile roof", "slate roof", "metal roof", "greenhouse")
SEALED = ("asphalt", "gravel")
CROPS = ("wheat", "barley", "maize", "sunflower", "rapeseed", "plowed", "vineyard")
TREES = ("deciduous", "coniferous")
OPEN = ("bare soil", "sand", "rock", "snow")
PLANTS = ("grass", "lawn", "brushwood")
WATER = ("water", "pool")


class Site:
    """One square of ground.

    Args:
      seed, place: decide every byte.
      pixels, gsd: side of the images, and metres per pixel. Very fine sensors are rendered coarser than they are, so
        that small images show more than one surface.
      landscapes: names of ground.LANDSCAPES that the places take in turn; none: drawn.
    """

    def __init__(
        self, seed: int, place: int, pixels: int, gsd: float, landscapes: Sequence[str] = ()
    ) -> None:
        self.pixels, self.gsd = pixels, max(gsd, 1.0)
        fine = self.gsd / 4 if self.gsd > 4 else self.gsd / 2 if self.gsd > 2 else self.gsd
        side = pixels * self.gsd
        landscape = landscapes[place % len(landscapes)] if landscapes else None
        self.scene = Scene(seed, place, (side, side), fine, landscape=landscape)
        self.rng = self.scene.generator("pangaea")

    @property
    def landscape(self) -> int:
        """Number of the landscape, a truth for classification."""
        return list(LANDSCAPES).index(self.scene.landscape)

    def optical(self, sensor: Sensor, days: Sequence[int], dtype: str, toa: bool = False) -> np.ndarray:
        """[T, C, H, W] as a file of that sensor holds it, with a little noise; `toa`: at the top of the atmosphere."""
        ground = self.scene.optical(self._seen(sensor), self.pixels, self.pixels, np.asarray(days), toa)
        ground = ground + self.rng.standard_normal(ground.shape, dtype=np.float32) * (0.0015 + 0.006 * ground)
        return self._encoded(np.maximum(ground, 0), sensor, dtype)

    def radar(self, sensor: Sensor, days: Sequence[int], dtype: str = "float32") -> np.ndarray:
        """[T, C, H, W] with speckle."""
        moisture_T = np.clip(self.rng.normal(0, 0.6, len(days)), -1, 1)
        wind_T = self.rng.beta(1.5, 6, len(days))
        bands = [
            self.scene.radar(
                str(band.radar), self.pixels, self.pixels, self.gsd, np.asarray(days), moisture_T, wind_T
            )
            for band in sensor.bands
        ]
        power = np.stack(bands, axis=1)
        return self._encoded(power * self.rng.gamma(5.0, 0.2, power.shape).astype(np.float32), sensor, dtype)

    def materials(self) -> np.ndarray:
        """Number of the material (materials.NAMES) under each pixel, uint8 [H, W]."""
        return self.scene.labels(self.pixels, self.pixels, self.gsd, "material")

    def classes(self, groups: Mapping[int, Sequence[str]], other: int) -> np.ndarray:
        """Class of each pixel, int32 [H, W]: the number of the group its material is in, or `other`."""
        table = np.full(len(NAMES), other, np.int32)
        for number, members in groups.items():
            table[[INDEX[name] for name in members]] = number
        return table[self.materials()]

    def numbered(self, count: int) -> np.ndarray:
        """int32 [H, W], 0..count - 1: the materials in as many groups, for surfaces that Earth does not have."""
        return (self.materials().astype(np.int32) * count) // len(NAMES)

    def height(self) -> np.ndarray:
        """Metres above ground of what stands on it, float32 [H, W]."""
        return self.scene.area(self.scene.height_hxw, self.pixels, self.pixels, self.gsd)

    def days(self, count: int) -> list[int]:
        """Days of an irregular year-long series, in order."""
        return sorted(int(day) for day in self.rng.choice(np.arange(3, 364, 3), count, replace=False))

    def blob(self, share: float = 0.5) -> np.ndarray:
        """A smooth patch, bool [H, W]: one or two ellipses that cover about that share."""
        y, x = np.mgrid[0 : self.pixels, 0 : self.pixels] / self.pixels
        inside = np.zeros((self.pixels, self.pixels), bool)
        for centre_y, centre_x in self.rng.uniform(0.2, 0.8, (2, 2)):
            reach = np.sqrt(share / 2 / np.pi) * self.rng.uniform(0.8, 1.3, 2)
            inside |= ((y - centre_y) / reach[0]) ** 2 + ((x - centre_x) / reach[1]) ** 2 < 1
        return inside

    def _seen(self, sensor: Sensor) -> Sensor:
        """The sensor at the site's pixel size."""
        return Sensor(sensor.name, sensor.bands, self.gsd, sensor.units)

    def _encoded(self, physical: np.ndarray, sensor: Sensor, dtype: str) -> np.ndarray:
        bands = [encode(physical[:, c], sensor, c, dtype) for c in range(len(sensor.bands))]
        return np.stack(bands, axis=1)
