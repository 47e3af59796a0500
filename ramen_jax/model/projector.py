"""The channel projector: one embedding for each band, from what the band physically is.

Stacked for the bands of a sensor it is the matrix that turns C channels into D features, without bias
(paper section 3.1; official ramen_utils.py). The decoder owns a second projector and multiplies by its transpose.

Shape letters: C bands, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ramen_jax.model.encodings import sincos
from ramen_jax.model.layers import bias_of, layer_norm, linear
from ramen_jax.sensors import Band

RADAR = ("asc_vv", "asc_vh", "asc_hv", "asc_hh", "des_vv", "des_vh", "des_hv", "des_hh")
ELEVATION = ("dsm", "dtm", "slope")
KINDS = ("optical", "radar", "elevation")
MLP_EPS = 1e-5
PIECE = 4  # every width is a multiple of it
CODE_SPREAD = 0.02  # of the codes at the start


class BandMLP(nnx.Module):
    """Dense D -> 2D, exact GELU, Dense 2D -> D, LayerNorm (eps 1e-5)."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.inner = linear(dim, 2 * dim, rngs=rngs)
        self.outer = linear(2 * dim, dim, rngs=rngs)
        self.norm = layer_norm(dim, MLP_EPS, rngs=rngs)

    def __call__(self, codes_CxD: jax.Array) -> jax.Array:
        return self.norm(
            _accurate(self.outer, jax.nn.gelu(_accurate(self.inner, codes_CxD), approximate=False))
        )


def _accurate(layer: nnx.Linear, x_CxI: jax.Array) -> jax.Array:
    """A Dense layer summed in short pieces, then over the pieces: a fraction of the usual rounding error.

    A rounding error in a token averages out over the tokens. One in a band's embedding is shared by every token of
    the batch and does not; and the embeddings are a handful of rows, so accuracy costs nothing.
    """
    kernel_IxO = layer.kernel[...]
    pieces = kernel_IxO.shape[0] // PIECE
    x_CxPxI = x_CxI.reshape(x_CxI.shape[0], pieces, PIECE)
    kernel_PxIxO = kernel_IxO.reshape(pieces, PIECE, -1)
    products = jnp.einsum("cpi,pio->pco", x_CxPxI, kernel_PxIxO, precision=jax.lax.Precision.HIGHEST)
    while products.shape[0] > 1:
        half = products.shape[0] // 2
        products = jnp.concatenate([products[:half] + products[half : 2 * half], products[2 * half :]])
    return products[0] + bias_of(layer)[None]


class ChannelProjector(nnx.Module):
    """Optical bands by wavelength in nanometres, radar by orbit and polarisation, elevation by kind.

    Always float32: it runs once per sensor and step, on a handful of rows.
    """

    def __init__(self, dim: int, *, encodings: str = "float32", rngs: nnx.Rngs):
        self.dim = dim
        self.encodings = encodings
        init = nnx.initializers.normal(CODE_SPREAD)
        self.radar_codes = nnx.Param(init(rngs.params(), (len(RADAR), dim)))
        self.elevation_codes = nnx.Param(init(rngs.params(), (len(ELEVATION), dim)))
        self.optical = BandMLP(dim, rngs=rngs)
        self.radar = BandMLP(dim, rngs=rngs)
        self.elevation = BandMLP(dim, rngs=rngs)

    def __call__(self, bands: Sequence[Band]) -> jax.Array:
        """The matrix [C, D] of a sensor's bands, rows in band order; a sensor may mix kinds."""
        places: list[int] = []
        parts: list[jax.Array] = []
        for kind in KINDS:
            members = [i for i, band in enumerate(bands) if band.kind == kind]
            if members:
                places += members
                parts.append(self._project(kind, [bands[i] for i in members]))
        stacked_CxD = jnp.concatenate(parts, axis=0)
        if places == sorted(places):
            return stacked_CxD
        order = sorted(range(len(places)), key=places.__getitem__)
        return stacked_CxD[jnp.asarray(order)]

    def _project(self, kind: str, bands: list) -> jax.Array:
        if kind == "optical":
            wavelengths = jnp.asarray([band.wavelength_nm for band in bands], jnp.float32)
            return self.optical(sincos(wavelengths, self.dim, self.encodings))
        if kind == "radar":
            rows = jnp.asarray([RADAR.index(band.radar) for band in bands])
            return self.radar(self.radar_codes[...][rows])
        rows = jnp.asarray([ELEVATION.index(band.elevation) for band in bands])
        return self.elevation(self.elevation_codes[...][rows])
