"""What sensors see of a place of the procedural Earth.

A `Scene` is a fine grid over a rectangle of ground. Everything a sensor sees is the average of that grid over the
footprint of its pixels (area integration), so images of one scene at any GSD agree with each other by construction.

Two ways to the same image: a single date is rendered on the fine grid, with cast shadows, and then averaged; a series
averages the share of each material once (with its vigour and slopes) and combines the shares with each date's spectra.

Legend of shape suffixes: T dates, K materials, C bands, H rows, W columns (lower case h, w: the fine grid).
"""

from __future__ import annotations

import numpy as np

from ramen_jax.earth import materials
from ramen_jax.earth.ground import Ground
from ramen_jax.earth.materials import MATERIALS, NAMES
from ramen_jax.sampling import down_matrix
from ramen_jax.sensors import Sensor


class Scene(Ground):
    """The ground of a place, with what any sensor sees of it. Arguments and attributes are those of `Ground`."""

    def __init__(
        self,
        seed: int,
        place: int,
        extent: tuple[float, float],
        gsd: float,
        region: str = "world",
        landscape: str | None = None,
    ) -> None:
        super().__init__(seed, place, extent, gsd, region, landscape)
        self._basis: dict[tuple[int, int, float], tuple[np.ndarray, np.ndarray]] = {}
        self._shade: dict[float, np.ndarray] = {}

    def area(self, field: np.ndarray, height: int, width: int, gsd: float) -> np.ndarray:
        """Averages a fine field [..., h, w] over the pixels of a grid that starts at the same corner."""
        if (height, width) == self.shape and abs(gsd / self.gsd - 1) < 1e-6:
            return np.asarray(field, np.float32)
        down = down_matrix(self.shape[0], self.gsd, gsd, height, "area")
        right = down_matrix(self.shape[1], self.gsd, gsd, width, "area")
        return down @ (np.asarray(field, np.float32) @ right.T)

    def labels(self, height: int, width: int, gsd: float, scheme: str = "cosia") -> np.ndarray:
        """Class under the centre of each pixel, uint8 [H, W]; schemes: cosia, worldcover, lpis, material."""
        row = np.clip(((np.arange(height) + 0.5) * gsd / self.gsd).astype(int), 0, self.shape[0] - 1)
        column = np.clip(((np.arange(width) + 0.5) * gsd / self.gsd).astype(int), 0, self.shape[1] - 1)
        cover = self.cover_hxw[np.ix_(row, column)]
        if scheme == "material":
            return cover
        return np.array([getattr(material, scheme) for material in MATERIALS.values()], np.uint8)[cover]

    def sun(self, day: float, hour: float = 10.7) -> tuple[float, float, float]:
        """Direction to the sun (east, north, up) at local solar time; never lower than 12 degrees."""
        tilt = np.radians(-23.44) * np.cos(2 * np.pi * (day + 10) / 365)
        turn, latitude = np.radians(15 * (hour - 12)), np.radians(self.location[1])
        up = np.sin(latitude) * np.sin(tilt) + np.cos(latitude) * np.cos(tilt) * np.cos(turn)
        east = -np.cos(tilt) * np.sin(turn)
        north = np.cos(latitude) * np.sin(tilt) - np.sin(latitude) * np.cos(tilt) * np.cos(turn)
        up = max(up, 0.208)
        flat = np.sqrt(max(1 - up**2, 1e-9) / max(east**2 + north**2, 1e-9))
        return float(east * flat), float(north * flat), float(up)

    def shade(self, day: float) -> np.ndarray:
        """Relative illumination [h, w] of the fine grid, about 1 on sunlit flat ground, with cast shadows."""
        if day in self._shade:
            return self._shade[day]
        east, north, up = self.sun(day)
        slope_y, slope_x = np.gradient(self.dsm_hxw, self.gsd)
        # Crowns and roofs are rougher than their outline: soften the steepest faces.
        slope_x, slope_y = np.clip(slope_x, -1.2, 1.2), np.clip(slope_y, -1.2, 1.2)
        direct = (up - east * slope_x + north * slope_y) / np.sqrt(1 + slope_x**2 + slope_y**2) / up
        # The horizon towards the sun: the highest of dsm(k steps away) - k x drop. Doubling reaches n steps in log2(n).
        ground = np.hypot(east, north)
        stride = max(self.gsd, 0.4)
        drop = np.float32(stride * up / ground)
        reach = min(float(self.height_hxw.max()) * ground / up, 45.0) / stride
        horizon_hxw, steps = self._towards_sun(self.dsm_hxw, east, north, stride) - drop, 1
        while steps < reach:
            farther = self._towards_sun(horizon_hxw, east, north, steps * stride) - steps * drop
            horizon_hxw, steps = np.maximum(horizon_hxw, farther), 2 * steps
        shadow = horizon_hxw > self.dsm_hxw
        ambient = 0.28
        sunlight = np.clip(direct, 0, 1.7).astype(np.float32) * ~shadow
        self._shade[day] = ambient + (1 - ambient) * sunlight
        return self._shade[day]

    def _towards_sun(self, field: np.ndarray, east: float, north: float, metres: float) -> np.ndarray:
        """The field as found `metres` away in the direction of the sun; below everything outside the scene."""
        pixels = metres / self.gsd / np.hypot(east, north)
        down, right = round(-north * pixels), round(east * pixels)
        height, width = field.shape
        result = np.full_like(field, -1e4)
        if abs(down) < height and abs(right) < width:
            target = (
                slice(max(0, -down), height - max(0, down)),
                slice(max(0, -right), width - max(0, right)),
            )
            source = (slice(max(0, down), height + min(0, down)), slice(max(0, right), width + min(0, right)))
            result[target] = field[source]
        return result

    def snow(self, days_T: np.ndarray) -> np.ndarray:
        """Share of open ground under snow [T], from latitude, elevation and season."""
        latitude = self.location[1]
        season = np.cos(2 * np.pi * (np.asarray(days_T) - (200 if latitude >= 0 else 17)) / 365)
        warmth = (
            29
            - 0.36 * abs(latitude)
            - 0.0062 * float(self.dtm_hxw.mean())
            + (2 + 0.13 * abs(latitude)) * season
        )
        return np.clip(-(warmth + 1.0) / 5.0, 0, 1)

    def optical(
        self, sensor: Sensor, height: int, width: int, days_T: np.ndarray, toa: bool = False
    ) -> np.ndarray:
        """Cloudless reflectance [T, C, H, W] (0..1); at the surface, or at the top of the atmosphere."""
        ends_ExC = materials.endmember_reflectance(sensor, toa)
        shares, change = materials.endmember_shares(days_T, self.location[1] < 0, self.snow(days_T))
        colour_TxKxC = (shares @ ends_ExC).astype(np.float32)
        change_TxKxC = (change @ ends_ExC).astype(np.float32)
        if len(days_T) == 1:
            image = self._optical_fine(
                colour_TxKxC[0], change_TxKxC[0], float(days_T[0]), height, width, sensor.gsd
            )[None]
        else:
            image = self._optical_series(colour_TxKxC, change_TxKxC, days_T, height, width, sensor.gsd)
        if toa:
            path_C = materials.path_reflectance(sensor).astype(np.float32)[:, None, None]
            image = path_C + (1 - 1.4 * path_C) * image
        return np.clip(image, 0, 1.1)

    def _optical_fine(
        self, colour_KxC: np.ndarray, change_KxC: np.ndarray, day: float, height: int, width: int, gsd: float
    ) -> np.ndarray:
        light_hxw = self.tone_hxw * self.shade(day)
        lively_hxw = light_hxw * self.vigour_hxw
        image = np.empty((colour_KxC.shape[1], height, width), np.float32)
        for band in range(len(image)):
            fine = (
                colour_KxC[:, band][self.cover_hxw] * light_hxw
                + change_KxC[:, band][self.cover_hxw] * lively_hxw
            )
            image[band] = self.area(fine, height, width, gsd)
        return image

    def _optical_series(
        self,
        colour_TxKxC: np.ndarray,
        change_TxKxC: np.ndarray,
        days_T: np.ndarray,
        height: int,
        width: int,
        gsd: float,
    ) -> np.ndarray:
        found_K, basis_KxBxHxW = self.basis(height, width, gsd)
        sun_Tx3 = np.array([self.sun(float(day)) for day in days_T], np.float32)
        image = np.tensordot(change_TxKxC[:, found_K], basis_KxBxHxW[:, 1], ([1], [0]))
        for column, weight_T in (
            (0, 1 + 0 * sun_Tx3[:, 0]),
            (2, sun_Tx3[:, 0] / sun_Tx3[:, 2]),
            (3, sun_Tx3[:, 1] / sun_Tx3[:, 2]),
        ):
            image += np.tensordot(
                colour_TxKxC[:, found_K] * weight_T[:, None, None], basis_KxBxHxW[:, column], ([1], [0])
            )
        return image

    def basis(self, height: int, width: int, gsd: float) -> tuple[np.ndarray, np.ndarray]:
        """Materials found [K]; [K, 4, H, W]: their share of each pixel, alone and times vigour, east, north slope."""
        key = (height, width, gsd)
        if key not in self._basis:
            found_K = np.flatnonzero(np.bincount(self.cover_hxw.ravel(), minlength=len(NAMES)))
            result = np.empty((len(found_K), 4, height, width), np.float32)
            for k, material in enumerate(found_K):
                share = (self.cover_hxw == material) * self.tone_hxw
                for column, factor in enumerate((None, self.vigour_hxw, *self.normal_hxw)):
                    result[k, column] = self.area(
                        share if factor is None else share * factor, height, width, gsd
                    )
            self._basis[key] = (found_K, result)
        return self._basis[key]

    def radar(
        self,
        channel: str,
        height: int,
        width: int,
        gsd: float,
        days_T: np.ndarray,
        moisture_T: np.ndarray,
        wind_T: np.ndarray,
    ) -> np.ndarray:
        """Mean backscatter [T, H, W], linear power without speckle; the orbit decides which slopes are bright."""
        orbit, polarisation = channel.split("_")
        power_TxKx2 = materials.backscatter(days_T, self.location[1] < 0, moisture_T, wind_T)
        cross = polarisation in ("vh", "hv")
        found_K, basis_KxBxHxW = self.basis(height, width, gsd)
        side = -1.3 if orbit == "asc" else 1.3
        seen_KxHxW = basis_KxBxHxW[:, 0] + side * basis_KxBxHxW[:, 2]
        power_TxK = power_TxKx2[:, found_K, int(cross)].astype(np.float32) * (
            0.9 if polarisation[0] == "h" else 1.0
        )
        return np.maximum(np.tensordot(power_TxK, seen_KxHxW, ([1], [0])), 1e-5)

    def elevation(self, kind: str, height: int, width: int, gsd: float) -> np.ndarray:
        """dsm or dtm in metres, slope in degrees: [H, W]."""
        if kind != "slope":
            return self.area(self.dsm_hxw if kind == "dsm" else self.dtm_hxw, height, width, gsd)
        steep_y, steep_x = np.gradient(self.dtm_hxw, self.gsd)
        return np.degrees(np.arctan(self.area(np.hypot(steep_y, steep_x), height, width, gsd)))
