"""The row template: which draws share a row, laid out once and used by every block of every epoch.

A block is a run of up to `BLOCK` positions of an epoch. The draws of a position (target GSD, kept modalities) depend
on its place in the block only, and so do their token counts. One layout of one block therefore serves all blocks:
the samples change with a permutation per epoch, the geometry of the rows does not. That is what makes an epoch of
any size cost the same to plan, and the rows of an epoch a known number.

The layout is a vector bin packing: an item (a position with its views) asks for decoder tokens, encoder tokens, image
slots per modality and decoder tokens per modality. Items go, largest first, to the row that stays the most even over
all of these (least sum of 4th powers of the used shares), so that short lists and few slots suffice.

Shape letters: I items, Q quantities limited by the capacity, K rows, J modalities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ramen_jax import counter_rng
from ramen_jax.console import USAGE, UserError
from ramen_jax.rows.views import Capacity, view_grid, visible_count
from ramen_jax.samples import CorpusSpec

BLOCK = 8192
ALIGN = 64  # rows are multiples of this many tokens, which attention kernels like
_FULL = 2048  # a used share of 1; 4th powers and their sums stay exact integers in float64
_TARGET_SHARE = 0.955
_SLACKS = (1.2, 1.4, 1.7)


@dataclass(frozen=True)
class Draws:
    """What each view of a block asks for. V views per position."""

    gsd_IxV: np.ndarray  # index into the list of target GSDs
    order_IxVxJ: np.ndarray  # the modalities in drawn order ...
    kept_IxV: np.ndarray  # ... of which the first so many are kept
    cells_IxV: np.ndarray  # tokens per modality
    mask_ratio: float

    @property
    def keeps_IxVxJ(self) -> np.ndarray:
        rank = np.argsort(self.order_IxVxJ, axis=-1, kind="stable")
        return rank < self.kept_IxV[..., None]

    def tokens_IxV(self) -> np.ndarray:
        """Decoder tokens of each view, without CLS."""
        return self.kept_IxV * self.cells_IxV

    def visible_IxV(self) -> np.ndarray:
        """Visible tokens of each view, without CLS."""
        lengths, where = np.unique(self.tokens_IxV(), return_inverse=True)
        counts = np.array([visible_count(int(length), self.mask_ratio) for length in lengths])
        return counts[where].reshape(self.kept_IxV.shape)

    def demand_IxQ(self) -> np.ndarray:
        """Decoder tokens, encoder tokens (CLS included), then per modality: slots, decoder tokens."""
        keeps = self.keeps_IxVxJ
        totals = [(1 + self.tokens_IxV()).sum(axis=1), (1 + self.visible_IxV()).sum(axis=1)]
        per_modality = [keeps.sum(axis=1), (keeps * self.cells_IxV[..., None]).sum(axis=1)]
        return np.concatenate([np.stack(totals, axis=1), *per_modality], axis=1)

    def head(self, items: int) -> Draws:
        return Draws(
            gsd_IxV=self.gsd_IxV[:items],
            order_IxVxJ=self.order_IxVxJ[:items],
            kept_IxV=self.kept_IxV[:items],
            cells_IxV=self.cells_IxV[:items],
            mask_ratio=self.mask_ratio,
        )


@dataclass(frozen=True)
class Template:
    """Rows of a block: row k holds the positions `items[starts[k]:starts[k + 1]]`."""

    items: np.ndarray
    starts: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.starts) - 1

    def row(self, k: int) -> np.ndarray:
        return self.items[self.starts[k] : self.starts[k + 1]]

    def sums(self, values_Ix: np.ndarray) -> np.ndarray:
        """Sums of per-item values over each row."""
        return np.add.reduceat(values_Ix[self.items], self.starts[:-1], axis=0)


def draw_block(
    spec: CorpusSpec, target_gsds: Sequence[float], *, key: int, items: int, views: int, mask_ratio: float
) -> Draws:
    """The draws of the positions of a block: a GSD of the list, k of 1..J modalities, a random order of them."""
    modalities = len(spec.modalities)
    # Drawn numbers count the modalities as the corpus declares them; everything else knows their sorted order.
    sorted_place = np.array([spec.names.index(name) for name in spec.declared])
    bits = counter_rng.raw_bits(key, items * views * (2 + modalities)).reshape(items, views, -1)
    gsd = counter_rng.below(bits[..., 0], len(target_gsds))
    cells = np.array([np.prod(view_grid(spec, g)) for g in target_gsds])
    return Draws(
        gsd_IxV=gsd,
        order_IxVxJ=sorted_place[np.argsort(bits[..., 2:], axis=-1, kind="stable")],
        kept_IxV=1 + counter_rng.below(bits[..., 1], modalities),
        cells_IxV=cells[gsd],
        mask_ratio=mask_ratio,
    )


def lay_out(demand_IxQ: np.ndarray, limits_Q: np.ndarray) -> Template:
    """Puts every item in a row without exceeding a limit anywhere. Every item must fit an empty row."""
    shares_IxQ = np.ceil(demand_IxQ * (_FULL / limits_Q))
    order = np.argsort(-shares_IxQ.max(axis=1), kind="stable")
    row_of = np.full(len(order), -1)
    rows = 0
    while order.size:
        most = demand_IxQ[order].sum(axis=0) / limits_Q
        count = max(1, int(np.ceil(most.max() * 1.015)))
        order = _fill(order, demand_IxQ, shares_IxQ, limits_Q, count, rows, row_of)
        rows += count
    items = np.argsort(row_of, kind="stable")
    sizes = np.bincount(row_of, minlength=rows)
    return Template(items=items.astype(np.int32), starts=np.concatenate([[0], np.cumsum(sizes[sizes > 0])]))


def _fill(
    order: np.ndarray,
    demand_IxQ: np.ndarray,
    shares_IxQ: np.ndarray,
    limits_Q: np.ndarray,
    rows: int,
    first_row: int,
    row_of: np.ndarray,
) -> np.ndarray:
    """Fills `rows` new rows; returns the items that found no place."""
    room_QxK = np.tile(limits_Q.astype(np.float64)[:, None], (1, rows))
    used_QxK = np.zeros((len(limits_Q), rows))
    left = []
    for item in order:
        after_QxK = used_QxK + shares_IxQ[item][:, None]
        squares_QxK = after_QxK * after_QxK
        uneven_K = (squares_QxK * squares_QxK).sum(axis=0)
        fits_K = (room_QxK >= demand_IxQ[item][:, None]).all(axis=0)
        uneven_K[~fits_K] = np.inf
        row = int(uneven_K.argmin())
        if not fits_K[row]:
            left.append(item)
            continue
        used_QxK[:, row] = after_QxK[:, row]
        room_QxK[:, row] -= demand_IxQ[item]
        row_of[item] = first_row + row
    return np.array(left, dtype=int)


@dataclass(frozen=True)
class Limits:
    """What a row may hold: the quantities of `Draws.demand_IxQ`."""

    decoder_length: int
    encoder_length: int
    slots: tuple[int, ...]
    decoder_tokens: tuple[int, ...]

    def vector(self) -> np.ndarray:
        return np.array([self.decoder_length, self.encoder_length, *self.slots, *self.decoder_tokens])


def choose_limits(draws: Draws, row_length: int | None, name: str, gsds: Sequence[float]) -> Limits:
    """The shortest rows, and then the fewest slots and list places, that keep 95 % of both rows real.

    Raises:
        UserError: a view (or the views of one sample) longer than `row_length`.
    """
    demand = draws.demand_IxQ()
    largest = int(demand[:, 0].max())
    if row_length is not None and largest > row_length:
        item = int(demand[:, 0].argmax())
        gsd = gsds[int(draws.gsd_IxV[item].min())]
        raise UserError(
            f"corpus {name}: a sample at target GSD {gsd:g} m takes {largest} tokens, the row length is {row_length}; "
            f"use row_length {_up(largest, ALIGN)} or more, or coarser target GSDs",
            USAGE,
        )
    if row_length is not None:
        candidates = [row_length]
    else:
        shortest = _up(largest, ALIGN)
        steps = max(ALIGN, _up(shortest // 32, ALIGN))
        candidates = list(range(shortest, max(2 * shortest, 16 * ALIGN) + 1, steps))
    best: tuple[float, Limits] | None = None
    trial = demand[: BLOCK // 2]
    for length in candidates:
        for slack in _SLACKS:
            limits = _limits(demand, length, slack)
            if best is not None and _most_hopeful(trial, limits) <= max(best[0], _TARGET_SHARE):
                continue
            share = share_of(lay_out(trial, limits.vector()), trial, limits)
            if best is None or share > best[0]:
                best = (share, limits)
            if share >= _TARGET_SHARE:
                return limits
    assert best is not None
    return best[1]


def share_of(template: Template, demand_IxQ: np.ndarray, limits: Limits) -> float:
    """Real-token share: the lower of decoder and encoder rows."""
    tokens = demand_IxQ[:, :2].sum(axis=0) / template.rows
    return float((tokens / [limits.decoder_length, limits.encoder_length]).min())


def _most_hopeful(demand_IxQ: np.ndarray, limits: Limits) -> float:
    """The share if rows were packed as well as their worst quantity allows."""
    rows = (demand_IxQ.sum(axis=0) / limits.vector()).max()
    tokens = demand_IxQ[:, :2].sum(axis=0) / rows
    return float(0.985 * (tokens / [limits.decoder_length, limits.encoder_length]).min())


def _limits(demand_IxQ: np.ndarray, length: int, slack: float) -> Limits:
    mean = demand_IxQ.mean(axis=0)
    items_per_row = length / mean[0]
    encoder = max(mean[1] * items_per_row, float(demand_IxQ[:, 1].max()))
    room = np.maximum(mean[2:] * items_per_row * slack, demand_IxQ[:, 2:].max(axis=0))
    slots, tokens = np.split(np.ceil(room).astype(int), 2)
    return Limits(
        decoder_length=length,
        encoder_length=_up(int(np.ceil(encoder)), ALIGN),
        slots=tuple(int(n) for n in slots),
        decoder_tokens=tuple(min(_up(int(n), 8), length) for n in tokens),
    )


def encoder_list_lengths(template: Template, draws: Draws, limits: Limits, temporal: str) -> tuple[int, ...]:
    """Places that the encoder's token lists need.

    With `temporal=all` every token is listed. Otherwise the visible ones of a modality, whose number is a
    hypergeometric draw per view: the mean and 6 standard deviations of the fullest row.
    """
    if temporal == "all":
        return limits.decoder_tokens
    tokens = np.maximum(draws.tokens_IxV(), 1)
    visible = draws.visible_IxV()
    share = 1.0 / draws.kept_IxV
    variance = visible * share * (1 - share) * (tokens - visible) / np.maximum(tokens - 1, 1)
    keeps = draws.keeps_IxVxJ
    mean_KxJ = template.sums((keeps * (visible * share)[..., None]).sum(axis=1))
    variance_KxJ = template.sums((keeps * variance[..., None]).sum(axis=1))
    # The small number keeps rounding, which may differ between processors, from adding a place.
    needed = np.ceil((mean_KxJ + 6 * np.sqrt(variance_KxJ)).max(axis=0) - 1e-6).astype(int)
    return tuple(
        min(_up(int(n), 8), m) for n, m in zip(np.maximum(needed, 1), limits.decoder_tokens, strict=True)
    )


def capacity_of(
    templates: Sequence[tuple[Template, Draws]],
    limits: Limits,
    *,
    spec: CorpusSpec,
    gsds: Sequence[float],
    rows: int,
    temporal: str,
    dates: Sequence[int],
) -> Capacity:
    """The static shapes that hold every row of the templates."""
    lists = [encoder_list_lengths(template, draws, limits, temporal) for template, draws in templates]
    views = max(int(np.diff(t.starts).max()) * d.kept_IxV.shape[1] for t, d in templates)
    return Capacity(
        rows=rows,
        encoder_length=limits.encoder_length,
        decoder_length=limits.decoder_length,
        views=views,
        grid=max(max(view_grid(spec, g)) for g in gsds),
        slots=limits.slots,
        encoder_tokens=tuple(max(column) for column in zip(*lists, strict=True)),
        decoder_tokens=limits.decoder_tokens,
        dates=tuple(dates),
    )


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
