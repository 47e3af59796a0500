"""Which blocks meet: never one too few, and in packed rows none too many."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ramen_jax.attention.blocks import block_ranges, in_whole_blocks

BLOCK = 4


def ranges(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `block_ranges` names, and which pairs of blocks truly share an id."""
    _, padded = in_whole_blocks((), jnp.asarray(ids)[None], BLOCK)
    first, last = (np.asarray(a)[0] for a in block_ranges(padded, BLOCK))
    place = np.arange(len(first))[None, :]
    named = (place >= first[:, None]) & (place < last[:, None])
    blocks = [set(block) for block in np.asarray(padded)[0].reshape(-1, BLOCK)]
    return named, np.array([[bool(a & b) for b in blocks] for a in blocks])


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), padding=st.integers(0, 9))
def test_packed_rows_name_exactly_the_blocks_that_share_a_view(lengths: list[int], padding: int) -> None:
    """(Mutant: padding kept as id 0, which makes its block's interval of ids hold every view.)"""
    ids = np.concatenate([np.repeat(np.arange(1, len(lengths) + 1), lengths), np.zeros(padding, int)])
    named, share = ranges(ids.astype(np.int32))
    np.testing.assert_array_equal(named, share)


@settings(max_examples=40, deadline=None)
@given(ids=st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_no_block_is_missed_whatever_the_order(ids: list[int]) -> None:
    named, share = ranges(np.array(ids, np.int32))
    assert not np.any(share & ~named)
