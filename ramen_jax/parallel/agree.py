"""What the processes of a run decide together: one value, the same everywhere.

Values go through JAX's coordination service, from host to host: they wait for no device, so a step under way hides
them. Every wait has a name and a timeout, and says who is missing. Each process must call these functions in the same
order. What must be heard at once, an error or a death, goes over the line (`line.py`).
"""

import itertools
import json
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax._src import distributed  # the service has no public door; Orbax uses this one too

from ramen_jax.console import DATA, INTERRUPTED, UserError
from ramen_jax.parallel import leaving, line, stopping

PATIENCE = 600.0  # seconds that a process waits for the others by default
LONG = 6 * 3600.0  # where one of them may have to read terabytes first
LATE = 60.0  # seconds of waiting after which it is told who is waited for
SLOW, STUCK = 600.0, 3600.0  # seconds of waiting for devices: it is told, the run ends
GRACE = 5.0  # seconds that a process has to end by itself, with its own words, when another has failed
NEWS = 1.0  # seconds after an error here in which the cause may be heard from elsewhere
ROOM = "ramen_jax"

_calls = itertools.count()
_line: line.Line | None = None
_over = threading.Event()  # this process ends by itself
_cause = threading.Event()  # why all must end has been heard from another
_heard: line.Message = {}


def alone() -> bool:
    """Whether no others were joined. Touches no device: what forks may still come."""
    return distributed.global_state.client is None


def hold(ours: line.Line) -> None:
    """The line by which this process and the others hear each other from now on."""
    global _line
    _line = ours
    stopping.tell_others_by(lambda: ours.tell(line.STOPPED))


def combined(name: str, value: Any, combine: Callable[[list[Any]], Any], patience: float = PATIENCE) -> Any:
    """combine([what every process gives, in their order]), computed by process 0. All JSON. Alone: combine([value]).

    Raises:
        UserError: some process did not come within `patience` seconds; `name` says what was waited for.
    """
    if alone():
        return combine([value])
    client, key = _client(), f"{ROOM}/{next(_calls):012d}"
    client.key_value_set(f"{key}/from/{_number():06d}", json.dumps([name, value]))
    over = threading.Event()
    threading.Thread(target=_tell_late, args=(name, key, over), daemon=True).start()
    try:
        client.wait_at_barrier(f"{key} {name}", round(1000 * patience))
        if _number() == 0:
            values = [given for _, given in _given(key).values()]
            client.key_value_set(f"{key}/all", json.dumps(combine(values)))
        text = client.blocking_key_value_get(f"{key}/all", round(1000 * patience))
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"{name}: {_who_is_missing(name, key)} within {patience:.0f} s", DATA) from error
    finally:
        over.set()
    if _number() == 0 and (call := int(key[-12:])):  # everybody has read the one before
        client.key_value_delete(f"{ROOM}/{call - 1:012d}/")
    return json.loads(text)


def gather(name: str, value: Any, patience: float = PATIENCE) -> list[Any]:
    """What every process gives (JSON), in their order; errors as `combined`."""
    found: list[Any] = combined(name, value, list, patience)
    return found


def from_primary(name: str, value: Any, patience: float = PATIENCE) -> Any:
    """What process 0 gives (JSON); the others' is not looked at. Errors as `combined`."""
    return combined(name, value, lambda values: values[0], patience)


def first_trouble(name: str, here: bool, patience: float = PATIENCE) -> int:
    """Number of the first process that is in trouble, -1 when none is. Errors as `combined`."""
    found: int = combined(name, here, lambda values: values.index(True) if True in values else -1, patience)
    return found


def together(name: str, patience: float = PATIENCE) -> None:
    """Waits until every process is here. Errors as `combined`."""
    combined(name, None, lambda values: None, patience)


def stop_asked(name: str) -> bool:
    """Whether any process has been asked to stop. Errors as `combined`."""
    asked: bool = combined(name, stopping.asked(), any)
    return asked


@contextmanager
def watched(name: str) -> Iterator[None]:
    """A block that waits for devices, which wait for other processes: told when it takes long, ended when too long.

    A collective operation whose other half never comes has no timeout of its own, and cannot be woken.
    """
    over = threading.Event()
    threading.Thread(target=_watch, args=(name, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(name: str, over: threading.Event) -> None:
    if over.wait(SLOW):
        return
    leaving.say(f"waiting for {name} since {SLOW:.0f} s")
    if over.wait(STUCK - SLOW):
        return
    told = f"{name} did not end within {STUCK:.0f} s: a device, or the network between them, does not answer"
    if _line is not None:
        _line.tell(line.FAILED, error=told, code=DATA)
    leaving.leave(DATA, f"error: {told}")


def _given(key: str) -> dict[int, tuple[str, Any]]:
    """Process -> (what it is at, what it gave), of one call."""
    found = _client().key_value_dir_get(f"{key}/from/")
    return {int(path.rpartition("/")[2]): tuple(json.loads(text)) for path, text in sorted(found)}


def _who_is_missing(name: str, key: str) -> str:
    """`process 2 did not come`, or where it is instead."""
    try:
        given = _given(key)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        return f"the coordinator, process 0, could not be asked ({str(error).splitlines()[0][:200]}): not all came"
    elsewhere = sorted({at for at, _ in given.values() if at != name})
    missing = [n for n in range(distributed.global_state.num_processes) if n not in given]
    told = [f"{line.processes(missing)} did not come"] if missing else []
    told += [f"{line.processes([n for n in given if given[n][0] == at])} came to '{at}'" for at in elsewhere]
    return " and ".join(told) or "not all processes could go on"


def _tell_late(name: str, key: str, over: threading.Event) -> None:
    if not over.wait(LATE):
        leaving.say(
            f"waiting for the others at '{name}' since {LATE:.0f} s: {_who_is_missing(name, key)} yet"
        )


def _client() -> Any:
    return distributed.global_state.client


def _number() -> int:
    """Of this process, as it joined."""
    return distributed.global_state.process_id


@contextmanager
def failing_together() -> Iterator[None]:
    """An error that leaves this block in one process is told by all of them, and ends them all within seconds.

    Others hear of it at once. One that waits on a device or a disk cannot be woken: it is ended after GRACE seconds.
    """
    ours = _line
    if ours is None:
        yield
        return
    with leaving.giving_back(ours.close):
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            _end_by(error, ours)
        _over.set()
        ours.close()


def _end_by(error: Exception | KeyboardInterrupt, ours: line.Line) -> None:
    """The end of this process by an error, which may be no more than what another's death looks like from here."""
    if _cause.wait(NEWS) and not (_heard["what"] == line.FAILED and isinstance(error, UserError)):
        threading.Event().wait()  # `hear` ends this process and says why
    if isinstance(error, KeyboardInterrupt):
        code, told = INTERRUPTED, "interrupted"
    else:
        code, told = getattr(error, "code", DATA), str(error) or type(error).__name__
    ours.tell(line.FAILED, error=told, code=code)
    _over.set()
    if not isinstance(error, UserError | KeyboardInterrupt) or "--debug" in sys.argv:
        traceback.print_exc()
    leaving.leave(code, f"error: {told}")


def hear(message: line.Message) -> None:
    """Ends this process for what another says or for its death, if it does not end by itself."""
    global _heard
    if _cause.is_set():
        return
    _heard = message
    _cause.set()
    who = f"process {message['process']}"
    if message["what"] == line.STOPPED:
        leaving.leave(stopping.status(), f"{who} was {stopping.EARLY}")
    if message["what"] == line.GONE:
        leaving.leave(
            DATA,
            f"error: {who} is gone without a word: it was killed, or its machine failed; the others end too, and the "
            "same command goes on from the newest checkpoint",
        )
    if not _over.wait(GRACE):
        leaving.leave(int(message["code"]), f"error: {who} failed: {message['error']}")
