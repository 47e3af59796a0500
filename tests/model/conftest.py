"""Small models and rows for the tests of the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ramen_jax.model.architecture import Architecture
from ramen_jax.model.ramen import Ramen, Tree
from ramen_jax.recipe import Recipe
from ramen_jax.rows.views import PackedView
from ramen_jax.samples import CorpusSpec, Image, ModalitySpec, Sample
from ramen_jax.sensors import Band, Sensor

OPTICAL = tuple(Band(name=f"b{i}", wavelength_nm=w) for i, w in enumerate((490.0, 560.0, 665.0, 842.0)))
RADAR = (Band(name="vv", radar="des_vv"), Band(name="vh", radar="des_vh"))
HEIGHT = (Band(name="dsm", elevation="dsm"), Band(name="dtm", elevation="dtm"))


def sensor(name: str, bands: tuple[Band, ...], gsd: float) -> Sensor:
    return Sensor(name, bands, gsd, "units", (0.0,) * len(bands), (1.0,) * len(bands))


SPEC = CorpusSpec(
    "small",
    (
        ModalitySpec("aerial", sensor("aerial", OPTICAL, 1.0), 24, 24, False, 1, "float32", False),
        ModalitySpec("dem", sensor("dem", HEIGHT, 1.0), 24, 24, False, 1, "float32", False),
        ModalitySpec("s2", sensor("s2", OPTICAL[:3], 4.0), 6, 6, True, 5, "float32", True),
        ModalitySpec("s1", sensor("s1", RADAR, 4.0), 6, 6, True, 5, "float32", False),
    ),
    "test",
)
BANDS = {m.name: m.sensor.bands for m in SPEC.modalities}


SMALL = Architecture(
    embed_dim=32,
    depth=2,
    num_heads=2,
    mlp_ratio=2.0,
    decoder_embed_dim=16,
    decoder_depth=1,
    decoder_num_heads=2,
    remat="none",
)


def traps(recipe: str = "reference", **changes: Any) -> Recipe:
    """A recipe without dropout."""
    return Recipe.named(recipe, **{"ltae_dropout": 0.0, **changes})


def make_view(
    seed: int,
    target_gsd: float = 4.0,
    modalities: tuple[str, ...] = ("aerial", "dem", "s2", "s1"),
    dates: int = 3,
) -> PackedView:
    """A view of random images of SPEC."""
    rng = np.random.default_rng(seed)
    images = {}
    for m in SPEC.modalities:
        count = dates if m.series else 1
        values = rng.normal(size=(count, len(m.sensor.bands), m.height, m.width)).astype(np.float32)
        days = np.sort(rng.choice(np.arange(1, 366), count, replace=False)).astype(np.int16)
        images[m.name] = Image(values, days, np.ones(values.shape[1], bool))
    side = int(24 / target_gsd)
    return PackedView(
        sample=Sample(f"s{seed}", images),
        target_gsd=target_gsd,
        modalities=modalities,
        noise=rng.random(len(modalities) * side * side).astype(np.float32),
    )


def build(
    recipe: str = "reference", remat: str = "none", dtype: str = "float32", **changes: Any
) -> tuple[Ramen, Tree, Tree]:
    """A small model, parameters that are all random (norms and biases too) and fresh statistics; nothing compiles."""
    ramen = Ramen(replace(SMALL, remat=remat, dtype=dtype), traps(recipe, **changes))
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        centre = 1.0 if name in ("scale", "group_scale", "temperature") else 0.0
        width = 0.3 if len(leaf.shape) < 2 else leaf.shape[-2] ** -0.5
        return jnp.asarray(rng.normal(centre, width, leaf.shape), jnp.float32)

    def fresh(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.full(leaf.shape, path[-1].key == "var", leaf.dtype)

    params, statistics = ramen.shapes
    with_path = jax.tree_util.tree_map_with_path
    return ramen, with_path(draw, params), with_path(fresh, statistics)
