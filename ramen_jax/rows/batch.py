"""The packed batch: what the data plane hands to the model.

Several views share a row; a view is a CLS token followed by the tokens of its kept modalities. Images lie in
slots beside the rows, and index lists say which token comes from which slot and cell. Everything that depends on
the target GSD (sampling matrices, coordinates, indices) is data, so one compiled program serves every draw.

NamedTuples of arrays are pytrees wherever JAX is present and import nothing themselves: loader processes build
them without JAX.

Shape letters:
    R rows                      E encoder row length (visible tokens and one CLS per view)
    S image slots per row       L decoder row length (all tokens and one CLS per view)
    T dates                     N tokens of a modality that the encoder projects, per row
    C bands                     M tokens of a modality in the decoder, per row
    H, W pixels                 G grid capacity, per side
"""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any  # numpy on the host, jax.Array (or a tracer) on the device


class Images(NamedTuple):
    """The images of one modality, in slots beside the rows."""

    values_RxSxTxCxHxW: Array  # stored dtype; normalised on the device as (values - mean) / std
    mean_RxSxC: Array  # float32, in stored units
    std_RxSxC: Array  # float32, in stored units
    present_RxSxC: Array  # bool; an absent band is exactly 0 after normalisation
    valid_RxSxTxHxW: Array | None  # bool; None where no image of the corpus can have invalid pixels
    dates_RxSxT: Array  # float32, day of year 1..366
    frames_RxSxT: Array  # int8: 0 none, 1 real, 2 zero frame let in (trap `time_mask`)
    view_RxS: Array  # int32 view in the row, 1..V; 0 = empty slot
    scale_RxS: Array  # float32 native GSD / target GSD
    down_rows_RxSxGxH: Array  # float32 sampling matrices, zero rows beyond the grid
    down_cols_RxSxGxW: Array
    up_rows_RxSxHxG: Array  # float32 decoder mirrors
    up_cols_RxSxWxG: Array
    mask_RxSxGxG: Array  # bool, token hidden from the encoder: counts in the loss
    mask_rows_RxSxH: Array  # int32, grid row that labels a pixel row
    mask_cols_RxSxW: Array
    encoder_slot_RxN: Array  # int32, -1 = padding
    encoder_cell_RxN: Array  # int32, row * G + column
    decoder_slot_RxM: Array  # int32, -1 = padding
    decoder_cell_RxM: Array
    decoder_place_RxM: Array  # int32, place in the decoder row, -1 = padding


class Rows(NamedTuple):
    """R packed rows of one corpus. Segment ids count the views of a row from 1; 0 is padding."""

    encoder_segment_RxE: Array  # int32
    encoder_feature_RxE: (
        Array  # int32, index into the modalities' encoder lists, end to end; -1 = CLS or padding
    )
    encoder_coords_RxEx2: Array  # float32 metres (x, y)
    decoder_segment_RxL: Array  # int32
    decoder_coords_RxLx2: Array  # float32 metres (x, y)
    decoder_encoder_RxL: Array  # int32, place in the encoder row; -1 = masked or padding
    decoder_modality_RxL: Array  # int32, index of the modality in sorted names; -1 = CLS or padding
    images: dict[str, Images]  # every modality of the corpus, by sorted name (JAX's order of keys)


FRAME_NONE, FRAME_REAL, FRAME_ZERO = 0, 1, 2
