"""Killed at random moments, saving included, a training ends with the losses of one that was left alone."""

import os
import subprocess
import sys

import pytest

from ramen_jax.training import checkpoint_files, metrics

SMALL = (
    *("model.embed_dim=32", "model.depth=1", "model.num_heads=2", "model.decoder_embed_dim=16"),
    *("model.decoder_depth=1", "model.decoder_num_heads=2", "logging.tensorboard=false", "train.steps=90"),
)


def campaign(repository, folder, kind: str, kills: int, *overrides: str) -> None:
    seed = int.from_bytes(os.urandom(3))
    command = [sys.executable, "-m", "tests.training.killed", kind, str(folder), str(kills), str(seed)]
    done = subprocess.run(
        [*command, "logging.stablehlo=false", "checkpoint.every=2", *overrides],
        cwd=repository,
        env={**os.environ, "TOY_SECONDS": "0.03"},
        capture_output=True,
        text=True,
        check=False,
    )
    told = f"seed {seed}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, told
    assert done.stdout.count("kill ") == kills
    whole, killed = (metrics.read(folder / name) for name in ("whole", "killed"))
    assert [(line["step"], line["loss"]) for line in killed] == [
        (line["step"], line["loss"]) for line in whole
    ], told
    last = checkpoint_files.find(folder / "killed")
    assert int(last.name) == len(whole)
    assert checkpoint_files.compare(last) == ("", True)
    assert not (folder / "killed" / "training.lock").exists()


def test_six_kills_of_a_toy_change_no_bit(tmp_path, repository):
    """(Mutants: metrics that are not cut at the resume point; a lock that outlives a kill.)"""
    campaign(repository, tmp_path, "toy", 6)


@pytest.mark.slow
def test_twenty_kills_of_the_real_model_change_no_bit(tmp_path, repository):
    campaign(repository, tmp_path, "tiny", 20, *SMALL)
