"""The shapes of a batch, from a corpus and a capacity alone: what packing allocates and what a program is compiled for.

Shape letters as in `ramen_jax.rows.batch`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ramen_jax.rows.batch import Images, Rows
from ramen_jax.rows.views import Capacity
from ramen_jax.samples import CorpusSpec


@dataclass(frozen=True)
class Shape:
    """An array without its values."""

    shape: tuple[int, ...]
    dtype: np.dtype


def row_shapes(spec: CorpusSpec, capacity: Capacity) -> Rows:
    """`Rows` whose leaves are `Shape`s."""
    c, rows = capacity, capacity.rows
    images = {name: image_shapes(spec, capacity, i) for i, name in enumerate(spec.names)}
    return Rows(
        encoder_segment_RxE=_int32(rows, c.encoder_length),
        encoder_feature_RxE=_int32(rows, c.encoder_length),
        encoder_coords_RxEx2=_float32(rows, c.encoder_length, 2),
        decoder_segment_RxL=_int32(rows, c.decoder_length),
        decoder_coords_RxLx2=_float32(rows, c.decoder_length, 2),
        decoder_encoder_RxL=_int32(rows, c.decoder_length),
        decoder_modality_RxL=_int32(rows, c.decoder_length),
        images=images,
    )


def image_shapes(spec: CorpusSpec, capacity: Capacity, index: int) -> Images:
    """`Images` of the modality with this number, whose leaves are `Shape`s."""
    modality = spec.modalities[index]
    bands = len(modality.sensor.bands)
    height, width = capacity.pixels[index] if capacity.pixels else (modality.height, modality.width)
    rows, grid = capacity.rows, capacity.grid
    slots, dates = capacity.slots[index], capacity.dates[index]
    listed, decoded = capacity.encoder_tokens[index], capacity.decoder_tokens[index]
    valid = Shape((rows, slots, dates, height, width), np.dtype(bool)) if modality.has_valid else None
    return Images(
        values_RxSxTxCxHxW=Shape((rows, slots, dates, bands, height, width), np.dtype(modality.dtype)),
        mean_RxSxC=_float32(rows, slots, bands),
        std_RxSxC=_float32(rows, slots, bands),
        present_RxSxC=Shape((rows, slots, bands), np.dtype(bool)),
        valid_RxSxTxHxW=valid,
        dates_RxSxT=_float32(rows, slots, dates),
        frames_RxSxT=Shape((rows, slots, dates), np.dtype(np.int8)),
        view_RxS=_int32(rows, slots),
        scale_RxS=_float32(rows, slots),
        down_rows_RxSxGxH=_float32(rows, slots, grid, height),
        down_cols_RxSxGxW=_float32(rows, slots, grid, width),
        up_rows_RxSxHxG=_float32(rows, slots, height, grid),
        up_cols_RxSxWxG=_float32(rows, slots, width, grid),
        mask_RxSxGxG=Shape((rows, slots, grid, grid), np.dtype(bool)),
        mask_rows_RxSxH=_int32(rows, slots, height),
        mask_cols_RxSxW=_int32(rows, slots, width),
        encoder_slot_RxN=_int32(rows, listed),
        encoder_cell_RxN=_int32(rows, listed),
        decoder_slot_RxM=_int32(rows, decoded),
        decoder_cell_RxM=_int32(rows, decoded),
        decoder_place_RxM=_int32(rows, decoded),
    )


def filled(shape: Shape, value: float = 0) -> np.ndarray:
    """A new array of that shape."""
    return np.full(shape.shape, value, shape.dtype) if value else np.zeros(shape.shape, shape.dtype)


def _int32(*shape: int) -> Shape:
    return Shape(shape, np.dtype(np.int32))


def _float32(*shape: int) -> Shape:
    return Shape(shape, np.dtype(np.float32))
