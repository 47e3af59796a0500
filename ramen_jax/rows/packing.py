"""Views -> packed rows: everything that depends on a draw is turned into arrays of fixed shape.

A view is a CLS token followed by the tokens of its kept modalities, contiguous in the encoder row and in the
decoder row. Its mask is the reference's (RAMEN_MAE.py, `random_masking`): argsort of one noise value per token
over the concatenated modalities; the first int(L * (1 - mask_ratio)) tokens stay visible.

Inside the batch, modalities are numbered and listed in the order of their sorted names: JAX sorts the keys of every
dictionary, so this is the order that a traced program sees. (Capacities follow the corpus's order.)

numpy only, one pass per view, no work per token in Python: this runs on the cores that feed the accelerator.

Shape letters as in `ramen_jax.rows.batch`.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from ramen_jax import sampling
from ramen_jax.rows.batch import Images, Rows
from ramen_jax.rows.image_slots import ImageWriter, TokenLists, kept_frames
from ramen_jax.samples import CorpusSpec, Sample

TIME_MASKS = ("reference", "fixed")
TEMPORALS = ("all", "visible")
SHORT_SERIES = ("batch", "row")


@dataclass(frozen=True)
class Capacity:
    """The static shapes of a batch. Tuples follow the order of the corpus's modalities.

    Attributes:
        rows: rows of a step (R).
        encoder_length, decoder_length: tokens per row, one CLS per view included (E, L).
        views: views per row at most.
        grid: tokens along the longer side of the largest grid (G).
        slots: images per row (S).
        encoder_tokens: tokens per row that the encoder projects (N).
        decoder_tokens: tokens per row in the decoder (M).
        dates: frames per image (T).
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
    """

    sample: Sample
    target_gsd: float
    modalities: tuple[str, ...]
    noise: np.ndarray
    dates: dict[str, np.ndarray] = field(default_factory=dict)
    statistics: dict[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)


def view_grid(spec: CorpusSpec, target_gsd: float) -> tuple[int, int]:
    """Tokens (down, across) of one modality at a target GSD: the corpus's first modality decides."""
    first = spec.modalities[0]
    rows = sampling.grid_size(first.height, first.sensor.gsd, target_gsd)
    return rows, sampling.grid_size(first.width, first.sensor.gsd, target_gsd)


def visible_count(tokens: int, mask_ratio: float) -> int:
    """Tokens that stay visible of `tokens`, rounded as the reference rounds."""
    return int(tokens * (1 - mask_ratio))


def pack(
    spec: CorpusSpec,
    rows: Sequence[Sequence[PackedView]],
    capacity: Capacity,
    *,
    sampling: str = "reference",
    time_mask: str = "reference",
    temporal: str = "all",
    mask_ratio: float = 0.75,
    short_series: str = "batch",
    counters: MutableMapping[str, int] | None = None,
) -> Rows:
    """Packs views into rows.

    Args:
        spec: the corpus of every view.
        rows: the views of each row, in segment order.
        capacity: static shapes; `len(rows)` must be `capacity.rows`.
        sampling: policy of the sampling matrices (`ramen_jax.sampling.POLICIES`).
        time_mask: what fills a series shorter than its neighbours: `reference` zero frames of date 0 that the
            model sees (trap 2), `fixed` nothing.
        temporal: which tokens the encoder's lists hold: `all`, or the `visible` ones only (D9).
        mask_ratio: share of hidden tokens.
        short_series: the neighbours of `time_mask=reference`: every view given here (`batch`, the official
            loader), or those of the same row (`row`, which no number of hosts changes).
        counters: `moved_tokens` is increased by the visible tokens that a full list sent to another modality.

    Returns:
        Rows of numpy arrays with exactly the shapes of `capacity`.

    Raises:
        ValueError: a view that does not fit, an image unlike its specification, missing statistics.
    """
    _check_choice("time_mask", time_mask, TIME_MASKS)
    _check_choice("temporal", temporal, TEMPORALS)
    _check_choice("short_series", short_series, SHORT_SERIES)
    if len(rows) != capacity.rows:
        raise ValueError(f"{len(rows)} rows given, the capacity says {capacity.rows}")
    tokens = _TokenWriter(spec, capacity, temporal, mask_ratio)
    stacks = [ImageWriter(m, capacity, i, sampling) for i, m in enumerate(spec.modalities)]
    for r, views in enumerate(rows):
        tokens.start(r)
        for stack in stacks:
            stack.start(r)
        for segment, view in enumerate(views, start=1):
            grid = view_grid(spec, view.target_gsd)
            slots = [stacks[tokens.index[name]].add(view, segment, grid) for name in _kept(spec, view)]
            hidden = tokens.add(view, segment, grid, slots)
            for place, name in enumerate(view.modalities):
                stacks[tokens.index[name]].mask(slots[place], hidden[place].reshape(grid))
    if time_mask == "reference":
        for stack in stacks:
            stack.let_in_zero_frames(per_row=short_series == "row")
    if counters is not None and tokens.moved:
        counters["moved_tokens"] = counters.get("moved_tokens", 0) + tokens.moved
    images = {name: stacks[i].images(tokens.lists[i]) for name, i in sorted(tokens.index.items())}
    return tokens.rows(images)


def exact_capacity(
    spec: CorpusSpec, rows: Sequence[Sequence[PackedView]], *, temporal: str = "all", mask_ratio: float = 0.75
) -> Capacity:
    """The smallest capacity that holds `rows`: no padding where the rows are alike.

    A modality that nobody keeps still has one empty slot, so that its arrays exist.
    """
    names = [m.name for m in spec.modalities]
    slots = np.zeros((max(len(rows), 1), len(names)), int)
    encoder, decoder = slots.copy(), slots.copy()
    dates = [1] * len(names)
    lengths = [(1, 1)]
    grid = 1
    for r, views in enumerate(rows):
        encoder_length = decoder_length = 0
        for view in views:
            size = view_grid(spec, view.target_gsd)
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
                encoder[r, i] += cells if temporal == "all" else count
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
        rows, encoder, decoder = capacity.rows, capacity.encoder_length, capacity.decoder_length
        self.capacity, self.temporal, self.mask_ratio = capacity, temporal, mask_ratio
        self.index = {m.name: i for i, m in enumerate(spec.modalities)}
        by_name = [i for _, i in sorted(self.index.items())]
        self.number = np.argsort(by_name)  # of a modality of the corpus, in the batch
        lengths = np.array(capacity.encoder_tokens)[by_name]
        self.offsets = (np.cumsum(lengths) - lengths)[self.number]
        self.moved = 0
        self.encoder_segment = np.zeros((rows, encoder), np.int32)
        self.encoder_feature = np.full((rows, encoder), -1, np.int32)
        self.encoder_coords = np.zeros((rows, encoder, 2), np.float32)
        self.decoder_segment = np.zeros((rows, decoder), np.int32)
        self.decoder_coords = np.zeros((rows, decoder, 2), np.float32)
        self.decoder_encoder = np.full((rows, decoder), -1, np.int32)
        self.decoder_modality = np.full((rows, decoder), -1, np.int32)
        self.lists = [
            TokenLists(*(np.full((rows, n), -1, np.int32) for n in (n_encoder, n_encoder, *(n_decoder,) * 3)))
            for n_encoder, n_decoder in zip(capacity.encoder_tokens, capacity.decoder_tokens, strict=True)
        ]
        for lists in self.lists:  # the cell of a padding entry is read (and thrown away): it must exist
            lists.encoder_cell_RxN[:] = 0
            lists.decoder_cell_RxM[:] = 0

    def start(self, row: int) -> None:
        self.row, self.e, self.d = row, 0, 0
        self.n = np.zeros(len(self.lists), int)
        self.m = np.zeros(len(self.lists), int)

    def add(self, view: PackedView, segment: int, grid: tuple[int, int], slots: list[int]) -> np.ndarray:
        """Appends a view; returns the hidden tokens [modalities, cells]."""
        modalities = np.array([self.index[name] for name in view.modalities])
        cells, coords = _cells(*grid, self.capacity.grid, view.target_gsd)
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
        self.decoder_modality[row, d + 1 : self.d] = np.repeat(self.number[modalities], count)
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
    known = [m.name for m in spec.modalities]
    unknown = [name for name in view.modalities if name not in known]
    if unknown or not view.modalities or len(set(view.modalities)) < len(view.modalities):
        raise ValueError(
            f"modalities kept: {view.modalities}; {spec.name} has {', '.join(known)}, each at most once"
        )
    return view.modalities


def _at_least_one(counts_RxM: np.ndarray) -> tuple[int, ...]:
    return tuple(int(n) for n in np.maximum(counts_RxM.max(axis=0), 1))


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{key}: unknown value '{value}'; choose one of {', '.join(choices)}")
