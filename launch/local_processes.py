#!/usr/bin/env python3
"""N processes of one run on this machine; when one dies, all are started again from the newest checkpoint.

    python launch/local_processes.py --processes 2 -- \\
        .venv/bin/python -m ramen_jax.train --config configs/tiny.py --workdir runs/two --distributed

What a process prints is told line by line, with its number. A process that is killed (out of memory, a failing GPU)
takes the others with it, as everywhere in JAX: they are given time to say why, and all begin again. An error that a
process tells by itself (exit status 1 or 2) would come again, and ends the run. SIGTERM and Ctrl-C are passed on, and
the run saves before it ends. Needs nothing but Python; tests/test_launch.py runs it.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time

GRACE = 60.0  # seconds that the others have to end by themselves, once one has
FIRM = 15.0  # seconds between SIGTERM and SIGKILL for those that did not
USAGE = 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def variables(number: int, options: argparse.Namespace, port: int) -> dict[str, str]:
    """The environment of a process; the accelerators are dealt out in order."""
    mine = {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(options.processes),
        "JAX_PROCESS_ID": str(number),
        "PYTHONUNBUFFERED": "1",
    }
    mine.setdefault("JAX_CPU_COLLECTIVES_IMPLEMENTATION", "gloo")
    if options.gpus_each:
        first = number * options.gpus_each
        mine["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(first, first + options.gpus_each)))
    return mine


class Group:
    """The processes of one attempt."""

    def __init__(self, options: argparse.Namespace) -> None:
        port = free_port()
        self.processes = [
            subprocess.Popen(
                options.command,
                env=variables(number, options, port),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            for number in range(options.processes)
        ]
        self.readers = [
            threading.Thread(target=self.tell, args=(number,), daemon=True)
            for number in range(options.processes)
        ]
        for reader in self.readers:
            reader.start()

    def tell(self, number: int) -> None:
        for line in self.processes[number].stdout or ():
            print(f"[{number}] {line}", end="", flush=True)

    def send(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self, seconds: float | None) -> bool:
        """Whether all have ended within so many seconds."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while any(process.poll() is None for process in self.processes):
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def end(self) -> list[int]:
        """Waits until all have ended, which after the first that failed they must within GRACE; the exit statuses."""
        while all((process.poll() or 0) == 0 for process in self.processes):
            if self.wait(0.2):
                break
        if not (self.wait(GRACE) or self.send(signal.SIGTERM) or self.wait(FIRM)):
            self.send(signal.SIGKILL)
            self.wait(None)
        for reader in self.readers:
            reader.join(5)
        return [process.returncode for process in self.processes]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="how many (2)")
    parser.add_argument("--restarts", type=int, default=10, help="at most so many times (10)")
    parser.add_argument("--gpus-each", type=int, default=0, help="GPUs that each process sees (0: all)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --: the command of every process")
    options = parser.parse_args()
    options.command = [word for index, word in enumerate(options.command) if (index, word) != (0, "--")]
    if not options.command:
        parser.error("no command: give it after --")
    if options.processes < 1 or options.restarts < 0 or options.gpus_each < 0:
        parser.error("--processes must be at least 1, --restarts and --gpus-each not negative")
    return options


def main() -> int:
    options = parse()
    stopping = threading.Event()
    groups: list[Group] = []

    def pass_on(number: int, _: object) -> None:
        stopping.set()
        for group in groups[-1:]:
            group.send(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    for attempt in range(options.restarts + 1):
        try:
            groups.append(Group(options))
        except OSError as error:
            print(f"error: {options.command[0]}: {error.strerror}", file=sys.stderr)
            return USAGE
        if stopping.is_set():  # the signal came while they were being started
            groups[-1].send(signal.SIGTERM)
        statuses = groups[-1].end()
        if not any(statuses):
            return 0
        told = ", ".join(f"process {number}: {status}" for number, status in enumerate(statuses))
        if stopping.is_set():
            print(f"stopped ({told})", file=sys.stderr)
            return max(map(abs, statuses))
        killed = [
            number for number, status in enumerate(statuses) if status < 0 and status != -signal.SIGTERM
        ]
        if not killed:
            print(f"error: the run ended by itself ({told}), its message is above", file=sys.stderr)
            return max(statuses)
        if attempt < options.restarts:
            who = ", ".join(map(str, killed))
            print(
                f"process {who} died ({told}); restart {attempt + 1} of {options.restarts}", file=sys.stderr
            )
    print(f"error: died {options.restarts + 1} times; no more restarts", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
