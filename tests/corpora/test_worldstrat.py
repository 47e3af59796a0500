"""WorldStrat read from its original layout: parts, resized frames, repeated and leaking places, wrong files."""

import csv
import shutil

import numpy as np
import pytest
import rasterio

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem, check_sample, load_description, open_corpus
from ramen_jax.corpora.worldstrat import read_splits, resize
from ramen_jax.earth.layouts import write_worldstrat

SPOT, S2 = 214, 32
REFERENCE = {"repeats": "reference", "leaks": "reference"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("worldstrat")
    write_worldstrat(root, 5, seed=3, max_dates=3, pixels=SPOT, quirks=True)
    return root


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def corpus_of(root, **options):
    return open_corpus({**load_description("worldstrat"), "spot_size": SPOT, "s2_size": S2, **options}, root)


def rows_of(root):
    with open(root / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{"place": next(iter(row.values())), **row} for row in rows]


def read(path):
    with rasterio.open(path) as file:
        return file.read()


def test_parts_are_the_source_pixels(folder):
    corpus = corpus_of(folder)
    place = corpus.items()[0]["train"][0]
    samples = corpus.read(place, "train")
    assert len(samples) == 16
    spot = read(folder / "hr_dataset" / place / f"{place}_ps.tiff")
    rows = [row for row in rows_of(folder) if row["place"] == place]
    frames = [read(folder / f"lr_dataset/{place}/L2A/{place}-{row['n']}-L2A_data.tiff") for row in rows]
    assert len({frame.shape for frame in frames}) > 1
    for sample in samples:
        check_sample(sample, corpus.modalities, sample.id)
        row, col = map(int, sample.id.rsplit("/", 1)[1].split("-"))
        part = spot[:, row * 53 : row * 53 + 53, col * 53 : col * 53 + 53]
        np.testing.assert_array_equal(sample.images["spot"].values[0], part)
        for frame, found in zip(frames, sample.images["s2"].values, strict=True):
            expected = resize(frame, S2)[:, row * 8 : row * 8 + 8, col * 8 : col * 8 + 8]
            np.testing.assert_array_equal(found, expected)
    days = [np.datetime64(row["lowres_date"]) for row in rows]
    expected = [int((day - day.astype("datetime64[Y]")).astype(int)) + 1 for day in days]
    assert samples[0].images["s2"].dates.tolist() == expected
    assert samples[0].location == pytest.approx((float(rows[0]["lon"]), float(rows[0]["lat"])))


@pytest.mark.parametrize("shape", [(157, 159), (158, 158), (150, 160), (40, 70), (1, 5)])
def test_resize_is_torch_bit_by_bit(shape):
    torch = pytest.importorskip("torch", reason="needs PyTorch to compare with: pip install torch")
    values = np.random.default_rng(0).random((3, *shape)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None], size=(158, 158), mode="bilinear", align_corners=False
    )[0]
    # One unit in the last place where PyTorch's build has no fused multiply-add.
    np.testing.assert_allclose(resize(values, 158), expected.numpy(), rtol=0, atol=1e-5)
    assert np.mean(resize(values, 158) == expected.numpy()) > 0.99


def test_repeats_and_leaks_by_name(folder):
    fixed, reference = corpus_of(folder), corpus_of(folder, **REFERENCE)
    facts = fixed.facts()
    assert facts["repeated_rows"] == 2
    (leaking,) = facts["places_in_two_splits"]
    splits = read_splits(folder / "stratified_train_val_test_split.csv")
    first, second = (split for split in ("train", "val", "test") if splits[leaking][split])
    every = {"splits": ["train", "val", "test"]}
    found = corpus_of(folder, **every).items()[0]
    assert leaking in found[first]
    assert leaking not in found.get(second, [])
    found = corpus_of(folder, **every, **REFERENCE).items()[0]
    assert leaking in found[first]
    assert leaking in found[second]
    (repeated,) = (place for place, count in splits.items() if max(count.values()) > 1)
    once, twice = (corpus.read(repeated, "train")[5].images["s2"] for corpus in (fixed, reference))
    np.testing.assert_array_equal(twice.values, np.repeat(once.values, 2, axis=0))
    np.testing.assert_array_equal(twice.dates, np.repeat(once.dates, 2))


def test_shares_of_places_or_revisits(folder):
    everything = corpus_of(folder).items()[0]["train"]
    places = corpus_of(folder, share=0.5).items()[0]["train"]
    assert len(places) == round(len(everything) / 2)
    assert places == corpus_of(folder, share=0.5).items()[0]["train"]
    revisits = corpus_of(folder, share=0.7, share_of="revisits")

    def count(corpus):
        return sum(len(rows) for rows in corpus.places["train"].values())

    assert count(revisits) == round(0.7 * count(corpus_of(folder)))


def test_the_missing_revisit_is_listed_and_the_place_kept(folder):
    corpus = corpus_of(folder)
    items, rejected = corpus.items()
    (error,) = rejected
    assert error.file.endswith("-3-L2A_data.tiff")
    place = error.file.split("/")[-3]
    split = next(split for split, places in items.items() if place in places)
    assert len(corpus.read(place, split)[0].images["s2"].dates) == 2


def test_clouds_and_missing_frames(copy):
    corpus = corpus_of(copy, max_cloud=-1)
    place = corpus.items()[0]["train"][0]
    with pytest.raises(BadItem, match="no Sentinel-2 revisit with at most -1 % clouds"):
        corpus.read(place, "train")


def rewrite(path, change):
    with rasterio.open(path) as file:
        values, profile = file.read(), file.profile
    values = change(values)
    shape = {"count": values.shape[0], "height": values.shape[1], "width": values.shape[2]}
    with rasterio.open(path, "w", **{**profile, **shape, "dtype": values.dtype}) as file:
        file.write(values)


def with_nan(values):
    values[3, 2, 1] = np.nan
    return values


@pytest.mark.parametrize(
    ("kind", "change", "cause"),
    [
        ("spot", None, "cannot be read as a raster"),
        ("spot", lambda x: x[:, :200], "200x214 pixels, too few for 4 x 4 parts of 53"),
        ("s2", None, "cannot be read as a raster"),
        ("s2", lambda x: x[:11], "11 bands of float32, expected 12 of float32"),
        ("s2", lambda x: (x * 10000).astype(np.uint16), "12 bands of uint16, expected 12 of float32"),
        ("s2", with_nan, "NaN or infinite"),
    ],
)
def test_damaged_rasters_are_named(copy, kind, change, cause):
    corpus = corpus_of(copy)
    place = corpus.items()[0]["train"][0]
    path = copy / (
        f"hr_dataset/{place}/{place}_ps.tiff"
        if kind == "spot"
        else f"lr_dataset/{place}/L2A/{place}-1-L2A_data.tiff"
    )
    if change is None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        rewrite(path, change)
    with pytest.raises(BadItem, match=rf"{path.name}: .*{cause}"):
        corpus.read(place, "train")


@pytest.mark.parametrize(("pixels", "cause"), [(500, "does not touch"), (3, "does not cover"), (1, None)])
def test_a_revisit_of_other_ground_is_rejected(copy, pixels, cause):
    corpus = corpus_of(copy)
    place = corpus.items()[0]["train"][0]
    last = sorted((copy / f"lr_dataset/{place}/L2A").glob("*-L2A_data.tiff"))[-1]
    with rasterio.open(last, "r+") as file:
        file.transform = file.transform @ file.transform.translation(pixels, 0)
    if cause is None:
        assert corpus.read(place, "train")
    else:
        with pytest.raises(BadItem, match=rf"-L2A_data.tiff: {cause} the ground of"):
            corpus.read(place, "train")


def test_all_nodata_is_named(copy):
    corpus = corpus_of(copy)
    place = corpus.items()[0]["train"][0]
    for path in (copy / f"lr_dataset/{place}/L2A").glob("*-L2A_data.tiff"):
        rewrite(path, np.zeros_like)
    with pytest.raises(BadItem, match="no valid pixel at all"):
        corpus.read(place, "train")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "metadata.csv",
            lambda text: text.replace("lowres_date", "date", 1),
            "no column lowres_date; it has",
        ),
        ("metadata.csv", lambda text: text.replace(",1,", ",one,", 1), r"metadata\.csv, line 2"),
        (
            "stratified_train_val_test_split.csv",
            lambda text: text.replace("tile", "place", 1),
            r"no column tile; it has",
        ),
        (
            "stratified_train_val_test_split.csv",
            lambda text: text.replace(",ASM", ",../ASM", 1),
            "is no place name",
        ),
    ],
)
def test_wrong_tables_are_told(copy, file, change, message):
    path = copy / file
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=message):
        corpus_of(copy)


def test_dates_of_other_forms(copy):
    path = copy / "metadata.csv"
    row = rows_of(copy)[0]
    text = path.read_text()
    path.write_text(text.replace(row["lowres_date"], row["lowres_date"] + "T10:30:00"))
    assert corpus_of(copy).read(row["place"], "train")[0].images["s2"].dates.min() > 0
    path.write_text(text.replace(row["lowres_date"], "2019-13-01", 1))
    with pytest.raises(BadItem, match="date '2019-13-01' is not of the form"):
        corpus_of(copy).read(row["place"], "train")


def test_wrong_options_are_told(folder, tmp_path):
    with pytest.raises(UserError, match=r"metadata\.csv: no such file"):
        corpus_of(tmp_path)
    for option, message in (
        ({"repeats": "twice"}, "repeats is 'twice', expected fixed or reference"),
        ({"share_of": "rows"}, "share_of is 'rows', expected places or revisits"),
        ({"modalities": ["s1"]}, "no modality 's1'"),
        ({"splits": ["trian"]}, "no split 'trian'.*train"),
    ):
        with pytest.raises(UserError, match=message):
            corpus_of(folder, **option)


def test_real_split_list(real_data):
    listed = read_splits(real_data / "index_files/worldstrat/stratified_train_val_test_split.csv")
    assert len(listed) == 3890
    assert sum(count.total() - 1 for count in listed.values()) == 38
    assert sum(len(count) > 1 for count in listed.values()) == 11
    assert listed["Amnesty POI-10-1-2"] == {"train": 1, "test": 1}
