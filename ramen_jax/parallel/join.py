"""Several processes become one run: found by the cluster they run in, by the environment, or by flags.

jax.distributed of a Slurm, Open MPI, GKE or TPU job       found by JAX itself
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID  anywhere, all three
--coordinator, --processes, --process-id                    anywhere, all three; they go before the environment
"""

import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from ramen_jax.console import DATA, USAGE, UserError
from ramen_jax.parallel import agree

TIMEOUT = 300  # seconds that processes wait for each other at the start
HEARTBEAT = 30  # seconds of silence after which a process counts as dead
SHUTDOWN = 20  # seconds that a process which is done waits for the others

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FLAGS = ("--coordinator", "--processes", "--process-id")


class Place(NamedTuple):
    """Where a process stands among those of its run."""

    coordinator_address: str  # HOST:PORT of process 0, as all the others reach it
    num_processes: int
    process_id: int  # from 0


def place_of(flags: tuple[str, str, str], environment: Mapping[str, str]) -> Place | None:
    """The place that flags (in the order of FLAGS, "" where not given) or variables name; None when neither do.

    Raises:
        UserError: some are given and some not, or a value that cannot be.
    """
    for names, values in (
        (FLAGS, flags),
        (VARIABLES, tuple(environment.get(name, "") for name in VARIABLES)),
    ):
        missing = [name for name, value in zip(names, values, strict=True) if not value]
        # A coordinator alone may be all that a cluster is told: the rest is then the cluster's to say.
        if len(missing) == 3 or (names is VARIABLES and missing == list(VARIABLES[1:])):
            continue
        if missing:
            raise UserError(f"{' and '.join(missing)} missing: {', '.join(names)} go together", USAGE)
        numbers = []
        for name, value in zip(names[1:], values[1:], strict=True):
            if not value.isdecimal():
                raise UserError(f"{name} is {value!r}, expected a whole number", USAGE)
            numbers.append(int(value))
        processes, process = numbers
        if process >= processes:
            raise UserError(
                f"{names[2]} is {process}, but {names[1]} is {processes}: expected 0 to {processes - 1}"
                if processes
                else f"{names[1]} is 0, expected at least 1",
                USAGE,
            )
        host, _, port = values[0].rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(f"{names[0]} is {values[0]!r}, expected HOST:PORT, e.g. node0:12345", USAGE)
        return Place(values[0], processes, process)
    return None


def join(flags: tuple[str, str, str] = ("", "", ""), timeout: int = TIMEOUT) -> None:
    """Joins the other processes; before anything else that uses devices.

    Raises:
        UserError: nothing says who the others are, or they were not reached within `timeout` seconds.
    """
    place = place_of(flags, os.environ)
    options: dict[str, Any] = (
        {} if place is None else {**place._asdict(), "cluster_detection_method": "deactivate"}
    )
    met = threading.Event()
    threading.Thread(target=_give_up, args=(place, timeout, met), daemon=True).start()
    try:
        jax.distributed.initialize(
            **options,
            initialization_timeout=timeout + 60,  # JAX aborts by then; `_give_up` speaks before
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=SHUTDOWN,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"no cluster was found to join ({error}); under Slurm, Open MPI, GKE and TPU it is found by itself, "
            f"elsewhere set {', '.join(VARIABLES)} or give {', '.join(FLAGS)}",
            USAGE,
        ) from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:400]
        raise UserError(f"the processes could not be joined{_named(place)}: {reason}", DATA) from error
    finally:
        met.set()
    # JAX swallows SIGTERM from here on; until the training handles it, it must end the process as ever.
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)


def _give_up(place: Place | None, timeout: int, met: threading.Event) -> None:
    """Ends this process, with a sentence, when the others have not come in time: JAX would abort it with a dump."""
    if met.wait(timeout):
        return
    if place is None:
        who = "some process of this cluster job did not start"
    elif place.process_id == 0:
        last = place.num_processes - 1
        who = f"at least one of processes 1 to {last} did not come" if last > 1 else "process 1 did not come"
    elif _answers(place.coordinator_address):
        who = "process 0 answers, so another process did not come"
    else:
        who = f"process 0 does not answer at {place.coordinator_address}"
    print(
        f"error: the processes did not meet within {timeout} s{_named(place)}: {who}",
        file=sys.stderr,
        flush=True,
    )
    os._exit(DATA)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return True
    except OSError:
        return False


def _named(place: Place | None) -> str:
    return f" (process {place.process_id} of {place.num_processes})" if place else ""


def require_same(facts: Mapping[str, str]) -> None:
    """All processes compare what must be the same in all. UserError in every process, with the differences."""
    if agree.alone():
        return
    text = json.dumps(facts, sort_keys=True)
    hashes = agree.gather("comparing configurations", hashlib.sha256(text.encode()).hexdigest())
    if len(set(hashes)) == 1:
        return
    everyone = agree.gather("comparing configurations in detail", dict(facts))
    lines = list(_differences(everyone))
    if lines:
        shown = "\n  ".join(lines[:20]) + (f"\n  and {len(lines) - 20} more" if len(lines) > 20 else "")
        raise UserError(f"the processes of this run differ, expected the same in all:\n  {shown}", USAGE)


def _differences(everyone: list[dict[str, str]]) -> Iterator[str]:
    for key in sorted({key for facts in everyone for key in facts}):
        holders: dict[str, list[int]] = {}
        for process, facts in enumerate(everyone):
            holders.setdefault(facts.get(key, "nothing"), []).append(process)
        if len(holders) > 1:
            yield f"{key}: " + ", ".join(f"{value} in {_who(who)}" for value, who in holders.items())


def _who(processes: list[int]) -> str:
    if len(processes) == 1:
        return f"process {processes[0]}"
    shown = ", ".join(map(str, processes[:8])) + (", ..." if len(processes) > 8 else "")
    return f"processes {shown}"
