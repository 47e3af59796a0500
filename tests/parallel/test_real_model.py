"""`python -m ramen_jax.train --distributed` with the real model, reduced: two processes are one."""

import shutil

import pytest

from ramen_jax.training import metrics
from tests.training.test_kills import SMALL

SECONDS = 900  # compiling the step takes a minute on one core

# Adam's first steps have the size of the learning rate however small a gradient is: where that is rounding, so is its
# sign. A large eps makes the step a smooth function of the gradient.
SETTINGS = (
    *("logging.stablehlo=false", "compile_cache.folder=", "train.steps=3", "optimizer.eps=0.01"),
    "checkpoint.every=2",
)


@pytest.mark.slow
def test_two_processes_train_the_real_model_as_one(start, tmp_path):
    """(Mutants: statistics of BatchNorm, or counts of the loss, of each process for itself.)"""
    found = {}
    for name, processes in (("one", 1), ("two", 2)):
        workdir = tmp_path / name
        if found:
            shutil.copytree(tmp_path / "one" / "corpora", workdir / "corpora")
        arguments = [
            *("--config", "configs/tiny.py:quicktest", "--workdir", str(workdir)),
            *(["--distributed"] if processes > 1 else []),
            *(f"--config.{setting}" for setting in (*SMALL[:-1], *SETTINGS)),
        ]
        for process in start(*arguments, program="train", processes=processes):
            assert process.wait(SECONDS) == 0, process.said()
        found[name] = [(line["step"], line["loss"]) for line in metrics.read(workdir)]
    assert [step for step, _ in found["two"]] == [0, 1, 2]
    for (_, one), (_, two) in zip(found["one"], found["two"], strict=True):
        assert abs(one - two) < 1e-6 * one, found
