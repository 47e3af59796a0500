"""A pretraining from its configuration to its end."""

import os
from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

import ramen_jax
from ramen_jax import config as configuration
from ramen_jax import storage
from ramen_jax.parallel import agree, join, mesh, stopping
from ramen_jax.storage import Bucket
from ramen_jax.training import checkpoint, experiment, initial, loop, mirror, workdir
from ramen_jax.training.evaluators import Evaluator


def no_probes(config: ConfigDict) -> list[Evaluator]:
    """Nothing is measured but the loss."""
    return []


def run(
    config: ConfigDict,
    folder: Path | Bucket,
    others: tuple[str, str, str] | None = None,
    probes: Callable[[ConfigDict], list[Evaluator]] = no_probes,
) -> int:
    """Trains in the workdir `folder`. Returns the exit status; for that after SIGTERM see `stopping.status`.

    Args:
        others: None to train alone; else the other processes are joined first, see `join.join`.
        probes: gives the evaluators of config.evaluators, which are of a room above this one.
    """
    with stopping.listening():
        if others is not None:
            join.join(others)
        with agree.failing_together():
            if not agree.alone():
                join.require_same(_facts(config))
            mesh.present()
            enable_compilation_cache(config)
            process = 0 if agree.alone() else jax.process_index()
            with mirror.opened(folder, process) as (path, its_mirror):
                outcome, steps = _train(config, path, its_mirror, probes)
    if process == 0:
        if outcome.complete:
            print(f"training complete: {outcome.step} steps, in {folder}")
        else:
            why = "by SIGTERM " if outcome.signalled else ""
            print(
                f"stopped {why}after step {outcome.step} of {steps}, saved; the same command goes on from there"
            )
    return stopping.status() if outcome.signalled else 0


def _train(
    config: ConfigDict,
    path: Path,
    its_mirror: mirror.Mirror | None,
    probes: Callable[[ConfigDict], list[Evaluator]],
) -> tuple[loop.Outcome, int]:
    """How the training ended, and the number of its steps."""
    if config.train.start_from and not (path / "checkpoints").is_dir():
        initial.require(storage.checkpoint(config.train.start_from))
    # A configuration that turns out impossible must not claim the workdir: known first, written by `loop.run`.
    workdir.check(config, path)
    job = experiment.build(config, path)
    join.require_same({key: str(value) for key, value in checkpoint.leaves(job.identity).items()})
    job = job._replace(evaluators=[*job.evaluators, *probes(config)], mirror=its_mirror)
    outcome = loop.run(job, path)
    agree.together("the end of the run")
    return outcome, job.steps


def _facts(config: ConfigDict) -> dict[str, str]:
    """What must be the same in all processes before they do anything together."""
    return {
        "ramen_jax": f"{ramen_jax.__version__} {workdir.git_hash()}".strip(),
        "jax": jax.__version__,
        **{f"config.{key}": repr(value) for key, value in configuration.flat(config)},
    }


def enable_compilation_cache(config: ConfigDict) -> None:
    """Turns on JAX's persistent compilation cache; call once, after distributed init, before the first jit.

    Programs that took less than config.compile_cache.min_seconds to compile are not stored (JAX's own threshold is
    one second too); there is no threshold on their size. The folder must be shared by all hosts of a run.
    """
    if not config.compile_cache.folder:
        return
    text = os.path.expandvars(config.compile_cache.folder)
    folder = text if storage.scheme_of(text) else str(storage.local(text))  # JAX reads buckets by itself
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", config.compile_cache.min_seconds)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
