"""What version 0.1.0 of 2026-11-25 left behind is still of use: its workdir goes on, its exported folder encodes.

`tests/golden/old`: a workdir of `configs/tiny.py:quicktest` stopped after two of four steps, with the overrides that
its config.json holds, and the folder that `export` wrote at its end, with features of a random image. Its corpora are
rendered again. Checkpoints had no hashes then.
"""

import json
import shutil

import numpy as np
import pytest

import ramen_jax as rj
from ramen_jax import config as configuration
from ramen_jax.training import checkpoint, checkpoint_files, metrics, pretrain

OLD = "tests/golden/old"
# Steps 2 and 3 of the version that wrote it, undisturbed.
LOSSES = {
    2: {
        "gradient_norm": 300.4105529785156,
        "loss": 40.28593444824219,
        "loss/aerial": 8.716954231262207,
        "loss/dem": 3.081667900085449,
        "loss/s1_des": 6.240506172180176,
        "loss/s2": 14.77231502532959,
        "loss/spot": 7.474493026733398,
    },
    3: {
        "gradient_norm": 228.97378540039062,
        "loss": 36.09393310546875,
        "loss/aerial": 7.163381576538086,
        "loss/dem": 3.5965805053710938,
        "loss/s1_des": 4.732593536376953,
        "loss/s2": 14.668205261230469,
        "loss/spot": 5.933170795440674,
    },
}


@pytest.mark.slow
def test_an_old_workdir_goes_on_with_its_losses(repository, tmp_path, capsys):
    """Same corpora, draws, plan, tree and arithmetic. (Mutants: a key without its old default; a renamed parameter.)"""
    workdir = tmp_path / "workdir"
    shutil.copytree(repository / OLD / "workdir", workdir)
    assert not list(workdir.rglob(checkpoint_files.LIST))
    model = json.loads((workdir / "config.json").read_text())["model"]
    overrides = [f"model.{key}={value}" for key, value in model.items()]
    overrides += [
        "recipe=fixed",
        "logging.tensorboard=false",
        "logging.stablehlo=false",
        "compile_cache.folder=",
        # Where NumPy has other float32 functions (it does with AVX-512), one rendered pixel in many is a number off.
        "checkpoint.allow=sensors .*|fingerprints .*|plan corpora tiny fingerprint",
    ]
    config = configuration.load(f"{repository}/configs/tiny.py:quicktest", overrides)
    assert pretrain.run(config, workdir) == 0
    said = capsys.readouterr().out
    assert "cannot be verified" in said
    assert "resuming from" in said
    lines = {line["step"]: line for line in metrics.read(workdir)}
    assert sorted(lines) == [0, 1, 2, 3]
    for step, expected in LOSSES.items():
        for name, value in expected.items():
            # Rounding differs with the compiler's settings and with such pixels: by 1e-6 where it was looked at.
            assert lines[step][name] == pytest.approx(value, rel=1e-5), (step, name)


def test_an_old_checkpoint_loads_and_says_that_it_cannot_be_verified(repository, capsys):
    loaded = checkpoint.load(repository / OLD / "workdir")
    assert loaded.meta["step"] == 2
    assert "cannot be verified" in capsys.readouterr().err


def test_an_old_exported_folder_gives_its_features(repository):
    model = rj.load(repository / OLD / "exported")
    values = np.random.default_rng(0).integers(0, 255, (4, 256, 256), np.uint8)
    found = model.encode({"aerial": rj.Image(values)}, target_gsd=8.0).maps["aerial"]
    expected = np.load(repository / OLD / "features.npy")
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())))
