"""The main module of data worker processes: it keeps JAX out of them.

A worker needs NumPy only. If it imported JAX it would take gigabytes and, on accelerators, the devices themselves; and
a spawned process does import two things unasked: the main module of the program that started it (the training loop)
and grain (which uses JAX's tree functions where it finds them, and its own where it does not).

So workers are started with this module as their main module: `without_jax` arranges that in the parent, and running
it as `__mp_main__` in the child makes every import of JAX fail there. Whatever asks for JAX in a worker gets an
ImportError that says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from ramen_jax import allocator

BARRED = ("jax", "jaxlib", "flax", "tensorflow", "torch")


class _Bar:
    """An import finder that refuses the barred packages."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in BARRED:
            raise ImportError(f"data workers do not import {name}: they run on NumPy alone")
        return None


@contextlib.contextmanager
def without_jax() -> Iterator[None]:
    """Processes spawned inside this context run this module instead of the program's main module."""
    main = sys.modules["__main__"]
    own = main.__spec__
    main.__spec__ = importlib.util.find_spec("ramen_jax.rows.worker_start")
    try:
        yield
    finally:
        main.__spec__ = own


def free_shared_memory_silently() -> None:
    """Stops the warning about shared memory at the end of a program. Call it before any process is started.

    Batches that lie ready when the program ends are freed by Python's resource tracker, a process of its own that
    takes the warning filters of this one when it starts. It would report each of them as leaked.
    """
    quiet = "ignore:resource_tracker"
    if quiet not in sys.warnoptions:
        sys.warnoptions.append(quiet)


if __name__ == "__mp_main__":
    allocator.keep_memory()
    for threads in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(threads, "1")  # a worker is one core; read when NumPy is first imported
    sys.meta_path.insert(0, _Bar)
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # grain warns that there is no JAX profiler
