"""What is measured during a training: anything with `every` and `run(params, statistics, step) -> {name: value}`.

An evaluator pauses the clock and cannot change the training: it sees parameters and gives numbers.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from ramen_jax.parallel import agree
from ramen_jax.rows.pipeline import StepBatch
from ramen_jax.training.program import Program

LOSS = "validation/loss"  # ranks checkpoints where there is one


class Stopped(Exception):
    """A measurement was left unfinished, in all processes: one of them has been asked to stop."""


def stop_here(name: str) -> None:
    """Raises Stopped where any process has been asked to stop; each must come here equally often."""
    if agree.stop_asked(name):
        raise Stopped


class Evaluator(Protocol):
    """Measures a model in training.

    Attributes:
        every: steps between two runs; it runs after the last step too.
    """

    every: int

    def run(self, params: Any, statistics: Any, step: int) -> Mapping[str, float]:
        """Numbers by name, as they go to metrics.jsonl and TensorBoard. May raise Stopped, see `stop_here`."""


class Validation:
    """The loss on the held-out places: the same batches with the same draws at each call, dropout off.

    Per corpus and modality it is the sum of all errors over the count of all masked values, whatever the number of
    batches they came in; `validation/loss` is the mean over the corpora.

    Args:
        batches: gives the batches, a finite number of each corpus, anew at each call.
    """

    def __init__(self, program: Program, every: int, batches: Callable[[], Iterable[StepBatch]]) -> None:
        self.program, self.every, self._batches = program, every, batches

    def run(self, params: Any, statistics: Any, step: int) -> dict[str, float]:
        totals: dict[str, dict[str, np.ndarray]] = {}  # corpus -> modality -> (sum of errors, count)
        for batch in self._batches():
            stop_here("validation")
            evaluation = self.program.evaluation(batch.corpus)
            rows = self.program.place(batch.corpus, batch.rows, "evaluation")
            with agree.watched("validation on the devices"):
                sums, counts = jax.device_get(evaluation(params, statistics, rows))
            corpus = totals.setdefault(batch.corpus, {})
            for name, error in sums.items():
                corpus[name] = corpus.get(name, np.zeros(2)) + np.array([error, counts[name]], np.float64)
        values: dict[str, float] = {}
        for corpus_name, modalities in totals.items():
            losses = {name: float(error / max(count, 1.0)) for name, (error, count) in modalities.items()}
            for name, loss in losses.items():
                values[f"validation/{corpus_name}/{name}"] = loss
            values[f"validation/{corpus_name}"] = sum(losses.values())
        if totals:
            values[LOSS] = float(np.mean([values[f"validation/{name}"] for name in totals]))
        return values
