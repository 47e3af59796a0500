"""TreeSatAI-TS (HDF5) and WorldCereal (NetCDF) read from small files of their layout, and from the real ones."""

import datetime

import h5py
import numpy as np
import pytest
import rasterio

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem, check_sample, load_description, open_corpus

# -- TreeSatAI-TS ----------------------------------------------------------------------------------------------------


def write_treesatai(root, place="Abies_alba_1_1005_WEFL_NLF", dates=6):
    rng = np.random.default_rng(0)
    (root / "aerial").mkdir(parents=True, exist_ok=True)
    (root / "sentinel-ts").mkdir(exist_ok=True)
    options = {
        "driver": "GTiff",
        "width": 304,
        "height": 304,
        "count": 4,
        "dtype": "uint8",
        "crs": "EPSG:25832",
    }
    transform = rasterio.Affine(0.2, 0, 565_000, 0, -0.2, 5_770_000)
    with rasterio.open(root / "aerial" / f"{place}.tif", "w", transform=transform, **options) as file:
        file.write(rng.integers(0, 256, (4, 304, 304)).astype(np.uint8))
    masks = np.zeros((dates, 10, 6, 6), np.float32)
    masks[1, 0] = 90  # snow
    masks[2, 1] = 90  # cloud
    masks[3, 5] = 90  # a channel that means nothing
    times = [f"202001{day:02d}T102421" for day in range(1, dates + 1)]
    with h5py.File(root / "sentinel-ts" / f"{place}_2020.h5", "w") as file:
        file["sen-2-data"] = rng.integers(1, 9000, (dates, 10, 6, 6)).astype(np.float32)
        file["sen-2-masks"] = masks
        file["sen-2-products"] = [f"S2A_MSIL2A_{time}_N0213_R065_T32UNC_{time}" for time in times]
        for orbit in ("asc", "des"):
            power = rng.random((dates, 2, 6, 6)).astype(np.float32)
            power[0, 0, 0, 0] = np.nan
            power[0, :, 0, 1] = 0
            file[f"sen-1-{orbit}-data"] = power
            file[f"sen-1-{orbit}-products"] = [
                f"S1A_IW_GRDH_1SDV_{time}_{time}_030639_0382D5_360A" for time in times
            ]


@pytest.fixture
def treesatai(tmp_path):
    write_treesatai(tmp_path)
    (tmp_path / "labels.csv").write_text(
        "aerial_name,sen_name,aerial_date\nAbies_alba_1_1005_WEFL_NLF.tif,x,20140701\n"
    )
    return tmp_path


def only(corpus, split="train"):
    (item,) = corpus.items()[0][split]
    (sample,) = corpus.read(item, split)
    check_sample(sample, corpus.modalities, sample.id)
    return sample


def test_treesatai_values_and_dates(treesatai):
    sample = only(open_corpus(load_description("treesatai"), treesatai))
    with rasterio.open(next((treesatai / "aerial").iterdir())) as file:
        np.testing.assert_array_equal(sample.images["aerial"].values[0], file.read())
    assert sample.images["aerial"].dates.tolist() == [182]
    with h5py.File(next((treesatai / "sentinel-ts").iterdir())) as file:
        np.testing.assert_array_equal(sample.images["s2"].values, file["sen-2-data"][()][[0, 3, 4, 5]])
        power = file["sen-1-asc-data"][()]
    assert sample.images["s2"].dates.tolist() == [1, 4, 5, 6]
    image = sample.images["s1_asc"]
    assert not image.valid[0, 0, :2].any()
    assert image.valid.sum() == 6 * 36 - 2
    np.testing.assert_array_equal(image.values, np.nan_to_num(power))
    assert sample.location == pytest.approx((9.95, 52.08), abs=0.01)


def change_series(root, change):
    with h5py.File(next((root / "sentinel-ts").iterdir()), "r+") as file:
        change(file)


def replace(key, values):
    def change(file):
        values_now = values(file[key][()]) if callable(values) else values
        del file[key]
        file[key] = values_now

    return change


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda file: file.pop("sen-2-data"), r"no dataset 'sen-2-data'; it has sen-1-asc-data"),
        (
            replace("sen-2-data", lambda x: x[:, :9]),
            r"sen-2-data has shape \(6, 9, 6, 6\), expected any x 10 x 6 x 6",
        ),
        (replace("sen-2-products", lambda x: x[:5]), r"6 frames but 5 products"),
        (replace("sen-1-asc-products", lambda x: [b"S1A_nothing"] * 6), r"holds no date"),
        (replace("sen-1-asc-products", lambda x: [b"S1A_20201301T000000_x"] * 6), r"date '20201301' is not"),
        (replace("sen-2-masks", lambda x: x + 90), r"none of its 6 dates is left after the snow and cloud"),
        (replace("sen-2-data", lambda x: x * np.nan), r"NaN or infinite"),
        (replace("sen-1-des-data", lambda x: x * 0), r"no valid pixel at all"),
    ],
)
def test_treesatai_damage_is_named(treesatai, change, cause):
    change_series(treesatai, change)
    corpus = open_corpus(load_description("treesatai"), treesatai)
    (item,) = corpus.items()[0]["train"]
    with pytest.raises(BadItem, match=rf"_2020\.h5.*{cause}"):
        corpus.read(item, "train")


def test_treesatai_truncated_and_missing(treesatai):
    path = next((treesatai / "sentinel-ts").iterdir())
    path.write_bytes(path.read_bytes()[:3000])
    corpus = open_corpus(load_description("treesatai"), treesatai)
    with pytest.raises(BadItem, match="cannot be opened as HDF5, truncated"):
        corpus.read(corpus.items()[0]["train"][0], "train")
    path.unlink()
    items, rejected = open_corpus(load_description("treesatai"), treesatai).items()
    assert items == {}
    assert "has no sentinel-ts" in str(rejected[0])
    with pytest.raises(UserError, match=r"no modality 's1'.*s1_asc"):
        open_corpus({**load_description("treesatai"), "modalities": ["s1"]}, treesatai)


def test_treesatai_real(real_data):
    corpus = open_corpus(load_description("treesatai"), real_data / "treesatai_ts")
    items, rejected = corpus.items()
    assert not rejected
    assert sum(map(len, items.values())) == 7
    for split, places in items.items():
        for place in places:
            (sample,) = corpus.read(place, split)
            check_sample(sample, corpus.modalities, place)


# -- WorldCereal -----------------------------------------------------------------------------------------------------


def write_worldcereal(root, place="0000A", dates=5):
    rng = np.random.default_rng(1)
    folder = root / place
    folder.mkdir(parents=True)
    stamps = np.arange(dates) * 86_400 * 5
    classes = np.full((dates, 32, 32), 4, np.uint8)
    classes[1] = 9
    classes[2, :20] = 11
    grids = {
        "S2_L2A_10m": (("B02", "B03", "B04", "B08"), 64, np.uint16),
        "S2_L2A_20m": (("B05", "B06", "B07", "B8A", "B11", "B12"), 32, np.uint16),
        "S1_GRD-ASCENDING_20m": (("VV", "VH"), 32, np.int32),
    }
    for name, (bands, size, dtype) in grids.items():
        with h5py.File(folder / f"{name}_{place}_32631_2018.nc", "w") as file:
            for band in bands:
                file[band] = rng.integers(1, 9000, (dates, size, size)).astype(dtype)
            file["timestamp"] = stamps
            file["timestamp"].attrs["units"] = "seconds since 2018-12-25 10:50:22"
            file.attrs["centroid"], file.attrs["epsg"] = np.array([501_685.0, 5_629_364.0]), "32631"
            if name == "S2_L2A_20m":
                file["SCL"] = classes
    return folder


def change_file(folder, start, change):
    with h5py.File(next(folder.glob(f"{start}*")), "r+") as file:
        change(file)


def test_worldcereal_values_and_dates(tmp_path):
    folder = write_worldcereal(tmp_path)
    sample = only(open_corpus(load_description("worldcereal"), tmp_path))
    with h5py.File(next(folder.glob("S2_L2A_10m*"))) as file:
        np.testing.assert_array_equal(sample.images["s2_10m"].values[:, 3], file["B08"][()][[0, 3, 4]])
    with h5py.File(next(folder.glob("S2_L2A_20m*"))) as file:
        np.testing.assert_array_equal(sample.images["s2_20m"].values[:, 4], file["B11"][()][[0, 3, 4]])
    with h5py.File(next(folder.glob("S1*"))) as file:
        np.testing.assert_array_equal(sample.images["s1"].values[:, 1], file["VH"][()])
    start = datetime.date(2018, 12, 25)
    days = [(start + datetime.timedelta(days=5 * n)).timetuple().tm_yday for n in range(5)]
    assert days[2:] == [4, 9, 14]
    assert sample.images["s1"].dates.tolist() == days
    assert sample.images["s2_10m"].dates.tolist() == [days[0], days[3], days[4]]
    assert sample.location == pytest.approx((3.02, 50.81), abs=0.02)


@pytest.mark.parametrize(
    ("start", "change", "cause"),
    [
        ("S2_L2A_10m", lambda file: file.pop("B08"), r"no dataset 'B08'; it has B02"),
        ("S2_L2A_20m", lambda file: file.pop("SCL"), r"no dataset 'SCL'"),
        ("S2_L2A_20m", replace("SCL", lambda x: x * 0 + 11), r"none of its 5 dates is left"),
        (
            "S2_L2A_10m",
            replace("B04", lambda x: x[:, :50]),
            r"B04 has shape \(5, 50, 64\), expected 5 x 64 x 64",
        ),
        (
            "S1",
            lambda file: file["timestamp"].attrs.update(units="fortnights"),
            r"units 'fortnights', expected such",
        ),
        ("S1", lambda file: file["timestamp"].attrs.update(units="days since 2018-13-25"), r"out of range"),
    ],
)
def test_worldcereal_damage_is_named(tmp_path, start, change, cause):
    folder = write_worldcereal(tmp_path)
    change_file(folder, start, change)
    corpus = open_corpus(load_description("worldcereal"), tmp_path)
    with pytest.raises(BadItem, match=rf"{start}.*{cause}"):
        corpus.read("0000A", "train")


def test_worldcereal_dates_must_agree(tmp_path):
    folder = write_worldcereal(tmp_path)
    change_file(folder, "S2_L2A_10m", replace("timestamp", lambda x: x + 86_400))
    change_file(
        folder,
        "S2_L2A_10m",
        lambda file: file["timestamp"].attrs.update(units="seconds since 2018-12-25 10:50:22"),
    )
    corpus = open_corpus(load_description("worldcereal"), tmp_path)
    with pytest.raises(BadItem, match="differ from the 5 of the scene classes"):
        corpus.read("0000A", "train")


def test_worldcereal_missing_files_are_listed(tmp_path):
    folder = write_worldcereal(tmp_path)
    next(folder.glob("S1*")).unlink()
    items, rejected = open_corpus(load_description("worldcereal"), tmp_path).items()
    assert items == {}
    assert str(rejected[0]).endswith("0000A: expected exactly one file S1_GRD-ASCENDING_20m_*.nc")


def test_worldcereal_real(real_data):
    corpus = open_corpus(load_description("worldcereal"), real_data / "worldcereal")
    items, rejected = corpus.items()
    assert not rejected
    for place in items["train"]:
        (sample,) = corpus.read(place, "train")
        check_sample(sample, corpus.modalities, place)
        assert len(sample.images["s2_10m"].dates) == len(sample.images["s2_20m"].dates) > 20
