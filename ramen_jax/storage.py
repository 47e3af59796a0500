"""Where things lie: folders of this machine, and folders in buckets (gs://, s3://, az://), through fsspec.

A bucket has no folders, no renaming and no appending. What it has is used: an object appears whole or not at all, and
one can be created only where there is none. fsspec and its backends are imported when a bucket is opened.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from ramen_jax.console import DATA, USAGE, UserError, one_line

BACKENDS = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}  # scheme -> package that fsspec needs for it
OTHERS = (
    "file",
    "http",
    "https",
    "hdfs",
    "ftp",
    "sftp",
    "hf",
    "abfs",
    "memory",
    "dbfs",
)  # known, and not for this
THREADS = 8
SCRATCH = "RAMEN_JAX_SCRATCH"
MARKER = "files.json"  # the last file of a checkpoint: without it, there is none
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # of two letters at least: one is a drive


class PathError(UserError, argparse.ArgumentTypeError):
    """A path that cannot be; argparse shows its sentence where it is the type of an argument."""


def scheme_of(text: str) -> str:
    """`gs` of gs://bucket/run, "" of a local path.

    Raises:
        PathError: a scheme that is not known, or is spelt otherwise.
    """
    found = _SCHEME.match(text)
    if not found:
        return ""
    scheme = found[1]
    known = ", ".join(f"{name}://" for name in BACKENDS)
    if scheme not in BACKENDS:
        close = difflib.get_close_matches(scheme.lower(), BACKENDS, n=1, cutoff=0.5)
        advice = f'did you mean "{close[0]}://"?' if close and scheme not in OTHERS else ""
        advice = advice or "mount or copy it, and give the local path"
        raise PathError(f"{text}: paths are local or begin with {known}, not with {scheme}:; {advice}", USAGE)
    if not text.startswith(f"{scheme}://") or not text[len(scheme) + 3 :].strip("/"):
        raise PathError(f"{text}: expected {scheme}://BUCKET/FOLDER", USAGE)
    return scheme


def local(text: str, what: str = "a local path") -> Path:
    """A path of this machine as people write it, `~` being their home, which a shell expands at the beginning alone.

    Raises:
        PathError: a path in a bucket (with how to copy it), an unknown scheme, or what no path can be.
    """
    scheme = scheme_of(text)
    if scheme:
        copy = {
            "gs": "gcloud storage cp --recursive",
            "s3": "aws s3 cp --recursive",
            "az": "azcopy copy --recursive",
        }
        raise PathError(
            f"{text}: expected {what}; in a bucket may lie the workdir of train, prepared corpora and a checkpoint "
            f"that is read. Copy it ({copy.get(scheme, 'copy')} FROM TO) or mount the bucket",
            USAGE,
        )
    if "\0" in text:
        raise PathError(f"{text!r}: no path holds a null character", USAGE)
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise PathError(f"{text}: {error}", USAGE) from error


def place(text: str) -> Path | Bucket:
    """A folder of this machine or in a bucket. Errors: PathError; a backend that is missing, with what to install."""
    return Bucket(text) if scheme_of(text) else local(text)


def scratch_of(url: str, use: str) -> Path:
    """The local folder that stands for one in a bucket; `use` keeps what reads apart from what trains.

    Below the folder that RAMEN_JAX_SCRATCH names, or ~/.cache/ramen_jax.
    """
    base = os.environ.get(SCRATCH) or "~/.cache/ramen_jax/buckets"
    scheme, _, rest = url.partition("://")
    return local(base) / use / scheme / rest.strip("/")


class Bucket:
    """A folder in a bucket. Names are relative to it, with "/" between their parts.

    Attributes:
        url: as the person gave it, without a slash at the end.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        scheme = scheme_of(url)
        try:
            import fsspec

            options = {"use_listings_cache": False}
            self._files: Any = fsspec.filesystem(scheme, **options)
        except (ImportError, ValueError) as error:
            raise PathError(
                f"{url}: {scheme}:// needs {BACKENDS[scheme]}: pip install {BACKENDS[scheme]}", USAGE
            ) from error
        except Exception as error:  # credentials that cannot be read
            raise PathError(f"{url} cannot be opened ({one_line(str(error))})", USAGE) from error
        self._root = self.url.partition("://")[2].rstrip("/")

    def __str__(self) -> str:
        return self.url

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def read(self, name: str) -> bytes | None:
        """An object, None where there is none."""
        with self._told(f"{name} was not read"):
            try:
                return self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Makes or replaces an object; it appears whole."""
        with self._told(f"{name} was not written"):
            self._files.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Makes an object, unless there is one of that name: of any number of contenders one is told True."""
        with self._told(f"{name} was not made"):
            try:
                self._files.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
            except OSError as error:  # how S3's refusal of `If-None-Match` reaches us
                if "PreconditionFailed" in repr(error) or "pre-condition" in str(error).lower():
                    return False
                raise
            return True

    def modified(self, name: str) -> float | None:
        """When an object was written, in seconds of the bucket's own clock; None where there is none."""
        with self._told(f"{name} was not found"):
            self._files.invalidate_cache()
            try:
                facts = self._files.info(self._path(name))
            except FileNotFoundError:
                return None
            for key in ("LastModified", "mtime", "updated", "last_modified", "created"):
                value = facts.get(key)
                if isinstance(value, str):
                    value = datetime.fromisoformat(value.replace("Z", "+00:00"))
                if isinstance(value, datetime):
                    return value.timestamp()
                if isinstance(value, int | float):
                    return float(value)
            raise OSError("the bucket does not say when an object was written")

    def files(self, folder: str = "") -> dict[str, int]:
        """Name -> bytes of every object below a folder."""
        with self._told("was not listed"):
            self._files.invalidate_cache()
            try:
                found = self._files.find(self._path(folder), detail=True)
            except FileNotFoundError:
                return {}
            prefix = f"{self._root}/"
            names = {
                path.lstrip("/"): facts["size"] for path, facts in found.items() if facts["type"] == "file"
            }
            return {name[len(prefix) :]: size for name, size in names.items() if name.startswith(prefix)}

    def upload(self, files: Iterable[tuple[Path, str]]) -> None:
        """Copies local files to names, several at a time. A file that is gone is a FileNotFoundError."""
        with self._told("was not written"), ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda pair: self._files.put_file(str(pair[0]), self._path(pair[1])), list(files)))

    def download(self, names: Iterable[str], folder: Path) -> None:
        """Copies objects into a local folder, under their names; each appears whole."""

        def one(name: str) -> None:
            target = folder / name
            if not target.resolve().is_relative_to(folder.resolve()):
                raise OSError(f"{name} leads outside of its folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.{os.getpid()}.part")
            self._files.get_file(self._path(name), str(part))
            part.replace(target)

        with self._told("was not read"), ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(one, list(names)))

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects; one that is gone already is no error."""
        with self._told("was not removed"):
            for name in names:
                try:
                    self._files.rm_file(self._path(name))
                except FileNotFoundError:
                    continue

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are complete: those with their list of hashes, which is written last."""
        parts = [name.split("/") for name in self.files("checkpoints")]
        found = [part[1] for part in parts if len(part) == 3 and part[2] == MARKER and part[1].isdigit()]
        return sorted(map(int, found))

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Whatever the backend raises, as an OSError that names the bucket."""
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.url}: {what} ({one_line(str(error))})") from error
        except Exception as error:  # of botocore, aiohttp, google.auth: dozens of types
            told = one_line(str(error)) or type(error).__name__
            raise OSError(f"{self.url}: {what} ({told})") from error


def checkpoint(text: str) -> Path:
    """A local path of what a checkpoint is read from: the path itself, or a copy of the newest one in a bucket.

    `text`: a workdir, or one of its checkpoints. What was copied before and has not changed is not copied again.

    Raises:
        PathError: there is none, or the bucket cannot be read.
    """
    if not scheme_of(text):
        return local(text)
    bucket, wanted = workdir_of(Bucket(text))
    try:
        steps = bucket.steps()
        chosen = max(steps, default=-1) if wanted is None else wanted
        if not steps and bucket.read("model.safetensors") is not None:  # a folder that export wrote
            folder = scratch_of(bucket.url, "read")
            bucket.download(bucket.files(), folder)
            return folder
        if chosen not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise PathError(f"no complete checkpoint at {text}; there: {there}", DATA)
        folder = scratch_of(bucket.url, "read")
        name = f"checkpoints/{chosen}"
        marker = folder / name / MARKER
        if not marker.is_file() or marker.read_bytes() != bucket.read(f"{name}/{MARKER}"):
            fetch(bucket, chosen, folder)
        bucket.download([other for other in ("config.json",) if bucket.read(other) is not None], folder)
    except PathError:
        raise
    except OSError as error:
        raise PathError(str(error), DATA) from error
    return folder / name


def workdir_of(bucket: Bucket) -> tuple[Bucket, int | None]:
    """The workdir in a bucket that a folder of it belongs to, and the step of the checkpoint, where one is named."""
    found = re.search(r"/checkpoints(?:/(\d+))?$", bucket.url)
    if not found:
        return bucket, None
    return Bucket(bucket.url[: found.start()]), int(found[1]) if found[1] else None


def fetch(bucket: Bucket, step: int, folder: Path) -> None:
    """Copies one checkpoint of a bucket into a local workdir, its list of hashes last."""
    names = [name for name in bucket.files(f"checkpoints/{step}") if not name.endswith(f"/{MARKER}")]
    bucket.download(names, folder)
    bucket.download([f"checkpoints/{step}/{MARKER}"], folder)
