"""What a run reports: a line of JSON per step, TensorBoard curves, rates, time left, core-seconds."""

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

Batch = TypeVar("Batch")

FILE = "metrics.jsonl"
WARMING_STEPS = 2  # the first steps of a process compile or fill queues: they stay out of the rates


class Metrics:
    """metrics.jsonl (every step) and TensorBoard (every `every` steps) of one workdir.

    Opening at `start` drops lines of later steps, which a killed run may have written after its last checkpoint. A
    full disk loses lines, never the training: the first failure is told by `note`. Only the `primary` process writes.
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
        self._failed = False
        self._file: Any = None
        self._board: Any = None
        if not primary:
            return
        _cut(self.path, start)
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


def _cut(path: Path, start: int) -> None:
    """Keeps the lines of steps before `start`; a half-written last line goes too."""
    if not path.is_file():
        return
    partial = path.with_suffix(".partial")
    partial.write_text(before(path, start))
    os.replace(partial, path)


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


class Clock:
    """Time and throughput of a training, across interruptions.

    `core_seconds` counts devices x seconds spent in steps, by device kind, and travels in the checkpoint.
    """

    def __init__(
        self, devices: int, kind: str, saved: Mapping[str, Any] | None = None, window: int = 50
    ) -> None:
        self.devices, self.kind = devices, kind
        self.core_seconds: dict[str, float] = dict((saved or {}).get("core_seconds", {}))
        self._ticks = 0
        self._last = time.monotonic()
        self._waited = 0.0
        self._window: deque[tuple[float, ...]] = deque(maxlen=window)

    def saved(self) -> dict[str, Any]:
        """What the checkpoint keeps."""
        return {"core_seconds": dict(self.core_seconds)}

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; the time that each of them takes to arrive counts as waiting for data."""
        arriving = iter(batches)
        while True:
            began = time.monotonic()
            batch = next(arriving, None)
            self._waited += time.monotonic() - began
            if batch is None:
                return
            yield batch

    def tick(self, views: float, tokens: float, padded: float) -> float:
        """Ends a step that trained `views` views, `tokens` real tokens, `padded` including padding. Returns seconds."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self.core_seconds[self.kind] = self.core_seconds.get(self.kind, 0.0) + seconds * self.devices
        self._ticks += 1
        if self._ticks > WARMING_STEPS:
            self._window.append((seconds, views, tokens, padded, min(self._waited, seconds)))
        self._waited = 0.0
        return seconds

    def pause(self) -> float:
        """What happened since the last tick (compilation, validation) is no step. Returns its seconds."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self._waited = 0.0
        return seconds

    def rates(self) -> dict[str, float]:
        """views/s, tokens/s real and with padding, seconds per step, over the last steps; empty at first.

        `data_wait_share`: of that time, how much the host waited for its next batch. A device still busy with the
        step before loses less.
        """
        seconds = sum(entry[0] for entry in self._window)
        if not seconds:
            return {}
        names = ("samples_per_second", "tokens_per_second", "padded_tokens_per_second")
        sums = (sum(entry[index] for entry in self._window) for index in (1, 2, 3))
        rates = {name: total / seconds for name, total in zip(names, sums, strict=True)}
        waited = sum(entry[4] for entry in self._window)
        return {**rates, "step_seconds": seconds / len(self._window), "data_wait_share": waited / seconds}

    def line(self, loss: float) -> str:
        """`loss 0.93 · 41 samples/s · 30,000 tokens/s (97 % real)`; the progress bar adds the time left."""
        rates = self.rates()
        parts = [f"loss {loss:.5g}"]
        if rates:
            real = rates["tokens_per_second"] / max(rates["padded_tokens_per_second"], 1e-9)
            parts.append(f"{rates['samples_per_second']:.3g} samples/s")
            parts.append(f"{rates['tokens_per_second']:,.0f} tokens/s ({real:.0%} real)")
        return " · ".join(parts)
