"""encode refuses what no memory holds, before anything is allocated."""

from __future__ import annotations

import numpy as np
import pytest

import ramen_jax as rj
from ramen_jax.console import UserError
from tests import exported


def test_impossible_grids_are_refused(tmp_path, monkeypatch):
    model = rj.load(exported.folder(tmp_path / "tiny", "fixed"))
    image = {"s2": np.ones((12, 32, 32), np.int16)}
    sentence = r"10,240,000,000,000 tokens, which takes at least [\d.]+ PiB of memory, the limit here is"
    with pytest.raises(UserError, match=sentence):
        model.encode(image, target_gsd=1e-4)
    with pytest.raises(
        UserError, match="asks for 80 cells along 1 pixels of 10 m; the limit is 64 cells per pixel"
    ):
        model.encode({"s2": image["s2"][:, :1, :1]}, target_gsd=0.125)
    monkeypatch.setattr("ramen_jax.inference.encoder.device_memory", lambda: 2.0**20)
    sentence = r"asks for 32 x 32 cells of 1 modality, 1,024 tokens, which takes at least 2\.5 MiB of memory"
    with pytest.raises(UserError, match=sentence):
        model.encode(image, target_gsd=10)
    assert model.encode(image, target_gsd=40).maps["s2"].shape == (64, 8, 8)
