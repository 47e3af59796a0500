"""`python -m ramen_jax.checkpoint`: what the checkpoints of a training hold, whether they are whole, copies of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ramen_jax import console, export, storage
from ramen_jax.console import USAGE, UserError
from ramen_jax.training import inspection

ACTIONS = ("inspect", "verify", "copy", "to-safetensors")

EXAMPLES = """  python -m ramen_jax.checkpoint inspect runs/base                   # step, size, state, what was trained
  python -m ramen_jax.checkpoint verify runs/base                     # every file against its SHA-256
  python -m ramen_jax.checkpoint verify runs/base/checkpoints/400
  python -m ramen_jax.checkpoint copy runs/base --output elsewhere    # the newest; `train --workdir elsewhere` goes on
  python -m ramen_jax.checkpoint copy runs/base --step 400 --output elsewhere
  python -m ramen_jax.checkpoint to-safetensors runs/base --output ramen.safetensors    # as ramen_jax.export"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = console.parser(
        "checkpoint",
        (
            "Lists checkpoints, compares them with the hashes they were written with, copies one into a workdir that "
            "a training goes on in, or writes its parameters as PyTorch reads them. Moves and deletes nothing."
        ),
        EXAMPLES,
    )
    parser.add_argument("action", choices=ACTIONS, help="what to do")
    parser.add_argument(
        "path",
        type=storage.place,
        help="a workdir, its checkpoints folder, or one checkpoint; in a bucket too",
    )
    parser.add_argument("--step", type=int, help="the checkpoint of this step (all; copy: the newest)")
    parser.add_argument(
        "--output", type=storage.place, help="copy: workdir to copy into; to-safetensors: file to write"
    )
    parser.add_argument("--decoder", action="store_true", help="to-safetensors: with the decoder")
    parser.add_argument("--overwrite", action="store_true", help="to-safetensors: replace an existing file")
    options = parser.parse_args(arguments)
    writes = options.action in ("copy", "to-safetensors")
    if writes and options.output is None:
        raise UserError(f"{options.action} needs --output", USAGE)
    if not writes and options.output is not None:
        raise UserError(f"{options.action} writes nothing, so it has no --output", USAGE)
    if options.action != "to-safetensors" and (options.decoder or options.overwrite):
        raise UserError("--decoder and --overwrite go with to-safetensors", USAGE)
    if options.action == "to-safetensors" and not str(options.output).endswith(".safetensors"):
        raise UserError(f"--output {options.output}: expected NAME.safetensors", USAGE)
    if options.action == "to-safetensors":
        options.output = storage.local(str(options.output))
    return options


def run(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = parse(arguments)
    step, action = options.step, options.action
    with inspection.at_hand(options.path, step, action, print) as (path, say):
        if action == "inspect":
            inspection.inspect(path, step, say)
        elif action == "verify":
            inspection.verify(path, step, say)
        elif action == "copy":
            send = (
                inspection.copy_to_bucket if isinstance(options.output, storage.Bucket) else inspection.copy
            )
            send(path, step, options.output, say)
        else:
            chosen = str(inspection.newest_of(path, step))
            flags = [flag for flag in ("--decoder", "--overwrite") if getattr(options, flag[2:])]
            return export.run(["--checkpoint", chosen, "--output", str(options.output), *flags])
    return 0


if __name__ == "__main__":
    console.main(run)
