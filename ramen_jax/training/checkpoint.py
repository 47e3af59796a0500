"""Checkpoints of a run: written in the background, restored strictly, never trusted blindly.

A checkpoint is a folder {workdir}/checkpoints/{step} with the Orbax items params, statistics, opt_state and meta
(JSON: step, config, recipe, sensors, data fingerprints, plan, the tree's shapes and dtypes, clock) and, written last,
files.json with the hash of every file (`checkpoint_files.py`). `step` counts the steps done.

Whether a checkpoint is damaged is told by its content alone, never by whether restoring it worked, and restoring moves
nothing. A damaged one stays where it is until the first save of the run that went on from the one before it; it then
goes to {workdir}/checkpoints_damaged, so that it takes no place among those that are kept.
"""

import json
import logging
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import absl.logging
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from ramen_jax.console import DATA, USAGE, UserError
from ramen_jax.parallel import agree
from ramen_jax.parallel.rules import flat_names
from ramen_jax.training import checkpoint_files
from ramen_jax.training.step import State

GROUPS = ("tree", "sensors", "fingerprints", "plan")  # of what a checkpoint must agree on
MODEL = 8  # more arrays than these that differ make another model
ARRAYS = ("params", "statistics", "opt_state")
FORMAT = 1
SAVED = "saved.json"  # in the workdir: the newest step whose checkpoint was completed, and when
NOTHING, UNREADABLE = -1, -2  # in the place of a step

Note = Callable[[str], None]


def quiet_libraries() -> None:
    """Keeps Orbax from printing the stack of every background thread that a full disk stops: we say it in a line."""
    absl.logging.set_verbosity(absl.logging.FATAL)
    for name in ("asyncio", "concurrent.futures"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _Manager(ocp.CheckpointManager):
    """One that tells of a failed save at once.

    Orbax tells after all processes have met at the end of the save, where the others wait for the one that failed.

    Attributes:
        failure: what went wrong in the background, None while nothing did.
    """

    failure: BaseException | None = None

    def _wait_for_checkpointers(self) -> None:
        try:
            super()._wait_for_checkpointers()
        except BaseException as error:
            self.failure = error
            raise


class Loaded(NamedTuple):
    """A checkpoint read for use, without its optimizer."""

    params: Any
    statistics: Any
    meta: dict[str, Any]
    folder: Path


def describe_tree(state: Any) -> dict[str, dict[str, list[Any]]]:
    """Item -> path -> [shape, dtype] of the arrays a checkpoint holds; `state` may be abstract."""
    return {
        item: {
            name: [list(leaf.shape), str(leaf.dtype)]
            for name, leaf in flat_names(getattr(state, item)).items()
        }
        for item in ARRAYS
    }


class Checkpoints:
    """The checkpoints of one workdir.

    `note` is called with every sentence a person should read; for `allowed` see `refuse_differences`. `fetch`: where
    every process has a workdir of its own (`mirror.py`), brings a checkpoint of process 0 into it. There process 0 is
    given the whole state and writes it alone, as numpy arrays.
    """

    def __init__(
        self,
        workdir: Path,
        note: Note,
        keep_latest: int = 2,
        keep_best: int = 1,
        allowed: str = "",
        fetch: Callable[[int], None] | None = None,
    ) -> None:
        self.workdir = workdir.resolve()
        self.folder = self.workdir / "checkpoints"
        self.damaged = self.workdir / "checkpoints_damaged"
        self.note = note
        self.keep, self.allowed = (keep_latest, keep_best), allowed
        self.fetch = fetch
        self.apart = fetch is not None and jax.process_count() > 1
        self.failed: str = ""  # why the latest save failed, "" when it did not
        self._unusable: dict[int, str] = {}  # damaged checkpoints -> why
        self._pending: int | None = None
        self._listing: threading.Thread | None = None
        self._not_listed: str = ""
        self._manager: _Manager | None = None  # made at the first save: it may delete
        quiet_libraries()

    def _open(self) -> _Manager:
        policies = ocp.checkpoint_managers
        latest, best = self.keep
        self._set_aside()
        self._remove_unfinished()
        if not self.apart:
            agree.together("checkpoints are in order")
        self.folder.mkdir(parents=True, exist_ok=True)
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="alone"
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(latest),
                    policies.BestN(get_metric_fn=lambda metrics: -metrics["loss"], n=best),
                ]
            ),
            best_fn=lambda metrics: metrics["loss"],
            best_mode="min",
            create=False,
            multiprocessing_options=alone if self.apart else ocp.options.MultiprocessingOptions(),
        )
        return _Manager(self.folder, options=options, item_names=(*ARRAYS, "meta"))

    def steps(self) -> list[int]:
        """Steps of the checkpoints that were completed, oldest first."""
        return checkpoint_files.steps_in(self.folder)

    def save(self, step: int, state: State, meta: Mapping[str, Any], loss: float) -> None:
        """Starts writing a checkpoint and returns as soon as the arrays are copied.

        A failure is noted, not raised. Of several processes, those that did not fail would wait for the one that
        did: it raises a UserError, for all to end by (`agree.failing_together`).
        """
        self.wait()
        # What is there and what is damaged is process 0's to say: the others have not looked.
        if agree.from_primary("saving", step in self.steps() and step not in self._unusable):
            return
        if self.failed:
            self._remove_unfinished()
        arrays = {item: getattr(state, item) for item in ARRAYS}
        if self.apart:
            arrays = {item: _gathered(tree) for item, tree in arrays.items()}
            if jax.process_index() != 0:
                return
        arguments = {item: ocp.args.StandardSave(tree) for item, tree in arrays.items()}
        arguments["meta"] = ocp.args.JsonSave({"format": FORMAT, "tree": describe_tree(state), **meta})
        self.failed = ""
        self._pending = step
        try:
            self._manager = self._manager or self._open()
            self._manager.save(step, args=ocp.args.Composite(**arguments), metrics={"loss": loss}, force=True)
        except Exception as error:  # whatever the disk does, the training goes on
            self._fail(step, error)

    def poll(self) -> None:
        """Looks, without waiting, whether the save under way has ended or failed; its files are then hashed."""
        if (
            self._pending is not None
            and self._manager is not None
            and (self._manager.failure or not self._manager.is_saving_in_progress())
        ):
            self._end_save()

    def wait(self) -> None:
        """Waits for the save under way and for the list of its files; says loudly why it failed."""
        self._end_save()
        if self._listing is not None:
            self._listing.join()
            self._listing = None
        if self._not_listed:  # the checkpoint is whole; only later damage would not be seen
            self.note(f"WARNING: {self._not_listed}")
            self._not_listed = ""

    def close(self) -> None:
        """Waits for the save under way and stops the background threads."""
        self.wait()
        if self._manager is not None:
            self._manager.close()

    def restore_latest(
        self, abstract: State, meta: Mapping[str, Any], above: int = NOTHING
    ) -> tuple[State, dict[str, Any]] | None:
        """The newest checkpoint that is whole as (state, meta), or None when there is none of a step beyond `above`.

        `abstract`: shapes, dtypes and shardings of the state wanted here, on any number of devices. `meta`: "sensors",
        "fingerprints" and "plan" of this run. Damaged checkpoints are told and passed over.

        Raises:
            UserError: every checkpoint is damaged; one that differs in any of the above, or in tree, shape or dtype
                (differences are listed); one that is whole and could not be restored (memory, disk). Nothing is moved.
        """
        # Process 0 looks for all, and once: what each of them saw for itself might not be the same.
        found = [self._newest_whole(above), self.failed] if jax.process_index() == 0 else None
        chosen, self.failed = agree.from_primary("choosing the checkpoint", found, agree.LONG)
        if chosen == NOTHING:
            return None
        if chosen == UNREADABLE:
            raise UserError(self.failed, DATA)
        folder = self.folder / str(chosen)
        if self.fetch is not None:
            self.fetch(chosen)
        try:
            there = _restore_json(folder / "meta")
            wanted = {"tree": describe_tree(abstract), **meta}
            for line in refuse_differences(folder, there, wanted, self.allowed):
                self.note(f"WARNING: allowed by config.checkpoint.allow: {line}")
            arrays = {item: _restore_arrays(folder / item, getattr(abstract, item)) for item in ARRAYS}
        except UserError:
            raise
        except Exception as error:  # tensorstore and Orbax raise many types
            raise UserError(
                f"checkpoint {folder} could not be restored ({_first_line(error)}); nothing was moved or changed. If "
                "memory or the disk was the cause, start again when it is gone; to go on from an earlier checkpoint, "
                "move this one elsewhere",
                DATA,
            ) from error
        place = abstract.step.sharding
        step, alive = jax.device_put(jnp.int32(chosen), place), jax.device_put(jnp.bool_(True), place)
        return State(step, alive, *(arrays[item] for item in ARRAYS)), there

    def _newest_whole(self, above: int = NOTHING) -> int:
        """Step of the newest checkpoint that is what was written, NOTHING, or UNREADABLE (with `failed` saying why)."""
        steps = self.steps()
        for step in reversed(steps):
            if step <= above:
                return NOTHING
            folder = self.folder / str(step)
            try:
                content = checkpoint_files.compare(folder)
            except (OSError, MemoryError) as error:
                self.failed = f"checkpoint {folder} cannot be read: {_first_line(error)}; nothing was moved"
                return UNREADABLE
            if not content.problem:
                if not content.verified:
                    self.note(unverified(folder))
                return step
            self._unusable[step] = content.problem
            before = "using the one before it" if step != steps[0] else "there is none before it"
            self.note(f"WARNING: checkpoint {folder} is damaged ({content.problem}); {before}")
        if not steps or above != NOTHING:
            return NOTHING
        told = "; ".join(f"step {step}: {problem}" for step, problem in self._unusable.items())
        self.failed = (
            f"no checkpoint of {self.folder} is whole ({told}); restore one from a copy, or move them elsewhere and "
            "start from step 0 with --config.train.from_scratch=true"
        )
        return UNREADABLE

    def _end_save(self) -> None:
        """Ends the save under way: hashes its files in the background if it is complete."""
        if self._pending is None or self._manager is None:
            return
        step = self._pending
        try:
            while self._manager.is_saving_in_progress():
                if self._manager.failure is not None:
                    raise self._manager.failure
                time.sleep(0.005)
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            if not (self.folder / str(step)).is_dir():
                raise OSError("it was not finalised")
        except Exception as error:
            self._fail(step, error)
            return
        self._pending = None
        if jax.process_index() == 0:
            self._listing = threading.Thread(target=self._list_files, args=(step,), daemon=True)
            self._listing.start()

    def _list_files(self, step: int) -> None:
        try:
            checkpoint_files.write_list(self.folder / str(step))
            mark = self.workdir / SAVED
            part = mark.with_suffix(".part")
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            part.write_text(json.dumps({"step": step, "time": now}) + "\n")
            part.replace(mark)
        except OSError as error:
            self._not_listed = f"the hashes of checkpoint {step} were not written ({_first_line(error)})"

    def _set_aside(self) -> None:
        for step, problem in self._unusable.items():
            if jax.process_index() == 0:
                self.damaged.mkdir(exist_ok=True)
                target = self.damaged / str(step)
                if target.exists():
                    target = self.damaged / f"{step}_{time.time_ns()}"
                (self.folder / str(step)).rename(target)
                self.note(f"the damaged checkpoint of step {step} ({problem}) was moved to {target}")
        self._unusable = {}

    def _fail(self, step: int, error: Exception) -> None:
        self.failed = _first_line(error)
        self._pending = None
        complete = self.steps()
        last = (
            f"the latest complete checkpoint is still step {max(complete)}"
            if complete
            else "there is none yet"
        )
        if jax.process_count() > 1:
            raise UserError(
                f"the checkpoint of step {step} was not saved ({self.failed}); {last}", DATA
            ) from error
        self.note(f"WARNING: CHECKPOINT OF STEP {step} NOT SAVED ({self.failed}); training goes on, {last}")
        # A fresh manager forgets the failure. The half-written folder goes now, to free its space, and again before
        # the next save: threads of the failed one may still be writing.
        try:
            if self._manager is not None:
                self._manager.close()
        except Exception as again:  # the same failure, raised a second time
            self.failed = _first_line(again)
        self._remove_unfinished()
        self._manager = None

    def _remove_unfinished(self) -> None:
        if jax.process_index() == 0 and self.folder.is_dir():
            for folder in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(folder, ignore_errors=True)


def _gathered(tree: Any) -> Any:
    """Arrays that are spread over processes, whole, as numpy in process 0 (the others give theirs and keep nothing)."""

    def whole(leaf: jax.Array) -> Any:
        array = multihost_utils.process_allgather(leaf, tiled=True)
        return array if jax.process_index() == 0 else None

    return jax.tree.map(whole, tree)


def unverified(folder: Path) -> str:
    return (
        f"note: checkpoint {folder} has no list of hashes (an earlier version wrote it, or was killed before the list "
        "was): it cannot be verified"
    )


def _restore_json(folder: Path) -> dict[str, Any]:
    return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder)


def _restore_arrays(folder: Path, abstract: Any) -> Any:
    arguments = ocp.args.StandardRestore(abstract)
    return ocp.Checkpointer(ocp.StandardCheckpointHandler()).restore(folder, args=arguments)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    # Where it happened comes first, and may be long; why comes last.
    text = lines[0] if len(lines[0]) <= 400 else f"{lines[0][:190]} ... {lines[0][-190:]}"
    return f"{type(error).__name__}: {text}"


def refuse_differences(
    folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], allowed: str = ""
) -> list[str]:
    """What differs in tree, sensors, fingerprints and plan between a checkpoint and this run, and is allowed to.

    `allowed`: a regular expression of the beginning of differences ("fingerprints flairhub|plan seed"). Arrays are
    never allowed to differ.

    Raises:
        UserError: other differences, listed; or in a line that the checkpoint is of another model.
    """
    lines: list[str] = []
    for group in GROUPS:
        ours, theirs = leaves(wanted.get(group, {})), leaves(found.get(group, {}))
        for name in sorted(ours.keys() | theirs.keys()):
            if name not in theirs:
                lines.append(f"{group} {name}: missing in the checkpoint, expected {ours[name]}")
            elif name not in ours:
                lines.append(f"{group} {name}: {theirs[name]} in the checkpoint, unknown to this run")
            elif ours[name] != theirs[name]:
                lines.append(f"{group} {name}: {theirs[name]} in the checkpoint, expected {ours[name]}")
        if len(lines) > MODEL and group == "tree":
            raise UserError(
                f"checkpoint {folder} is of another model: {len(lines)} of its arrays are not as this run's, e.g. "
                f"{lines[0]}",
                DATA,
            )
    accepted = [line for line in lines if not line.startswith("tree ") and _matches(line, allowed)]
    lines = [line for line in lines if line not in accepted]
    if lines:
        shown = "\n  ".join(lines[:40])
        more = f"\n  and {len(lines) - 40} more" if len(lines) > 40 else ""
        raise UserError(f"checkpoint {folder} does not fit this run:\n  {shown}{more}", DATA)
    return accepted


def _matches(text: str, pattern: str) -> bool:
    try:
        return bool(pattern) and re.match(pattern, text) is not None
    except re.error as error:
        raise UserError(f"config.checkpoint.allow = {pattern!r} is no pattern: {error}", USAGE) from error


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as {dotted name: leaf}; lists compare whole, in their JSON form."""
    if isinstance(value, Mapping):
        return {name: leaf for key in value for name, leaf in leaves(value[key], f"{prefix}{key} ").items()}
    return {prefix.strip(): json.loads(json.dumps(value))}


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def load(path: str | Path, note: Note = _tell) -> Loaded:
    """Parameters, BatchNorm statistics and meta of a checkpoint, on the first device, wherever it was written.

    `path`: see checkpoint_files.find(). Raises UserError when there is none or it is damaged; `note` is told where
    nothing says so.
    """
    folder = checkpoint_files.find(path).resolve()
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        content = checkpoint_files.compare(folder)
        if content.problem:
            others = [str(folder.parent / str(step)) for step in checkpoint_files.steps_in(folder.parent)]
            advice = ", ".join(other for other in others if other != str(folder))
            advice = f"; others there: {advice}" if advice else ""
            raise UserError(f"checkpoint {folder} is damaged: {content.problem}{advice}", DATA)
        if not content.verified:
            note(unverified(folder))
        meta = _restore_json(folder / "meta")
        trees = []
        for item in ("params", "statistics"):
            abstract: dict[str, Any] = {}
            for name, (shape, dtype) in meta["tree"][item].items():
                *parents, last = name.split("/")
                group = abstract
                for parent in parents:
                    group = group.setdefault(parent, {})
                group[last] = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype), sharding=here)
            trees.append(_restore_arrays(folder / item, abstract))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"checkpoint {folder} cannot be read: {_first_line(error)}", DATA) from error
    return Loaded(trees[0], trees[1], meta, folder)
