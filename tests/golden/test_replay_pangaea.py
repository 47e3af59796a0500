"""The benchmark's numbers: every file committed beside this one, within the stated tolerances."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.golden.replay import Worst
from tests.golden.replay_pangaea import TOLERANCES, decoder_name, read, replay_decoder, replay_file

PANGAEA = Path(__file__).parent / "pangaea"
FILES = sorted(path.stem for path in PANGAEA.glob("*.npz"))


@pytest.mark.parametrize("name", FILES)
def test_file(name: str) -> None:
    worst = Worst(TOLERANCES)
    assert replay_file(PANGAEA / f"{name}.npz", worst)
    assert worst.errors
    assert not worst.failures(), worst.table()


def test_every_kind_of_number_is_there() -> None:
    """A file lost from the folder is noticed."""
    assert sum(name.startswith("encoder_") for name in FILES) == 3
    assert {"harness", "neighbours", "trajectory_cross_entropy", "trajectory_dice"} <= set(FILES)
    decoders = {decoder_name(name) for name in FILES if decoder_name(name)}
    assert len(decoders) >= 14


def test_a_wrong_weight_is_noticed() -> None:
    """The replay fails when one weight moves: it is not comparing something with itself."""
    arrays, worst = read(PANGAEA / "seg_upernet.npz"), Worst(TOLERANCES)
    arrays["weights/psp_modules.2.1.weight"][0, :, 0, 0] += np.arange(24)
    replay_decoder("seg_upernet", "seg_upernet", arrays, worst)
    assert set(worst.failures()) == {"logits, evaluation", "logits, training"}


def test_folder_without_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(1))
    command = [sys.executable, str(PANGAEA.parent / "replay_pangaea.py"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "other.npz: of no known kind" in result.stdout
    assert "holds no file to replay" in result.stderr
