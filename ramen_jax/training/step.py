"""The training step: its state, how the state is created sharded, and the one function that is compiled per corpus.

A loss is a sum of errors divided by counts of the whole batch, so neither micro-batches nor devices change a gradient
(BatchNorm statistics are those of the micro-batch). A step whose loss or gradient is not finite changes nothing, and
neither does any step after it: the loop has already dispatched the next one when it reads the loss.

Shape letters: R rows of the batch, K micro-batches.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ramen_jax.parallel import mesh as sharding

Tree = Any  # nested dicts of arrays, string keys only (they survive any checkpoint format)


class State(NamedTuple):
    """Everything a step changes (or, leaf for leaf, its shapes or its shardings)."""

    step: Any  # int32, updates tried so far = number of the next step
    alive: Any  # bool, False from the first non-finite step on
    params: Tree  # float32
    statistics: Tree  # running means and variances of BatchNorm, float32
    opt_state: Tree


class Model(NamedTuple):
    """A model without its arrays, and what the step needs from it."""

    definition: nnx.GraphDef
    create: Callable[[], tuple[Tree, Tree]]  # -> params, statistics
    counts: Callable[[Any], Mapping[str, jax.Array]]  # rows -> masked values per modality
    logical_axes: sharding.LogicalAxes

    def join(self, params: Tree, statistics: Tree) -> Any:
        """The nnx module that holds these arrays."""
        return nnx.merge(self.definition, _keys(params, int), _keys(statistics, int))


def describe(
    build: Callable[[], nnx.Module],
    statistic: type[nnx.Variable],
    counts: Callable[[Any], Mapping[str, jax.Array]],
    logical_axes: sharding.LogicalAxes,
) -> Model:
    """A Model from a function that builds the nnx module. Nothing is computed: shapes only."""
    definition = nnx.split(nnx.eval_shape(build), nnx.Param, statistic)[0]

    def create() -> tuple[Tree, Tree]:
        parts: Any = nnx.split(build(), nnx.Param, statistic)
        _, params, statistics = parts
        return _keys(nnx.to_pure_dict(params), str), _keys(nnx.to_pure_dict(statistics), str)

    return Model(definition, create, counts, logical_axes)


def _keys(tree: Tree, kind: type) -> Tree:
    """The same tree with list positions as text (kind=str) or as numbers again (kind=int)."""
    if not isinstance(tree, Mapping):
        return tree
    return {
        (str(key) if kind is str else int(key) if key.isdigit() else key): _keys(value, kind)
        for key, value in tree.items()
    }


def state_shardings(
    model: Model, optimizer: optax.GradientTransformation, mesh: Mesh, config: ConfigDict
) -> State:
    """The sharding of every leaf of the state, from shapes alone."""
    shapes = jax.eval_shape(lambda: _create(model, optimizer))
    whole = sharding.replicated(mesh)
    stored = config.sharding.storage
    return State(
        step=whole,
        alive=whole,
        params=sharding.tree_shardings(shapes.params, mesh, stored, model.logical_axes),
        statistics=jax.tree.map(lambda _: whole, shapes.statistics),
        opt_state=sharding.tree_shardings(shapes.opt_state, mesh, stored, model.logical_axes),
    )


def _create(model: Model, optimizer: optax.GradientTransformation) -> State:
    params, statistics = model.create()
    return State(jnp.int32(0), jnp.bool_(True), params, statistics, optimizer.init(params))


def create_state(model: Model, optimizer: optax.GradientTransformation, shardings: State) -> State:
    """A fresh state. Each device computes its own shards; no device ever holds the whole."""
    # A program of a thousand small random draws that runs once: on CPU, compiling it well costs more than it saves.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(lambda: _create(model, optimizer), out_shardings=shardings, compiler_options=options)()


def abstract_state(model: Model, optimizer: optax.GradientTransformation, shardings: State) -> State:
    """Shapes, dtypes and shardings of a state, which is what a checkpoint is restored into."""
    shapes = jax.eval_shape(lambda: _create(model, optimizer))
    return jax.tree.map(
        lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place), shapes, shardings
    )


def make_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    sensors: Mapping[str, Any],
    config: ConfigDict,
    mesh: Mesh,
    shardings: State,
) -> Any:
    """The jitted step(state, rows_R) -> (state, metrics) for the sensors of one corpus. The state is donated.

    Metrics are float32 scalars: "loss", "loss/{modality}", "gradient_norm", "learning_rate", "tokens", "views".
    """
    seed, micro = config.seed, config.optimizer.accumulate
    compute = sharding.tree_shardings(
        parameter_shapes(model), mesh, config.sharding.compute, model.logical_axes
    )

    def step(state: State, rows_R: Any) -> tuple[State, dict[str, jax.Array]]:
        counts = model.counts(rows_R)
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)

        def micro_loss(params: Tree, statistics: Tree, rows: Any, key: jax.Array) -> Any:
            params = jax.lax.with_sharding_constraint(params, compute)
            module = model.join(params, statistics)
            total, losses = module.loss(rows, sensors, counts, train=True, key=key)
            updated = nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))
            return total, (_keys(updated, str), {"loss": total, **losses})

        gradient = jax.grad(micro_loss, has_aux=True)
        if micro == 1:
            grads, (statistics, metrics) = gradient(state.params, state.statistics, rows_R, step_key)
        else:
            grads, statistics, metrics = _accumulate(gradient, state, rows_R, step_key, micro)

        norm = optax.global_norm(grads)
        alive = state.alive & jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = State(state.step + 1, alive, optax.apply_updates(state.params, updates), statistics, opt_state)
        new = jax.tree.map(
            lambda after, before: jnp.where(alive, after, before), new, state._replace(alive=alive)
        )

        metrics["gradient_norm"] = norm
        metrics["learning_rate"] = rate(state.step)
        metrics["tokens"] = jnp.sum(rows_R.decoder_segment_RxL > 0)
        metrics["views"] = jnp.sum(jnp.max(rows_R.decoder_segment_RxL, axis=1))
        return new, metrics

    rows_split = jax.sharding.NamedSharding(mesh, sharding.ROWS)
    return jax.jit(
        step,
        donate_argnums=0,  # the new state takes the memory of the old one
        in_shardings=(shardings, rows_split),  # storage mapping; rows over data x fsdp
        out_shardings=(shardings, sharding.replicated(mesh)),  # same storage; metrics on every device
    )


def make_evaluation(model: Model, sensors: Mapping[str, Any]) -> Any:
    """The jitted evaluation(params, statistics, rows_R) -> {"loss", "loss/{modality}"}, without dropout."""

    @jax.jit
    def evaluation(params: Tree, statistics: Tree, rows_R: Any) -> dict[str, jax.Array]:
        module = model.join(params, statistics)
        total, losses = module.loss(rows_R, sensors, model.counts(rows_R), train=False, key=None)
        return {"loss": total, **losses}

    return evaluation


def parameter_shapes(model: Model) -> Tree:
    """The parameter tree as shapes and dtypes."""
    return jax.eval_shape(model.create)[0]


def _accumulate(gradient: Callable[..., Any], state: State, rows_R: Any, key: jax.Array, micro: int) -> Any:
    """Sums gradients and losses over `micro` micro-batches, BatchNorm statistics moving from one to the next.

    Micro-batch k takes rows k, k + K, k + 2K, ...: each device cuts its own rows and none travels.
    """

    def cut(array_R: jax.Array) -> jax.Array:
        return jnp.swapaxes(array_R.reshape(array_R.shape[0] // micro, micro, *array_R.shape[1:]), 0, 1)

    def body(carry: Any, batch: Any) -> Any:
        grads, statistics = carry
        index, rows = batch
        more, (statistics, metrics) = gradient(state.params, statistics, rows, jax.random.fold_in(key, index))
        return (jax.tree.map(jnp.add, grads, more), statistics), metrics

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    batches = (jnp.arange(micro), jax.tree.map(cut, rows_R))
    (grads, statistics), metrics_K = jax.lax.scan(body, (zeros, state.statistics), batches)
    return grads, statistics, jax.tree.map(lambda values_K: jnp.sum(values_K, axis=0), metrics_K)
