"""Memory that a program frees stays with it, and is not asked of the system again at every step."""

import subprocess
import sys

import pytest

from ramen_jax import allocator

# The state of the loop is 64 MiB of temporary numbers, 16,384 pages, at every call.
PROGRAM = """
import resource
import sys
from ramen_jax import allocator
if sys.argv[1] == "kept":
    allocator.keep_memory()
import jax
def doubled(first):
    start = jax.numpy.full((16, 1024, 1024), first)
    return jax.numpy.max(jax.lax.fori_loop(0, 2, lambda step, values: values + values, start))
program = jax.jit(doubled)
for call in range(30):
    if call == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(1.0 * call).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_of_twenty_calls(kept, repository):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kept],
        capture_output=True,
        text=True,
        cwd=repository,
        env={"JAX_PLATFORMS": "cpu", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not allocator.adjustable(), reason="needs glibc, whose allocator can be told")
def test_a_program_asks_for_its_temporary_memory_once(repository):
    """It may ask again where something small came to lie in between, but not at every call, as without the settings.

    Mutants: the number of arenas or of mappings left as it is; each call then takes its 16,384 pages (of 4 KiB) anew.
    """
    assert pages_of_twenty_calls("kept", repository) < 6 * 16_384
    assert pages_of_twenty_calls("returned", repository) > 19 * 16_384
