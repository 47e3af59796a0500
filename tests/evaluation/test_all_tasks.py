"""Every task end to end, from small files in its original layout to a table: what there is to learn is learnt.

The raw bands and a decoder of few channels, by the corrected protocol with a rate for few steps. The truth of the
procedural Earth follows from what the sensors see, so that a score near chance means that images, targets or dates do
not belong together.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml

import ramen_jax as rj
from ramen_jax.earth.layouts.pangaea import WRITERS
from ramen_jax.evaluation.pangaea import protocol as protocols
from ramen_jax.evaluation.pangaea.tasks import load_task, open_task, shipped
from ramen_jax.evaluation.runs import Settings
from tests import exported
from tests.conftest import REPOSITORY

QUICK = dataclasses.replace(protocols.CORRECTED, name="quick", learning_rate=2e-2, validate_every=10)
MAPS = {"places": 24, "pixels": 32}
CLASSES = {"places": 48, "pixels": 16}
# What a writer is told where MAPS (CLASSES for classifications) does not do, and the reader of SpaceNet 7.
WRITE = {
    "spacenet7": {"months": 7, "pixels": 64},
    "spacenet7_change": {"months": 7, "pixels": 64},
    "pastis": {**MAPS, "dates": 10},
    "biomassters": {"places": 16, "pixels": 32},
    "dynamicearthnet": {**MAPS, "days": 6},
    "mados": {**MAPS, "pixels": 36},  # its coarsest band has a sixth of the pixels
}
READ = {"spacenet7": {"scene": 64}, "spacenet7_change": {"scene": 64}}
EPOCHS = {
    "segmentation": 60,
    "regression": 30,
    "change_detection": 20,
    "ai4smallfarms": 30,
    "spacenet7": 10,
    "opencanopy": 60,
}
# Two modalities, series, change, regression of series, one label, several labels: the others are of these kinds.
FAST = ("sen1floods11", "croptypemapping", "xview2", "biomassters", "m-eurosat", "m-bigearthnet")
# What is reached at least, in the family's score (mIoU, accuracy, F1; RMSE at most), about four fifths of what was.
FLOORS = {
    "ai4smallfarms": 50.0,
    "biomassters": 20.0,
    "croptypemapping": 13.0,
    "dynamicearthnet": 20.0,
    "fivebillionpixels": 9.0,
    "hlsburnscars": 80.0,
    "m-bigearthnet": 0.6,
    "m-brick-kiln": 0.75,
    "m-cashew-plantation": 25.0,
    "m-chesapeake": 45.0,
    "m-eurosat": 0.5,
    "m-forestnet": 0.8,
    "m-neontree": 55.0,
    "m-nz-cattle": 55.0,
    "m-pv4ger": 0.7,
    "m-pv4ger-seg": 52.0,
    "m-sa-crop-type": 20.0,
    "m-so2sat": 0.5,
    "mados": 4.0,
    "opencanopy": 22.0,
    "pastis": 15.0,
    "potsdam": 35.0,
    "sen1floods11": 80.0,
    "spacenet7": 57.0,
    "spacenet7_change": 60.0,
    "xview2": 22.0,
}
SCORES = {"regression": "RMSE", "classification": "accuracy", "multi_label": "F1"}
MARGIN = 1.25  # a floor is this many times better than chance


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setitem(protocols.PROTOCOLS, "quick", QUICK)


def linear(description):
    """Whether a linear decoder will do, on tokens as fine as pixels; a UPerNet refines its map fourfold."""
    return description["family"] == "segmentation" and "outputs" not in description


def described(name, folder):
    """The task as it ships, but of small images, as a YAML file beside its files; and its writer's sizes."""
    description = load_task(name)
    pooled = description["family"] in ("classification", "multi_label")
    sizes = WRITE.get(name, CLASSES if pooled else MAPS)
    side = 32 if name in READ else sizes["pixels"]
    metres = open_task(name, folder, QUICK).modalities[0].sensor.gsd
    command = {
        **description["command"],
        "crop": side,
        "target_gsd": metres * (1 if linear(description) else 2),
    }
    del description["name"]
    path = folder.parent / f"{name}.yaml"
    changes = {"pixels": side, "command": command, **READ.get(name, {})}
    path.write_text(yaml.safe_dump({**description, **changes}))
    return path, sizes


def chance(task):
    """The best score of an answer that looks at no image, on the test split: one class, the mean, common labels."""
    targets = [np.atleast_1d(task.example(item, "test").target) for item in task.split("test")]
    if task.family == "regression":
        return float(np.std(np.stack(targets)))
    if task.family == "multi_label":
        shares = np.mean([task.example(item, "train").target for item in task.split("train")], axis=0)
        truth = np.stack(targets)
        constant = np.broadcast_to(shares > 0.5, truth.shape)
        return 2 * float((constant & (truth > 0)).sum()) / float(constant.sum() + truth.sum())
    labels = np.concatenate([target.ravel() for target in targets])
    counts = np.bincount(labels[labels != task.ignore_index])
    share = float(counts.max() / counts.sum())
    return share if task.family == "classification" else 100 * share / int((counts > 0).sum())


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in shipped()]
)
def test_what_there_is_to_learn_is_learnt(name, tmp_path):
    """(Mutants: labels upside down, which leaves Sen1Floods11 at 37 and South Sudan at 9; rate 0.)"""
    folder = tmp_path / "files"
    folder.mkdir()
    path, sizes = described(name, folder)
    WRITERS[name](folder, **sizes)
    task = open_task(path, folder, QUICK)
    settings = Settings(
        epochs=EPOCHS.get(name, EPOCHS.get(task.family, 40)),
        batch_size=4,
        channels=8,
        decoder="seg_linear" if linear(load_task(name)) else None,
    )
    (result,) = rj.evaluate(
        str(path), folder, tmp_path / "out", encoders=["raw"], protocol="quick", settings=settings
    )
    floor, by_chance = FLOORS[name], chance(task)
    score = result["scores"]["corrected"][SCORES.get(task.family, "mIoU")]
    assert result["left_out"] == [str(item) for item in task.items()[1]]
    if task.family == "regression":
        assert score <= floor <= by_chance / MARGIN
    else:
        assert score >= floor >= by_chance * MARGIN


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("name", "floor"),
    [
        ("sen1floods11", 80.0),
        ("m-eurosat", 0.75),
        pytest.param("xview2", 28.0, marks=pytest.mark.slow),
        pytest.param("croptypemapping", 19.0, marks=pytest.mark.slow),
    ],
)
def test_a_model_in_front_of_the_decoder(name, floor, tmp_path):
    """As above, but through a RAMEN of the tiny size, exported with random weights: pairs, series and one label too."""
    folder = tmp_path / "files"
    folder.mkdir()
    path, sizes = described(name, folder)
    WRITERS[name](folder, **sizes)
    task = open_task(path, folder, QUICK)
    model = exported.folder(tmp_path / "tiny", "fixed")
    epochs = EPOCHS.get(name, EPOCHS.get(task.family, 40)) // 2
    (result,) = rj.evaluate(
        str(path),
        folder,
        tmp_path / "out",
        checkpoint=model,
        encoders=["checkpoint"],
        protocol="quick",
        settings=Settings(
            epochs=epochs, batch_size=4, channels=8, decoder="seg_linear" if linear(load_task(name)) else None
        ),
    )
    assert result["encoder"] == "tiny"
    assert result["flops"]["encoder"] > 0
    assert result["compiled"]["encoder"] <= 2
    assert result["scores"]["corrected"][SCORES.get(task.family, "mIoU")] >= floor >= chance(task) * MARGIN


def test_every_task_has_a_floor():
    assert set(FLOORS) == set(shipped())


def test_the_command_runs_a_task(tmp_path):
    """`python -m ramen_jax.evaluate` as a process, on series of two modalities; with a model: see test_command."""
    folder = tmp_path / "files"
    folder.mkdir()
    path, _ = described("croptypemapping", folder)
    WRITERS["croptypemapping"](folder, places=8, pixels=32)
    words = [
        *("--config", path, "--data", folder, "--workdir", tmp_path / "out"),
        *("--encoder", "raw", "--target-gsd", "40", "--epochs", "1", "--batch-size", "2"),
        *("--decoder", "seg_linear"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "ramen_jax.evaluate", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(result["task"], result["encoder"]) for result in results] == [("croptypemapping", "raw")]
    assert 0 <= results[0]["scores"]["corrected"]["mIoU"] <= 100
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.strip() in done.stdout
    assert "| croptypemapping | raw |" in table
