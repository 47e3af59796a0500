"""RAMEN as pure functions of plain dictionaries: the one door to the model.

    ramen = Ramen(Architecture(), REFERENCE)
    params, statistics = ramen.init(jax.random.key(42))
    tokens = ramen.encode(params, statistics, rows, bands)

Parameters and BatchNorm statistics are nested dictionaries with text keys ({"encoder": ..., "decoder": ...}), which
survive any checkpoint format; the Flax modules are made inside. `bands` says what each channel of each modality is.
Means and standard deviations are data in the rows, so a moved mean, another GSD or other dates compile nothing.

Shape letters: as in `ramen_jax.rows.batch`, and D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from ramen_jax.attention.attention import PORTABLE, Attention
from ramen_jax.console import USAGE, UserError
from ramen_jax.model import flops
from ramen_jax.model.architecture import Architecture
from ramen_jax.model.decoder import RamenDecoder
from ramen_jax.model.encoder import Bands, RamenEncoder
from ramen_jax.model.loss import check_target, loss_counts, modality_loss
from ramen_jax.model.products import ANYWHERE, Places
from ramen_jax.model.temporal import BatchStatistic
from ramen_jax.recipe import Recipe
from ramen_jax.rows.batch import Rows

Tree = Any  # nested dictionaries of arrays, text keys


@dataclass(frozen=True)
class Ramen:
    """The model without its arrays.

    Attributes:
        architecture: its sizes.
        recipe: every trap.
        with_decoder: False for an encoder alone; then there is no `decode` and no `loss`.
        attention: the backend, and the devices that rows and heads are split over; see `on`.
        places: where the kernels of the stacked blocks lie.
    """

    architecture: Architecture
    recipe: Recipe
    with_decoder: bool = True
    attention: Attention = PORTABLE
    places: Places = ANYWHERE

    def on(self, mesh: Mesh, places: Places = ANYWHERE) -> Ramen:
        """The same model for the devices of a mesh, present or not. UserError where the mesh does not divide heads."""
        asked, sizes = mesh.shape["tensor"], self.architecture
        shared = math.gcd(sizes.num_heads, sizes.decoder_num_heads if self.with_decoder else 0)
        if shared % asked:
            fitting = max(size for size in range(1, asked) if shared % size == 0)
            raise UserError(
                f"{sizes.num_heads} attention heads of the encoder and {sizes.decoder_num_heads} of the decoder do not "
                f"divide over config.sharding.tensor = {asked} devices; {fitting} would",
                USAGE,
            )
        return replace(self, attention=Attention.on(mesh), places=places)

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Random parameters and initial statistics, float32."""
        rngs = nnx.Rngs(key)
        modules: dict[str, nnx.Module] = {"encoder": self._new_encoder(rngs)}
        if self.with_decoder:
            modules["decoder"] = self._new_decoder(rngs)
        params, statistics = {}, {}
        for side, module in modules.items():
            split: Any = nnx.split(module, nnx.Param, BatchStatistic)
            params[side] = _keys(nnx.to_pure_dict(split[1]), str)
            statistics[side] = _keys(nnx.to_pure_dict(split[2]), str)
        return params, {side: tree for side, tree in statistics.items() if tree}

    @cached_property
    def shapes(self) -> tuple[Tree, Tree]:
        """Parameters and statistics as shapes and dtypes; nothing is computed."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def encoder(self, params: Tree, statistics: Tree) -> RamenEncoder:
        """The Flax module of the encoder with these arrays."""
        definition = self._definitions["encoder"]
        arrays = (_keys(params["encoder"], int), _keys(statistics["encoder"], int))
        return nnx.merge(definition, *arrays, copy=True)

    def decoder(self, params: Tree) -> RamenDecoder:
        """The Flax module of the decoder with these arrays."""
        return nnx.merge(self._definitions["decoder"], _keys(params["decoder"], int), {}, copy=True)

    def encode(
        self, params: Tree, statistics: Tree, rows: Rows, bands: Bands, layers: Sequence[int] | None = None
    ) -> jax.Array:
        """Encoded tokens of every row, without dropout, running statistics in BatchNorm.

        Args:
            layers: 0-based blocks whose output is wanted; None: the last one alone.

        Returns:
            [R, E, D] float32 after the last block and LayerNorm; with `layers` [K, R, E, D], the LayerNorm on the last
            block's only.
        """
        encoder = self.encoder(params, statistics)
        if layers is None:
            return encoder(rows, bands)
        return encoder.layers(rows, bands)[jnp.asarray(layers)]

    def encode_in_training(
        self,
        params: Tree,
        statistics: Tree,
        rows: Rows,
        bands: Bands,
        layers: Sequence[int],
        key: jax.Array | None,
    ) -> tuple[jax.Array, Tree]:
        """`encode` as in training: BatchNorm by the rows' own statistics, dropout where `key` is given.

        Returns:
            The layers, [K, R, E, D] float32, and the statistics moved towards those of the rows.
        """
        encoder = self.encoder(params, statistics)
        encoded = encoder.layers(rows, bands, train=True, key=key)[jnp.asarray(layers)]
        return encoded, _statistics(encoder)

    def reconstruct(self, params: Tree, statistics: Tree, rows: Rows, bands: Bands) -> dict[str, jax.Array]:
        """What the model makes of the visible tokens: {modality: [R, S, T, C, H, W]} float32 in units of the target."""
        return self.decode(params, self.encode(params, statistics, rows, bands), rows, bands)

    def decode(
        self, params: Tree, encoded_RxExD: jax.Array, rows: Rows, bands: Bands
    ) -> dict[str, jax.Array]:
        """Encoded tokens -> every slot at its native resolution, {modality: [R, S, T, C, H, W]} float32."""
        decoder = self.decoder(params)
        tokens = decoder.tokens(encoded_RxExD, rows, bands)
        return {
            name: decoder.reconstruct(tokens, images, bands[name]) for name, images in rows.images.items()
        }

    def counts(self, rows: Rows) -> dict[str, jax.Array]:
        """Masked pixels and dates of each modality: what the sums of errors are divided by, float32 scalars."""
        return loss_counts(rows, self.recipe.missing)

    def training_flops(self, rows: Rows) -> float:
        """Operations that a training step spends on the blocks for these rows (numpy), see `flops.of_training`."""
        return flops.of_training(self.architecture, rows.encoder_segment_RxE, rows.decoder_segment_RxL)

    def loss(
        self,
        params: Tree,
        statistics: Tree,
        rows: Rows,
        bands: Bands,
        counts: Mapping[str, jax.Array],
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Tree]]:
        """The training loss of these rows; masking is part of the rows.

        Args:
            counts: `counts` of the whole batch, of which the rows may be a part.
            train: batch statistics in BatchNorm, and dropout where `key` is given.

        Returns:
            The sum over modalities, ({"loss/<modality>": loss}, statistics after the step).

        Raises:
            ValueError: the reference target with a one-band modality.
        """
        for name in rows.images:
            check_target(self.recipe.target, len(bands[name]), name)
        encoder = self.encoder(params, statistics)
        with jax.named_scope("encoder"):
            encoded = encoder(rows, bands, train=train, key=key)
        with jax.named_scope("decoder"):
            predictions = self.decode(params, encoded, rows, bands)
        with jax.named_scope("loss"):
            losses = {
                f"loss/{name}": modality_loss(predictions[name], images, counts[name], self.recipe)
                for name, images in rows.images.items()
            }
        return sum(losses.values(), start=jnp.zeros(())), (losses, _statistics(encoder))

    def _new_encoder(self, rngs: nnx.Rngs) -> RamenEncoder:
        return self._new(RamenEncoder, "encoder", rngs)

    def _new_decoder(self, rngs: nnx.Rngs) -> RamenDecoder:
        return self._new(RamenDecoder, "decoder", rngs)

    def _new(self, kind: Any, side: str, rngs: nnx.Rngs) -> Any:
        places = self.places.side(side)
        return kind(self.architecture, self.recipe, attention=self.attention, places=places, rngs=rngs)

    @cached_property
    def _definitions(self) -> dict[str, nnx.GraphDef]:
        builds: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {"encoder": self._new_encoder}
        if self.with_decoder:
            builds["decoder"] = self._new_decoder
        definitions = {}
        for side, build in builds.items():
            module = nnx.eval_shape(lambda build=build: build(nnx.Rngs(0)))
            definitions[side] = nnx.split(module, nnx.Param, BatchStatistic)[0]
        return definitions


def _statistics(encoder: RamenEncoder) -> Tree:
    return {"encoder": _keys(nnx.to_pure_dict(nnx.state(encoder, BatchStatistic)), str)}


def _keys(tree: Tree, kind: type) -> Tree:
    """The same tree with list positions as text (kind=str) or as numbers again (kind=int)."""
    if not isinstance(tree, Mapping):
        return tree
    return {
        (str(key) if kind is str else int(key) if key.isdigit() else key): _keys(value, kind)
        for key, value in tree.items()
    }
