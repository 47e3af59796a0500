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


@pytest.fixture
def train(start, tmp_path):
    """train(name, processes, devices) -> losses of a run of the command, in processes of so many devices."""

    def run(name, processes, devices):
        workdir = tmp_path / name
        others = [path for path in tmp_path.glob("*/corpora") if path.parent != workdir]
        if others:
            shutil.copytree(others[0], workdir / "corpora")
        arguments = [
            *("--config", "configs/tiny.py:quicktest", "--workdir", str(workdir)),
            *(["--distributed"] if processes > 1 else []),
            *(f"--config.{setting}" for setting in (*SMALL[:-1], *SETTINGS)),
        ]
        group = start(*arguments, program="train", processes=processes, devices=devices)
        for process in group:
            assert process.wait(SECONDS) == 0, process.said()
        assert "training complete: 3 steps" in group[0].said()
        return [line["loss"] for line in metrics.read(workdir)]

    return run


@pytest.mark.slow
def test_two_processes_train_the_real_model_as_one(train):
    """The devices decide, not the processes that hold them.

    (Mutants: statistics of BatchNorm, or counts of the loss, of each process for itself.)
    """
    two = train("two processes", processes=2, devices=1)
    assert two == train("one process of two devices", processes=1, devices=2)
    one = train("one device", processes=1, devices=1)
    assert max(abs(a - b) / b for a, b in zip(two, one, strict=True)) < 1e-6, (two, one)
