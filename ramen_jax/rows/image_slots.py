"""The image slots of a batch: pixels, dates, masks and sampling matrices of one modality.

Shape letters as in `ramen_jax.rows.batch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ramen_jax import sampling
from ramen_jax.rows.batch import FRAME_REAL, FRAME_ZERO, Images
from ramen_jax.samples import Image, ModalitySpec

if TYPE_CHECKING:
    from ramen_jax.rows.packing import Capacity, PackedView


class TokenLists(NamedTuple):
    """The token lists of one modality (fields of `Images`)."""

    encoder_slot_RxN: np.ndarray
    encoder_cell_RxN: np.ndarray
    decoder_slot_RxM: np.ndarray
    decoder_cell_RxM: np.ndarray
    decoder_place_RxM: np.ndarray


class ImageWriter:
    """Writes the image slots of one modality."""

    def __init__(self, spec: ModalitySpec, capacity: Capacity, index: int, policy: str) -> None:
        self.spec, self.policy, self.grid = spec, policy, capacity.grid
        rows, slots, dates, grid = capacity.rows, capacity.slots[index], capacity.dates[index], capacity.grid
        bands, height, width = len(spec.sensor.bands), spec.height, spec.width
        self.slots, self.dates_capacity = slots, dates
        self.values = np.zeros((rows, slots, dates, bands, height, width), spec.dtype)
        self.mean = np.zeros((rows, slots, bands), np.float32)
        self.std = np.ones((rows, slots, bands), np.float32)
        self.present = np.zeros((rows, slots, bands), bool)
        self.valid = np.zeros((rows, slots, dates, height, width), bool) if spec.has_valid else None
        self.dates = np.zeros((rows, slots, dates), np.float32)
        self.frames = np.zeros((rows, slots, dates), np.int8)
        self.view = np.zeros((rows, slots), np.int32)
        self.scale = np.ones((rows, slots), np.float32)
        self.down_rows = np.zeros((rows, slots, grid, height), np.float32)
        self.down_cols = np.zeros((rows, slots, grid, width), np.float32)
        self.up_rows = np.zeros((rows, slots, height, grid), np.float32)
        self.up_cols = np.zeros((rows, slots, width, grid), np.float32)
        self.hidden = np.zeros((rows, slots, grid, grid), bool)
        self.mask_rows = np.zeros((rows, slots, height), np.int32)
        self.mask_cols = np.zeros((rows, slots, width), np.int32)

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
        (rows, cols), height, width = grid, self.spec.height, self.spec.width
        self.down_rows[at][:rows] = sampling.down_matrix(height, gsd, target, rows, self.policy)
        self.down_cols[at][:cols] = sampling.down_matrix(width, gsd, target, cols, self.policy)
        self.up_rows[at][:, :rows] = sampling.up_matrix(height, gsd, target, rows, self.policy)
        self.up_cols[at][:, :cols] = sampling.up_matrix(width, gsd, target, cols, self.policy)
        self.mask_rows[at] = sampling.mask_index(height, gsd, target, rows, self.policy)
        self.mask_cols[at] = sampling.mask_index(width, gsd, target, cols, self.policy)
        return at[1]

    def mask(self, slot: int, hidden: np.ndarray) -> None:
        self.hidden[self.row, slot, : hidden.shape[0], : hidden.shape[1]] = hidden

    def let_in_zero_frames(self, per_row: bool) -> None:
        """Trap 2: short series get zero frames of date 0, up to the longest one among their neighbours."""
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
        check_image(self.spec, image, view.sample.id)
        kept = kept_frames(view, self.spec.name)
        count = len(kept)
        if not 1 <= count <= self.dates_capacity:
            raise ValueError(
                f"sample '{view.sample.id}', {self.spec.name}: {count} dates kept, "
                f"1 to {self.dates_capacity} fit"
            )
        if count == len(image.values):
            self.values[at][:count] = image.values
        else:
            np.take(image.values, kept, axis=0, out=self.values[at][:count], mode="clip")
        self.dates[at][:count] = image.dates[kept]
        self.frames[at][:count] = FRAME_REAL
        self.present[at] = image.present
        if self.valid is not None:
            self.valid[at][:count] = True if image.valid is None else image.valid[kept]
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


def kept_frames(view: PackedView, modality: str) -> np.ndarray:
    """Indices of the frames kept; one absent frame stands for a modality that the sample lacks."""
    if modality not in view.sample.images:
        return np.zeros(1, int)
    if modality in view.dates:
        return np.asarray(view.dates[modality])
    return np.arange(len(view.sample.images[modality].values))
