"""`python -m ramen_jax.compile_check`: does a training fit a TPU slice that is not here, and how fast can it be?

The real step of every corpus is compiled for the slice; nothing runs and no data is needed. Memory and collectives
are the compiler's; the step time is a roofline: the longest of arithmetic, memory traffic and interconnect, each at its
peak.
"""

from ramen_jax import config as configuration
from ramen_jax import console

EXAMPLES = """  python -m ramen_jax.compile_check --config configs/base.py --topology v5e:4x4 --rows 1,2,4
  python -m ramen_jax.compile_check --config configs/huge.py --topology v5p:4x4x8 --corpus worldstrat"""


def run() -> int:
    """The command."""
    parser = console.parser(
        "compile_check", "Memory, collectives and the fastest possible step on a TPU slice.", EXAMPLES
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="configuration, e.g. configs/base.py")
    parser.add_argument("--topology", required=True, help="chips and their arrangement, e.g. v5e:4x4")
    parser.add_argument(
        "--rows", default="", help="rows per chip and step, e.g. 4,8 (config.data.rows_per_step)"
    )
    parser.add_argument("--corpus", default="", help="one of the configuration's corpora (all)")
    arguments, overrides = configuration.parse(parser)
    config = configuration.load(arguments.config, overrides)
    return console.call("ramen_jax.benchmarks.compile_check", config, arguments, overrides)


if __name__ == "__main__":
    console.main(run)
