"""MMEarth64 read from its HDF5 file: levels, missing planes, the stratified draw, and what is wrong with a file."""

import h5py
import numpy as np
import pytest

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem, check_sample, load_description, open_corpus
from ramen_jax.corpora.records import as_encoded
from ramen_jax.earth.layouts import write_mmearth
from ramen_jax.recipe import FIXED, REFERENCE

TILES = 60


def write_h5(path, levels=True):
    rng = np.random.default_rng(0)
    s2 = rng.integers(1, 4000, (TILES, 13, 64, 64)).astype(np.uint16)
    s2[1::2, 10] = 0  # every second tile is L2A
    s1 = rng.normal(-12, 3, (TILES, 8, 64, 64)).astype(np.float32)
    s1[:, [2, 3, 6, 7]] = -np.inf
    s1[0, :2] = -np.inf  # no ascending pass
    s1[1] = -np.inf  # no radar at all
    s1[2, 0, :5] = -np.inf  # half a pass
    s2[3, :, 0, 0] = 0
    biome = np.zeros((TILES, 14), np.uint8)
    biome[np.arange(TILES), np.arange(TILES) % 3] = 1
    aster = rng.integers(0, 900, (TILES, 2, 64, 64)).astype(np.int16)
    aster[4] = 0  # the sea
    with h5py.File(path, "w") as file:
        for key, values in (("sentinel2", s2), ("sentinel1", s1), ("aster", aster), ("biome", biome)):
            file[key] = values
        angle = np.radians(np.linspace(-50, 50, TILES))
        file["lat"] = np.stack([np.sin(angle), np.cos(angle)], 1).astype(np.float32)
        file["lon"] = np.stack([np.sin(2 * angle), np.cos(2 * angle)], 1).astype(np.float32)
        if levels:
            names = [(str(i).encode(), b"l1c" if i % 2 == 0 else b"l2a") for i in range(TILES)]
            file["metadata"] = np.array(names, [("tile_id", "S100"), ("S2_type", "S10")])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("mmearth")
    write_h5(root / "data_1M_v001_64.h5")
    return root


def corpus_of(folder, **options):
    return open_corpus({**load_description("mmearth"), **options}, folder)


def test_values_are_the_source_pixels(folder):
    corpus = corpus_of(folder)
    with h5py.File(folder / "data_1M_v001_64.h5") as file:
        for place in (5, 6, 20, 41):
            (sample,) = corpus.read(str(place), "train")
            check_sample(sample, corpus.modalities, sample.id)
            np.testing.assert_array_equal(sample.images["s2"].values[0], file["sentinel2"][place])
            np.testing.assert_array_equal(sample.images["dem"].values[0], file["aster"][place])
            stored = file["sentinel1"][place]
            np.testing.assert_array_equal(
                sample.images["s1"].values[0], np.where(np.isfinite(stored), stored, 0)
            )
            assert sample.extra["variant"] == {"s2": "l1c" if place % 2 == 0 else "l2a"}
            assert sample.images["s2"].present.tolist() == [n != 10 or place % 2 == 0 for n in range(13)]
            assert sample.images["s1"].present.tolist() == [True, True, False, False] * 2
            assert sample.images["s1"].valid is None
            latitude = -50 + 100 * place / (TILES - 1)
            assert sample.location == pytest.approx((2 * latitude, latitude), abs=1e-3)


def test_missing_planes_and_pixels(folder):
    corpus = corpus_of(folder)
    images = [corpus.read(str(place), "train")[0].images for place in range(5)]
    assert images[0]["s1"].present.tolist() == [False] * 4 + [True, True, False, False]
    assert not images[1]["s1"].present.any()
    assert images[2]["s1"].valid.sum() == 59 * 64
    assert images[3]["s2"].valid.sum() == 64 * 64 - 1
    assert images[4]["dem"].present.all()
    reference = corpus_of(folder, zero_planes="reference")
    assert not reference.read("4", "train")[0].images["dem"].present.any()


def test_the_draw_is_stratified_seeded_and_disjoint(folder):
    corpus = corpus_of(folder)
    items, rejected = corpus.items()
    assert not rejected
    assert items == corpus_of(folder).items()[0]
    assert items != corpus_of(folder, seed=1).items()[0]
    train, val = (list(map(int, items[split])) for split in ("train", "val"))
    assert not set(train) & set(val)
    assert train == sorted(train)
    for biome in range(3):  # 20 tiles of each: 12 are drawn, of which 1 validates
        assert sum(place % 3 == biome for place in train) == 11
        assert sum(place % 3 == biome for place in val) == 1
    facts = corpus.facts()
    assert facts["train_by_biome"][:3] == [11, 11, 11]
    assert facts["tiles"] == TILES


def test_the_reference_draw_overlaps(folder):
    train, val = (
        corpus_of(folder, draw="reference", val=0.5).items()[0][split] for split in ("train", "val")
    )
    assert set(train) & set(val)
    everything = corpus_of(folder, subset=1.0, val=0.0).items()[0]
    assert everything == {"train": [str(place) for place in range(TILES)]}


def test_wavelengths_by_recipe(folder):
    found = corpus_of(folder).modalities[1].sensor
    for recipe, expected in ((FIXED, [865, 842]), (REFERENCE, [842, 865])):
        bands = as_encoded(found, recipe).bands
        assert [band.wavelength_nm for band in bands[7:9]] == expected


def test_level_without_metadata(tmp_path):
    write_h5(tmp_path / "any_name.h5", levels=False)
    corpus = corpus_of(tmp_path)
    assert [corpus.read(str(place), "train")[0].extra["variant"]["s2"] for place in (6, 7)] == ["l1c", "l2a"]


def test_synthetic_layout(tmp_path):
    write_mmearth(tmp_path / "out", 3, seed=2)
    corpus = corpus_of(tmp_path / "out", subset=1.0, val=0.0)
    for item in corpus.items()[0]["train"]:
        for sample in corpus.read(item, "train"):
            check_sample(sample, corpus.modalities, sample.id)


def test_shared_format_fixture(real_data):
    corpus = corpus_of(real_data / "mmearth_format_SYNTHETIC", subset=1.0, val=0.0)
    items = corpus.items()[0]["train"]
    assert len(items) == 10
    for item in items:
        for sample in corpus.read(item, "train"):
            check_sample(sample, corpus.modalities, sample.id)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("sentinel1"), r"no dataset 'sentinel1'; it has aster, biome"),
        (lambda file: file.pop("biome"), r"no dataset 'biome'"),
        (
            lambda file: [file.pop("sentinel2"), file.create_dataset("sentinel2", (TILES, 13, 64, 64), "i2")],
            r"sentinel2 is int16 \(60, 13, 64, 64\), expected uint16",
        ),
        (
            lambda file: [file.pop("aster"), file.create_dataset("aster", (TILES, 1, 64, 64), "i2")],
            r"aster is int16 \(60, 1, 64, 64\), expected int16 \(60, 2, 64, 64\)",
        ),
    ],
)
def test_wrong_files_are_told(tmp_path, change, message):
    write_h5(tmp_path / "data.h5")
    with h5py.File(tmp_path / "data.h5", "r+") as file:
        change(file)
    with pytest.raises(UserError, match=message):
        corpus_of(tmp_path)


def test_wrong_tiles_are_named(tmp_path):
    write_h5(tmp_path / "data.h5")
    with h5py.File(tmp_path / "data.h5", "r+") as file:
        file["sentinel2"][7] = 0
        levels = file["metadata"][()]
        levels[8] = (b"8", b"l3")
        file["metadata"][...] = levels
    corpus = corpus_of(tmp_path)
    with pytest.raises(BadItem, match=r"sentinel2\[7\]: no valid pixel at all"):
        corpus.read("7", "train")
    with pytest.raises(BadItem, match=r"metadata\[8\]: S2_type is 'l3', expected l1c or l2a"):
        corpus.read("8", "train")


def test_wrong_folders_and_options_are_told(folder, tmp_path):
    with pytest.raises(UserError, match=r"expected one \.h5 file, found none"):
        corpus_of(tmp_path)
    (tmp_path / "cut.h5").write_bytes((folder / "data_1M_v001_64.h5").read_bytes()[:10_000])
    with pytest.raises(UserError, match=r"cut\.h5: cannot be opened as HDF5, truncated or damaged"):
        corpus_of(tmp_path)
    for option, message in (
        ({"draw": "fix"}, "draw is 'fix', expected fixed or reference"),
        ({"subset": 60}, "subset is 60, expected a share"),
        ({"modalities": ["s3"]}, "no modality 's3'"),
    ):
        with pytest.raises(UserError, match=message):
            corpus_of(folder, **option)
