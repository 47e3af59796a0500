"""One training per workdir: a lock file that names who holds it, on any file system that hosts share.

The lock appears by linking a finished file to its name, which succeeds for one of any number of contenders, on network
file systems too. Its holder touches it every BEAT seconds. It is stale when it was not touched for STALE seconds (by
the file system's own clock), or, on the same machine, when its process is gone; a stale one is taken over. So a killed
training is in nobody's way.
"""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ramen_jax.console import DATA, UserError, duration
from ramen_jax.parallel import leaving

LOCK = "training.lock"
BEAT, STALE = 10.0, 90.0  # seconds


@contextlib.contextmanager
def held(folder: Path, note: Callable[[str], None] = print) -> Iterator["Lock"]:
    """The lock of a workdir, for as long as the block runs.

    Raises:
        UserError: another training holds it, named with its host, process and start.
    """
    lock = Lock(folder / LOCK, note)
    try:
        with leaving.giving_back(lock.release):
            yield lock
    finally:
        lock.release()


class Lock:
    """A lock that is held from its making to `release`.

    Attributes:
        lost: why it is no longer ours, "" while it is.
    """

    def __init__(self, path: Path, note: Callable[[str], None]) -> None:
        self.path, self.lost = path, ""
        self._mine = {**process(), "token": uuid.uuid4().hex}
        self._over = threading.Event()
        self._take(note)
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def release(self) -> None:
        self._over.set()
        self._heart.join()
        if _read(self.path).get("token") == self._mine["token"]:
            self.path.unlink(missing_ok=True)

    def _take(self, note: Callable[[str], None]) -> None:
        ours = self.path.with_name(f".{LOCK}.{self._mine['token']}")
        try:
            ours.write_text(json.dumps(self._mine) + "\n")
            while not _link(ours, self.path):
                holder = _read(self.path)
                silent = _silence(self.path, ours)
                if silent is None:  # it was given back just now
                    continue
                if not _gone(holder, silent):
                    raise UserError(
                        f"workdir {self.path.parent} is in use by another training: {named(holder)}, last seen "
                        f"{duration(silent)} ago; wait for it or use another workdir",
                        DATA,
                    )
                if self._succeed(holder, ours):
                    note(f"took over the workdir from a training that has ended: {named(holder)}")
                    return
                time.sleep(0.05)
        finally:
            ours.unlink(missing_ok=True)

    def _succeed(self, holder: dict[str, Any], ours: Path) -> bool:
        """Puts our lock in the place of a stale one, which only the one process may that claimed to follow it."""
        claim = self.path.with_name(f".{LOCK}.after.{holder.get('token')}")
        if not _link(ours, claim):
            if (_silence(claim, ours) or 0.0) > STALE:  # whoever claimed it has died in between
                claim.unlink(missing_ok=True)
            return False
        try:
            if _read(self.path).get("token") != holder.get("token"):
                return False
            new = self.path.with_name(f".{LOCK}.new.{self._mine['token']}")
            new.write_bytes(ours.read_bytes())
            new.replace(self.path)
            return True
        finally:
            claim.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            try:
                found = _read(self.path)
                if found.get("token") != self._mine["token"]:
                    taken = f"taken over by {named(found)}" if found else "removed"
                    self.lost = f"the lock {self.path} was {taken}; two trainings must not share a workdir"
                    return
                os.utime(self.path)
            except OSError:  # a file system that hiccups; the next beat may reach it
                continue


def _silence(path: Path, ours: Path) -> float | None:
    """Seconds since a file was touched, by the clock of its file system; None when it is gone."""
    os.utime(ours)
    try:
        return max(0.0, ours.stat().st_mtime - path.stat().st_mtime)
    except FileNotFoundError:
        return None


def _link(source: Path, target: Path) -> bool:
    """Gives a file a second name, unless that name is taken."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError:  # no links here: exclusive creation is the next best
        try:
            with target.open("x") as file:
                file.write(source.read_text())
        except FileExistsError:
            return False
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def process() -> dict[str, Any]:
    """Who this process is, and since when it asks."""
    facts = {"host": platform.node(), "machine": _machine(), "pid": os.getpid(), "began": _began(os.getpid())}
    return {**facts, "since": _now()}


def _machine() -> str:
    """What tells the place where a process number means this very process: a boot, and a container of it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _began(pid: int) -> str:
    """When a process began, in ticks since boot: numbers of processes are given again. "" where nothing tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _gone(holder: dict[str, Any], silent: float) -> bool:
    if silent > STALE:
        return True
    pid = holder.get("pid")
    if holder.get("machine") != _machine() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it lives, as somebody else's
        return False
    return _began(pid) != holder.get("began")


def named(holder: dict[str, Any]) -> str:
    """A holder of a lock, for people."""
    if not holder:
        return "a process that did not say who it is"
    return f"process {holder.get('pid')} on {holder.get('host')}, started {holder.get('since')}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
