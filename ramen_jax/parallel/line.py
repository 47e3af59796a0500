"""The line that joins every process to process 0: the roll call at the start, and what must be heard at once.

JAX's coordination service neither tells who has not come, nor that its port is taken, nor quickly who has died. So the
processes first meet on that same port: each says its number, and process 0 lets them go on when all are there. The
connections stay open. A process that is killed hangs up by that, whatever the others wait for; one whose machine is
gone stops answering.

Messages are JSON, one a line: {"what": FAILED, STOPPED, GONE or LEAVING, "process": its number, ...}.
"""

import contextlib
import errno
import json
import os
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ramen_jax.console import DATA, USAGE, UserError

FAILED, STOPPED, GONE, LEAVING = "failed", "stopped", "gone", "leaving"
LOST = 20  # seconds after which a machine that does not answer counts as gone
BUSY = 10.0  # seconds that the port of a run which has just ended may stay taken
LAST = 8.0  # seconds that process 0 waits for the others to leave first
LONGEST = 65536  # bytes of a message

Message = dict[str, Any]

_open: weakref.WeakSet["Line"] = weakref.WeakSet()


class Place(NamedTuple):
    """Where a process stands among those of its run."""

    coordinator_address: str  # HOST:PORT of process 0, as all the others reach it
    num_processes: int
    process_id: int  # from 0


class CalledOff(Exception):
    """A process was asked to stop before all had met.

    Attributes:
        number: which.
        end: process 0's connection to it; None elsewhere.
    """

    def __init__(self, number: int, end: socket.socket | None = None) -> None:
        super().__init__(number)
        self.number, self.end = number, end


class Line:
    """This process's ends of the line: to process 0, or from process 0 to all the others.

    Args:
        ends: number of a process -> the connection to it.
        act: called in a thread of its own with every message of another process but LEAVING.
    """

    def __init__(self, number: int, ends: dict[int, socket.socket], act: Callable[[Message], None]) -> None:
        self.number, self._ends, self._act = number, dict(ends), act
        self._sending = threading.Lock()
        self._expected: set[int] = set()  # to hang up
        self._closed = threading.Event()
        for end in ends.values():
            _keep_alive(end)
        self._selector = selectors.DefaultSelector()
        self._parts = dict.fromkeys(ends.values(), b"")
        for other, end in ends.items():
            self._selector.register(end, selectors.EVENT_READ, other)
        _open.add(self)
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, what: str, **more: Any) -> None:
        """To all the others, through process 0. Those that are gone already are not told."""
        if what != LEAVING:
            self._expected |= set(self._ends)
        self._send({"what": what, "process": self.number, **more}, self._ends)

    def close(self) -> None:
        """Hangs up; process 0, whose end is the end of JAX's service, only after the others or LAST seconds."""
        if self.number:
            self.tell(LEAVING)
            self._closed.set()
        else:
            deadline = time.monotonic() + LAST
            while self._ends and time.monotonic() < deadline:
                time.sleep(0.02)
            self._closed.set()
        for end in list(self._ends.values()):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        """In a forked child: its copies would keep the line of a killed parent open."""
        for end in self._ends.values():
            end.close()

    def _send(self, message: Message, to: Iterable[int]) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._sending:
            for other in list(to):
                with contextlib.suppress(OSError, KeyError):
                    self._ends[other].sendall(line)

    def _listen(self) -> None:
        while self._ends:
            for key, _ in self._selector.select(timeout=1.0):
                end: Any = key.fileobj
                try:
                    found = end.recv(LONGEST)
                except OSError:
                    found = b""
                if not found:
                    self._hung_up(key.data, end)
                    continue
                *lines, self._parts[end] = (self._parts[end] + found)[-LONGEST:].split(b"\n")
                for line in lines:
                    self._heard(key.data, json.loads(line))

    def _hung_up(self, other: int, end: socket.socket) -> None:
        self._selector.unregister(end)
        del self._ends[other]
        end.close()
        if other not in self._expected and not self._closed.is_set():
            self._heard(other, {"what": GONE, "process": other})

    def _heard(self, other: int, message: Message) -> None:
        # Whoever has said why it ends, or ends for what another said, is not missed.
        self._expected |= {other} if message["what"] == LEAVING else set(self._ends) | {other}
        if message["what"] == LEAVING:
            return
        if self.number == 0:
            self._send(message, [one for one in self._ends if one != other])
        threading.Thread(target=self._act, args=(message,), daemon=True).start()


def meet(place: Place, timeout: float, act: Callable[[Message], None]) -> Line:
    """The line of this process, when all have come. For `act` see `Line`.

    Raises:
        UserError: they did not all come within `timeout` seconds (says which, where that is known), the port is taken,
            two say that they are the same, or they were started for different numbers of processes.
        CalledOff: one of them was asked to stop meanwhile.
    """
    ends = _call_the_roll(place, timeout) if place.process_id == 0 else {0: _answer(place, timeout)}
    return Line(place.process_id, ends, act)


def call_off(place: Place) -> None:
    """Before all have met: this process was asked to stop, and none shall wait for it. Returns when they know it.

    The word goes to process 0, from process 0 too, which passes it on. Given up after LAST seconds without an answer.
    """
    host, port = _address(place)
    deadline = time.monotonic() + LAST
    while time.monotonic() < deadline:
        try:
            end = socket.create_connection((host if place.process_id else "localhost", port), timeout=1.0)
        except OSError:
            time.sleep(0.1)
            continue
        with end:
            _say(end, {"process": place.process_id, "processes": place.num_processes, "stopped": True})
            end.settimeout(2 * LAST)
            if _read(end):
                return
        time.sleep(0.1)


def _call_the_roll(place: Place, timeout: float) -> dict[int, socket.socket]:
    """The connections of process 0, which tells everybody who is there why they cannot go on."""
    present: dict[int, socket.socket] = {}
    try:
        with _server(_address(place)[1], min(BUSY, timeout)) as server:
            try:
                _wait_for_all(server, place, present, timeout)
            except CalledOff as off:
                _send_home(server, place, present, off)
                raise
    except UserError as error:
        for end in present.values():
            _say(end, {"refused": str(error), "code": error.code})
        raise
    # Only now: JAX's service takes the port next, and the others look for it there.
    for end in present.values():
        _say(end, {"all": place.num_processes})
    return present


def _wait_for_all(
    server: socket.socket, place: Place, present: dict[int, socket.socket], timeout: float
) -> None:
    deadline = time.monotonic() + timeout
    while len(present) < place.num_processes - 1:
        if time.monotonic() > deadline:
            raise UserError(_missing(place, sorted(present), timeout), DATA)
        server.settimeout(0.2)
        try:
            _welcome(server.accept()[0], place, present)
            if len(present) < place.num_processes - 1:
                continue
        except TimeoutError:
            pass
        # Whoever came and was killed meanwhile is waited for again.
        for number in [number for number, end in present.items() if _has_hung_up(end)]:
            present.pop(number).close()


def _send_home(
    server: socket.socket, place: Place, present: dict[int, socket.socket], off: CalledOff
) -> None:
    """Tells those who are there, those who still come within LAST seconds, and who called it off."""
    told = {"stopped": off.number}
    for end in present.values():
        _say(end, told)
    expected = set(range(1, place.num_processes)) - {*present, off.number}
    deadline = time.monotonic() + LAST
    server.settimeout(0.2)
    while expected and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            end = server.accept()[0]
            end.settimeout(1.0)
            expected.discard(_read(end).get("process"))
            _say(end, told)
    if off.end is not None:
        _say(off.end, told)


def _welcome(end: socket.socket, place: Place, present: dict[int, socket.socket]) -> None:
    """Adds who calls to those present. UserError where it cannot be one of them, CalledOff where it shall stop."""
    end.settimeout(5.0)
    hello = _read(end)
    number, processes = hello.get("process"), hello.get("processes")
    if not isinstance(number, int) or not isinstance(
        processes, int
    ):  # something else that looks for an open port
        end.close()
        return
    if hello.get("stopped"):
        raise CalledOff(number, end)
    told = ""
    if processes != place.num_processes:
        told = (
            f"process {number} was started as one of {processes}, process 0 as one of {place.num_processes}"
        )
    elif not 0 < number < processes or (number in present and not _has_hung_up(present[number])):
        told = (
            f"two processes say that they are number {number} of {processes}; each needs a number of its own"
        )
    if told:
        _say(end, {"refused": told, "code": USAGE})
        raise UserError(told, USAGE)
    present[number] = end


def _missing(place: Place, present: Sequence[int], timeout: float) -> str:
    missing = [number for number in range(1, place.num_processes) if number not in present]
    here = f"{processes([0, *present])} {'is' if not present else 'are'} there"
    return (
        f"the processes did not meet within {timeout:.0f} s: {processes(missing)} of {place.num_processes} did not "
        f"come, {here}; were all of them started, and can they reach {place.coordinator_address}?"
    )


def processes(numbers: Sequence[int]) -> str:
    """`process 3`, or `processes 1, 2, 5`."""
    if len(numbers) == 1:
        return f"process {numbers[0]}"
    shown = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"processes {shown}"


def _answer(place: Place, timeout: float) -> socket.socket:
    """The connection to process 0, once it has counted everybody."""
    host, port = _address(place)
    deadline, answered = time.monotonic() + timeout, False
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise UserError(
                f"the processes did not meet within {timeout:.0f} s (this is process {place.process_id} of "
                f"{place.num_processes}): "
                + (
                    f"{place.coordinator_address} answers, but not as process 0 of this run; does another program or "
                    "run use that port?"
                    if answered
                    else f"process 0 does not answer at {place.coordinator_address}; was it started, and is the port "
                    "open to this machine?"
                ),
                DATA,
            )
        try:
            end = socket.create_connection((host, port), timeout=min(5.0, left))
        except OSError:
            time.sleep(min(0.1, left))
            continue
        answered = True
        _say(end, {"process": place.process_id, "processes": place.num_processes})
        # A little more than it waits itself: it knows better who is missing.
        end.settimeout(left + 1.0)
        reply = _read(end)
        if "refused" in reply:
            raise UserError(f"{reply['refused']} (this is process {place.process_id})", int(reply["code"]))
        if "stopped" in reply:
            raise CalledOff(int(reply["stopped"]))
        if "all" in reply:
            return end
        end.close()  # it ended, or is none of us
        time.sleep(0.2)


def _address(place: Place) -> tuple[str, int]:
    host, _, port = place.coordinator_address.rpartition(":")
    return host.strip("[]"), int(port)


def _server(port: int, busy: float) -> socket.socket:
    deadline = time.monotonic() + busy
    while True:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(
                    ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
                )
            return socket.create_server(("", port), backlog=1024)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(
                    f"process 0 cannot listen on port {port}: {error.strerror or error}", USAGE
                ) from error
            if time.monotonic() > deadline:
                raise UserError(
                    f"port {port} of process 0 is in use on this machine, by another program or by a run that has "
                    "not ended; give another one, the same to all processes",
                    USAGE,
                ) from error
            time.sleep(0.2)


def _keep_alive(end: socket.socket) -> None:
    """A machine that is gone without a word is noticed after LOST seconds."""
    end.settimeout(None)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", LOST // 4), ("TCP_KEEPINTVL", LOST // 4), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):  # not on every system
            end.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _say(end: socket.socket, message: Message) -> None:
    with contextlib.suppress(OSError):
        end.sendall(json.dumps(message).encode() + b"\n")


def _read(end: socket.socket) -> Message:
    """A message, byte by byte so that nothing of what follows is taken; {} where none comes."""
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < LONGEST:
            byte = end.recv(1)
            if not byte:
                return {}
            line += byte
        found = json.loads(line)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _has_hung_up(end: socket.socket) -> bool:
    end.setblocking(False)
    try:
        return end.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        end.settimeout(5.0)


def _forget() -> None:
    for line in _open:
        line.forget()


os.register_at_fork(after_in_child=_forget)
