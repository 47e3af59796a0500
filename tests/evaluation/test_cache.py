"""Kept features: found again, never trusted, never in the way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ramen_jax.evaluation.cache import Cache, key_of
from ramen_jax.samples import Image, Sample

KEY = "ab" + "0" * 62
MAPS = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.fixture
def said():
    return []


@pytest.fixture
def cache(tmp_path, said):
    return Cache(tmp_path / "features", 1 << 20, said.append)


def test_what_was_put_is_got(cache):
    assert cache.get(KEY) is None
    cache.put(KEY, MAPS)
    found = cache.get(KEY)
    assert found.dtype == MAPS.dtype
    assert np.array_equal(found, MAPS)


@pytest.mark.parametrize(
    "spoil", [lambda b: b[:-1], lambda b: b[:-1] + b"\1", lambda b: b"", lambda b: b"[]\n" + b]
)
def test_a_damaged_file_is_told_and_rebuilt(cache, said, spoil):
    """(Mutant: the hash is not compared.)"""
    cache.put(KEY, MAPS)
    path = cache.path(KEY)
    path.write_bytes(spoil(path.read_bytes()))
    assert cache.get(KEY) is None
    assert "damaged or foreign features" in said[-1]
    cache.put(KEY, MAPS)
    assert np.array_equal(cache.get(KEY), MAPS)


def test_the_file_of_another_key_is_foreign(cache, said):
    cache.put(KEY, MAPS)
    other = "cd" + "0" * 62
    cache.path(other).parent.mkdir()
    cache.path(other).write_bytes(cache.path(KEY).read_bytes())
    assert cache.get(other) is None
    assert "written for something else" in said[-1]


def test_the_limit_holds_and_is_said_once(tmp_path, said):
    cache = Cache(tmp_path / "f", 600, said.append)
    for number in range(6):
        cache.put(f"{number:064}", MAPS)
    stored = sum(path.stat().st_size for path in (tmp_path / "f").rglob("*.features"))
    assert 0 < stored <= 600
    assert len([line for line in said if "no more features are kept" in line]) == 1
    assert Cache(tmp_path / "f", 600, said.append).bytes == stored


def test_a_full_disk_costs_time_only(cache, said, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ramen_jax.evaluation.cache.os.replace", full)
    cache.put(KEY, MAPS)
    assert "No space left on device" in said[-1]
    assert [path for path in (tmp_path / "features").rglob("*") if path.is_file()] == []


def test_two_writers(tmp_path, said):
    """Whoever comes last, the file is whole at any time."""
    caches = [Cache(tmp_path / "f", 1 << 20, said.append) for _ in range(2)]

    def work(cache):
        for _ in range(50):
            cache.put(KEY, MAPS)
            assert np.array_equal(cache.get(KEY), MAPS)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, caches))
    assert said == []


def test_the_key_changes_with_everything(said):
    def sample(value=1.0, day=5, valid=None, band=True):
        values = np.full((1, 1, 2, 2), value, np.float32)
        return Sample("a", {"s": Image(values, np.array([day], np.int16), np.array([band]), valid)})

    marks = np.array([[[True, False], [True, True]]])
    keys = {
        key_of(identity, each)
        for identity in ({"gsd": 40.0}, {"gsd": 20.0})
        for each in (sample(), sample(2.0), sample(day=6), sample(valid=marks), sample(band=False))
    }
    assert len(keys) == 10
    assert key_of({"gsd": 40.0}, sample()) in keys
