"""What is wrong with a machine or a cluster, and what to change: the checks of `health.py`, then devices and processes.

What a machine says by itself comes first, so that a process that could only make the others wait never joins them.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
import uuid
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import ramen_jax
from ramen_jax import config as configuration
from ramen_jax.console import DATA, UserError, duration
from ramen_jax.limits import size
from ramen_jax.parallel import agree, join
from ramen_jax.parallel.mesh import make_mesh
from ramen_jax.storage import Bucket, scratch_of
from ramen_jax.training import health, workdir
from ramen_jax.training.experiment import ramen
from ramen_jax.training.health import Finding, check

COPIES = 3  # of every parameter in the training state: itself and two moments
SLOW = 5.0  # seconds beyond which a sum over a megabyte says that something is wrong with the network
PATIENCE = 60.0


def run(
    config: ConfigDict | None,
    workplace: Path | Bucket | None,
    others: tuple[str, str, str] | None,
    timeout: int = join.TIMEOUT,
) -> int:
    """Examines this machine and, unless `others` is None, the processes it joins (`join.join`). Returns 0.

    Raises:
        UserError: something is wrong; every finding was printed before.
    """
    began = time.monotonic()
    folder = scratch_of(workplace.url, "train") if isinstance(workplace, Bucket) else workplace
    findings = _alone(config, folder, others)
    shared = folder
    if isinstance(workplace, Bucket):
        findings.append(check("bucket", lambda: health.bucket(workplace)))
        shared = None  # each process has its own
    if others is None:
        findings += _devices(config, folder)
        _print(findings)
        _end(findings, f"healthy ({duration(time.monotonic() - began)})")
        return 0
    _print([finding for finding in findings if finding.wrong])
    _end(findings, "")
    join.join(others, timeout)
    with agree.failing_together():
        findings += _devices(config, folder) + _together(config, shared)
        for number, each in enumerate(agree.gather("the doctor's findings", findings, PATIENCE)):
            told = [Finding(*values) for values in each]
            if jax.process_index() == 0:  # for all; the same of each would fill the screen
                shown = told if number == 0 else [finding for finding in told if finding.wrong]
                _print(shown, f"process {number}: ")
        wrong = any(finding.wrong for finding in findings)
        troubled = [number for number, bad in enumerate(agree.gather("the end", wrong, PATIENCE)) if bad]
        if troubled:
            raise UserError(
                f"something is wrong with process {', '.join(map(str, troubled))}, as listed above", DATA
            )
        if jax.process_index() == 0:
            print(f"healthy: {jax.process_count()} processes ({duration(time.monotonic() - began)})")
    return 0


def _alone(
    config: ConfigDict | None, folder: Path | None, others: tuple[str, str, str] | None
) -> list[Finding]:
    """What this machine says without asking its devices or anybody else."""
    local = health.accelerators()
    findings = [
        check("versions", health.versions),
        check("environment", lambda: health.environment(os.environ, others is not None, local)),
        check("processor", health.processor_limits),
        check("memory", health.memory),
    ]
    if config is not None:
        findings.append(check("shared memory", lambda: health.shared_memory(config.data.workers)))
        findings += health.corpora(config, folder)
    if folder is not None:
        findings.append(check("workdir", lambda: health.workdir(folder)))
    if others is not None:
        findings.append(check("port", lambda: _port(others)))
    return findings


def _port(others: tuple[str, str, str]) -> str:
    place = join.place_of(others, os.environ)
    if place is None:
        return "the cluster job says where the others are"
    return health.port(place.coordinator_address, place.process_id == 0)


def _state_bytes(config: ConfigDict) -> float:
    """Bytes of parameters, moments and statistics in float32."""
    params, statistics = ramen(config).shapes
    total = sum(float(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    return 4.0 * (COPIES * total + sum(float(np.prod(leaf.shape)) for leaf in jax.tree.leaves(statistics)))


def _devices(config: ConfigDict | None, folder: Path | None) -> list[Finding]:
    """Whether JAX sees the accelerators, memory and disk hold the state, and the mesh fits the devices."""
    findings = [check("devices", lambda: seen(health.accelerators()))]
    if config is not None and not findings[0].wrong:
        findings.append(check("mesh", lambda: _mesh(config)))
    if folder is not None:
        kept = config.checkpoint.keep_latest + config.checkpoint.keep_best + 1 if config is not None else 0
        needed = kept * _state_bytes(config) if config is not None else 0.0
        findings.append(check("disk", lambda: health.disk(folder, needed)))
    return findings


def seen(expected: tuple[str, ...]) -> str:
    """The devices of JAX. `expected`: accelerators whose device files are here."""
    try:
        devices = jax.local_devices()
    except RuntimeError as error:
        raise UserError(
            f"JAX cannot use its devices ({str(error).strip().splitlines()[0][:300]}); see that the driver fits the "
            "installed jax plugin and that no other process holds the devices"
        ) from error
    kind = devices[0].platform
    for name in expected:
        _, platforms, advice = health.ACCELERATORS[name]
        if kind == "cpu":
            raise UserError(
                f"this machine has {name} devices ({platforms}) and JAX sees its processor only; {advice}"
            )
    return f"{len(devices)} {kind} here ({devices[0].device_kind}), {jax.device_count()} in all"


def _mesh(config: ConfigDict) -> str:
    mesh = make_mesh(config)
    split = mesh.shape["fsdp"] * mesh.shape["tensor"]
    needed = _state_bytes(config) / split
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit and needed > limit:
        raise UserError(
            f"the state takes {size(needed)} per device, which has {size(limit)}; split it over more devices with "
            "--config.sharding.fsdp"
        )
    if not limit:
        health.memory(needed * len(jax.local_devices()))
    return f"{dict(mesh.shape)}, {size(needed)} of state per device"


def _together(config: ConfigDict | None, folder: Path | None) -> list[Finding]:
    """What only several processes can tell. Every process calls it and finds what it can judge itself."""
    findings = [
        check("same everywhere", lambda: _same(config)),
        check("clocks", _clocks),
        check("device counts", _device_counts),
        check("all-reduce", _all_reduce),
    ]
    if folder is not None:
        findings.append(check("shared workdir", lambda: _shared(folder)))
    return findings


def _same(config: ConfigDict | None) -> str:
    facts = {
        "Python": platform.python_version(),
        "ramen_jax": f"{ramen_jax.__version__} {workdir.git_hash()}".strip(),
        **{name: importlib.metadata.version(name) for name in health.PACKAGES},
        **(
            {f"config.{key}": repr(value) for key, value in configuration.flat(config)}
            if config is not None
            else {}
        ),
    }
    join.require_same(facts)
    return f"{len(facts)} versions and settings agree"


def _clocks() -> str:
    agree.gather("before the clocks", None, PATIENCE)
    times = agree.gather("clocks", time.time(), PATIENCE)
    middle = sorted(times)[(len(times) - 1) // 2]
    worst = max(range(len(times)), key=lambda number: abs(times[number] - middle))
    skew = times[worst] - middle
    if abs(skew) > health.SKEW:
        raise UserError(
            f"the clock of process {worst} is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the others; "
            "synchronise the hosts (chrony, NTP)"
        )
    return f"within {abs(skew):.1f} s of each other"


def _device_counts() -> str:
    counts = agree.gather(
        "device counts", [jax.local_device_count(), jax.local_devices()[0].device_kind], PATIENCE
    )
    if any(count != counts[0] for count in counts):
        told = ", ".join(f"process {number}: {count} x {kind}" for number, (count, kind) in enumerate(counts))
        raise UserError(f"the processes have different devices ({told}); give each the same")
    return f"{len(counts)} processes with {counts[0][0]} x {counts[0][1]}"


def _all_reduce() -> str:
    """A sum over all devices: of a megabyte from each, whose result is known."""
    devices = np.array(jax.devices())
    mesh = jax.sharding.Mesh(devices, ("all",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    local = np.ones((jax.local_device_count(), 1 << 18), np.float32)
    values = jax.make_array_from_process_local_data(rows, local, (len(devices), 1 << 18))
    total = jax.jit(lambda array: jnp.sum(array, axis=0), out_shardings=whole)
    jax.block_until_ready(total(values))  # compiles
    began = time.monotonic()
    found = np.asarray(total(values))
    seconds = time.monotonic() - began
    if not (found == len(devices)).all():
        raise UserError(
            f"a sum over {len(devices)} devices gave {found[0]}; a device or its link is broken: find it "
            "by running doctor on fewer hosts"
        )
    if seconds > SLOW:
        raise UserError(
            f"a sum over {len(devices)} devices took {seconds:.1f} s for 1 MiB each; see that the hosts use "
            "their fast network (NCCL_SOCKET_IFNAME)"
        )
    return f"a sum of 1 MiB over {len(devices)} devices took {1000 * seconds:.1f} ms"


def _shared(folder: Path) -> str:
    """Whether a file that process 0 writes into the workdir is there for every process."""
    there = folder if folder.is_dir() else folder.parent
    token, written_in = agree.gather("the name of a probe", [uuid.uuid4().hex, str(there)], PATIENCE)[0]
    probe = there / f".ramen_jax_doctor.{token}"
    problem, primary = "", jax.process_index() == 0
    try:
        if primary:
            probe.write_text(token)
    except OSError as error:
        problem = error.strerror or str(error)
    problem = agree.gather("the probe is written", problem, PATIENCE)[0]
    try:
        found = probe.read_text() == token
    except OSError:
        found = False
    agree.gather("the probe was looked for", None, PATIENCE)
    if primary:
        probe.unlink(missing_ok=True)
    if problem:
        raise UserError(f"process 0 cannot write in {written_in} ({problem}); use another --workdir")
    if not found:
        raise UserError(
            f"what process 0 writes in {written_in} is not in {there} here; all processes need one workdir on a file "
            "system that their hosts share"
        )
    return f"{there} is the same in all processes"


def _print(findings: list[Finding], whose: str = "") -> None:
    for finding in findings:
        line = f"{'WRONG' if finding.wrong else 'ok   '}  {whose}{finding.name}: {finding.found}"
        print(f"{line}\n       -> {finding.advice}" if finding.advice else line, flush=True)


def _end(findings: list[Finding], healthy: str) -> None:
    """UserError when something is wrong."""
    wrong = [finding.name for finding in findings if finding.wrong]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(findings)} checks found something wrong: {', '.join(wrong)}", DATA
        )
    if healthy:
        print(healthy)
