"""The comparison of attention: the rows are the paper's, and the command runs."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ramen_jax.benchmarks import attention
from ramen_jax.console import UserError


def test_packed_rows_are_the_papers() -> None:
    """Shares of useful pairs lie where whole epochs have them: 35 % FLAIR-HUB, 43 % MMEarth."""
    for corpus, share in (("flairhub", 0.35), ("mmearth", 0.43)):
        segments = attention.packed_segments(corpus, 64)
        assert attention.useful_share(segments) == pytest.approx(share, abs=0.06)
        assert np.mean(segments > 0) > 0.93


def test_the_command_prints_every_way(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--cases", "150", "--heads", "1", "--turns", "1", "--rows", "1"])
    assert attention.run() == 0
    shown = capsys.readouterr().out
    assert "100% of the pairs" in shown
    for way in ("ours", "all pairs", "dense"):
        assert f"\n{way}" in shown


def test_an_unknown_corpus_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--cases", "flairhab"])
    with pytest.raises(UserError, match="flairhub"):
        attention.run()
