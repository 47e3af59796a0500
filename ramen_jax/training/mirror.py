"""A workdir in a bucket: the training works in a folder of this machine, and the bucket is kept like it.

Checkpoints are copied when their list of hashes is there, which goes last: a checkpoint in the bucket without it is
none. Everything else a run writes is copied every so often, and before a checkpoint is completed, so that what a run
goes on from is never ahead of what tells of it. A bucket that cannot be reached is told once and tried again; the
training goes on. At the start the local folder is made like the bucket, unless it holds a newer checkpoint of the same
run, which a run that ended without reaching the bucket left behind. Prepared corpora stay on this machine.

Every process has a folder of its own, since hosts share none. Process 0 writes checkpoints, holds the lock of the
bucket and copies all; the others copy only what carries their number.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ramen_jax.console import DATA, UserError
from ramen_jax.parallel import leaving
from ramen_jax.storage import MARKER, Bucket, fetch, scratch_of
from ramen_jax.training import checkpoint_files
from ramen_jax.training.bucket_lock import BucketLock
from ramen_jax.training.lock import LOCK

EVERY = 5.0  # seconds between looks at the local folder
REST_EVERY = 60.0  # seconds between copies of what grows
STAY = ("corpora", "features")  # folders that remain on this machine: they are made again
KEPT = "checkpoints"
PASSING = (".part", ".partial", ".orbax-checkpoint-tmp")  # what is still being written

Note = Callable[[str], None]


class Mirror:
    """The local folder of a workdir in a bucket, kept like it from `begin` to `end`.

    Attributes:
        folder: of this machine, where the process works.
        lost: why the bucket is no longer ours, "" while it is.
    """

    def __init__(self, bucket: Bucket, process: int, note: Note) -> None:
        self.bucket, self.process, self.note = bucket, process, note
        base = scratch_of(bucket.url, "train")
        self.folder = base if process == 0 else base.with_name(f"{base.name}@{process}")
        self.reached = True  # whether the last attempt to copy succeeded
        self._lock: BucketLock | None = None
        self._there: dict[int, tuple[int, int]] = {}  # step -> which list of hashes of here the bucket has
        self._copied: dict[str, tuple[int, int]] = {}  # name -> time and size of the file that was copied
        self._waited = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def lost(self) -> str:
        return self._lock.lost if self._lock else ""

    def begin(self) -> None:
        """Takes the lock, makes the local folder like the bucket, and begins to copy.

        Raises:
            UserError: another training holds the lock, the bucket or the local disk cannot be read or written.
        """
        try:
            if self.process == 0:
                self._lock = BucketLock(self.bucket, self.note)
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.process == 0:
                self._become()
                self.note(f"workdir {self.bucket} is kept in {self.folder} while it trains")
            else:
                self._clear()
        except OSError as error:
            raise UserError(f"workdir {self.bucket} cannot be used: {error}", DATA) from error
        self._thread.start()

    def fetch(self, step: int) -> None:
        """Copies a checkpoint that process 0 has chosen, where it is not here. Errors: UserError."""
        if (self.folder / KEPT / str(step) / MARKER).is_file():
            return
        try:
            fetch(self.bucket, step, self.folder)
        except OSError as error:
            raise UserError(f"checkpoint {step} of {error}", DATA) from error

    def end(self) -> None:
        """Copies what is left. UserError when it cannot be; it then is in the local folder, for the next start."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            if not self.lost:
                self._copy(everything=True)
        except OSError as error:
            raise UserError(
                f"the last files of the run did not reach {error}; they are in {self.folder}, and the same command "
                "on this machine goes on from them",
                DATA,
            ) from error
        finally:
            self.release()

    def release(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            with contextlib.suppress(OSError):  # it then is forgotten by its age
                self._lock.release()

    def _become(self) -> None:
        """Makes the local folder like the bucket, or leaves it, where it is ahead of it."""
        here, there = self._complete(), self.bucket.steps()
        if here and max(here) > max(there, default=-1) and self._same_run():
            self.note(
                f"{self.folder} has a newer checkpoint (step {max(here)}) than {self.bucket}: going on from it"
            )
            for step in set(there) - set(here):  # among them one that is kept for its loss
                self._take(step)
            return
        if here and max(here) > max(there, default=-1):
            aside = self.folder.with_name(f"{self.folder.name}.before_{time.time_ns()}")
            self.folder.rename(aside)
            self.folder.mkdir()
            self.note(
                f"{self.bucket} does not hold the run that was in {self.folder}, which was put aside as {aside}"
            )
        self._clear()
        names = [
            name for name in self.bucket.files() if self._travels(name) and not name.startswith(f"{KEPT}/")
        ]
        self.bucket.download(names, self.folder)
        for name in names:
            self._copied[name] = _state_of(self.folder / name)
        for step in there:
            self._take(step)

    def _take(self, step: int) -> None:
        fetch(self.bucket, step, self.folder)
        self._there[step] = self._marker(step)

    def _marker(self, step: int) -> tuple[int, int]:
        return _state_of(self.folder / KEPT / str(step) / MARKER)

    def _same_run(self) -> bool:
        """Whether the bucket holds the run that the local folder does."""
        here = self.folder / "config.json"
        return here.is_file() and self.bucket.read("config.json") == here.read_bytes()

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.name not in STAY:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _complete(self) -> list[int]:
        """Steps of the local checkpoints whose list of hashes is written."""
        kept = self.folder / KEPT
        return [step for step in checkpoint_files.steps_in(kept) if (kept / str(step) / MARKER).is_file()]

    def _travels(self, name: str) -> bool:
        """Whether a file of a workdir is copied, by this process."""
        first, last = name.split("/")[0], name.split("/")[-1]
        mine = self.process == 0 or f"process{self.process}" in last
        return mine and first not in STAY and LOCK not in last and not any(part in name for part in PASSING)

    def _run(self) -> None:
        while not self._over.wait(EVERY):
            if self.lost:
                return
            self._waited += EVERY
            try:
                self._copy(everything=self._waited >= REST_EVERY)
                if not self.reached:
                    self.note(f"{self.bucket} is reached again")
                self.reached = True
            except OSError as error:
                if self.reached:
                    self.note(f"WARNING: {error}; training goes on in {self.folder}, it is tried again")
                self.reached = False

    def _copy(self, everything: bool) -> None:
        """Brings the bucket up to date. A checkpoint that goes away meanwhile is left out."""
        complete = {}
        for step in self._complete() if self.process == 0 else ():
            with contextlib.suppress(FileNotFoundError):
                complete[step] = self._marker(step)
        new = [step for step, marker in complete.items() if self._there.get(step) != marker]
        if everything or new:
            self._copy_rest()
            self._waited = 0.0
        for step in new:
            root = self.folder / KEPT / str(step)
            names = [name for name in _files(root) if name != MARKER]
            self._remove(step)  # another one of this step, or what a host left that died while it copied
            try:
                self.bucket.upload((root / name, f"{KEPT}/{step}/{name}") for name in names)
                self.bucket.upload([(root / MARKER, f"{KEPT}/{step}/{MARKER}")])
                self._there[step] = complete[step]
            except FileNotFoundError:  # it was given up for a newer one
                self._remove(step)
        if complete and max(complete) in self._there:  # nothing is removed before something newer is there
            for step in sorted(set(self._there) - set(checkpoint_files.steps_in(self.folder / KEPT))):
                self._remove(step)
                del self._there[step]

    def _remove(self, step: int) -> None:
        """Removes a checkpoint from the bucket, its list of hashes first: without it, it is none."""
        self.bucket.remove([f"{KEPT}/{step}/{MARKER}"])
        self.bucket.remove(self.bucket.files(f"{KEPT}/{step}"))

    def _copy_rest(self) -> None:
        """Everything but checkpoints, where it has changed."""
        names = [
            name for name in _files(self.folder) if self._travels(name) and not name.startswith(f"{KEPT}/")
        ]
        changed = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                state = _state_of(self.folder / name)
                if self._copied.get(name) != state:
                    changed[name] = state
        self.bucket.upload((self.folder / name, name) for name in changed)
        self._copied |= changed


def _files(folder: Path) -> list[str]:
    """Names of the files below a folder, hidden ones left out."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        "/".join(path.parts) for path in found if not any(part.startswith(".") for part in path.parts)
    )


def _state_of(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_mtime_ns, facts.st_size


@contextlib.contextmanager
def opened(place: Path | Bucket, process: int, note: Note = print) -> Iterator[tuple[Path, Mirror | None]]:
    """The local folder of a workdir, for as long as the block runs, and its mirror where it is in a bucket."""
    if not isinstance(place, Bucket):
        yield place, None
        return
    mirror = Mirror(place, process, note if process == 0 else lambda sentence: None)
    try:
        with leaving.giving_back(mirror.release):
            mirror.begin()
    except BaseException:
        mirror.release()
        raise
    try:
        with leaving.giving_back(mirror.end):
            yield mirror.folder, mirror
    except BaseException:
        with contextlib.suppress(UserError):  # the first error is the one to be told
            mirror.end()
        raise
    else:
        mirror.end()
