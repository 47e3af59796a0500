"""Probes in a pretraining: they measure, on their own schedule, and change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from ramen_jax import config as configuration
from ramen_jax.console import UserError
from ramen_jax.evaluation import in_loop
from ramen_jax.evaluation.encoders import digest
from ramen_jax.training import metrics, pretrain

KEYS = (
    *("train.steps=4", "validation.every=0", "checkpoint.every=4", "logging.every=1", "data.rows_per_step=2"),
    *("data.workers=0", "compile_cache.folder=", "evaluators.places=8", "evaluators.target_gsd=10.0"),
    "corpora.tiny.options.places=8",
)


def settings(repository, *more):
    return configuration.load(repository / "configs" / "tiny.py", [*KEYS, *more])


def test_a_probe_measures_the_same_twice_and_leaves_the_weights_alone(repository, tiny):
    """(Mutant: places drawn anew at each run.)"""
    config = settings(repository)
    config.model.update(tiny.encoder.ramen.architecture.to_dict())
    probe = in_loop.InLoop(config, 2, lambda: in_loop.earth("tiny", 4, 10.0))
    trees = tiny.encoder.params, tiny.encoder.statistics
    before = digest(trees)
    values = probe.run(*trees, 2)
    assert set(values) == {"probe/earth_accuracy", "probe/earth_mIoU", "probe/earth_knn"}
    assert all(np.isfinite(value) for value in values.values())
    assert probe.run(*trees, 4) == values
    assert digest(trees) == before


@pytest.mark.slow
def test_losses_with_and_without_probes_are_equal_to_the_last_bit(repository, tmp_path):
    """And the probes are measured on their own schedule."""
    found = {}
    for every in (0, 2):
        folder = tmp_path / str(every)
        config = settings(repository, f"evaluators.every={every}")
        assert pretrain.run(config, folder, None, in_loop.run) == 0
        found[every] = list(metrics.read(folder))
    without, probed = ([line["loss"] for line in found[every] if "loss" in line] for every in (0, 2))
    assert len(without) == 4
    assert probed == without
    assert [line["step"] for line in found[2] if "probe/earth_knn" in line] == [1, 3]
    assert not [line for line in found[0] if "probe/earth_knn" in line]


def test_a_task_is_probed(floods, repository, tiny):
    config = settings(repository)
    config.evaluators.tasks = (f"sen1floods11={floods}",)
    with pytest.raises(UserError, match="tasks_every above 0"):
        in_loop.run(config)
    config.evaluators.tasks = ("sen1floods1=nowhere",)
    config.evaluators.tasks_every = 5
    with pytest.raises(UserError, match='did you mean "sen1floods11"'):
        in_loop.run(config)
