"""Runs of several dates, shares of labels, bfloat16 and heights: what trains, what is counted, what is drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ramen_jax.earth.layouts.pangaea import WRITERS
from ramen_jax.evaluation import report
from ramen_jax.evaluation.encoders import Pretrained, Raw
from ramen_jax.evaluation.pangaea.protocol import CORRECTED, PUBLISHED
from ramen_jax.evaluation.pangaea.tasks import open_task
from tests.evaluation.conftest import SMALL

SIDE = 32


@pytest.fixture(scope="session")
def small_files(tmp_path_factory):
    """Folder of a task's original files; of change, scenes of 64 pixels that are cut into four."""
    made = {}

    def files(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            changes = {"pixels": SIDE, "dates": 12} if name == "pastis" else {"pixels": 2 * SIDE}
            WRITERS[name](made[name], **changes)
        return made[name]

    return files


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("pastis", "seg_upernet_mt_ltae"),
        ("spacenet7_change", "seg_siamupernet_diff"),
        ("spacenet7_change", "ridge"),
        ("pastis", "knn"),
    ],
)
def test_decoders_of_several_dates(make_run, small_files, tiny, name, decoder):
    """The loss falls, every labelled pixel of the test is counted once, and it is compiled once.

    (Mutants: dates merged twice; a series given to a decoder of one date.)
    """
    scene = {"scene": 2 * SIDE} if name == "spacenet7_change" else {}
    protocol = dataclasses.replace(CORRECTED, learning_rate=3e-3)
    task = open_task(name, small_files(name), protocol, pixels=SIDE, **scene)
    settings = dataclasses.replace(
        SMALL, decoder=decoder, target_gsd=16.0, epochs=3, replicate=2, dropout=False
    )
    tiny.programs.clear()
    run = make_run(tiny, settings, task=task)
    result = run.result()
    labelled = sum(
        int((task.example(item, "test").target != task.ignore_index).sum()) for item in task.split("test")
    )
    assert np.sum(result["confusion"]) == labelled
    if decoder in ("knn", "ridge"):
        return
    assert np.mean(result["losses"][-3:]) < np.mean(result["losses"][:3])
    assert result["compiled"]["step"] == result["compiled"]["decode"] == 1
    assert result["compiled"]["encoder"] <= 2


def test_shares_of_labels(make_run, small_files):
    """A smaller share is a part of the places, every group of them kept, the same at every call."""

    def places(share):
        task = open_task("pastis", small_files("pastis"), CORRECTED, pixels=SIDE)
        run = make_run(Raw(), dataclasses.replace(SMALL, decoder="ridge", labels=share), task=task)
        return run.items["train"]

    whole, half, tenth = (places(share) for share in (1.0, 0.5, 0.1))
    assert set(tenth) <= set(whole)
    assert set(half) <= set(whole)
    assert 1 <= len(tenth) <= len(half) <= len(whole)
    assert places(0.5) == half


def test_half_the_digits_change_the_maps_a_little(make_run, tiny):
    """bfloat16 is asked for and used. (Mutant: the option dropped.)"""
    run = make_run(Pretrained("half", tiny.encoder, "metric", "bfloat16"))
    batch = next(run.epoch(0))
    whole = make_run(tiny).features.of(batch, False, {})
    half = run.features.of(batch, False, {})
    error = np.abs(np.asarray(half[-1]) - np.asarray(whole[-1])).mean() / np.abs(whole[-1]).mean()
    assert 1e-4 < error < 0.05


def test_heights_are_predicted_and_drawn(make_run, small_files, tiny, tmp_path):
    """A regression with its own decoder, chosen by its error, its picture in the truth's units."""
    task = open_task(
        "pastis", small_files("pastis"), PUBLISHED, pixels=SIDE, family="regression", classes=["m"], outputs=1
    )
    read = task._read
    task._read = lambda *key: dataclasses.replace(
        (example := read(*key)), target=(example.target % 5).astype(np.float32)
    )
    settings = dataclasses.replace(SMALL, decoder="reg_upernet", epochs=2)
    task.command = dataclasses.replace(task.command, loss="mse")
    assert task.metric == "RMSE"
    result = make_run(tiny, settings, task=task).result()
    assert result["selected_by"] == "MSE"
    best = min(value for _, value in result["history"])
    assert dict(map(tuple, result["history"]))[result["best_epoch"]] == best
    scores = result["scores"]["published"]
    assert scores["RMSE"] == pytest.approx(scores["MSE"] ** 0.5)
    report.draw(task, result, tmp_path / "run")
    assert (tmp_path / "run" / "predictions.png").stat().st_size > 1000
