"""Ours beside the benchmark's own trainer: the same losses, learning rates and confusion matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.golden import side_by_side

CASES = sorted((Path(__file__).parent / "pangaea").glob("side_by_side_*.json"))
LOSS = 1e-3  # relative
PIXELS = 1e-3  # share of those validated that may be of another class
FEW = 8  # pixels: of a few thousand, those whose two best classes all but tie already pass that share by rounding


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem.removeprefix("side_by_side_"))
def test_twenty_steps(path: Path, tmp_path: Path) -> None:
    """(Mutants: running statistics in the encoder while the decoder trains, those of the checkpoint at the start, one
    set per modality; a learning rate that falls a step late; decay that spares biases; tiles a pixel off.)"""
    case = side_by_side.read(path)
    side_by_side.WRITERS[case["task"]](tmp_path / "files", case["pixels"])
    found = side_by_side.replay(case, tmp_path / "files", tmp_path)
    np.testing.assert_allclose(found.losses, case["losses"], rtol=LOSS)
    np.testing.assert_allclose(found.learning_rates, case["learning_rates"], rtol=1e-6)
    assert found.confusion.keys() == case["confusion"].keys()
    for epoch, expected in case["confusion"].items():
        matrix, ours = np.array(expected), np.array(found.confusion[epoch])
        assert ours.sum(1).tolist() == matrix.sum(1).tolist()
        assert np.abs(ours - matrix).sum() / 2 <= max(PIXELS * matrix.sum(), FEW), epoch


def test_both_kinds_of_task_are_there() -> None:
    """A case lost from the folder is noticed, and every case trains for twenty steps, past both milestones."""
    cases = [side_by_side.read(path) for path in CASES]
    assert {case["task"] for case in cases} == {"sen1floods11", "pastis"}
    for case in cases:
        assert len(case["losses"]) == len(case["order"]) == 20
        assert len(set(np.round(case["learning_rates"], 12))) == 3
        first, last = np.mean(case["losses"][:4]), np.mean(case["losses"][-4:])
        assert last < 0.97 * first
