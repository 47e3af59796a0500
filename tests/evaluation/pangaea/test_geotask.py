"""A task of one's own is one YAML file."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from ramen_jax.console import UserError
from ramen_jax.evaluation.pangaea.tasks import open_task

TERRAMESH = {
    "kind": "geotask",
    "sensors": "sensors.yaml",
    "classes": ["trees", "crops and grass", "built", "water"],
    "ignore": 255,
    "split": {"val": 0.2, "test": 0.2},
    "modalities": {"s2": {"sensor": "s2", "pattern": "S2L2A/{id}.tif"}},
    "labels": {"pattern": "LULC/{id}.tif"},
    "command": {"crop": 64, "target_gsd": 40, "decoder": "seg_linear", "loss": "cross_entropy"},
}


def describe(folder, real_data, **changes):
    bands = dict.fromkeys(("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12"), 800)
    eye = {"gsd": 10, "bands": bands, "mean": [1500] * 12, "std": [1000] * 12}
    (folder / "sensors.yaml").write_text(yaml.safe_dump({"s2": eye}))
    path = folder / "terramesh.yaml"
    path.write_text(yaml.safe_dump({**TERRAMESH, **changes}))
    return path


def test_the_land_cover_of_real_places(tmp_path, real_data):
    values = {value: value % 4 for value in range(12)}
    labels = {"pattern": "LULC/{id}.tif", "values": values}
    task = open_task(describe(tmp_path, real_data, labels=labels), real_data / "terramesh")
    splits, rejected = task.items()
    assert rejected == []
    assert {name: len(items) for name, items in splits.items()} == {"train": 3, "val": 1, "test": 1}
    for split, items in splits.items():
        for item in items:
            example = task.example(item, split)
            assert example.target.shape == example.sample.images["s2"].values.shape[2:]
            assert set(np.unique(example.target)) <= {0, 1, 2, 3, 255}


def test_wrong_descriptions(tmp_path, real_data):
    source = real_data / "terramesh"
    with pytest.raises(UserError, match=r"needs one \{id\}"):
        open_task(describe(tmp_path, real_data, labels={"pattern": "LULC.tif"}), source)
    path = describe(tmp_path, real_data)
    (tmp_path / "sensors.yaml").write_text(
        yaml.safe_dump({"s2": {"gsd": 10, "bands": {f"B{i}": 800 for i in range(12)}}})
    )
    with pytest.raises(UserError, match="has no mean and std"):
        open_task(path, source)
