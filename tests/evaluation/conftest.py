"""A small Sen1Floods11 and a tiny encoder, made once."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from ramen_jax.earth.layouts.pangaea import WRITERS
from ramen_jax.evaluation.cache import Cache
from ramen_jax.evaluation.encoders import Pretrained
from ramen_jax.evaluation.pangaea.protocol import CORRECTED
from ramen_jax.evaluation.pangaea.tasks import open_task
from ramen_jax.evaluation.pangaea.tasks.registry import DESCRIPTIONS
from ramen_jax.evaluation.runs import Run, Settings
from ramen_jax.inference.encoder import Encoder
from ramen_jax.model.architecture import Architecture
from ramen_jax.recipe import Recipe

PIXELS = 64
TINY = Architecture(embed_dim=32, depth=3, num_heads=2)
SMALL = Settings(epochs=2, batch_size=2, crop=32, channels=8, decoder="seg_linear")


@pytest.fixture(scope="session")
def floods(tmp_path_factory):
    folder = tmp_path_factory.mktemp("floods")
    WRITERS["sen1floods11"](folder, pixels=PIXELS)
    return folder


@pytest.fixture
def small_floods(tmp_path):
    """The task as it ships, of small chips."""
    path = tmp_path / "sen1floods11.yaml"
    path.write_text(
        (DESCRIPTIONS / "sen1floods11.yaml").read_text().replace("pixels: 512", f"pixels: {PIXELS}")
    )
    return path


@pytest.fixture(scope="session")
def tiny():
    recipe = Recipe.named("reference")
    blank = Encoder.of(TINY, recipe, {}, {}, {"encoder": {}}, {"encoder": {}})
    params, statistics = jax.jit(blank.ramen.init)(jax.random.key(0))
    return Pretrained("tiny", dataclasses.replace(blank, params=params, statistics=statistics), "metric")


@pytest.fixture
def make_run(floods, tiny, tmp_path):
    """A run over the small task; what it says is in `run.said`."""

    def make(encoder=None, settings=SMALL, folder="run", source=floods, limit=1 << 30, task=None):
        said = []
        opened = task or open_task("sen1floods11", source, CORRECTED, pixels=PIXELS)
        cache = Cache(tmp_path / "features", limit, said.append)
        run = Run(opened, encoder or tiny, settings, tmp_path / folder, cache, said.append)
        run.said = said
        return run

    return make
