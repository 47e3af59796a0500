"""RAMEN on series as the benchmark runs it: without gradient, yet not frozen.

The benchmark's trainer puts the whole model into training mode, the encoder too, and its loader leaves the running
statistics of the checkpoint behind (pangaea/engine/trainer.py, pangaea/encoders/ramen_encoder.py). So the BatchNorm of
the L-TAE starts at mean 0 and variance 1, normalises by the batch while the decoder trains, and is estimated anew on
the task, modality after modality; its attention dropout is on. Validation and test go by the running statistics of
their moment. A single date passes no L-TAE: there is nothing to drift.

Shape letters: K levels, h, w tokens, D channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ramen_jax.evaluation.encoders import Pretrained, Sensors, joined_levels, shapes_of
from ramen_jax.inference.places import Place, batches
from ramen_jax.recipe import Recipe
from ramen_jax.samples import Sample

UNDIVIDED = 1 << 40  # tokens of a batch, more than there are: its statistics are those of all places

# {"encoder": ...} of BatchNorm, on the host: the decoder beside it may lie on several devices.
Statistics = Any


class Drifting(Pretrained):
    """See the module. What it gives depends on the statistics it is given, which the caller keeps."""

    frozen = False

    def __init__(self, model: Pretrained, dropout: bool) -> None:
        rate = Recipe.named("reference").ltae_dropout if dropout else 0.0
        ramen = dataclasses.replace(
            model.encoder.ramen, recipe=model.encoder.ramen.recipe.but(ltae_dropout=rate)
        )
        self.name, self.taps = model.name, model.taps
        self.encoder = dataclasses.replace(model.encoder, ramen=ramen)
        self.identity = model.identity | {"statistics": "batch", "dropout": str(rate)}
        self.programs: set[Any] = set()

    def initial(self) -> Statistics:
        """Mean 0 and variance 1."""
        _, shapes = self.encoder.ramen.shapes

        def fresh(path: Any, leaf: Any) -> jax.Array:
            return (jnp.ones if path[-1].key == "var" else jnp.zeros)(leaf.shape, leaf.dtype)

        return jax.device_get(jax.tree_util.tree_map_with_path(fresh, shapes))

    def by(self, statistics: Statistics) -> Pretrained:
        """The encoder with these running statistics."""
        found = Drifting.__new__(Drifting)
        found.__dict__.update(self.__dict__)
        found.encoder = dataclasses.replace(self.encoder, statistics=jax.device_get(statistics))
        return found

    def in_training(
        self,
        samples: Sequence[Sample],
        sensors: Sensors,
        target_gsd: float,
        statistics: Statistics,
        key: jax.Array | None,
    ) -> tuple[list[np.ndarray], Statistics]:
        """`levels` of one training batch, by its own statistics, and the running ones after it.

        Args:
            key: of the dropout; None switches it off.
        """
        places = [Place(sample, sensors, target_gsd) for sample in samples]
        results: dict[int, np.ndarray] = {}
        statistics = jax.device_get(statistics)
        for batch in batches(places, self.encoder.ramen.recipe, UNDIVIDED):
            self.programs.add(("training", *shapes_of(batch.rows)))
            model = dataclasses.replace(self.encoder, statistics=statistics)
            encoded_KxRxExD, statistics = model.run_in_training(batch, self.taps, key)
            results |= joined_levels(batch, np.asarray(encoded_KxRxExD))
        return [results[number] for number in range(len(places))], jax.device_get(statistics)
