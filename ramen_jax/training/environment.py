"""What a run leaves about itself, and settings of JAX that must come before the first compilation."""

import ctypes
import gzip
import json
import logging
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import absl.logging
import jax
from ml_collections import ConfigDict

import ramen_jax
from ramen_jax.parallel import mesh as sharding


def enable_compilation_cache(config: ConfigDict) -> Path | None:
    """Turns on JAX's persistent compilation cache; call once, after distributed init, before the first jit.

    Programs that took less than config.compile_cache.min_seconds to compile are not stored (JAX's own threshold is
    one second too); there is no threshold on their size. The folder must be shared by all hosts of a run.
    """
    if not config.compile_cache.folder:
        return None
    folder = Path(os.path.expandvars(config.compile_cache.folder)).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", config.compile_cache.min_seconds)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def quiet_libraries() -> None:
    """Keeps Orbax from printing the stack of every background thread that a full disk stops: we say it in a line."""
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def compile_step(step: Any, state: Any, rows: Any, program: Path | None = None) -> tuple[Any, float]:
    """The compiled step for these shapes, and the seconds it took; its StableHLO goes to `program` (gzip)."""
    began = time.monotonic()
    lowered = step.lower(state, rows)
    if program is not None:
        program.write_bytes(gzip.compress(lowered.as_text().encode(), mtime=0))
    compiled = lowered.compile()
    return_freed_memory()
    return compiled, time.monotonic() - began


def return_freed_memory() -> None:
    """Gives the compiler's freed memory back to the system, where the C library (glibc) would keep it."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def describe_run(workdir: Path, config: ConfigDict, params: Any, logical_axes: sharding.LogicalAxes) -> None:
    """Appends to runs.jsonl what this process runs on, and writes parameters.txt."""
    facts = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git": git_hash(),
        "recipe": config.recipe,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "host": platform.node(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "device_kind": jax.devices()[0].device_kind,
    }
    with (workdir / "runs.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")
    (workdir / "parameters.txt").write_text(sharding.table(params, logical_axes))


def git_hash() -> str:
    """Commit of the checkout this package runs from, with "+" when files differ from it; "" outside of one."""
    folder = Path(ramen_jax.__file__).parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+" if changed else "")


def usable_cores() -> set[int]:
    """Processor cores this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
