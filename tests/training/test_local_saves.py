"""Saves on the disk of the host: which is taken at a restart, the newest whole one of either kind."""

import shutil

import pytest

from ramen_jax.console import UserError
from ramen_jax.training import checkpoint_files, loop, metrics
from tests.training import toy

EVERY = ("checkpoint.every=5", "checkpoint.local_every=2")


@pytest.fixture
def train(tmp_path, capsys):
    """train(*overrides) trains on in the workdir, with saves in "local" -> what was said."""

    def run(*overrides):
        settings = toy.config(*EVERY, f"checkpoint.local={tmp_path / 'local'}", *overrides)
        capsys.readouterr()
        loop.run(toy.job(settings, steps=15), tmp_path / "run")
        return capsys.readouterr().out

    return run


@pytest.fixture
def undisturbed(tmp_path):
    loop.run(toy.job(toy.config(), steps=15), tmp_path / "undisturbed")
    return losses(tmp_path / "undisturbed")


def losses(workdir):
    return [(line["step"], line["loss"]) for line in metrics.read(workdir)]


def local(tmp_path):
    """The folder of this process."""
    ((run,),) = [list((tmp_path / "local").iterdir())]
    return run / "process0_of_1"


def forget(tmp_path, step):
    """As if the run had been killed before the checkpoint of this step."""
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))


def damage(folder):
    file = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_a_killed_run_goes_on_from_the_newer_local_save(train, tmp_path, undisturbed):
    """Bit for bit. (Mutant: only checkpoints are looked at.)"""
    train("train.stop_at=9")
    assert checkpoint_files.steps_in(local(tmp_path)) == [6, 8]
    forget(tmp_path, 9)
    assert "resuming from what every process saved on its own disk after step 8" in train()
    assert losses(tmp_path / "run") == undisturbed
    assert checkpoint_files.steps_in(local(tmp_path)) == [12, 14]


def test_a_newer_checkpoint_is_preferred(train, tmp_path, undisturbed):
    """(Mutant: whatever is local is taken.)"""
    train("train.stop_at=9")
    assert f"resuming from {tmp_path / 'run' / 'checkpoints' / '9'}" in train()
    assert losses(tmp_path / "run") == undisturbed


@pytest.mark.parametrize(("damaged", "taken"), [([8], "after step 6"), ([8, 6], "checkpoints/5")])
def test_a_damaged_local_save_is_told_and_passed_over(train, tmp_path, undisturbed, damaged, taken):
    """(Mutant: hashes are not compared: the run goes on from damaged numbers.)"""
    train("train.stop_at=9")
    forget(tmp_path, 9)
    for step in damaged:
        damage(local(tmp_path) / str(step))
    told = train()
    assert told.count("is damaged (state.safetensors is not what was written); it is passed over") == len(
        damaged
    )
    assert taken in next(line for line in told.splitlines() if line.startswith("resuming from"))
    assert losses(tmp_path / "run") == undisturbed


def test_a_local_save_is_preferred_to_what_is_older_than_a_damaged_checkpoint(train, tmp_path, undisturbed):
    """(Mutant: only the newest checkpoint is compared with the local save.)"""
    train("train.stop_at=9")
    damage(tmp_path / "run" / "checkpoints" / "9")
    assert "on its own disk after step 8" in train()
    assert losses(tmp_path / "run") == undisturbed
    assert [path.name for path in (tmp_path / "run" / "checkpoints_damaged").iterdir()] == ["9"]


def test_a_run_that_is_gone_leaves_nothing_to_the_next_in_its_workdir(train, tmp_path, undisturbed):
    """(Mutant: local saves are found by the path of the workdir.)"""
    train("train.stop_at=9")
    shutil.rmtree(tmp_path / "run")
    assert "resuming" not in train()
    assert losses(tmp_path / "run") == undisturbed


def test_a_full_disk_is_told_once_and_costs_no_step(train, tmp_path, undisturbed):
    """(Mutant: the failure ends the run.)"""
    (tmp_path / "local").write_text("no folder")
    assert train().count("failed") == 1
    assert losses(tmp_path / "run") == undisturbed


def test_a_workdir_in_a_bucket_has_its_local_folder_already(tmp_path):
    settings = toy.config(f"checkpoint.local={tmp_path / 'local'}")
    job = toy.job(settings)._replace(mirror=type("Mirror", (), {"fetch": None})())
    with pytest.raises(UserError, match=r"config.checkpoint.local: .* leave it empty"):
        loop.run(job, tmp_path / "run")
