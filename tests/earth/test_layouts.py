"""The original layouts: names, columns, fields, keys and dtypes are those of the published files."""

import csv
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio

from ramen_jax.console import UserError
from ramen_jax.earth import layouts

# Facts of the published files.
LIST_HEADER = (
    "patch_id;AERIAL-RLT_PAN;AERIAL_LABEL-COSIA;AERIAL_RGBI;ALL_LABEL-LPIS;DEM_ELEV;"
    "SENTINEL1-ASC_TS;SENTINEL1-DESC_TS;SENTINEL2_MSK-SC;SENTINEL2_TS;SPOT_RGBI"
)
RASTERS = {  # folder part: bands (per date), dtype, pixels
    "AERIAL_RGBI": (4, "uint8", 512),
    "AERIAL-RLT_PAN": (1, "uint8", 256),
    "DEM_ELEV": (2, "float32", 512),
    "SPOT_RGBI": (4, "uint16", 64),
    "SENTINEL2_TS": (10, "uint16", 10),
    "SENTINEL2_MSK-SC": (2, "uint16", 10),
    "SENTINEL1-ASC_TS": (2, "float32", 10),
    "SENTINEL1-DESC_TS": (2, "float32", 10),
    "AERIAL_LABEL-COSIA": (1, "uint8", 512),
    "ALL_LABEL-LPIS": (3, "uint8", 512),
}
H5_KEYS = {
    "sentinel2": ((13, 64, 64), "uint16"),
    "sentinel2_cloudmask": ((1, 64, 64), "uint16"),
    "sentinel2_cloudprod": ((1, 64, 64), "uint16"),
    "sentinel2_scl": ((1, 64, 64), "uint8"),
    "sentinel1": ((8, 64, 64), "float32"),
    "aster": ((2, 64, 64), "int16"),
    "era5": ((12,), "float32"),
    "dynamic_world": ((1, 64, 64), "uint8"),
    "canopy_height_eth": ((2, 64, 64), "int8"),
    "esa_worldcover": ((1, 64, 64), "uint8"),
    "lat": ((2,), "float32"),
    "lon": ((2,), "float32"),
    "month": ((2,), "float32"),
    "biome": ((14,), "uint8"),
    "eco_region": ((846,), "uint16"),
}


@pytest.fixture(scope="module")
def flairhub(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("flairhub")
    layouts.write_flairhub(folder, 3, seed=1, max_dates=6)
    return folder


@pytest.fixture(scope="module")
def mmearth(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mmearth")
    layouts.write_mmearth(folder, 6)
    return folder


@pytest.fixture(scope="module")
def worldstrat(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("worldstrat")
    layouts.write_worldstrat(folder, 3, max_dates=3, pixels=130, l1c=True, quirks=True)
    return folder


def table(path: Path) -> tuple[list[str], list[tuple]]:
    connection = sqlite3.connect(path)
    try:
        cursor = connection.execute(f'SELECT * FROM "{path.stem}"')
        return [column[0] for column in cursor.description], cursor.fetchall()
    finally:
        connection.close()


def test_flairhub_rasters_and_lists(flairhub: Path) -> None:
    found = set()
    for split in ("TRAIN", "VALID", "TEST"):
        path = flairhub / "csv" / f"FLAIR-HUB_{split}.csv"
        lines = path.read_text().splitlines()
        assert lines[0] == LIST_HEADER
        for row in csv.DictReader(lines, delimiter=";"):
            domain, roi, position = row["patch_id"].split("_")
            for column, (bands, dtype, pixels) in RASTERS.items():
                dated = f"{domain.split('-')[0]}-195X" if column == "AERIAL-RLT_PAN" else domain
                assert row[column] == f"../{dated}_{column}/{roi}/{dated}_{column}_{roi}_{position}.tif"
                with rasterio.open(path.parent / row[column]) as file:
                    assert (file.dtypes[0], file.height, file.width) == (dtype, pixels, pixels)
                    assert file.count % bands == 0
                    assert file.crs.to_epsg() == 2154
                    assert file.transform.a * pixels == pytest.approx(102.4)
            found.add(split)
    assert found == {"TRAIN", "VALID", "TEST"}


def test_flairhub_dates_match_the_stacks(flairhub: Path) -> None:
    folder = flairhub / "GLOBAL_ALL_MTD"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [f"GLOBAL_{name}_MTD_DATES.gpkg" for name in ("AERIAL", "AERIAL-RLT", "SPOT", "SENTINEL2")]
        + [f"GLOBAL_SENTINEL1-{orbit}_MTD_DATES.gpkg" for orbit in ("ASC", "DESC")]
        + ["GLOBAL_ALL_MTD_SPLIT.gpkg"]
    )
    names, rows = table(folder / "GLOBAL_SENTINEL2_MTD_DATES.gpkg")
    assert names == ["fid", "geom", "patch_id", "acquisition_dates"]
    for _, geometry, patch, text in rows:
        assert geometry[:2] == b"GP"
        dates = json.loads(text)
        domain, roi, position = patch.split("_")
        raster = flairhub / f"{domain}_SENTINEL2_TS" / roi / f"{domain}_SENTINEL2_TS_{roi}_{position}.tif"
        with rasterio.open(raster) as file:
            assert list(dates) == [str(n + 1) for n in range(file.count // 10)]
            stack = file.read()
        assert list(dates.values()) == sorted(dates.values())
        # Date-major: within a date the near infrared (index 6) of land is far above its blue (index 0).
        assert (stack[6::10].mean((1, 2)) > 0.9 * stack[0::10].mean((1, 2))).all()
    names, rows = table(folder / "GLOBAL_AERIAL_MTD_DATES.gpkg")
    assert names[2:] == ["patch_id", "date"]
    assert all(len(row[3]) == 8 and row[3].isdigit() for row in rows)
    names, rows = table(folder / "GLOBAL_ALL_MTD_SPLIT.gpkg")
    assert {row[3] for row in rows} == {"train", "valid", "test"}


def test_flairhub_as_the_official_loader_opens_it(tmp_path: Path) -> None:
    patches = layouts.write_flairhub(tmp_path, 1, variant="loader", max_dates=2, modalities=["aerial", "s2"])
    data = tmp_path / "data"
    assert (data / "train.csv").read_text().startswith(LIST_HEADER)
    assert (data / "GLOBAL_ALL_MTD" / "GLOBAL_SENTINEL2_TS_MTD_DATES.gpkg").is_file()
    assert (data / "GLOBAL_ALL_MTD" / "GLOBAL_AERIAL_RGBI_MTD_DATES.gpkg").is_file()
    assert patches == ["D004-2021_AA-S1-1_1-1"]


def test_geopackage_is_one_for_gdal(flairhub: Path) -> None:
    pyogrio = pytest.importorskip("pyogrio", reason="reads GeoPackages with GDAL; not a dependency")
    path = flairhub / "GLOBAL_ALL_MTD" / "GLOBAL_SENTINEL1-DESC_MTD_DATES.gpkg"
    info = pyogrio.read_info(path)
    assert (info["crs"], info["geometry_type"]) == ("EPSG:2154", "Polygon")
    assert list(info["fields"]) == ["patch_id", "acquisition_dates"]


def test_mmearth_keys_shapes_and_dtypes(mmearth: Path) -> None:
    with h5py.File(mmearth / "data_1M_v001_64.h5") as file:
        assert set(file) == {*H5_KEYS, "metadata"}
        for key, (shape, dtype) in H5_KEYS.items():
            assert (file[key].shape, file[key].dtype) == ((6, *shape), dtype), key
            assert file[key].chunks == (1, *shape)
        assert [(name, kind.itemsize) for name, (kind, _) in file["metadata"].dtype.fields.items()] == [
            ("tile_id", 100),
            ("S2_type", 10),
        ]
        levels = [value.decode() for value in file["metadata"]["S2_type"]]
        for index, level in enumerate(levels):
            assert (level == "l2a") == (not file["sentinel2"][index, 10].any())
            assert (level == "l1c") == (file["sentinel2_scl"][index] == 255).all()
        assert np.isneginf(file["sentinel1"][:, [2, 3, 6, 7]]).all()
        assert (file["biome"][:].sum(1) == 1).all()
        np.testing.assert_allclose(np.square(file["lat"][:]).sum(1), 1, rtol=1e-5)
    info = json.loads((mmearth / "data_1M_v001_64_tile_info.json").read_text())
    assert list(info) == [str(index) for index in range(6)]
    assert [entry["S2_type"] for entry in info.values()] == levels
    assert info["0"]["BANDS"]["sentinel2"][7:9] == ["B8A", "B8"]
    stats = json.loads((mmearth / "data_1M_v001_64_band_stats.json").read_text())
    assert len(stats["sentinel2_l1c"]["mean"]) == 13
    assert np.isnan(stats["sentinel2_l2a"]["mean"][10])
    splits = json.loads((mmearth / "data_1M_v001_64_splits.json").read_text())
    assert splits == {"train": [0, 1, 2, 3, 4, 5], "val": [], "test": []}


def test_mmearth_agrees_with_the_shared_format_sample(mmearth: Path, real_data: Path) -> None:
    folder = real_data / "mmearth_format_SYNTHETIC"
    with (
        h5py.File(mmearth / "data_1M_v001_64.h5") as ours,
        h5py.File(folder / "data_1M_v001_64.h5") as theirs,
    ):
        assert set(ours) == set(theirs)
        for key in theirs:
            assert ours[key].shape[1:] == theirs[key].shape[1:], key
            # That sample holds `month` as int32 and the scene classes as uint16, unlike the published converter.
            if key not in ("metadata", "month", "sentinel2_scl"):
                assert ours[key].dtype == theirs[key].dtype, key
    ours_info = json.loads((mmearth / "data_1M_v001_64_tile_info.json").read_text())["0"]
    theirs_info = json.loads((folder / "data_1M_v001_64_tile_info.json").read_text())["0"]
    assert set(theirs_info) <= set(ours_info)
    assert set(theirs_info["BANDS"]) == set(ours_info["BANDS"])


def test_flairhub_lists_agree_with_the_real_toy_lists(flairhub: Path, real_data: Path) -> None:
    toy = (real_data / "index_files/flair_hub/FLAIR-HUB_TOY-DATASET_TRAIN.csv").read_text().splitlines()
    ours = (flairhub / "csv" / "FLAIR-HUB_TRAIN.csv").read_text().splitlines()
    assert ours[0] == toy[0].replace(",", ";")

    def pattern(line: str, separator: str) -> list[str]:
        patch, *cells = line.split(separator)
        domain, roi, position = patch.split("_")
        cells = [cell.replace(domain, "D-Y").replace(domain.split("-")[0], "D") for cell in cells]
        return [cell.replace(roi, "ROI").replace(f"_{position}.", "_P.") for cell in cells]

    assert pattern(ours[1], ";") == pattern(toy[1], ",")


def test_worldstrat_files(worldstrat: Path) -> None:
    with open(worldstrat / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:8] == [
        "",
        "n",
        "bounds",
        "lowres_date",
        "highres_date",
        "area",
        "cloud_cover",
        "delta",
    ]
    missing = []
    for row in rows:
        name = row[""]
        path = worldstrat / "lr_dataset" / name / "L2A" / f"{name}-{row['n']}-L2A_data.tiff"
        if not path.exists():
            missing.append(path)
            continue
        with rasterio.open(path) as file:
            assert (file.count, file.dtypes[0], file.crs.to_epsg()) == (12, "float32", 4326)
            assert file.transform.a > 0 > file.transform.e
            assert (file.height, file.width) in ((19, 21), (20, 21))
        with rasterio.open(
            worldstrat / "lr_dataset" / name / "L1C" / f"{name}-{row['n']}-L1C_data.tiff"
        ) as file:
            assert file.count == 13
        facts = json.loads((path.parent / f"{name}-{row['n']}.metadata").read_text())
        assert facts["delta"] == int(row["delta"])
    assert len(missing) == 1  # a quirk of the original, asked for
    names = {row[""] for row in rows}
    assert any(" " in name for name in names)
    for name in names:
        high = worldstrat / "hr_dataset" / name
        assert {path.name for path in high.iterdir()} == {
            f"{name}_{kind}" for kind in ("ps.tiff", "pan.tiff", "rgbn.tiff", "rgb.png")
        }
        with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
            file = rasterio.open(high / f"{name}_ps.tiff")
        assert (file.count, file.dtypes[0], file.shape) == (4, "uint16", (130, 130))
        assert file.crs.to_epsg() == 4326
        file.close()
    with open(worldstrat / "stratified_train_val_test_split.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["split"] for row in listed] == ["train", "val", "test", "train", "train"]
    assert all(int(row[""]) % 16 == 0 for row in listed)


def test_worldstrat_split_list_agrees_with_the_real_one(worldstrat: Path, real_data: Path) -> None:
    real = (real_data / "index_files/worldstrat/stratified_train_val_test_split.csv").read_text().splitlines()
    ours = (worldstrat / "stratified_train_val_test_split.csv").read_text().splitlines()
    assert ours[0] == real[0]
    assert all(line.count(",") == real[1].count(",") for line in ours)


def test_the_command(tmp_path: Path, repository: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ramen_jax.earth.layouts",
        "--corpus",
        "mmearth",
        "--places",
        "2",
    ]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "m")],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2 places of synthetic mmearth" in done.stdout
    again = subprocess.run(
        [*command, "--output", str(tmp_path / "m")],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 2
    assert "is not empty" in again.stderr
    assert "Traceback" not in again.stderr
    with pytest.raises(UserError, match="unknown variant 'loadr'"):
        layouts.write_flairhub(tmp_path / "f", 1, variant="loadr")
