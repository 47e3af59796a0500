"""What a training needs of a machine, looked at one thing at a time. Each check gives what it found and what to change.

Nothing here imports JAX: what is wrong with the machine is known before its devices are asked.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict
from packaging.requirements import Requirement

from ramen_jax import config as configuration
from ramen_jax import storage
from ramen_jax.console import UserError
from ramen_jax.corpora import buckets, records
from ramen_jax.limits import machine_memory, size
from ramen_jax.storage import Bucket

SKEW = 5.0  # seconds that clocks may differ: locks are judged by the age of files
SHARED_MEMORY = 1 << 30  # bytes that processes which read samples ahead should have
OPEN_FILES = 1024
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")  # named even when nothing is wrong
ACCELERATORS = {
    "NVIDIA": (
        ("/dev/nvidiactl",),
        "cuda",
        "pip install 'jax[cuda13]', and see that CUDA_VISIBLE_DEVICES is not empty",
    ),
    "TPU": (
        ("/dev/accel0", "/dev/vfio/0"),
        "tpu",
        "pip install 'jax[tpu]'; another process may hold the chips",
    ),
}


class Finding(NamedTuple):
    """What a check came to."""

    name: str
    wrong: bool
    found: str  # what was found
    advice: str = ""  # what to change, where something is wrong


def check(name: str, look: Callable[[], str]) -> Finding:
    """A check as a function that returns what it found, or raises UserError(what is wrong), with advice after "; "."""
    try:
        return Finding(name, False, look())
    except (UserError, OSError) as error:
        told = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        found, _, advice = told.partition("; ")
        return Finding(name, True, found, advice)


def versions(requirements: list[Requirement] | None = None) -> str:
    """Whether what is installed is what ramen_jax was tested with."""
    wrong = []
    for requirement in _requirements() if requirements is None else requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing (needs {requirement.specifier})")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found} (needs {requirement.specifier})")
    if wrong:
        raise UserError(f"{', '.join(wrong)}; pip install the versions of requirements.txt on every host")
    named = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return f"Python {platform.python_version()}, {named}"


def _requirements() -> list[Requirement]:
    """Of the installed package; of a checkout that is not installed, its requirements.txt."""
    listed = Path(__file__).resolve().parents[2] / "requirements.txt"
    if listed.is_file():
        lines = (line.split("#")[0].strip() for line in listed.read_text().splitlines())
    else:
        lines = (text for text in importlib.metadata.requires("ramen_jax") or ())
    return [Requirement(line) for line in lines if line]


def environment(variables: Mapping[str, str], distributed: bool, local: tuple[str, ...]) -> str:
    """Variables that change what a run is without anybody seeing it. `local`: accelerators of this machine."""
    flags = variables.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" in flags:
        raise UserError(
            "XLA_FLAGS makes several devices of one processor (xla_force_host_platform_device_count); unset it outside "
            "of tests"
        )
    if local and variables.get("JAX_PLATFORMS", "").lower() == "cpu":
        raise UserError(f"JAX_PLATFORMS is cpu on a machine with {' and '.join(local)}; unset JAX_PLATFORMS")
    if not distributed and variables.get("JAX_COORDINATOR_ADDRESS"):
        raise UserError(
            "JAX_COORDINATOR_ADDRESS is set and --distributed is not given; a training started so would run alone in "
            "every process: give --distributed"
        )
    set_here = [
        name for name in ("JAX_PLATFORMS", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES") if variables.get(name)
    ]
    return ", ".join(f"{name}={variables[name]}" for name in set_here) or "nothing unusual"


def accelerators(root: Path = Path("/")) -> tuple[str, ...]:
    """Which accelerators the device files of a machine speak of."""
    return tuple(
        name
        for name, (files, _, _) in ACCELERATORS.items()
        if any((root / file.lstrip("/")).exists() for file in files)
    )


def processor_limits() -> str:
    """Open files, as the system lets this process have them."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        raise UserError(
            f"{soft} open files are allowed, expected at least {OPEN_FILES:,}; ulimit -n {OPEN_FILES}"
        )
    return f"{os.cpu_count()} processors, {soft:,} open files ({hard:,} at most)"


def memory(needed: float = 0.0, available: Callable[[], int] | None = None) -> str:
    """Whether `needed` bytes (of the training state, where it lies on the host) are free."""
    free = (available or _available_memory)()
    if needed > free:
        raise UserError(
            f"{size(free)} of memory are free, the training state alone takes {size(needed)}; end what uses the "
            "memory, or choose a smaller model"
        )
    return f"{size(free)} free of {size(machine_memory())}"


def _available_memory() -> int:
    total = machine_memory()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (kibibytes,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError):
        return total
    return min(total, 1024 * int(kibibytes))


def shared_memory(workers: int, folder: Path = Path("/dev/shm")) -> str:
    """Through which processes that read ahead give their batches."""
    if not folder.is_dir():
        return "none"
    total = shutil.disk_usage(folder).total
    if workers and total < SHARED_MEMORY:
        raise UserError(
            f"{folder} holds {size(total)}, and {workers} reading processes share it; start the container with "
            f"--shm-size={size(SHARED_MEMORY).replace(' ', '')} or more, or set --config.data.workers=0"
        )
    return size(total)


def disk(folder: Path, needed: float) -> str:
    """Whether the checkpoints of a run, `needed` bytes, fit where they would lie."""
    there = _nearest(folder)
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"{size(free)} are free on the disk of {there}, the checkpoints take up to {size(needed)}; free some, use "
            "another --workdir, or keep fewer (--config.checkpoint.keep_latest)"
        )
    return f"{size(free)} free on the disk of {there}"


def workdir(folder: Path, now: Callable[[], float] = time.time) -> str:
    """Whether files can be written, renamed and locked in a workdir, and whether its clock is this machine's."""
    there = _nearest(folder)
    probe = there / f".ramen_jax_doctor.{uuid.uuid4().hex}"
    other = probe.with_suffix(".renamed")
    try:
        probe.write_text("probe")
        with probe.open("r+") as file:
            os.fsync(file.fileno())
        skew = probe.stat().st_mtime - now()
        probe.rename(other)
        if other.read_text() != "probe":
            raise UserError(f"{there} gave back another content than was written; do not train there")
        try:
            with other.open("x"):
                pass
            raise UserError(
                f"{there} made a file that was there already; locks do not hold on it: use another"
            )
        except FileExistsError:
            pass
    except OSError as error:
        raise UserError(
            f"{there} cannot be written ({error.strerror or error}); make it writable or use another --workdir"
        ) from error
    finally:
        for path in (probe, other):
            _remove(path)
    if abs(skew) > SKEW:
        raise UserError(
            f"the clock of {there} is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's; "
            "synchronise both (chrony, NTP)"
        )
    return f"{there} can be written, renamed in and locked; its clock differs by {abs(skew):.1f} s"


def bucket(there: Bucket, now: Callable[[], float] = time.time) -> str:
    """Whether objects can be written in a bucket, and created only where there is none, and whether clocks agree."""
    name = f".ramen_jax_doctor.{uuid.uuid4().hex}"
    try:
        made = [there.create(name, b"1"), there.create(name, b"2")]
        skew = (there.modified(name) or now()) - now()
        there.remove([name])
    except OSError as error:
        raise UserError(f"{error}; see that these credentials may write there") from error
    if made != [True, False]:
        raise UserError(
            f"{there} made an object that was there already; locks do not hold on it: use another"
        )
    return f"{there} can be written and locked; its clock differs by {abs(skew):.0f} s"


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # it could not be made either
        return


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def port(address: str, mine: bool) -> str:
    """Whether the coordinator can listen at HOST:PORT (`mine`: as process 0, here), or be reached there by its name."""
    host, _, number = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(number), type=socket.SOCK_STREAM)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{host} is no host that this machine can find ({error}); use a name or address that all hosts know"
        ) from error
    if not mine:
        return f"{address} is {found[0][4][0]}"
    family = found[0][0]
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", int(number)))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"port {number} of process 0 cannot be used ({getattr(error, 'strerror', None) or error}); end what "
            "listens there, or give another port to all processes"
        ) from error
    return f"port {number} is free"


def corpora(config: ConfigDict, folder: Path | None) -> Iterator[Finding]:
    """Whether each corpus of a configuration can be read: its manifest and the first sample of each split."""
    for entry in config.corpora:
        yield check(f"corpus {entry.name}", functools.partial(_corpus, config, entry, folder))


def _corpus(config: ConfigDict, entry: ConfigDict, folder: Path | None) -> str:
    prepared = buckets.folder_of(entry.prepared) if entry.prepared else None
    if prepared is not None and storage.scheme_of(entry.prepared):
        bucket, path = Bucket(entry.prepared), prepared / records.MANIFEST
        manifest = buckets.manifest_of(bucket)
        if not path.is_file() or path.read_bytes() != manifest:
            return (
                f"{bucket}: {size(sum(bucket.files().values()))}, which a training first copies to {prepared}"
            )
    if prepared is None and folder is not None:
        prepared = folder / "corpora" / entry.name
    if prepared is not None and (prepared / records.MANIFEST).is_file():
        told = []
        for split in records.read_manifest(prepared)["splits"]:
            try:
                source = records.Prepared(prepared, split, configuration.recipe_of(config))
                source.read(0)
                for file in source.files():
                    if not file.is_file():
                        raise ValueError(f"{file} is missing")
            except ValueError as error:
                raise UserError(f"{error}; prepare the corpus again, or copy it again") from error
            told.append(f"{split} {len(source):,}")
        return f"{prepared}: {', '.join(told)} samples; a training compares every shard with its hash"
    if entry.prepared:
        raise UserError(
            f"{prepared} holds no {records.MANIFEST}; python -m ramen_jax.prepare --output {prepared} writes it"
        )
    text = os.path.expandvars(str(entry.get("source") or ""))
    if "$" in text:
        raise UserError(
            f"its source {text} names an environment variable that is not set; set it on every host"
        )
    originals = storage.local(text)
    if text and not originals.is_dir():
        raise UserError(
            f"its source {originals} is no folder here; set config.corpora's source, or its prepared, on this host"
        )
    return "not prepared yet; a training prepares it first"
