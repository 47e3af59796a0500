"""Wrong inputs of every kind to every command: one line, exit status 1 or 2, no traceback, nothing lost or written."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ramen_jax import console
from tests.wrong_inputs.registry import CASES, TINY

for table in ("embed", "evaluate", "operations", "prepare", "train", "weights"):  # importing them fills CASES
    importlib.import_module(f"tests.wrong_inputs.{table}")


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(autouse=True)
def in_the_repository(repository, monkeypatch) -> None:
    monkeypatch.chdir(repository)


def refused(told: str, status: int) -> None:
    """One line (a list of differences may follow), after notes."""
    lines = told.splitlines()
    assert status in (console.USAGE, console.DATA), told
    assert "Traceback" not in told
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    assert len(errors) == 1, told
    assert all(line.startswith("  ") for line in lines[errors[0] + 1 :]), told
    assert len(told) < 6000


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_input_is_told_in_one_line(name, tmp_path, capsys, monkeypatch):
    command, arguments = CASES[name]
    argv = arguments(tmp_path)
    monkeypatch.setattr(sys, "argv", [command, *argv])
    before = snapshot(tmp_path)
    with pytest.raises(SystemExit) as ended:
        console.main(importlib.import_module(f"ramen_jax.{command}").run)
    told = capsys.readouterr()
    assert ended.value.code, f"accepted: {argv}\n{told.out[-2000:]}"
    refused(told.err, int(ended.value.code))
    assert "unexpected" not in told.err, told.err
    assert snapshot(tmp_path) == before


def test_there_are_enough(repository):
    assert len(CASES) >= 250
    commands = {
        path.stem
        for path in (repository / "ramen_jax").glob("*.py")
        if "console.main(run)" in path.read_text()
    }
    assert {command for command, _ in CASES.values()} == commands - {"console"}


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("train", ["--config", TINY, "--workdir", "/proc/nowhere"]),
        ("prepare", ["--corpus", "worldstrat", "--source", "\udcff", "--output", "out\udcff"]),
        ("export", ["--checkpoint", "nowhere", "--output", "out"]),
    ],
)
def test_a_process_of_its_own_says_the_same(repository, command, arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", f"ramen_jax.{command}", *arguments],
        cwd=tmp_path if command == "export" else repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    refused(done.stderr, done.returncode)
