"""The reader of GEO-Bench files on real ones: land cover of NAIP, brick kilns of Sentinel-2."""

from __future__ import annotations

import json
import shutil

import pytest

from ramen_jax.corpora import BadItem
from ramen_jax.evaluation.pangaea.tasks import open_task

COMMAND = {"crop": 64, "target_gsd": 4, "decoder": "seg_linear", "loss": "cross_entropy"}


def folder(tmp_path, real_data, name):
    root = tmp_path / name
    shutil.copytree(real_data / "geobench" / name, root)
    names = sorted(path.stem for path in root.glob("*.hdf5"))
    partition = {"train": names[:3], "valid": names[3:4], "test": [*names[4:], "absent"]}
    (root / "default_partition.json").write_text(json.dumps(partition))
    return root


def test_land_cover(tmp_path, real_data):
    description = {
        "kind": "geobench",
        "name": "m-chesapeake",
        "pixels": 256,
        "command": COMMAND,
        "classes": ["water", "trees", "low", "barren", "impervious", "roads", "no data"],
        "modalities": {"optical": {"sensor": "pangaea_m_chesapeake", "scale": 1 / 255}},
        "channels": ["Blue", "Green", "Red", "NearInfrared"],
    }
    task = open_task(description, folder(tmp_path, real_data, "m-chesapeake-like"))
    splits, rejected = task.items()
    assert [len(items) for items in splits.values()] == [3, 1, 1]
    assert "absent.hdf5" in rejected[0].file
    for split, items in splits.items():
        for item in items:
            example = task.example(item, split)
            assert example.target.shape == (256, 256)
            assert example.sample.images["optical"].values.shape == (1, 4, 256, 256)


def test_brick_kilns(tmp_path, real_data):
    names = ["01", "02", "03", "04", "05", "06", "07", "08", "08A", "09", "10", "11", "12"]
    description = {
        "kind": "geobench",
        "name": "m-brick-kiln",
        "pixels": 64,
        "command": COMMAND,
        "family": "classification",
        "classes": ["not brick kiln", "brick kiln"],
        "modalities": {"optical": {"sensor": "pangaea_m_brick_kiln"}},
        "channels": names,
    }
    source = folder(tmp_path, real_data, "brick_kiln")
    task = open_task(description, source)
    for item in task.split("train"):
        assert int(task.example(item, "train").target) in (0, 1)
    task = open_task({**description, "channels": [*names[:-1], "13"]}, source)
    item = task.split("train")[0]
    with pytest.raises(BadItem, match="no band 13"):
        task.example(item, "train")
