"""A folder of rasters described by one YAML file: values are the source pixels, wrong files are named and left out."""

import numpy as np
import pytest
import rasterio
import yaml
from rasterio.transform import from_origin

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem, check_sample, load_description, open_corpus

SENSORS = {
    "eye": {"gsd": 10, "bands": {"red": 665, "nir": 842}, "nodata": 0},
    "fine": {"gsd": 5, "bands": {"vv": "asc_vv"}},
}


def write(path, values, gsd=10.0, nodata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    options = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": values.dtype}
    transform = from_origin(500_000, 5_600_000, gsd, gsd)
    with rasterio.open(path, "w", crs="EPSG:32632", transform=transform, nodata=nodata, **options) as file:
        file.write(values)


def pixels(place: int, bands=2, size=20, dtype=np.uint16):
    return np.random.default_rng(place).integers(1, 4000, (bands, size, size)).astype(dtype)


def describe(tmp_path, **changes):
    (tmp_path / "sensors.yaml").write_text(yaml.safe_dump(SENSORS))
    description = {
        "kind": "geofolder",
        "sensors": "sensors.yaml",
        "crop": 8,
        "modalities": {
            "eye": {"sensor": "eye", "pattern": "eye/{id}.tif"},
            "fine": {"sensor": "fine", "pattern": "fine/scene_{id}.tif"},
        },
        **changes,
    }
    path = tmp_path / "places.yaml"
    path.write_text(yaml.safe_dump(description))
    return load_description(path)


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "source"
    for place in range(4):
        write(root / f"eye/p{place}.tif", pixels(place))
        write(root / f"fine/scene_p{place}.tif", pixels(place, 1, 40, np.int16), gsd=5.0)
    return root


def test_crops_are_the_source_pixels(tmp_path, source):
    corpus = open_corpus(describe(tmp_path), source)
    items, rejected = corpus.items()
    assert (items, rejected) == ({"train": ["p0", "p1", "p2", "p3"]}, [])
    samples = corpus.read("p2", "train")
    assert [sample.id for sample in samples] == ["p2/0-0", "p2/0-1", "p2/1-0", "p2/1-1"]
    for sample in samples:
        row, col = map(int, sample.id[-3:].split("-"))
        check_sample(sample, corpus.modalities, sample.id)
        eye, fine = sample.images["eye"], sample.images["fine"]
        np.testing.assert_array_equal(
            eye.values[0], pixels(2)[:, row * 8 : row * 8 + 8, col * 8 : col * 8 + 8]
        )
        np.testing.assert_array_equal(
            fine.values[0],
            pixels(2, 1, 40, np.int16)[:, row * 16 : row * 16 + 16, col * 16 : col * 16 + 16],
        )
        assert eye.values.dtype == np.uint16
        assert eye.dates.tolist() == [0]
    # 500 km east is the central meridian, 9 degrees; 40 m to the right of it at row 0, column 0.
    assert samples[0].location == pytest.approx((9.0005, 50.55), abs=1e-2)


def test_whole_images_without_crop(tmp_path, source):
    corpus = open_corpus(describe(tmp_path, crop=None), source)
    assert [(spec.height, spec.width) for spec in corpus.modalities] == [(20, 20), (40, 40)]
    (sample,) = corpus.read("p1", "train")
    np.testing.assert_array_equal(sample.images["eye"].values[0], pixels(1))


def test_dates_in_names_make_a_series(tmp_path):
    root = tmp_path / "source"
    for day in ("2020-03-01", "20200105"):
        write(root / f"a_{day}.tif", pixels(len(day)))
    modalities = {"eye": {"sensor": "eye", "pattern": "{id}_{date}.tif"}}
    corpus = open_corpus(describe(tmp_path, modalities=modalities, crop=None), root)
    (sample,) = corpus.read("a", "train")
    assert sample.images["eye"].dates.tolist() == [5, 61]
    np.testing.assert_array_equal(sample.images["eye"].values[0], pixels(len("20200105")))


def test_nodata_is_marked_and_a_dark_band_is_not(tmp_path, source):
    values = pixels(0)
    values[:, 0, 0] = 0  # both bands: no data
    values[0, 1, 1] = 0  # one band: a dark pixel
    write(source / "eye/p0.tif", values)
    corpus = open_corpus(describe(tmp_path), source)
    image = corpus.read("p0", "train")[0].images["eye"]
    assert not image.valid[0, 0, 0]
    assert image.valid.sum() == 63


def test_the_file_s_own_no_data_tag_counts_unless_the_description_has_one(tmp_path, source):
    values = pixels(0)
    values[:, 2, 3] = 77
    values[:, 4, 4] = 0
    write(source / "eye/p0.tif", values, nodata=77)

    def missing(**declared):
        modalities = {"eye": {"sensor": "eye", "pattern": "eye/{id}.tif", **declared}}
        image = (
            open_corpus(describe(tmp_path, modalities=modalities), source)
            .read("p0", "train")[0]
            .images["eye"]
        )
        return [] if image.valid is None else np.argwhere(~image.valid[0]).tolist()

    assert missing() == [[2, 3], [4, 4]]  # the tag and the sensor's own value
    assert missing(nodata=0) == [[4, 4]]
    assert missing(nodata=None) == []
    write(source / "eye/p0.tif", np.full_like(values, 77), nodata=77)
    with pytest.raises(BadItem, match="no valid pixel"):
        missing()


def test_every_date_has_its_own_no_data_tag(tmp_path):
    root = tmp_path / "source"
    values = pixels(0)
    values[:, 0, 0], values[:, 0, 1] = 77, 78
    for day, tag in (("20200105", 77), ("20200301", 78)):
        write(root / f"a_{day}.tif", values, nodata=tag)
    modalities = {"eye": {"sensor": "eye", "pattern": "{id}_{date}.tif"}}
    corpus = open_corpus(describe(tmp_path, modalities=modalities, crop=None), root)
    valid = corpus.read("a", "train")[0].images["eye"].valid
    assert np.argwhere(~valid).tolist() == [[0, 0, 0], [1, 0, 1]]


def test_added_offset_is_declared_per_place(tmp_path, source):
    values = pixels(1) + np.uint16(1000)
    values[:, 0, 0] = 0
    write(source / "eye/p1.tif", values)
    modalities = {"eye": {"sensor": "eye", "pattern": "eye/{id}.tif", "add": {"p1": -1000}}}
    corpus = open_corpus(describe(tmp_path, modalities=modalities), source)
    sample = corpus.read("p1", "train")[0]
    expected = pixels(1)[:, :8, :8]
    expected[:, 0, 0] = 0
    np.testing.assert_array_equal(sample.images["eye"].values[0], expected)
    assert sample.extra == {"added": {"eye": -1000}}
    assert corpus.read("p2", "train")[0].extra == {}
    modalities["eye"]["add"] = {"p*": -5000}
    corpus = open_corpus(describe(tmp_path, modalities=modalities), source)
    with pytest.raises(BadItem, match="leaves the range of uint16"):
        corpus.read("p3", "train")


def test_split_keeps_places_together_and_is_seeded(tmp_path, source):
    splits = [
        open_corpus(describe(tmp_path, split={"val": 0.5, "seed": seed}), source).items()[0]
        for seed in (0, 0, 1, 2, 3)
    ]
    assert splits[0] == splits[1]
    assert any(split != splits[0] for split in splits[2:])
    assert sorted(splits[0]["train"] + splits[0]["val"]) == ["p0", "p1", "p2", "p3"]
    named = open_corpus(describe(tmp_path, split={"val": ["p3"]}), source).items()[0]
    assert named == {"train": ["p0", "p1", "p2"], "val": ["p3"]}
    with pytest.raises(UserError, match="not there: p9"):
        open_corpus(describe(tmp_path, split={"val": ["p9"]}), source).items()


def test_missing_files_are_all_listed(tmp_path, source):
    (source / "fine/scene_p1.tif").unlink()
    (source / "eye/p3.tif").unlink()
    items, rejected = open_corpus(describe(tmp_path), source).items()
    assert items == {"train": ["p0", "p2"]}
    assert [str(error) for error in rejected] == [
        "p1: missing fine (fine/scene_p1.tif)",
        "p3: missing eye (eye/p3.tif)",
    ]


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def test_damaged_files_are_named(tmp_path, source):
    truncate(source / "eye/p0.tif")
    write(source / "eye/p1.tif", pixels(1, bands=3))
    write(source / "eye/p2.tif", pixels(2, dtype=np.int16))
    write(source / "eye/p3.tif", np.zeros((2, 20, 20), np.uint16))
    corpus = open_corpus(describe(tmp_path), source)
    for place, cause in (
        ("p0", "cannot be read as a raster"),
        ("p1", "3 bands, sensor 'eye' has 2"),
        ("p2", "dtype int16, the other files of eye hold uint16"),
        ("p3", "no valid pixel at all"),
    ):
        with pytest.raises(BadItem, match=rf"eye/{place}\.tif: .*{cause}"):
            corpus.read(place, "train")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_was_not_measured(tmp_path, value):
    root = tmp_path / "source"
    values = pixels(0, dtype=np.float32)
    values[0, 3, 3] = value
    write(root / "eye/p0.tif", values)
    modality = {"sensor": "eye", "pattern": "eye/{id}.tif"}
    corpus = open_corpus(describe(tmp_path, modalities={"eye": modality}), root)
    image = corpus.read("p0", "train")[0].images["eye"]
    assert image.values[0, 0, 3, 3] == 0
    assert not image.valid[0, 3, 3]
    assert image.valid.sum() == 63


def test_float64_needs_a_declaration(tmp_path):
    root = tmp_path / "source"
    write(root / "eye/p0.tif", pixels(0).astype(np.float64))
    modality = {"sensor": "eye", "pattern": "eye/{id}.tif"}
    with pytest.raises(UserError, match=r"files hold float64.*dtype: float32"):
        open_corpus(describe(tmp_path, modalities={"eye": modality}), root)
    modality["dtype"] = "uint16"
    image = (
        open_corpus(describe(tmp_path, modalities={"eye": modality}), root)
        .read("p0", "train")[0]
        .images["eye"]
    )
    np.testing.assert_array_equal(image.values[0], pixels(0)[:, :8, :8])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corp": 8}, "unknown option 'corp'.*crop"),
        ({"modalities": {}}, "at least one modality"),
        ({"modalities": {"eye": {"sensor": "eye"}}}, "modality eye: pattern is missing"),
        ({"modalities": {"eye": {"sensor": "eye", "pattern": "eye.tif"}}}, "needs one {id}"),
        ({"modalities": {"eye": {"sensor": "eye", "pattern": "../{id}.tif"}}}, "stay inside the source"),
        ({"modalities": {"eye": {"sensor": "eye", "pattern": "{id}.tif", "nodat": 0}}}, "'nodat'.*nodata"),
        ({"modalities": {"eye": {"sensor": "eyes", "pattern": "{id}.tif"}}}, "eyes"),
        ({"modalities": {"eye": {"sensor": "eye", "pattern": "no/{id}.tif"}}}, "no readable file matches"),
        (
            {"modalities": {"fine": {"sensor": "fine", "pattern": "eye/{id}.tif"}}},
            "2 bands, sensor 'fine' has 1",
        ),
        ({"crop": 0.25}, "whole number"),
        ({"split": {"val": 2}}, "share below 1"),
        ({"split": {"seeds": 2}}, "'seeds'.*seed"),
    ],
)
def test_wrong_descriptions_are_told(tmp_path, source, changes, message):
    with pytest.raises(UserError, match=message):
        open_corpus(describe(tmp_path, **changes), source).items()


def test_links_may_not_lead_out(tmp_path, source):
    write(tmp_path / "elsewhere.tif", pixels(9))
    (source / "eye/p9.tif").symlink_to(tmp_path / "elsewhere.tif")
    with pytest.raises(UserError, match=r"p9\.tif: leads outside"):
        open_corpus(describe(tmp_path), source)


def test_unknown_corpora_and_kinds(tmp_path):
    with pytest.raises(UserError, match=r"terrmesh.*terramesh"):
        load_description("terrmesh")
    with pytest.raises(UserError, match=r"'geofoldr' is unknown.*geofolder"):
        open_corpus({"kind": "geofoldr", "name": "x"}, tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        open_corpus(describe(tmp_path), tmp_path / "nowhere")
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not a valid YAML file"):
        load_description(tmp_path / "x.yaml")


def test_terramesh(real_data):
    corpus = open_corpus(load_description("terramesh"), real_data / "terramesh")
    items, rejected = corpus.items()
    assert not rejected
    assert sum(map(len, items.values())) == 5
    samples = corpus.read("433D_629L_3_1", "train")
    assert len(samples) == 9
    with rasterio.open(real_data / "terramesh/S2L2A/433D_629L_3_1.tif") as file:
        source = file.read()
    np.testing.assert_array_equal(samples[4].images["s2"].values[0] + 1000, source[:, 64:128, 64:128])
