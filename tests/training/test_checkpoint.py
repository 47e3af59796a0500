"""Checkpoints: strict, whole or passed over, on any number of devices, and never the end of a training."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from ramen_jax.console import UserError
from ramen_jax.training import checkpoint, checkpoint_files, loop, metrics
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
    for step in kept:
        assert checkpoint_files.compare(tmp_path / "checkpoints" / str(step)) == ("", True)
    assert json.loads((tmp_path / "saved.json").read_text())["step"] == 12


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


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, capsys):
    """It stays where it is until the run has something newer to keep. (Mutant: LatestN keeps it in place of work.)"""
    whole = trained(tmp_path / "whole")
    damaged = trained(tmp_path / "damaged", "train.stop_at=10")
    file = largest_file(damaged / "checkpoints" / "10" / "params")
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size // 2)
    with pytest.raises(
        UserError, match=r"checkpoints/10 is damaged: params/.* not what was written.*others .*/5"
    ):
        checkpoint.load(damaged)
    trained(damaged, "checkpoint.keep_latest=1")
    said = capsys.readouterr().out
    assert "checkpoints/10 is damaged" in said
    assert "resuming from" in said
    assert "checkpoints/5" in said
    assert (damaged / "checkpoints_damaged" / "10").is_dir()
    assert [line["loss"] for line in metrics.read(damaged)] == [line["loss"] for line in metrics.read(whole)]
    assert checkpoint.load(damaged).meta["step"] == 15


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A workdir with whole checkpoints of steps 5 and 10 of 15."""
    return trained(tmp_path_factory.mktemp("interrupted"), "train.stop_at=10")


def test_no_flipped_bit_is_loaded(interrupted, tmp_path):
    """60 single bits over all files of a checkpoint. (Mutant: a file that the list of hashes does not hold.)"""
    workdir = tmp_path / "copy"
    shutil.copytree(interrupted, workdir)
    folder = workdir / "checkpoints" / "10"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    rng = np.random.default_rng(11)
    # Every file at least once, where there are 60, and the large ones again.
    chosen = [*files, *rng.choice(np.array(files, object), max(0, 60 - len(files)))]
    keeper = checkpoint.Checkpoints(workdir, lambda sentence: None)
    for path in chosen:
        content = path.read_bytes()
        flipped = bytearray(content)
        place = int(rng.integers(len(content)))
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"is damaged"):
            checkpoint.load(folder)
        assert keeper._newest_whole() == 5, (path, place)
        path.write_bytes(content)
    assert keeper._newest_whole() == 10


@pytest.mark.parametrize("error", [MemoryError("out of memory"), OSError(5, "Input/output error")])
def test_an_error_that_is_no_damage_ends_the_run_and_moves_nothing(interrupted, tmp_path, monkeypatch, error):
    """(Mutant: whatever restoring raises counts as damage, and the next start begins at step 0.)"""
    workdir = tmp_path / "copy"
    shutil.copytree(interrupted, workdir)

    def failing(*_):
        raise error

    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_restore_arrays", failing)
        with pytest.raises(UserError, match=r"checkpoints/10 could not be restored .*nothing was moved"):
            trained(workdir)
        patched.setattr(checkpoint_files, "file_hash", failing)
        with pytest.raises(
            (UserError, MemoryError), match=r"cannot be read.*nothing was moved|out of memory"
        ):
            trained(workdir)
    after = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} <= {
        workdir / "step_toy.stablehlo.gz"
    }
    assert trained(workdir)
    assert len(metrics.read(workdir)) == 15


def test_without_its_list_a_checkpoint_loads_and_says_so(interrupted, tmp_path, capsys):
    workdir = tmp_path / "copy"
    shutil.copytree(interrupted, workdir)
    (workdir / "checkpoints" / "10" / checkpoint_files.LIST).unlink()
    assert checkpoint.load(workdir).meta["step"] == 10
    assert "cannot be verified" in capsys.readouterr().err
    trained(workdir)
    said = capsys.readouterr().out
    assert "cannot be verified" in said
    assert "resuming from" in said


def test_nothing_starts_anew_where_earlier_work_lies(interrupted, tmp_path):
    """(Mutant: without a checkpoint metrics.jsonl is emptied.)"""
    workdir = tmp_path / "copy"
    shutil.copytree(interrupted, workdir)
    for step in (5, 10):
        largest_file(workdir / "checkpoints" / str(step) / "params").unlink()
    lines = (workdir / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match=r"no checkpoint of .* is whole .*step 10: params.*step 5: params"):
        trained(workdir)
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(UserError, match=r"left of an earlier run \(saved\.json\).*from_scratch=true"):
        trained(workdir)
    (workdir / "saved.json").unlink()
    with pytest.raises(UserError, match=r"\(metrics\.jsonl with 10 steps\)"):
        trained(workdir, "checkpoint.every=4")
    assert (workdir / "metrics.jsonl").read_text() == lines
    trained(workdir, "checkpoint.every=4", "train.from_scratch=true")
    assert len(metrics.read(workdir)) == 15
    assert [path.read_text() for path in workdir.glob("metrics_before_*.jsonl")] == [lines]


def test_what_ended_before_its_first_checkpoint_starts_again_by_itself(tmp_path):
    loop.run(toy.job(toy.config("checkpoint.every=20", "train.stop_at=3"), steps=15), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "saved.json").unlink()
    trained(tmp_path, "checkpoint.every=20")
    assert len(metrics.read(tmp_path)) == 15


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


def test_what_a_pattern_allows_may_differ_and_is_told(tmp_path, capsys):
    """(Mutants: a pattern that is searched anywhere in a line; arrays that may differ.)"""
    trained(tmp_path, "train.stop_at=5")
    job = toy.job(toy.config("checkpoint.allow=plan|fingerprints toy"), steps=15)
    other = job._replace(identity={**job.identity, "fingerprints": {"toy": "other"}})
    assert loop.run(other, tmp_path).complete
    assert "allowed by config.checkpoint.allow: fingerprints toy: abc" in capsys.readouterr().out
    kept, ours = ({"params": {"a": [[size], "float32"]}} for size in (2, 3))
    with pytest.raises(UserError, match="does not fit this run"):
        checkpoint.refuse_differences("X", {"tree": kept}, {"tree": ours}, "tree")
    with pytest.raises(UserError, match="does not fit this run"):
        checkpoint.refuse_differences("X", {"plan": {"seed": "abc"}}, {"plan": {"seed": 1}}, "seed")
    with pytest.raises(UserError, match=r"config\.checkpoint\.allow = '\*' is no pattern"):
        checkpoint.refuse_differences("X", {"plan": {"seed": 0}}, {"plan": {"seed": 1}}, "*")


def test_another_model_is_one_line():
    kept, ours = ({"params": {f"block{n}": [[size], "float32"] for n in range(20)}} for size in (192, 768))
    with pytest.raises(UserError) as caught:
        checkpoint.refuse_differences("X", {"tree": kept}, {"tree": ours})
    assert str(caught.value) == (
        "checkpoint X is of another model: 20 of its arrays are not as this run's, e.g. tree params block0: "
        "[[192], 'float32'] in the checkpoint, expected [[768], 'float32']"
    )


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
