"""One training per workdir: who holds it is named, and nobody has to clean up after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ramen_jax.console import UserError
from ramen_jax.training import lock, loop
from tests.training import toy


def test_a_second_holder_is_refused_and_told_of_the_first(tmp_path):
    with (
        lock.held(tmp_path),
        pytest.raises(UserError, match=rf"in use by another training: process {os.getpid()} on .*started 20"),
    ):
        lock.held(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []
    with lock.held(tmp_path):
        pass


def test_a_training_that_fails_gives_the_workdir_back(tmp_path):
    with pytest.raises(UserError):
        loop.run(toy.job(broken=1), tmp_path)
    assert not (tmp_path / lock.LOCK).exists()


def waiting_for(path, process):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_running_training_is_named_and_a_dead_one_is_in_nobodys_way(tmp_path, repository, how):
    """(Mutants: a lock that outlives a kill; a lock that SIGTERM leaves behind.)"""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.training.toy", str(tmp_path)],
        cwd=repository,
        env={**os.environ, "TOY_SECONDS": "0.2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        waiting_for(tmp_path / "metrics.jsonl", process)
        with pytest.raises(UserError, match=f"in use by another training: process {process.pid} on"):
            loop.run(toy.job(), tmp_path)
    finally:
        process.send_signal(how)
        process.wait()
    assert (tmp_path / lock.LOCK).exists() == (how == signal.SIGKILL)
    assert loop.run(toy.job(), tmp_path).complete


def of_another_machine(folder, seconds_ago: float):
    path = folder / lock.LOCK
    path.write_text(
        json.dumps({"host": "node7", "machine": "node7 x", "pid": 1, "since": "then", "token": "t"})
    )
    os.utime(path, (time.time() - seconds_ago,) * 2)


def test_on_another_machine_the_heartbeat_tells(tmp_path):
    of_another_machine(tmp_path, 20)
    with pytest.raises(UserError, match=r"process 1 on node7, started then, last seen 20 s ago"):
        lock.held(tmp_path).__enter__()
    of_another_machine(tmp_path, 3600)
    told = []
    with lock.held(tmp_path, told.append):
        assert json.loads((tmp_path / lock.LOCK).read_text())["pid"] == os.getpid()
    assert told == ["took over the workdir from a training that has ended: process 1 on node7, started then"]


def test_a_process_number_that_was_given_again_is_another_process(tmp_path):
    mine = {**lock.process(), "began": "1", "token": "t"}
    (tmp_path / lock.LOCK).write_text(json.dumps(mine))
    with lock.held(tmp_path):
        pass


def test_a_holder_that_lost_its_lock_stops(tmp_path, monkeypatch):
    """As after hours of suspension. (Mutant: both go on.)"""
    monkeypatch.setattr(lock, "BEAT", 0.02)

    def robbed(start):
        for batch in toy.batches(start):
            if batch.step == 7:
                of_another_machine(tmp_path, 0)
                time.sleep(0.2)
            yield batch

    with pytest.raises(UserError, match=r"was taken over by process 1 on node7"):
        loop.run(toy.job()._replace(batches=robbed), tmp_path)
    assert json.loads((tmp_path / lock.LOCK).read_text())["host"] == "node7"


def test_of_many_contenders_one_wins(tmp_path, repository):
    """A stale lock is taken over by one of eight. (Mutant: whoever finds it stale removes what lies there by then.)"""
    of_another_machine(tmp_path, 3600)
    code = (
        "import sys, time; from pathlib import Path; from ramen_jax.training import lock\n"
        "while time.time() < float(sys.argv[2]): pass\n"
        "try:\n"
        "    with lock.held(Path(sys.argv[1]), lambda _: None): print('won', flush=True); sys.stdin.read()\n"
        "except ValueError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(time.time() + 2)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    contenders = [subprocess.Popen(command, cwd=repository, **pipes) for _ in range(8)]
    deadline = time.monotonic() + 60  # the winner holds the lock until all others have been refused
    while sum(process.poll() is None for process in contenders) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    answers = [process.communicate()[0] for process in contenders]
    assert sorted(answer == "won\n" for answer in answers) == [False] * 7 + [True], answers
    assert sum("in use by another training" in answer for answer in answers) == 7
