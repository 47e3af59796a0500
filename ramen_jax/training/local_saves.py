"""Saves of a run on the disks of its hosts: more often than checkpoints, and quick to read again.

Every process keeps what its own devices hold in {config.checkpoint.local}/{run}/process{i}_of_{n}/{step}: the arrays,
what a checkpoint says about itself, and, written last, the hashes of both. `run` is a name that the workdir holds, so
that runs never meet. A save is of use only where every process has its own, whole, and has the same devices as then:
anything else goes on from a checkpoint. A failure costs no step, and nothing but a later restart.
"""

from __future__ import annotations

import json
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ramen_jax.console import one_line
from ramen_jax.parallel import agree
from ramen_jax.parallel.rules import flat_names
from ramen_jax.training import checkpoint_files
from ramen_jax.training.checkpoint import ARRAYS, NOTHING, describe_tree, refuse_differences
from ramen_jax.training.step import State

RUN = "run_id"  # in the workdir: the name of the run
STATE, META = "state.safetensors", "meta.json"
KEEP = 2  # the newest may not be whole everywhere

Note = Callable[[str], None]


class LocalSaves:
    """What this process keeps on its host's disk.

    Args:
        workdir: of the run, the same for all processes.
        base: a folder of this machine.
        note: called with every sentence a person should read, in every process.
        allowed: see `checkpoint.refuse_differences`.
    """

    def __init__(self, workdir: Path, base: Path, note: Note, allowed: str = "") -> None:
        run = agree.from_primary("naming the run", _name(workdir) if jax.process_index() == 0 else "")
        self.folder = base / run / f"process{jax.process_index()}_of_{jax.process_count()}"
        self.note, self.allowed = note, allowed
        self._writing: threading.Thread | None = None
        self._failed = False

    def save(self, step: int, state: State, meta: Mapping[str, Any]) -> None:
        """Starts writing and returns as soon as the arrays are copied from the devices."""
        self.wait()
        # Copies: views would keep the step to come from taking the memory of this state.
        arrays = {name: np.array(shard, order="C") for name, shard in _held(state)}
        facts = {"tree": describe_tree(state), **meta}
        self._writing = threading.Thread(target=self._write, args=(step, arrays, facts), daemon=True)
        self._writing.start()

    def wait(self) -> None:
        """Waits for the save under way."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def newest(self, abstract: State) -> int:
        """The newest step that every process has whole and can put on its devices; NOTHING where there is none.

        Damaged saves are told and passed over.
        """
        wanted = set(_needed(abstract))
        mine = [step for step in checkpoint_files.steps_in(self.folder) if self._is_whole(step, wanted)]
        return agree.combined("choosing the local save", mine, _newest_of_all, agree.LONG)

    def restore(
        self, step: int, abstract: State, identity: Mapping[str, Any]
    ) -> tuple[State, dict[str, Any]]:
        """(state, meta) of a step that `newest` gave. UserError where the run is another than then."""
        folder = self.folder / str(step)
        meta = json.loads((folder / META).read_bytes())
        wanted = {"tree": describe_tree(abstract), **identity}
        for line in refuse_differences(folder, meta, wanted, self.allowed):
            self.note(f"WARNING: allowed by config.checkpoint.allow: {line}")
        arrays = safetensors.numpy.load_file(folder / STATE)

        def put(item: str) -> Any:
            names = iter(flat_names(getattr(abstract, item)))

            def one(leaf: Any) -> jax.Array:
                name = next(names)

                def part(index: tuple[slice, ...] | None) -> np.ndarray:
                    assert index is not None
                    return arrays[_key(item, name, index, leaf.shape)]

                return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

            return jax.tree.map(one, getattr(abstract, item))

        place = abstract.step.sharding
        count, alive = jax.device_put(jnp.int32(step), place), jax.device_put(jnp.bool_(True), place)
        return State(count, alive, *(put(item) for item in ARRAYS)), meta

    def _is_whole(self, step: int, wanted: set[str]) -> bool:
        folder = self.folder / str(step)
        try:
            content = checkpoint_files.compare(folder)
            problem = content.problem or ("" if content.verified else "it has no list of hashes")
            if not problem:
                with safetensors.safe_open(folder / STATE, "numpy") as file:
                    return wanted <= set(file.keys())
        except (OSError, safetensors.SafetensorError) as error:
            problem = one_line(str(error))
        self.note(f"WARNING: local save {folder} is damaged ({problem}); it is passed over")
        return False

    def _write(self, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        part = self.folder / f".{step}.part"
        try:
            for left in self.folder.glob(".*.part"):
                shutil.rmtree(left, ignore_errors=True)
            part.mkdir(parents=True)
            safetensors.numpy.save_file(dict(arrays), part / STATE)
            (part / META).write_text(json.dumps(meta))
            checkpoint_files.write_list(part)
            whole = self.folder / str(step)
            shutil.rmtree(whole, ignore_errors=True)  # a damaged one, or of a run that went on from before it
            part.rename(whole)
            # Later ones are of a run that was gone back behind.
            steps = checkpoint_files.steps_in(self.folder)
            kept = [other for other in steps if other <= step][-KEEP:]
            for other in set(steps) - set(kept):
                shutil.rmtree(self.folder / str(other), ignore_errors=True)
            self._failed = False
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            if not self._failed:
                self.note(f"WARNING: local save of step {step} failed ({error}); training goes on")
            self._failed = True


def _name(workdir: Path) -> str:
    """The name of the run, drawn when it is asked for first."""
    path = workdir / RUN
    if not path.is_file():
        part = path.with_suffix(".part")
        part.write_text(uuid.uuid4().hex)
        part.replace(path)
    return path.read_text().strip()


def _newest_of_all(lists: list[list[int]]) -> int:
    return max(set.intersection(*map(set, lists)), default=NOTHING)


def _key(item: str, name: str, index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """`params/encoder/qkv 0:64,0:32`: an array and the part of it."""
    cut = ",".join(
        f"{s.start or 0}:{n if s.stop is None else s.stop}" for s, n in zip(index, shape, strict=True)
    )
    return f"{item}/{name} {cut}"


def _held(state: State) -> Iterator[tuple[str, jax.Array]]:
    """The parts of the arrays that this process's devices hold, each once."""
    seen = set()
    for item in ARRAYS:
        for name, leaf in flat_names(getattr(state, item)).items():
            for shard in leaf.addressable_shards:
                key = _key(item, name, shard.index, leaf.shape)
                if key not in seen:
                    seen.add(key)
                    yield key, shard.data


def _needed(abstract: State) -> Iterator[str]:
    """The parts that its devices will hold of a state that does not exist yet."""
    for item in ARRAYS:
        for name, leaf in flat_names(getattr(abstract, item)).items():
            for index in leaf.sharding.addressable_devices_indices_map(leaf.shape).values():
                yield _key(item, name, index, leaf.shape)
