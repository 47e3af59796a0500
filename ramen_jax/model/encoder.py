"""The encoder: images of any sensor at any GSD -> tokens at the target GSD.

channel projector -> scale resampler -> temporal attention where there are dates -> LayerNorm -> positions in
metres -> CLS -> transformer -> LayerNorm (paper section 3; official RamenViT.py).

Shape letters: as in ramen_jax.rows.batch, and D width, K folded input (see resampler.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ramen_jax.attention.attention import PORTABLE, Attention
from ramen_jax.model.architecture import Architecture
from ramen_jax.model.balance import balance_encoder
from ramen_jax.model.encodings import sincos_2d
from ramen_jax.model.images import gather_cells, gather_slots, sampled, spread_slots, token_frames
from ramen_jax.model.layers import layer_norm
from ramen_jax.model.products import ANYWHERE, Places
from ramen_jax.model.projector import ChannelProjector
from ramen_jax.model.resampler import ScaleResampler
from ramen_jax.model.temporal import HEADS, LTAE
from ramen_jax.model.transformer import Transformer
from ramen_jax.recipe import Recipe
from ramen_jax.rows.batch import Images, Rows
from ramen_jax.sensors import Band

Bands = Mapping[str, Sequence[Band]]  # modality -> what each channel of its images is, in file order

TOP_EPS = 1e-6


class RamenEncoder(nnx.Module):
    """RAMEN's encoder."""

    def __init__(
        self,
        config: Architecture,
        recipe: Recipe,
        *,
        attention: Attention = PORTABLE,
        places: Places = ANYWHERE,
        rngs: nnx.Rngs,
    ):
        dim = config.embed_dim
        if dim % (2 * HEADS):
            raise ValueError(
                f"embed_dim must be a multiple of {2 * HEADS} (the L-TAE has {HEADS} heads), found {dim}"
            )
        self.dtype = jnp.dtype(config.dtype)
        self.missing = recipe.missing
        self.encodings = recipe.encodings
        self.cls_token = nnx.Param(nnx.initializers.truncated_normal(0.02)(rngs.params(), (dim,)))
        self.projector = ChannelProjector(dim, encodings=recipe.encodings, rngs=rngs)
        self.resampler = ScaleResampler(dim, encodings=recipe.encodings, rngs=rngs)
        self.ltae = LTAE(dim, dropout=recipe.ltae_dropout, shards=attention.row_shards, rngs=rngs)
        self.input_norm = layer_norm(dim, TOP_EPS, rngs=rngs)
        self.transformer = Transformer(
            config.depth,
            dim,
            config.num_heads,
            mlp_ratio=config.mlp_ratio,
            eps=config.block_eps,
            remat=config.remat,
            dtype=self.dtype,
            attention=attention,
            places=places,
            rngs=rngs,
        )
        self.norm = layer_norm(dim, TOP_EPS, rngs=rngs)
        if recipe.initialisation == "balanced":
            balance_encoder(self, rngs)

    def features(
        self, images: Images, bands: Sequence[Band], *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """Tokens of one modality before positions, [R, N, D] float32 (zeros never matter: padding is not read)."""
        slot, cell = images.encoder_slot_RxN, images.encoder_cell_RxN
        values_RxNxTxC = gather_cells(sampled(images, self.missing), slot, cell)
        gate_RxNx4 = spread_slots(self.resampler.gate(images.scale_RxS), slot)
        dates = values_RxNxTxC.shape[2]
        weights = jnp.broadcast_to(gate_RxNx4[:, :, None], (*values_RxNxTxC.shape[:3], gate_RxNx4.shape[-1]))
        inputs_RxNxTxK = self.resampler.expand(values_RxNxTxC, weights)
        folded_KxD = self.resampler.fold_encoder(self.projector(bands))
        if dates == 1:
            tokens = jnp.matmul(inputs_RxNxTxK[:, :, 0], folded_KxD)
        else:
            tokens = self.ltae(
                inputs_RxNxTxK,
                folded_KxD,
                gather_slots(images.dates_RxSxT, slot),
                token_frames(images, slot),
                train=train,
                key=key,
            )
        return self.input_norm(tokens)

    def tokens(
        self, rows: Rows, bands: Bands, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """The transformer's input, [R, E, D]: features and positions, CLS tokens without position."""
        parts = []
        for index, (name, images) in enumerate(rows.images.items()):
            dropout_key = None if key is None else jax.random.fold_in(key, index)
            parts.append(self.features(images, bands[name], train=train, key=dropout_key))
        features_RxNxD = jnp.concatenate(parts, axis=1)
        index_RxE = rows.encoder_feature_RxE
        gathered = jnp.take_along_axis(features_RxNxD, jnp.maximum(index_RxE, 0)[:, :, None], axis=1)
        positions = sincos_2d(rows.encoder_coords_RxEx2, features_RxNxD.shape[-1], self.encodings)
        cls_token = self.cls_token[...][None, None]
        return jnp.where((index_RxE >= 0)[:, :, None], gathered + positions, cls_token)

    def __call__(
        self, rows: Rows, bands: Bands, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """Encoded tokens of every row, [R, E, D] float32."""
        tokens = self.tokens(rows, bands, train=train, key=key).astype(self.dtype)
        return self.norm(self.transformer(tokens, rows.encoder_segment_RxE).astype(jnp.float32))

    def layers(
        self, rows: Rows, bands: Bands, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """The output of every block, [depth, R, E, D] float32; the final LayerNorm is applied to the last only."""
        tokens = self.tokens(rows, bands, train=train, key=key).astype(self.dtype)
        outputs = self.transformer.layers(tokens, rows.encoder_segment_RxE).astype(jnp.float32)
        return outputs.at[-1].set(self.norm(outputs[-1]))
