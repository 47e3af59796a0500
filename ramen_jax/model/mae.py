"""The masked autoencoder: encoder, decoder and loss over packed rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from ramen_jax.model.decoder import RamenDecoder
from ramen_jax.model.encoder import RamenEncoder
from ramen_jax.model.loss import check_target, loss_counts, modality_loss
from ramen_jax.rows.batch import Rows
from ramen_jax.sensors import Sensor


class RamenMAE(nnx.Module):
    """RAMEN as it is pretrained. Masking is part of the rows, so this is a deterministic function of them."""

    def __init__(self, config: Any, traps: Any, *, rngs: nnx.Rngs):
        self.target = traps.target
        self.missing = traps.missing
        self.encoder = RamenEncoder(config, traps, rngs=rngs)
        self.decoder = RamenDecoder(config, traps, rngs=rngs)

    def reconstruct(
        self, rows: Rows, sensors: Mapping[str, Sensor], *, train: bool = False, key: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """The reconstruction of every slot, {modality: [R, S, T, C, H, W]} float32 in units of the target."""
        encoded = self.encoder(rows, sensors, train=train, key=key)
        tokens = self.decoder.tokens(encoded, rows, sensors)
        return {
            name: self.decoder.reconstruct(tokens, images, sensors[name])
            for name, images in rows.images.items()
        }

    def loss(
        self,
        rows: Rows,
        sensors: Mapping[str, Sensor],
        counts: Mapping[str, jax.Array],
        *,
        train: bool = True,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Total loss and {"loss/<modality>": loss} of these rows, against the counts of the global batch.

        Raises:
            ValueError: the reference target with a one-band modality.
        """
        for name in rows.images:
            check_target(self.target, len(sensors[name].bands), name)
        predictions = self.reconstruct(rows, sensors, train=train, key=key)
        losses = {
            f"loss/{name}": modality_loss(predictions[name], images, counts[name], self.target, self.missing)
            for name, images in rows.images.items()
        }
        return sum(losses.values(), start=jax.numpy.zeros(())), losses


__all__ = ["RamenMAE", "loss_counts"]
