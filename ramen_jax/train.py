"""`python -m ramen_jax.train`: pretraining, from nothing or from where the workdir left off.

A workdir holds one run: its configuration, prepared corpora, checkpoints, metrics and what it ran on. Starting the
same command again resumes from the newest complete checkpoint and ends with the same losses, bit for bit, as a run
that was never interrupted.

SIGTERM, to any of its processes, stops all of them: the state is saved at once and the exit status is 0, or what
RAMEN_JAX_STOPPED_STATUS says. Others: 1 something is wrong with data, disks or other processes, 2 with how it was
started.
"""

from typing import Any

from ml_collections import ConfigDict

from ramen_jax import config as configuration
from ramen_jax import console, storage

EXAMPLES = """  python -m ramen_jax.train --config configs/tiny.py --workdir runs/tiny
  python -m ramen_jax.train --config configs/base.py --workdir runs/base --config.optimizer.learning_rate=3e-4
  python -m ramen_jax.train --config configs/base.py:quicktest --workdir runs/quicktest
  python -m ramen_jax.train --config configs/tiny.py --print-config          every key with its value, then exit"""


def run() -> int:
    """The command."""
    parser = console.parser("train", "Pretrains RAMEN; resumes by itself from the workdir.", EXAMPLES)
    parser.add_argument("--config", required=True, metavar="FILE", help="configuration, e.g. configs/base.py")
    parser.add_argument(
        "--workdir",
        type=storage.place,
        metavar="DIR",
        help="folder of this run, created if need be; or gs://, s3://",
    )
    parser.add_argument(
        "--profile-steps",
        default="",
        metavar="FIRST:END",
        help="profile these steps, into WORKDIR/profile, e.g. 20:25",
    )
    parser.add_argument("--print-config", action="store_true", help="print the configuration and exit")
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="several processes (Slurm, Open MPI, GKE, TPU, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
        "JAX_PROCESS_ID): join the others first",
    )
    parser.add_argument(
        "--coordinator", default="", metavar="HOST:PORT", help="address of process 0; joins it"
    )
    parser.add_argument("--processes", default="", metavar="N", help="how many processes train together")
    parser.add_argument("--process-id", default="", metavar="I", help="number of this one, from 0")
    arguments, overrides = configuration.parse(parser)
    if arguments.profile_steps:
        overrides.append(f"--config.logging.profile_steps={arguments.profile_steps}")
    config = configuration.load(arguments.config, overrides)
    if arguments.print_config:
        for key, value in configuration.flat(config):
            print(f"config.{key} = {value!r}")
        return 0
    if not arguments.workdir:
        raise console.UserError("--workdir is missing: the folder that keeps this run", console.USAGE)
    flags = (arguments.coordinator, arguments.processes, arguments.process_id)
    others = flags if arguments.distributed or any(flags) else None
    return console.call("ramen_jax.training.pretrain", config, arguments.workdir, others, probes)


def probes(config: ConfigDict) -> Any:
    """What config.evaluators asks to be measured on the way; nothing is imported where it asks for nothing."""
    wanted = config.evaluators.every or config.evaluators.tasks
    return console.call("ramen_jax.evaluation.in_loop", config) if wanted else []


if __name__ == "__main__":
    console.main(run)
