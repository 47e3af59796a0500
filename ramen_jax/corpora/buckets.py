"""Prepared corpora in buckets: records are read at random, so a corpus is copied to the disk of the host first."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ramen_jax import storage
from ramen_jax.console import DATA, UserError, progress
from ramen_jax.corpora import records
from ramen_jax.corpora.records import MANIFEST
from ramen_jax.own_files import file_hash, refuse_beyond_disk
from ramen_jax.storage import THREADS, Bucket


def local_folder(text: str) -> Path:
    """The folder of this machine that holds a prepared corpus: `text` itself, or a copy of one in a bucket.

    The copy lies below RAMEN_JAX_SCRATCH, for every process and run of the host. Each file is compared with its hash in
    the manifest as it comes; what is there already is not copied again, and the manifest comes last.

    Raises:
        UserError: the bucket cannot be read or holds no prepared corpus, a file of it is damaged, or the disk is too
            small.
    """
    if not storage.scheme_of(text):
        return storage.local(text)
    bucket, folder = Bucket(text), folder_of(text)
    try:
        manifest = manifest_of(bucket)
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            path = folder / MANIFEST
            if not path.is_file() or path.read_bytes() != manifest:
                path.unlink(missing_ok=True)
                _bring(bucket, manifest, folder)
    except OSError as error:
        raise UserError(f"{error}; its files are copied to {folder}", DATA) from error
    return folder


def folder_of(text: str) -> Path:
    """Where `local_folder` puts it; copies nothing."""
    return storage.scratch_of(text, "corpora") if storage.scheme_of(text) else storage.local(text)


def manifest_of(bucket: Bucket) -> bytes:
    """The manifest of a prepared corpus. UserError where there is none, OSError where the bucket cannot be read."""
    manifest = bucket.read(MANIFEST)
    if manifest is None:
        raise UserError(
            f"{bucket} holds no {MANIFEST}, expected a prepared corpus; prepare it into a local folder and copy that",
            DATA,
        )
    return manifest


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process of this host copies. The lock falls with its process, however that ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _bring(bucket: Bucket, manifest: bytes, folder: Path) -> None:
    """Copies what the manifest names and the folder does not hold, and, last, the manifest."""
    new = folder / "coming" / MANIFEST
    new.parent.mkdir(exist_ok=True)
    new.write_bytes(manifest)
    wanted = _files(records.read_manifest(new.parent), folder)
    missing = [name for name, sha in wanted.items() if not _holds(folder / name, sha)]
    there = bucket.files()
    for name in missing:
        if name not in there:
            raise UserError(
                f"{bucket}/{name} is missing, which its {MANIFEST} names; copy the corpus again", DATA
            )
    refuse_beyond_disk(f"the files of {bucket}", sum(there[name] for name in missing), folder / MANIFEST)
    with progress(len(missing), f"copying {bucket}", "files") as bar:
        for first in range(0, len(missing), THREADS):
            part = missing[first : first + THREADS]
            bucket.download(part, folder)
            for name in part:
                if not _holds(folder / name, wanted[name]):
                    (folder / name).unlink()
                    raise UserError(
                        f"{bucket}/{name} is not what its {MANIFEST} says; copy the corpus again", DATA
                    )
                bar.advance()
    new.replace(folder / MANIFEST)
    new.parent.rmdir()


def _files(manifest: dict[str, Any], folder: Path) -> dict[str, str]:
    """Name -> hash of every file of every split."""
    found = {}
    for split in manifest["splits"].values():
        for file in [*split["shards"], split["ids"]]:
            records.inside(folder, file["file"])
            found[file["file"]] = file["sha256"]
    return found


def _holds(path: Path, sha: str) -> bool:
    return path.is_file() and file_hash(path) == sha
