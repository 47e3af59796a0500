"""What pretraining buys: a model's features beside the bands that they were made from and an encoder never trained.

    results = measure(Path("runs/quickstart"), seeds=(0, 1, 2))
    print(table(results))

The places are of the procedural Earth, far from those of any training, so the land cover at the centre of every token
is known at any resolution. A linear map in closed form is fitted on some places and asked on others, its penalty chosen
for each input on the fitted places alone; neighbours name the landscape of a place. Further measures ask for no label:
whether the features of one ground are the same in two tilings, how much of them the place of a token in its grid tells,
and what is lost when a sensor is missing.

Numpy on the host around the encoder. Shape letters: h, w tokens, D channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ramen_jax.console import USAGE, UserError
from ramen_jax.earth.places import corpus_spec, render_place, scene_of
from ramen_jax.evaluation import readout
from ramen_jax.evaluation.encoders import MapEncoder, Pretrained, Raw, Sensors, open_encoder
from ramen_jax.evaluation.in_loop import FIRST_PLACE, SCHEME, with_statistics
from ramen_jax.inference.places import Place
from ramen_jax.samples import CorpusSpec, Image, Sample

GEOMETRY = "tiny"
FITTED, ASKED = 70, 40  # places
APART = 100_000  # places between those of two seeds
TARGET_GSDS = (4.0, 5.12, 6.4, 10.24, 12.8)
SHARES = (0.1, 0.3, 1.0)  # of the places to fit
USUAL = 6.4  # metres per token where only one target GSD is measured
WIDE_PLACES, WINDOW, SHIFT = (
    12,
    102.4,
    51.2,
)  # metres: two windows of a wider ground, one shifted along both axes
LOWEST = 1.0  # percent of the cosines between two tilings

Result = dict[str, Any]


class Ground(NamedTuple):
    """Places of one seed; the first `FITTED` are learnt from."""

    seed: int
    spec: CorpusSpec
    numbers: range
    samples: list[Sample]
    sensors: Sensors

    @property
    def kinds(self) -> list[int]:
        """The landscape of every place."""
        return [int(sample.extra["label"]) for sample in self.samples]

    def labels(self, target_gsd: float) -> tuple[list[np.ndarray], int]:
        """The class at the centre of every token, per place [h, w], counted from 0; and the number of classes."""
        grid = Place(self.samples[0], self.sensors, target_gsd).grid
        found = [scene_of(0, number, self.spec).labels(*grid, target_gsd, SCHEME) for number in self.numbers]
        names = np.unique(np.concatenate([label.ravel() for label in found]))
        return [np.searchsorted(names, label).astype(np.int32) for label in found], len(names)


def measure(
    checkpoint: Path | None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    target_gsds: Sequence[float] = TARGET_GSDS,
    shares: Sequence[float] = SHARES,
    told: Callable[[str], None] = lambda sentence: None,
) -> list[Result]:
    """All measures of raw bands, an untrained encoder and, where one is given, a checkpoint.

    Args:
        checkpoint: a workdir, an exported folder or an official .ckpt; None: raw bands alone.
        seeds: each draws other places, and another untrained encoder.
        target_gsds: metres per token; the measures without labels take the one that is nearest to `USUAL`.
        shares: of the places that a linear map is fitted on.
        told: is given a sentence per encoder.

    Returns:
        Dictionaries with `measure`, `encoder`, `seed`, what else it depends on, and its numbers: shares from 0 to 1.

    Raises:
        UserError: no such checkpoint, or a target GSD that leaves a place without a token.
    """
    side = min(m.height * m.sensor.gsd for m in corpus_spec(GEOMETRY).modalities)
    for target_gsd in target_gsds:
        if target_gsd > side * (1 + 1e-6):
            raise UserError(f"target GSD {target_gsd:g} m: a place of {side:g} m has no token", USAGE)
    results: list[Result] = []
    for seed in seeds:
        trained = untrained = None
        if checkpoint is not None:
            trained = open_encoder("checkpoint", checkpoint, None)
            untrained = open_encoder("untrained", checkpoint, None, seed=seed)
        ground = places(seed, trained)
        encoders = [Raw(), *(each for each in (untrained, trained) if each is not None)]
        usual = min(target_gsds, key=lambda gsd: abs(gsd - USUAL))
        for target_gsd in target_gsds:
            told(f"seed {seed}: a linear map at {target_gsd:g} m per token")
            results += _linear(ground, encoders, target_gsd, shares if target_gsd == usual else (1.0,))
        told(f"seed {seed}: tilings, positions and missing sensors at {usual:g} m per token")
        for encoder in encoders:
            results += _without_labels(ground, encoder, usual)
            results += _missing(ground, encoder, usual)
    return results


@lru_cache(maxsize=4)
def _rendered(seed: int) -> tuple[CorpusSpec, range, tuple[Sample, ...]]:
    spec = corpus_spec(GEOMETRY)
    numbers = range(FIRST_PLACE + seed * APART, FIRST_PLACE + seed * APART + FITTED + ASKED)
    return spec, numbers, tuple(render_place(0, number, spec) for number in numbers)


def places(seed: int, trained: MapEncoder | None) -> Ground:
    """The places of a seed, normalised as the training did its own where it had these sensors."""
    spec, numbers, samples = _rendered(seed)
    known = trained.encoder.sensors if isinstance(trained, Pretrained) else {}
    of_training = {sensor.name: sensor for sensor in known.values()}
    sensors = {
        modality.name: of_training.get(modality.sensor.name)
        or with_statistics(modality.sensor, [sample.images[modality.name] for sample in samples[:FITTED]])
        for modality in spec.as_declared()
    }
    in_order = [_only(sample, spec.declared) for sample in samples]
    return Ground(seed, spec, numbers, in_order, sensors)


def _linear(
    ground: Ground, encoders: Sequence[MapEncoder], target_gsd: float, shares: Sequence[float]
) -> Iterator[Result]:
    """Land cover by a linear map from the last block's maps, and landscapes by neighbours."""
    labels, classes = ground.labels(target_gsd)
    found = {encoder.name: _maps(encoder, ground.samples, ground.sensors, target_gsd) for encoder in encoders}
    for encoder in encoders[1:]:
        together = zip(found["raw"], found[encoder.name], strict=True)
        found[f"raw and {encoder.name}"] = [np.concatenate(pair, axis=-1) for pair in together]
    for name, maps in found.items():
        for share in shares:
            count = max(1, round(share * FITTED))
            linear = readout.Linear(maps[:count], labels[:count], classes, readout.PENALTIES)
            scores = linear.scores(maps[FITTED:], labels[FITTED:])
            yield {
                **_of("linear", name, ground, target_gsd),
                "places": count,
                "penalty": linear.penalty,
                **{score: value / 100 for score, value in scores.items()},
            }
        kinds = ground.kinds
        named = readout.knn(maps[:FITTED], kinds[:FITTED], maps[FITTED:], kinds[FITTED:])
        yield {**_of("neighbours", name, ground, target_gsd), "accuracy": named / 100}


def _without_labels(ground: Ground, encoder: MapEncoder, target_gsd: float) -> Iterator[Result]:
    """How far features depend on where a tile begins."""
    maps = _maps(encoder, ground.samples, ground.sensors, target_gsd)
    told = readout.position_share(maps[:FITTED], maps[FITTED:])
    yield {**_of("position", encoder.name, ground, target_gsd), "share": told}
    shift = round(SHIFT / target_gsd)
    if abs(shift * target_gsd - SHIFT) < 1e-6 * SHIFT:  # else the tokens of the two tilings do not coincide
        first, second = (
            _maps(
                encoder,
                [_window(sample, ground.sensors, at) for sample in _wide(ground.seed)],
                ground.sensors,
                target_gsd,
            )
            for at in (0.0, SHIFT)
        )
        spread_D = np.concatenate([one.reshape(-1, one.shape[-1]) for one in first]).std(0) + 1e-6
        cosines = np.concatenate(
            [
                _cosines(a[shift:, shift:] / spread_D, b[: len(a) - shift, : len(a) - shift] / spread_D)
                for a, b in zip(first, second, strict=True)
            ]
        )
        yield {
            **_of("tilings", encoder.name, ground, target_gsd),
            "lowest": float(np.percentile(cosines, LOWEST)),
            "mean": float(cosines.mean()),
        }


def _missing(ground: Ground, encoder: MapEncoder, target_gsd: float) -> Iterator[Result]:
    """A linear map fitted on all sensors and asked without one, whose features are then their mean."""
    labels, classes = ground.labels(target_gsd)
    names = ground.spec.declared
    fitted, asked = ground.samples[:FITTED], ground.samples[FITTED:]
    maps = _maps(encoder, fitted, ground.sensors, target_gsd)
    linear = readout.Linear(maps, labels[:FITTED], classes, readout.PENALTIES)
    # Behind a place that has all sensors, so that one program serves every set of them.
    lacking = [_only(each, [n for n in names if n != missing]) for missing in names for each in asked]
    found = _maps(encoder, [asked[0], *lacking], ground.sensors, target_gsd)[1:]
    begin = 0
    for number, missing in enumerate(names):
        maps = found[number * len(asked) : (number + 1) * len(asked)]
        width = len(linear.mean_D) - maps[0].shape[-1]
        mean_D = linear.mean_D[begin : begin + width]
        filled = [
            np.concatenate(
                [one[..., :begin], np.broadcast_to(mean_D, (*one.shape[:2], width)), one[..., begin:]], -1
            )
            for one in maps
        ]
        begin += width
        scores = linear.scores(filled, labels[FITTED:])
        yield {
            **_of("missing", encoder.name, ground, target_gsd),
            "without": missing,
            **{score: value / 100 for score, value in scores.items()},
        }


def _maps(
    encoder: MapEncoder, samples: Sequence[Sample], sensors: Sensors, target_gsd: float
) -> list[np.ndarray]:
    """[h, w, D] of the last block per sample."""
    return [levels[-1] for levels in encoder.levels(samples, sensors, target_gsd, False)]


def _of(measured: str, encoder: str, ground: Ground, target_gsd: float) -> Result:
    return {"measure": measured, "encoder": encoder, "seed": ground.seed, "target_gsd": target_gsd}


def _only(sample: Sample, names: Sequence[str]) -> Sample:
    return dataclasses.replace(sample, images={name: sample.images[name] for name in names})


@lru_cache(maxsize=4)
def _wide(seed: int) -> tuple[Sample, ...]:
    """Places that two shifted windows fit in."""
    spec = corpus_spec(GEOMETRY)
    side = WINDOW + SHIFT
    wider = [
        dataclasses.replace(m, height=round(side / m.sensor.gsd), width=round(side / m.sensor.gsd))
        for m in spec.as_declared()
    ]
    wide = CorpusSpec(spec.name, tuple(wider))
    first = FIRST_PLACE + seed * APART + FITTED + ASKED
    return tuple(_only(render_place(0, first + n, wide), spec.declared) for n in range(WIDE_PLACES))


def _window(sample: Sample, sensors: Sensors, at: float) -> Sample:
    """The window that begins `at` metres right of and below the corner, on whole pixels of every sensor."""
    images: dict[str, Image] = {}
    for name, image in sample.images.items():
        begin, side = (round(metres / sensors[name].gsd) for metres in (at, WINDOW))
        cut = (Ellipsis, slice(begin, begin + side), slice(begin, begin + side))
        valid = None if image.valid is None else image.valid[cut]
        images[name] = Image(image.values[cut], image.dates, image.present, valid)
    return dataclasses.replace(sample, images=images)


def _cosines(a_hxwxD: np.ndarray, b_hxwxD: np.ndarray) -> np.ndarray:
    a, b = (each.reshape(-1, each.shape[-1]).astype(np.float64) for each in (a_hxwxD, b_hxwxD))
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
