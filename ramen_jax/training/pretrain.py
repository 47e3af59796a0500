"""A pretraining from its configuration to its end."""

import os
from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from ramen_jax.training import experiment, initial, loop, workdir
from ramen_jax.training.evaluators import Evaluator

STOPPED_BY_SIGNAL = 143


def no_probes(config: ConfigDict) -> list[Evaluator]:
    """Nothing is measured but the loss."""
    return []


def run(
    config: ConfigDict,
    folder: str,
    distributed: bool,
    probes: Callable[[ConfigDict], list[Evaluator]] = no_probes,
) -> int:
    """Trains in the workdir `folder`, joining other processes first where `distributed`. Returns the exit status.

    `probes` gives the evaluators of config.evaluators, which are of a room above this one.
    """
    if distributed:
        jax.distributed.initialize()
    enable_compilation_cache(config)
    path = Path(folder).expanduser()
    if config.train.start_from and not (path / "checkpoints").is_dir():
        initial.require(Path(config.train.start_from).expanduser())
    # A configuration that turns out impossible must not claim the workdir: known first, written by `loop.run`.
    workdir.check(config, path)
    job = experiment.build(config, path)
    job = job._replace(evaluators=[*job.evaluators, *probes(config)])
    outcome = loop.run(job, path)
    if jax.process_index() == 0:
        if outcome.complete:
            print(f"training complete: {outcome.step} steps, in {path}")
        else:
            print(
                f"stopped after step {outcome.step} of {job.steps}, saved; the same command goes on from there"
            )
    return STOPPED_BY_SIGNAL if outcome.signalled else 0


def enable_compilation_cache(config: ConfigDict) -> None:
    """Turns on JAX's persistent compilation cache; call once, after distributed init, before the first jit.

    Programs that took less than config.compile_cache.min_seconds to compile are not stored (JAX's own threshold is
    one second too); there is no threshold on their size. The folder must be shared by all hosts of a run.
    """
    if not config.compile_cache.folder:
        return
    folder = Path(os.path.expandvars(config.compile_cache.folder)).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", config.compile_cache.min_seconds)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
