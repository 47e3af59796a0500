"""One process of a training of the toy: `python -m tests.parallel.toy_process WORKDIR [key=value ...]`.

What goes wrong in which process comes from the environment, as a number of a process:

BAD_IN         its samples cannot be used            RAISES_IN      its data raises
FULL_DISK_IN   no file of it grows any more          LATE_DISK_IN   its save fails after the step that began it
BLIND_IN       it sees no checkpoint                 OWN_WORKDIR    this process has one to itself
STUCK_IN       its devices hang in step 12
SLOW           "validating", "compiling", "saving" or "hearing" takes long, in SLOW_IN or, without it, in all
"""

from __future__ import annotations

import itertools
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from ramen_jax import config as configuration
from ramen_jax import console
from ramen_jax.parallel import agree, join, stopping
from ramen_jax.training import checkpoint, loop
from ramen_jax.training.evaluators import Validation
from ramen_jax.training.program import Program
from tests.training import toy


def here(name: str) -> bool:
    return os.environ.get(name) == str(jax.process_index())


def broken_at_twelve(batches):
    for batch in batches:
        if batch.step == 12:
            raise console.UserError("shard 7 cannot be read", console.DATA)
        yield batch


def stuck_at_twelve(get: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.device_get` of a device that hangs in step 12."""
    steps = itertools.count()

    def getting(tree):
        if "alive" in tree and next(steps) == 12:
            time.sleep(1000.0)
        return get(tree)

    return getting


def failing_late(save: Callable[..., Any]) -> Callable[..., Any]:
    """`save`, after which the disk is full."""

    def saving(manager, *arguments, **options):
        begun = save(manager, *arguments, **options)
        manager.failure = OSError(28, "No space left on device")
        return begun

    return saving


def slowed(what: Callable[..., Any], name: str, seconds: float = 0.5) -> Callable[..., Any]:
    """`what`, after it has said its name and slept."""

    def slow(*arguments, **options):
        print(name, flush=True)
        time.sleep(seconds)
        return what(*arguments, **options)

    return slow


def train() -> int:
    settings = toy.config(*sys.argv[2:])
    join.require_same({f"config.{key}": repr(value) for key, value in configuration.flat(settings)})
    steps = int(os.environ.get("TOY_STEPS", "30"))
    job = toy.job(settings, steps, bad=tuple(range(5, 30)) if here("BAD_IN") else ())
    slow = os.environ.get("SLOW", "") if here("SLOW_IN") or "SLOW_IN" not in os.environ else ""
    if slow == "validating":
        held_out = toy.job(settings)
        rows = slowed(lambda: next(iter(held_out.batches(0))), slow)
        job = job._replace(evaluators=[Validation(job.program, 4, lambda: (rows() for _ in range(50)))])
    if slow == "compiling":
        Program.compile = slowed(Program.compile, slow, 60.0)
    if slow == "saving":
        manager = checkpoint.ocp.CheckpointManager
        manager.is_saving_in_progress = slowed(manager.is_saving_in_progress, slow)
    if here("RAISES_IN"):
        inner = job.batches
        job = job._replace(batches=lambda start: broken_at_twelve(inner(start)))
    if here("FULL_DISK_IN"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    if here("LATE_DISK_IN"):
        checkpoint._Manager.save = failing_late(checkpoint._Manager.save)
    if "STUCK_IN" in os.environ:
        agree.SLOW, agree.STUCK = 1.0, 3.0
    if here("STUCK_IN"):
        jax.device_get = stuck_at_twelve(jax.device_get)
    if here("BLIND_IN"):
        checkpoint.Checkpoints.steps = lambda self: []
    workdir = Path(sys.argv[1] + os.environ.get("OWN_WORKDIR", ""))
    outcome = loop.run(job, workdir)
    agree.together("the end")
    print(f"done {outcome.step} of {job.steps}", flush=True)
    return 0


def run() -> int:
    if os.environ.get("SLOW") == "hearing":
        agree.hear = slowed(agree.hear, "hearing", 1.5)
    with stopping.listening():
        if "JAX_NUM_PROCESSES" in os.environ:
            join.join(timeout=int(os.environ.get("MEETING", "60")))
        with agree.failing_together():
            return train()


if __name__ == "__main__":
    console.main(run)
