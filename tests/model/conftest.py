"""Small models and rows for the tests of the model."""

from __future__ import annotations

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from ramen_jax.model.mae import RamenMAE
from ramen_jax.model.temporal import BatchStatistic
from ramen_jax.rows.packing import PackedView
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
SENSORS = {m.name: m.sensor for m in SPEC.modalities}


def small_config(**changes: object) -> ConfigDict:
    config = ConfigDict(
        {
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 2,
            "mlp_ratio": 2.0,
            "decoder_embed_dim": 16,
            "decoder_depth": 1,
            "decoder_num_heads": 2,
            "mask_ratio": 0.75,
            "block_eps": 1e-6,
            "dtype": "float32",
            "remat": "none",
        }
    )
    config.update(changes)
    return config


def traps(recipe: str = "reference", **changes: object) -> ConfigDict:
    fixed = recipe == "fixed"
    result = ConfigDict(
        {
            "target": "standardised" if fixed else "per_pixel",
            "time_mask": "fixed" if fixed else "reference",
            "modality_embedding": "bands" if fixed else "none",
            "missing": "excluded" if fixed else "zeros",
            "encodings": "float32",
            "sampling": "metric" if fixed else "reference",
            "temporal": "visible" if fixed else "all",
            "ltae_dropout": 0.0,
        },
        type_safe=False,
    )
    result.update(changes)
    return result


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


@lru_cache
def _shapes(recipe: str, remat: str, dtype: str, changes: tuple) -> tuple:
    config, options = small_config(remat=remat, dtype=dtype), traps(recipe, **dict(changes))
    return nnx.split(
        nnx.eval_shape(lambda: RamenMAE(config, options, rngs=nnx.Rngs(0))), nnx.Param, BatchStatistic
    )


def build(
    recipe: str = "reference", remat: str = "none", dtype: str = "float32", **changes: object
) -> RamenMAE:
    """A small model whose parameters are all random (norms and biases too); numpy draws them: no compilation."""
    graph, params, statistics = _shapes(recipe, remat, dtype, tuple(changes.items()))
    rng = np.random.default_rng(0)

    def draw(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        shape = variable.get_raw_value().shape
        centre = 1.0 if path[-1] in ("scale", "group_scale", "temperature") else 0.0
        width = 0.3 if len(shape) < 2 else shape[-2] ** -0.5
        return variable.replace(jnp.asarray(rng.normal(centre, width, shape), jnp.float32))

    filled = nnx.map_state(draw, params)
    rest = nnx.map_state(
        lambda path, v: v.replace(
            jnp.full(v.get_raw_value().shape, path[-1] == "var", v.get_raw_value().dtype)
        ),
        statistics,
    )
    return nnx.merge(graph, filled, rest)
