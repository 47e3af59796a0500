"""The official code's numbers: every case committed beside this file, within the stated tolerances."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.golden.replay import Folder, Worst, replay_case, replay_trajectory

MAE = Path(__file__).parent / "mae"
CASES = sorted(path.stem for path in MAE.glob("case_*.npz"))


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    folder, worst = Folder(MAE), Worst()
    replay_case(folder, next(case for case in folder.cases() if case.name == name), worst)
    assert set(worst.errors) == {"loss", "gradient norm", "tokens", "projected", "reconstruction"}
    assert not worst.failures(), worst.table()


def test_six_steps_of_the_official_optimiser() -> None:
    worst = Worst()
    replay_trajectory(Folder(MAE), worst)
    assert not worst.failures(), worst.table()


def test_a_wrong_number_is_noticed() -> None:
    worst = Worst()
    worst.add("loss", 1e-3, "somewhere")
    worst.add("tokens", float("nan"), "elsewhere")
    assert worst.failures() == ["loss", "tokens"]
    assert "TOO LARGE" in worst.table()


def test_a_wrong_weight_is_noticed() -> None:
    """The replay fails when one number of the weights moves: it is not comparing something with itself."""
    folder, worst = Folder(MAE), Worst()
    name = "encoder.resampler.temperature"
    folder.weights[name] = folder.weights[name] + np.float32(0.05)
    replay_case(folder, next(case for case in folder.cases() if "20m" in case.name), worst)
    assert "loss" in worst.failures()


def test_folder_without_cases(tmp_path: Path) -> None:
    command = [sys.executable, str(MAE.parent / "replay.py"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "holds no case_*.npz" in result.stderr
