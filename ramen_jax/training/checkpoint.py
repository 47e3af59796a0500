"""Checkpoints of a run: written in the background, restored strictly, never trusted blindly.

A checkpoint is a folder {workdir}/checkpoints/{step} with the Orbax items params, statistics, opt_state and meta
(JSON: step, config, recipe, sensors, data fingerprints, plan, the tree's shapes and dtypes, clock). `step` counts the
steps done. Beside them, {workdir}/checkpoint_files/{step}.json lists the files and their sizes once a checkpoint is
complete, so that a truncated one is recognised, set aside, and the previous one used.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import absl.logging
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from ramen_jax.console import DATA, UserError
from ramen_jax.parallel.rules import flat_names
from ramen_jax.training.step import State

ARRAYS = ("params", "statistics", "opt_state")
FORMAT = 1

Note = Callable[[str], None]


def quiet_libraries() -> None:
    """Keeps Orbax from printing the stack of every background thread that a full disk stops: we say it in a line."""
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


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
    """The checkpoints of one workdir. `note` is called with every sentence a person should read."""

    def __init__(self, workdir: Path, note: Note, keep_latest: int = 2, keep_best: int = 1) -> None:
        self.folder = workdir.resolve() / "checkpoints"
        self.lists = workdir.resolve() / "checkpoint_files"
        self.damaged = workdir.resolve() / "checkpoints_damaged"
        self.note = note
        self.keep = (keep_latest, keep_best)
        self.failed: str = ""  # why the latest save failed, "" when it did not
        self._pending: int | None = None
        quiet_libraries()
        self._remove_unfinished()
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        policies = ocp.checkpoint_managers
        latest, best = self.keep
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(latest),
                    policies.BestN(get_metric_fn=lambda metrics: -metrics["loss"], n=best),
                ]
            ),
            best_fn=lambda metrics: metrics["loss"],
            best_mode="min",
            create=True,
        )
        return ocp.CheckpointManager(self.folder, options=options, item_names=(*ARRAYS, "meta"))

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: State, meta: Mapping[str, Any], loss: float) -> None:
        """Starts writing a checkpoint and returns as soon as the arrays are copied. A failure is noted, not raised."""
        self.wait()
        if step in self.steps():
            return
        if self.failed:
            self._remove_unfinished()
        arguments = {item: ocp.args.StandardSave(getattr(state, item)) for item in ARRAYS}
        arguments["meta"] = ocp.args.JsonSave({"format": FORMAT, "tree": describe_tree(state), **meta})
        self.failed = ""
        self._pending = step
        try:
            self._manager.save(step, args=ocp.args.Composite(**arguments), metrics={"loss": loss}, force=True)
        except Exception as error:  # whatever the disk does, the training goes on
            self._fail(step, error)

    def poll(self) -> None:
        """Looks, without waiting, whether the save under way has ended or failed."""
        if self._pending is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits for the save under way; lists its files if it is complete, says loudly why it is not."""
        if self._pending is None:
            return
        step = self._pending
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            if not (self.folder / str(step)).is_dir():
                raise OSError("it was not finalised")
        except Exception as error:
            self._fail(step, error)
            return
        self._pending = None
        if jax.process_index() == 0:
            try:
                self._list_files(step)
            except (
                OSError
            ) as error:  # the checkpoint is whole; only a later truncation would be harder to see
                self.note(
                    f"WARNING: the list of files of checkpoint {step} was not written ({_first_line(error)})"
                )

    def close(self) -> None:
        """Waits for the save under way and stops the background threads."""
        self.wait()
        self._manager.close()

    def restore_latest(self, abstract: State, meta: Mapping[str, Any]) -> tuple[State, dict[str, Any]] | None:
        """The newest complete checkpoint as (state, meta), or None when there is none yet.

        `abstract`: shapes, dtypes and shardings of the state wanted here, on any number of devices. `meta`: "sensors",
        "fingerprints" and "plan" of this run. A checkpoint that differs in any of these, or in tree, shape or dtype,
        raises UserError with the differences; a damaged one is set aside for the one before it, saying so.
        """
        steps = self.steps()
        for step in reversed(steps):
            found, problem = self._read_meta(step)
            if not problem:
                refuse_differences(self.folder / str(step), found, {"tree": describe_tree(abstract), **meta})
                try:
                    arguments = {item: ocp.args.StandardRestore(getattr(abstract, item)) for item in ARRAYS}
                    arrays = self._manager.restore(step, args=ocp.args.Composite(**arguments))
                    place = abstract.step.sharding
                    state = State(
                        jax.device_put(jnp.int32(step), place),
                        jax.device_put(jnp.bool_(True), place),
                        *(arrays[item] for item in ARRAYS),
                    )
                    return state, found
                except Exception as error:  # tensorstore and Orbax raise many types on a damaged file
                    problem = _first_line(error)
            self._set_aside(step, problem)
        if steps:
            raise UserError(
                f"no complete checkpoint left in {self.folder}; the damaged ones are in {self.damaged}: "
                f"remove that folder to start again from step 0, or restore it from a copy",
                DATA,
            )
        return None

    def _read_meta(self, step: int) -> tuple[dict[str, Any], str]:
        listed = self.lists / f"{step}.json"
        if listed.is_file():
            try:
                sizes = json.loads(listed.read_text())
            except ValueError:
                sizes = {}
            for name, size in sizes.items():
                file = self.folder / str(step) / name
                found = file.stat().st_size if file.is_file() else None
                if found != size:
                    was = "is missing" if found is None else f"has {found} bytes"
                    return {}, f"{name} {was}, expected {size}"
        try:
            return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[
                "meta"
            ], ""
        except Exception as error:
            return {}, f"meta: {_first_line(error)}"

    def _list_files(self, step: int) -> None:
        folder = self.folder / str(step)
        sizes = {
            str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()
        }
        self.lists.mkdir(exist_ok=True)
        kept = {str(other) for other in self.steps()}
        for old in self.lists.glob("*.json"):
            if old.stem not in kept:
                old.unlink()
        unfinished = self.lists / f"{step}.partial"
        unfinished.write_text(json.dumps(sizes))
        unfinished.rename(self.lists / f"{step}.json")

    def _set_aside(self, step: int, problem: str) -> None:
        self.note(
            f"WARNING: checkpoint {self.folder / str(step)} is damaged ({problem}); using the one before it"
        )
        if jax.process_index() == 0:
            self.damaged.mkdir(exist_ok=True)
            target = self.damaged / str(step)
            if target.exists():
                shutil.rmtree(target)
            shutil.move(self.folder / str(step), target)
            (self.lists / f"{step}.json").unlink(missing_ok=True)
        self._manager.reload()

    def _fail(self, step: int, error: Exception) -> None:
        self.failed = _first_line(error)
        self._pending = None
        complete = self.steps()
        last = (
            f"the latest complete checkpoint is still step {max(complete)}"
            if complete
            else "there is none yet"
        )
        self.note(f"WARNING: CHECKPOINT OF STEP {step} NOT SAVED ({self.failed}); training goes on, {last}")
        # A fresh manager forgets the failure. The half-written folder goes now, to free its space, and again before
        # the next save: threads of the failed one may still be writing.
        try:
            self._manager.close()
        except Exception as again:  # the same failure, raised a second time
            self.failed = _first_line(again)
        self._remove_unfinished()
        self._manager = self._open()

    def _remove_unfinished(self) -> None:
        if jax.process_index() == 0 and self.folder.is_dir():
            for folder in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(folder, ignore_errors=True)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


def refuse_differences(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """UserError listing what differs in tree, sensors, fingerprints and plan between a checkpoint and this run."""
    lines: list[str] = []
    for group in ("tree", "sensors", "fingerprints", "plan"):
        ours, theirs = _leaves(wanted.get(group, {})), _leaves(found.get(group, {}))
        for name in sorted(ours.keys() | theirs.keys()):
            if name not in theirs:
                lines.append(f"{group} {name}: missing in the checkpoint, expected {ours[name]}")
            elif name not in ours:
                lines.append(f"{group} {name}: {theirs[name]} in the checkpoint, unknown to this run")
            elif ours[name] != theirs[name]:
                lines.append(f"{group} {name}: {theirs[name]} in the checkpoint, expected {ours[name]}")
    if lines:
        shown = "\n  ".join(lines[:40])
        more = f"\n  and {len(lines) - 40} more" if len(lines) > 40 else ""
        raise UserError(f"checkpoint {folder} does not fit this run:\n  {shown}{more}", DATA)


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as {dotted name: leaf}; lists compare whole, in their JSON form."""
    if isinstance(value, Mapping):
        return {name: leaf for key in value for name, leaf in _leaves(value[key], f"{prefix}{key} ").items()}
    return {prefix.strip(): json.loads(json.dumps(value))}


def find(path: str | Path) -> Path:
    """The checkpoint folder meant by a workdir (its newest), a `checkpoints` folder, or one checkpoint itself."""
    path = Path(path).expanduser()
    for folder in (path, path / "checkpoints"):
        if (folder / "meta").is_dir() and (folder / "params").is_dir():
            return folder
        steps = [entry for entry in folder.iterdir() if entry.name.isdigit()] if folder.is_dir() else []
        if steps:
            return max(steps, key=lambda entry: int(entry.name))
    raise UserError(
        f"no checkpoint at {path}; expected a workdir, its checkpoints folder, or one of its steps", DATA
    )


def load(path: str | Path) -> Loaded:
    """Parameters, BatchNorm statistics and meta of a checkpoint, on the first device, wherever it was written.

    `path`: see find(). Raises UserError when there is none or it is damaged.
    """
    folder = find(path).resolve()
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        meta = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / "meta")
        trees = []
        for item in ("params", "statistics"):
            abstract: dict[str, Any] = {}
            for name, (shape, dtype) in meta["tree"][item].items():
                *parents, last = name.split("/")
                group = abstract
                for parent in parents:
                    group = group.setdefault(parent, {})
                group[last] = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype), sharding=here)
            arguments = ocp.args.StandardRestore(abstract)
            trees.append(
                ocp.Checkpointer(ocp.StandardCheckpointHandler()).restore(folder / item, args=arguments)
            )
    except Exception as error:
        raise UserError(f"checkpoint {folder} cannot be read: {_first_line(error)}", DATA) from error
    return Loaded(trees[0], trees[1], meta, folder)
