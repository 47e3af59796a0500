"""Weights for everybody: a checkpoint as PyTorch files with the official names, and the way back.

What is written is read again and compared before it is reported done: PyTorch and JAX run the same inputs, and
parity.json lies beside the result. Files appear whole or not at all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ramen_jax import console
from ramen_jax.console import USAGE, UserError

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
        "--checkpoint", type=Path, help="a training's workdir, one of its steps, or an exported folder"
    )
    origin.add_argument(
        "--import", dest="official", type=Path, help="an official checkpoint, turned into a folder"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="NAME.safetensors, NAME.ckpt, NAME.jaxexport, or a folder"
    )
    parser.add_argument(
        "--decoder", action="store_true", help="with the decoder (official MAE); default: encoder alone"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument("--licence", type=Path, help="licence file of the weights")
    parser.add_argument("--results", type=Path, help="JSON of results to quote in the model card")
    parser.add_argument("--sensors", type=Path, help="--import: YAML of the sensors it was trained with")
    parser.add_argument("--num-heads", type=int, help="--import: heads of an encoder of unusual width")
    parser.add_argument(
        "--recipe", choices=("reference", "fixed"), default="reference", help="--import: how to run it"
    )
    parser.add_argument("--input", action="append", default=[], help="jax.export: sensor=TxHxW, repeated")
    parser.add_argument("--target-gsd", type=float, help="jax.export: metres per token")
    return parser.parse_args(arguments)


def run() -> int:
    options = parse()
    try:
        from ramen_jax.interchange import exchange
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UserError(
            "export needs PyTorch to verify what it writes: pip install 'torch>=2.13,<3'", USAGE
        ) from error
    from ramen_jax.interchange.source import read_checkpoint

    if options.official is not None:
        source = exchange.read_official(options.official, options.sensors, options.recipe, options.num_heads)
        decoder = source.tensors.keys() != source.encoder.keys()
    else:
        decoder = options.decoder
        source = read_checkpoint(options.checkpoint, decoder)
    if options.output.suffix == ".jaxexport":
        if not options.input or options.target_gsd is None:
            raise UserError("a jax.export artefact needs --input and --target-gsd", USAGE)
        exchange.write_artefact(source, options.output, options.input, options.target_gsd)
        print(f"wrote {options.output}")
        return 0
    results = json.loads(options.results.read_text()) if options.results else None
    report = exchange.export(
        source,
        options.output,
        decoder=decoder,
        overwrite=options.overwrite,
        licence=options.licence or exchange.LICENCE_FILE,
        results=results,
    )
    cosine = min(run["cosine"] for run in report["runs"])
    print(
        f"wrote {options.output}: {len(source.tensors)} tensors; PyTorch and JAX agree to {report['worst']:.1e} "
        f"(cosine {cosine:.9f}) in {len(report['runs'])} comparisons"
    )
    return 0


if __name__ == "__main__":
    console.main(run)
