"""Weights for everybody: a checkpoint as PyTorch files with the official names, and the way back.

What is written is read again and compared before it is reported done: PyTorch and JAX run the same inputs, and
parity.json lies beside the result. Files appear whole or not at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ramen_jax import console, storage
from ramen_jax.console import USAGE, UserError
from ramen_jax.own_files import refuse_overlap

FORMATS = "NAME.safetensors, NAME.ckpt, NAME.pt, NAME.jaxexport"
OTHER_FORMATS = (".pth", ".bin", ".onnx", ".npz", ".h5", ".msgpack")

EXAMPLES = """  python -m ramen_jax.export --checkpoint runs/base --output ramen_base            # folder for the hub
  python -m ramen_jax.export --checkpoint runs/base --output ramen_base.safetensors
  python -m ramen_jax.export --checkpoint runs/base --output ramen_base.ckpt --decoder
  python -m ramen_jax.export --import ramen_base_99.ckpt --output ramen_base
  python -m ramen_jax.export --checkpoint ramen_base --output s2.jaxexport \\
      --input flairhub/s2=3x64x64 --target-gsd 40                             # T x H x W pixels, for jax.export
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = console.parser("export", __doc__ or "", EXAMPLES)
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument(
        "--checkpoint",
        type=storage.checkpoint,
        help="a training's workdir, one of its steps, or an exported folder",
    )
    origin.add_argument(
        "--import", dest="official", type=storage.local, help="an official checkpoint, turned into a folder"
    )
    parser.add_argument("--output", type=storage.local, required=True, help=f"{FORMATS}, or a folder")
    parser.add_argument(
        "--decoder", action="store_true", help="with the decoder (official MAE); default: encoder alone"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument("--licence", type=storage.local, help="licence file of the weights")
    parser.add_argument("--results", type=storage.local, help="JSON of results to quote in the model card")
    parser.add_argument(
        "--sensors", type=storage.local, help="--import: YAML of the sensors it was trained with"
    )
    parser.add_argument("--num-heads", type=int, help="--import: heads of an encoder of unusual width")
    parser.add_argument(
        "--recipe", choices=("reference", "fixed"), help="--import: how to run it (default reference)"
    )
    parser.add_argument("--input", action="append", default=[], help="jax.export: sensor=TxHxW, repeated")
    parser.add_argument("--target-gsd", type=float, help="jax.export: metres per token")
    return parser.parse_args(arguments)


def _check(options: argparse.Namespace) -> None:
    """What can be told before anything is read."""
    if options.official is None:
        for key in ("sensors", "num_heads", "recipe"):
            if getattr(options, key) is not None:
                raise UserError(
                    f"--{key.replace('_', '-')} describes an official checkpoint; it goes with --import",
                    USAGE,
                )
    if options.output.suffix in OTHER_FORMATS:
        raise UserError(
            f"--output {options.output}: expected {FORMATS}, or a folder; ONNX is written by to_onnx in the folder's "
            "torch_ramen.py",
            USAGE,
        )
    if options.output.suffix == ".jaxexport" and (not options.input or options.target_gsd is None):
        raise UserError("a jax.export artefact needs --input and --target-gsd", USAGE)
    for path in (options.licence, options.results):
        if path is not None and not path.is_file():
            raise UserError(f"no file {path}", USAGE)
    read = {
        "--checkpoint": [options.checkpoint],
        "--import": [options.official],
        "--licence": [options.licence],
        "--results": [options.results],
        "--sensors": [options.sensors],
    }
    given = {option: paths for option, paths in read.items() if paths[0] is not None}
    written = {"--output": options.output}
    if options.output.suffix in (".safetensors", ".ckpt", ".pt"):
        written["the report of --output,"] = options.output.with_suffix(".parity.json")
    refuse_overlap(written, given)
    if options.output.exists() and not options.overwrite:
        raise UserError(f"{options.output} exists; choose another name or give --overwrite", USAGE)


def run(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = parse(arguments)
    _check(options)
    try:
        return console.call("ramen_jax.training.export", options)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UserError(
            "export needs PyTorch to verify what it writes: pip install 'torch>=2.13,<3'", USAGE
        ) from error


if __name__ == "__main__":
    console.main(run)
