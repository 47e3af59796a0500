"""A view ready to be packed, and the static shapes that rows of views have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ramen_jax import sampling
from ramen_jax.samples import CorpusSpec, Sample


@dataclass(frozen=True)
class Capacity:
    """The static shapes of a batch. Tuples follow the modalities' sorted names.

    Attributes:
        rows: rows of a step (R).
        encoder_length, decoder_length: tokens per row, one CLS per view included (E, L).
        views: views per row at most.
        grid: tokens along the longer side of the largest grid (G).
        slots: images per row (S).
        encoder_tokens: tokens per row that the encoder projects (N).
        decoder_tokens: tokens per row in the decoder (M).
        dates: frames per image (T).
        pixels: (H, W) per modality where images may be smaller than that; None: every image has its modality's size.
    """

    rows: int
    encoder_length: int
    decoder_length: int
    views: int
    grid: int
    slots: tuple[int, ...]
    encoder_tokens: tuple[int, ...]
    decoder_tokens: tuple[int, ...]
    dates: tuple[int, ...]
    pixels: tuple[tuple[int, int], ...] | None = None


@dataclass
class PackedView:
    """One view, ready to be packed.

    Attributes:
        sample: the images.
        target_gsd: metres per token.
        modalities: the kept ones, in token order.
        noise: [L], one number per token; the smallest stay visible.
        dates: indices of the frames kept, per modality; a modality not named keeps all of them.
        statistics: (mean [C], std [C]) of physical values per modality, where the sample has its own
            (MMEarth's L1C and L2A); otherwise the sensor's.
        grid: tokens (down, across); None: the corpus's at this GSD.
        origin: (x, y) metres that positions are counted from.
        on_grid: the images are normalised and hold one value per token already.
    """

    sample: Sample
    target_gsd: float
    modalities: tuple[str, ...]
    noise: np.ndarray
    dates: dict[str, np.ndarray] = field(default_factory=dict)
    statistics: dict[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    origin: tuple[float, float] = (0.0, 0.0)
    on_grid: bool = False


def view_grid(spec: CorpusSpec, target_gsd: float) -> tuple[int, int]:
    """Tokens (down, across) of one modality at a target GSD: the corpus's first declared modality decides."""
    first = spec.first
    rows = sampling.grid_size(first.height, first.sensor.gsd, target_gsd)
    return rows, sampling.grid_size(first.width, first.sensor.gsd, target_gsd)


def visible_count(tokens: int, mask_ratio: float) -> int:
    """Tokens that stay visible of `tokens`, rounded as the reference rounds."""
    return int(tokens * (1 - mask_ratio))


def kept_frames(view: PackedView, modality: str) -> np.ndarray:
    """Indices of the frames kept; one absent frame stands for a modality that the sample lacks."""
    if modality not in view.sample.images:
        return np.zeros(1, int)
    if modality in view.dates:
        return np.asarray(view.dates[modality])
    return np.arange(len(view.sample.images[modality].values))
