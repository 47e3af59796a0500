"""`python -m ramen_jax.bench`: time and memory of the real training step on this machine.

Random images in a corpus's geometry, one view per row and no padding, through the very step that training compiles.
Nothing is read from disk, so the figures are those of the model alone; `--data-only` measures the other half: reading,
planning and packing a prepared corpus as the configuration says, without any model. Several values of an option,
comma-separated, make a table of all their combinations, each measured in a process of its own.
"""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from itertools import product
from typing import Any

from ramen_jax import config as configuration
from ramen_jax import console, storage

EXAMPLES = """  python -m ramen_jax.bench --config configs/base.py --corpus flairhub --target-gsd 10 --batch 1 --dates 8
  python -m ramen_jax.bench --config configs/small.py,configs/base.py --corpus flairhub,mmearth \\
      --target-gsd 10,20,40 --precision float32,bfloat16 --output speed
  python -m ramen_jax.bench --config configs/base.py --corpus mmearth --target-gsd 20 \\
      --against "python other_code.py --gsd {target_gsd} --batch {batch}"
  python -m ramen_jax.bench --config configs/base.py --corpus flairhub --data-only --workdir runs/base"""
LISTS = ("config", "corpus", "target_gsd", "batch", "dates", "modalities", "precision")


def several(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Comma-separated values of a kind."""

    def read(text: str) -> list[Any]:
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError:
            raise ArgumentTypeError(f"{text!r}, expected numbers, comma-separated") from None

    return read


def run() -> int:
    """The command."""
    parser = console.parser(
        "bench", "Time and memory of the training step, or of the data pipeline.", EXAMPLES
    )
    parser.add_argument(
        "--config",
        required=True,
        type=several(str),
        metavar="FILE",
        help="configuration, e.g. configs/base.py",
    )
    parser.add_argument(
        "--corpus",
        required=True,
        type=several(str),
        help="corpus geometry: flairhub, mmearth, worldstrat, ...",
    )
    parser.add_argument(
        "--target-gsd", type=several(float), default=[10.0], metavar="METRES", help="metres per token (10)"
    )
    parser.add_argument("--batch", type=several(int), default=[1], help="views per step (1)")
    parser.add_argument(
        "--dates", type=several(int), default=[0], help="dates of every series (0: the corpus's longest)"
    )
    parser.add_argument(
        "--modalities", type=several(str), default=[""], help="kept ones, in token order, joined with + (all)"
    )
    parser.add_argument(
        "--precision", type=several(str), default=[""], help="float32 or bfloat16 (the configuration's)"
    )
    parser.add_argument("--steps", type=int, default=3, help="timed steps after a first untimed one (3)")
    parser.add_argument(
        "--output", type=storage.local, metavar="DIR", help="folder for results.json, table.md, speed.png"
    )
    parser.add_argument(
        "--against",
        default="",
        metavar="COMMAND",
        help="another command that prints a line of JSON per step: run in turns with ours; {corpus}, {target_gsd}, "
        "{batch}, {dates}, {modalities} and {precision} are filled in",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON per step, then all figures as one"
    )
    parser.add_argument(
        "--data-only", action="store_true", help="measure the data pipeline instead of the model"
    )
    parser.add_argument(
        "--workdir", default="", metavar="DIR", help="--data-only: of a training, to find its prepared corpus"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="--data-only: of each of its two measurements (10)"
    )
    parser.add_argument(
        "--step-seconds", type=float, default=1.0, help="--data-only: time of the training step to be fed (1)"
    )
    arguments, overrides = configuration.parse(parser)
    cells = cells_of(arguments)
    if arguments.output or arguments.against or len(cells) > 1:
        if arguments.data_only or arguments.json:
            raise console.UserError(
                "--data-only and --json measure one thing, without --output or --against", console.USAGE
            )
        return console.call("ramen_jax.benchmarks.grid", arguments, cells, overrides)
    (cell,) = cells
    if not arguments.data_only:
        overrides += [f"data.rows_per_step={cell.batch}"]
        overrides += [f"model.dtype={cell.precision}"] if cell.precision else []
    return console.call("ramen_jax.benchmarks.step", configuration.load(cell.config, overrides), cell)


def cells_of(arguments: Namespace) -> list[Namespace]:
    """One namespace of single values for every combination of the lists."""
    combinations = product(*(getattr(arguments, name) for name in LISTS))
    return [Namespace(**{**vars(arguments), **dict(zip(LISTS, values))}) for values in combinations]


if __name__ == "__main__":
    console.main(run)
