"""The table of steps and the turns of two commands, with programs that only pretend to train."""

import json
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from ramen_jax import bench
from ramen_jax.benchmarks import grid
from ramen_jax.benchmarks.turns import Stepper, pairs, stepping
from ramen_jax.console import UserError

# A step is processor time, which stands still while the program is held; sleep would go on.
STEPS = """
import json, sys, time
def work(seconds):
    began = time.process_time()
    while time.process_time() - began < seconds: pass
print("compiling ...", 3, sep="\\n", flush=True)
for step in range({steps}):
    work({seconds})
    print(json.dumps({{"step": step}}), flush=True)
"""
FIGURES = {
    "compile_seconds": 9.0,
    "step_seconds": 2.0,
    "fastest_seconds": 1.5,
    "slowest_seconds": 3.0,
    "packing_seconds": 0.02,
    "flops": 4e9,
    "matmul_flops": 8e9,
    "tokens": 300.0,
    "peak_bytes": 2.0**31,
    "machine": "2 cores",
}


def stepping_command(seconds, steps=50):
    return [sys.executable, "-c", STEPS.format(seconds=seconds, steps=steps)]


def test_two_commands_step_in_turn_and_wait_for_each_other():
    """Mutant: nobody is held, and the quick command's lines lie ready before its turn."""
    with stepping(stepping_command(0.6)) as slow, stepping(stepping_command(0.2)) as quick:
        found = pairs(slow, quick, 4)
        assert len(found) == 4
        assert slow.last == quick.last == {"step": 4}
    assert all(ours > 0.5 for ours, _ in found)
    assert sorted(theirs for _, theirs in found)[1] > 0.15


def test_a_step_that_was_over_before_its_turn_is_no_measurement():
    """Mutant: it counts as a step of almost no time, and the ratio is off a hundredfold."""
    both = 'import os; os.write(1, b\'{"step": 0}\\n{"step": 1}\\n\')'
    with stepping([sys.executable, "-c", both]) as quick:
        assert quick.step() is not None
        with pytest.raises(UserError, match="steps this short cannot be timed in turn"):
            quick.step()


def test_a_command_that_ends_too_early_or_is_not_there_is_told():
    with (
        stepping(stepping_command(0.2)) as ours,
        stepping(stepping_command(0.2, steps=2)) as theirs,
        pytest.raises(UserError, match="ended after 2 steps, expected 4 lines of JSON"),
    ):
        pairs(ours, theirs, 3)
    with pytest.raises(UserError, match=r"no_such_program: cannot be started, no such program is there"):
        Stepper(["no_such_program"])


def arguments(*options):
    line = ["--config", "a.py,b.py", "--corpus", "mmearth", "--target-gsd", "10,20", *options]
    parsed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json, sys; from ramen_jax import bench, console;"
            "console.call = lambda module, arguments, cells, overrides: print(json.dumps("
            "[vars(arguments), [vars(cell) for cell in cells], overrides], default=str)); bench.run()",
            *line,
        ],
        capture_output=True,
        text=True,
    )
    assert parsed.returncode == 0, parsed.stderr
    whole, cells, overrides = json.loads(parsed.stdout)
    whole["output"] = whole["output"] and Path(whole["output"])
    return Namespace(**whole), [Namespace(**cell) for cell in cells], overrides


def test_every_combination_is_a_cell_in_its_own_process(tmp_path, monkeypatch, capsys):
    whole, cells, overrides = arguments("--output", str(tmp_path / "speed"), "--config.seed=3")
    assert [(cell.config, cell.target_gsd) for cell in cells] == [
        ("a.py", 10.0),
        ("a.py", 20.0),
        ("b.py", 10.0),
        ("b.py", 20.0),
    ]
    command = grid.command_of(cells[1], overrides)
    assert command[1:6] == ["-m", "ramen_jax.bench", "--json", "--steps", "3"]
    assert " ".join(command).endswith("--modalities  --precision  --config.seed=3")

    def pretended(cell, _):
        if cell.config == "b.py" and cell.target_gsd == 20:
            return [sys.executable, "-c", "raise SystemExit(1)"]
        return [sys.executable, "-c", f"print({json.dumps(FIGURES)!r})"]

    monkeypatch.setattr(grid, "command_of", pretended)
    assert grid.run(whole, cells, overrides) == 0
    lines = (tmp_path / "speed/table.md").read_text().splitlines()
    assert "2 cores" in lines[0]
    assert lines[4].split(" | ")[7:] == [
        "9.0",
        "2.000 (1.500-3.000)",
        "0.5",
        "150",
        "2",
        "25%",
        "2.00",
        "1.0% |",
    ]
    assert lines[7].endswith("exit status 1 |")
    results = json.loads((tmp_path / "speed/results.json").read_text())
    assert [result.get("failed") for result in results] == [None, None, None, "exit status 1"]
    assert (tmp_path / "speed/speed.png").stat().st_size > 1000
    # Again into the same folder; not into one that holds something else.
    assert grid.run(whole, cells[:1], overrides) == 0
    (tmp_path / "speed/thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"holds thesis\.tex, which is no table of ours"):
        grid.run(whole, cells, overrides)


def test_the_other_command_is_told_the_cell_and_compared(monkeypatch, capsys):
    other = shlex.join([sys.executable, "-c", STEPS.format(seconds=0.8, steps=9), "{target_gsd}", "{corpus}"])
    whole, cells, overrides = arguments("--against", other, "--steps", "2")
    assert grid.filled("run {corpus} {target_gsd} {other}", cells[0]) == "run mmearth 10.0 {other}"
    ours = STEPS.format(seconds=0.2, steps=3) + f"print({json.dumps(FIGURES)!r})"
    monkeypatch.setattr(grid, "command_of", lambda cell, _: [sys.executable, "-c", ours])
    assert grid.run(whole, cells[:1], overrides) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    ratio = float(last.split(": ")[1])
    assert last.startswith("ratio, geometric mean of 1: ")
    assert 2 < ratio < 12


def test_nothing_measured_is_a_failure(monkeypatch):
    whole, cells, overrides = arguments()
    monkeypatch.setattr(grid, "command_of", lambda cell, _: [sys.executable, "-c", "raise SystemExit(2)"])
    with pytest.raises(UserError, match="nothing was measured: exit status 2"):
        grid.run(whole, cells, overrides)


@pytest.mark.slow
def test_two_real_benchmarks_take_turns(repository, tmp_path):
    """The same step on both sides: a ratio near 1, and figures that agree with each other."""
    options = [
        "--config",
        str(repository / "configs/tiny.py"),
        "--corpus",
        "tiny",
        "--steps",
        "3",
        "--batch",
        "32",
    ]
    other = shlex.join([sys.executable, "-m", "ramen_jax.bench", "--json", *options])
    command = [sys.executable, "-m", "ramen_jax.bench", *options, "--against", other]
    done = subprocess.run([*command, "--output", str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "out/results.json").read_text())
    assert 0.3 < result["ratio"] < 3
    assert result["flops"] > 1e6
    assert 0 < result["flops"] / result["step_seconds"] < 1.5 * result["matmul_flops"]


def test_wrong_lists_are_usage_errors(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench", "--config", "a.py", "--corpus", "tiny", "--batch", "1,two"])
    with pytest.raises(SystemExit) as caught:
        bench.run()
    assert caught.value.code == 2
    assert "--batch: '1,two', expected numbers, comma-separated" in capsys.readouterr().err
