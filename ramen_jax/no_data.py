"""What was not measured: one rule for readers, `embed`, the Python interface and the exported PyTorch model.

A pixel of a date is missing when one of these says so, whatever the others say:

- a band is not finite (NaN or an infinity);
- a band holds its no-data value: the file's tag, the sensor's, or a description's in their place. 0 is an exception:
  it marks a pixel only where every band is 0, because 0 is also what a very dark surface measures;
- a mask marks it in any band: a mask band, an alpha band of 0, the mask of a numpy masked array, `valid`.

The rule is about stored values: it is applied before a scale, an offset or any resampling.

Shape letters: T dates, C bands, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NoData = float | None | Sequence[float | None]


def missing_pixels(
    values_TxCxHxW: np.ndarray, nodata: NoData, present_C: np.ndarray | None = None
) -> np.ndarray:
    """Bool [T, H, W]: where the values themselves say that nothing was measured.

    Args:
        values_TxCxHxW: stored values of any real dtype.
        nodata: the stored value that means "no measurement", of all bands or one per band; None: there is none. NaN
            and the infinities never are measurements.
        present_C: bands that were delivered; the others are not looked at. None: all.
    """
    values = values_TxCxHxW if present_C is None else values_TxCxHxW[:, present_C]
    per_band = list(nodata) if isinstance(nodata, Sequence) else [nodata] * values_TxCxHxW.shape[1]
    if present_C is not None:
        per_band = [value for value, present in zip(per_band, present_C, strict=True) if present]
    missing = np.zeros((len(values), *values.shape[2:]), bool)
    if values.dtype.kind == "f":
        missing |= ~np.isfinite(values).all(axis=1)
    told = [value is not None and bool(np.isfinite(value)) for value in per_band]
    if not any(told):
        return missing
    everywhere = np.full(missing.shape, all(told))
    for band, value in enumerate(per_band):
        if told[band]:
            same = _equal(values[:, band], value)
            everywhere &= same
            if value != 0:
                missing |= same
    return missing | everywhere


def _equal(values: np.ndarray, number: float | None) -> np.ndarray:
    """Where values of any dtype are that number, rounded as a file of that dtype would hold it."""
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return values == np.asarray(number, values.dtype)
    return np.asarray(values == number)


def masked_pixels(values: np.ndarray) -> np.ndarray | None:
    """Bool [T, H, W]: pixels that a numpy masked array [T, C, H, W] masks in any band; None without a mask."""
    if not isinstance(values, np.ma.MaskedArray) or values.mask is np.ma.nomask:
        return None
    return np.asarray(np.ma.getmaskarray(values).any(axis=1))
