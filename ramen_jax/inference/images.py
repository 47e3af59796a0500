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
from ramen_jax.no_data import masked_pixels, missing_pixels
from ramen_jax.samples import Sample
from ramen_jax.sensors import Sensor

EXTENT_TOLERANCE = 0.1  # how much the extents of two images of one place may differ


class Image:
    """One modality of one place.

    Args:
        values: stored values [T, C, H, W], or [C, H, W] for one date, of any real type. What is not finite, and what a
            numpy masked array masks in any band, was not measured.
        dates: one per frame: whole day of year 1..366 (0: unknown), a datetime.date, "2021-04-02" or a numpy
            datetime64 of days or finer. Needed when T > 1.
        sensor: a Sensor, or the name of one; default: the modality's name, looked up in the model.
        valid: bool [T, H, W] or [H, W], False where nothing was measured; besides NaN and the sensor's nodata.

    Raises:
        UserError: wrong shapes, values that are no real numbers, dates missing, impossible or not one per frame.
    """

    def __init__(
        self,
        values: Any,
        dates: Iterable[Any] | None = None,
        sensor: Sensor | str | None = None,
        valid: Any = None,
    ) -> None:
        array = np.ma.asanyarray(values) if isinstance(values, np.ma.MaskedArray) else np.asarray(values)
        if array.dtype.kind not in "buif":
            kind = "complex numbers" if array.dtype.kind == "c" else f"values of type {array.dtype}"
            raise UserError(
                f"an image must hold real numbers, found {kind}; give amplitude or intensity of radar"
            )
        if array.ndim == 3:
            array = array[None]
        if array.ndim != 4 or 0 in array.shape:
            raise UserError(
                f"an image must be [T, C, H, W] or [C, H, W], none of them 0, found shape {array.shape}"
            )
        masked = masked_pixels(array)
        self.values = np.asarray(np.ma.getdata(array))
        frames, _, height, width = array.shape
        days = [0] * frames if dates is None else [day_of_year(date) for date in _listed(dates)]
        if len(days) != frames:
            raise UserError(f"{len(days)} dates for {frames} frames; give one per frame")
        if frames > 1 and dates is None:
            raise UserError(f"an image of {frames} frames needs dates, one per frame")
        self.days = np.array(days, np.int16)
        self.sensor = sensor
        self.valid = None if masked is None else ~masked
        if valid is not None:
            given = np.asarray(np.ma.filled(valid, False), bool)
            try:
                given = np.broadcast_to(given, (frames, height, width))
            except ValueError as error:
                raise UserError(
                    f"valid has shape {given.shape}, expected {(frames, height, width)} or {(height, width)}"
                ) from error
            self.valid = given if masked is None else given & ~masked


def day_of_year(date: Any) -> int:
    """1..366 (0: unknown) of a whole number, a datetime.date (or datetime), an ISO text or a numpy datetime64.

    Raises:
        UserError: a missing date (None, NaN, NaT), one that does not name a day, or no date at all.
    """
    if isinstance(date, str):
        try:
            date = datetime.date.fromisoformat(date[:10])
        except ValueError as error:
            raise UserError(f"{date!r} is not a date; write 2021-04-02") from error
    if date is None or (np.ndim(date) == 0 and date != date) or str(date) in ("NaT", "--"):
        raise UserError(f"a date is missing ({date}); give every frame one, or 0 where it is unknown")
    if isinstance(date, datetime.date):
        return date.timetuple().tm_yday
    number = np.asarray(date)
    if number.dtype.kind == "M":
        unit = np.datetime_data(number.dtype)[0]
        if unit in ("Y", "M", "W"):
            raise UserError(f"the date {date} names no day; give dates to the day")
        day = number.astype("datetime64[D]")
        return int((day - day.astype("datetime64[Y]").astype("datetime64[D]")).astype(int)) + 1
    if number.ndim or number.dtype.kind not in "iuf" or not 0 <= number <= 366 or number != int(number):
        raise UserError(
            f"a date is a whole day of year from 1 to 366 (0: unknown), a datetime or a text, found {date!r}"
        )
    return int(number)


def _listed(dates: Any) -> list[Any]:
    """One entry per frame; a single date is one frame's."""
    if isinstance(dates, str) or not np.iterable(dates):
        return [dates]
    return list(dates)


def to_sample(
    images: Mapping[str, Image], sensors: Mapping[str, Sensor], target_gsd: float, name: str = "place"
) -> Sample:
    """The images as a sample, what was not measured marked and set to 0.

    Raises:
        UserError: band counts, or extents that differ by more than a tenth of the first image's and a token.
    """
    if not 0 < target_gsd < np.inf:
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
    valid = ~missing_pixels(values, sensor.nodata)
    if values.dtype.name not in samples.DTYPES:
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        valid &= np.isfinite(values).all(axis=1)
    if image.valid is not None:
        valid &= image.valid
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    present = np.ones(values.shape[1], bool)
    return samples.Image(values, image.days, present, None if valid.all() else valid)
