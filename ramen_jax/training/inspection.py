"""Checkpoints as files: what they hold, whether they are whole, copies that a training goes on from. Imports no JAX."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ramen_jax import config as configuration
from ramen_jax.console import DATA, USAGE, UserError
from ramen_jax.documents import read_json_object
from ramen_jax.limits import size
from ramen_jax.own_files import refuse_overlap
from ramen_jax.storage import MARKER, Bucket, fetch, scratch_of, workdir_of
from ramen_jax.training import checkpoint_files, metrics
from ramen_jax.training.lock import LOCK

SIDE_FILES = ("parameters.txt", "runs.jsonl", "bad_samples.jsonl")  # of a workdir, which travel as they are

Say = Callable[[str], None]


class Found(NamedTuple):
    """A checkpoint that was looked at."""

    step: int
    folder: Path
    bytes: int
    state: str  # "complete", or what is wrong
    whole: bool  # as far as was looked
    meta: dict[str, Any]  # {} where it cannot be read
    description: list[str]  # what it was trained as and on, in lines


@contextlib.contextmanager
def at_hand(place: Path | Bucket, step: int | None, action: str, say: Say) -> Iterator[tuple[Path, Say]]:
    """A local path of checkpoints, and `say` as it has to be called. Of those in a bucket the path is a copy, removed
    afterwards: of all to be verified, else of one; to be inspected, empty files of the right sizes stand for the
    arrays. What is said, and errors of the block, name the bucket instead of the copy.

    Raises:
        UserError: there is none of that step, or the bucket cannot be read.
    """
    if not isinstance(place, Bucket):
        yield place, say
        return
    bucket, named = workdir_of(place)
    step = named if step is None else step
    base = scratch_of(bucket.url, "look").parent
    with contextlib.ExitStack() as stack:
        try:
            base.mkdir(parents=True, exist_ok=True)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=base)))
            steps = bucket.steps()
            wanted = steps if step is None else [step] if step in steps else []
            if not wanted:
                there = ", ".join(map(str, steps)) or "none"
                raise UserError(f"no complete checkpoint at {place}; there: {there}", DATA)
            if action == "inspect":
                _outline(bucket, wanted, folder)
            else:
                for number in wanted if action == "verify" else wanted[-1:]:
                    fetch(bucket, number, folder)
                there_too = [name for name in ("config.json", metrics.FILE, *SIDE_FILES) if bucket.read(name)]
                bucket.download(there_too, folder)
        except OSError as error:
            raise UserError(str(error), DATA) from error
        try:
            yield folder, lambda sentence: say(sentence.replace(str(folder), bucket.url))
        except UserError as error:
            raise UserError(str(error).replace(str(folder), bucket.url), error.code) from error


def _outline(bucket: Bucket, steps: list[int], folder: Path) -> None:
    for step in steps:
        name = f"checkpoints/{step}"
        bucket.download([f"{name}/{MARKER}", f"{name}/{checkpoint_files.META}/metadata"], folder)
        for file, length in bucket.files(name).items():
            path = folder / file
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as empty:
                    empty.truncate(length)


def folders(path: Path, step: int | None = None) -> dict[int, Path]:
    """Step -> folder of the checkpoints that a workdir, its checkpoints folder, or one checkpoint stands for.

    Raises:
        UserError: there is none, or none of that step (the steps there are listed).
    """
    newest = checkpoint_files.find(path)
    if newest == path:
        found = {checkpoint_files.read_meta(path)["step"]: path}
    else:
        parent = newest.parent
        found = {number: parent / str(number) for number in checkpoint_files.steps_in(parent)}
    if step is None:
        return found
    if step not in found:
        there = ", ".join(map(str, sorted(found)))
        raise UserError(f"no checkpoint of step {step} in {path}; there are those of {there}", USAGE)
    return {step: found[step]}


def newest_of(path: Path, step: int | None = None) -> Path:
    """The folder of the newest checkpoint, or of the one of a step. Errors as `folders`."""
    found = folders(path, step)
    return found[max(found)]


def look(step: int, folder: Path, hashes: bool) -> Found:
    """What a checkpoint is; with `hashes`, every file is read."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    try:
        meta = checkpoint_files.read_meta(folder)
        content = checkpoint_files.compare(folder, hashes)
        description = _description(meta)
    except (UserError, OSError) as error:
        return Found(step, folder, total, f"damaged: {error}", False, {}, [])
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        problem = f"damaged: what it says about itself cannot be understood ({type(error).__name__}: {error})"
        return Found(step, folder, total, problem, False, {}, [])
    state = "" if content.verified else "complete, but nothing lists its hashes"
    state = f"damaged: {content.problem}" if content.problem else state
    state = state or ("whole" if hashes else "complete")
    return Found(step, folder, total, state, not content.problem, meta, description)


def inspect(path: Path, step: int | None, say: Say) -> None:
    """Says what the checkpoints at a path are; reads none of their arrays."""
    everyone = [look(number, folder, False) for number, folder in sorted(folders(path, step).items())]
    told: Mapping[str, Any] = {}
    for found in everyone:
        wrote = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(found.folder.stat().st_mtime))
        say(f"step {found.step}: {size(found.bytes)}, written {wrote}, {found.state}, {found.folder}")
        if found.meta and found.meta["config"] != told:
            told = found.meta["config"]
            for line in found.description:
                say(f"  {line}")


def _description(meta: Mapping[str, Any]) -> list[str]:
    config = meta["config"]
    model, training = config.get("model", {}), config.get("train", {})
    arrays = meta.get("tree", {}).get("params", {})
    parameters = sum(_product(shape) for shape, _ in arrays.values())
    lines = [
        f"recipe {config.get('recipe')}, seed {config.get('seed')}, {model.get('embed_dim')} wide, "
        f"{model.get('depth')} blocks, {parameters:,} parameters, {training.get('steps') or 'all'} steps"
    ]
    for corpus, sensors in meta["sensors"].items():
        named = ", ".join(_sensor(name, entry) for name, entry in sensors.items())
        lines.append(f"corpus {corpus}: {named}; fingerprint {meta['fingerprints'].get(corpus, 'none')}")
    return lines


def _product(shape: list[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _sensor(name: str, entry: Mapping[str, Any]) -> str:
    bands = entry.get("bands", ())
    return f"{name} ({entry.get('name', name)}, {len(bands)} bands, {entry.get('gsd')} m)"


def verify(path: Path, step: int | None, say: Say) -> None:
    """Reads every file of the checkpoints at a path. UserError when one is damaged, naming the newest whole one."""
    everyone = []
    for number, folder in sorted(folders(path, step).items()):
        everyone.append(look(number, folder, True))
        say(f"step {number}: {everyone[-1].state}")
    damaged = [found for found in everyone if not found.whole]
    if damaged:
        whole = [found.step for found in everyone if found.whole]
        rest = f"the newest whole one is step {max(whole)}" if whole else "none is whole"
        steps = ", ".join(str(found.step) for found in damaged)
        raise UserError(
            f"{path}: {len(damaged)} of {len(everyone)} checkpoints damaged (step {steps}); {rest}"
        )


def copy(path: Path, step: int | None, output: Path, say: Say) -> None:
    """Copies one checkpoint into a workdir that a training goes on in, with configuration and metrics so far.

    Raises:
        UserError: the checkpoint is damaged, or the output is no place for it. Nothing that lies there is touched.
    """
    found = folders(path, step)
    chosen = max(found)
    source = look(chosen, found[chosen], True)
    if not source.whole:
        raise UserError(f"checkpoint {source.folder} is {source.state}; nothing was copied", DATA)
    refuse_overlap({"--output": output}, {"existing checkpoint": [source.folder]})
    config = source.meta["config"]
    target = output / "checkpoints" / str(chosen)
    _refuse_place(output, target, config)
    part = target.with_name(f".{chosen}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source.folder, part)
        problem = checkpoint_files.compare(part).problem
        if problem:
            raise UserError(f"the copy in {output} is damaged ({problem}); is its disk sound?", DATA)
        for name, text in _side_files(source, chosen).items():
            if not (output / name).exists():
                _write_whole(output / name, text)
        part.rename(target)
    except OSError as error:
        raise UserError(
            f"checkpoint {source.folder} was not copied to {output}: {error.strerror or error}", DATA
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    say(f"copied the checkpoint of step {chosen} to {target}")
    say(
        f"a training goes on from it with --workdir {output}, the same configuration and the same prepared corpora"
    )


def copy_to_bucket(path: Path, step: int | None, output: Bucket, say: Say) -> None:
    """As `copy`, into a workdir in a bucket; the list of hashes goes last.

    Raises:
        UserError: as `copy`; or a training works there; or the checkpoint has no list of hashes.
    """
    found = folders(path, step)
    name = f"checkpoints/{max(found)}"
    if not (found[max(found)] / MARKER).is_file():
        raise UserError(
            f"checkpoint {found[max(found)]} has no list of hashes, and in a bucket it would count as none; copy it to "
            "a local folder and let a training go on from there",
            DATA,
        )
    try:
        there = output.files()
        if LOCK in there:
            raise UserError(f"a training works in {output}; wait for it or use another --output", USAGE)
        if f"{name}/{MARKER}" in there:
            raise UserError(f"{output}/{name} exists; choose another --output", USAGE)
        if there and "config.json" not in there:
            raise UserError(f"--output {output} is neither empty nor a workdir; choose another", USAGE)
        with tempfile.TemporaryDirectory(prefix="ramen_jax_") as scratch:
            folder = Path(scratch) / "workdir"
            output.download([file for file in there if file == "config.json"], folder)
            copy(path, step, folder, lambda sentence: None)
            files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
            new = [file for file in files if file not in there or file.startswith(f"{name}/")]
            new.remove(f"{name}/{MARKER}")
            output.remove(
                file for file in there if file.startswith(f"{name}/")
            )  # of a copy that was interrupted
            output.upload((folder / file, file) for file in new)
            output.upload([(folder / name / MARKER, f"{name}/{MARKER}")])
    except OSError as error:
        raise UserError(f"{error}; the checkpoint was not copied", DATA) from error
    say(f"copied the checkpoint of step {max(found)} to {output}/{name}")
    say(
        f"a training goes on from it with --workdir {output}, the same configuration and the same prepared corpora"
    )


def _refuse_place(output: Path, target: Path, config: Mapping[str, Any]) -> None:
    """UserError where a copy would mix with what it does not belong to."""
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file, expected a folder", USAGE)
    if target.exists():
        raise UserError(f"{target} exists; choose another --output", USAGE)
    there = output / "config.json"
    if there.is_file():
        lines = configuration.differences(config, read_json_object(there, "the configuration of a run"))
        if lines:
            shown = "\n  ".join(lines[:20])
            raise UserError(
                f"--output {output} holds a run with another configuration (there -> the checkpoint's):\n  {shown}",
                USAGE,
            )
    elif output.is_dir() and any(output.iterdir()):
        raise UserError(f"--output {output} is neither empty nor a workdir; choose another", USAGE)


def _side_files(source: Found, step: int) -> dict[str, str]:
    """Name -> text of what goes along with a checkpoint of a workdir; a checkpoint alone has its configuration."""
    workdir = source.folder.parent.parent
    texts = {"config.json": json.dumps(source.meta["config"], indent=1) + "\n"}
    if (workdir / "config.json").is_file():
        told = metrics.before(workdir / metrics.FILE, step)
        texts |= {metrics.FILE: told} if told else {}
        there = [name for name in SIDE_FILES if (workdir / name).is_file()]
        texts |= {name: (workdir / name).read_text(errors="replace") for name in there}
    return texts


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)
