"""Users' own tasks on real files, end to end: every encoder, table, pictures and what is left out."""

from __future__ import annotations

import json
import shutil
from functools import partial

import numpy as np
import pytest
import yaml

import ramen_jax as rj
from ramen_jax.evaluation.pangaea import decoders
from ramen_jax.evaluation.pangaea.tasks import load_task
from ramen_jax.evaluation.runs import Settings
from tests import exported

# L2A bands of TerraMesh with statistics of its five places, rounded; they mix two processing baselines.
S2 = {"B1": 443, "B2": 490, "B3": 560, "B4": 665, "B5": 705, "B6": 740, "B7": 783, "B8": 842}
S2 |= {"B8A": 865, "B9": 945, "B11": 1610, "B12": 2190}
RADAR = {
    "gsd": 10,
    "units": "dB",
    "bands": {"vv": "asc_vv", "vh": "asc_vh"},
    "mean": [-12, -19],
    "std": [5, 6],
}
SENSORS = {"s2": {"gsd": 10, "bands": S2, "mean": [1500] * 12, "std": [1000] * 12}, "s1": RADAR}
LAND_COVER = {
    "kind": "geotask",
    "sensors": "sensors.yaml",
    "classes": ["water", "trees", "flooded", "crops", "built", "snow", "rangeland"],
    "ignore": 255,
    "split": {"val": ["282D_485L_3_3"], "test": ["433D_629L_3_1"]},
    "modalities": {
        "s2": {"sensor": "s2", "pattern": "S2L2A/{id}.tif"},
        "s1": {"sensor": "s1", "pattern": "S1RTC/{id}.tif", "dtype": "float32"},
    },
    "labels": {"pattern": "LULC/{id}.tif", "values": {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 7: 5, 9: 6}},
    "command": {"crop": 64, "target_gsd": 40, "decoder": "seg_upernet", "loss": "cross_entropy"},
}
QUICK = Settings(epochs=2, batch_size=2, channels=8, replicate=2)


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """Results, table and names of pictures of all four encoders; the U-Net an eighth as wide."""
    monkeypatch.setattr(decoders, "build", partial(decoders.build, topology=(8, 16, 32, 64)))
    model = exported.folder(tmp_path / "tiny", "fixed")

    def run(description, source, settings=QUICK):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(description))
        out = tmp_path / "out"
        results = rj.evaluate(str(path), source, out, checkpoint=model, settings=settings)
        assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
        return results, (out / "table.md").read_text(), {path.name for path in out.rglob("*.png")}

    return run


def test_land_cover_of_terramesh(evaluated, tmp_path, real_data):
    (tmp_path / "sensors.yaml").write_text(yaml.safe_dump(SENSORS))
    results, table, pictures = evaluated(LAND_COVER, real_data / "terramesh")
    assert [result["encoder"] for result in results] == ["tiny", "untrained", "raw", "unet"]
    for result in results:
        assert result["places"] == {"train": 3, "val": 1, "test": 1}
        assert np.sum(result["confusion"]) == 224 * 224
        assert np.isfinite(result["losses"]).all()
        assert result["scores"]["corrected"]["mIoU"] > 0
        assert result["compiled"]["step"] == result["compiled"]["decode"] == 1
        assert f"| mine | {result['encoder']} |" in table
    assert pictures == {"predictions.png", "confusion.png"}


def geobench(tmp_path, real_data, name, folder):
    """The description of the set, and its files here with a partition of their own."""
    source = tmp_path / folder
    shutil.copytree(real_data / "geobench" / folder, source)
    names = sorted(path.stem for path in source.glob("*.hdf5"))
    partition = {"train": names[:3], "valid": names[3:4], "test": [names[4], "absent"]}
    (source / "default_partition.json").write_text(json.dumps(partition))
    description = load_task(name)
    del description["name"]
    return description, source


@pytest.mark.slow
def test_land_cover_of_geobench(evaluated, tmp_path, real_data):
    description, source = geobench(tmp_path, real_data, "m-chesapeake", "m-chesapeake-like")
    description["command"] |= {"crop": 64}
    results, _, pictures = evaluated(description, source)
    assert [result["encoder"] for result in results] == ["tiny", "untrained", "raw", "unet"]
    for result in results:
        assert np.sum(result["confusion"]) == 256 * 256
        assert ["absent.hdf5" in item for item in result["left_out"]] == [True]
    assert pictures == {"predictions.png", "confusion.png"}


def test_brick_kilns_of_geobench(evaluated, tmp_path, real_data):
    """A class per place: no U-Net unless it is asked for. (Mutant: a table that ends where the U-Net cannot.)"""
    description, source = geobench(tmp_path, real_data, "m-brick-kiln", "brick_kiln")
    results, table, pictures = evaluated(description, source)
    assert [result["encoder"] for result in results] == ["tiny", "untrained", "raw"]
    assert all(result["scores"]["corrected"]["accuracy"] in (0, 1) for result in results)
    assert "| accuracy |" in table
    assert pictures == {"confusion.png"}
