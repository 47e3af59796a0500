"""The image slots of a batch: pixels, dates, masks and sampling matrices of one modality.

Shape letters as in `ramen_jax.rows.batch`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ramen_jax import sampling
from ramen_jax.rows.batch import FRAME_REAL, FRAME_ZERO, Images
from ramen_jax.rows.shapes import filled, image_shapes
from ramen_jax.rows.views import Capacity, PackedView, kept_frames
from ramen_jax.samples import CorpusSpec, Image, ModalitySpec


class TokenLists(NamedTuple):
    """The token lists of one modality (fields of `Images`)."""

    encoder_slot_RxN: np.ndarray
    encoder_cell_RxN: np.ndarray
    decoder_slot_RxM: np.ndarray
    decoder_cell_RxM: np.ndarray
    decoder_place_RxM: np.ndarray


class ImageWriter:
    """Writes the image slots of one modality."""

    def __init__(self, spec: CorpusSpec, capacity: Capacity, index: int, policy: str) -> None:
        self.spec, self.policy, self.grid = spec.modalities[index], policy, capacity.grid
        self.slots, self.dates_capacity = capacity.slots[index], capacity.dates[index]
        self.any_size = capacity.pixels is not None
        shapes = image_shapes(spec, capacity, index)
        self.values = filled(shapes.values_RxSxTxCxHxW)
        self.mean = filled(shapes.mean_RxSxC)
        self.std = filled(shapes.std_RxSxC, 1)
        self.present = filled(shapes.present_RxSxC)
        self.valid = None if shapes.valid_RxSxTxHxW is None else filled(shapes.valid_RxSxTxHxW)
        self.dates = filled(shapes.dates_RxSxT)
        self.frames = filled(shapes.frames_RxSxT)
        self.view = filled(shapes.view_RxS)
        self.scale = filled(shapes.scale_RxS, 1)
        self.down_rows = filled(shapes.down_rows_RxSxGxH)
        self.down_cols = filled(shapes.down_cols_RxSxGxW)
        self.up_rows = filled(shapes.up_rows_RxSxHxG)
        self.up_cols = filled(shapes.up_cols_RxSxWxG)
        self.hidden = filled(shapes.mask_RxSxGxG)
        self.mask_rows = filled(shapes.mask_rows_RxSxH)
        self.mask_cols = filled(shapes.mask_cols_RxSxW)

    def start(self, row: int) -> None:
        self.row, self.used = row, 0

    def add(self, view: PackedView, segment: int, grid: tuple[int, int]) -> int:
        """Writes the view's image in the next slot of the row, whose number it returns."""
        at = (self.row, self.used)
        if self.used == self.slots:
            raise ValueError(
                f"row {self.row} has {self.slots} slots for {self.spec.name}, a further one is needed"
            )
        self.used += 1
        self._write_pixels(view, at)
        self.view[at] = segment
        gsd, target = self.spec.sensor.gsd, view.target_gsd
        self.scale[at] = gsd / target
        if view.on_grid:
            for matrix in (self.down_rows, self.down_cols, self.up_rows, self.up_cols):
                np.fill_diagonal(matrix[at], 1)
            return at[1]
        (rows, cols), height, width = grid, self.spec.height, self.spec.width
        if self.any_size:
            height, width = view.sample.images[self.spec.name].values.shape[2:]
        self.down_rows[at][:rows, :height] = sampling.down_matrix(height, gsd, target, rows, self.policy)
        self.down_cols[at][:cols, :width] = sampling.down_matrix(width, gsd, target, cols, self.policy)
        self.up_rows[at][:height, :rows] = sampling.up_matrix(height, gsd, target, rows, self.policy)
        self.up_cols[at][:width, :cols] = sampling.up_matrix(width, gsd, target, cols, self.policy)
        self.mask_rows[at][:height] = sampling.mask_index(height, gsd, target, rows, self.policy)
        self.mask_cols[at][:width] = sampling.mask_index(width, gsd, target, cols, self.policy)
        return at[1]

    def mask(self, slot: int, hidden: np.ndarray) -> None:
        self.hidden[self.row, slot, : hidden.shape[0], : hidden.shape[1]] = hidden

    def let_in_zero_frames(self, per_row: bool) -> None:
        """Trap `time_mask`: short series get zero frames of date 0, up to the longest one among their neighbours."""
        lengths = (self.frames == FRAME_REAL).sum(axis=2)
        longest = lengths.max(axis=1, keepdims=True) if per_row else lengths.max()
        padding = (np.arange(self.dates_capacity) < longest[..., None]) & (self.view > 0)[..., None]
        padding &= self.frames != FRAME_REAL
        self.frames[padding] = FRAME_ZERO
        if self.valid is not None:
            self.valid[padding] = True

    def images(self, lists: TokenLists) -> Images:
        return Images(
            values_RxSxTxCxHxW=self.values,
            mean_RxSxC=self.mean,
            std_RxSxC=self.std,
            present_RxSxC=self.present,
            valid_RxSxTxHxW=self.valid,
            dates_RxSxT=self.dates,
            frames_RxSxT=self.frames,
            view_RxS=self.view,
            scale_RxS=self.scale,
            down_rows_RxSxGxH=self.down_rows,
            down_cols_RxSxGxW=self.down_cols,
            up_rows_RxSxHxG=self.up_rows,
            up_cols_RxSxWxG=self.up_cols,
            mask_RxSxGxG=self.hidden,
            mask_rows_RxSxH=self.mask_rows,
            mask_cols_RxSxW=self.mask_cols,
            **lists._asdict(),
        )

    def _write_pixels(self, view: PackedView, at: tuple[int, int]) -> None:
        image = view.sample.images.get(self.spec.name)
        if image is None:  # the plan counted its tokens: one frame whose bands are all absent
            self.frames[at][0] = FRAME_REAL
            return
        if not self.any_size:
            check_image(self.spec, image, view.sample.id)
        kept = kept_frames(view, self.spec.name)
        count = len(kept)
        if not 1 <= count <= self.dates_capacity:
            raise ValueError(
                f"sample '{view.sample.id}', {self.spec.name}: {count} dates kept, "
                f"1 to {self.dates_capacity} fit"
            )
        height, width = image.values.shape[2:]
        room = self.values[at][:count, :, :height, :width]
        if count == len(image.values):
            room[...] = image.values
        else:
            np.take(image.values, kept, axis=0, out=room, mode="clip")
        self.dates[at][:count] = image.dates[kept]
        self.frames[at][:count] = FRAME_REAL
        self.present[at] = image.present
        if self.valid is not None:
            self.valid[at][:count, :height, :width] = True if image.valid is None else image.valid[kept]
        if view.on_grid:
            return  # mean 0 and standard deviation 1
        sensor = self.spec.sensor
        mean, std = view.statistics.get(self.spec.name, (sensor.mean, sensor.std))
        if mean is None or std is None:
            raise ValueError(
                f"sensor '{sensor.name}' of modality {self.spec.name} has no mean and std: run prepare"
            )
        # (values * scale + offset - mean) / std, moved to stored units: the device subtracts and divides once
        self.mean[at] = (np.asarray(mean, np.float64) - sensor.offset) / sensor.scale
        self.std[at] = np.asarray(std, np.float64) / sensor.scale


def check_image(spec: ModalitySpec, image: Image, sample: str) -> None:
    """Raises ValueError where an image is not as its modality says: bands, size, dtype, invalid pixels."""
    expected = (len(spec.sensor.bands), spec.height, spec.width)
    if image.values.shape[1:] != expected or image.values.dtype != np.dtype(spec.dtype):
        raise ValueError(
            f"sample '{sample}', {spec.name}: found {image.values.dtype} values of shape {image.values.shape}, "
            f"expected {spec.dtype} [dates, {', '.join(map(str, expected))}]"
        )
    if not len(image.values):
        raise ValueError(f"sample '{sample}', {spec.name}: no date")
    if image.valid is not None and not spec.has_valid and not image.valid.all():
        raise ValueError(
            f"sample '{sample}', {spec.name}: has invalid pixels although the corpus says it has none "
            "(has_valid: false); prepare the corpus again"
        )
