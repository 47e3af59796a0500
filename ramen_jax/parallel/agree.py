"""What the processes of a run decide together: one value, the same everywhere.

Words go through JAX's coordination service, from host to host: they wait for no device, so a step under way hides them,
and every wait has a name and a timeout. Each process must call these functions in the same order.
"""

import itertools
import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # the service has no public door; Orbax uses this one too
from jax.experimental import multihost_utils

from ramen_jax.console import DATA, UserError

PATIENCE = 600.0  # seconds that a process waits for the others by default
GRACE = 8.0  # seconds that a process whose sibling has failed has to end by itself
ROOM = "ramen_jax"
FAILED = f"{ROOM}/failed"

_calls = itertools.count()


def alone() -> bool:
    """Whether no others were joined. Touches no device: what forks may still come."""
    return distributed.global_state.client is None


def gather(name: str, value: Any, patience: float = PATIENCE) -> list[Any]:
    """What every process gives (JSON), in their order. Alone: [value].

    Raises:
        UserError: some process was not heard of within `patience` seconds; `name` says what was waited for.
    """
    if alone():
        return [value]
    client, call = _client(), next(_calls)
    key = f"{ROOM}/{call:012d}"
    client.key_value_set(f"{key}/{_number():06d}", json.dumps(value))
    try:
        client.wait_at_barrier(f"{key} {name}", round(1000 * patience))
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"{name}: not all processes came within {patience:.0f} s ({str(error).splitlines()[0][:300]})",
            DATA,
        ) from error
    found = [json.loads(text) for _, text in sorted(client.key_value_dir_get(f"{key}/"))]
    if _number() == 0 and call >= 2:  # everybody has read the one before the last
        client.key_value_delete(f"{ROOM}/{call - 2:012d}/")
    return found


@contextmanager
def failing_together() -> Iterator[None]:
    """An error that leaves this block in one process is told by all of them, and ends them all within seconds.

    A process that waits on a device for one that has failed cannot be woken: it is ended after GRACE seconds.
    """
    if alone():
        yield
        return
    client, over = _client(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(client, over), daemon=True)
    watcher.start()
    try:
        yield
    except Exception as error:
        code = getattr(error, "code", DATA)
        said = {"process": _number(), "error": str(error) or type(error).__name__, "code": code}
        first = client.key_value_increment(f"{FAILED}/count", 1) == 1
        if first:
            client.key_value_set(f"{FAILED}/first", json.dumps(said))
        over.set()
        if not isinstance(error, UserError) or "--debug" in sys.argv:
            traceback.print_exc()
        _say(f"error: {error}")
        # Orderly ends wait for collectives that will never come, so this one is not orderly.
        _leave(client, code)
    finally:
        over.set()


def _client() -> Any:
    return distributed.global_state.client


def _number() -> int:
    """Of this process, as it joined."""
    return distributed.global_state.process_id


def _watch(client: Any, over: threading.Event) -> None:
    """Ends this process GRACE seconds after another has failed, if it does not end by itself."""
    while not over.wait(0.5):
        try:
            said = json.loads(client.key_value_try_get(f"{FAILED}/first"))
        except (jax.errors.JaxRuntimeError, ValueError):  # nobody has failed
            continue
        if over.wait(GRACE):
            return
        _say(f"error: process {said['process']} failed: {said['error']}")
        _leave(client, said["code"])


def _leave(client: Any, code: int) -> None:
    """Ends this process, once the others are as far or GRACE seconds have passed; process 0, the coordinator, last."""
    try:
        client.wait_at_barrier(f"{ROOM} leaving", round(2000 * GRACE))
    except jax.errors.JaxRuntimeError:
        _say("some processes did not end with this one")
    if _number() == 0:
        time.sleep(0.5)
    for worker in multiprocessing.active_children():
        worker.terminate()
    sys.stdout.flush()
    os._exit(code)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


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
