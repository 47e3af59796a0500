"""The sizes of a model: what of a configuration is static when the model is compiled, besides recipe and bands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ramen_jax.console import UserError


@dataclass(frozen=True)
class Architecture:
    """The keys of `config.model`; the defaults are the paper's base model.

    Attributes:
        embed_dim, depth, num_heads: encoder width (channels), blocks, heads.
        mlp_ratio: hidden width of a block's MLP / its width.
        decoder_embed_dim, decoder_depth, decoder_num_heads: of the decoder; its temporal block is not counted.
        mask_ratio: share of a view's tokens that is hidden in training.
        block_eps: LayerNorm epsilon in the blocks.
        dtype: of activations and matmuls, "float32" or "bfloat16"; parameters stay float32.
        remat: what the backward pass recomputes: "none", "full" (each block but its attention) or "dots".
    """

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    decoder_embed_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    mask_ratio: float = 0.75
    block_eps: float = 1e-6
    dtype: str = "float32"
    remat: str = "full"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """Of `config.model`, or of a record that lacks a key (its default) or holds one that is no size.

        Raises:
            UserError: a size that no model can have.
        """
        names = {field.name for field in fields(cls)}
        made = cls(**{key: value for key, value in values.items() if key in names})
        for field in fields(cls):
            found = getattr(made, field.name)
            if isinstance(field.default, str):
                fits, expected = isinstance(found, str), "a text"
            elif isinstance(field.default, int):
                fits = isinstance(found, int) and not isinstance(found, bool) and found >= 1
                expected = "a whole number, at least 1"
            else:
                fits = isinstance(found, int | float) and 0 < found < math.inf
                expected = "a positive number"
            if not fits:
                raise UserError(f"model.{field.name} is {found!r}, expected {expected}")
        for width, heads in (("embed_dim", "num_heads"), ("decoder_embed_dim", "decoder_num_heads")):
            if getattr(made, width) % getattr(made, heads):
                raise UserError(
                    f"model.{heads} is {getattr(made, heads)}, expected a divisor of {width}, {getattr(made, width)}"
                )
        return made

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
