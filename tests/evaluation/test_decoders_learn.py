"""Decoders of several dates that no task's own command trains: each learns what there is to learn, U-Nets from pixels.

Small files of PASTIS (series of two sensors) and of SpaceNet 7's changes, the corrected protocol with a rate for few
steps.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest

from ramen_jax.earth.layouts.pangaea import WRITERS
from ramen_jax.evaluation.encoders import Pixels, Raw
from ramen_jax.evaluation.pangaea import decoders
from ramen_jax.evaluation.pangaea.protocol import CORRECTED
from ramen_jax.evaluation.pangaea.tasks import open_task
from tests.evaluation.conftest import SMALL

SIDE = 32
FILES = {
    "pastis": {"places": 24, "pixels": SIDE, "dates": 10},
    "spacenet7_change": {"months": 7, "pixels": 2 * SIDE},
}
MARGIN = 1.25  # a floor is this many times better than the best answer that looks at no image


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folders = {}

    def task(name, rate):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            WRITERS[name](folders[name], **FILES[name])
        scene = {"scene": 2 * SIDE} if name == "spacenet7_change" else {}
        protocol = dataclasses.replace(CORRECTED, learning_rate=rate, validate_every=100)
        return open_task(name, folders[name], protocol, pixels=SIDE, **scene)

    return task


def chance(task):
    """mIoU of calling every pixel of the test split the most frequent class."""
    targets = np.concatenate([task.example(item, "test").target.ravel() for item in task.split("test")])
    counts = np.bincount(targets[targets != task.ignore_index])
    return 100 * counts.max() / counts.sum() / np.count_nonzero(counts)


# Task, encoder, decoder, rate, epochs, and mIoU that is reached at least, about four fifths of what was.
CASES = [
    ("pastis", Raw(), "seg_linear_mt", 2e-2, 40, 16.0),
    ("pastis", Pixels(), "seg_unet_mt", 1e-2, 20, 20.0),
    ("spacenet7_change", Raw(), "seg_siamupernet_conc", 2e-2, 60, 60.0),
    ("spacenet7_change", Pixels(), "seg_siamunet_diff", 1e-2, 40, 70.0),
    ("spacenet7_change", Pixels(), "seg_siamunet_conc", 1e-2, 40, 65.0),
]
FAST = ("seg_linear_mt", "seg_siamunet_diff")


@pytest.mark.parametrize(
    ("name", "encoder", "decoder", "rate", "epochs", "floor"),
    [pytest.param(*case, id=case[2], marks=() if case[2] in FAST else pytest.mark.slow) for case in CASES],
)
def test_the_truth_is_learnt(make_run, opened, monkeypatch, name, encoder, decoder, rate, epochs, floor):
    """(Mutants: the first date in the place of the second; of a series the first date alone.)"""
    if not encoder.frozen:  # an eighth of the U-Net's widths
        monkeypatch.setattr(decoders, "build", partial(decoders.build, topology=(8, 16, 32, 64)))
    task = opened(name, rate)
    coarser = 2 if decoder == "seg_siamupernet_conc" else 1  # a UPerNet refines its map fourfold
    settings = dataclasses.replace(
        SMALL,
        decoder=decoder,
        target_gsd=coarser * task.modalities[0].sensor.gsd,
        epochs=epochs,
        batch_size=4,
    )
    result = make_run(encoder, settings, task=task).result()
    assert result["decoder"] == decoder
    assert result["compiled"]["step"] == result["compiled"]["decode"] == 1
    assert result["scores"]["corrected"]["mIoU"] >= floor >= chance(task) * MARGIN
