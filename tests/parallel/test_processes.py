"""Real processes on this machine, joined by gloo: they act as one, or end together and say why."""

import shutil
import signal
import time
from pathlib import Path

import pytest

from ramen_jax.training import checkpoint_files, metrics

SECONDS = (
    120  # within which a whole training ends: 3 to 6 s here, much more on a machine that does other things
)
SOON = 40  # within which all have ended once something went wrong: 1 to 7 s here


def ends(group, seconds=SECONDS):
    """[(exit status, what it said)] of processes, which must end in time."""
    deadline = time.monotonic() + seconds
    return [(one.wait(max(0.1, deadline - time.monotonic())), one.said()) for one in group]


def losses(workdir):
    return {line["step"]: line["loss"] for line in metrics.read(workdir) if "loss" in line}


def wait_for_steps(workdir, steps):
    path, deadline = workdir / metrics.FILE, time.monotonic() + SECONDS
    while metrics.steps_in(path) < steps:
        assert time.monotonic() < deadline, f"no {steps} steps in {SECONDS} s"
        time.sleep(0.02)


def wait_to_hear(process, words):
    deadline = time.monotonic() + SECONDS
    while words not in process.said().split("\n", 1)[-1]:
        assert time.monotonic() < deadline, process.said()
        time.sleep(0.02)


def wait_until_it_listens(process):
    """Until it has a handler of SIGTERM, as the kernel says."""
    deadline, handled = time.monotonic() + SECONDS, 0
    while not handled & 1 << signal.SIGTERM - 1:
        assert time.monotonic() < deadline, process.said()
        time.sleep(0.02)
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
        )
        handled = int(status["SigCgt"], 16)


def close(found, alone, most=1e-6):
    assert sorted(found) == sorted(alone)
    assert max(abs(found[step] - alone[step]) for step in alone) < most


@pytest.fixture(scope="module")
def alone(nursery, tmp_path_factory):
    """Losses of the same training in one process."""
    folder = tmp_path_factory.mktemp("alone")
    child = nursery.start("toy", [str(folder / "run")], folder / "log")
    assert child.wait(SECONDS) == 0, child.said()
    return losses(folder / "run")


@pytest.mark.parametrize(
    ("processes", "devices", "overrides"),
    [
        (4, 1, ["sharding.fsdp=2"]),
        (2, 1, ["sharding.data=1", "sharding.tensor=2"]),
        pytest.param(2, 1, ["sharding.data=2"], marks=pytest.mark.slow),
        pytest.param(2, 2, ["sharding.data=2", "sharding.tensor=2"], marks=pytest.mark.slow),
        (2, 2, ["sharding.slices=2", "sharding.across_slices=fsdp", "sharding.fsdp=2"]),
    ],
    ids=["four", "tensor", "data", "data and tensor", "slices"],
)
def test_processes_train_as_one(start, tmp_path, alone, processes, devices, overrides):
    """(Mutant: rows by process index instead of by mesh: the tensor axis trains its halves on different data, and the
    rows of slices that fsdp joins, which do not follow each other, are mixed up.)"""
    for status, said in ends(start(*overrides, processes=processes, devices=devices)):
        assert status == 0, said
        assert "done 30 of 30" in said
    close(losses(tmp_path / "run"), alone)


def test_a_run_goes_on_on_any_number_of_processes_and_any_mesh(start, tmp_path, alone):
    """4 -> 2 -> 1 -> 4, each stopped by SIGTERM to one of its processes. Nothing is done twice or left out.

    (Mutants: `any` of the signs -> this process's own: one saves, the others wait for the next step; rows of the
    resumed run by the old number of processes.)
    """
    workdir = tmp_path / "run"
    stages = [(4, 1, ["sharding.fsdp=2"], 2), (2, 2, ["sharding.tensor=2"], 0), (1, 1, [], 0)]
    for number, (processes, devices, overrides, signalled) in enumerate(stages):
        group = start(*overrides, processes=processes, devices=devices, TOY_SECONDS="0.1")
        before = 7 * number
        wait_for_steps(workdir, before + 3)
        group[signalled].send_signal(signal.SIGTERM)
        found = ends(group, SOON)
        saved = max(checkpoint_files.steps_in(workdir / "checkpoints"))
        for status, said in found:
            assert status == 0, said
            assert f"done {saved} of 30" in said
        assert before + 3 <= saved < 30
    assert all(status == 0 for status, _ in ends(start(processes=4)))
    close(losses(workdir), alone)


@pytest.mark.parametrize(
    ("during", "signalled"),
    [
        ("validating", [1]),
        ("saving", [0, 1]),
        ("compiling", [1]),
        pytest.param("validating", [0, 1], marks=pytest.mark.slow),
        pytest.param("compiling", [0, 1], marks=pytest.mark.slow),
    ],
    ids=["validating", "saving", "compiling", "validating, all", "compiling, all"],
)
def test_sigterm_while_something_long_is_under_way(start, tmp_path, alone, during, signalled):
    """Compiling: they leave, with nothing to save. Validating: it is cut short. (Mutants: a handler that waits for the
    main thread: the compilation ends first; validation to its end: 25 s; a signal that only its own process heeds.)"""
    workdir = tmp_path / "run"
    group = start("checkpoint.every=4", SLOW=during)
    wait_to_hear(group[1], during)
    began = time.monotonic()
    for number in signalled:
        group[number].send_signal(signal.SIGTERM)
    found = ends(group, SOON)
    assert time.monotonic() - began < 20
    assert [status for status, _ in found] == [0, 0], found
    saved = checkpoint_files.steps_in(workdir / "checkpoints")
    if during == "compiling":
        assert saved == []
        assert all("stopped by SIGTERM before the first step" in said for _, said in found)
        assert not (workdir / "training.lock").exists()
    else:
        assert all(f"done {saved[-1]} of 30" in said for _, said in found)
        assert saved[-1] == 4 if during == "validating" else 4 <= saved[-1] < 30
    assert all(status == 0 for status, _ in ends(start()))
    close(losses(workdir), alone)


@pytest.mark.parametrize(
    ("fault", "processes", "said_by_all"),
    [
        ("BAD_IN", 2, "4 of 76 samples (5.3%) could not be used, more than config.data.max_bad_share"),
        ("RAISES_IN", 2, "shard 7 cannot be read"),
        ("FULL_DISK_IN", 4, "was not saved"),
        ("LATE_DISK_IN", 2, "No space left on device"),
    ],
    ids=["bad samples", "data", "full disk", "late full disk"],
)
def test_an_error_of_one_is_told_by_all(start, tmp_path, fault, processes, said_by_all):
    """(Mutants: the signs without their problem: process 0 waits; samples counted by each for itself: 4 of 19; a save
    that is looked at only when the next one begins: step 10; no line: 30 s of silence, then an abort.)"""
    found = ends(start(processes=processes, **{fault: "1"}), SOON)
    assert [status for status, _ in found] == [1] * processes, found
    for _, said in found:
        assert said_by_all in said
        # A thread of the save that failed may still say what it met.
        assert "Traceback" not in said or fault == "FULL_DISK_IN"
    if fault != "BAD_IN":
        assert all("process 1" in said for number, (_, said) in enumerate(found) if number != 1)
    if fault == "LATE_DISK_IN":
        assert metrics.steps_in(tmp_path / "run" / metrics.FILE) < 10
    assert not (tmp_path / "run" / "training.lock").exists()


@pytest.mark.parametrize("killed", [0, 2])
def test_a_killed_process_is_missed_at_once_and_named_by_all_others(start, tmp_path, alone, killed):
    """(Mutants: JAX's heartbeat alone: 30 s, and then an abort that names nobody; aborts that are not held: JAX, which
    misses process 0 at once, is first on a busy machine.)"""
    group = start(processes=4, TOY_SECONDS="0.1", SLOW="hearing")
    wait_for_steps(tmp_path / "run", 7)
    group[killed].send_signal(signal.SIGKILL)
    began = time.monotonic()
    found = ends(group, SOON)
    assert time.monotonic() - began < 20
    assert found[killed][0] == -signal.SIGKILL
    for number, (status, said) in enumerate(found):
        if number != killed:
            assert status == 1, said
            assert f"process {killed} is gone" in said
    assert all(status == 0 for status, _ in ends(start()))
    close(losses(tmp_path / "run"), alone)


def test_devices_that_hang_are_given_up_by_all(start):
    """(Mutant: nothing watches the devices: all wait for ever.)"""
    found = ends(start(STUCK_IN="1"), SOON)
    assert [status for status, _ in found] == [1, 1], found
    told = "step 12 on the devices did not end within 3 s"
    assert "waiting for step 12 on the devices since 1 s" in found[1][1]
    assert f"error: {told}" in found[1][1]
    assert f"error: process 1 failed: {told}" in found[0][1]


def test_ctrl_c_in_one_ends_all(start, tmp_path):
    """(Mutant: an interruption leaves without a word: JAX waits 20 s for the others, who wait for it.)"""
    group = start(TOY_SECONDS="0.1")
    wait_for_steps(tmp_path / "run", 2)
    group[1].send_signal(signal.SIGINT)
    found = ends(group, SOON)
    assert [status for status, _ in found] == [130, 130], found
    assert "error: process 1 failed: interrupted" in found[0][1]
    assert "Traceback" not in found[1][1]


def test_a_process_that_does_not_come_is_named_by_the_others(start):
    found = ends(start(processes=4, missing=[2], MEETING="2"), SOON)
    assert [status for status, _ in found] == [1] * 3
    assert all("process 2 of 4 did not come, processes 0, 1, 3 are there" in said for _, said in found)


@pytest.mark.parametrize("signalled", [0, 1])
def test_sigterm_before_all_have_come_ends_those_who_wait(start, signalled):
    """Process 2 of 3 never comes. (Mutant: nobody is told: the other waits for a minute, and calls it an error.)"""
    group = start(processes=3, missing=[2])
    for process in group:
        wait_until_it_listens(process)
    group[signalled].send_signal(signal.SIGTERM)
    found = ends(group, SOON)
    assert [status for status, _ in found] == [0, 0], found
    assert "stopped by SIGTERM before the first step" in found[signalled][1]
    assert f"process {signalled} was stopped by SIGTERM" in found[1 - signalled][1]


def test_different_configurations_are_told_by_all(start, tmp_path):
    """(Mutant: process 0 alone compares: process 1 goes on.)"""
    for status, said in ends(start(each=[[], ["optimizer.learning_rate=0.02"]]), SOON):
        assert status == 2, said
        assert "config.optimizer.learning_rate: 0.01 in process 0, 0.02 in process 1" in said
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_not_shared_is_told_by_all(start, tmp_path):
    """(Mutant: no look: each process but the first trains on, and no checkpoint is ever whole.)"""
    for status, said in ends(start(processes=4, of_each={1: {"OWN_WORKDIR": "1"}}), SOON):
        assert status == 2, said
        assert "is not the same folder in process 0 and in process 1; give one that all hosts share" in said
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("damage", [pytest.param("truncated", marks=pytest.mark.slow), "bit flipped"])
def test_a_damaged_newest_checkpoint_is_passed_over_by_all(start, tmp_path, alone, damage):
    """The choice is process 0's. (Mutant: each chooses for itself: BLIND_IN restores nothing, and all wait.)"""
    workdir = tmp_path / "run"
    assert [status for status, _ in ends(start("train.stop_at=12"))] == [0, 0]
    newest = workdir / "checkpoints" / "12"
    file = max(
        (path for path in (newest / "params").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content[: len(content) // 2] if damage == "truncated" else content)
    found = ends(start(BLIND_IN="1"))
    assert [status for status, _ in found] == [0, 0], found
    assert "checkpoint" in found[0][1]
    assert "is damaged" in found[0][1]
    assert [path.name for path in (workdir / "checkpoints_damaged").iterdir()] == ["12"]
    close(losses(workdir), alone)


@pytest.mark.parametrize(
    ("lost", "processes", "taken"),
    [
        ("", 2, "on its own disk after step"),
        ("process1_of_2", 2, "checkpoints/10"),
        pytest.param("", 1, "checkpoints/10", marks=pytest.mark.slow),
    ],
    ids=["all there", "one lost", "fewer processes"],
)
def test_local_saves_are_taken_by_all_or_by_none(start, tmp_path, alone, lost, processes, taken):
    """Killed between two checkpoints. (Mutant: each takes its own: process 0 goes on from step 12, 1 from step 10.)"""
    keep = (f"checkpoint.local={tmp_path / 'local'}", "checkpoint.local_every=2", "checkpoint.every=10")
    group = start(*keep, "sharding.fsdp=2", TOY_SECONDS="0.1")
    deadline = time.monotonic() + SECONDS
    while len(list((tmp_path / "local").glob("*/process*_of_2/14/files.json"))) < 2:
        assert time.monotonic() < deadline, group[0].said()
        time.sleep(0.02)
    group[1].send_signal(signal.SIGKILL)
    ends(group, SOON)
    for folder in (tmp_path / "local").glob(f"*/{lost}") if lost else ():
        shutil.rmtree(folder)
    for step in checkpoint_files.steps_in(tmp_path / "run" / "checkpoints"):
        if step > 10:  # a machine that does other things: it was killed later
            shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    again = start(*keep, "sharding.fsdp=2" if processes > 1 else "sharding.fsdp=1", processes=processes)
    found = ends(again)
    assert [status for status, _ in found] == [0] * processes, found
    assert taken in next(line for line in found[0][1].splitlines() if line.startswith("resuming from"))
    close(losses(tmp_path / "run"), alone)
