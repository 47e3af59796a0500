"""A tiny encoder with random weights, as export would write it: for tests of everything that loads one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from ramen_jax.config import SIZES
from ramen_jax.interchange import torch_weights
from ramen_jax.interchange.source import Source, describe
from ramen_jax.model.architecture import Architecture
from ramen_jax.model.ramen import Ramen
from ramen_jax.recipe import Recipe
from ramen_jax.sensors import sensor

SENSORS = {
    "place/s2": sensor("sentinel2_l2a").with_statistics([1500.0] * 12, [800.0] * 12),
    "place/s1": sensor("terramesh_s1rtc").with_statistics([-12.0, -18.0], [4.0, 4.0]),
    "place/dem": sensor("terramesh_dem").with_statistics([300.0], [100.0]),
}


def source(recipe: str = "reference", size: Mapping[str, int] = SIZES["tiny"], **traps: Any) -> Source:
    """Random weights of sensible magnitude; drawn by numpy, since an initialisation would be compiled first."""
    values = Recipe.named(recipe, **traps)
    ramen = Ramen(Architecture.from_dict(dict(size)), values, with_decoder=False)
    rng = np.random.default_rng(0)

    def drawn(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name == "batches":
            return np.int32(7)
        noise = rng.standard_normal(leaf.shape, np.float32)
        if name == "temperature":
            return np.float32(0.7)
        if name in ("scale", "group_scale", "var"):
            return 1 + 0.1 * np.abs(noise)
        return noise * (leaf.shape[-2] ** -0.5 if name in ("kernel", "kernels") else 0.05)

    trees = [jax.tree.map_with_path(drawn, shapes) for shapes in ramen.shapes]
    sensors = {name: entry.to_dict() for name, entry in SENSORS.items()}
    facts = {
        "recipe": recipe,
        "step": 3,
        "fingerprints": {"place": "abc"},
        "target_gsds": {"place": [20.0, 40.0]},
    }
    return Source(
        torch_weights.to_official(*trees),
        describe(ramen.architecture.to_dict(), values.to_dict(), sensors, facts),
    )


def folder(path: Path, recipe: str = "reference") -> Path:
    """What `rj.load` needs of an exported folder; the rest of one needs PyTorch."""
    path.mkdir(parents=True)
    weights = source(recipe)
    named = {name.removeprefix("encoder."): np.asarray(a, order="C") for name, a in weights.tensors.items()}
    save_file(named, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(weights.description))
    return path
