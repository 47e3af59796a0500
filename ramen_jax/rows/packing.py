"""Views -> packed rows: everything that depends on a draw is turned into arrays of fixed shape.

A view is a CLS token followed by the tokens of its kept modalities, contiguous in the encoder row and in the
decoder row. Its mask is the reference's (RAMEN_MAE.py, `random_masking`): argsort of one noise value per token
over the concatenated modalities; the first int(L * (1 - mask_ratio)) tokens stay visible.

numpy only, one pass per view, no work per token in Python: this runs on the cores that feed the accelerator.

Shape letters as in `ramen_jax.rows.batch`.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from functools import lru_cache

import numpy as np

from ramen_jax.recipe import Recipe
from ramen_jax.rows.batch import Images, Rows
from ramen_jax.rows.image_slots import ImageWriter, TokenLists
from ramen_jax.rows.shapes import filled, row_shapes
from ramen_jax.rows.views import Capacity, PackedView, kept_frames, view_grid, visible_count
from ramen_jax.samples import CorpusSpec

SHORT_SERIES = ("batch", "row")


def pack(
    spec: CorpusSpec,
    rows: Sequence[Sequence[PackedView]],
    capacity: Capacity,
    recipe: Recipe,
    mask_ratio: float = 0.75,
    *,
    short_series: str = "batch",
    counters: MutableMapping[str, int] | None = None,
) -> Rows:
    """Packs views into rows.

    Args:
        spec: the corpus of every view.
        rows: the views of each row, in segment order.
        capacity: static shapes; `len(rows)` must be `capacity.rows`.
        recipe: `sampling` chooses the sampling matrices; `time_mask` what fills a series shorter than its neighbours
            (zero frames of date 0 that the model sees, or nothing); `temporal` which tokens the encoder's lists hold
            (all of them, or the visible ones).
        mask_ratio: share of hidden tokens.
        short_series: the neighbours of `time_mask`'s reference: every view given here (`batch`, the official
            loader), or those of the same row (`row`, which no number of hosts changes).
        counters: `moved_tokens` is increased by the visible tokens that a full list sent to another modality.

    Returns:
        Rows of numpy arrays with exactly the shapes of `capacity`.

    Raises:
        ValueError: a view that does not fit, an image unlike its specification, missing statistics.
    """
    if short_series not in SHORT_SERIES:
        raise ValueError(
            f"short_series: unknown value '{short_series}'; choose one of {', '.join(SHORT_SERIES)}"
        )
    if len(rows) != capacity.rows:
        raise ValueError(f"{len(rows)} rows given, the capacity says {capacity.rows}")
    tokens = _TokenWriter(spec, capacity, recipe.temporal, mask_ratio)
    stacks = [ImageWriter(spec, capacity, i, recipe.sampling) for i in range(len(spec.modalities))]
    for r, views in enumerate(rows):
        tokens.start(r)
        for stack in stacks:
            stack.start(r)
        for segment, view in enumerate(views, start=1):
            grid = view.grid or view_grid(spec, view.target_gsd)
            slots = [stacks[tokens.index[name]].add(view, segment, grid) for name in _kept(spec, view)]
            hidden = tokens.add(view, segment, grid, slots)
            for place, name in enumerate(view.modalities):
                stacks[tokens.index[name]].mask(slots[place], hidden[place].reshape(grid))
    if recipe.time_mask == "reference":
        for stack in stacks:
            stack.let_in_zero_frames(per_row=short_series == "row")
    if counters is not None and tokens.moved:
        counters["moved_tokens"] = counters.get("moved_tokens", 0) + tokens.moved
    return tokens.rows({name: stacks[i].images(tokens.lists[i]) for name, i in tokens.index.items()})


def exact_capacity(
    spec: CorpusSpec, rows: Sequence[Sequence[PackedView]], recipe: Recipe, mask_ratio: float = 0.75
) -> Capacity:
    """The smallest capacity that holds `rows`: no padding where the rows are alike.

    A modality that nobody keeps still has one empty slot, so that its arrays exist.
    """
    names = spec.names
    slots = np.zeros((max(len(rows), 1), len(names)), int)
    encoder, decoder = slots.copy(), slots.copy()
    dates = [1] * len(names)
    lengths = [(1, 1)]
    grid = 1
    for r, views in enumerate(rows):
        encoder_length = decoder_length = 0
        for view in views:
            size = view.grid or view_grid(spec, view.target_gsd)
            kept = _kept(spec, view)
            cells = size[0] * size[1]
            grid = max(grid, *size)
            visible = np.sort(
                _token_order(view, len(kept) * cells)[: visible_count(len(kept) * cells, mask_ratio)]
            )
            encoder_length += 1 + len(visible)
            decoder_length += 1 + len(kept) * cells
            per_modality = np.bincount(visible // cells, minlength=len(kept))
            for name, count in zip(kept, per_modality, strict=True):
                i = names.index(name)
                slots[r, i] += 1
                decoder[r, i] += cells
                encoder[r, i] += cells if recipe.temporal == "all" else count
                dates[i] = max(dates[i], len(kept_frames(view, name)))
        lengths.append((encoder_length, decoder_length))
    return Capacity(
        rows=len(rows),
        encoder_length=max(e for e, _ in lengths),
        decoder_length=max(d for _, d in lengths),
        views=max([1, *(len(views) for views in rows)]),
        grid=grid,
        slots=_at_least_one(slots),
        encoder_tokens=_at_least_one(encoder),
        decoder_tokens=_at_least_one(decoder),
        dates=tuple(dates),
    )


class _TokenWriter:
    """Writes the token arrays of all rows; `start` opens a row, `add` appends a view to it."""

    def __init__(self, spec: CorpusSpec, capacity: Capacity, temporal: str, mask_ratio: float) -> None:
        self.capacity, self.temporal, self.mask_ratio = capacity, temporal, mask_ratio
        self.index = {name: i for i, name in enumerate(spec.names)}
        lengths = np.array(capacity.encoder_tokens)
        self.offsets = np.cumsum(lengths) - lengths
        self.moved = 0
        shapes = row_shapes(spec, capacity)
        self.encoder_segment = filled(shapes.encoder_segment_RxE)
        self.encoder_feature = filled(shapes.encoder_feature_RxE, -1)
        self.encoder_coords = filled(shapes.encoder_coords_RxEx2)
        self.decoder_segment = filled(shapes.decoder_segment_RxL)
        self.decoder_coords = filled(shapes.decoder_coords_RxLx2)
        self.decoder_encoder = filled(shapes.decoder_encoder_RxL, -1)
        self.decoder_modality = filled(shapes.decoder_modality_RxL, -1)
        self.lists = [
            TokenLists(
                encoder_slot_RxN=filled(images.encoder_slot_RxN, -1),
                # The cell of a padding entry is read (and thrown away): it must exist.
                encoder_cell_RxN=filled(images.encoder_cell_RxN),
                decoder_slot_RxM=filled(images.decoder_slot_RxM, -1),
                decoder_cell_RxM=filled(images.decoder_cell_RxM),
                decoder_place_RxM=filled(images.decoder_place_RxM, -1),
            )
            for images in shapes.images.values()
        ]

    def start(self, row: int) -> None:
        self.row, self.e, self.d = row, 0, 0
        self.n = np.zeros(len(self.lists), int)
        self.m = np.zeros(len(self.lists), int)

    def add(self, view: PackedView, segment: int, grid: tuple[int, int], slots: list[int]) -> np.ndarray:
        """Appends a view; returns the hidden tokens [modalities, cells]."""
        modalities = np.array([self.index[name] for name in view.modalities])
        cells, coords = _cells(*grid, self.capacity.grid, view.target_gsd)
        if view.origin != (0.0, 0.0):
            coords = coords + np.array(view.origin, np.float32)
        count = len(cells)
        total = len(modalities) * count
        visible = self._visible(view, modalities, count)
        hidden = np.ones(total, bool)
        hidden[visible] = False

        e, d, row = self.e, self.d, self.row
        self.e, self.d = e + 1 + len(visible), d + 1 + total
        if segment > self.capacity.views:
            raise ValueError(f"row {row} holds at most {self.capacity.views} views, a further one was given")
        self._check_room("encoder tokens", self.e, self.capacity.encoder_length, view)
        self._check_room("decoder tokens", self.d, self.capacity.decoder_length, view)

        owner = visible // count  # which kept modality each visible token belongs to
        self.encoder_segment[row, e : self.e] = segment
        self.encoder_coords[row, e + 1 : self.e] = coords[visible % count]
        self.decoder_segment[row, d : self.d] = segment
        self.decoder_coords[row, d + 1 : self.d] = np.tile(coords, (len(modalities), 1))
        self.decoder_modality[row, d + 1 : self.d] = np.repeat(modalities, count)
        self.decoder_encoder[row, d] = e
        self.decoder_encoder[row, d + 1 + visible] = np.arange(e + 1, self.e, dtype=np.int32)

        bounds = np.searchsorted(owner, np.arange(len(modalities) + 1))
        for k, i in enumerate(modalities):
            lists, n, m = self.lists[i], self.n[i], self.m[i]
            listed = visible[bounds[k] : bounds[k + 1]] % count
            place = np.arange(len(listed))
            if self.temporal == "all":
                place, listed = listed, np.arange(count)
            self.n[i], self.m[i] = n + len(listed), m + count
            name = view.modalities[k]
            self._check_room(f"encoder tokens of {name}", self.n[i], self.capacity.encoder_tokens[i], view)
            self._check_room(f"decoder tokens of {name}", self.m[i], self.capacity.decoder_tokens[i], view)
            lists.encoder_slot_RxN[row, n : self.n[i]] = slots[k]
            lists.encoder_cell_RxN[row, n : self.n[i]] = cells[listed]
            lists.decoder_slot_RxM[row, m : self.m[i]] = slots[k]
            lists.decoder_cell_RxM[row, m : self.m[i]] = cells
            lists.decoder_place_RxM[row, m : self.m[i]] = np.arange(
                d + 1 + k * count, d + 1 + (k + 1) * count
            )
            feature = self.offsets[i] + n + place
            self.encoder_feature[row, e + 1 + bounds[k] : e + 1 + bounds[k + 1]] = feature
        return hidden.reshape(len(modalities), count)

    def rows(self, images: dict[str, Images]) -> Rows:
        return Rows(
            encoder_segment_RxE=self.encoder_segment,
            encoder_feature_RxE=self.encoder_feature,
            encoder_coords_RxEx2=self.encoder_coords,
            decoder_segment_RxL=self.decoder_segment,
            decoder_coords_RxLx2=self.decoder_coords,
            decoder_encoder_RxL=self.decoder_encoder,
            decoder_modality_RxL=self.decoder_modality,
            images=images,
        )

    def _visible(self, view: PackedView, modalities: np.ndarray, count: int) -> np.ndarray:
        """The visible tokens of a view, ascending.

        A modality whose list is full gives its place to the next-best token of another one: the number of
        visible tokens never changes.
        """
        total = len(modalities) * count
        order = _token_order(view, total)
        wanted = visible_count(total, self.mask_ratio)
        visible = np.sort(order[:wanted])
        if self.temporal == "all":
            return visible
        room = np.array(self.capacity.encoder_tokens)[modalities] - self.n[modalities]
        over = np.maximum(np.bincount(visible // count, minlength=len(modalities)) - room, 0).sum()
        if not over:
            return visible
        owner = order // count
        rank = np.empty(total, int)
        for k in range(len(modalities)):
            rank[owner == k] = np.arange(count)
        allowed = order[rank < room[owner]][:wanted]
        if len(allowed) < wanted:
            raise ValueError(
                f"row {self.row}: {wanted} visible tokens at target GSD {view.target_gsd:g} m do not fit in "
                f"the encoder lists, which have room for {len(allowed)}; raise encoder_tokens"
            )
        self.moved += int(over)
        return np.sort(allowed)

    def _check_room(self, what: str, needed: int, capacity: int, view: PackedView) -> None:
        if needed > capacity:
            raise ValueError(
                f"row {self.row}: {needed} {what} needed with sample '{view.sample.id}' at target GSD "
                f"{view.target_gsd:g} m, the capacity is {capacity}"
            )


@lru_cache(maxsize=1024)
def _cells(rows: int, cols: int, grid: int, target_gsd: float) -> tuple[np.ndarray, np.ndarray]:
    """Cell numbers [rows * cols] in a square of side `grid`, and their (x, y) in metres [rows * cols, 2]."""
    y, x = np.divmod(np.arange(rows * cols), cols)
    cells = (y * grid + x).astype(np.int32)
    coords = (np.stack([x, y], axis=1) * np.float64(target_gsd)).astype(np.float32)
    cells.setflags(write=False)
    coords.setflags(write=False)
    return cells, coords


def _token_order(view: PackedView, tokens: int) -> np.ndarray:
    if len(view.noise) != tokens:
        raise ValueError(f"sample '{view.sample.id}': {len(view.noise)} noise values for {tokens} tokens")
    return np.argsort(view.noise, kind="stable")


def _kept(spec: CorpusSpec, view: PackedView) -> tuple[str, ...]:
    known = spec.names
    unknown = [name for name in view.modalities if name not in known]
    if unknown or not view.modalities or len(set(view.modalities)) < len(view.modalities):
        raise ValueError(
            f"modalities kept: {view.modalities}; {spec.name} has {', '.join(known)}, each at most once"
        )
    return view.modalities


def _at_least_one(counts_RxM: np.ndarray) -> tuple[int, ...]:
    return tuple(int(n) for n in np.maximum(counts_RxM.max(axis=0), 1))
