"""What the processes of a run decide together: one value, the same everywhere, at the price of a collective."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def from_primary(value: int) -> int:
    """The value that process 0 gives; the others' are not looked at. Alone: the value itself."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def first_trouble(here: bool) -> int:
    """Number of the first process that is in trouble, -1 when none is."""
    if jax.process_count() == 1:
        return 0 if here else -1
    troubled = np.flatnonzero(multihost_utils.process_allgather(np.int32(here)))
    return int(troubled[0]) if troubled.size else -1


def together(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
