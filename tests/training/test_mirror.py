"""A workdir in a bucket (S3 of this machine): trained, stopped, gone on from elsewhere, contended for, out of reach."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from ramen_jax import api, storage
from ramen_jax import checkpoint as command
from ramen_jax.console import UserError
from ramen_jax.training import bucket_lock, checkpoint, checkpoint_files, doctor, loop, metrics, mirror
from ramen_jax.training.lock import LOCK
from tests.buckets import s3
from tests.training import toy

__all__ = ["s3"]

OLD = toy.Path(__file__).resolve().parents[1] / "golden" / "old" / "workdir"


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(mirror, "EVERY", 0.05)
    monkeypatch.setattr(bucket_lock.BucketLock.__init__, "__defaults__", (0.2, 5.0))
    host(monkeypatch, tmp_path, "first")


def host(monkeypatch, tmp_path, name):
    """From here on, this is another machine: its disk is empty."""
    monkeypatch.setenv(storage.SCRATCH, str(tmp_path / name))


def train(url, *overrides, steps=15):
    said = []
    with mirror.opened(storage.place(url), 0, said.append) as (folder, its_mirror):
        job = toy.job(toy.config(*overrides), steps=steps)._replace(mirror=its_mirror)
        loop.run(job, folder)
    return said


def losses(lines):
    return [(line["step"], line["loss"]) for line in map(json.loads, lines.decode().splitlines())]


def undisturbed(tmp_path, steps=15):
    loop.run(toy.job(toy.config(), steps=steps), tmp_path / "local")
    return losses((tmp_path / "local" / metrics.FILE).read_bytes())


def test_a_run_goes_on_from_the_bucket_on_another_machine(s3, tmp_path, monkeypatch):
    """Bit for bit. (Mutants: metrics or config.json stay behind; checkpoints that are kept no longer stay there.)"""
    url = s3()
    bucket = storage.place(url)
    train(url, "train.stop_at=7", "checkpoint.every=3")
    assert bucket.steps() == [6, 7]
    assert bucket.read(LOCK) is None
    there = bucket.files()
    for name in ("config.json", "metrics.jsonl", "runs.jsonl", "parameters.txt", "saved.json"):
        assert there.get(name), name
    host(monkeypatch, tmp_path, "second")
    train(url, "train.stop_at=7", "checkpoint.every=3")  # nothing to do
    host(monkeypatch, tmp_path, "third")
    train(url, "checkpoint.every=3")
    assert bucket.steps()[-1] == 15
    assert len(bucket.steps()) <= 3  # the newest two, and the best
    assert {int(name.split("/")[1]) for name in bucket.files("checkpoints")} == set(bucket.steps())
    assert losses(bucket.read(metrics.FILE)) == undisturbed(tmp_path)


def test_a_checkpoint_in_a_bucket_is_read_where_one_is(s3, tmp_path, monkeypatch, capsys):
    """(Mutant: the copy is named that was looked at.)"""
    url = s3()
    train(url, "train.stop_at=10")
    host(monkeypatch, tmp_path, "reader")
    here = storage.checkpoint(url)
    assert checkpoint.load(here).meta["step"] == 10
    assert checkpoint.load(storage.checkpoint(f"{url}/checkpoints/5")).meta["step"] == 5
    with pytest.raises(storage.PathError, match=r"no complete checkpoint at .*; there: 5, 10"):
        storage.checkpoint(f"{url}/checkpoints/6")
    capsys.readouterr()
    command.run(["verify", url])
    assert capsys.readouterr().out == "step 5: whole\nstep 10: whole\n"
    command.run(["copy", f"{url}/checkpoints/5", "--output", str(tmp_path / "copy")])
    assert [line["step"] for line in metrics.read(tmp_path / "copy")] == list(range(5))
    capsys.readouterr()
    command.run(["inspect", url, "--step", "10"])
    told = capsys.readouterr().out
    sizes = sum(storage.place(url).files("checkpoints/10").values())
    assert f"step 10: {sizes / 1024:.3g} KiB" in told
    assert f"complete, {url}/checkpoints/10\n" in told  # and not a copy that is gone
    assert "corpus toy: s2" in told
    assert "step 5" not in told
    with pytest.raises(UserError, match=r"no complete checkpoint at .*; there: 5, 10"):
        command.run(["inspect", f"{url}/checkpoints/7"])
    bucket = storage.place(url)
    bucket.write(next(name for name in bucket.files("checkpoints/10") if "params/d/" in name), b"damage")
    with pytest.raises(
        UserError, match=f"^{url}: 1 of 2 checkpoints damaged.*the newest whole one is step 5"
    ):
        command.run(["verify", url])
    with pytest.raises(storage.PathError, match=r"no complete checkpoint at .*; there: none"):
        storage.checkpoint(s3())


def test_a_checkpoint_is_copied_into_a_bucket_and_goes_on_there(s3, tmp_path, monkeypatch):
    """(Mutants: another configuration is mixed with; the list of hashes goes first; a lock is not looked at.)"""
    loop.run(toy.job(toy.config("train.stop_at=10"), steps=15), tmp_path / "run")
    url = s3()
    bucket = storage.place(url)
    order = []
    with monkeypatch.context() as patched:
        upload = storage.Bucket.upload
        patched.setattr(
            storage.Bucket, "upload", lambda self, files: upload(self, (order.extend(f := list(files)), f)[1])
        )
        command.run(["copy", str(tmp_path / "run"), "--step", "5", "--output", url])
    assert order[-1][1] == "checkpoints/5/files.json"
    assert losses(bucket.read(metrics.FILE))[-1][0] == 4
    with pytest.raises(UserError, match="checkpoints/5 exists"):
        command.run(["copy", str(tmp_path / "run"), "--step", "5", "--output", url])
    train(url)
    assert losses(bucket.read(metrics.FILE)) == undisturbed(tmp_path)
    other = s3()
    train(other, "seed=43", "train.stop_at=5")
    before = storage.place(other).files()
    with pytest.raises(UserError, match=r"another configuration .*\n.*seed"):
        command.run(["copy", str(tmp_path / "run"), "--output", other])
    held = bucket_lock.BucketLock(storage.place(other), print)
    with pytest.raises(UserError, match="a training works in"):
        command.run(["copy", str(tmp_path / "run"), "--output", other])
    held.release()
    assert storage.place(other).files() == before
    foreign = storage.place(s3())
    foreign.write("notes.txt", b"mine")
    with pytest.raises(UserError, match="neither empty nor a workdir"):
        command.run(["copy", str(tmp_path / "run"), "--output", str(foreign)])


def test_the_python_door_opens_a_bucket(s3):
    url = s3()
    bucket = storage.place(url)
    files = [path for path in OLD.rglob("*") if path.is_file()]
    bucket.upload((path, str(path.relative_to(OLD))) for path in files)
    bucket.write("checkpoints/2/files.json", b'{"sha256": {}}')
    assert api.load(url).facts["step"] == 2


def test_one_training_at_a_time(s3, tmp_path):
    """(Mutants: a lock that is young is taken over; one that is old is not.)"""
    url = s3()
    bucket, said = storage.place(url), []
    first = bucket_lock.BucketLock(bucket, said.append, beat=0.2)
    with pytest.raises(UserError, match=r"in use by another training: process \d+ on .*wait for it"):
        train(url)
    time.sleep(1.5)
    said.clear()
    second = bucket_lock.BucketLock(
        bucket, said.append, beat=60, stale=-1.0
    )  # as if the first were long silent
    assert "took over the workdir from a training that has ended" in said[0]
    deadline = time.monotonic() + 20
    while not first.lost:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "two trainings must not share a workdir" in first.lost
    first.release()  # which is no longer its own
    assert json.loads(bucket.read(LOCK))["token"] == second._mine["token"]
    second.release()
    assert bucket.files() == {}


def test_a_killed_training_is_waited_for_and_followed(s3):
    """(Mutants: its young lock is refused; it is taken over while it lives.)"""
    url, said = s3(), []
    killed = bucket_lock.BucketLock(storage.place(url), said.append)
    killed._over.set()  # and no beat from here on
    began = time.monotonic()
    bucket_lock.BucketLock(storage.place(url), said.append).release()
    assert 3 < time.monotonic() - began < 30
    assert "looking whether it lives" in said[0]
    assert "took over the workdir from a training that has ended" in said[1]


def test_of_contenders_for_a_stale_lock_one_gets_it(s3):
    bucket = storage.place(s3())
    bucket.write(LOCK, b'{"token": "dead", "host": "h", "pid": 1, "since": "then"}')
    time.sleep(2.1)
    got = []

    def contend():
        try:
            got.append(bucket_lock.BucketLock(bucket, lambda sentence: None, beat=0.2, stale=1.5))
        except UserError:
            return

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    got[0].release()


def test_a_run_whose_lock_was_taken_ends_and_writes_no_more(s3, tmp_path, monkeypatch):
    url = s3()
    monkeypatch.setenv("TOY_SECONDS", "0.1")
    theirs = json.dumps({"token": "other", "host": "elsewhere", "pid": 1, "since": "now"}).encode()
    threading.Timer(1.0, lambda: storage.place(url).write(LOCK, theirs)).start()
    with pytest.raises(UserError, match=r"taken over by process 1 on elsewhere.*must not share"):
        train(url, steps=500)
    assert storage.place(url).read(LOCK) == theirs


def out_of_reach(*arguments, **options):
    raise OSError("s3://bucket: was not written (no route to host)")


def test_a_bucket_out_of_reach_costs_nothing_that_was_saved(s3, tmp_path, monkeypatch):
    """The training goes on; the next start on this machine brings what is newer. (Mutant: the bucket always wins.)"""
    url = s3()
    bucket = storage.place(url)
    train(url, "train.stop_at=5", steps=25)
    with monkeypatch.context() as patched:
        patched.setattr(storage.Bucket, "upload", out_of_reach)
        patched.setenv("TOY_SECONDS", "0.1")
        said = []
        with (
            pytest.raises(UserError, match=r"did not reach .*the same command on this machine goes on"),
            mirror.opened(bucket, 0, said.append) as (folder, its_mirror),
        ):
            loop.run(toy.job(toy.config("train.stop_at=20"), steps=25)._replace(mirror=its_mirror), folder)
        assert len([line for line in said if "training goes on" in line]) == 1
    assert bucket.steps() == [5]
    said = train(url, steps=25)
    assert any("newer checkpoint (step 20)" in line for line in said)
    assert bucket.steps()[-1] == 25
    assert losses(bucket.read(metrics.FILE)) == undisturbed(tmp_path, 25)


def test_what_is_left_of_another_run_is_put_aside(s3, tmp_path):
    """(Mutant: a run that was removed from the bucket comes back from the local folder.)"""
    url = s3()
    bucket = storage.place(url)
    train(url, "train.stop_at=10")
    bucket.remove(bucket.files())
    said = train(url, "seed=43", "train.stop_at=5")
    assert bucket.steps() == [5]
    assert json.loads(bucket.read("config.json"))["seed"] == 43
    assert any("put aside" in line for line in said)
    (aside,) = (tmp_path / "first").rglob("*.before_*")
    assert checkpoint_files.compare(aside / "checkpoints" / "10") == ("", True)


def test_a_damaged_checkpoint_in_a_bucket_is_passed_over(s3, tmp_path, monkeypatch, capsys):
    """And the step, once it is written anew, replaces it. (Mutant: a step that the bucket has is not copied again.)"""
    monkeypatch.setattr(mirror, "EVERY", 60.0)  # what comes and goes in between is seen at the end alone
    url = s3()
    bucket = storage.place(url)
    train(url, "train.stop_at=10")
    name = max(bucket.files("checkpoints/10"), key=lambda name: "params/d/" in name)
    bucket.write(name, b"not what was written")
    host(monkeypatch, tmp_path, "second")
    train(url)
    assert "checkpoints/10 is damaged" in capsys.readouterr().out
    assert bucket.steps()[-1] == 15
    assert checkpoint.load(storage.checkpoint(f"{url}/checkpoints/10")).meta["step"] == 10  # written anew
    assert any(other.startswith("checkpoints_damaged/10/") for other in bucket.files())
    assert losses(bucket.read(metrics.FILE)) == undisturbed(tmp_path)


def test_a_checkpoint_without_its_list_of_hashes_is_none(s3, tmp_path, monkeypatch):
    """As a host leaves it that died while it copied."""
    url = s3()
    bucket = storage.place(url)
    train(url, "train.stop_at=10")
    bucket.remove(["checkpoints/10/files.json"])
    host(monkeypatch, tmp_path, "second")
    said = []
    with mirror.opened(bucket, 0, said.append) as (folder, _):
        assert checkpoint_files.steps_in(folder / "checkpoints") == [5]
    train(url)
    assert losses(bucket.read(metrics.FILE)) == undisturbed(tmp_path)


PROCESS = """
import jax
import sys
from ramen_jax import console, storage
from ramen_jax.parallel import agree, join
from ramen_jax.training import loop, mirror
from tests.training import toy

def run():
    join.join()
    with agree.failing_together():
        with mirror.opened(storage.place(sys.argv[1]), jax.process_index()) as (folder, its):
            loop.run(toy.job(toy.config(*sys.argv[2:]), steps=15)._replace(mirror=its), folder)
            agree.together("the end")

console.main(run)
"""


def test_hosts_that_share_no_disk_train_in_a_bucket(s3, tmp_path, repository):
    """Two processes with a disk each, on a mesh that spreads parameters over both, stop and go on; then one alone."""
    url = s3()
    bucket = storage.place(url)

    def together(attempt, *overrides):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        group = [
            subprocess.Popen(
                [sys.executable, "-c", PROCESS, url, "sharding.fsdp=2", "sharding.data=1", *overrides],
                cwd=repository,
                env={
                    **os.environ,
                    storage.SCRATCH: str(tmp_path / f"host{number}_{attempt}"),
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": "2",
                    "JAX_PROCESS_ID": str(number),
                    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
                },
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for number in range(2)
        ]
        try:
            for process in group:
                out, errors = process.communicate(timeout=240)
                assert process.returncode == 0, out + errors
        finally:
            for process in group:
                process.kill()

    together(0, "train.stop_at=10")
    assert bucket.steps() == [5, 10]
    together(1)
    assert bucket.steps()[-1] == 15
    found, expected = losses(bucket.read(metrics.FILE)), undisturbed(tmp_path)
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-6)
    shutil.rmtree(tmp_path / "host0_1")
    assert checkpoint.load(storage.checkpoint(url)).meta["step"] == 15


def test_the_doctor_looks_at_a_bucket(s3, capsys, monkeypatch):
    url = s3()
    assert doctor.run(None, storage.place(url), None) == 0
    assert f"ok     bucket: {url} can be written and locked" in capsys.readouterr().out
    assert storage.place(url).files() == {}
    with pytest.raises(UserError, match="something wrong: bucket"):
        doctor.run(None, storage.place("s3://no-such-bucket/run"), None)
    monkeypatch.setattr(storage.Bucket, "create", lambda *arguments: True)
    with pytest.raises(UserError, match="something wrong: bucket"):
        doctor.run(None, storage.place(url), None)
    assert "locks do not hold" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_trains_the_real_model_in_a_bucket(s3, repository, tmp_path):
    """Stopped before its first step, begun again, and complete. (Mutant: the lock is left behind.)"""
    url = s3()
    command = [
        sys.executable,
        "-m",
        "ramen_jax.train",
        "--config",
        "configs/tiny.py:quicktest",
        "--workdir",
        url,
    ]
    variables = {**os.environ, storage.SCRATCH: str(tmp_path)}
    early = subprocess.Popen(command, cwd=repository, env=variables, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while storage.place(url).read(LOCK) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    early.send_signal(signal.SIGTERM)
    assert "SIGTERM" in early.communicate(timeout=100)[1]
    assert storage.place(url).read(LOCK) is None  # given back, so that the next one need not wait
    done = subprocess.run(
        command, cwd=repository, env=variables, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"in {url}" in done.stdout
    bucket = storage.place(url)
    assert not any(name.startswith("corpora/") for name in bucket.files())
    assert api.load(url).encode
    assert any(name.startswith("tensorboard/") for name in bucket.files())
