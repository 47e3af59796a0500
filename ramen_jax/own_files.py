"""Which files a command may write: none that it reads, and in the place of an older one only what is its own."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ramen_jax.console import USAGE, UserError
from ramen_jax.limits import size

SOFTWARE = "ramen_jax"  # what a file of ours says of who wrote it, its version may follow


def refuse_overlap(written: Mapping[str, Path], read: Mapping[str, Iterable[Path]]) -> None:
    """UserError where a path to be written is one that is read, contains one, or is another to be written.

    Args:
        written: option -> path.
        read: option -> paths; of a folder, every file in it counts as read.
    """
    for option, path in written.items():
        for other, sources in read.items():
            for source in sources:
                if same(path, source):
                    raise UserError(f"{option} {path} is an {other}; choose another name", USAGE)
                if _inside(source, path):
                    raise UserError(f"{option} {path} contains {other} {source}; choose another name", USAGE)
    for (option, path), (other, second) in itertools.combinations(written.items(), 2):
        if same(path, second) or _inside(second, path) or _inside(path, second):
            raise UserError(f"{option} {path} and {other} {second} are in each other's way", USAGE)


def refuse_foreign(
    path: Path, overwrite: bool, ours: Callable[[Path], bool], what: str, option: str = "--overwrite"
) -> None:
    """UserError where something lies at `path` that may not be replaced.

    Args:
        path: to be written.
        overwrite: whether the person asked for replacing an older output.
        ours: whether what lies there is an output of this command, and nothing else.
        what: an older output would be, for the error.
        option: that asks for replacing.
    """
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise UserError(f"{path} exists; choose another name or give {option}", USAGE)
    if path.is_symlink() or not ours(path):
        raise UserError(
            f"{path} is not recognisably {what}, so {option} does not replace it; choose another name or remove it",
            USAGE,
        )


def only_holds(folder: Path, names: Iterable[str]) -> bool:
    """Whether a folder holds nothing but these files and folders."""
    known = set(names)
    return folder.is_dir() and all(entry.name in known for entry in folder.iterdir())


def same(a: Path, b: Path) -> bool:
    """Whether two paths name one file, links followed, there or not."""
    if a.exists() and b.exists():
        return a.samefile(b)
    return a.resolve() == b.resolve()


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over the content of files, in this order; what is no file counts by its name."""
    total = hashlib.sha256()
    for path in paths:
        if path.is_file():
            total.update(bytes.fromhex(file_hash(path)))
        else:
            total.update(str(path).encode())
    return total.hexdigest()


def refuse_beyond_disk(what: str, needed: float, path: Path) -> None:
    """UserError when a file of that many bytes does not fit on the disk that `path` would lie on."""
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{what}, {size(needed)}; the disk of {folder} has {size(free)} free", USAGE)


def _inside(path: Path, folder: Path) -> bool:
    """Whether a path lies in what is, or would replace, a folder."""
    return folder.resolve() in path.resolve().parents
