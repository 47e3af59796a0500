"""A disk that is full when a training starts: one line, whichever file it is that no longer fits."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from pathlib import Path
from ramen_jax import console
from ramen_jax.training import loop
from tests.training import toy

def run():
    job = toy.job(toy.config(), steps=6)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))  # no file grows beyond it
    loop.run(job, Path(sys.argv[1]))

console.main(run)
"""


@pytest.mark.parametrize("size", [0, 300, 3000])
def test_a_disk_that_is_full_from_the_start_is_one_line(tmp_path, repository, size):
    """(Mutant: an OSError of whoever writes next reaches the person as a traceback.)"""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), str(size)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stderr.splitlines()
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert [line for line in told if line.startswith("error: ")] == told[-1:], done.stderr
