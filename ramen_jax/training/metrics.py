"""What a run reports: a line of JSON per step, and TensorBoard curves."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"


class Metrics:
    """metrics.jsonl (every step) and TensorBoard (every `every` steps) of one workdir.

    Opening at `start` drops lines of later steps, which a killed run may have written after its last checkpoint. A
    full disk loses lines, never the training: the first failure is told by `note`. Only the `primary` process writes.

    Attributes:
        lost: seconds that the steps of the dropped lines took.
    """

    def __init__(
        self,
        workdir: Path,
        start: int,
        every: int,
        tensorboard: bool,
        primary: bool = True,
        note: Callable[[str], None] = print,
    ) -> None:
        self.path = workdir / FILE
        self.every = every
        self.note = note
        self.lost = 0.0
        self._failed = False
        self._file: Any = None
        self._board: Any = None
        if not primary:
            return
        self.lost = _cut(self.path, start)
        self._file = self.path.open("a")
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start)

    def write(self, step: int, values: Mapping[str, Any], *, board: bool = False) -> None:
        """Appends {"step": step, **values}; numbers go to TensorBoard too, every `every` steps or when `board`."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            if self._board is not None and (board or step % self.every == 0):
                for name, value in values.items():
                    if isinstance(value, int | float) and math.isfinite(value):
                        self._board.add_scalar(name, value, step)
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """Flushes and closes both files."""
        if self._file is None:
            return
        try:
            self._file.close()
            if self._board is not None:
                self._board.close()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if not self._failed:
            problem = f"{type(error).__name__}: {error}"
            self.note(f"WARNING: metrics are not being written ({problem}); training goes on")
        self._failed = True


def _cut(path: Path, start: int) -> float:
    """Keeps the lines of steps before `start`; a half-written last line goes too. Returns the seconds of the others."""
    if not path.is_file():
        return 0.0
    dropped = [json.loads(line) for step, line in _lines(path) if step >= start]
    partial = path.with_suffix(".partial")
    partial.write_text(before(path, start))
    os.replace(partial, path)
    return float(sum(line.get("step_seconds", 0.0) for line in dropped))


def before(path: Path, step: int) -> str:
    """The lines of a metrics.jsonl about the steps before one, "" where there is none."""
    return "".join(line + "\n" for number, line in _lines(path) if number < step) if path.is_file() else ""


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(step, line) of every line that is whole."""
    for line in path.read_text(errors="replace").splitlines():
        try:
            yield int(json.loads(line)["step"]), line
        except (ValueError, KeyError, TypeError):
            continue


def steps_in(path: Path) -> int:
    """How many steps a metrics.jsonl tells of, 0 when there is none."""
    return max((step + 1 for step, _ in _lines(path)), default=0) if path.is_file() else 0


def read(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl (or of the one in a workdir)."""
    path = Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    return [json.loads(line) for line in path.read_text().splitlines()]
