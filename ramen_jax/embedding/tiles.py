"""A scene, embedded tile by tile.

Tiles begin and end exactly on the token grid, so a token reads the same pixels as in
a run on the whole image; what differs from tile to tile is which other tokens it can attend to. Neighbouring tiles
overlap and are blended there with weights that rise linearly, so features change smoothly from tile to tile.

Memory holds one row of tiles. The output is written as its rows are finished; an interrupted run goes on where it was.

Shape letters: D features, modality after modality; h, w tokens of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ramen_jax import sampling
from ramen_jax.console import progress
from ramen_jax.embedding.feature_files import Output
from ramen_jax.embedding.rasters import Layer, Place, Tokens
from ramen_jax.inference import places
from ramen_jax.inference.encoder import Encoder
from ramen_jax.samples import Image, Sample

Item = TypeVar("Item")


@dataclass(frozen=True)
class Tiling:
    """Starts and ends of tiles along one axis, in tokens. `step` divides all of them but the grid's end."""

    tokens: int
    size: int
    overlap: int
    step: int

    def spans(self) -> list[tuple[int, int]]:
        """(start, end) of every tile; the last one ends with the grid and is as long as the others if it can be."""
        if self.tokens <= self.size:
            return [(0, self.tokens)]
        stride = self.size - self.overlap
        starts = list(range(0, self.tokens - self.size, stride))
        last = (self.tokens - self.size) // self.step * self.step
        return [(start, start + self.size) for start in starts if start < last] + [(last, self.tokens)]

    @staticmethod
    def weight(
        span: tuple[int, int], before: tuple[int, int] | None, after: tuple[int, int] | None
    ) -> np.ndarray:
        """[end - start] blending weights of a tile between its neighbours: 1, rising linearly where they overlap."""
        weight = np.ones(span[1] - span[0], np.float32)
        if before is not None and before[1] > span[0]:
            rise = before[1] - span[0]
            weight[:rise] *= (np.arange(rise) + 0.5) / rise
        if after is not None and after[0] < span[1]:
            fall = span[1] - after[0]
            weight[-fall:] *= (np.arange(fall)[::-1] + 0.5) / fall
        return weight


class Embedder:
    """Features of the windows of a place. `layer`: 0-based block whose output is wanted; None: the last."""

    def __init__(
        self, model: Encoder, place: Place, layer: int | None = None, positions: str = "tile"
    ) -> None:
        self.model, self.place, self.positions = model, place, positions
        self.layers = None if layer is None else (layer,)
        self.sensors = {item.name: item.sensor for item in place.layers}
        self.depth = model.width * len(place.layers)

    def read(self, window: Tokens) -> tuple[places.Place, np.ndarray]:
        """The images under a window of tokens, and bool [h, w]: tokens with a measured pixel of any layer."""
        images = {layer.name: layer.read(window) for layer in self.place.layers}
        top, bottom, left, right = window
        measured = np.zeros((bottom - top, right - left), bool)
        for layer in self.place.layers:
            measured |= footprint(images[layer.name], layer, self.place.target_gsd, measured.shape)
        gsd = self.place.target_gsd
        origin = (left * gsd, top * gsd) if self.positions == "scene" else (0.0, 0.0)
        return places.Place(Sample("window", images), self.sensors, gsd, origin), measured

    def encode(self, read: Iterable[tuple[places.Place, np.ndarray]]) -> list[np.ndarray]:
        """[D, h, w] features of windows that `read` gave; NaN where no pixel was measured."""
        windows = list(read)
        features = [np.full((self.depth, *measured.shape), np.nan, np.float32) for _, measured in windows]
        known = [number for number, (_, measured) in enumerate(windows) if measured.any()]
        for batch in self.model.batches([windows[number][0] for number in known]):
            for number, _, maps in batch.maps(np.asarray(self.model.run(batch, self.layers))):
                features[known[number]][:] = np.concatenate([array[0] for array in maps.values()])
        for array, (_, measured) in zip(features, windows, strict=True):
            array[:, ~measured] = np.nan
        return features


def footprint(image: Image, layer: Layer, target_gsd: float, grid: tuple[int, int]) -> np.ndarray:
    """Bool [h, w]: tokens with a measured pixel under them, in any frame."""
    valid = np.ones(image.values.shape[2:], bool) if image.valid is None else image.valid.any(axis=0)
    down, across = (
        sampling.down_matrix(pixels, layer.sensor.gsd, target_gsd, tokens, "area")
        for pixels, tokens in zip(valid.shape, grid, strict=True)
    )
    return np.asarray((down @ valid.astype(np.float32)) @ across.T > 1e-6)


def embed(embedder: Embedder, output: Output, tile: int, overlap: int) -> None:
    """Embeds the whole place into the output; tile and overlap are rounded up to multiples of the place's step."""
    place, step = embedder.place, embedder.place.step
    tile, overlap = (-(-tokens // step) * step for tokens in (tile, overlap))
    row_spans = Tiling(place.rows, tile, overlap, step).spans()
    column_spans = Tiling(place.columns, tile, overlap, step).spans()
    # A strip is finished where the next row of tiles begins. Going on needs the tiles that reach into the first
    # unwritten strip: those of the row before it, and of one more where the last row of tiles is moved up.
    first = max((i for i, span in enumerate(row_spans) if span[0] <= output.start), default=0)
    first = max(first - 2, 0)
    tallest = max(end - start for start, end in row_spans)
    sums = np.zeros((embedder.depth, tallest, place.columns), np.float32)
    weights = np.zeros((tallest, place.columns), np.float32)
    windows = [(*rows, *columns) for rows in row_spans for columns in column_spans]
    begun = first * len(column_spans)
    with progress(len(windows), "embedding", "tiles", start=begun) as bar:
        encoded = _encoded(embedder, windows, begun, bar.advance)
        for i in range(first, len(row_spans)):
            top, bottom = row_spans[i]
            before = row_spans[i - 1] if i else None
            after = row_spans[i + 1] if i + 1 < len(row_spans) else None
            down = Tiling.weight((top, bottom), before, after)
            for j, (left, right) in enumerate(column_spans):
                neighbours = [column_spans[k] if 0 <= k < len(column_spans) else None for k in (j - 1, j + 1)]
                weight = down[:, None] * Tiling.weight((left, right), *neighbours)[None]
                features = next(encoded)
                weight = np.where(np.isnan(features[0]), 0.0, weight)
                np.nan_to_num(features, copy=False)
                sums[:, : bottom - top, left:right] += features * weight
                weights[: bottom - top, left:right] += weight
            finished = (after[0] if after else bottom) - top
            if top + finished > output.start:
                strip = sums[:, :finished]
                strip /= np.maximum(weights[:finished], 1e-12)
                strip[:, weights[:finished] == 0] = np.nan
                output.write(top, strip)
            for array in (sums, weights):
                kept = array.shape[-2] - finished
                array[..., :kept, :] = array[..., finished:, :].copy()
                array[..., kept:, :] = 0.0


def _encoded(
    embedder: Embedder, windows: list[Tokens], begun: int, done: Callable[[], None]
) -> Iterator[np.ndarray]:
    """The features of the windows from number `begun` in order: several are encoded at once, the next read meanwhile.

    Which are encoded together depends on their numbers alone, so that a run that goes on rounds as one in one piece.
    """
    top, bottom, left, right = windows[0]
    tokens = 1 + len(embedder.place.layers) * (bottom - top) * (right - left)
    together = max(1, embedder.model.batch_tokens // tokens)
    starts = range(begun // together * together, len(windows), together)
    reads = ([embedder.read(window) for window in windows[k : k + together]] for k in starts)
    for start, read in zip(starts, _ahead(reads), strict=True):
        for number, features in enumerate(embedder.encode(read), start):
            if number >= begun:
                yield features
                done()


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The items, each one made by another thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
