"""Where resolution is decided: the 1-D matrices between pixels and tokens.

Every change of resolution in RAMEN is separable, so it is two small matrices per image, one per axis. They are
built here, on the host, in float64 (source coordinates of the reference policy in float32, as PyTorch forms
them), and cached; the device only multiplies. Any target GSD, rectangular images
and a GSD per modality are therefore data, not code.

Words: `pixels` is a count along one axis, `native_gsd` and `target_gsd` are metres, `grid` is the number of
tokens along the axis.

Three policies:

- `reference` reproduces the official rules (RamenViT.py `forward_proj`, DecoderViT.py `forward`, and PyTorch's
  bilinear interpolation with a scale factor): a first resize whose output size is truncated and whose
  coordinates use the given factor, the identity when that size equals the input size, then a second resize by
  the ratio of sizes when the result misses the expected size.
- `metric` keeps true metric coordinates: token i is centred at (i + 0.5) * target_gsd metres and reads the
  image there. Nothing is stretched, no strip moves.
- `area` lets a token average its whole footprint, and a pixel average the tokens under its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from ramen_jax.console import USAGE, UserError

POLICIES = ("reference", "metric", "area")
FINEST = 64  # tokens per pixel along an axis; more would be copies of each other


def grid_size(pixels: int, native_gsd: float, target_gsd: float) -> int:
    """Tokens along an axis of `pixels` pixels: the extent over the target GSD, truncated.

    The official code takes the extent of the corpus's first modality (RamenViT.py, `effective_size`), in this
    order of operations, which matters when the quotient is a whole number.

    Raises:
        UserError: a GSD that is not positive, a grid that would be empty, or one of more than `FINEST` tokens per
            pixel. A command shows it as one line.
    """
    _check(pixels, native_gsd, target_gsd)
    quotient = pixels * (native_gsd / target_gsd)
    if quotient > FINEST * pixels:
        raise UserError(
            f"target GSD {target_gsd:g} m asks for {quotient:,.0f} cells along {pixels} pixels of {native_gsd:g} m; "
            f"the limit is {FINEST} cells per pixel and axis, a target GSD of at least {native_gsd / FINEST:g} m "
            "(is it given in metres?)",
            USAGE,
        )
    grid = int(quotient)
    if grid < 1:
        raise UserError(
            f"target GSD {target_gsd:g} m leaves an empty grid: the image is {pixels} px of {native_gsd:g} m, "
            f"{pixels * native_gsd:g} m across; use a target GSD of at most {pixels * native_gsd:g} m",
            USAGE,
        )
    return grid


@lru_cache(maxsize=4096)
def down_matrix(
    pixels: int, native_gsd: float, target_gsd: float, grid: int, policy: str = "reference"
) -> np.ndarray:
    """The encoder's sampling matrix [grid, pixels], float32, rows summing to 1, read-only."""
    _check(pixels, native_gsd, target_gsd)
    build = _by_policy(policy)
    return _frozen(build(pixels, grid, native_gsd, target_gsd))


@lru_cache(maxsize=4096)
def up_matrix(
    pixels: int, native_gsd: float, target_gsd: float, grid: int, policy: str = "reference"
) -> np.ndarray:
    """The decoder's mirror of `down_matrix`: [pixels, grid], float32, rows summing to 1, read-only."""
    _check(pixels, native_gsd, target_gsd)
    build = _by_policy(policy)
    return _frozen(build(grid, pixels, target_gsd, native_gsd))


@lru_cache(maxsize=4096)
def mask_index(
    pixels: int, native_gsd: float, target_gsd: float, grid: int, policy: str = "reference"
) -> np.ndarray:
    """The token that labels each pixel as masked or visible: [pixels] int32, read-only.

    `reference` is PyTorch's nearest resize from grid to pixels (float32 ratio, floor); the other policies take
    the token under the pixel's centre.
    """
    _check(pixels, native_gsd, target_gsd)
    _by_policy(policy)
    if policy == "reference":
        ratio = np.float32(grid) / np.float32(pixels)
        index = np.floor(np.arange(pixels, dtype=np.float32) * ratio)
    else:
        index = np.floor((np.arange(pixels) + 0.5) * (native_gsd / target_gsd))
    result = np.minimum(index, grid - 1).astype(np.int32)
    result.setflags(write=False)
    return result


def _check(pixels: int, native_gsd: float, target_gsd: float) -> None:
    for name, gsd in (("native", native_gsd), ("target", target_gsd)):
        if not (gsd > 0 and np.isfinite(gsd)):
            raise UserError(f"the {name} GSD must be a positive number of metres, found {gsd}", USAGE)
    if pixels < 1:
        raise UserError(f"an image needs at least one pixel along each axis, found {pixels}", USAGE)


def _by_policy(policy: str) -> Callable[[int, int, float, float], np.ndarray]:
    builders = {"reference": _reference, "metric": _metric, "area": _area}
    if policy not in builders:
        raise UserError(f"unknown sampling policy '{policy}'; choose one of {', '.join(POLICIES)}", USAGE)
    return builders[policy]


def _frozen(matrix: np.ndarray) -> np.ndarray:
    result = matrix.astype(np.float32)
    result.setflags(write=False)
    return result


def _bilinear(source: np.ndarray, size: int) -> np.ndarray:
    """Rows that read `size` samples at the fractional positions `source`, clamped at both ends."""
    source = np.clip(source, 0.0, size - 1.0)
    low = np.minimum(np.floor(source).astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    weight = source - low
    matrix = np.zeros((len(source), size))
    rows = np.arange(len(source))
    np.add.at(matrix, (rows, low), 1.0 - weight)
    np.add.at(matrix, (rows, high), weight)
    return matrix


def _reference(size: int, expected: int, step: float, target_step: float) -> np.ndarray:
    factor = step / target_step
    first = int(np.floor(size * factor))
    if first < 1:
        raise UserError(
            f"{size} samples of {step:g} m resized to {target_step:g} m leave nothing; the reference rule "
            "truncates, use a smaller target GSD or the sampling policy 'metric'",
            USAGE,
        )
    matrix = np.eye(size) if first == size else _bilinear(_float32_centres(first, 1.0 / factor), size)
    if first != expected:
        matrix = _bilinear(_float32_centres(expected, first / expected), first) @ matrix
    return matrix


def _float32_centres(count: int, step: float) -> np.ndarray:
    """Source coordinates of `count` samples, rounded to float32 at each operation as PyTorch does."""
    half = np.float32(0.5)
    centres = (np.arange(count, dtype=np.float32) + half) * np.float32(step) - half
    return centres.astype(np.float64)


def _metric(size: int, expected: int, step: float, target_step: float) -> np.ndarray:
    return _bilinear((np.arange(expected) + 0.5) * (target_step / step) - 0.5, size)


def _area(size: int, expected: int, step: float, target_step: float) -> np.ndarray:
    edges = np.clip(np.arange(expected + 1) * (target_step / step), 0.0, size)
    inner = np.arange(size)
    overlap = np.minimum(edges[1:, None], inner[None, :] + 1.0) - np.maximum(edges[:-1, None], inner[None, :])
    overlap = np.maximum(overlap, 0.0)
    # Outside the other grid there is nothing to average: the nearest sample stands for it.
    overlap[overlap.sum(axis=1) < 1e-9, size - 1] = 1.0
    return overlap / overlap.sum(axis=1, keepdims=True)
