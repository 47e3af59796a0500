"""What a CPU saves by leaving out the pairs of foreign segments: packed training steps with and without, in turn.

    python -m tests.benchmarks.skipping --config configs/base.py --corpus mmearth --dates 4 --steps 3

One row a step, as a training plans it, of random images; every series has `--dates` dates. The other program is the
same one, but a tile of queries meets the keys of the whole row, foreign ones masked. Both take the same rows and find
the same losses.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import jax
import numpy as np

from ramen_jax import config as configuration
from ramen_jax.attention import blockwise
from ramen_jax.benchmarks.compile_check import spec_of
from ramen_jax.benchmarks.grid import compared
from ramen_jax.benchmarks.step import random_image
from ramen_jax.benchmarks.turns import pairs, stepping
from ramen_jax.rows.pipeline import StepSource
from ramen_jax.samples import CorpusSpec, Sample
from ramen_jax.training import experiment

SAMPLES = 10_000


class Noise:
    """A corpus of random images."""

    def __init__(self, spec: CorpusSpec, dates: int) -> None:
        self.spec, self.dates = spec, dates

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        dates = {modality: self.dates if modality.series else 1 for modality in self.spec.modalities}
        return Sample(f"{index}", {each.name: random_image(each, dates[each], rng) for each in dates})


def over_all_keys(
    run: blockwise.Run, queries: int, length: int, keys: Any, state: blockwise.Carry
) -> blockwise.Carry:
    """In the place of `blockwise._over_keys`: none is left out."""
    size = blockwise.WHOLE_KEYS
    whole = length // size if queries == blockwise.QUERIES and length >= size else 0
    state = jax.lax.fori_loop(0, whole, lambda i, s: keys(size, True, i * size, s), state)
    first, size = whole * size, blockwise.KEYS
    parts = -(-(length - first) // size)
    return jax.lax.fori_loop(0, parts, lambda i, s: keys(size, True, first + i * size, s), state)


def take_steps(path: str, corpus: str, dates: int, count: int) -> None:
    """Prints a line of JSON after each."""
    config = configuration.load(path, ["model.dtype=float32", "data.rows_per_step=1"])
    (entry,) = (entry for entry in config.corpora if entry.name == corpus)
    source = Noise(spec_of(entry), dates)
    series = [modality.name for modality in source.spec.modalities if modality.series]
    with entry.unlocked():
        entry.max_dates.update(dict.fromkeys(series, dates))
    plan = experiment.make_plan(config, {corpus: source}, config.seed)
    rows = [StepSource(plan, {corpus: source}).step(step).rows for step in range(count)]
    program, _ = experiment.make_program(config, plan, {})
    program.compile()
    state = program.create_state()
    for given in rows:
        state, metrics = program.step(corpus)(state, program.place(corpus, given))
        ids = given.decoder_segment_RxL[0]
        found = {"loss": float(metrics["loss"]), "length": len(ids), "views": int(ids.max())}
        print(json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--dates", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument(
        "--only", choices=("skipping", "all"), help="take the steps of one of the two programs"
    )
    arguments = parser.parse_args()
    if arguments.only:
        if arguments.only == "all":
            blockwise._over_keys = over_all_keys
        take_steps(arguments.config, arguments.corpus, arguments.dates, arguments.steps + 1)
        return
    command = [sys.executable, "-m", "tests.benchmarks.skipping", *sys.argv[1:], "--only"]
    with stepping([*command, "skipping"]) as ours, stepping([*command, "all"]) as theirs:
        taken = pairs(ours, theirs, arguments.steps)
        together = sum(them for _, them in taken) / sum(us for us, _ in taken)
        losses = [ours.last["loss"], theirs.last["loss"]]
        print(json.dumps({**compared(taken), "ratio_together": together, "losses": losses}))


if __name__ == "__main__":
    main()
