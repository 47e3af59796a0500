"""`python -m ramen_jax.doctor`: what is wrong with this machine or cluster, and what to change."""

from __future__ import annotations

from ramen_jax import config as configuration
from ramen_jax import console, storage

EXAMPLES = """  python -m ramen_jax.doctor                                                        # this machine
  python -m ramen_jax.doctor --config configs/base.py --workdir runs/base           # for this training
  srun python -m ramen_jax.doctor --config configs/base.py --workdir /shared/base --distributed
  python -m ramen_jax.doctor --coordinator node0:12345 --processes 2 --process-id 0    # on node0, and 1 on the other"""


def run() -> int:
    """The command."""
    parser = console.parser(
        "doctor",
        (
            "Looks at versions, environment, memory, disk, workdir, corpora, ports and devices; with --distributed "
            "also at clocks, the shared workdir and a sum over all processes. Exit status 1 when something is wrong."
        ),
        EXAMPLES,
    )
    parser.add_argument("--config", default="", metavar="FILE", help="configuration to be trained")
    parser.add_argument(
        "--workdir", type=storage.place, metavar="DIR", help="folder of the run; nothing stays in it"
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="as in train: join the other processes and look at all of them",
    )
    parser.add_argument(
        "--coordinator", default="", metavar="HOST:PORT", help="address of process 0; joins it"
    )
    parser.add_argument("--processes", default="", metavar="N", help="how many processes there are")
    parser.add_argument("--process-id", default="", metavar="I", help="number of this one, from 0")
    parser.add_argument(
        "--timeout", type=int, default=60, metavar="SECONDS", help="to wait for the others (60)"
    )
    arguments, overrides = configuration.parse(parser)
    if arguments.timeout < 1:
        raise console.UserError(
            f"--timeout is {arguments.timeout}, expected at least 1 second", console.USAGE
        )
    config = configuration.load(arguments.config, overrides) if arguments.config else None
    if overrides and config is None:
        raise console.UserError(f"{overrides[0]} needs --config", console.USAGE)
    flags = (arguments.coordinator, arguments.processes, arguments.process_id)
    others = flags if arguments.distributed or any(flags) else None
    return console.call("ramen_jax.training.doctor", config, arguments.workdir, others, arguments.timeout)


if __name__ == "__main__":
    console.main(run)
