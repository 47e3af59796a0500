"""The training step and the evaluation: pure functions of a state and packed rows, compiled by `program.py`.

A loss is a sum of errors divided by counts of the whole batch, so without dropout neither micro-batches nor devices
change a gradient beyond rounding. What does depend on the cut into micro-batches: BatchNorm statistics (each
micro-batch has its own) and dropout masks. A step whose loss, gradient or result (parameters, statistics, optimizer)
is not finite changes nothing, and neither does any step after it: the loop has already dispatched the next one when it
reads the loss.

Shape letters: R rows of the batch, K micro-batches.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ramen_jax.model.products import ANYWHERE, Places

Tree = Any  # nested dicts of arrays, string keys only (they survive any checkpoint format)
Metrics = dict[str, jax.Array]


class State(NamedTuple):
    """Everything a step changes (or, leaf for leaf, its shapes or its shardings)."""

    step: Any  # int32, updates tried so far = number of the next step
    alive: Any  # bool, False from the first non-finite step on
    params: Tree  # float32
    statistics: Tree  # running means and variances of BatchNorm, float32
    opt_state: Tree


class Model(Protocol):
    """What the step needs of a model; `ramen_jax.model.ramen.Ramen` is one."""

    def on(self, mesh: Mesh, places: Places = ANYWHERE) -> "Model":
        """The same model for the devices of a mesh, the kernels of its stacked blocks in these places."""

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """-> params, statistics."""

    def counts(self, rows: Any) -> dict[str, jax.Array]:
        """Masked values per modality."""

    def training_flops(self, rows: Any) -> float:
        """Operations of a training step on these rows (numpy)."""

    def loss(
        self,
        params: Tree,
        statistics: Tree,
        rows: Any,
        bands: Any,
        counts: Mapping[str, jax.Array],
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Tree]]:
        """-> total, ({"loss/<modality>": loss}, statistics)."""


def new_state(model: Model, optimizer: optax.GradientTransformation, seed: int) -> State:
    """A fresh state."""
    params, statistics = model.init(jax.random.key(seed))
    return State(jnp.int32(0), jnp.bool_(True), params, statistics, optimizer.init(params))


def make_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    bands: Any,
    *,
    seed: int,
    micro: int = 1,
    for_compute: Callable[[Tree], Tree] = lambda params: params,
) -> Callable[[State, Any], tuple[State, Metrics]]:
    """step(state, rows_R) -> (state, metrics) for the bands of one corpus.

    Metrics are float32 scalars: "loss", "loss/{modality}", "gradient_norm", "learning_rate", "tokens", "views", and
    "alive", 0 where the state was kept as it was.

    Args:
        seed: of dropout.
        micro: micro-batches per step.
        for_compute: places the parameters where a step uses them.
    """

    def update(grads: Tree, state: State) -> tuple[Tree, Tree]:
        updates, opt_state = optimizer.update(grads, at_step(state.opt_state, state.step), state.params)
        return optax.apply_updates(state.params, updates), opt_state

    def step(state: State, rows_R: Any) -> tuple[State, Metrics]:
        counts = model.counts(rows_R)
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)

        def micro_loss(params: Tree, statistics: Tree, rows: Any, key: jax.Array) -> Any:
            total, (losses, moved) = model.loss(
                for_compute(params), statistics, rows, bands, counts, train=True, key=key
            )
            return total, (moved, {"loss": total, **losses})

        gradient = jax.grad(micro_loss, has_aux=True)
        if micro == 1:
            grads, (statistics, metrics) = gradient(state.params, state.statistics, rows_R, step_key)
        else:
            grads, statistics, metrics = _accumulate(gradient, state, rows_R, step_key, micro)

        norm = optax.global_norm(grads)
        with jax.named_scope("optimizer"):
            params, opt_state = update(grads, state)
        # The result is looked at before it takes the place of the old state, and computed once more for that: so the
        # new numbers need no memory beside the old ones. The barrier keeps the compiler from making one of the two.
        seen, _ = update(*jax.lax.optimization_barrier((grads, state)))
        # The moments need no look: they are means, weighted with beta and 1 - beta, of finite moments and of gradients
        # whose squares have a finite sum. No norm is taken of it: on a CPU, XLA would hold all squares at once.
        alive = state.alive & finite((metrics["loss"], norm, seen, statistics))
        new = State(state.step + 1, alive, params, statistics, opt_state)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        new = jax.tree.map(
            lambda after, before: jnp.where(alive, after, before), new, state._replace(alive=alive)
        )

        metrics["alive"] = alive.astype(jnp.float32)
        metrics["gradient_norm"] = norm
        metrics["learning_rate"] = rate(state.step)
        metrics["tokens"] = jnp.sum(rows_R.decoder_segment_RxL > 0)
        metrics["views"] = jnp.sum(jnp.max(rows_R.decoder_segment_RxL, axis=1))
        return new, metrics

    return step


def finite(tree: Tree) -> jax.Array:
    """Whether every number of a tree is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def at_step(opt_state: Tree, step: jax.Array) -> Tree:
    """The optimizer's state with its schedule at `step`: steps that were left out do not detach the learning rate."""

    def of_schedule(path: Any, _: Any) -> bool:
        return getattr(path[-1], "tuple_name", "") == optax.ScaleByScheduleState.__name__

    return optax.tree_utils.tree_set(opt_state, of_schedule, count=step)


def make_evaluation(model: Model, bands: Any) -> Callable[[Tree, Tree, Any], tuple[Metrics, Metrics]]:
    """evaluation(params, statistics, rows_R) -> (sums of errors, counts) by modality, without dropout.

    Sums over counts: batches may be added up before they are divided.
    """

    def evaluation(params: Tree, statistics: Tree, rows_R: Any) -> tuple[Metrics, Metrics]:
        counts = model.counts(rows_R)
        ones = {name: jnp.ones(()) for name in counts}
        _, (sums, _) = model.loss(params, statistics, rows_R, bands, ones, train=False)
        return {name.removeprefix("loss/"): value for name, value in sums.items()}, counts

    return evaluation


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
