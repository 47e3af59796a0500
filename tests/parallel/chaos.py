"""Random deaths of random processes: `python -m tests.parallel.chaos --kills 30 [--seed N] [--folder DIR]`.

Half of the signals (SIGKILL and SIGTERM, to one process or to all, while they join, load, step and save) go to a run
that always starts again on four processes; it must end with the losses of one that was left alone, bit for bit. The
other half go to a run that starts again on one to four: its losses may differ by the order of sums. Nothing may hang,
no complete checkpoint may be lost, and whoever survives must say why it ends.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from ramen_jax.training import checkpoint_files, metrics
from tests.parallel.nursery import Child, Nursery, free_port

ROWS = 24  # per step, which one to four processes divide
STEPS_PER_KILL = 4
EARLY = 0.3  # share of the signals that come while the processes join, load and compile
KILLS = 0.6  # share of SIGKILL among the signals
EVERYBODY = 0.2  # share of the signals that go to all processes
MEETING = 5  # seconds that processes wait for one that was killed before it came
HANGS = 60  # seconds after a signal in which all must have ended, on a busy machine too
SETTINGS = ("checkpoint.every=2", f"data.rows_per_step={ROWS}", "logging.stablehlo=false")


class Run:
    """A training of the toy that is disturbed."""

    def __init__(self, nursery: Nursery, folder: Path, steps: int) -> None:
        self.nursery, self.folder, self.steps, self.starts = nursery, folder, steps, 0
        folder.mkdir(parents=True)
        self.workdir = folder / "run"

    def start(self, processes: int) -> list[Child]:
        self.starts += 1
        port = free_port()
        variables = {
            "TOY_STEPS": str(self.steps),
            "TOY_SECONDS": "0.03",
            "MEETING": str(MEETING),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0",
        }
        if processes > 1:
            variables |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
            }
        return [
            self.nursery.start(
                "toy",
                [str(self.workdir), *SETTINGS],
                self.folder / f"{self.starts}.{number}.log",
                **variables,
                **({"JAX_PROCESS_ID": str(number)} if processes > 1 else {}),
            )
            for number in range(processes)
        ]

    def finish(self, processes: int) -> list[tuple[int, float]]:
        """Trains to the end, undisturbed. The losses of all steps."""
        for child in self.start(processes):
            done = -1
            while not child.over.wait(HANGS):
                assert self.done() > done, f"no step in {HANGS} s: {child.said()}"
                done = self.done()
            assert child.wait(0.0) == 0, child.said()
        return [(line["step"], line["loss"]) for line in metrics.read(self.workdir)]

    def done(self) -> int:
        return metrics.steps_in(self.workdir / metrics.FILE)

    def disturb(self, chance: random.Random, processes: int) -> str:
        """Starts the run and sends a signal at a random moment. What happened, in a line."""
        before, complete = self.done(), set(checkpoint_files.steps_in(self.workdir / "checkpoints"))
        children = self.start(processes)
        if chance.random() < EARLY:
            time.sleep(chance.uniform(0.0, 1.5))
        else:
            wanted = max(1, before + chance.randint(-1, STEPS_PER_KILL))
            self.wait_for_steps(children, wanted)
            time.sleep(chance.uniform(0.0, 0.15))
        number = signal.SIGKILL if chance.random() < KILLS else signal.SIGTERM
        hit = children if chance.random() < EVERYBODY else [chance.choice(children)]
        for child in hit:
            child.send_signal(number)
        began = time.monotonic()
        ended = [child.wait(max(1.0, began + HANGS - time.monotonic())) for child in children]
        seconds = time.monotonic() - began
        for child, status in zip(children, ended, strict=True):
            # Ended by the signal itself, or by 0 (all saved, or done), or with a sentence about whoever is gone.
            missed = "did not come" in child.said() or (
                number == signal.SIGKILL and "is gone" in child.said()
            )
            struck = child in hit and status == -number
            assert status == 0 or struck or (status == 1 and missed), child.said()
        self.nothing_is_lost(complete)
        return (
            f"{number.name} to {len(hit)} of {processes} after step {self.done()}: {ended} in {seconds:.1f} s, "
            f"checkpoints {checkpoint_files.steps_in(self.workdir / 'checkpoints')}"
        )

    def wait_for_steps(self, children: list[Child], steps: int) -> None:
        deadline, path = time.monotonic() + HANGS, self.workdir / metrics.FILE
        began = time.time_ns()
        while not all(child.over.is_set() for child in children):
            if path.exists() and path.stat().st_mtime_ns > began and self.done() >= steps:
                return
            assert time.monotonic() < deadline, "\n".join(child.said() for child in children)
            time.sleep(0.005)

    def nothing_is_lost(self, complete: set[int]) -> None:
        now = checkpoint_files.steps_in(self.workdir / "checkpoints")
        assert not (self.workdir / "checkpoints_damaged").exists()
        assert max(complete, default=0) <= max(now, default=0), f"{complete} before, {now} now"
        for step in now[-1:]:
            assert not checkpoint_files.compare(self.workdir / "checkpoints" / str(step)).problem


def campaign(nursery: Nursery, folder: Path, kills: int, seed: int) -> None:
    """Raises AssertionError where anything is not as it must be."""
    chance = random.Random(seed)
    same = kills - kills // 2
    steps = STEPS_PER_KILL * same + 10
    whole = Run(nursery, folder / "whole", steps).finish(4)
    assert [step for step, _ in whole] == list(range(steps))
    for name, count in (("always on 4", same), ("on 1 to 4", kills // 2)):
        run = Run(nursery, folder / name.replace(" ", "_"), steps)
        for kill in range(count):
            processes = 4 if name == "always on 4" else chance.randint(1, 4)
            print(f"{name}, {kill + 1} of {count}: {run.disturb(chance, processes)}", flush=True)
        losses = run.finish(4)
        if name == "always on 4":
            assert losses == whole, f"seed {seed}"
        else:
            assert [step for step, _ in losses] == list(range(steps))
            most = max(abs(a - b) for (_, a), (_, b) in zip(losses, whole, strict=True))
            assert most < 1e-5, f"seed {seed}: {most}"
        print(f"{name}: {steps} losses as without any signal", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)))
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    nursery = Nursery()
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            campaign(nursery, arguments.folder or Path(temporary), arguments.kills, arguments.seed)
    finally:
        nursery.close()
    print(f"{arguments.kills} signals in {time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
