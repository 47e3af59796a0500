"""Real processes on this machine, joined by gloo: they act as one, or end together and say why."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from ramen_jax.training import checkpoint_files, metrics

SECONDS = 240  # within which everything here must have ended, on a busy machine too


@pytest.fixture
def start(tmp_path, repository):
    """start(*overrides, processes=2, each=[...], **environment) -> processes of a toy training in tmp_path."""
    started = []

    def begin(*overrides, processes=2, each=None, devices=1, workdir=tmp_path, **environment):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        group = []
        for number in range(processes):
            variables = {
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                **environment,
            }
            if processes > 1:
                variables |= {
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": str(processes),
                    "JAX_PROCESS_ID": str(number),
                    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
                }
            mine = overrides + tuple(each[number] if each else ())
            command = [sys.executable, "-m", "tests.parallel.toy_process", str(workdir), *mine]
            group.append(
                subprocess.Popen(
                    command,
                    cwd=repository,
                    env=variables,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
        started.extend(group)
        return group

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ends(group):
    """[(exit status, stdout, stderr)] of processes, which must end in time."""
    deadline = time.monotonic() + SECONDS
    found = []
    for process in group:
        out, errors = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
        found.append((process.returncode, out, errors))
    return found


def losses(workdir):
    return {line["step"]: line["loss"] for line in metrics.read(workdir) if "loss" in line}


def wait_for_steps(workdir, steps):
    path, deadline = workdir / metrics.FILE, time.monotonic() + SECONDS
    while not path.exists() or path.read_text().count("\n") < steps:
        assert time.monotonic() < deadline, f"no {steps} steps in {SECONDS} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, repository):
    """Losses of the same training in one process."""
    workdir = tmp_path_factory.mktemp("alone")
    command = [sys.executable, "-m", "tests.parallel.toy_process", str(workdir)]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    subprocess.run(command, cwd=repository, env=environment, check=True, capture_output=True, timeout=SECONDS)
    return losses(workdir)


@pytest.mark.parametrize(
    ("devices", "overrides"),
    [
        pytest.param(1, ["sharding.data=2"], marks=pytest.mark.slow),
        (1, ["sharding.data=1", "sharding.tensor=2"]),
        pytest.param(2, ["sharding.data=2", "sharding.tensor=2"], marks=pytest.mark.slow),
    ],
    ids=["data", "tensor", "data and tensor"],
)
def test_two_processes_train_as_one(start, tmp_path, alone, devices, overrides):
    """(Mutant: rows by process index instead of by mesh: the tensor axis trains its halves on different data.)"""
    for status, out, errors in ends(start(*overrides, devices=devices)):
        assert status == 0, errors
        assert "done 30 of 30" in out
    found = losses(tmp_path)
    assert sorted(found) == list(range(30))
    assert max(abs(found[step] - alone[step]) for step in alone) < 1e-6


@pytest.mark.parametrize(
    "signalled",
    [pytest.param([0], marks=pytest.mark.slow), [1], pytest.param([0, 1], marks=pytest.mark.slow)],
    ids=["first", "second", "both"],
)
def test_sigterm_to_any_saves_one_step_and_the_run_goes_on_from_there(start, tmp_path, alone, signalled):
    """(Mutant: `any(each.stop ...)` -> this process's own: one saves, the other waits for the next step for ever.)"""
    group = start(TOY_SECONDS="0.1")
    wait_for_steps(tmp_path, 3)
    for number in signalled:
        group[number].send_signal(signal.SIGTERM)
    found = ends(group)
    assert [status for status, _, _ in found] == [0, 0], found
    saved = max(checkpoint_files.steps_in(tmp_path / "checkpoints"))
    assert 3 <= saved < 30
    assert all(f"done {saved} of 30" in out for _, out, _ in found)
    assert all(status == 0 for status, _, _ in ends(start()))
    again = losses(tmp_path)
    assert sorted(again) == list(range(30))
    assert max(abs(again[step] - alone[step]) for step in alone) < 1e-6


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("BAD_IN", "could not be used, more than config.data.max_bad_share"),
        ("RAISES_IN", "shard 7 cannot be read"),
        pytest.param("FULL_DISK_IN", "No space left on device", marks=pytest.mark.slow),
    ],
)
def test_an_error_of_one_is_told_by_all(start, variable, said):
    """(Mutants: the vector without its problem: process 0 waits; no watcher: 30 s of silence, then an abort.)"""
    found = ends(start(**{variable: "1"}))
    assert [status for status, _, _ in found] == [1, 1], found
    for _, _, errors in found:
        assert said in errors
        assert "Traceback" not in errors
    assert "process 1" in found[0][2]


def test_different_configurations_are_told_by_all(start, tmp_path):
    """(Mutant: process 0 alone compares: process 1 goes on.)"""
    for status, _, errors in ends(start(each=[[], ["optimizer.learning_rate=0.02"]])):
        assert status == 2, errors
        assert "config.optimizer.learning_rate: 0.01 in process 0, 0.02 in process 1" in errors
    assert not (tmp_path / metrics.FILE).exists()
