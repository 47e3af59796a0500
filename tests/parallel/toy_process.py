"""One process of a training of the toy: `python -m tests.parallel.toy_process WORKDIR [key=value ...]`.

What goes wrong in which process comes from the environment: BAD_IN, RAISES_IN, FULL_DISK_IN name a process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax

from ramen_jax import config as configuration
from ramen_jax import console
from ramen_jax.parallel import agree, join
from ramen_jax.training import checkpoint, loop
from tests.training import toy


def here(name: str) -> bool:
    return os.environ.get(name) == str(jax.process_index())


def broken_at_twelve(batches):
    for batch in batches:
        if batch.step == 12:
            raise console.UserError("shard 7 cannot be read", console.DATA)
        yield batch


def full_disk(*arguments, **options):
    raise OSError(28, "No space left on device")


def train() -> int:
    settings = toy.config(*sys.argv[2:])
    join.require_same({f"config.{key}": repr(value) for key, value in configuration.flat(settings)})
    job = toy.job(settings, bad=tuple(range(5, 30)) if here("BAD_IN") else ())
    if here("RAISES_IN"):
        inner = job.batches
        job = job._replace(batches=lambda start: broken_at_twelve(inner(start)))
    if here("FULL_DISK_IN"):
        checkpoint.ocp.CheckpointManager.save = full_disk
    outcome = loop.run(job, Path(sys.argv[1]))
    agree.together("the end")
    print(f"done {outcome.step} of {job.steps}", flush=True)
    return 0


def run() -> int:
    if "JAX_NUM_PROCESSES" in os.environ:
        join.join(timeout=240)
    with agree.failing_together():
        return train()


if __name__ == "__main__":
    console.main(run)
