"""AdamW and its schedule, as the benchmark trains its decoders."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ramen_jax.evaluation.pangaea.protocol import Protocol


def schedule(protocol: Protocol, steps: int) -> Callable[[jax.Array | int], jax.Array]:
    """Learning rate float32 of step s: times `gamma` from step int(share * steps) on, for each milestone.

    Milestones that fall on one step multiply twice, as in PyTorch's MultiStepLR.
    """
    boundaries = np.array([int(steps * share) for share in protocol.milestones], np.int32)
    passed = np.arange(len(boundaries) + 1)
    rates = (protocol.learning_rate * protocol.gamma**passed).astype(np.float32)

    def rate(step: jax.Array | int) -> jax.Array:
        reached = jnp.sum(jnp.asarray(step).reshape(1) >= boundaries)
        return jnp.asarray(rates)[reached]

    return rate


def optimizer(protocol: Protocol, steps: int) -> optax.GradientTransformation:
    """AdamW with decoupled decay on every parameter, biases and norms included; no clipping, no warm-up.

    Args:
        steps: of the whole training: steps per epoch times epochs.
    """
    return optax.adamw(
        schedule(protocol, steps),
        b1=protocol.betas[0],
        b2=protocol.betas[1],
        eps=protocol.eps,
        weight_decay=protocol.weight_decay,
    )
