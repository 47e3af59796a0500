"""The loop around the step: data in, metrics out, checkpoints, resume, and the reasons to stop.

Order within an iteration, which resume depends on: take the batch of step n, decide, dispatch step n, read the metrics
of step n - 1, and only then run what is due (having read those of step n as well). The batch of a step is a function of
its number, so nothing about the data needs saving.

A signal to stop is acted upon between two steps and between two batches of a validation: the state is saved before
anything else, and what was being measured is left out.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ramen_jax import config as configuration
from ramen_jax import console, storage
from ramen_jax.console import DATA, USAGE, UserError
from ramen_jax.parallel import agree, stopping
from ramen_jax.parallel.mesh import replicated
from ramen_jax.rows.pipeline import StepBatch
from ramen_jax.training import checkpoint, initial, lock, profile, workdir
from ramen_jax.training.bad_samples import FILES, BadSamples
from ramen_jax.training.clock import Clock
from ramen_jax.training.evaluators import LOSS, Evaluator, Stopped, stop_here
from ramen_jax.training.local_saves import LocalSaves
from ramen_jax.training.metrics import Metrics
from ramen_jax.training.mirror import Mirror
from ramen_jax.training.program import Program
from ramen_jax.training.step import State


class Job(NamedTuple):
    """What is trained on what."""

    program: Program
    identity: Mapping[str, Any]  # "sensors", "fingerprints" and "plan": what a checkpoint must agree on
    batches: Callable[[int], Iterable[StepBatch]]  # start step -> batches, without end
    steps: int  # length of the training
    evaluators: Sequence[Evaluator] = ()
    mirror: Mirror | None = None  # of a workdir in a bucket


class Outcome(NamedTuple):
    """How a run ended."""

    step: int  # steps done
    complete: bool
    loss: float  # of the last step run here, NaN when none was
    signalled: bool = False  # stopped by SIGTERM


class Hook(NamedTuple):
    """Something that is done every so many steps (0: never) and after the last one."""

    every: int
    run: Callable[[State, int], None]

    def due(self, step: int, last: bool) -> bool:
        return bool(self.every) and (last or step % self.every == 0)


class Signs(NamedTuple):
    """What a process has noticed by the beginning of a step, or all of them together, and all must act on."""

    stop: bool  # SIGTERM has come
    problem: str  # why the run cannot go on, "" when it can
    seen: int = 0  # samples of the step
    bad: int = 0  # of these, left out


def of_all(signs: Sequence[Sequence[Any]]) -> Signs:
    """The signs of all processes as one."""
    each = [Signs(*one) for one in signs]
    told = [f"process {number}: {one.problem}" for number, one in enumerate(each) if one.problem]
    problem = each[0].problem if len(each) == 1 else "; ".join(told)
    seen, bad = sum(one.seen for one in each), sum(one.bad for one in each)
    return Signs(any(one.stop for one in each), problem, seen, bad)


class Decision(Enum):
    """What all processes do after a step."""

    GO_ON = auto()
    FINISH = auto()  # the last step is done: hooks, then the end
    STOP = auto()  # asked to: save at once, then the end
    FAIL = auto()


def decide(signs: Signs, step: int, end: int) -> Decision:
    """The one place where it is decided how a run goes on after `step` steps of `end`."""
    if signs.problem:
        return Decision.FAIL
    if step >= end:
        return Decision.FINISH
    return Decision.STOP if signs.stop else Decision.GO_ON


def run(job: Job, folder: Path) -> Outcome:
    """Trains from the workdir's newest checkpoint (or from nothing) to the end, or to config.train.stop_at.

    Raises UserError when the workdir holds another configuration or is in use, a checkpoint does not fit, a loss is not
    finite, too many samples are bad, or the last checkpoint could not be written.
    """
    workdir.check(job.program.config, folder)
    workdir.make(folder)
    if job.mirror is None:  # else every process has a folder of its own
        workdir.require_shared(folder)
    with stopping.listening() as stop, _alone(folder) as mine:
        workdir.claim(
            job.program.config, folder
        )  # under the lock: of two that begin here, one is told of the other
        return _Run(folder, job, stop, mine).train()


@contextmanager
def _alone(folder: Path) -> Iterator[lock.Lock | None]:
    """The lock of the workdir, which process 0 holds for all of them. UserError in every process when it is taken."""
    with ExitStack() as stack:
        mine, told = None, None
        if jax.process_index() == 0:
            try:
                mine = stack.enter_context(lock.held(folder, _print))
            except (OSError, UserError) as error:
                told = error
        if agree.first_trouble("locking the workdir", told is not None) >= 0:
            raise told or UserError(f"workdir {folder} could not be locked; process 0 says why", DATA)
        yield mine


class _Run:
    """One process's work on a run."""

    def __init__(self, folder: Path, job: Job, stop: stopping.Stop, mine: lock.Lock | None) -> None:
        self.folder, self.job, self.stop, self.lock = folder, job, stop, mine
        self.program, self.config = job.program, job.program.config
        self.primary = jax.process_index() == 0
        self.pending: tuple[StepBatch, Any] | None = None  # dispatched, metrics not read yet
        self.losses: list[float] = []  # since the last checkpoint
        self.validated: float | None = None  # loss of the last validation, if it belongs to the newest step
        self.last_loss = float("nan")
        self.problem = ""
        self.not_finite: StepBatch | None = None

    def train(self) -> Outcome:
        config, job, began = self.config, self.job, time.monotonic()
        note = _print if self.primary else _silent
        keep = config.checkpoint
        fetch = job.mirror.fetch if job.mirror else None
        self.checkpoints = checkpoint.Checkpoints(
            self.folder, note, keep.keep_latest, keep.keep_best, keep.allow, fetch
        )
        self.local = self.local_saves()
        end = min(job.steps, config.train.stop_at or job.steps)
        profile.require_within(config.logging.profile_steps, end)
        done = max(self.checkpoints.steps(), default=0)
        if done < end:
            # Before the state exists; after the checkpoints were opened, so that a wrong workdir is told at once.
            lowered = self.folder if self.primary and config.logging.stablehlo else None
            self.program.compile(note, lowered)
        state, start, saved = self.restore_or_create()
        if start >= end:
            self.checkpoints.close()
            return Outcome(start, start >= job.steps, self.last_loss)
        listed = FILES.replace("*", "" if self.primary else f"_process{jax.process_index()}")
        self.samples = BadSamples(self.folder / listed, config.data.max_bad_share, saved)
        self.clock = Clock(self.program.mesh.size, jax.devices()[0].device_kind, saved, began)
        if self.primary:
            workdir.describe_run(self.folder, self.program)
        logging = config.logging
        self.metrics = Metrics(self.folder, start, logging.every, logging.tensorboard, self.primary, note)
        try:
            with console.progress(job.steps, "training", "steps", start=start) as bar:
                self.bar = bar
                self.clock.pause("start")
                self.clock.seconds["lost"] += self.metrics.lost
                self.checkpoints.note = self.metrics.note = bar.note if self.primary else _silent
                done = self.iterate(state, start, end)
            self.checkpoints.close()
            if self.local:
                self.local.wait()
            note(self.clock.summary())
        finally:
            self.metrics.close()
            if self.samples.bad:
                note(self.samples.summary())
        if self.checkpoints.failed:
            raise UserError(
                f"the checkpoint of the last step {done} was not saved: {self.checkpoints.failed}", DATA
            )
        return Outcome(done, done >= job.steps, self.last_loss, done < end)

    def local_saves(self) -> LocalSaves | None:
        """What this process keeps on its host's disk, where that is asked for."""
        keep = self.config.checkpoint
        if not keep.local:
            return None
        if self.job.mirror:
            raise UserError(
                "config.checkpoint.local: a workdir in a bucket is on the disk of the host already; leave it empty",
                USAGE,
            )
        return LocalSaves(self.folder, storage.local(keep.local), _print, keep.allow)

    def restore_or_create(self) -> tuple[State, int, dict[str, Any]]:
        abstract, identity = self.program.abstract, self.job.identity
        local = self.local.newest(abstract) if self.local else checkpoint.NOTHING
        found = self.checkpoints.restore_latest(abstract, identity, above=local)
        if found is None and self.local and local != checkpoint.NOTHING:
            state, meta = self.local.restore(local, abstract, identity)
            self.checkpoints.note(
                f"resuming from what every process saved on its own disk after step {local}"
            )
            return state, local, meta["clock"]
        if found is None:
            workdir.begin_at_nothing(self.config, self.folder)
            state = self.program.create_state()
            if self.config.train.start_from:
                state, told = initial.begin_with(
                    state, storage.checkpoint(self.config.train.start_from), self.config
                )
                self.checkpoints.note(told)
            return state, 0, {}
        state, meta = found
        self.checkpoints.note(f"resuming from {self.checkpoints.folder / str(meta['step'])}")
        return state, meta["step"], meta["clock"]

    def hooks(self) -> list[Hook]:
        """What is done beside the steps, in this order; saving is the last, to keep what was measured."""
        measuring = [Hook(each.every, partial(self.measure, each)) for each in self.job.evaluators]
        keep = self.config.checkpoint
        locally = [Hook(keep.local_every, self.save_locally)] if self.local else []
        return [*measuring, *locally, Hook(keep.every, self.save)]

    def iterate(self, state: State, start: int, end: int) -> int:
        """Steps `start` to `end` - 1. Returns the number of steps done, which is less after SIGTERM."""
        hooks, trace = self.hooks(), profile.Profile(self.config.logging.profile_steps, self.folder)
        step = start
        self.stop.begin_steps()
        for batch in self.clock.waiting(self.job.batches(start)):
            step = batch.step
            decision = decide(self.signs(batch), step, end)
            if decision is Decision.STOP:
                self.stop_after(state, step)
                break
            if decision is Decision.FAIL:
                self.fail(state)
            trace.before(step)
            if step in self.config.train.skip_steps:
                state = state._replace(step=self.place(np.int32(step + 1)))
            else:
                rows = self.program.place(batch.corpus, batch.rows)
                with jax.transfer_guard("disallow"):
                    state, metrics = self.program.step(batch.corpus)(state, rows)
                self.read_pending()
                self.pending = (batch, metrics)
            step += 1
            trace.after(step, state)
            due = [hook for hook in hooks if hook.due(step, step >= end)]
            if due:
                self.read_pending()  # what is not finite must be neither measured nor saved
                if self.problem:
                    self.fail(state)
            try:
                for hook in due:
                    hook.run(state, step)
            except Stopped:
                self.stop_after(state, step)
                break
            self.checkpoints.poll()
            if step >= end:
                break
        return step

    def signs(self, batch: StepBatch) -> Signs:
        """What all processes have noticed; the samples of all are counted in each."""
        seen, bad = self.samples.listed(batch)
        lost = (self.lock.lost if self.lock else "") or (self.job.mirror.lost if self.job.mirror else "")
        mine = Signs(self.stop.asked.is_set(), self.problem or lost, seen, bad)
        signs = Signs(*agree.combined(f"step {batch.step}", mine, of_all))
        self.problem = signs.problem or self.samples.count(signs.seen, signs.bad)
        return signs._replace(problem=self.problem)

    def stop_after(self, state: State, step: int) -> None:
        """Saves, after `step` steps, before anything else."""
        self.read_pending()
        if self.problem:
            self.fail(state)
        self.save(state, step)

    def read_pending(self) -> None:
        """Reads and logs the metrics of the step dispatched before, and judges them."""
        if self.pending is None:
            return
        batch, device_metrics = self.pending
        self.pending = None
        with agree.watched(f"step {batch.step} on the devices"):
            values = {name: float(value) for name, value in jax.device_get(device_metrics).items()}
        if self.not_finite is not None:
            return  # a step after the one that was not finite: it changed nothing
        if not values.pop("alive"):
            names = [name for name, value in values.items() if not np.isfinite(value)]
            self.problem = f"{', '.join(names) or 'the new parameters or statistics'} not finite"
            self.not_finite = batch
            return
        self.last_loss = values["loss"]
        self.losses.append(values["loss"])
        here = batch.rows.decoder_segment_RxL
        others = self.program.rows_of_a_step(batch.corpus) / max(
            len(here), 1
        )  # rows like these are elsewhere
        flops = others * self.program.model.training_flops(batch.rows)
        self.clock.tick(values["views"], values["tokens"], others * here.size, flops)
        self.metrics.write(batch.step, {"corpus": batch.corpus, **values, **self.clock.rates()})
        self.bar.advance(info=self.clock.line(values["loss"]))

    def fail(self, state: State) -> None:
        """Ends the run: names the samples of a step that was not finite, which the device did not apply, and saves."""
        batch = self.not_finite
        if batch is None:
            raise UserError(self.problem, DATA)
        self.save(state, batch.step)
        self.checkpoints.wait()
        report = {"step": batch.step, "corpus": batch.corpus, "problem": self.problem, "samples": batch.ids}
        path = self.folder / f"not_finite_{batch.step}_process{jax.process_index()}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        shown = ", ".join(batch.ids[:8]) + (f" and {len(batch.ids) - 8} more" if len(batch.ids) > 8 else "")
        raise UserError(
            f"step {batch.step} ({batch.corpus}): {self.problem}; the update was not applied. "
            f"Samples of the step: {shown} (all in {path}). To go on without this step: "
            f"--config.train.skip_steps={batch.step}",
            DATA,
        )

    def measure(self, evaluator: Evaluator, state: State, step: int) -> None:
        """Raises Stopped, in all processes, where any has been asked to stop."""
        stop_here("measuring")
        values = evaluator.run(state.params, state.statistics, step)
        if values:
            self.metrics.write(step - 1, values, board=True)
            shown = ", ".join(f"{name} {value:.5g}" for name, value in values.items() if name.count("/") < 2)
            self.bar.note(f"after {step} steps: {shown}")
        self.validated = values.get(LOSS, self.validated)
        self.pause("evaluation")

    def meta(self, step: int) -> dict[str, Any]:
        """What a checkpoint says about itself."""
        return {
            "step": step,
            "config": configuration.plain(self.config),
            "recipe": self.config.recipe,
            **self.job.identity,
            "clock": {**self.clock.saved(), **self.samples.saved()},
        }

    def save(self, state: State, step: int) -> None:
        training = float(np.mean(self.losses)) if self.losses else self.last_loss
        loss = training if self.validated is None else self.validated
        self.checkpoints.save(step, state, self.meta(step), loss if np.isfinite(loss) else 1e30)
        self.losses, self.validated = [], None
        self.pause("save")

    def save_locally(self, state: State, step: int) -> None:
        """Between checkpoints."""
        assert self.local is not None
        keep = self.config.checkpoint
        if step % keep.local_every == 0 and step % keep.every:
            self.local.save(step, state, self.meta(step))
            self.pause("save")

    def pause(self, kind: str) -> None:
        """What took place since the last step is in no rate and no time left."""
        self.bar.began += self.clock.pause(kind)

    def place(self, value: np.generic) -> jax.Array:
        return jax.device_put(value, replicated(self.program.mesh))


def _print(sentence: str) -> None:
    print(sentence, flush=True)


def _silent(sentence: str) -> None:
    """For the processes that do not speak."""
