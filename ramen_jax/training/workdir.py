"""A workdir: whose run it holds, and what a run leaves there about itself."""

import json
import os
import platform
import subprocess
import time
import uuid
from pathlib import Path

import jax
from ml_collections import ConfigDict

import ramen_jax
from ramen_jax import config as configuration
from ramen_jax.console import DATA, USAGE, UserError
from ramen_jax.documents import read_json_object
from ramen_jax.parallel import agree, rules
from ramen_jax.parallel.line import processes
from ramen_jax.training import checkpoint, metrics
from ramen_jax.training.program import Program

APPEARS = 5.0  # seconds
REMAINS = ("checkpoints_damaged", "checkpoint_files", checkpoint.SAVED)


def check(config: ConfigDict, workdir: Path) -> bool:
    """Whether the workdir already holds the run of this configuration. Writes nothing.

    Raises:
        UserError: it holds the run of another configuration (with the differences), or what is no run of ours.
    """
    path = workdir / "config.json"
    if os.path.lexists(workdir) and not workdir.is_dir():
        raise UserError(f"workdir {workdir} is a file, expected a folder", USAGE)
    if not path.is_file():
        if (workdir / "checkpoints").is_dir() and any((workdir / "checkpoints").iterdir()):
            raise UserError(
                f"workdir {workdir} holds checkpoints but no config.json; use another workdir", DATA
            )
        return False
    found = read_json_object(path, "the configuration of a run")
    lines = configuration.differences(configuration.plain(config), found)
    if lines:
        shown = "\n  ".join(lines)
        raise UserError(
            f"workdir {workdir} holds a run with another configuration (there -> here); use another workdir, or "
            f"the same configuration to go on:\n  {shown}",
            USAGE,
        )
    return True


def make(workdir: Path) -> None:
    """The folder. Raises UserError when it cannot be."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error.strerror or error}", DATA) from None


def require_shared(workdir: Path) -> None:
    """UserError, in every process, unless all of them see the same folder: each leaves a file and looks for others'."""
    if agree.alone():
        return
    token = agree.from_primary("looking at the workdir", uuid.uuid4().hex)
    mine = workdir / f".seen_{token}_{jax.process_index()}"
    try:
        mine.write_text(token)
        agree.together("writing to the workdir")
        others = range(jax.process_count()) if jax.process_index() == 0 else [0]
        # Who sees process 0 and is seen by it shares the workdir with everybody.
        unseen = [n for n in others if not _appears(workdir / f".seen_{token}_{n}", token)]
        found = agree.combined("looking at the workdir", unseen, _strangers)
    finally:
        mine.unlink(missing_ok=True)
    if found:
        raise UserError(
            f"workdir {workdir} is not the same folder in process 0 and in {processes(found)}; give one that all hosts "
            "share",
            USAGE,
        )


def _strangers(unseen: list[list[int]]) -> list[int]:
    """Processes that process 0 does not see, or that do not see it."""
    return sorted({*unseen[0], *(number for number, others in enumerate(unseen) if number and others)})


def _appears(path: Path, content: str) -> bool:
    """Whether a file is there, which a network file system may take seconds to show."""
    deadline = time.monotonic() + APPEARS
    while True:
        try:
            if path.read_text() == content:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def claim(config: ConfigDict, workdir: Path) -> None:
    """Writes config.json in a new workdir. Raises UserError as `check`, or when the workdir cannot be written."""
    if check(config, workdir):
        return
    path = workdir / "config.json"
    try:
        if jax.process_index() == 0:
            partial = path.with_suffix(".partial")
            configuration.save_json(config, partial)
            partial.rename(path)
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error.strerror or error}", DATA) from None


def begin_at_nothing(config: ConfigDict, workdir: Path) -> None:
    """For a run without a checkpoint to go on from: makes sure that no earlier work is lost by starting at step 0.

    What a run leaves that was ended before its first checkpoint is no work: the same steps are done again. With
    config.train.from_scratch, the metrics of earlier work are renamed.

    Raises:
        UserError: an earlier run came as far as a checkpoint here, which is gone.
    """
    lines = metrics.steps_in(workdir / metrics.FILE)
    found = [name for name in REMAINS if _holds_something(workdir / name)]
    if lines > 2 * config.checkpoint.every:  # the second save waits for the first
        found.append(f"{metrics.FILE} with {lines} steps")
    if not found:
        return
    if not config.train.from_scratch:
        raise UserError(
            f"workdir {workdir} holds what is left of an earlier run ({', '.join(found)}) and no checkpoint to go on "
            "from; restore the checkpoints, use another workdir, or start from step 0 here with "
            "--config.train.from_scratch=true (nothing is deleted)",
            DATA,
        )
    if jax.process_index() == 0:
        for name in (checkpoint.SAVED, metrics.FILE):
            path = workdir / name
            if path.is_file():
                path.rename(path.with_name(f"{path.stem}_before_{time.time_ns()}{path.suffix}"))


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def describe_run(workdir: Path, program: Program) -> None:
    """Appends to runs.jsonl what this process runs on, and writes parameters.txt."""
    facts = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git": git_hash(),
        "recipe": program.config.recipe,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "host": platform.node(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "device_kind": jax.devices()[0].device_kind,
    }
    with (workdir / "runs.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")
    table = rules.table(program.abstract.params, program.logical_axes)
    (workdir / "parameters.txt").write_text(table)


def git_hash() -> str:
    """Commit of the checkout this package runs from, with "+" when files differ from it; "" outside of one."""
    folder = str(Path(ramen_jax.__file__).parent)

    def git(*arguments: str) -> str:
        command = ["git", "-C", folder, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return ""
