"""What every test shares. Settings go through the environment: before jax is imported, and into subprocesses."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A broadcast between arrays of different rank is an error in tests: it has hidden many a wrong axis.
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
# TFDS and others look for a network or an accelerator when imported; tests need neither.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Tests compile many small programs and run each once: these settings halve XLA's compile time on a CPU, and
# programs compiled by an earlier run are kept.
FLAGS = "--xla_backend_optimization_level=1"
if version("jaxlib").startswith("0.10."):
    # Later versions do not know this flag, and XLA dies of an unknown one.
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout, where commands are run."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real imagery that RAMEN_JAX_REAL_DATA names; the test is skipped when it is unset."""
    value = os.environ.get("RAMEN_JAX_REAL_DATA", "")
    if not value:
        pytest.skip("needs real imagery: set RAMEN_JAX_REAL_DATA to the folder that holds it")
    folder = Path(value).expanduser().resolve()
    if not folder.is_dir():
        pytest.fail(f"RAMEN_JAX_REAL_DATA names {folder}, which is not a folder")
    return folder
