"""A run learns, compiles once, can be killed anywhere, and says in one line what it cannot do."""

from __future__ import annotations

import copy
import dataclasses
import shutil

import numpy as np
import pytest
import rasterio

from ramen_jax.console import UserError
from ramen_jax.evaluation.encoders import Pixels, Raw
from ramen_jax.evaluation.pangaea.protocol import CORRECTED
from ramen_jax.evaluation.pangaea.tasks import open_task
from ramen_jax.sensors import Band
from ramen_jax.training import clock
from tests.evaluation.conftest import PIXELS, SMALL


class Killed(Exception):
    pass


def numbers(result):
    return {key: result[key] for key in ("losses", "history", "best_epoch", "scores", "confusion")}


def test_killed_at_every_point_the_result_is_the_same(make_run):
    """(Mutants: an order drawn from state, dropout keyed by the call, best weights not kept.)"""
    settings = dataclasses.replace(SMALL, decoder="seg_upernet")
    whole = numbers(make_run(settings=settings, folder="whole").result())
    calls = 0

    def kill_after(limit):
        def progress(info):
            nonlocal calls
            calls += 1
            if calls == limit:
                raise Killed

        return progress

    for limit in (1, 3, 4, 2):
        calls = 0
        with pytest.raises(Killed):
            make_run(settings=settings, folder="killed").result(kill_after(limit))
    assert numbers(make_run(settings=settings, folder="killed").result()) == whole


def test_what_is_kept_on_disk_changes_no_number(make_run):
    kept = numbers(make_run(folder="a").result())
    again = make_run(folder="b")
    assert numbers(again.result()) == kept
    assert again.features.cache.hits > 0
    assert again.features.cache.misses == 0
    assert numbers(make_run(folder="c", limit=0).result()) == kept


def test_one_compilation_each_whatever_the_number_of_epochs(make_run, tiny):
    """Training step and forward pass once; the encoder once for batches and once for tiles."""
    tiny.programs.clear()
    run = make_run(settings=dataclasses.replace(SMALL, epochs=6))
    compiled = run.result()["compiled"]
    assert compiled["step"] == compiled["decode"] == 1
    assert compiled["encoder"] <= 2


@pytest.mark.parametrize("encoder", [Raw(), Pixels()], ids=lambda encoder: encoder.name)
def test_water_is_learnt(make_run, encoder):
    """The loss falls by a quarter, at a rate above the protocol's, and the readout's score rises. (Mutant: rate 0.)

    Three epochs of a U-Net are too few for its score: it may still call everything dry.
    """
    task = open_task(
        "sen1floods11",
        make_run().task.source,
        dataclasses.replace(CORRECTED, learning_rate=2e-2),
        pixels=PIXELS,
    )
    settings = dataclasses.replace(
        SMALL, epochs=12, decoder="seg_linear" if encoder.frozen else "seg_upernet", target_gsd=20.0
    )
    if not encoder.frozen:
        settings = dataclasses.replace(settings, epochs=3)
    result = make_run(encoder, settings, task=task).result()
    first, last = np.mean(result["losses"][:3]), np.mean(result["losses"][-3:])
    assert last < 0.75 * first
    if encoder.frozen:
        assert result["history"][-1][1] > result["history"][0][1]


def test_the_best_epoch_is_tested_and_ties_keep_the_earlier(make_run):
    result = make_run(settings=dataclasses.replace(SMALL, epochs=6)).result()
    best = max(value for _, value in result["history"])
    assert result["best_epoch"] == next(epoch for epoch, value in result["history"] if value == best)
    assert [epoch for epoch, _ in result["history"]] == [0, 5, 6]


def test_another_setting_in_the_same_folder_is_refused(make_run):
    make_run().result()
    with pytest.raises(UserError, match="holds the result of other settings"):
        make_run(settings=dataclasses.replace(SMALL, epochs=3)).result()


def test_a_damaged_state_is_told(make_run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"state\.safetensors is damaged .*remove it"):
        make_run().result()


def test_a_damaged_result_is_told(make_run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text('{"identity": "ab')
    with pytest.raises(UserError, match=r"result\.json is damaged \(JSONDecodeError\); remove it"):
        make_run().result()


@pytest.mark.parametrize(("split", "word"), [("val", "valid"), ("train", "train")])
def test_a_damaged_place_ends_the_run_in_one_line_and_loses_nothing(make_run, floods, tmp_path, split, word):
    """Mended, the run goes on to the numbers of one that was never stopped. (Mutant: BadItem passed on.)"""
    source = shutil.copytree(floods, tmp_path / "copy")
    listed = (source / "v1.1/splits/flood_handlabeled" / f"flood_{word}_data.csv").read_text()
    (label,) = source.rglob(listed.split(",", 1)[1].splitlines()[0].strip())
    sound = label.read_bytes()
    with rasterio.open(label) as file:
        profile, values = file.profile, file.read()
    with rasterio.open(label, "w", **profile) as file:
        file.write(np.full_like(values, 7))
    with pytest.raises(UserError, match=rf"split {split}: .*label values 7 are outside the classes 0\.\.1"):
        make_run(source=source).result()
    label.write_bytes(sound)
    assert numbers(make_run(source=source).result()) == numbers(make_run(folder="whole").result())


def test_bands_that_the_weights_have_never_seen_are_named(make_run, tiny):
    """Nothing is refused. Nothing is said where the training is unknown. (Mutant: bands compared by name.)"""
    run = make_run()
    sensors = run.features.sensors
    assert tiny.unseen(sensors) == []
    bands = [Band(f"channel{i}", band.wavelength_nm + 10) for i, band in enumerate(sensors["optical"].bands)]
    seen = {"place/camera": dataclasses.replace(sensors["optical"], bands=tuple(bands))}
    encoder = copy.copy(tiny)
    encoder.encoder = dataclasses.replace(tiny.encoder, sensors=seen)
    run = make_run(encoder)
    result = run.result()
    names = [f"sar/{band.name} ({band.radar})" for band in sensors["sar"].bands]
    assert result["unseen_bands"] == names
    assert [line for line in run.said if f"no band like {', '.join(names)}; encoded all the same" in line]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"target_gsd": 5000.0}, "has no token; use at most 320 m"),
        ({"target_gsd": 1e-4}, "asks for .* tokens of 2 modalities, which takes at least"),
        ({"batch_size": 64}, "less than one batch of 64; use a smaller --batch-size or --replicate"),
        ({"labels": 0.0}, "share of labels is 0"),
        ({"decoder": "seg_unet"}, "decoder seg_unet reads pixels, not maps of tiny; use --encoder unet"),
        ({"decoder": "seg_upernett"}, "no decoder 'seg_upernett'; did you mean \"seg_upernet\""),
    ],
)
def test_impossible_settings(make_run, change, sentence):
    with pytest.raises(UserError, match=sentence):
        make_run(settings=dataclasses.replace(SMALL, **change))


def test_a_batch_without_any_truth_names_its_places(make_run):
    run = make_run()
    read = run.task.example
    run.task.example = lambda *key: dataclasses.replace(
        (example := read(*key)), target=np.full_like(example.target, run.task.ignore_index)
    )
    with pytest.raises(UserError, match=r"every pixel of the batch is ignored \(\w+, \w+\)"):
        run.result()


def test_a_chip_without_its_label_is_left_out_and_reported(make_run, floods, tmp_path):
    source = shutil.copytree(floods, tmp_path / "copy")
    label = sorted(source.rglob("*_LabelHand.tif"))[0]
    label.unlink()
    result = make_run(source=source).result()
    assert [line for line in result["left_out"] if label.name in line]


def test_a_longer_run_compiles_nothing_more(make_run):
    """Of everything, small programs too: two once a process has run the task, for its training step and its decoding.

    (Mutants: the step's number as a Python integer of the program; a short last chunk of tiles.)
    """

    def compilations(folder, epochs):
        before = clock.compilations()
        make_run(settings=dataclasses.replace(SMALL, epochs=epochs), folder=folder, limit=0).result()
        return clock.compilations() - before

    compilations("first", 1)
    assert [compilations("short", 1), compilations("long", 6)] == [2, 2]
