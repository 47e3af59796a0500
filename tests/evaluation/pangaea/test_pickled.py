"""Pickled attributes are read as data: nothing in them runs."""

from __future__ import annotations

import ast
import pickle

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramen_jax.corpora import BadItem
from ramen_jax.evaluation.pangaea.tasks.pickled import Opaque, facts, numbers

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(PLAIN, st.sampled_from([3, 4, 5]))
def test_plain_values_come_back(value, protocol):
    assert facts(pickle.dumps(value, protocol=protocol), "file") == value


class Trap:
    def __reduce__(self):
        return (open, ("ran", "w"))


def test_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = facts(pickle.dumps({"label": 3, "trap": Trap()}), "file")
    assert found["label"] == 3
    assert found["trap"] == Opaque("io.open", ("ran", "w"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.int64(7), np.arange(5, dtype=np.uint8), np.ones((2, 3), np.float32)])
def test_labels_of_numpy(value):
    assert np.array_equal(numbers(facts(pickle.dumps(value, protocol=4), "file"), "file"), value)


def test_damaged_streams_are_told():
    for stream in (b"", b"\x80\x04}", pickle.dumps([1, 2])[:-1], b"cos\nsystem\n(S'x'\ntR."):
        with pytest.raises(BadItem, match="pickled attribute"):
            facts(stream, "file")
    with pytest.raises(BadItem, match="expected a number"):
        numbers(Opaque("builtins.list"), "file")


def test_real_files(real_data):
    """The facts of GEO-Bench files: labels and the wavelength of each band, without their classes."""
    for path in sorted((real_data / "geobench").glob("*/*.hdf5")):
        with h5py.File(path) as file:
            found = facts(ast.literal_eval(file.attrs["pickle"]), path)
            bands = [name for name in file if name != "label"]
        assert all(0.4 < found[name]["band_info"].state["wavelength"] < 2.3 for name in bands)
        if "brick" in str(path):
            assert int(numbers(found["label"], path)) in (0, 1)
