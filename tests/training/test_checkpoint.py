"""Checkpoints: strict, whole or set aside, on any number of devices, and never the end of a training."""

import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from ramen_jax.console import UserError
from ramen_jax.training import checkpoint, loop, metrics
from tests.training import toy


def trained(workdir, *overrides, steps=15):
    loop.run(toy.job(toy.config(*overrides), steps=steps), workdir)
    return workdir


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_latest_and_best_are_kept(tmp_path):
    trained(tmp_path, "checkpoint.every=2", "checkpoint.keep_latest=2", "checkpoint.keep_best=1", steps=12)
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert kept[-2:] == [10, 12]
    assert 2 <= len(kept) <= 3
    assert sorted(int(path.stem) for path in (tmp_path / "checkpoint_files").iterdir()) == kept


def test_load_reads_the_arrays_and_what_they_mean(tmp_path):
    trained(tmp_path, steps=5)
    loaded = checkpoint.load(tmp_path)
    assert loaded.meta["step"] == 5
    assert loaded.meta["recipe"] == "reference"
    assert loaded.meta["fingerprints"] == {"toy": "abc"}
    assert loaded.meta["sensors"]["toy"]["s2"]["name"] == "sentinel2_l2a"
    assert loaded.params["out"]["0"]["kernel"].shape == (64, 16)
    assert float(np.abs(loaded.statistics["mean"]).max()) > 0
    with pytest.raises(UserError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "nothing")


def test_a_truncated_checkpoint_is_set_aside_for_the_one_before(tmp_path, capsys):
    whole = trained(tmp_path / "whole")
    damaged = trained(tmp_path / "damaged", "train.stop_at=10")
    file = largest_file(damaged / "checkpoints" / "10" / "params")
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size // 2)
    trained(damaged)
    said = capsys.readouterr().out
    assert "checkpoints/10 is damaged" in said
    assert "resuming from" in said
    assert "checkpoints/5" in said
    assert (damaged / "checkpoints_damaged" / "10").is_dir()
    assert [line["loss"] for line in metrics.read(damaged)] == [line["loss"] for line in metrics.read(whole)]


def test_damage_is_found_without_the_list_of_files(tmp_path, capsys):
    trained(tmp_path, "train.stop_at=10")
    shutil.rmtree(tmp_path / "checkpoint_files")
    for file in (tmp_path / "checkpoints" / "10" / "opt_state").rglob("*"):
        if file.is_file() and file.stat().st_size > 200:
            os.truncate(file, 100)
    trained(tmp_path)
    assert "checkpoints/10 is damaged" in capsys.readouterr().out


def test_nothing_left_is_an_error_not_a_new_start(tmp_path):
    trained(tmp_path, "train.stop_at=5")
    largest_file(tmp_path / "checkpoints" / "5" / "params").unlink()
    with pytest.raises(UserError, match="no complete checkpoint left"):
        trained(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fingerprints": {"toy": "other"}}, ["fingerprints toy: abc in the checkpoint, expected other"]),
        ({"sensors": {"toy": {}}}, ["sensors toy s2 gsd", "unknown to this run"]),
        (
            {"plan": {"seed": 0, "corpora": {"toy": {"rows_per_step": 4}}}},
            ["plan corpora toy rows_per_step: 8 in the checkpoint, expected 4"],
        ),
    ],
)
def test_other_data_is_refused(tmp_path, change, words):
    trained(tmp_path, "train.stop_at=5")
    job = toy.job()
    with pytest.raises(UserError) as caught:
        loop.run(job._replace(identity={**job.identity, **change}), tmp_path)
    for word in ("does not fit this run", *words):
        assert word in str(caught.value)


def test_another_tree_shape_or_dtype_is_refused():
    kept = {"params": {"a": [[2, 3], "float32"], "b": [[2], "float32"], "c": [[], "int32"]}}
    ours = {"params": {"a": [[2, 4], "float32"], "c": [[], "float32"], "d": [[1], "float32"]}}
    with pytest.raises(UserError) as caught:
        checkpoint.refuse_differences("X", {"tree": kept}, {"tree": ours})
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "tree params a: [[2, 3], 'float32'] in the checkpoint, expected [[2, 4], 'float32']",
        "tree params b: [[2], 'float32'] in the checkpoint, unknown to this run",
        "tree params c: [[], 'int32'] in the checkpoint, expected [[], 'float32']",
        "tree params d: missing in the checkpoint, expected [[1], 'float32']",
    ]


FULL_DISK = """
import resource, sys, time
from pathlib import Path
from tests.training import toy
from ramen_jax.training import loop

def limited(start):
    for batch in toy.batches(start):
        if batch.step in (6, 12):  # no file may grow beyond 1 kB while the checkpoint of step 10 is written
            time.sleep(1.0)
            size = 1024 if batch.step == 6 else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        yield batch

config = toy.config("logging.stablehlo=false")
print(loop.run(toy.job(config, steps=15)._replace(batches=limited), Path(sys.argv[1])))
"""


def test_a_full_disk_costs_a_checkpoint_and_nothing_else(tmp_path, repository):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "CHECKPOINT OF STEP 10 NOT SAVED" in said
    assert "latest complete checkpoint is still step 5" in said
    assert "complete=True" in said
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["15", "5"]
    assert checkpoint.load(tmp_path / "checkpoints" / "5").meta["step"] == 5


def test_a_state_being_saved_is_not_overwritten_by_the_next_steps(tmp_path):
    """The step donates its state while Orbax writes it in the background."""
    workdir = trained(tmp_path / "a", "checkpoint.every=5", "checkpoint.keep_latest=9", steps=15)
    stopped = trained(tmp_path / "b", "train.stop_at=5")
    saved, alone = checkpoint.load(workdir / "checkpoints" / "5"), checkpoint.load(stopped)
    jax.tree.map(np.testing.assert_array_equal, saved.params, alone.params)
