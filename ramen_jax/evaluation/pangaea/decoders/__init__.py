"""What is trained on an encoder's maps: see `decoder` for the names and the interface.

`upernet`, `linear`, `unet`: the heads; `temporal`: dates merged before a head; `neighbours`: k-NN, untrained;
`official`: the benchmark's weights in and out; `layers`: what they are made of.
"""

from __future__ import annotations

from ramen_jax.evaluation.pangaea.decoders.decoder import COMPARISONS, KINDS, Decoder, build, count
from ramen_jax.evaluation.pangaea.decoders.official import from_official, to_official

__all__ = ["COMPARISONS", "KINDS", "Decoder", "build", "count", "from_official", "to_official"]
