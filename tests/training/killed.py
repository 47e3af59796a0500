"""A training that is killed again and again: `python -m tests.training.killed KIND FOLDER KILLS SEED [key=value ...]`

Trains KIND ("toy", or "tiny": `configs/tiny.py:quicktest`) in FOLDER/whole undisturbed, and in FOLDER/killed with
SIGKILL at random moments: while starting, between steps, while saving. Prints how far each kill let it come. Children
are forked before JAX has started anything, so none of them spends time on imports.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ramen_jax import config as configuration
from ramen_jax.training import loop, metrics, pretrain
from tests.training import toy

MOST_STEPS = 4  # further that a training comes until the next kill, and a few that pass meanwhile
STARTING = 0.25  # share of the kills that come before a new step is done


def train(kind: str, workdir: Path, overrides: list[str]) -> None:
    if kind == "toy":
        loop.run(toy.job(toy.config(*overrides), steps=120), workdir)
    else:
        pretrain.run(configuration.load("configs/tiny.py:quicktest", overrides), workdir)


def in_a_process(work: Callable[[], None], log: Path) -> int:
    """The number of a process that does the work, with status 0 when it could."""
    process = os.fork()
    if process:
        return process
    status = 1
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def wait_for_steps(process: int, workdir: Path, steps: int, began: int) -> bool:
    """Until this process has logged so many steps; False when it has ended before."""
    lines = workdir / metrics.FILE
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        if metrics.steps_in(lines) >= steps and lines.stat().st_mtime_ns > began:
            return True
        time.sleep(0.002)
    return False


def main(kind: str, folder: Path, kills: int, seed: int, overrides: list[str]) -> None:
    chance = random.Random(seed)

    def start(name: str) -> int:
        return in_a_process(lambda: train(kind, folder / name, overrides), folder / f"{name}.log")

    _, status = os.waitpid(start("whole"), 0)
    assert status == 0, (folder / "whole.log").read_text()
    workdir = folder / "killed"
    for kill in range(kills):
        began, done = time.time_ns(), metrics.steps_in(workdir / metrics.FILE)
        process = start("killed")
        if chance.random() < STARTING:
            time.sleep(chance.uniform(0.0, 2.0))
        else:
            further = chance.randint(-1, MOST_STEPS)  # less than one: in the steps that are done again
            assert wait_for_steps(process, workdir, max(1, done + further), began), (
                f"kill {kill} came too late"
            )
            time.sleep(chance.uniform(0.0, 0.2))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        saved = sorted(path.name for path in (workdir / "checkpoints").glob("*"))
        print(f"kill {kill}: {metrics.steps_in(workdir / metrics.FILE)} steps, {saved}", flush=True)
    _, status = os.waitpid(start("killed"), 0)
    assert status == 0, (folder / "killed.log").read_text()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
