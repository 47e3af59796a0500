"""A pretraining from its configuration to its end."""

import os
from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

import ramen_jax
from ramen_jax import config as configuration
from ramen_jax.parallel import agree, join, stopping
from ramen_jax.training import checkpoint, experiment, initial, loop, workdir
from ramen_jax.training.evaluators import Evaluator


def no_probes(config: ConfigDict) -> list[Evaluator]:
    """Nothing is measured but the loss."""
    return []


def run(
    config: ConfigDict,
    folder: str,
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
            return _train(config, folder, probes)


def _train(config: ConfigDict, folder: str, probes: Callable[[ConfigDict], list[Evaluator]]) -> int:
    if not agree.alone():
        join.require_same(_facts(config))
    enable_compilation_cache(config)
    path = Path(folder).expanduser()
    if config.train.start_from and not (path / "checkpoints").is_dir():
        initial.require(Path(config.train.start_from).expanduser())
    # A configuration that turns out impossible must not claim the workdir: known first, written by `loop.run`.
    workdir.check(config, path)
    job = experiment.build(config, path)
    join.require_same({key: str(value) for key, value in checkpoint.leaves(job.identity).items()})
    job = job._replace(evaluators=[*job.evaluators, *probes(config)])
    outcome = loop.run(job, path)
    agree.together("the end of the run")
    if jax.process_index() == 0:
        if outcome.complete:
            print(f"training complete: {outcome.step} steps, in {path}")
        else:
            why = "by SIGTERM " if outcome.signalled else ""
            print(
                f"stopped {why}after step {outcome.step} of {job.steps}, saved; the same command goes on from there"
            )
    return stopping.status() if outcome.signalled else 0


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
    folder = Path(os.path.expandvars(config.compile_cache.folder)).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", config.compile_cache.min_seconds)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
