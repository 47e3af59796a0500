"""`python -m ramen_jax.bench`: time and memory of the real training step on this machine.

Random images in a corpus's geometry, one view per row and no padding, through the very step that training compiles.
Nothing is read from disk, so the figures are those of the model alone; `--data-only` measures the other half: reading,
planning and packing a prepared corpus as the configuration says, without any model.
"""

from ramen_jax import config as configuration
from ramen_jax import console

EXAMPLES = """  python -m ramen_jax.bench --config configs/base.py --corpus flairhub --target-gsd 10 --batch 1 --dates 8
  python -m ramen_jax.bench --config configs/base.py --corpus mmearth --target-gsd 20 --batch 2
  python -m ramen_jax.bench --config configs/base.py --corpus flairhub --data-only --workdir runs/base"""


def run() -> int:
    """The command."""
    parser = console.parser(
        "bench", "Time and memory of the training step, or of the data pipeline.", EXAMPLES
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="configuration, e.g. configs/base.py")
    parser.add_argument("--corpus", required=True, help="corpus geometry: flairhub, mmearth, worldstrat, ...")
    parser.add_argument(
        "--target-gsd", type=float, default=10.0, metavar="METRES", help="metres per token (10)"
    )
    parser.add_argument("--batch", type=int, default=1, help="views per step (1)")
    parser.add_argument(
        "--dates", type=int, default=0, help="dates of every series (0: the corpus's longest)"
    )
    parser.add_argument("--modalities", default="", help="kept ones, in token order, comma-separated (all)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps after a first untimed one (3)")
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
    overrides += [f"data.rows_per_step={arguments.batch}"] if not arguments.data_only else []
    config = configuration.load(arguments.config, overrides)
    return console.call("ramen_jax.benchmarks.step", config, arguments)


if __name__ == "__main__":
    console.main(run)
