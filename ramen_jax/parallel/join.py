"""Several processes become one run: found by the cluster they run in, by the environment, or by flags.

jax.distributed of a Slurm, Open MPI, GKE or TPU job       found by JAX itself
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID  anywhere, all three
--coordinator, --processes, --process-id                    anywhere, all three; they go before the environment
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import jax
from jax._src import clusters  # what `jax.distributed.initialize` asks itself

from ramen_jax.console import DATA, USAGE, UserError, one_line
from ramen_jax.parallel import agree, leaving, line, stopping
from ramen_jax.parallel.line import Place

TIMEOUT = 300  # seconds that processes wait for each other at the start
HEARTBEAT = 30  # seconds of silence after which a process counts as dead
MEETING = 60  # seconds for JAX's own joining, once all are there
LAST_PORT = 65535
SHUTDOWN = 20  # seconds that a process which is done waits for the others

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FLAGS = ("--coordinator", "--processes", "--process-id")


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
        _refuse_address(names[0], values[0])
        return Place(values[0], processes, process)
    return None


def _refuse_address(name: str, address: str) -> None:
    """UserError where an address is none."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"{name} is {address!r}, expected HOST:PORT, e.g. node0:12345", USAGE)
    if not 0 < int(port) <= LAST_PORT:
        raise UserError(f"{name} is {address!r}, expected a port from 1 to {LAST_PORT}", USAGE)


def join(flags: tuple[str, str, str] = ("", "", ""), timeout: int = TIMEOUT) -> None:
    """Joins the other processes; before anything else that uses devices.

    Raises:
        UserError: nothing says who the others are, or they did not all come within `timeout` seconds (see `line.meet`).
    """
    place, local_devices = place_of(flags, os.environ), None
    if place is None:
        place, local_devices = _place_in_cluster(timeout)
    stopping.tell_others_by(partial(line.call_off, place))
    try:
        agree.hold(line.meet(place, timeout, agree.hear))
    except line.CalledOff as off:
        who = "" if off.number == place.process_id else f"process {off.number} was "
        leaving.leave(stopping.status(), f"{who}{stopping.EARLY}")
    leaving.hold_aborts()
    try:
        jax.distributed.initialize(
            **place._asdict(),
            local_device_ids=local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=MEETING,  # all are there
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=SHUTDOWN,
        )
    except (RuntimeError, ValueError) as error:
        reason = one_line(str(error), 400)
        raise UserError(f"process {place.process_id} could not join the others: {reason}", DATA) from error
    finally:
        stopping.listen_again()  # JAX listens to SIGTERM from here on, and would swallow it


def _place_in_cluster(timeout: int) -> tuple[Place, Sequence[int] | None]:
    """The place that Slurm, Open MPI, Kubernetes or a TPU's machines give, and the devices that are this process's."""
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get(VARIABLES[0]), None, None, None, None, timeout
        )
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        found, told = (None, None, None, None), f" ({one_line(str(error))})"
    else:
        told = ""
    address, processes, process, devices = found
    if address is None or processes is None or process is None:
        raise UserError(
            f"no cluster was found to join{told}; under Slurm, Open MPI, GKE and TPU it is found by itself, elsewhere "
            f"set {', '.join(VARIABLES)} or give {', '.join(FLAGS)}",
            USAGE,
        )
    _refuse_address(f"the cluster's coordinator address ({VARIABLES[0]}, where it is set)", address)
    return Place(address, int(processes), int(process)), devices


def require_same(facts: Mapping[str, str]) -> None:
    """All processes compare what must be the same in all. UserError in every process, with the differences."""
    if agree.alone():
        return
    text = json.dumps(facts, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if agree.combined("comparing configurations", digest, lambda digests: len(set(digests)) == 1):
        return
    lines = agree.combined(
        "comparing configurations in detail", dict(facts), lambda everyone: list(_differences(everyone))
    )
    if lines:
        shown = "\n  ".join(lines[:20]) + (f"\n  and {len(lines) - 20} more" if len(lines) > 20 else "")
        raise UserError(f"the processes of this run differ, expected the same in all:\n  {shown}", USAGE)


def _differences(everyone: list[dict[str, str]]) -> Iterator[str]:
    for key in sorted({key for facts in everyone for key in facts}):
        holders: dict[str, list[int]] = {}
        for process, facts in enumerate(everyone):
            holders.setdefault(facts.get(key, "nothing"), []).append(process)
        if len(holders) > 1:
            yield f"{key}: " + ", ".join(
                f"{value} in {line.processes(who)}" for value, who in holders.items()
            )
