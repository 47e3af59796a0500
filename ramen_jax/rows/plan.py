"""The plan: which views go to which row at which step, by arithmetic alone.

`Plan` opens no image and keeps no position. A step number gives, on any host and in any order: the corpus, the rows,
and for every view its sample, target GSD, kept modalities and the key of its mask and dates. So training resumes
from one integer, on any number of hosts, through packing and mixture.

How a step is found, all O(1):

1. The corpus of a step: steps come in blocks of `MIXTURE_BLOCK`; within each, every corpus has its share of the steps
   (largest remainder of the weights), spread evenly with jitter: none comes in long runs or stays away for long.
2. The row of an epoch: all rows of an epoch are numbered, and visited in an order permuted per epoch.
3. The views of a row: the row template (`row_template.py`) names positions of a block of the epoch, and the draws of
   each position.
4. The sample of a position: a permutation per epoch.

An epoch covers every sample exactly once (with `views_per_sample` views, which share a row, so the sample is read
once). Rows of a step may straddle two epochs; nothing is dropped or repeated. A corpus of fewer than `FEW` samples
cannot fill its rows, nor meet all draws, in one epoch: several of its epochs are laid out together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ramen_jax import counter_rng
from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.recipe import Recipe
from ramen_jax.rows import row_template
from ramen_jax.rows.views import Capacity, view_grid
from ramen_jax.samples import CorpusSpec

MIXTURE_BLOCK = 1024
ARITHMETIC = 1  # raise it with every change that gives other batches for the same arguments
FEW = 1024  # samples
ENOUGH = 1024  # positions to lay out together for a corpus of few samples
DRAWS = ("per_sample", "per_step")
FARTHEST = (
    10_000  # metres; the encoding's longest wave is a few times as long, and float32 knows a position to 1 mm
)


class View(NamedTuple):
    """One training draw of a sample. `key` seeds its mask and its kept dates."""

    corpus: str
    sample: int
    epoch: int
    position: int
    target_gsd: float
    modalities: tuple[str, ...]
    key: int


@dataclass(frozen=True)
class PlannedCorpus:
    """A corpus of the mixture.

    Attributes:
        spec: modalities and geometry.
        samples: number of samples.
        target_gsds: metres per token, drawn uniformly.
        weight: share of the steps, relative to the other corpora.
        temporal_dropout: share of the dates dropped, per modality (training only; order is kept).
        row_length: decoder tokens per row; None chooses the shortest row that is 95 % real tokens.
        rows_per_step: rows of a step, where it differs from the plan's.
        max_dates: dates per image at most, per modality; None keeps the longest series of the corpus.
    """

    spec: CorpusSpec
    samples: int
    target_gsds: tuple[float, ...]
    weight: float = 1.0
    temporal_dropout: Mapping[str, float] = field(default_factory=dict)
    row_length: int | None = None
    rows_per_step: int | None = None
    max_dates: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.spec.name

    def most_dates(self, modality: str) -> int:
        """Frames that an image of the modality can keep."""
        spec = self.spec.modality(modality)
        return min(spec.max_dates, self.max_dates.get(modality, spec.max_dates)) if spec.series else 1


class Plan:
    """The whole training stream, addressed by step.

    Args:
        corpora: the mixture; names must differ.
        seed: any integer; two plans agree exactly when all arguments agree.
        rows_per_step: rows of a step over all hosts, unless a corpus has its own.
        draw: `per_sample`: every view has its own GSD and modalities. `per_step`: one draw for all views of a step
            and the same number of views in every row, as in the paper; short rows are padding.
        views_per_sample: views of each sample that is read (`per_sample` only).
        mask_ratio, recipe: as in `packing.pack`; they decide capacities.

    Raises:
        UserError: a sample too large for a row, an impossible mixture, an unknown choice.
    """

    def __init__(
        self,
        corpora: Sequence[PlannedCorpus],
        *,
        seed: int,
        rows_per_step: int,
        draw: str = "per_sample",
        views_per_sample: int = 1,
        recipe: Recipe,
        mask_ratio: float = 0.75,
    ) -> None:
        if draw not in DRAWS:
            raise UserError(f"draw: unknown value '{draw}'; choose one of {', '.join(DRAWS)}", USAGE)
        if rows_per_step < 1 or views_per_sample < 1:
            raise UserError(
                f"rows_per_step and views_per_sample are at least 1, found {rows_per_step} and {views_per_sample}",
                USAGE,
            )
        if draw == "per_step" and views_per_sample > 1:
            raise UserError(
                "views_per_sample needs draw: per_sample (per_step gives all views of a step one draw)", USAGE
            )
        self.seed, self.draw = seed, draw
        self.views_per_sample, self.mask_ratio, self.recipe = views_per_sample, mask_ratio, recipe
        self._mixture = _Mixture(corpora, seed)
        stream = _PackedStream if draw == "per_sample" else _PaperStream
        self._streams = {c.name: stream(c, c.rows_per_step or rows_per_step, self) for c in corpora}

    @property
    def corpora(self) -> dict[str, PlannedCorpus]:
        return {name: stream.corpus for name, stream in self._streams.items()}

    def corpus(self, step: int) -> str:
        """The corpus of a step."""
        return self._mixture.locate(step)[0]

    def rows(self, step: int, numbers: Sequence[int] | None = None) -> list[list[View]]:
        """The views of these rows of a step (all of them by default), in segment order."""
        name, earlier = self._mixture.locate(step)
        stream = self._streams[name]
        first = earlier * stream.rows_per_step
        return [stream.row(first + r) for r in (range(stream.rows_per_step) if numbers is None else numbers)]

    def samples(self, step: int) -> np.ndarray:
        """The sample numbers of a step, in row and segment order, without repeats."""
        found = dict.fromkeys(view.sample for row in self.rows(step) for view in row)
        return np.array(list(found), dtype=np.int64)

    def epoch(self, step: int) -> int:
        """The epoch (of the step's corpus) in which the step's first row lies."""
        name, earlier = self._mixture.locate(step)
        stream = self._streams[name]
        return stream.epoch(earlier * stream.rows_per_step)

    def capacity(self, corpus: str) -> Capacity:
        """The static shapes of the corpus's batches."""
        return self._stream(corpus).capacity

    def steps_per_epoch(self, corpus: str) -> float:
        """Steps of this corpus that cover it once."""
        stream = self._stream(corpus)
        return stream.rows_per_epoch / stream.rows_per_step

    def real_token_share(self, corpus: str) -> dict[str, float]:
        """Share of an epoch's tokens that are not padding, in `encoder` and `decoder` rows."""
        return self._stream(corpus).real_token_share()

    def summary(self) -> dict[str, object]:
        """JSON-able description; two plans with the same summary give the same batches."""
        return {
            "arithmetic": ARITHMETIC,
            "seed": self.seed,
            "draw": self.draw,
            "views_per_sample": self.views_per_sample,
            "mask_ratio": self.mask_ratio,
            "temporal": self.recipe.temporal,
            "corpora": {name: stream.summary() for name, stream in self._streams.items()},
        }

    def _stream(self, corpus: str) -> _Stream:
        if corpus not in self._streams:
            raise UserError(
                f"no corpus '{corpus}' in the plan; {close_names(corpus, list(self._streams))}", USAGE
            )
        return self._streams[corpus]


def noise(view: View, tokens: int) -> np.ndarray:
    """[tokens] uint64: the order of these numbers decides which tokens stay visible."""
    return counter_rng.raw_bits(counter_rng.combine(view.key, "mask"), tokens)


def origin(view: View) -> tuple[float, float]:
    """A point (x, y) in metres for positions to be counted from, anywhere in a square of `FARTHEST` metres."""
    bits = counter_rng.raw_bits(counter_rng.combine(view.key, "origin"), 2)
    x, y = counter_rng.below(bits, FARTHEST)
    return float(x), float(y)


def kept_dates(view: View, modality: str, available: int, dropout: float, most: int) -> np.ndarray:
    """Indices of the dates kept, ascending: max(1, int(available * (1 - dropout))) of them, `most` at most."""
    count = min(most, max(1, int(available * (1 - dropout))))
    if count >= available:
        return np.arange(available)
    bits = counter_rng.raw_bits(counter_rng.combine(view.key, "dates", modality), available)
    return np.sort(np.argsort(bits, kind="stable")[:count])


class _Mixture:
    """Which corpus a step belongs to, and how many steps of that corpus came before."""

    def __init__(self, corpora: Sequence[PlannedCorpus], seed: int) -> None:
        self.names = [c.name for c in corpora]
        if not corpora or len(set(self.names)) < len(self.names):
            raise UserError(
                f"a plan needs at least one corpus and different names, found {self.names}", USAGE
            )
        weights = np.array([c.weight for c in corpora], np.float64)
        if not (np.isfinite(weights).all() and (weights > 0).all()):
            raise UserError(
                f"corpus weights must be positive, found {dict(zip(self.names, weights.tolist(), strict=True))}",
                USAGE,
            )
        exact = weights / weights.sum() * MIXTURE_BLOCK
        self.counts = np.floor(exact).astype(int)
        short = MIXTURE_BLOCK - self.counts.sum()
        self.counts[np.argsort(self.counts - exact, kind="stable")[:short]] += 1
        if (self.counts == 0).any():
            rare = self.names[int(self.counts.argmin())]
            raise UserError(
                f"the weight of corpus {rare} is below 1/{MIXTURE_BLOCK} of the sum: it would never be drawn",
                USAGE,
            )
        self.key = counter_rng.combine(seed, "mixture")

    def locate(self, step: int) -> tuple[str, int]:
        if step < 0:
            raise ValueError(f"steps count from 0, found {step}")
        block, place = divmod(step, MIXTURE_BLOCK)
        corpora, earlier = _mixture_block(self.key, block, tuple(self.counts.tolist()))
        which = int(corpora[place])
        return self.names[which], block * int(self.counts[which]) + int(earlier[place])


@lru_cache(maxsize=16)
def _mixture_block(key: int, block: int, counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """For each step of a block: its corpus, and the number of earlier steps of that corpus in the block."""
    # The i-th step of a corpus lies at a random place of the i-th of its equal parts of the block.
    jitter = counter_rng.raw_bits(counter_rng.combine(key, block), MIXTURE_BLOCK) >> np.uint64(32)
    part = np.concatenate([np.arange(count, dtype=np.uint64) for count in counts]) << np.uint64(32)
    places = (part + jitter) // np.repeat(np.array(counts, np.uint64), counts)
    corpora = np.repeat(np.arange(len(counts)), counts)[np.argsort(places, kind="stable")]
    earlier = np.empty(MIXTURE_BLOCK, int)
    for which, count in enumerate(counts):
        earlier[corpora == which] = np.arange(count)
    return corpora, earlier


class _Stream(ABC):
    """The endless rows of one corpus."""

    capacity: Capacity
    rows_per_epoch: float  # on average

    def __init__(self, corpus: PlannedCorpus, rows_per_step: int, plan: Plan) -> None:
        _check_corpus(corpus)
        self.corpus, self.rows_per_step = corpus, rows_per_step
        self.base = counter_rng.combine(plan.seed, corpus.name)
        self.mask_ratio, self.temporal = plan.mask_ratio, plan.recipe.temporal
        self.names = corpus.spec.names
        self.dates = [corpus.most_dates(name) for name in self.names]

    @abstractmethod
    def row(self, number: int) -> list[View]:
        """The views of a row."""

    def epoch(self, number: int) -> int:
        """The epoch of a row's first view."""
        return self.row(number)[0].epoch

    @abstractmethod
    def real_token_share(self) -> dict[str, float]:
        """Share of real tokens in the encoder's and the decoder's rows."""

    def summary(self) -> dict[str, object]:
        c = self.corpus
        return {
            "samples": c.samples,
            "fingerprint": c.spec.fingerprint,
            "target_gsds": list(c.target_gsds),
            "weight": c.weight,
            "temporal_dropout": dict(c.temporal_dropout),
            "max_dates": dict(zip(self.names, self.dates, strict=True)),
            "rows_per_step": self.rows_per_step,
            "row_length": self.capacity.decoder_length,
            "rows_per_epoch": self.rows_per_epoch,
        }

    def key(self, *parts: int | str) -> int:
        return counter_rng.combine(self.base, *parts)

    def sample(self, position: np.ndarray | int, epoch: int) -> np.ndarray:
        return counter_rng.permute(position, self.corpus.samples, self.key("samples", epoch))

    def view(
        self, sample: int, epoch: int, position: int, number: int, gsd: int, kept: Sequence[int]
    ) -> View:
        return View(
            corpus=self.corpus.name,
            sample=sample,
            epoch=epoch,
            position=position,
            target_gsd=float(self.corpus.target_gsds[gsd]),
            modalities=tuple(self.names[i] for i in kept),
            key=self.key("view", epoch, position, number),
        )


class _PackedStream(_Stream):
    """`draw: per_sample`."""

    def __init__(self, corpus: PlannedCorpus, rows_per_step: int, plan: Plan) -> None:
        super().__init__(corpus, rows_per_step, plan)
        gsds = corpus.target_gsds
        self.draws = row_template.draw_block(
            corpus.spec,
            gsds,
            key=self.key("draws"),
            items=row_template.BLOCK,
            views=plan.views_per_sample,
            mask_ratio=plan.mask_ratio,
        )
        limits = row_template.choose_limits(self.draws, corpus.row_length, corpus.name, gsds)
        demand = self.draws.demand_IxQ()
        # A lap is the run of epochs that is laid out together: one, unless the samples are few.
        self.laps = 1 if corpus.samples >= FEW else -(-ENOUGH // corpus.samples)
        self.blocks, self.rest = divmod(corpus.samples * self.laps, row_template.BLOCK)
        templates = []
        if self.blocks:
            templates.append((row_template.lay_out(demand, limits.vector()), self.draws))
        if self.rest:
            last = row_template.lay_out(demand[: self.rest], limits.vector())
            templates.append((last, self.draws.head(self.rest)))
        self.block_template, self.last_template = templates[0][0], templates[-1][0]
        self.rows_per_lap = self.blocks * self.block_template.rows
        self.rows_per_lap += self.last_template.rows if self.rest else 0
        self.rows_per_epoch = self.rows_per_lap / self.laps
        self.capacity = row_template.capacity_of(
            templates,
            limits,
            spec=corpus.spec,
            gsds=gsds,
            rows=rows_per_step,
            temporal=plan.recipe.temporal,
            dates=self.dates,
        )

    def row(self, number: int) -> list[View]:
        lap, place = divmod(number, self.rows_per_lap)
        place = int(counter_rng.permute(place, self.rows_per_lap, self.key("rows", lap))[0])
        block, k = divmod(place, self.block_template.rows)
        if block < self.blocks:
            items = self.block_template.row(k)
        else:
            block, k = self.blocks, place - self.blocks * self.block_template.rows
            items = self.last_template.row(k)
        epochs, positions = np.divmod(items + np.int64(block * row_template.BLOCK), self.corpus.samples)
        epochs += lap * self.laps
        samples = np.empty_like(positions)
        for epoch in np.unique(epochs):
            samples[epochs == epoch] = self.sample(positions[epochs == epoch], int(epoch))
        draws = self.draws
        return [
            self.view(
                int(sample),
                int(epoch),
                int(position),
                v,
                int(draws.gsd_IxV[item, v]),
                draws.order_IxVxJ[item, v, : draws.kept_IxV[item, v]].tolist(),
            )
            for item, epoch, position, sample in zip(items, epochs, positions, samples, strict=True)
            for v in range(draws.kept_IxV.shape[1])
        ]

    def real_token_share(self) -> dict[str, float]:
        tokens = self.draws.demand_IxQ()[:, :2]
        decoder, encoder = self.blocks * tokens.sum(axis=0) + tokens[: self.rest].sum(axis=0)
        return {
            "encoder": float(encoder / (self.rows_per_lap * self.capacity.encoder_length)),
            "decoder": float(decoder / (self.rows_per_lap * self.capacity.decoder_length)),
        }


class _PaperStream(_Stream):
    """`draw: per_step`: every row of a step has the same number of views, all of one GSD and one set of modalities."""

    def __init__(self, corpus: PlannedCorpus, rows_per_step: int, plan: Plan) -> None:
        super().__init__(corpus, rows_per_step, plan)
        spec, gsds = corpus.spec, corpus.target_gsds
        finest = min(gsds)
        cells = int(np.prod(view_grid(spec, finest)))
        largest = 1 + len(self.names) * cells
        length = corpus.row_length or largest
        self.views = length // largest
        if not self.views:
            raise UserError(
                f"corpus {corpus.name}: a sample at target GSD {finest:g} m takes {largest} tokens, the row length is "
                f"{length}; use row_length {largest} or more, or coarser target GSDs",
                USAGE,
            )
        self.rows_per_epoch = corpus.samples / self.views
        visible = row_template.visible_count(len(self.names) * cells, plan.mask_ratio)
        per_modality = self.views * cells
        self.capacity = Capacity(
            rows=rows_per_step,
            encoder_length=self.views * (1 + visible),
            decoder_length=self.views * largest,
            views=self.views,
            grid=max(max(view_grid(spec, g)) for g in gsds),
            slots=(self.views,) * len(self.names),
            encoder_tokens=(self._list_length(cells),) * len(self.names),
            decoder_tokens=(per_modality,) * len(self.names),
            dates=tuple(self.dates),
        )

    def row(self, number: int) -> list[View]:
        step = number // self.rows_per_step
        gsd, kept = self._draw(step)
        views = []
        for item in range(number * self.views, (number + 1) * self.views):
            epoch, position = divmod(item, self.corpus.samples)
            views.append(self.view(int(self.sample(position, epoch)[0]), epoch, position, 0, gsd, kept))
        return views

    def real_token_share(self) -> dict[str, float]:
        cells = np.array([np.prod(view_grid(self.corpus.spec, g)) for g in self.corpus.target_gsds])
        tokens = np.arange(1, len(self.names) + 1)[:, None] * cells
        visible = [row_template.visible_count(int(n), self.mask_ratio) for n in tokens.ravel()]
        return {
            "encoder": self.views * (1 + float(np.mean(visible))) / self.capacity.encoder_length,
            "decoder": self.views * (1 + float(tokens.mean())) / self.capacity.decoder_length,
        }

    def _draw(self, step: int) -> tuple[int, list[int]]:
        bits = counter_rng.raw_bits(self.key("draw", step), 2 + len(self.names))
        kept = 1 + int(counter_rng.below(bits[1:2], len(self.names))[0])
        gsd = int(counter_rng.below(bits[:1], len(self.corpus.target_gsds))[0])
        declared = [self.corpus.spec.declared[i] for i in np.argsort(bits[2:])[:kept]]
        return gsd, [self.names.index(name) for name in declared]

    def _list_length(self, cells: int) -> int:
        """Encoder list places: as `row_template.encoder_list_lengths`, for the finest GSD and any subset."""
        if self.temporal == "all":
            return self.views * cells
        needed = 1.0
        for kept in range(1, len(self.names) + 1):
            tokens = kept * cells
            visible = row_template.visible_count(tokens, self.mask_ratio)
            variance = visible / kept * (1 - 1 / kept) * (tokens - visible) / max(tokens - 1, 1)
            needed = max(needed, self.views * visible / kept + 6 * float(np.sqrt(self.views * variance)))
        return min(int(np.ceil(needed)), self.views * cells)


def _check_corpus(corpus: PlannedCorpus) -> None:
    if corpus.samples < 1:
        raise UserError(f"corpus {corpus.name} has no sample", USAGE)
    if not corpus.target_gsds:
        raise UserError(f"corpus {corpus.name} has no target GSD", USAGE)
    names = corpus.spec.names
    for key, values in (("temporal_dropout", corpus.temporal_dropout), ("max_dates", corpus.max_dates)):
        for name in values:
            if name not in names:
                raise UserError(
                    f"corpus {corpus.name}: {key} names '{name}'; {close_names(name, list(names))}", USAGE
                )
    for name, share in corpus.temporal_dropout.items():
        if not 0 <= share < 1:
            raise UserError(
                f"corpus {corpus.name}: temporal_dropout of {name} is {share}, expected 0 <= share < 1", USAGE
            )
    for name, most in corpus.max_dates.items():
        if most < 1:
            raise UserError(
                f"corpus {corpus.name}: max_dates of {name} is {most}, expected at least 1", USAGE
            )
