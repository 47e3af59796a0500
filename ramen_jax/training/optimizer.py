"""AdamW with the paper's schedule: linear warm-up, cosine, stepped per step or (as the official code) per epoch.

Source: arXiv 2512.05025 and the official configuration: lr 1.5e-4, weight decay 0.05 on every parameter, betas 0.9
and 0.999, gradient norm clipped at 1, 20 of 100 epochs of warm-up from 1e-5, cosine to 1e-6.
"""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def schedule(config: ConfigDict, steps: int, steps_per_epoch: float) -> optax.Schedule:
    """Learning rate as a function of the number of updates done.

    With `per: epoch` the rate is constant within an epoch, and the warm-up reaches its end one epoch early, as the
    official scheduler does. `steps`: length of the training; `steps_per_epoch` may be fractional.
    """
    optimizer = config.optimizer
    peak, start, final = optimizer.learning_rate, optimizer.warmup_from, optimizer.final_rate
    if optimizer.per == "epoch":
        length = max(1, round(steps / steps_per_epoch))
        warmup = round(optimizer.warmup_share * length)
        rise = max(1, warmup - 1)
    else:
        length = steps
        warmup = round(optimizer.warmup_share * length)
        rise = max(1, warmup)
    fall = max(1, length - warmup)

    def rate(count: jax.Array) -> jax.Array:
        time = jnp.asarray(count, jnp.float32)
        if optimizer.per == "epoch":
            # A hair above, so that a whole number of steps per epoch does not round down to the epoch before.
            time = jnp.floor(time / steps_per_epoch + 1e-4)
        rising = start + (peak - start) * time / rise
        falling = final + (peak - final) * 0.5 * (
            1 + jnp.cos(jnp.pi * jnp.clip((time - warmup) / fall, 0, 1))
        )
        return jnp.where(time < warmup, rising, falling)

    return rate


def make_optimizer(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW; no parameter is exempt from weight decay."""
    optimizer = config.optimizer
    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip_norm),
        optax.adamw(
            rate,
            b1=optimizer.beta1,
            b2=optimizer.beta2,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
        ),
    )
