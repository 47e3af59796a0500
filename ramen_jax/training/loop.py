"""The loop around the step: data in, metrics out, checkpoints, resume, and the reasons to stop.

Order within an iteration, which resume depends on: take the batch of step n, dispatch step n, read the metrics of
step n - 1, and only then save (after reading those of step n as well). The batch of a step is a function of its
number, so nothing about the data needs saving.
"""

import json
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ramen_jax import config as configuration
from ramen_jax import console
from ramen_jax.console import DATA, USAGE, UserError
from ramen_jax.parallel import mesh as sharding
from ramen_jax.rows.pipeline import StepBatch
from ramen_jax.training import checkpoint, environment, initial, optimizer
from ramen_jax.training.metrics import Clock, Metrics
from ramen_jax.training.step import (
    Model,
    State,
    abstract_state,
    create_state,
    make_evaluation,
    make_step,
    state_shardings,
)

BAD_SAMPLES_FREE = 3  # so many bad samples never stop a run, however few were seen


class Job(NamedTuple):
    """What is trained on what."""

    model: Model
    sensors: Mapping[str, Mapping[str, Any]]  # corpus -> modality -> Sensor
    fingerprints: Mapping[str, str]  # corpus -> of its prepared data
    plan: Mapping[str, Any]  # what the batches follow from (`Plan.summary`); equal plans give equal batches
    batches: Callable[[int], Iterable[StepBatch]]  # start step -> batches, without end
    steps: int  # length of the training
    steps_per_epoch: float
    validation: Callable[[], Iterable[StepBatch]] | None = None  # the same finite batches at each call


class Outcome(NamedTuple):
    """How a run ended."""

    step: int  # steps done
    complete: bool
    loss: float  # of the last step run here, NaN when none was
    signalled: bool = False  # stopped by SIGTERM


def run(config: ConfigDict, workdir: Path, job: Job) -> Outcome:
    """Trains from the workdir's newest checkpoint (or from nothing) to the end, or to config.train.stop_at.

    Raises UserError when the workdir holds another configuration, a checkpoint does not fit, a loss is not finite,
    too many samples are bad, or the last checkpoint could not be written.
    """
    environment.quiet_libraries()
    claim_workdir(config, workdir)
    mesh = sharding.make_mesh(config)
    return _Run(config, workdir, job, mesh).train()


class _Run:
    """One process's work on a run."""

    def __init__(self, config: ConfigDict, workdir: Path, job: Job, mesh: Mesh) -> None:
        self.config, self.workdir, self.job, self.mesh = config, workdir, job, mesh
        self.rate = optimizer.schedule(config, job.steps, job.steps_per_epoch)
        self.optimizer = optimizer.make_optimizer(config, self.rate)
        self.shardings = state_shardings(job.model, self.optimizer, mesh, config)
        self.steps: dict[str, Any] = {}  # corpus -> compiled step
        self.evaluations: dict[str, Any] = {}
        self.primary = jax.process_index() == 0
        self.stopping = threading.Event()
        self.pending: tuple[StepBatch, Any] | None = None  # dispatched, metrics not read yet
        self.losses: list[float] = []  # since the last checkpoint
        self.seen = self.bad = 0
        self.last_loss = float("nan")
        self.told = False  # that metrics cannot be written

    def train(self) -> Outcome:
        config, job = self.config, self.job
        keep = config.checkpoint
        print_note = print if self.primary else lambda _: None
        self.checkpoints = checkpoint.Checkpoints(self.workdir, print_note, keep.keep_latest, keep.keep_best)
        state, start, saved = self.restore_or_create()
        end = min(job.steps, config.train.stop_at or job.steps)
        if start >= end:
            self.checkpoints.close()
            return Outcome(start, start >= job.steps, self.last_loss)
        self.seen, self.bad = saved.get("seen", 0), saved.get("bad", 0)
        self.clock = Clock(self.mesh.size, jax.devices()[0].device_kind, saved)
        if self.primary:
            environment.describe_run(self.workdir, config, state.params, job.model.logical_axes)
        self.metrics = Metrics(
            self.workdir, start, config.logging.every, config.logging.tensorboard, self.primary
        )
        previous = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self.stopping.set())
        try:
            with console.progress(job.steps, "training", "steps", start=start) as bar:
                self.bar = bar
                self.clock.pause()
                self.checkpoints.note = bar.note if self.primary else print_note
                done = self.iterate(state, start, end)
            self.checkpoints.close()
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, previous)
            self.metrics.close()
        if self.checkpoints.failed:
            raise UserError(
                f"the checkpoint of the last step {done} was not saved: {self.checkpoints.failed}", DATA
            )
        return Outcome(done, done >= job.steps, self.last_loss, self.stopping.is_set() and done < end)

    def restore_or_create(self) -> tuple[State, int, dict[str, Any]]:
        abstract = abstract_state(self.job.model, self.optimizer, self.shardings)
        found = self.checkpoints.restore_latest(abstract, self.identity())
        if found is None:
            state = create_state(self.job.model, self.optimizer, self.shardings)
            if self.config.train.start_from:
                state, told = initial.begin_with(state, Path(self.config.train.start_from), self.config)
                self.checkpoints.note(told)
            return state, 0, {}
        state, meta = found
        self.checkpoints.note(f"resuming from {self.checkpoints.folder / str(meta['step'])}")
        return state, meta["step"], meta["clock"]

    def iterate(self, state: State, start: int, end: int) -> int:
        """Steps `start` to `end` - 1. Returns the number of steps done, which is less after SIGTERM."""
        config = self.config
        step = start
        for batch in self.clock.waiting(self.job.batches(start)):
            step = batch.step
            self.count_bad(batch)
            if step not in config.train.skip_steps:
                rows = sharding.put_rows(batch.rows, self.mesh)
                compiled = self.steps.get(batch.corpus) or self.compile(batch, state, rows)
                with jax.transfer_guard("disallow"):
                    state, metrics = compiled(state, rows)
                self.read_pending(state)
                self.pending = (batch, metrics)
            else:
                state = state._replace(step=self.place(np.int32(step + 1)))
            step += 1
            last = step >= end or self.stopping.is_set()
            validated = None
            if (
                self.job.validation
                and config.validation.every
                and (step % config.validation.every == 0 or last)
            ):
                self.read_pending(state)
                validated = self.validate(state, step)
            if step % config.checkpoint.every == 0 or last:
                self.read_pending(state)
                self.save(state, step, validated)
            self.checkpoints.poll()
            if last:
                break
        return step

    def compile(self, batch: StepBatch, state: State, rows: Any) -> Any:
        """Compiles the step of a corpus, once: rows of another shape are an error, not a second program."""
        sensors = self.job.sensors[batch.corpus]
        step = make_step(
            self.job.model, self.optimizer, self.rate, sensors, self.config, self.mesh, self.shardings
        )
        self.bar.note(f"compiling the step of {batch.corpus}")
        keep = self.primary and self.config.logging.stablehlo
        program = self.workdir / f"step_{batch.corpus}.stablehlo.gz" if keep else None
        compiled, seconds = environment.compile_step(step, state, rows, program)
        self.bar.note(f"compiled in {seconds:.1f} s")
        self.steps[batch.corpus] = compiled
        self.pause()
        return compiled

    def read_pending(self, state: State) -> None:
        """Reads, logs and judges the metrics of the step dispatched before; `state` is the newest."""
        if self.pending is None:
            return
        batch, device_metrics = self.pending
        self.pending = None
        values = {name: float(value) for name, value in jax.device_get(device_metrics).items()}
        loss, step = values["loss"], batch.step
        if not np.isfinite(loss) or not np.isfinite(values["gradient_norm"]):
            self.stop_not_finite(batch, values, state)
        self.last_loss = loss
        self.losses.append(loss)
        padded = batch.rows.decoder_segment_RxL.size * jax.process_count()
        self.clock.tick(values["views"], values["tokens"], padded)
        rates = self.clock.rates()
        self.metrics.write(step, {"corpus": batch.corpus, **values, **rates})
        if self.metrics.failed and not self.told:
            self.bar.note(f"WARNING: metrics are not being written ({self.metrics.failed}); training goes on")
            self.told = True
        self.bar.advance(info=self.clock.line(loss))

    def stop_not_finite(self, batch: StepBatch, values: Mapping[str, float], state: State) -> None:
        """The device applied neither this step nor the one after it: saves, names the samples, ends the run."""
        self.save(state, batch.step, None)
        self.checkpoints.wait()
        names = [name for name, value in values.items() if not np.isfinite(value)]
        report = {"step": batch.step, "corpus": batch.corpus, "not_finite": names, "samples": batch.ids}
        path = self.workdir / f"not_finite_{batch.step}_process{jax.process_index()}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        shown = ", ".join(batch.ids[:8]) + (f" and {len(batch.ids) - 8} more" if len(batch.ids) > 8 else "")
        raise UserError(
            f"step {batch.step} ({batch.corpus}): {', '.join(names)} not finite; the update was not applied. "
            f"Samples of the step: {shown} (all in {path}). To go on without this step: "
            f"--config.train.skip_steps={batch.step}",
            DATA,
        )

    def validate(self, state: State, step: int) -> float:
        """Mean loss over the fixed validation batches, dropout off, running statistics in BatchNorm."""
        assert self.job.validation is not None
        sums: dict[str, list[float]] = {}
        for batch in self.job.validation():
            rows = sharding.put_rows(batch.rows, self.mesh)
            if batch.corpus not in self.evaluations:
                self.evaluations[batch.corpus] = make_evaluation(
                    self.job.model, self.job.sensors[batch.corpus]
                )
            losses = jax.device_get(self.evaluations[batch.corpus](state.params, state.statistics, rows))
            for name, value in losses.items():
                sums.setdefault(f"validation/{name}", []).append(float(value))
        means = {name: float(np.mean(values)) for name, values in sums.items()}
        if not means:
            return float("nan")
        self.metrics.write(step - 1, means, board=True)
        self.bar.note(f"validation at step {step}: loss {means['validation/loss']:.5g}")
        self.pause()
        return means["validation/loss"]

    def save(self, state: State, step: int, validated: float | None) -> None:
        training = float(np.mean(self.losses)) if self.losses else self.last_loss
        meta = {
            "step": step,
            "config": configuration.plain(self.config),
            "recipe": self.config.recipe,
            **self.identity(),
            "clock": {**self.clock.saved(), "seen": self.seen, "bad": self.bad},
        }
        loss = training if validated is None else validated
        self.checkpoints.save(step, state, meta, loss if np.isfinite(loss) else 1e30)
        self.losses = []
        self.pause()

    def pause(self) -> None:
        """What took place since the last step (compilation, validation, saving) is in no rate and no time left."""
        self.bar.began += self.clock.pause()

    def count_bad(self, batch: StepBatch) -> None:
        """Lists samples that could not be used, and stops above config.data.max_bad_share of those seen."""
        self.seen += len(batch.ids) + len(batch.bad)
        if not batch.bad:
            return
        self.bad += len(batch.bad)
        with (self.workdir / "bad_samples.jsonl").open("a") as file:
            for entry in batch.bad:
                file.write(json.dumps(entry) + "\n")
        share = self.bad / self.seen
        if self.bad > BAD_SAMPLES_FREE and share > self.config.data.max_bad_share:
            raise UserError(
                f"{self.bad} of {self.seen} samples ({share:.1%}) could not be used, more than "
                f"config.data.max_bad_share = {self.config.data.max_bad_share:.1%}; they are listed with their "
                f"reasons in {self.workdir / 'bad_samples.jsonl'}",
                DATA,
            )

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on with this run besides its arrays."""
        sensors = {
            corpus: {name: sensor.to_dict() for name, sensor in modalities.items()}
            for corpus, modalities in self.job.sensors.items()
        }
        return {
            "sensors": sensors,
            "fingerprints": dict(self.job.fingerprints),
            "plan": dict(self.job.plan),
        }

    def place(self, value: np.generic) -> jax.Array:
        return jax.device_put(value, sharding.replicated(self.mesh))


def claim_workdir(config: ConfigDict, workdir: Path) -> None:
    """Writes config.json in a new workdir; UserError with the differences when it holds another configuration."""
    path = workdir / "config.json"
    if path.is_file():
        try:
            lines = configuration.differences(configuration.plain(config), json.loads(path.read_text()))
        except ValueError as error:
            raise UserError(
                f"{path} is not readable JSON ({error}); restore it or use another workdir", DATA
            ) from None
        if lines:
            shown = "\n  ".join(lines)
            raise UserError(
                f"workdir {workdir} holds a run with another configuration (there -> here); use another workdir, or "
                f"the same configuration to go on:\n  {shown}",
                USAGE,
            )
        return
    if (workdir / "checkpoints").is_dir() and any((workdir / "checkpoints").iterdir()):
        raise UserError(f"workdir {workdir} holds checkpoints but no config.json; use another workdir", DATA)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            partial = path.with_suffix(".partial")
            configuration.save_json(config, partial)
            partial.rename(path)
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error.strerror or error}", DATA) from None
