"""A short run of `python -m tests.parallel.chaos`."""

import os

from tests.parallel.chaos import campaign


def test_six_signals_at_random_moments_change_no_loss_and_lose_no_checkpoint(nursery, tmp_path):
    """(Mutants: each process saves by its own signal; the lock outlives a kill; metrics are not cut at a resume.)"""
    seed = int.from_bytes(os.urandom(3))
    print(f"seed {seed}")
    campaign(nursery, tmp_path, 6, seed)
