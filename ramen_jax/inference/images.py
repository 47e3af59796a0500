"""What a person hands over to be encoded: images of one place, with dates, as arrays.

Shape letters: T dates, C bands, H, W pixels.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ramen_jax import samples
from ramen_jax.console import USAGE, UserError
from ramen_jax.no_data import missing_pixels
from ramen_jax.samples import Sample
from ramen_jax.sensors import Sensor

EXTENT_TOLERANCE = 0.1  # how much the extents of two images of one place may differ


class Image:
    """One modality of one place.

    Args:
        values: stored values [T, C, H, W], or [C, H, W] for one date. NaN is no measurement.
        dates: one per frame: day of year 1..366, a datetime.date or "2021-04-02". Needed when T > 1.
        sensor: a Sensor, or the name of one; default: the modality's name, looked up in the model.
        valid: bool [T, H, W] or [H, W], False where nothing was measured; besides NaN and the sensor's nodata.

    Raises:
        UserError: wrong shapes, dates missing or not one per frame.
    """

    def __init__(
        self,
        values: Any,
        dates: Iterable[Any] | None = None,
        sensor: Sensor | str | None = None,
        valid: Any = None,
    ) -> None:
        array = np.asarray(values)
        if array.ndim == 3:
            array = array[None]
        if array.ndim != 4 or 0 in array.shape:
            raise UserError(
                f"an image must be [T, C, H, W] or [C, H, W], none of them 0, found shape {array.shape}"
            )
        self.values = array
        frames, _, height, width = array.shape
        days = [0] * frames if dates is None else [day_of_year(date) for date in dates]
        if len(days) != frames:
            raise UserError(f"{len(days)} dates for {frames} frames; give one per frame")
        if frames > 1 and dates is None:
            raise UserError(f"an image of {frames} frames needs dates, one per frame")
        self.days = np.array(days, np.int16)
        self.sensor = sensor
        self.valid = None
        if valid is not None:
            self.valid = np.broadcast_to(np.asarray(valid, bool), (frames, height, width))


def day_of_year(date: Any) -> int:
    """1..366 of a number, a datetime.date (or datetime) or an ISO text."""
    if isinstance(date, str):
        try:
            date = datetime.date.fromisoformat(date[:10])
        except ValueError as error:
            raise UserError(f"{date!r} is not a date; write 2021-04-02") from error
    if isinstance(date, datetime.date):
        return date.timetuple().tm_yday
    day = int(date)
    if not 0 <= day <= 366:
        raise UserError(f"a date is a day of year from 1 to 366 (0: unknown), found {date}")
    return day


def to_sample(
    images: Mapping[str, Image], sensors: Mapping[str, Sensor], target_gsd: float, name: str = "place"
) -> Sample:
    """The images as a sample, what was not measured marked and set to 0.

    Raises:
        UserError: band counts, or extents that differ by more than a tenth of the first image's and a token.
    """
    if not target_gsd > 0:
        raise UserError(f"the target GSD is {target_gsd}, expected metres per token above 0", USAGE)
    first: tuple[float, float] | None = None
    stored = {}
    for modality, image in images.items():
        gsd = sensors[modality].gsd
        stored[modality] = _record(modality, image, sensors[modality])
        extent = (image.values.shape[2] * gsd, image.values.shape[3] * gsd)
        first = first or extent
        for ours, theirs in zip(extent, first, strict=True):
            if abs(ours - theirs) > max(EXTENT_TOLERANCE * theirs, target_gsd):
                raise UserError(
                    f"'{modality}' covers {extent[0]:g} x {extent[1]:g} m but the first image {first[0]:g} x "
                    f"{first[1]:g} m; images of one place must cover the same ground (is the GSD of '{modality}', "
                    f"{gsd:g} m, right?)"
                )
    return Sample(name, stored)


def _record(name: str, image: Image, sensor: Sensor) -> samples.Image:
    """Values in a stored dtype, with what was not measured marked and set to 0."""
    values = image.values
    if values.shape[1] != len(sensor.bands):
        raise UserError(
            f"'{name}' has {values.shape[1]} bands, sensor '{sensor.name}' has {len(sensor.bands)}: "
            f"{', '.join(band.name for band in sensor.bands)}"
        )
    if values.dtype.name not in samples.DTYPES:
        values = values.astype(np.float32)
    valid = ~missing_pixels(values, sensor.nodata)
    if image.valid is not None:
        valid &= image.valid
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    present = np.ones(values.shape[1], bool)
    return samples.Image(values, image.days, present, None if valid.all() else valid)
