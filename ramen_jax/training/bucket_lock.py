"""One training per workdir in a bucket: an object that only one of any number of contenders can create.

As `lock.py` on a file system: its holder shows every BEAT seconds that it lives, by an object of its own beside the
lock; the lock is stale when the bucket's clock says that neither was written for STALE seconds, and is then taken over
by the one that creates the claim to follow its holder. The holder itself never writes the lock again: one that was cut
off finds another's when it comes back, and stops.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from ramen_jax.console import DATA, UserError, duration
from ramen_jax.parallel import leaving
from ramen_jax.storage import Bucket
from ramen_jax.training.lock import LOCK, named, process

BEAT, STALE = 20.0, 120.0  # seconds


class BucketLock:
    """A lock that is held from its making to `release`.

    Attributes:
        lost: why it is no longer ours, "" while it is.

    Raises:
        UserError: another training holds it, named with its host, process and start; the bucket cannot be written.
    """

    def __init__(
        self, bucket: Bucket, note: Callable[[str], None], beat: float = BEAT, stale: float = STALE
    ) -> None:
        self.bucket, self.lost = bucket, ""
        self._stale, self._beat_every = stale, beat
        self._mine = {**process(), "token": uuid.uuid4().hex}
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        try:
            with leaving.giving_back(self.release):  # a process that is ended here may have just made it
                self._take(note)
        except OSError as error:
            raise UserError(f"workdir {error}", DATA) from error
        self._heart.start()

    def release(self) -> None:
        self._over.set()
        if self._heart.is_alive():
            self._heart.join()
        self.bucket.remove([_beat_of(self._mine)])
        if self._read().get("token") == self._mine["token"]:
            self.bucket.remove([LOCK])

    def _content(self) -> bytes:
        return (json.dumps(self._mine) + "\n").encode()

    def _take(self, note: Callable[[str], None]) -> None:
        """Takes the lock; of one that is held, waits until its holder shows that it lives, or was silent too long."""
        probe = f".{LOCK}.{self._mine['token']}"
        first: tuple[Any, float] | None = None  # of the holder that was found: who, and when it was last seen
        try:
            while not self.bucket.create(LOCK, self._content()):
                holder = self._read()
                seen = self._seen(LOCK, _beat_of(holder))
                if seen is None:  # it was given back just now
                    continue
                silent = self._now(probe) - seen
                if silent > self._stale:
                    if self._succeed(holder, probe):
                        note(f"took over the workdir from a training that has ended: {named(holder)}")
                        return
                elif first is None or first[0] != holder.get("token"):
                    first = (holder.get("token"), seen)
                    note(
                        f"workdir {self.bucket} was in use {duration(silent)} ago by {named(holder)}; looking whether "
                        f"it lives, for up to {duration(self._stale - silent)}"
                    )
                elif seen > first[1]:
                    raise UserError(
                        f"workdir {self.bucket} is in use by another training: {named(holder)}, last seen "
                        f"{duration(silent)} ago; wait for it or use another workdir",
                        DATA,
                    )
                time.sleep(min(1.0, self._beat_every))
        finally:
            self.bucket.remove([probe])

    def _succeed(self, holder: dict[str, Any], probe: str) -> bool:
        """Puts our lock in the place of a stale one, which only the one may that created the claim to follow it."""
        claim = f".{LOCK}.after.{holder.get('token')}"
        if not self.bucket.create(claim, self._content()):
            claimed = self._seen(claim)
            if (
                claimed is not None and self._now(probe) - claimed > self._stale
            ):  # by one that has died in between
                self.bucket.remove([claim])
            return False
        try:
            if self._read().get("token") != holder.get("token"):
                return False
            self.bucket.write(LOCK, self._content())
            self.bucket.remove([_beat_of(holder)])
            return True
        finally:
            self.bucket.remove([claim])

    def _seen(self, name: str, beside: str = "") -> float | None:
        """When an object, or the one beside it, was written, by the bucket's clock; None when it is gone."""
        then = self.bucket.modified(name)
        beat = self.bucket.modified(beside) if beside else None
        return None if then is None else max(then, beat or then)

    def _now(self, probe: str) -> float:
        """The time by the bucket's clock."""
        self.bucket.write(probe, b"")
        return self.bucket.modified(probe) or time.time()

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.bucket.read(LOCK) or b"{}")
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _beat(self) -> None:
        while not self._over.wait(self._beat_every):
            try:
                content = self.bucket.read(LOCK)
                found = json.loads(content) if content else {}
                if found.get("token") != self._mine["token"]:
                    taken = f"taken over by {named(found)}" if found else "removed"
                    self.lost = (
                        f"the lock of {self.bucket} was {taken}; two trainings must not share a workdir"
                    )
                    return
                self.bucket.write(_beat_of(self._mine), b"")
            except (OSError, ValueError, AttributeError):
                continue  # a network that hiccups; the next beat may reach it


def _beat_of(holder: dict[str, Any]) -> str:
    """The object by which a holder shows that it lives."""
    return f".{LOCK}.beat.{holder.get('token')}"
