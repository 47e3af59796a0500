"""The files of checkpoints: where they lie, and whether they are what was written. Imports no JAX.

Hashes of all its files are listed last in a checkpoint, and compared whenever it is loaded.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ramen_jax.console import DATA, UserError
from ramen_jax.documents import read_json_object
from ramen_jax.own_files import file_hash

LIST = "files.json"  # in the folder of a checkpoint, so that it travels with a copy
THREADS = 8  # hashing releases the interpreter lock
META = "meta"  # the folder of the JSON that says what a checkpoint is
OLD_SIZES = "checkpoint_files"  # beside `checkpoints`, of versions that listed sizes only


class Content(NamedTuple):
    """What its files say about a checkpoint."""

    problem: str  # the first difference from what was written, "" when there is none
    verified: bool  # False where there is nothing to compare with


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in a `checkpoints` folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit() and entry.is_dir())


def find(path: str | Path) -> Path:
    """The checkpoint folder meant by a workdir (its newest), a `checkpoints` folder, or one checkpoint itself."""
    path = Path(path).expanduser()
    for folder in (path, path / "checkpoints"):
        if (folder / META).is_dir() and (folder / "params").is_dir():
            return folder
        steps = steps_in(folder)
        if steps:
            return folder / str(steps[-1])
    raise UserError(
        f"no checkpoint at {path}; expected a workdir, its checkpoints folder, or one of its steps", DATA
    )


def read_meta(folder: Path) -> dict[str, Any]:
    """What a checkpoint says about itself (`checkpoint.py`). UserError when it does not, or not as ours do."""
    path = folder / META / "metadata"
    meta = read_json_object(path, "what a checkpoint says about itself")
    for key in ("config", "sensors", "fingerprints"):
        if not isinstance(meta.get(key), dict):
            raise UserError(f"{path} has no {key}; expected a checkpoint that ramen_jax.train wrote", DATA)
    if not isinstance(meta.get("step"), int):
        raise UserError(f"{path} has no step; expected a checkpoint that ramen_jax.train wrote", DATA)
    return meta


def write_list(folder: Path) -> None:
    """Hashes every file of a complete checkpoint; the list appears whole or not at all."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if not name.startswith(LIST)]
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = list(pool.map(lambda name: file_hash(folder / name), names))
    part = folder / f"{LIST}.part"
    with part.open("w") as file:
        json.dump({"sha256": dict(zip(names, hashes, strict=True))}, file, indent=0)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / LIST)


def compare(folder: Path, hashes: bool = True) -> Content:
    """Reads every file of a checkpoint and compares it with the list; without `hashes`, only looks whether it is there.

    Raises:
        OSError: a file that is there could not be read, which says nothing about what it holds.
    """
    listed = folder / LIST
    if not listed.is_file():
        return Content(_old_sizes(folder), False)
    try:
        expected = json.loads(listed.read_bytes())["sha256"]
        names = sorted(expected)
    except (ValueError, KeyError, TypeError):
        return Content(f"{LIST}, its list of files, is not readable", True)

    def problem(name: str) -> str:
        if not hashes:
            return "" if (folder / name).is_file() else f"{name} is missing"
        try:
            found = file_hash(folder / name)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return f"{name} is missing"
        return "" if found == expected[name] else f"{name} is not what was written"

    with ThreadPoolExecutor(THREADS) as pool:
        return Content(next(filter(None, pool.map(problem, names)), ""), True)


def _old_sizes(folder: Path) -> str:
    """The first file whose size is not the one that an earlier version listed."""
    listed = folder.parent.parent / OLD_SIZES / f"{folder.name}.json"
    try:
        sizes = json.loads(listed.read_bytes())
    except (OSError, ValueError):
        return ""
    for name, size in sizes.items() if isinstance(sizes, dict) else ():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            return f"{name} {'is missing' if found is None else f'has {found} bytes'}, expected {size}"
    return ""
