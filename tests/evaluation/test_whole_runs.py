"""Whole `evaluate` runs: the same from an official checkpoint and an exported folder, on one device and on four."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import ramen_jax as rj
from ramen_jax.config import SIZES
from ramen_jax.evaluation.runs import Settings
from tests import exported
from tests.conftest import REPOSITORY

# Narrow, but of a width whose number of heads the importer knows: an official checkpoint does not say it.
NARROW = {**SIZES["tiny"], "embed_dim": 192, "depth": 2, "num_heads": 3}
SETTINGS = Settings(epochs=2, batch_size=4, crop=32, channels=8)
DEVICES = 4
RELATIVE = 1e-4  # of losses: sums over the batch are added in another order on several devices


def test_an_official_checkpoint_gives_the_run_of_its_exported_folder(floods, small_floods, tmp_path):
    """Bit for bit: weights, losses, scores and confusion. (Mutant: another number of heads.)"""
    exchange = pytest.importorskip("ramen_jax.interchange.exchange", reason="needs PyTorch")
    source = exported.source("reference", NARROW)
    for output in (tmp_path / "model", tmp_path / "model.ckpt"):
        exchange.export(source, output)
    ours, official = (
        rj.evaluate(
            str(small_floods),
            floods,
            tmp_path / f"out{checkpoint.suffix}",
            checkpoint=checkpoint,
            encoders=["checkpoint"],
            settings=SETTINGS,
        )[0]
        for checkpoint in (tmp_path / "model", tmp_path / "model.ckpt")
    )
    assert ours["unseen_bands"]
    assert not official["unseen_bands"]  # it names no sensors
    assert official["weights"]["weights"] == ours["weights"]["weights"]  # a digest of all arrays
    for key in ("decoder", "losses", "history", "scores", "confusion", "flops", "steps"):
        assert official[key] == ours[key], key


EVALUATE = """
import json, sys
import jax
import ramen_jax as rj
from ramen_jax.evaluation.runs import Settings
task, data, out, checkpoint = sys.argv[1:5]
(result,) = rj.evaluate(
    task, data, out, checkpoint=checkpoint, encoders=["checkpoint"], settings=Settings(**json.loads(sys.argv[5]))
)
print(json.dumps([jax.device_count(), result["losses"], result["history"], result["confusion"], result["compiled"]]))
"""


def test_a_whole_run_on_four_devices_is_that_on_one(floods, small_floods, tmp_path):
    """Losses to 1e-4 and 1 % of the pixels, each on one compilation.

    UPerNet with its BatchNorm over the whole batch, dropout on: the same channels are dropped on any number of devices.
    """
    model = exported.folder(tmp_path / "tiny")
    found = {}
    for count in (1, DEVICES):
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
        settings = {"epochs": 4, "batch_size": 4, "crop": 32, "channels": 8}
        done = subprocess.run(
            [
                *(sys.executable, "-c", EVALUATE, small_floods, floods, tmp_path / f"out{count}", model),
                json.dumps(settings),
            ],
            env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found[count] = json.loads(done.stdout.splitlines()[-1])
    devices, losses, history, confusion, compiled = zip(found[1], found[DEVICES], strict=True)
    assert devices == (1, DEVICES)
    assert len(losses[0]) == 4
    np.testing.assert_allclose(*losses, rtol=RELATIVE)
    assert [epoch for epoch, _ in history[0]] == [epoch for epoch, _ in history[1]]
    moved = np.abs(np.subtract(*confusion)).sum() / 2
    assert moved <= 0.01 * np.sum(confusion[0])
    assert compiled[0] == compiled[1]
    assert compiled[0]["step"] == compiled[0]["decode"] == 1
