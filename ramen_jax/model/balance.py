"""A balanced start: first parameters with which the official architecture passes on what it is given.

The trap `initialisation`, value `balanced`. Shapes and algebra stay the official ones; three losses of the official
start go, whose sizes docs/learning.md has:

- LayerNorm behind the projector takes the length of a token, which is its brightness: what is left of bands that rise
  and fall together is a sign. Beside a constant vector longer than the bands' part, length becomes direction and stays.
  (BatchNorm removes the constant from a series, whose brightness the temporal attention leaves.)
- Codes of radar and elevation bands are so short that an MLP's biases hide them: VV and VH, surface and ground, begin
  as the same vector. They begin as long as the encoding of a wavelength.
- A prediction is a product of a token and a band's embedding, both of length sqrt(dim), so it is spread by sqrt(dim).
  The embedding is made short; the token keeps its length beside the encoding of a date, which is added to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from ramen_jax.model.projector import CODE_SPREAD, ChannelProjector

if TYPE_CHECKING:
    from ramen_jax.model.decoder import RamenDecoder
    from ramen_jax.model.encoder import RamenEncoder

SHIFT = 4.0  # spread of the constant, in spreads of a standardised band's part of a token
SINE_SPREAD = 0.5**0.5


def balance_encoder(encoder: RamenEncoder, rngs: nnx.Rngs) -> None:
    """Sets the first parameters of a fresh encoder."""
    _spread_codes(encoder.projector)
    biases = encoder.resampler.biases
    biases[...] = biases[...] + SHIFT * jax.random.normal(rngs.params(), (1, biases[...].shape[-1]))


def balance_decoder(decoder: RamenDecoder) -> None:
    """Sets the first parameters of a fresh decoder."""
    projector, gain = decoder.projector, decoder.dim**-0.5
    _spread_codes(projector)
    for mlp in (projector.optical, projector.radar, projector.elevation):
        mlp.norm.scale = nnx.Param(jnp.full(decoder.dim, gain))
    if decoder.modality_embedding is not None:  # it is made of the bands' embeddings
        decoder.modality_embedding.kernel[...] = decoder.modality_embedding.kernel[...] / gain


def _spread_codes(projector: ChannelProjector) -> None:
    for codes in (projector.radar_codes, projector.elevation_codes):
        codes[...] = codes[...] * (SINE_SPREAD / CODE_SPREAD)
