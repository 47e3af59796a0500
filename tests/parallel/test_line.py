"""The roll call and the line, between threads: who is missing is named, who hangs up is heard of."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ramen_jax.console import DATA, USAGE, UserError
from ramen_jax.parallel import join, line
from ramen_jax.parallel.line import Place


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Heard(list):
    """What a process has heard from the others."""

    def wait(self, count=1, seconds=5.0):
        deadline = time.monotonic() + seconds
        while len(self) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return list(self)


def meet(port, places, timeout=10.0):
    """Number -> (its line or its error, what it hears), of (number, of how many)."""
    heard = [Heard() for _ in places]

    def one(place, hears):
        try:
            return line.meet(Place(f"localhost:{port}", place[1], place[0]), timeout, hears.append)
        except (UserError, line.CalledOff) as error:
            return error

    with ThreadPoolExecutor(len(places)) as pool:
        return list(zip(pool.map(one, places, heard), heard, strict=True))


def test_a_process_that_hangs_up_is_heard_of_by_all_the_others(port):
    """(Mutant: process 0 does not pass it on: 1 and 3 wait for ever.)"""
    found = meet(port, [(number, 4) for number in range(4)])
    lines = [ours for ours, _ in found]
    lines[2]._ends[0].shutdown(socket.SHUT_RDWR)  # as the kernel does for a process that is killed
    for number in (0, 1, 3):
        assert found[number][1].wait() == [{"what": line.GONE, "process": 2}]
    closing = [threading.Thread(target=lines[number].close) for number in (0, 1, 3)]
    for one in closing:
        one.start()
    for one in closing:
        one.join(5.0)
        assert not one.is_alive()
    assert all(len(heard) == 1 for _, heard in found if _ is not lines[2])


def test_what_one_says_all_the_others_hear_and_who_says_goodbye_is_not_missed(port):
    """(Mutant: LEAVING is not told apart from a death: an orderly end looks like one.)"""
    found = meet(port, [(number, 3) for number in range(3)])
    lines = [ours for ours, _ in found]
    lines[1].tell(line.FAILED, error="the disk is full", code=1)
    for number in (0, 2):
        (message,) = found[number][1].wait()
        assert message == {"what": line.FAILED, "process": 1, "error": "the disk is full", "code": 1}
    lines[2].close()
    lines[1].close()
    lines[0].close()
    time.sleep(0.1)
    assert [len(heard) for _, heard in found] == [1, 0, 1]


def test_process_0_that_dies_is_heard_of_by_all(port):
    found = meet(port, [(number, 3) for number in range(3)])
    for end in list(found[0][0]._ends.values()):
        end.shutdown(socket.SHUT_RDWR)
    assert found[1][1].wait() == found[2][1].wait() == [{"what": line.GONE, "process": 0}]


def test_who_did_not_come_is_named_by_all_who_did(port):
    """(Mutant: process 0 alone says it: the others say that it does not answer.)"""
    found = [error for error, _ in meet(port, [(0, 5), (2, 5), (4, 5)], timeout=1.0)]
    for error in found:
        assert isinstance(error, UserError)
        assert (
            "did not meet within 1 s: processes 1, 3 of 5 did not come, processes 0, 2, 4 are there"
            in str(error)
        )
        assert error.code == DATA


def test_process_0_that_did_not_come_is_named(port):
    ((error, _),) = meet(port, [(1, 2)], timeout=0.5)
    assert "process 0 does not answer at localhost:" in str(error)


def test_a_port_that_something_else_holds_is_told_on_both_sides(port):
    """(Mutant: no roll call: two runs' services share a port, which gRPC allows, and take each other's processes.)"""
    with socket.create_server(("", port), backlog=8):
        found = [error for error, _ in meet(port, [(0, 2), (1, 2)], timeout=1.0)]
    assert f"port {port} of process 0 is in use on this machine" in str(found[0])
    assert found[0].code == USAGE
    assert "answers, but not as process 0 of this run" in str(found[1])


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ([(0, 3), (1, 3), (1, 3)], "two processes say that they are number 1 of 3"),
        ([(0, 3), (1, 2)], "process 1 was started as one of 2, process 0 as one of 3"),
    ],
)
def test_processes_that_cannot_be_of_one_run_are_told(port, places, said):
    found = [error for error, _ in meet(port, places, timeout=1.5)]
    assert said in str(found[0])
    assert any(said in str(error) for error in found[1:])


def test_a_process_that_came_and_was_killed_may_come_again(port):
    """(Mutant: whoever came once counts as there: the run begins without it.)"""
    with ThreadPoolExecutor(2) as pool:
        run = pool.submit(meet, port, [(0, 4), (2, 4)])
        killed = connection(port)
        killed.sendall(b'{"process": 1, "processes": 4}\n')
        time.sleep(0.3)
        killed.close()
        last = pool.submit(meet, port, [(3, 4)])
        time.sleep(0.5)
        assert not run.done()
        found = [*meet(port, [(1, 4)]), *run.result(), *last.result()]
    assert all(isinstance(ours, line.Line) for ours, _ in found)


@pytest.mark.parametrize("stopped", [0, 2])
def test_a_meeting_that_one_calls_off_is_over_for_all_also_for_who_comes_later(port, stopped, monkeypatch):
    """(Mutants: those who come later wait for process 0, which has left; those who are there are not told.)"""
    monkeypatch.setattr(line, "LAST", 3.0)
    with ThreadPoolExecutor(2) as pool:
        run = pool.submit(meet, port, [(0, 4), (1, 4)])
        time.sleep(0.3)
        calling = pool.submit(line.call_off, Place(f"localhost:{port}", 4, stopped))
        time.sleep(0.3)
        found = [*meet(port, [(3, 4)], timeout=2.0), *run.result()]
        calling.result()
    assert [error.number for error, _ in found] == [stopped] * 3


@pytest.mark.parametrize("address", ["node0:65536", "node0:0", "node0:99999999", "node0", ":1234", "node0:x"])
def test_an_address_that_cannot_be_is_refused(address):
    """(Mutant: any number is a port: process 0 ends with a traceback, the others wait.)"""
    with pytest.raises(UserError, match=r"--coordinator is .*expected") as refused:
        join.place_of((address, "2", "0"), {})
    assert refused.value.code == USAGE
    assert join.place_of(("node0:65535", "2", "0"), {}) == Place("node0:65535", 2, 0)


def connection(port):
    deadline = time.monotonic() + 5.0
    while True:
        try:
            return socket.create_connection(("localhost", port))
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
