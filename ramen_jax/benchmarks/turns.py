"""Two programs that take steps in turn on one machine: while one works, the other is held still.

What else goes on then slows both alike, and pair by pair their ratio is worth more than two times measured apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ramen_jax.console import DATA, UserError, one_line


class Stepper:
    """A command that prints a line of JSON, an object, after each of its steps; other lines are passed over.

    It is held still (SIGSTOP, with all processes it started) until `step` lets it go on.

    Attributes:
        last: the newest object it printed.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self.last: dict[str, Any] = {}
        self._unread = b""
        if shutil.which(self.command[0]) is None:
            raise UserError(f"{self.command[0]}: cannot be started, no such program is there", DATA)
        # The process stops itself before it becomes the command, so that nothing happens before the first turn.
        held = ["sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *self.command]
        self._process = subprocess.Popen(held, stdout=subprocess.PIPE, start_new_session=True)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def step(self) -> float | None:
        """Seconds by the clock until its next object; None when it ended without another one.

        Raises:
            UserError: a step was over before the command could be held still, and so was not timed.
        """
        if self._printed():
            raise UserError(
                f"{one_line(' '.join(self.command), 200)}: a step ended before the command was held still after the "
                "one before; steps this short cannot be timed in turn, expected some tenths of a second (a larger "
                "batch)",
                DATA,
            )
        self._signal(signal.SIGCONT)
        began = time.monotonic()
        found = self._read()
        seconds = time.monotonic() - began
        self._signal(signal.SIGSTOP)
        return seconds if found else None

    def _printed(self) -> bool:
        """Whether a line lies ready that nobody waited for."""
        assert self._process.stdout is not None
        if select.select([self._process.stdout], [], [], 0)[0]:
            self._unread += os.read(self._process.stdout.fileno(), 1 << 16)
        return b"\n" in self._unread

    def _read(self) -> bool:
        """Waits for the next object. False where the output ended first."""
        assert self._process.stdout is not None
        while True:
            line, ended, self._unread = self._unread.partition(b"\n")
            if not ended:
                more = os.read(self._process.stdout.fileno(), 1 << 16)
                if not more:
                    return False
                self._unread = line + more
                continue
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict):
                    self.last = found
                    return True

    def finish(self) -> int:
        """Lets it run to its end. Returns its exit status."""
        self._signal(signal.SIGCONT)
        while self._read():
            pass
        return self._process.wait()

    def end(self) -> float:
        """Kills it, if need be. Returns the peak of its resident memory, bytes."""
        self._signal(signal.SIGKILL)
        if self._process.returncode is not None:
            return 0.0
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return float(used.ru_maxrss) * (1 if sys.platform == "darwin" else 1024)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@contextlib.contextmanager
def stepping(command: Sequence[str]) -> Iterator[Stepper]:
    """A stepper that is gone at the end, whatever happens."""
    stepper = Stepper(command)
    try:
        yield stepper
    finally:
        stepper.end()


def pairs(ours: Stepper, theirs: Stepper, count: int) -> list[tuple[float, float]]:
    """Seconds (ours, theirs) of `count` steps in turn, after a first one of each that is not timed.

    Who begins changes from pair to pair, so that a machine which slows down favours nobody.

    Raises:
        UserError: one of them ended too early.
    """
    found: list[tuple[float, float]] = []
    for number in range(count + 1):
        turn = [ours, theirs] if number % 2 == 0 else [theirs, ours]
        seconds = {}
        for stepper in turn:
            taken = stepper.step()
            if taken is None:
                raise UserError(
                    f"{one_line(' '.join(stepper.command), 200)}: ended after {number} steps, expected {count + 1} "
                    "lines of JSON on its standard output",
                    DATA,
                )
            seconds[stepper] = taken
        found.append((seconds[ours], seconds[theirs]))
    return found[1:]
