"""Unpacking downloads (zip, tar, tar.gz, tar.bz2, tar.xz) without trusting them.

A member that would be written outside the folder, and anything that is neither a file nor a folder (links, devices),
is refused and listed; the rest is unpacked. A file that is there already with its full size is not written again, so
an interrupted run goes on.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ramen_jax import console
from ramen_jax.corpora import BadItem
from ramen_jax.corpora.records import inside

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def find_archives(folder: Path) -> list[Path]:
    """Archives directly in `folder`, by name."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES) and path.is_file())


def unpack(archives: list[Path], folder: Path) -> list[BadItem]:
    """Unpacks into `folder`; returns what was refused or could not be read."""
    rejected: list[BadItem] = []
    with console.progress(len(archives), "unpack", "archives") as progress:
        for archive in archives:
            try:
                for name, size, content in _members(archive, rejected):
                    _write(archive, name, size, content, folder, rejected)
            except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, RuntimeError) as error:
                rejected.append(BadItem(archive, f"cannot be unpacked, truncated or damaged? ({error})"))
            progress.advance(info=archive.name)
    return rejected


def _members(archive: Path, rejected: list[BadItem]) -> Iterator[tuple[str, int, IO[bytes]]]:
    """(name, size, open content) of every ordinary file."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                # The upper half of external_attr is the Unix mode, where one was stored; 0o12 is a link.
                if entry.external_attr >> 28 == 0o12:
                    rejected.append(BadItem(archive, f"member {entry.filename} is a link"))
                elif not entry.is_dir():
                    with packed.open(entry) as content:
                        yield entry.filename, entry.file_size, content
        return
    with tarfile.open(archive) as packed_tar:
        for member in packed_tar:
            if member.isfile():
                extracted = packed_tar.extractfile(member)
                if extracted is not None:
                    yield member.name, member.size, extracted
            elif not member.isdir():
                rejected.append(BadItem(archive, f"member {member.name} is a link or a device"))


def _write(
    archive: Path, name: str, size: int, content: IO[bytes], folder: Path, rejected: list[BadItem]
) -> None:
    try:
        target = inside(folder, name)
    except ValueError:
        rejected.append(BadItem(archive, f"member {name} leads outside the folder it is unpacked into"))
        return
    if target.is_file() and target.stat().st_size == size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with open(part, "wb") as file:
        shutil.copyfileobj(content, file, 2**20)
    os.replace(part, target)
