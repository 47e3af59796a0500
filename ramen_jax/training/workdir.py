"""A workdir: whose run it holds, and what a run leaves there about itself."""

import json
import platform
import subprocess
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

import ramen_jax
from ramen_jax import config as configuration
from ramen_jax.console import DATA, USAGE, UserError
from ramen_jax.parallel import rules
from ramen_jax.training.program import Program


def claim(config: ConfigDict, workdir: Path) -> None:
    """Writes config.json in a new workdir; UserError with the differences when it holds another configuration."""
    path = workdir / "config.json"
    if path.is_file():
        try:
            lines = configuration.differences(configuration.plain(config), json.loads(path.read_text()))
        except ValueError as error:
            raise UserError(
                f"{path} is not readable JSON ({error}); restore it or use another workdir", DATA
            ) from None
        if lines:
            shown = "\n  ".join(lines)
            raise UserError(
                f"workdir {workdir} holds a run with another configuration (there -> here); use another workdir, or "
                f"the same configuration to go on:\n  {shown}",
                USAGE,
            )
        return
    if (workdir / "checkpoints").is_dir() and any((workdir / "checkpoints").iterdir()):
        raise UserError(f"workdir {workdir} holds checkpoints but no config.json; use another workdir", DATA)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            partial = path.with_suffix(".partial")
            configuration.save_json(config, partial)
            partial.rename(path)
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error.strerror or error}", DATA) from None


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
