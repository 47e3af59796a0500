"""`python -m ramen_jax.evaluate`: how good an encoder is on the tasks of PANGAEA, beside simple baselines."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ramen_jax import console, storage

EXAMPLES = """  python -m ramen_jax.evaluate --task sen1floods11 --data s1f11 --checkpoint runs/base --workdir runs/f
  python -m ramen_jax.evaluate --task mados,pastis --data benchmark --checkpoint ramen_base_99.ckpt \\
      --encoder checkpoint,untrained,raw,unet --seeds 234,235,236 --workdir runs/table    # benchmark/mados, ...
  python -m ramen_jax.evaluate --config mine.yaml --data mine --checkpoint ramen_base --target-gsd 20,40,80 \\
      --epochs 20 --workdir runs/curve                                                    # accuracy against cost
  python -m ramen_jax.evaluate --suite learning --checkpoint runs/tiny --workdir runs/learning  # what was learnt"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = console.parser(
        "evaluate",
        (
            "Trains a small decoder on the maps of a frozen encoder, and tests it, by the protocol of PANGAEA. "
            "A run that was stopped goes on where it was, to the same result. The suite `learning` needs no data: "
            "on rendered places, what do features tell beyond raw bands and an untrained encoder?"
        ),
        EXAMPLES,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", default="", help="names of tasks, comma-separated, or all")
    what.add_argument("--config", default="", metavar="FILE", help="a task of your own: a YAML file")
    what.add_argument(
        "--suite", default="", help="learning: measures on rendered places, nothing to download"
    )
    parser.add_argument(
        "--data", type=storage.local, help="folder of the original files; of several tasks: their parent"
    )
    parser.add_argument(
        "--checkpoint", type=storage.checkpoint, help="a workdir, an exported folder or an official .ckpt"
    )
    parser.add_argument(
        "--encoder",
        default="",
        help="checkpoint, untrained, raw, unet, comma-separated (checkpoint where one is given, with the baselines)",
    )
    parser.add_argument("--protocol", default="corrected", help="published or corrected (corrected)")
    parser.add_argument(
        "--target-gsd", default="", metavar="METRES", help="per token, comma-separated (the task's)"
    )
    parser.add_argument("--seeds", default="", help="comma-separated (the protocol's 234; of a suite: 0,1,2)")
    parser.add_argument(
        "--labels",
        default="",
        help="shares of the training labels, comma-separated (1.0; of a suite: 0.1,0.3,1)",
    )
    parser.add_argument(
        "--decoder",
        default="",
        help="another decoder than the task's, or a readout without training: knn, ridge",
    )
    parser.add_argument("--epochs", type=int, help="instead of the protocol's 80 (50 for a classification)")
    parser.add_argument("--batch-size", type=int, help="instead of the protocol's 8")
    parser.add_argument("--replicate", type=int, help="copies of each training place per epoch (the task's)")
    parser.add_argument(
        "--crop", type=int, metavar="PIXELS", help="side of a training crop and of a tile (the task's)"
    )
    parser.add_argument("--channels", type=int, default=512, help="width of a UPerNet (512)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="in which the encoder computes (float32)",
    )
    parser.add_argument("--cache", type=storage.local, help="folder of kept features (WORKDIR/features)")
    parser.add_argument(
        "--cache-limit", type=float, default=50.0, metavar="GIB", help="of that folder (50; 0: none)"
    )
    parser.add_argument(
        "--workdir", type=storage.local, required=True, help="where results, tables and pictures go"
    )
    return parser.parse_args(arguments)


def run(arguments: Sequence[str] | None = None) -> int:
    return console.call("ramen_jax.evaluation.command", parse(arguments))


if __name__ == "__main__":
    console.main(run)
