"""What was not measured: one rule for readers, `embed`, the Python interface and the exported PyTorch model.

Shape letters: T dates, C bands, H rows, W columns.
"""

from __future__ import annotations

import numpy as np


def missing_pixels(
    values_TxCxHxW: np.ndarray, nodata: float | None, present_C: np.ndarray | None = None
) -> np.ndarray:
    """Bool [T, H, W]: a band is not finite or is `nodata`.

    A nodata of 0 marks a pixel only where every band is 0, because 0 is also what a very dark surface measures.

    Args:
        nodata: the stored value that means "no measurement", or None. NaN and the infinities never are one.
        present_C: bands that were delivered; the others are not looked at. None: all.
    """
    values = values_TxCxHxW if present_C is None else values_TxCxHxW[:, present_C]
    missing = np.zeros((len(values), *values.shape[2:]), bool)
    if values.dtype.kind == "f":
        missing |= ~np.isfinite(values).all(axis=1)
    if nodata is not None and np.isfinite(nodata):
        same = values == nodata
        missing |= same.all(axis=1) if nodata == 0 else same.any(axis=1)
    return missing
