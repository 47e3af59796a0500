"""A decoder in training: one compiled step over all devices, one compiled forward pass, a state that survives a kill.

Shape letters: B places, K levels, H, W pixels of the label.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialised

from ramen_jax.console import UserError
from ramen_jax.evaluation.pangaea.decoders import Decoder
from ramen_jax.evaluation.pangaea.losses import Loss

ENCODER_STREAM = 1 << 16  # of dropout keys, beyond those of a decoder's parts


class State(NamedTuple):
    """Everything that a step changes. `encoder`: running statistics of an encoder that drifts, else empty."""

    params: Any
    statistics: Any
    optimizer: Any
    encoder: Any


class Fit:
    """The compiled parts of training one decoder.

    Attributes:
        traced: how often each part was compiled, by name.
    """

    def __init__(
        self,
        decoder: Decoder,
        loss: Loss,
        optimizer: optax.GradientTransformation,
        batch_size: int,
        seed: int,
        dropout: bool = True,
    ) -> None:
        self.decoder, self.loss, self.optimizer, self.dropout = decoder, loss, optimizer, dropout
        self.key = jax.random.key(seed)
        devices = jax.devices()[: math.gcd(batch_size, jax.device_count())]
        mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
        self.split = NamedSharding(mesh, PartitionSpec("data"))
        self.whole = NamedSharding(mesh, PartitionSpec())
        self.traced = {"step": 0, "decode": 0}
        self._step = jax.jit(self._train, donate_argnums=0)
        self._decode = jax.jit(self._forward, static_argnums=3)

    def init(self, encoder: Any) -> State:
        """Fresh weights, a function of the seed alone, beside the encoder's first statistics."""
        return self.begin(*self.decoder.init(self.key), encoder)

    def begin(self, params: Any, statistics: Any, encoder: Any) -> State:
        """A training that begins with these weights of the decoder."""
        return self.place(State(params, statistics, self.optimizer.init(params), encoder))

    def encoder_key(self, number: int) -> jax.Array | None:
        """Of the encoder's dropout in step `number`; None where dropout is off."""
        return jax.random.fold_in(self._step_key(number), ENCODER_STREAM) if self.dropout else None

    def _step_key(self, number: Any) -> jax.Array:
        return jax.random.fold_in(self.key, number + 1)

    def place(self, state: State) -> State:
        return jax.device_put(state, self.whole)

    def step(
        self,
        state: State,
        levels: Sequence[np.ndarray],
        labels: np.ndarray,
        number: int,
        names: Sequence[str],
    ) -> tuple[State, float]:
        """One update by the mean over the whole batch. UserError, naming the places, where the loss is not finite."""
        placed = jax.device_put((tuple(levels), labels), self.split)
        state, loss = self._step(state, *placed, np.int32(number))
        value = float(loss)
        if not math.isfinite(value):
            raise UserError(
                f"step {number}: the loss is {value}, nothing was updated; its places: {', '.join(names)}"
            )
        return state, value

    def decode(self, state: State, levels: Sequence[np.ndarray], size: tuple[int, int]) -> jax.Array:
        """Logits [B, H, W, C] or [B, C], without dropout, by the running statistics."""
        return self._decode(state.params, state.statistics, tuple(levels), size)

    def _train(
        self, state: State, levels: tuple[jax.Array, ...], labels: jax.Array, number: jax.Array
    ) -> tuple[State, jax.Array]:
        self.traced["step"] += 1  # while tracing: once per compilation
        key = self._step_key(number) if self.dropout else None
        size = labels.shape[1:3] if labels.ndim == 3 else (1, 1)

        def objective(params: Any) -> tuple[jax.Array, Any]:
            logits, moved = self.decoder.apply(params, state.statistics, levels, size, train=True, key=key)
            return self.loss(logits, labels), moved

        (loss, statistics), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, moments = self.optimizer.update(gradients, state.optimizer, state.params)
        updated = State(optax.apply_updates(state.params, updates), statistics, moments, state.encoder)
        finite = jnp.isfinite(loss)
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state), loss

    def _forward(
        self, params: Any, statistics: Any, levels: tuple[jax.Array, ...], size: tuple[int, int]
    ) -> jax.Array:
        self.traced["decode"] += 1
        return self.decoder.apply(params, statistics, levels, size)[0]


def save(path: Path, trees: dict[str, Any], facts: dict[str, Any]) -> None:
    """Arrays and facts as one file, in one move. UserError where the disk is full; the older file stays then."""
    arrays = {
        f"{name}/{i}": np.array(leaf, order="C")
        for name, tree in trees.items()
        for i, leaf in enumerate(jax.tree.leaves(tree))
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(serialised(arrays, {"facts": json.dumps(facts)}))
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{path} cannot be written ({error.strerror}); free some space and run it again"
        ) from error


def restore(path: Path, like: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(trees shaped as `like`, facts), or None where there is no file. UserError where it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            facts = json.loads(file.metadata()["facts"])
            trees = {}
            for name, tree in like.items():
                leaves, structure = jax.tree.flatten(tree)
                read = [jnp.asarray(file.get_tensor(f"{name}/{i}")) for i in range(len(leaves))]
                if [leaf.shape for leaf in read] != [leaf.shape for leaf in leaves]:
                    raise ValueError("its arrays have other shapes")
                trees[name] = jax.tree.unflatten(structure, read)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it to train this decoder anew") from error
    return trees, facts


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a file that `save` wrote. Errors as in `restore`."""
    found = restore(path, {})
    return {} if found is None else found[1]
