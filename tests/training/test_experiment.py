"""A configuration becomes a training: the real model on a rendered corpus, from files to checkpoints and back."""

import jax
import numpy as np
import pytest

from ramen_jax import config as configuration
from ramen_jax.training import checkpoint, experiment, loop, metrics


def train(repository, workdir, *overrides: str) -> dict[tuple[int, str], float]:
    """Runs `configs/tiny.py:quicktest` in a workdir; returns its losses and norms by step."""
    options = [*overrides, "logging.tensorboard=false", "logging.stablehlo=false"]
    config = configuration.load(f"{repository}/configs/tiny.py:quicktest", options)
    loop.run(experiment.build(config, workdir), workdir)
    lines = [line for line in metrics.read(workdir) if "loss" in line]
    return {
        (line["step"], name): value
        for line in lines
        for name, value in line.items()
        if name.startswith("loss") or name == "gradient_norm"
    }


@pytest.mark.slow
def test_the_real_model_resumes_bit_for_bit(tmp_path, repository):
    whole = train(repository, tmp_path / "whole")
    assert {step for step, _ in whole} == set(range(4))
    train(repository, tmp_path / "cut", "train.stop_at=2")
    assert train(repository, tmp_path / "cut") == whole
    kept, cut = (checkpoint.load(tmp_path / name) for name in ("whole", "cut"))
    assert kept.meta["plan"] == cut.meta["plan"]
    assert kept.meta["plan"]["corpora"]["tiny"]["target_gsds"] == [5.0, 10.0]
    for ours, theirs in zip(
        jax.tree.leaves((kept.params, kept.statistics)),
        jax.tree.leaves((cut.params, cut.statistics)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
