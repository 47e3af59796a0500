"""The decoder: visible tokens -> every token -> every modality at its native resolution and dates.

Dense -> mask tokens -> positions -> transformer -> LayerNorm -> one block over time where there are dates ->
experts and transposed projector folded, at token resolution -> bilinear to the native pixels
(official DecoderViT.py). A token's reconstruction is one vector of C numbers: the decoder cannot express detail
below the token.

Shape letters: as in ramen_jax.rows.batch, and D decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ramen_jax.attention.attention import PORTABLE, Attention
from ramen_jax.model.architecture import Architecture
from ramen_jax.model.balance import balance_decoder
from ramen_jax.model.encoder import TOP_EPS, Bands
from ramen_jax.model.encodings import sincos, sincos_2d
from ramen_jax.model.images import gather_slots, scatter_cells, spread_slots, to_pixels, token_frames
from ramen_jax.model.layers import in_chunks, layer_norm, linear
from ramen_jax.model.products import ANYWHERE, Places, product
from ramen_jax.model.projector import ChannelProjector
from ramen_jax.model.resampler import ScaleResampler
from ramen_jax.model.transformer import Block, Transformer
from ramen_jax.recipe import Recipe
from ramen_jax.rows.batch import Images, Rows
from ramen_jax.sensors import Band

CHUNK_VALUES = 1 << 26


class RamenDecoder(nnx.Module):
    """RAMEN's decoder."""

    def __init__(
        self,
        config: Architecture,
        recipe: Recipe,
        *,
        attention: Attention = PORTABLE,
        places: Places = ANYWHERE,
        rngs: nnx.Rngs,
    ):
        dim = config.decoder_embed_dim
        if dim % 4:
            raise ValueError(f"decoder_embed_dim must be a multiple of 4 (positions in x and y), found {dim}")
        self.dim = dim
        self.shards = attention.row_shards
        self.dtype = jnp.dtype(config.dtype)
        self.encodings = recipe.encodings
        self.embed = linear(config.embed_dim, dim, dtype=self.dtype, rngs=rngs)
        self.mask_token = nnx.Param(jnp.zeros(dim))
        self.projector = ChannelProjector(dim, encodings=recipe.encodings, rngs=rngs)
        self.resampler = ScaleResampler(dim, encodings=recipe.encodings, rngs=rngs)
        heads, ratio, eps = config.decoder_num_heads, config.mlp_ratio, config.block_eps
        self.temporal_block = Block(dim, heads, ratio, eps, dtype=self.dtype, attention=attention, rngs=rngs)
        # A prediction is a product of a token and a band's embedding, both of length sqrt(dim) after their LayerNorms.
        gain = dim**-0.5 if recipe.initialisation == "scaled" else 1.0
        self.temporal_norm = layer_norm(dim, TOP_EPS, gain=gain, rngs=rngs)
        self.transformer = Transformer(
            config.decoder_depth,
            dim,
            heads,
            mlp_ratio=ratio,
            eps=eps,
            remat=config.remat,
            dtype=self.dtype,
            attention=attention,
            places=places,
            rngs=rngs,
        )
        self.norm = layer_norm(dim, TOP_EPS, gain=gain, rngs=rngs)
        self.modality_embedding = (
            linear(dim, dim, rngs=rngs) if recipe.modality_embedding == "bands" else None
        )
        if recipe.initialisation == "balanced":
            balance_decoder(self)

    def tokens(self, encoded_RxExD: jax.Array, rows: Rows, bands: Bands) -> jax.Array:
        """Decoded tokens of every row, [R, L, D] float32."""
        visible = product(encoded_RxExD, self.embed).astype(jnp.float32)
        place_RxL = rows.decoder_encoder_RxL
        placed = jnp.take_along_axis(visible, jnp.maximum(place_RxL, 0)[:, :, None], axis=1)
        tokens = jnp.where((place_RxL >= 0)[:, :, None], placed, self.mask_token[...][None, None])
        is_token = (rows.decoder_modality_RxL >= 0)[:, :, None]
        additions = sincos_2d(rows.decoder_coords_RxLx2, self.dim, self.encodings)
        if self.modality_embedding is not None:
            additions = additions + self._modality_embeddings(rows, bands)
        tokens = tokens + jnp.where(is_token, additions, 0.0)
        decoded = self.transformer(tokens.astype(self.dtype), rows.decoder_segment_RxL)
        return self.norm(decoded.astype(jnp.float32))

    def _modality_embeddings(self, rows: Rows, bands: Bands) -> jax.Array:
        """[R, L, D]: what a token's modality measures, the mean of its bands' embeddings through one Dense.

        The reference gives masked tokens of different modalities at one place identical inputs. A
        function of the bands, rather than a table of names, also serves sensors never seen in training.
        """
        assert self.modality_embedding is not None
        means = jnp.stack([jnp.mean(self.projector(bands[name]), axis=0) for name in rows.images])
        table = self.modality_embedding(means)
        return table[jnp.maximum(rows.decoder_modality_RxL, 0)]

    def reconstruct(self, tokens_RxLxD: jax.Array, images: Images, bands: Sequence[Band]) -> jax.Array:
        """The reconstruction of one modality's slots, [R, S, T, C, H, W] float32, in normalised units."""
        slot, cell, place = images.decoder_slot_RxM, images.decoder_cell_RxM, images.decoder_place_RxM
        tokens_RxMxD = jnp.take_along_axis(tokens_RxLxD, jnp.maximum(place, 0)[:, :, None], axis=1)
        matrix, bias = self.resampler.fold_decoder(self.projector(bands))
        # The decoder resamples from the target GSD to the native one: the scale is the encoder's inverse.
        gate_RxMx4 = spread_slots(self.resampler.gate(1.0 / images.scale_RxS), slot)
        dates = images.dates_RxSxT.shape[2]

        def project(tokens: jax.Array, gate: jax.Array) -> jax.Array:
            """[R, M, T, D] -> [R, M, T, C]."""
            weights = jnp.broadcast_to(gate[:, :, None], (*tokens.shape[:3], gate.shape[-1]))
            return self.resampler.combine(jnp.matmul(tokens, matrix), weights, bias)

        def expand(tokens: jax.Array, gate: jax.Array, dates: jax.Array, frames: jax.Array) -> jax.Array:
            return project(self._over_time(tokens, dates, frames), gate)

        if dates == 1:
            bands_RxMxTxC = project(tokens_RxMxD[:, :, None], gate_RxMx4)
        else:
            hidden = self.temporal_block.mlp_inner.kernel[...].shape[-1]
            bands_RxMxTxC = in_chunks(
                expand,
                (
                    tokens_RxMxD,
                    gate_RxMx4,
                    gather_slots(images.dates_RxSxT, slot),
                    token_frames(images, slot),
                ),
                values_per_item=dates * hidden,
                limit=CHUNK_VALUES,
                shards=self.shards,
            )
        slots, side = images.down_rows_RxSxGxH.shape[1:3]
        grid = scatter_cells(bands_RxMxTxC, slot, cell, slots, side)
        return to_pixels(grid, images)

    def _over_time(
        self, tokens_RxMxD: jax.Array, dates_RxMxT: jax.Array, frames_RxMxT: jax.Array
    ) -> jax.Array:
        """Repeat every token over its dates and let the dates of one token attend to each other."""
        rows, items, dates = dates_RxMxT.shape
        sequence = tokens_RxMxD[:, :, None] + sincos(dates_RxMxT, self.dim, self.encodings)
        sequence = sequence.reshape(rows * items, dates, self.dim).astype(self.dtype)
        segments = frames_RxMxT.reshape(rows * items, dates).astype(jnp.int32)
        mixed = self.temporal_block(sequence, segments).astype(jnp.float32)
        return self.temporal_norm(mixed).reshape(rows, items, dates, self.dim)
