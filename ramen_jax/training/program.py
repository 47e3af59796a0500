"""Everything of a training that is compiled: one value, for the devices at hand or for a topology handed in.

    program = Program(config, model, inputs, mesh, steps, steps_per_epoch)
    program.compile()
    state = program.create_state()
    state, metrics = program.step("flairhub")(state, program.place("flairhub", rows))

It is made from shapes alone: a corpus gives its bands and the shapes of its rows (`Inputs`). A training, a benchmark, a
test and a check of what fits run the same program.
"""

import gzip
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ramen_jax import allocator
from ramen_jax.console import USAGE, UserError
from ramen_jax.parallel import mesh as meshes
from ramen_jax.parallel import rules
from ramen_jax.training import optimizer
from ramen_jax.training.step import Model, State, make_evaluation, make_step, new_state


class Inputs(NamedTuple):
    """What a step of one corpus is given.

    Attributes:
        bands: modality -> what its channels are.
        rows: the rows of a step over all processes, as anything with the shapes and dtypes of the arrays.
    """

    bands: Any
    rows: Any


class Program:
    """The step and the evaluation of every corpus.

    Args:
        config: a finished configuration.
        model: `Ramen`, or anything with its `init`, `counts` and `loss`.
        inputs: corpus -> what its step is given.
        mesh: of the devices it runs on.
        steps, steps_per_epoch: length of the training, which the learning rate follows.
        evaluated: corpus -> what its evaluation is given; other places may ask for other shapes.
        logical_axes: names for the axes of the model's parameters.

    Attributes:
        abstract: shapes, dtypes and shardings of the state.
        rate: the learning rate of a step.
        kept_whole: parameters that every device holds whole though the configuration means to split them.

    Raises:
        UserError: rows that the mesh does not divide, or too many parameters; says which number would do.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: Model,
        inputs: Mapping[str, Inputs],
        mesh: Mesh,
        steps: int,
        steps_per_epoch: float,
        evaluated: Mapping[str, Inputs] | None = None,
        logical_axes: rules.LogicalAxes = rules.logical_axes,
    ) -> None:
        self.config, self.model, self.mesh = config, model.on(mesh), mesh
        self.inputs = {"step": dict(inputs), "evaluation": dict(evaluated or {})}
        for name, given in [*inputs.items(), *self.inputs["evaluation"].items()]:
            _check_rows(config, mesh, name, jax.tree.leaves(given.rows)[0].shape[0])
        self.logical_axes = logical_axes
        self.rate = optimizer.schedule(config, steps, steps_per_epoch)
        self._optimizer = optimizer.make_optimizer(config, self.rate)
        self.abstract = self._abstract_state()
        self._compiled: dict[tuple[str, str], Any] = {}

    def create_state(self) -> State:
        """A fresh state. Each device computes its own shards; no device ever holds the whole."""
        # A program of a thousand small random draws that runs once: on CPU, compiling it well costs more than it saves.
        options = {"xla_backend_optimization_level": 0} if self._platform == "cpu" else None
        create = jax.jit(self._new_state, out_shardings=self._shardings, compiler_options=options)
        return create()

    def place(self, corpus: str, rows: Any, kind: str = "step") -> Any:
        """This process's rows (numpy) of a "step" or an "evaluation" as global arrays, split over the mesh."""
        return meshes.put_rows(rows, self.mesh, self.inputs[kind][corpus].rows)

    def rows_of_a_step(self, corpus: str) -> int:
        """Over all processes."""
        return int(jax.tree.leaves(self.inputs["step"][corpus].rows)[0].shape[0])

    def local_rows(self, corpus: str, kind: str = "step") -> tuple[int, ...]:
        """Numbers of the rows of a step that this process's devices hold: those that it has to read."""
        return meshes.local_rows(self.mesh, jax.tree.leaves(self.inputs[kind][corpus].rows)[0].shape[0])

    def lower_step(self, corpus: str) -> jax.stages.Lowered:
        """step(state, rows) -> (state, metrics), lowered for the program's devices. The state is donated."""
        step = make_step(
            self.model,
            self._optimizer,
            self.rate,
            self.inputs["step"][corpus].bands,
            seed=self.config.seed,
            micro=self.config.optimizer.accumulate,
            for_compute=self.for_compute,
        )
        rows_split = jax.sharding.NamedSharding(self.mesh, meshes.ROWS)
        jitted = jax.jit(
            step,
            donate_argnums=0,  # the new state takes the memory of the old one
            in_shardings=(self._shardings, rows_split),  # storage mapping; rows over data x fsdp
            out_shardings=(self._shardings, meshes.replicated(self.mesh)),  # metrics on every device
        )
        return jitted.lower(self.abstract, self.abstract_rows("step", corpus))

    def for_compute(self, params: Any) -> Any:
        """Parameters as a step uses them; their gradients come back as they are stored. See `rules.lent`."""
        used = rules.tree_shardings(params, self.mesh, self.config.sharding.compute, self.logical_axes)
        return rules.lent(params, self._shardings.params, used)

    def lower_evaluation(self, corpus: str) -> jax.stages.Lowered:
        """evaluation(params, statistics, rows) -> (sums of errors, counts), see `step.make_evaluation`."""
        evaluation = make_evaluation(self.model, self.inputs["evaluation"][corpus].bands)
        jitted = jax.jit(evaluation, out_shardings=meshes.replicated(self.mesh))
        rows = self.abstract_rows("evaluation", corpus)
        return jitted.lower(self.abstract.params, self.abstract.statistics, rows)

    def abstract_rows(self, kind: str, corpus: str) -> Any:
        """Shapes, dtypes and shardings of the rows of a "step" or an "evaluation"."""
        split = jax.sharding.NamedSharding(self.mesh, meshes.ROWS)
        return jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=split),
            self.inputs[kind][corpus].rows,
        )

    def compile(self, note: Callable[[str], None] = lambda sentence: None, keep: Path | None = None) -> float:
        """Compiles every step and every evaluation. Returns seconds.

        Called before the state exists: the compiler's memory and the state's are never held together.

        Args:
            note: called with a sentence per program.
            keep: folder for the lowered steps (`step_CORPUS.stablehlo.gz`).
        """
        began = time.monotonic()
        if self.kept_whole.names:
            note(
                f"{self.kept_whole.share:.1%} of the parameters to be split stay whole, their axes are not divisible: "
                + ", ".join(self.kept_whole.names[:3])
            )
        wanted = [(kind, name) for kind, given in self.inputs.items() for name in given]
        for number, (kind, name) in enumerate(wanted, 1):
            started = time.monotonic()
            lowered = self.lower_step(name) if kind == "step" else self.lower_evaluation(name)
            if keep is not None and kind == "step":
                text = lowered.as_text().encode()
                (keep / f"step_{name}.stablehlo.gz").write_bytes(gzip.compress(text, mtime=0))
            self._compiled[kind, name] = lowered.compile()
            allocator.return_memory()
            note(
                f"compiled the {kind} of {name} in {time.monotonic() - started:.1f} s ({number} of {len(wanted)})"
            )
        return time.monotonic() - began

    def step(self, corpus: str) -> Any:
        """The compiled step: rows of another shape are an error, not a second program."""
        return self._get("step", corpus)

    def evaluation(self, corpus: str) -> Any:
        """The compiled evaluation."""
        return self._get("evaluation", corpus)

    def _get(self, kind: str, corpus: str) -> Any:
        if (kind, corpus) not in self._compiled:
            lowered = self.lower_step(corpus) if kind == "step" else self.lower_evaluation(corpus)
            self._compiled[kind, corpus] = lowered.compile()
        return self._compiled[kind, corpus]

    @property
    def _platform(self) -> str:
        return self.mesh.devices.flat[0].platform

    def _new_state(self) -> State:
        return new_state(self.model, self._optimizer, self.config.seed)

    def _abstract_state(self) -> State:
        shapes = jax.eval_shape(self._new_state)
        whole, stored = meshes.replicated(self.mesh), self.config.sharding.storage
        self.kept_whole = rules.refuse_whole(shapes.params, self.mesh, stored, self.logical_axes)
        used = self.config.sharding.compute
        self.model = self.model.on(
            self.mesh, rules.block_places(shapes.params, self.mesh, stored, used, self.logical_axes)
        )
        self._shardings = State(
            step=whole,
            alive=whole,
            params=rules.tree_shardings(shapes.params, self.mesh, stored, self.logical_axes, fall_back=True),
            statistics=jax.tree.map(lambda _: whole, shapes.statistics),
            opt_state=rules.tree_shardings(
                shapes.opt_state, self.mesh, stored, self.logical_axes, fall_back=True
            ),
        )
        return jax.tree.map(
            lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place),
            shapes,
            self._shardings,
        )


def _check_rows(config: ConfigDict, mesh: Mesh, corpus: str, rows: int) -> None:
    """UserError where the rows of a step do not divide over micro-batches and devices."""
    shards = int(np.prod([mesh.shape[axis] for axis in meshes.ROWS[0]]))
    micro = config.optimizer.accumulate
    if rows % (shards * micro):
        fitting = max(1, round(rows / (shards * micro))) * shards * micro
        raise UserError(
            f"corpus {corpus}: {rows} rows per step cannot be split over config.optimizer.accumulate = {micro} "
            f"micro-batches and {shards} devices (data x fsdp), expected a multiple of {shards * micro}, e.g. "
            f"config.data.rows_per_step = {fitting} (or config.corpora.{corpus}.rows_per_step)",
            USAGE,
        )
