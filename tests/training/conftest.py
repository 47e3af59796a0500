"""Training tests compile the same small programs many times: cheaply, and into one cache, subprocesses too."""

import os
import tempfile

_cache = tempfile.TemporaryDirectory(prefix="ramen_jax_xla_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
