"""The comparison with a plain PyTorch loader compares the same pixels, and its command runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ramen_jax.benchmarks.loader import GeoTiffs, padded
from ramen_jax.corpora.preparation import prepare
from ramen_jax.corpora.records import Prepared
from ramen_jax.earth.layouts import write_flairhub

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small FLAIR-HUB in its original layout, and prepared."""
    root = tmp_path_factory.mktemp("comparison")
    write_flairhub(root / "original", 4, seed=2, max_dates=4, modalities=["aerial", "dem", "s2", "s1_des"])
    entry = {"name": "flairhub", "kind": "flairhub", "source": str(root / "original")}
    return root / "original", prepare(entry, root / "prepared", workers=1)


def test_both_sides_read_the_same_pixels(folders: tuple[Path, Path]) -> None:
    corpus = Prepared(folders[1])
    order = [json.loads(line) for line in (folders[1] / "train.ids.jsonl").read_text().splitlines()]
    patches = GeoTiffs(folders[0], corpus.spec)
    for number, row in enumerate(patches.rows):
        sample = corpus[order.index(row["patch_id"])]
        found = patches[number]
        for modality in corpus.spec.modalities:
            mean, std = (np.array(s)[:, None, None] for s in (modality.sensor.mean, modality.sensor.std))
            expected = (sample.images[modality.name].values - mean) / std
            np.testing.assert_allclose(found[modality.name].numpy(), expected, rtol=1e-4, atol=1e-4)
    stacked = padded([patches[0], patches[1]])
    assert stacked["aerial"].shape == (2, 1, 4, 512, 512)
    assert stacked["s2"].shape[1] == max(len(patches[0]["s2"]), len(patches[1]["s2"]))


def test_the_command_prints_the_ratio(folders: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "ramen_jax.benchmarks.loader", "--seconds", "0.1", "--turns", "1"]
    command += ["--source", str(folders[0]), "--prepared", str(folders[1])]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "x the samples/s of the DataLoader, on one core" in found.stdout
    missing = subprocess.run(
        [*command[:-1], str(folders[0] / "none")], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: ")
    assert "manifest.json: missing" in missing.stderr
