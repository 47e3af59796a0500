"""GEO-Bench files: what was written is read, on real ones too; channels that are not what they are called."""

from __future__ import annotations

import ast
import io
import json
import pickle
import shutil

import h5py
import numpy as np
import pytest

from ramen_jax.corpora import BadItem
from ramen_jax.earth.layouts.pangaea.geobench import SETS, Named, pickled
from ramen_jax.evaluation.pangaea.protocol import CORRECTED, PUBLISHED
from ramen_jax.evaluation.pangaea.tasks import load_task, open_task
from ramen_jax.sensors import sensor
from tests.evaluation.pangaea.small_files import PIXELS, small

VALUES = {
    "label": np.array([0, 1, 1], np.uint8),
    "numbers": [1, -7, 2.5, None, True, False, b"ab", "é"],
    "nested": {"shape": (2, 3), "empty": {}},
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
}


class Known(pickle.Unpickler):
    """Builds nothing but arrays and one class of this file."""

    def find_class(self, module, name):
        assert module.split(".")[0] in ("numpy", "geobench"), module
        return Band if module == "geobench.dataset" else super().find_class(module, name)


class Band:
    pass


def test_the_stream_that_is_written_is_a_pickle():
    """Read by Python's own reader, with the classes named above and no others."""
    band = Named("geobench.dataset", "SpectralBand", {"name": "Red", "alt_names": ("red",)})
    found = Known(io.BytesIO(pickled({**VALUES, "band": band}))).load()
    assert isinstance(found["band"], Band)
    assert vars(found["band"]) == {"name": "Red", "alt_names": ("red",)}
    for key, value in VALUES.items():
        assert np.array_equal(found[key], value) if isinstance(value, np.ndarray) else found[key] == value
    assert found["matrix"].dtype == np.float32
    with pytest.raises(TypeError, match="set cannot be written"):
        pickled({"label": {1}})


@pytest.mark.parametrize("name", SETS)
def test_a_sample_is_what_was_written(layouts, name):
    """Bands in the sensor's order, found by any of their names. (Mutant: bands in the order of the file's keys.)"""
    source = layouts(name)
    task = small(name, source, CORRECTED)
    item = task.split("train")[1]
    example = task.example(item, "train")
    with h5py.File(source / f"{item}.hdf5") as file:
        stored = {key: file[key][:] for key in file}
    label = stored.pop("label", None)
    keys = {key.lower(): key for key in stored} | {key.split(" ")[0].lower(): key for key in stored}
    expected = np.stack([stored[keys[channel.lower()]] for channel in task.options["channels"]])
    assert np.array_equal(example.sample.images["optical"].values[0], expected.astype(np.float32))
    if task.family == "segmentation":
        assert np.array_equal(example.target, label)
        assert example.target.shape == (PIXELS, PIXELS)
    elif task.family == "classification":
        assert example.target.shape == ()
        assert {int(task.example(item, "train").target) for item in task.split("train")} >= {0, 1}
    else:
        assert example.target.shape == (43,)
        assert 0 < example.target.sum() < 43


def test_no_channel_is_taken_for_what_it_is_not():
    """The registry has what the pixels are; only the published protocol believes the names, with the same statistics.

    The order is that of brightness: in m-eurosat nothing is darker than cirrus, water vapour comes next, and both near
    infrareds and the red edge beside them are the brightest; in m-brick-kiln the last three are 8-bit colours.
    """
    for name in ("m-eurosat", "m-brick-kiln"):
        assert set(load_task(name)["modalities"]["optical"]) == {"sensor"}
    eurosat, believed = sensor("pangaea_m_eurosat"), sensor("pangaea_m_eurosat_reference")
    assert (eurosat.mean, eurosat.std) == (believed.mean, believed.std)
    names = [band.name for band in eurosat.bands]
    order = [names[i] for i in np.argsort(eurosat.mean)]
    assert order[:2] == ["B10", "B9"]
    assert set(order[-4:]) == {"B6", "B7", "B8", "B8A"}
    names = [band.name for band in believed.bands]
    assert [names[i] for i in np.argsort(believed.mean)][:2] == [
        "B9",
        "B8A",
    ]  # what the names would have us believe
    kilns, believed = sensor("pangaea_m_brick_kiln"), sensor("pangaea_m_brick_kiln_reference")
    assert (kilns.mean, kilns.std) == (believed.mean, believed.std)
    assert [band.name for band in kilns.bands][-3:] == ["TCI_R", "TCI_G", "TCI_B"]
    assert max(kilns.mean[-3:]) < 256 < min(kilns.mean[:-3])


def test_real_brick_kilns_hold_a_picture(real_data):
    """The last three channels of real files are red, green and blue once more; the eighth is finer than the seventh."""
    names = [band.name for band in sensor("pangaea_m_brick_kiln").bands]
    chips = []
    for path in sorted((real_data / "geobench" / "brick_kiln").glob("*.hdf5")):
        with h5py.File(path) as file:
            chips.append(np.stack([file[key][:] for key in sorted(file)]))  # 01, 02, ... 08, 08A, 09, ...
    values_CxN = np.concatenate([chip.reshape(13, -1) for chip in chips], axis=1)
    likeness = np.corrcoef(values_CxN)
    for picture, band in (("TCI_R", "B4"), ("TCI_G", "B3"), ("TCI_B", "B2")):
        others = [likeness[names.index(picture), i] for i in range(10) if i != names.index(band)]
        assert likeness[names.index(picture), names.index(band)] > max(0.99, *others)
    fine = [np.abs(np.diff(np.stack(chips)[:, names.index(band)], axis=2)).mean() for band in ("B8", "B8A")]
    assert fine[0] > 1.3 * fine[1]


def test_damaged_files(layouts, tmp_path):
    source = tmp_path / "m-eurosat"
    shutil.copytree(layouts("m-eurosat"), source)
    task = small("m-eurosat", source)
    item = task.split("train")[0]
    path = source / f"{item}.hdf5"
    whole = path.read_bytes()
    assert int(task.example(item, "train").target) == 0

    def change(file, old, new):
        stream = ast.literal_eval(file.attrs["pickle"])
        assert stream.count(old) == 1
        file.attrs["pickle"] = str(stream.replace(old, new))

    for spoil, sentence in (
        (lambda file: file.attrs.pop("pickle"), "no attribute 'pickle'"),
        (lambda file: change(file, b"labelJ\0", b"labelJ\x4d"), "label values 77 are outside"),
        (lambda file: change(file, b"label", b"lebal"), "no label"),
        (lambda file: file.pop("08A - Vegetation Red Edge"), "no band 08A"),
        (lambda file: file.attrs.update(pickle="b'"), "no attribute 'pickle'"),
    ):
        path.write_bytes(whole)
        with h5py.File(path, "a") as file:
            spoil(file)
        with pytest.raises(BadItem, match=sentence):
            task.example(item, "train")
    path.write_bytes(whole[:500])
    with pytest.raises(BadItem, match=path.name):
        task.example(item, "train")


COMMAND = {"crop": 64, "target_gsd": 4, "decoder": "seg_linear", "loss": "cross_entropy"}


def folder(tmp_path, real_data, name):
    root = tmp_path / name
    shutil.copytree(real_data / "geobench" / name, root)
    names = sorted(path.stem for path in root.glob("*.hdf5"))
    partition = {"train": names[:3], "valid": names[3:4], "test": [*names[4:], "absent"]}
    (root / "default_partition.json").write_text(json.dumps(partition))
    return root


def test_real_land_cover(tmp_path, real_data):
    task = open_task("m-chesapeake", folder(tmp_path, real_data, "m-chesapeake-like"), CORRECTED)
    splits, rejected = task.items()
    assert [len(items) for items in splits.values()] == [3, 1, 1]
    assert "absent.hdf5" in rejected[0].file
    found = set()
    for split, items in splits.items():
        for item in items:
            example = task.example(item, split)
            assert example.target.shape == (256, 256)
            assert example.sample.images["optical"].values.shape == (1, 4, 256, 256)
            found |= set(np.unique(example.target).tolist())
    assert len(found) > 2


def test_real_brick_kilns(tmp_path, real_data):
    source = folder(tmp_path, real_data, "brick_kiln")
    for protocol in (PUBLISHED, CORRECTED):
        task = open_task("m-brick-kiln", source, protocol)
        for item in task.split("train"):
            example = task.example(item, "train")
            assert int(example.target) in (0, 1)
            assert example.sample.images["optical"].values[0, -3:].max() < 256
    names = load_task("m-brick-kiln")["channels"]
    task = open_task("m-brick-kiln", source, channels=[*names[:-1], "13"])
    item = task.split("train")[0]
    with pytest.raises(BadItem, match="no band 13"):
        task.example(item, "train")
