"""FLAIR-HUB read from its original layout, in both of its variants; wrong files are named."""

import csv
import json
import shutil
import sqlite3

import numpy as np
import pytest
import rasterio

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem, check_sample, clear_dates, load_description, open_corpus
from ramen_jax.corpora.flairhub import DateTable, PatchList
from ramen_jax.earth.layouts import write_flairhub

FOLDERS = {
    "aerial": ("AERIAL_RGBI", 4),
    "dem": ("DEM_ELEV", 2),
    "s2": ("SENTINEL2_TS", 10),
    "s1_des": ("SENTINEL1-DESC_TS", 2),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    write_flairhub(root, 3, seed=1, variant="published", max_dates=9, modalities=list(FOLDERS))
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The loader's variant with the two small modalities only."""
    root = tmp_path_factory.mktemp("loader")
    write_flairhub(root, 4, seed=1, variant="loader", max_dates=6, modalities=["s2", "s1_des"])
    return root


@pytest.fixture
def copy(small, tmp_path):
    shutil.copytree(small, tmp_path / "copy")
    return tmp_path / "copy"


def small_corpus(root, **options):
    return open_corpus({**load_description("flairhub"), "modalities": ["s2", "s1_des"], **options}, root)


def raster(root, patch, folder):
    domain, roi, place = patch.split("_")
    with rasterio.open(root / f"{domain}_{folder}" / roi / f"{domain}_{folder}_{roi}_{place}.tif") as file:
        return file.read()


def first(corpus, split="train"):
    return corpus.items()[0][split][0]


def test_values_are_the_source_pixels(published):
    corpus = open_corpus(load_description("flairhub"), published)
    items, rejected = corpus.items()
    assert not rejected
    assert [len(items[split]) for split in ("train", "val")] == [1, 1]
    for split, patches in items.items():
        (sample,) = corpus.read(patches[0], split)
        check_sample(sample, corpus.modalities, sample.id)
        assert list(sample.images) == list(FOLDERS)
        for name in ("aerial", "dem"):
            expected = raster(published, patches[0], FOLDERS[name][0])
            assert sample.images[name].values.dtype == expected.dtype
            np.testing.assert_array_equal(sample.images[name].values[0], expected)
        stack = raster(published, patches[0], "SENTINEL1-DESC_TS")
        np.testing.assert_array_equal(sample.images["s1_des"].values.reshape(stack.shape), stack)
        # Sentinel-2: each kept date, found again in the stack by the filter written out pixel by pixel.
        stack = raster(published, patches[0], "SENTINEL2_TS").reshape(-1, 10, 10, 10)
        masks = raster(published, patches[0], "SENTINEL2_MSK-SC").reshape(-1, 2, 10, 10)
        clear = [n for n, mask in enumerate(masks) if (mask.max(axis=0) <= 1).sum() >= 95]
        assert 0 < len(clear) < len(stack)
        np.testing.assert_array_equal(sample.images["s2"].values, stack[clear])
        assert sample.location == pytest.approx((2, 47), abs=6)


def test_dates_follow_the_stack(small):
    corpus = small_corpus(small)
    patch = first(corpus)
    (sample,) = corpus.read(patch, "train")
    path = small / "data/GLOBAL_ALL_MTD/GLOBAL_SENTINEL1-DESC_TS_MTD_DATES.gpkg"
    with sqlite3.connect(path) as file:
        (text,) = file.execute(
            f'SELECT acquisition_dates FROM "{path.stem}" WHERE patch_id = ?', (patch,)
        ).fetchone()
    days = [np.datetime64(f"{d[:4]}-{d[4:6]}-{d[6:]}") for d in json.loads(text).values()]
    expected = [int((day - day.astype("datetime64[Y]")).astype(int)) + 1 for day in days]
    assert sample.images["s1_des"].dates.tolist() == expected


def test_both_variants_give_the_same_samples(small, tmp_path):
    root = tmp_path / "published"
    shutil.copytree(small, root)
    (root / "csv").mkdir()
    shutil.move(root / "data/GLOBAL_ALL_MTD", root / "GLOBAL_ALL_MTD")
    for path in list((root / "GLOBAL_ALL_MTD").iterdir()):
        path.rename(path.with_name(path.name.replace("_TS_MTD", "_MTD")))
    for name, published in (("train", "TRAIN"), ("val", "VALID"), ("test", "TEST")):
        path = root / "csv" / f"FLAIR-HUB_TOY-DATASET_{published}.csv"
        path.write_text((root / f"data/{name}.csv").read_text().replace(";", ","))
        (root / f"data/{name}.csv").unlink()
    loader, published = small_corpus(small), small_corpus(root)
    assert published.lists["val"].path.name == "FLAIR-HUB_TOY-DATASET_VALID.csv"
    assert loader.items() == published.items()
    patch = first(loader)
    for name, image in loader.read(patch, "train")[0].images.items():
        other = published.read(patch, "train")[0].images[name]
        np.testing.assert_array_equal(image.values, other.values)
        np.testing.assert_array_equal(image.dates, other.dates)


def test_real_toy_lists(real_data):
    path = real_data / "index_files/flair_hub/FLAIR-HUB_TOY-DATASET_TRAIN.csv"
    listed = PatchList(path)
    with open(path, newline="") as file:
        expected = {row["patch_id"]: row for row in csv.DictReader(file)}
    assert {patch: listed.row(patch) for patch in listed.lines} == expected
    assert len(expected) == 150


def test_clear_dates_rule():
    snow, cloud = np.zeros((4, 10, 10), bool), np.zeros((4, 10, 10), bool)
    cloud[0, 0, :5] = True  # exactly 5 %
    cloud[1, 0, :6] = True
    snow[2, 0, :3] = True
    cloud[2, 1, :3] = True  # 3 % of each is 6 % together
    assert clear_dates(snow, cloud, 0.05).tolist() == [True, False, False, True]
    cloud[:] = True
    snow[3] = True
    assert clear_dates(snow, cloud, 0.05).tolist() == [True, True, True, False]
    snow[:] = True
    assert not clear_dates(snow, cloud, 0.05).any()


def rewrite(path, change):
    with rasterio.open(path) as file:
        values, profile = file.read(), file.profile
    values = change(values)
    with rasterio.open(path, "w", **{**profile, "count": len(values), "dtype": values.dtype}) as file:
        file.write(values)


def file_of(root, patch, folder):
    domain, roi, place = patch.split("_")
    return root / f"{domain}_{folder}" / roi / f"{domain}_{folder}_{roi}_{place}.tif"


def set_dates(root, modality, patch, change):
    path = root / f"data/GLOBAL_ALL_MTD/GLOBAL_{modality}_MTD_DATES.gpkg"
    with sqlite3.connect(path) as file:
        query = f'FROM "{path.stem}" WHERE patch_id = ?'
        (text,) = file.execute(f"SELECT acquisition_dates {query}", (patch,)).fetchone()
        # The triggers of a GeoPackage call functions that plain SQLite lacks.
        for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            file.execute(f'DROP TRIGGER "{name}"')
        if (changed := change(text)) is None:
            file.execute(f"DELETE {query}", (patch,))
        else:
            file.execute(
                f'UPDATE "{path.stem}" SET acquisition_dates = ? WHERE patch_id = ?', (changed, patch)
            )


def with_nan(values):
    values[0, 0, 0] = np.nan
    return values


@pytest.mark.parametrize(
    ("folder", "change", "cause"),
    [
        ("SENTINEL2_TS", None, r"cannot be read as a raster"),
        ("SENTINEL2_TS", lambda x: x[:-1], r"bands, expected a multiple of 10"),
        ("SENTINEL2_TS", lambda x: x[:-10], r"dates in the raster, but \d+ for patch"),
        ("SENTINEL2_MSK-SC", lambda x: x[:-2], r"dates in the mask, but"),
        ("SENTINEL2_MSK-SC", lambda x: x + 100, r"none of its \d+ dates is left after the snow and cloud"),
        ("SENTINEL1-DESC_TS", with_nan, r"1 NaN or infinite pixels"),
        ("SENTINEL1-DESC_TS", lambda x: x[:3], r"3 bands, expected a multiple of 2"),
    ],
)
def test_damaged_rasters_are_named(copy, folder, change, cause):
    corpus = small_corpus(copy)
    patch = first(corpus)
    path = file_of(copy, patch, folder)
    if change is None:
        path.write_bytes(path.read_bytes()[:-300])
    else:
        rewrite(path, change)
    with pytest.raises(BadItem, match=rf"{folder.split('_')[0]}_.*{cause}"):
        corpus.read(patch, "train")


@pytest.mark.parametrize("folder", ["SENTINEL1-DESC_TS", "SENTINEL2_MSK-SC"])
@pytest.mark.parametrize(
    ("metres", "crs", "cause"),
    [
        (5000, None, "does not touch the ground of .*: it lies 5000 m away"),
        (35, None, "does not cover the ground of .* a corner is 35 m"),
        (0, "EPSG:32631", "ground of .*one is in EPSG:32631, the other in EPSG:2154"),
        (15, None, None),
    ],
)
def test_what_lies_elsewhere_is_rejected(copy, folder, metres, crs, cause):
    """Mutants: the place of a file, or of the mask, is not looked at; the finer pixel decides what is too far."""
    corpus = small_corpus(copy)
    patch = first(corpus)
    with rasterio.open(file_of(copy, patch, folder), "r+") as file:
        file.transform = file.transform.translation(metres, 0) @ file.transform
        file.crs = crs or file.crs
    if cause is None:
        assert corpus.read(patch, "train")
    else:
        with pytest.raises(BadItem, match=rf"{folder.split('_')[0]}_.*{cause}"):
            corpus.read(patch, "train")


def test_other_dtypes_and_sizes_are_named(copy):
    corpus = small_corpus(copy)
    patch = first(corpus)
    rewrite(file_of(copy, patch, "SENTINEL2_TS"), lambda x: x.astype(np.float32))
    (sample,) = corpus.read(patch, "train")
    with pytest.raises(BadItem, match=r"\(s2\): dtype float32, expected uint16"):
        check_sample(sample, corpus.modalities, sample.id)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda text: None, "no dates for patch"),
        (lambda text: text.replace('": "20', '": "90'), "out of range, expected a year"),
        (lambda text: text.replace('": "2021', '": "202199'), "is not of the form"),
        (lambda text: text[:-5], "no JSON object of numbered dates"),
        (lambda text: text.replace('"2":', '"7":'), "numbered"),
    ],
)
def test_wrong_dates_are_named(copy, change, cause):
    patch = first(small_corpus(copy))
    set_dates(copy, "SENTINEL1-DESC_TS", patch, change)
    with pytest.raises(BadItem, match=rf"GLOBAL_SENTINEL1-DESC_TS_MTD_DATES\.gpkg.*{cause}"):
        small_corpus(copy).read(patch, "train")


def test_tolerant_dates(tmp_path):
    path = tmp_path / "dates.gpkg"
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE notes (remark TEXT)")
        file.execute("CREATE TABLE anything (zone_id TEXT, acquisition_dates TEXT)")
        file.execute('INSERT INTO anything VALUES (\'D1-2020_A\', \'{"2": 20200305, "1": "2020-02-01"}\')')
    assert DateTable(path).days("D1-2020_A_1-1") == [32, 65]


def change_list(root, change):
    path = root / "data/train.csv"
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    change(rows[0])
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    return rows[0]["patch_id"]


@pytest.mark.parametrize(
    ("cell", "cause"),
    [
        ("../nowhere.tif", r"nowhere\.tif: no such file, but train\.csv names it"),
        ("../../../outside.tif", r"leads outside the dataset"),
        ("/etc/hostname", r"leads outside the dataset"),
        ("", r"has no SENTINEL2_TS"),
    ],
)
def test_lists_that_name_no_file(copy, cell, cause):
    patch = change_list(copy, lambda row: row.update({"SENTINEL2_TS": cell}))
    with pytest.raises(BadItem, match=cause):
        small_corpus(copy).read(patch, "train")


def test_a_patch_of_two_splits_is_used_once(copy):
    (copy / "data/val.csv").write_text((copy / "data/train.csv").read_text())
    items, rejected = small_corpus(copy).items()
    assert items["val"] == []
    assert len(rejected) == len(items["train"])
    assert "already in train" in str(rejected[0])


def test_wrong_folders_are_told(copy):
    with pytest.raises(UserError, match=r"no modality 's3'.*s2"):
        small_corpus(copy, modalities=["s3"])
    with pytest.raises(UserError, match=r"unknown option 'max_clouds'.*max_cloud"):
        small_corpus(copy, max_clouds=3)
    table = copy / "data/GLOBAL_ALL_MTD/GLOBAL_SENTINEL2_TS_MTD_DATES.gpkg"
    content = table.read_bytes()
    table.write_bytes(b"not a database")
    with pytest.raises(UserError, match=r"cannot be read as a GeoPackage"):
        small_corpus(copy)
    table.unlink()
    with pytest.raises(
        UserError, match=r"no acquisition dates for s2, expected .*GLOBAL_SENTINEL2_MTD_DATES"
    ):
        small_corpus(copy)
    table.write_bytes(content)
    (copy / "csv").mkdir()
    shutil.copy(copy / "data/train.csv", copy / "csv/train.csv")
    with pytest.raises(UserError, match="several patch lists for split train"):
        small_corpus(copy)
    shutil.rmtree(copy / "csv")
    (copy / "data/train.csv").write_text("patch,file\n")
    with pytest.raises(UserError, match="no column patch_id; it has patch, file"):
        small_corpus(copy)
    (copy / "data/train.csv").unlink()
    with pytest.raises(
        UserError, match=r"no patch list for split train, expected train\.csv or FLAIR-HUB_TRAIN"
    ):
        small_corpus(copy)
