"""Processes that start in a moment: forked from one that has imported everything and started nothing.

As a program it is that one: it reads a line of JSON per process to start, and writes one when it has started or ended.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ramen_jax import console, train
from ramen_jax.training import pretrain
from tests.parallel import toy_process

PROGRAMS = {"toy": toy_process.run, "train": train.run}
LATE = (pretrain,)  # what `train.run` imports when it is needed: here before
REPOSITORY = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Child:
    """A process that was started."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self.log, self.status = pid, log, None
        self.over = threading.Event()

    def send_signal(self, number: int) -> None:
        if not self.over.is_set():
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> int:
        """Its exit status, negative for a signal."""
        assert self.over.wait(seconds), f"process {self.pid} has not ended in {seconds} s: {self.said()}"
        return self.status

    def said(self) -> str:
        """What it has written so far, on stdout and stderr."""
        return self.log.read_text(errors="replace")


class Nursery:
    """Starts processes. `program`: "toy" (tests.parallel.toy_process) or "train" (ramen_jax.train)."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.parallel.nursery"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._children: dict[int, Child] = {}
        self._started: list[int] = []
        self._news = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, program: str, arguments: list[str], log: Path, **environment: str) -> Child:
        log.touch()
        with self._news:
            order = {"program": program, "arguments": arguments, "log": str(log), "environment": environment}
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            assert self._news.wait_for(lambda: self._started, timeout=120), "the nursery does not answer"
            child = Child(self._started.pop(), log)
            self._children[child.pid] = child
            return child

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _listen(self) -> None:
        for line in self._process.stdout:
            news = json.loads(line)
            with self._news:
                if "started" in news:
                    self._started.append(news["started"])
                    self._news.notify_all()
                    continue
                child = self._children[news["ended"]]
            child.status = news["status"]
            child.over.set()


def _tell(**news: Any) -> None:
    print(json.dumps(news), flush=True)


def serve() -> dict[str, Any] | None:
    """Starts processes until nobody asks any more. Returns in each of them, with its order; None in the parent."""
    alive: set[int] = set()
    while True:
        ready, _, _ = select.select([0], [], [], 0.02)
        for pid in list(alive):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                alive.remove(pid)
                _tell(ended=pid, status=os.waitstatus_to_exitcode(status))
        if not ready:
            continue
        line = _read_line()
        if not line:
            break
        pid = os.fork()
        if not pid:
            return json.loads(line)
        alive.add(pid)
        _tell(started=pid)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    return None


def _read_line() -> bytes:
    """Byte by byte: `select` must see what is left."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return b""
        line += byte
    return line


def main() -> None:
    order = serve()
    if order is None:
        return
    began = time.time()
    # A shell has its background jobs ignore Ctrl-C, and so would the processes of tests that run in one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(file, descriptor)
    os.environ.update(order["environment"])
    sys.argv = [order["program"], *order["arguments"]]
    print(f"[{began:.2f}]", *sys.argv, flush=True)
    console.main(PROGRAMS[order["program"]])


if __name__ == "__main__":
    main()
