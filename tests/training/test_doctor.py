"""The doctor finds what was planted, and nothing else; a healthy machine passes in seconds."""

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time

import jax
import pytest
from packaging.requirements import Requirement

from ramen_jax import config as configuration
from ramen_jax.console import UserError
from ramen_jax.corpora import preparation
from ramen_jax.recipe import FIXED
from ramen_jax.training import doctor, health


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "prepared"
    options = {"geometry": "tiny", "places": 3, "val_places": 1}
    entry = {"name": "places", "kind": "synthetic", "source": "", "options": options}
    return preparation.prepare(entry, folder, FIXED, workers=1)


@pytest.fixture
def patient(tmp_path, corpus, monkeypatch):
    """A healthy machine for a small training: (configuration, workdir)."""
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    shutil.copytree(corpus, tmp_path / "prepared")
    config = configuration.default()
    configuration.apply_size(config, "tiny")
    config.recipe = "fixed"
    config.corpora = (configuration.corpus("places", kind="synthetic", prepared=str(tmp_path / "prepared")),)
    return config, tmp_path / "run"


def wrong_in(printed):
    return [
        line.split(":")[0].removeprefix("WRONG").strip()
        for line in printed.splitlines()
        if line[:5] == "WRONG"
    ]


def examine(config, folder, others=None, overrides=()):
    return doctor.run(configuration.finish(config, overrides), folder, others)


def versions(patient, monkeypatch, places):
    monkeypatch.setattr(health, "_requirements", lambda: [Requirement("numpy<2"), Requirement("jax")])


def missing_package(patient, monkeypatch, places):
    monkeypatch.setattr(health, "_requirements", lambda: [Requirement("no-such-package>=1")])


def fake_devices(patient, monkeypatch, places):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")


def forgotten_flag(patient, monkeypatch, places):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "node0:1234")


def unseen_gpu(patient, monkeypatch, places):
    monkeypatch.setattr(health, "accelerators", lambda: ("NVIDIA",))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)


def few_files(patient, monkeypatch, places):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    places.append(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, before))


def full_disk(patient, monkeypatch, places):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(health.shutil, "disk_usage", lambda path: usage._replace(free=1000))


def little_memory(patient, monkeypatch, places):
    monkeypatch.setattr(health, "_available_memory", lambda: 1000)


def container(patient, monkeypatch, places):
    usage = shutil.disk_usage("/")
    patient[0].data.workers = 2
    monkeypatch.setattr(health.shutil, "disk_usage", lambda path: usage._replace(total=64 << 20))


def unwritable(patient, monkeypatch, places):
    (patient[1].parent / "file").write_text("mine")
    places.append(str(patient[1].parent / "file" / "run"))


def wrong_clock(patient, monkeypatch, places):
    now = time.time
    monkeypatch.setattr(health.workdir, "__defaults__", (lambda: now() + 100,))


def lost_shard(patient, monkeypatch, places):
    next((patient[1].parent / "prepared").glob("*.array_record*")).unlink()


def cut_shard(patient, monkeypatch, places):
    shard = max(
        (patient[1].parent / "prepared").glob("*.array_record*"), key=lambda path: path.stat().st_size
    )
    content = bytearray(shard.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    shard.write_bytes(content)


def not_copied(patient, monkeypatch, places):
    shutil.rmtree(patient[1].parent / "prepared")


def odd_mesh(patient, monkeypatch, places):
    patient[0].sharding.fsdp = 7 * jax.device_count()


FAULTS = [
    (versions, "versions", r"numpy is [\d.]+ \(needs <2\)"),
    (missing_package, "versions", "no-such-package is missing"),
    (fake_devices, "environment", "several devices of one processor"),
    (forgotten_flag, "environment", "give --distributed"),
    (unseen_gpu, "devices", r"NVIDIA devices .*'jax\[cuda13\]'"),
    (few_files, "processor", "256 open files are allowed.* ulimit -n"),
    (full_disk, "disk", r"1e\+03 bytes are free|1000 bytes are free"),
    (little_memory, "mesh", "of memory are free, the training state"),
    (container, "shared memory", "64 MiB.* --shm-size=1GiB"),
    (unwritable, "workdir", "cannot be written .* another --workdir"),
    (wrong_clock, "workdir", "100 s behind this machine.*NTP"),
    (lost_shard, "corpus places", "missing"),
    (cut_shard, "corpus places", "places.*again"),
    (not_copied, "corpus places", r"holds no manifest\.json.*ramen_jax\.prepare --output"),
    (odd_mesh, "mesh", "the product must be that number"),
]


@pytest.mark.parametrize(("plant", "name", "told"), FAULTS, ids=[plant.__name__ for plant, _, _ in FAULTS])
def test_a_planted_fault_is_found_and_nothing_else(patient, monkeypatch, capsys, plant, name, told):
    """Fifteen of them. (Mutant of each: its check returns what it found whatever that is.)"""
    places = []
    plant(patient, monkeypatch, places)
    folder = places[0] if places and isinstance(places[0], str) else patient[1]
    try:
        with pytest.raises(UserError, match=rf"1 of \d+ checks found something wrong: {name}$") as raised:
            examine(patient[0], type(patient[1])(folder))
    finally:
        for undo in places:
            if callable(undo):
                undo()
    assert raised.value.code == 1
    printed = capsys.readouterr().out
    assert wrong_in(printed) == [name]
    shown = " ".join(printed[printed.index("WRONG") :].splitlines()[:2])
    assert re.search(told, shown), shown


@pytest.mark.parametrize("mine", [True, False])
def test_a_port_in_use_and_a_host_that_nobody_knows_are_told_before_joining(capsys, mine):
    """(Mutant: the processes wait for their timeout first.)"""
    began = time.monotonic()
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        host = "localhost" if mine else "no-such-host.invalid"
        flags = (f"{host}:{taken.getsockname()[1]}", "2", "0" if mine else "1")
        with pytest.raises(UserError, match="something wrong: port"):
            doctor.run(None, None, flags)
    expected = "cannot be used (Address already in use)" if mine else "no host that this machine can find"
    assert expected in capsys.readouterr().out
    assert time.monotonic() - began < 30


def test_a_healthy_machine_passes_and_keeps_nothing(patient, capsys):
    assert examine(*patient) == 0
    printed = capsys.readouterr().out
    assert "WRONG" not in printed
    for name in ("versions", "memory", "disk", "workdir", "devices", "mesh", "corpus places"):
        assert f"ok     {name}: " in printed
    assert sorted(path.name for path in patient[1].parent.iterdir()) == ["prepared"]


PROCESS = """
import sys, time
from ramen_jax import config, console, storage
from ramen_jax.training import doctor

number, port, folder, fault = sys.argv[1:5]
if fault and number == "1":
    now = time.time
    doctor.time.time = lambda: now() + 60
settings = config.default()
settings.seed = 43 if fault and number == "1" else 42
place = (f"localhost:{port}", "2", number)
folder = folder + ("/" + number if fault else "")
console.main(lambda: doctor.run(config.finish(settings), storage.local(folder), place, 60))
"""


@pytest.mark.parametrize("fault", ["", "three"])
def test_two_processes_are_examined_together(tmp_path, repository, fault):
    """Healthy; or a clock, a setting and a workdir that differ. (Mutants: the probe is looked for before it is written;
    each process judges its own clock.)"""
    for name in "01":
        (tmp_path / name).mkdir()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    variables = {**os.environ, "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(number), port, str(tmp_path), fault],
            cwd=repository,
            env=variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(2)
    ]
    try:
        ended = [(*process.communicate(timeout=200), process.returncode) for process in started]
    finally:
        for process in started:
            process.kill()
    out = ended[0][0]
    assert {code for _, _, code in ended} == ({1} if fault else {0}), ended
    assert "a sum of 1 MiB over 2 devices took" in out
    assert [path.name for path in tmp_path.rglob("*")] in (["0", "1"], ["1", "0"])
    if not fault:
        assert "WRONG" not in out
        assert "healthy: 2 processes" in out
        return
    assert "the clock of process 1 is 60 s ahead of the others" in out
    assert "config.seed: 42 in process 0, 43 in process 1" in out
    assert re.search("WRONG  process 1: shared workdir.*\n.*all processes need one workdir", out)
    assert "WRONG  process 0: shared workdir" not in out
    assert all("something is wrong with process 0, 1" in errors for _, errors, _ in ended), ended
