"""xView2, Five-Billion-Pixels, Potsdam, BioMassters and Open-Canopy: samples are what was written, by each rule."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import rasterio

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem
from ramen_jax.evaluation.encoders import normalised
from ramen_jax.evaluation.pangaea.protocol import CORRECTED, PUBLISHED
from ramen_jax.evaluation.pangaea.tasks.reading import held_out, held_out_of_groups
from tests.evaluation.pangaea.small_files import edit, small


def read(path):
    with rasterio.open(path) as file:
        return file.read()


def wavelengths(task):
    return [band.wavelength_nm for band in task.modalities[0].sensor.bands]


# Made by scikit-learn 1.9.1: train_test_split(numpy.arange(n), test_size=0.1, random_state=23), of which these are the
# first five and the last of each part; the second with stratify=[f"event{(7 - i) % 4}" for i in range(n)], groups that
# appear from the last to the first and whose remainders tie.
SPLITS = {
    20: [[18, 2, 1, 4, 5, 14, 19], [2, 0, 10, 10]],
    540: [[486, 271, 531, 444, 172, 464, 40], [54, 226, 394, 117, 148, 19, 302]],
    541: [[486, 231, 422, 236, 479, 167, 40], [55, 441, 345, 117, 148, 19, 275]],
}
GROUPS = {
    100: [[90, 40, 13, 14, 47, 62, 75], [10, 4, 80, 6, 39, 57, 91]],
    1002: [[901, 37, 53, 591, 816, 389, 450], [101, 240, 574, 825, 937, 285, 855]],
}


@pytest.mark.parametrize("count", SPLITS)
def test_the_draw_of_burn_scars_is_that_of_scikit_learn(count):
    """(Mutants: the held-out numbers taken from the end; floor in the place of ceil.)"""
    parts = held_out(count, 0.1, 23)
    assert sorted(parts[0] + parts[1]) == list(range(count))
    assert [[len(part), *part[:5], part[-1]] for part in parts] == SPLITS[count]


@pytest.mark.parametrize("count", GROUPS)
def test_the_draw_of_xview2_is_that_of_scikit_learn(count):
    """(Mutants: groups in the order of their appearance; ties broken by the first; sets left sorted.)"""
    parts = held_out_of_groups([f"event{(7 - i) % 4}" for i in range(count)], 0.1, 23)
    assert sorted(parts[0] + parts[1]) == list(range(count))
    assert [[len(part), *part[:5], part[-1]] for part in parts] == GROUPS[count]


# -- xView2 ----------------------------------------------------------------------------------------------------------


def test_xview2_pairs_are_blue_green_red(layouts):
    """Statistics are of the benchmark's order of reading; only what the bands are called differs."""
    source = layouts("xview2")
    published, corrected = small("xview2", source), small("xview2", source, CORRECTED)
    place = published.split("test")[0]
    example = corrected.example(place, "test")
    folder, name = place.split("/")
    before, after = (
        read(source / folder / "images" / f"{name}_{when}_disaster.png") for when in ("pre", "post")
    )
    assert np.array_equal(example.sample.images["optical"].values, np.stack([before[::-1], after[::-1]]))
    assert np.array_equal(example.target, read(source / folder / "masks" / f"{name}_post_disaster.png")[0])
    assert set(np.unique(example.target)) == {0, 1, 2, 3, 4}
    assert wavelengths(published) == [665, 560, 490]
    assert wavelengths(corrected) == [480, 545, 660]
    assert published.modalities[0].sensor.mean == corrected.modalities[0].sensor.mean
    assert example.sample.images["optical"].dates.tolist() == [66, 286]
    assert published.example(place, "test").sample.images["optical"].dates.tolist() == [0, 0]


def test_xview2_places_with_damage_come_again_in_training(layouts):
    """(Mutants: copies in validation; the third copy for any damage; undamaged places repeated.)"""
    source = layouts("xview2")
    task = small("xview2", source)
    splits = task.items()[0]
    assert not any("#" in item for split in ("val", "test") for item in splits[split])
    places = dict.fromkeys(item.split("#")[0] for item in splits["train"])
    for place in places:
        folder, name = place.split("/")
        found = set(np.unique(read(source / folder / "masks" / f"{name}_post_disaster.png")))
        copies = [item for item in splits["train"] if item.split("#")[0] == place]
        assert len(copies) == 1 + bool(found & {2, 3, 4}) + bool(found & {2, 3})
    first, second = (task.example(item, "train") for item in splits["train"][:2])
    assert first.sample.id != second.sample.id  # each copy has its own crops
    assert np.array_equal(first.target, second.target)
    assert len(small("xview2", source, oversample=False).split("train")) == len(places)


def test_xview2_damage_decides_the_copies(copy):
    source = copy("xview2")
    wanted = {}
    for number, path in enumerate(sorted(source.glob("t*/masks/*_post_disaster.png"))):
        level = 1 + (number + 1) % 4
        edit(path, lambda values, level=level: np.full_like(values, level))
        place = f"{path.parts[-3]}/{path.name.removesuffix('_post_disaster.png')}"
        wanted[place] = {1: 1, 2: 3, 3: 3, 4: 2}[level]
    train = small("xview2", source).split("train")
    counts = {place: sum(item.split("#")[0] == place for item in train) for place in wanted}
    assert {place: count for place, count in counts.items() if count} == {
        place: wanted[place] for place, count in counts.items() if count
    }
    assert set(counts.values()) == {0, 1, 2, 3}  # none of those that validate or are tested


def test_xview2_without_masks_or_images(copy):
    source = copy("xview2")
    after = sorted((source / "test/images").glob("*_post_disaster.png"))[0]
    after.unlink()
    assert any(after.name in item.file for item in small("xview2", source).items()[1])
    shutil.rmtree(source / "tier3" / "masks")
    with pytest.raises(
        UserError, match=r"tier3.masks: no such folder; the benchmark's xView2_create_masks\.py"
    ):
        small("xview2", source).items()
    shutil.rmtree(source / "train" / "images")
    with pytest.raises(UserError, match=r"no file \*_pre_disaster\.png"):
        small("xview2", source).items()


def test_xview2_dates_that_cannot_be_read(copy):
    source = copy("xview2")
    for path in source.rglob("*.json"):
        path.write_text("{}")
    task = small("xview2", source, CORRECTED)
    with pytest.raises(BadItem, match=r"no metadata\.capture_date"):
        task.example(task.split("test")[0], "test")
    for path in source.rglob("*.json"):
        path.unlink()
    image = task.example(task.split("test")[0], "test").sample.images["optical"]
    assert image.dates.tolist() == [0, 0]


# -- Five-Billion-Pixels and Potsdam ---------------------------------------------------------------------------------


def test_five_billion_pixels_are_what_was_written(layouts):
    source = layouts("fivebillionpixels")
    task = small("fivebillionpixels", source, CORRECTED)
    assert task.ignore_index == 0
    assert wavelengths(task) == [830, 660, 555, 485]
    endings = set()
    for item in task.split("train"):
        name = item.removeprefix("train/")
        (label,) = (source / "train/labels").glob(f"{name}*.tif")
        endings.add(label.stem.removeprefix(name))
        example = task.example(item, "train")
        assert np.array_equal(
            example.sample.images["optical"].values[0], read(source / "train/images" / f"{name}.tif")
        )
        assert np.array_equal(example.target, read(label)[0])
        assert (example.target[0] == 0).all()
    assert endings == {"", "_24label"}


def test_a_folder_of_uncropped_scenes_is_told(copy):
    source = copy("fivebillionpixels")
    shutil.rmtree(source / "val" / "images")
    with pytest.raises(UserError, match=r"fivebillionpixels: no file \*\.tif in .*val.images"):
        small("fivebillionpixels", source).items()


def test_potsdam_colours_are_classes_and_others_are_ignored(layouts):
    source = layouts("potsdam")
    task = small("potsdam", source)
    example = task.example("train/2", "train")
    colours = read(source / "train/labels/2.png").transpose(1, 2, 0)
    for number, colour in enumerate(
        [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)]
    ):
        assert (example.target[(colours == colour).all(-1)] == number).all()
    assert (example.target[0, :3] == task.ignore_index).all()
    found = [np.unique(task.example(item, "train").target) for item in task.split("train")]
    assert set(np.concatenate(found)) == {0, 1, 2, 3, 4, 5}
    assert np.array_equal(example.sample.images["optical"].values[0], read(source / "train/images/2.png"))


def test_potsdam_without_test_tiles_tests_the_official_ones(copy):
    """The tiles that validate are the last orthophotos' ones, not neighbours of all others."""
    source = copy("potsdam")
    task = small("potsdam", source)
    splits, rejected = task.items()
    assert splits["train"] == [f"train/{i}" for i in range(9)]
    assert splits["val"] == ["train/9", "train/10"]  # in the order of numbers, not of texts
    assert splits["test"] == ["val/0"]
    assert "those of val are tested, the last 2 of train validate" in rejected[0].cause
    for part in ("images", "labels"):
        shutil.copyfile(source / "train" / part / "0.png", source / "test" / part / "7.png")
    assert small("potsdam", source).items()[0]["test"] == ["test/7"]
    assert small("potsdam", source).items()[0]["val"] == ["val/0"]


def test_potsdam_labels_of_another_form(copy):
    source = copy("potsdam")
    path = source / "train/labels/0.png"
    edit(path, lambda values: np.full_like(values, 7))
    with pytest.raises(BadItem, match="no pixel has the colour of a class"):
        small("potsdam", source).example("train/0", "train")
    profile = {"driver": "PNG", "count": 1, "height": 36, "width": 36, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.zeros((1, 36, 36), np.uint8))
    with pytest.raises(BadItem, match="1 bands, expected the red, green and blue of a colour per class"):
        small("potsdam", source).example("train/0", "train")
    (source / "train/images/0.png").rename(source / "train/images/top_2_10.png")
    (source / "train/labels/0.png").rename(source / "train/labels/top_2_10.png")
    with pytest.raises(UserError, match=r"tile top_2_10\.png: expected a number"):
        small("potsdam", source).items()


# -- BioMassters -----------------------------------------------------------------------------------------------------


def months(source, chip, sensor, folder="train"):
    paths = [source / f"{folder}_features" / f"{chip}_{sensor}_{month:02d}.tif" for month in range(12)]
    return [read(path).astype(np.float32) if path.is_file() else None for path in paths]


def test_biomassters_published_is_every_month_with_zeros(layouts):
    source = layouts("biomassters")
    task = small("biomassters", source)
    chip = task.split("train")[0]
    example = task.example(chip, "train")
    optical, radar = (example.sample.images[name] for name in ("optical", "sar"))
    stored = months(source, chip, "S2")
    assert stored[4] is None
    assert not optical.values[4].any()
    assert all(np.array_equal(optical.values[m], stored[m][:10]) for m in range(12) if m != 4)
    backscatter = np.stack(months(source, chip, "S1"))
    assert (backscatter[1, 2:] == -9999).all()
    assert np.array_equal(radar.values, np.where(backscatter == -9999, 0, backscatter))
    assert radar.dates.tolist() == [0] * 12
    label = read(source / "train_agbm" / f"{chip}_agbm.tif")[0]
    assert np.isnan(label[-1, -1])
    assert np.array_equal(example.target, np.nan_to_num(label))
    assert example.target.max() > 50


def test_biomassters_is_scaled_by_minimum_and_maximum(layouts):
    """(Mutant: the maximum in the place of the range.)"""
    task = small("biomassters", layouts("biomassters"))
    sample = task.example(task.split("train")[2], "train").sample
    low, high = np.array([-25, -62, -25, -60]), np.array([29, 28, 30, 22])
    image = sample.images["sar"]
    expected = (image.values - low[:, None, None]) / (high - low)[:, None, None]
    assert np.allclose(normalised(image, task.modality("sar").sensor), expected, atol=1e-6)
    top = np.array([19616, 18400, 17536, 17097, 16928, 16768, 16593, 16492, 15401, 15226])[:, None, None]
    image = sample.images["optical"]
    assert np.allclose(normalised(image, task.modality("optical").sensor), image.values / top, atol=1e-6)


def test_biomassters_corrected_leaves_out_what_was_not_seen(layouts):
    """A month without its file or without an orbit; an orbit that never saw the chip; marked pixels."""
    source = layouts("biomassters")
    task = small("biomassters", source, CORRECTED)
    first, second = task.split("train")[:2]
    sample = task.example(first, "train").sample
    optical, radar = sample.images["optical"], sample.images["sar"]
    assert len(optical.values) == len(radar.values) == 11
    assert 15 not in optical.dates  # January
    assert 288 not in radar.dates  # October
    assert radar.dates.tolist()[:2] == [258, 319]
    assert radar.present.all()
    assert not radar.valid[:, :2, :2].any()
    assert radar.valid[:, 2:].all()
    radar = task.example(second, "train").sample.images["sar"]
    assert radar.present.tolist() == [True, True, False, False]
    assert radar.values.shape == (12, 4, 36, 36)
    assert not radar.values[:, 2:].any()
    assert np.array_equal(radar.values[:, :2, 2:], np.stack(months(source, second, "S1"))[:, :2, 2:])


def test_biomassters_orbits_that_never_meet(copy):
    """The one that was seen more often is kept."""
    source = copy("biomassters")
    chip = small("biomassters", source).split("train")[2]
    for month in range(12):
        orbit = slice(0, 2) if month < 5 else slice(2, 4)

        def blank(values, orbit=orbit):
            values[orbit] = -9999
            return values

        edit(source / "train_features" / f"{chip}_S1_{month:02d}.tif", blank)
    radar = small("biomassters", source, CORRECTED).example(chip, "train").sample.images["sar"]
    assert radar.present.tolist() == [True, True, False, False]
    assert len(radar.values) == 7


def test_biomassters_single_month(layouts):
    one = {"sensor": "pangaea_biomassters_s2", "mean": [0] * 10, "std": [1e4] * 10}
    task = small("biomassters", layouts("biomassters"), months=[6], modalities={"optical": one})
    image = task.example(task.split("val")[0], "val").sample.images["optical"]
    assert np.array_equal(image.values[0], months(layouts("biomassters"), task.split("val")[0], "S2")[6][:10])
    with pytest.raises(UserError, match=r"months is \[6, 7\], expected at most 1 numbers from 0 to 11"):
        small("biomassters", layouts("biomassters"), months=[6, 7], modalities={"optical": one}).items()


def test_biomassters_chips_without_a_sensor_or_with_other_bands(copy):
    source = copy("biomassters")
    chip = small("biomassters", source).split("val")[0]
    for path in source.glob(f"train_features/{chip}_S2_*.tif"):
        path.unlink()
    assert any(f"chip {chip} is left out" in item.cause for item in small("biomassters", source).items()[1])
    chip = small("biomassters", source).split("test")[0]
    edit(source / f"test_features/{chip}_S1_03.tif", lambda values: np.full_like(values, -9999))
    small("biomassters", source, CORRECTED).example(chip, "test")
    for path in source.glob(f"test_features/{chip}_S1_*.tif"):
        edit(path, lambda values: np.full_like(values, -9999))
    for protocol in (PUBLISHED, CORRECTED):
        with pytest.raises(BadItem, match=f"S1 of chip {chip} has no valid pixel in any month"):
            small("biomassters", source, protocol).example(chip, "test")
    path = source / f"test_features/{chip}_S2_00.tif"
    values = read(path)
    with rasterio.open(path) as file:
        profile = {**file.profile, "count": 10}
    with rasterio.open(path, "w", **profile) as file:
        file.write(values[:10])
    with pytest.raises(BadItem, match="10 bands, expected 11"):
        small("biomassters", source).example(chip, "test")
    (source / "val_Data_list.csv").write_text("chip_id\n../x\n")
    with pytest.raises(UserError, match=r"val_Data_list\.csv: '\.\./x' is no chip_id"):
        small("biomassters", source).items()


# -- Open-Canopy -----------------------------------------------------------------------------------------------------


def test_opencanopy_tiles_are_cut_at_the_nearest_pixel(layouts):
    """(Mutants: rows from the bottom; the corner rounded down; the lidar read without its window.)"""
    source = layouts("opencanopy")
    published, corrected = small("opencanopy", source), small("opencanopy", source, CORRECTED)
    assert wavelengths(published) == [490, 560, 665, 832]
    assert wavelengths(corrected) == [660, 560, 485, 825]  # the files' order
    items = corrected.split("train")[:2]  # two tiles of one image
    spot = read(next(source.glob("canopy_height/2021/spot/*-0.tif")))
    lidar = read(next(source.glob("canopy_height/2021/lidar/compressed_lidar_2021-0.tif")))[0]
    for place, item in enumerate(items):
        example = corrected.example(item, "train")
        columns = slice(3 + 36 * place, 39 + 36 * place)
        assert np.array_equal(example.sample.images["optical"].values[0], spot[:, 3:39, columns])
        assert np.array_equal(example.target, lidar[3:39, columns].astype(np.float32))
        assert example.target.max() > 30  # decimetres
    sample = corrected.example(items[0], "train").sample
    scaled = normalised(sample.images["optical"], corrected.modalities[0].sensor)
    assert np.allclose(scaled, sample.images["optical"].values / 255)
    assert all("buffer" not in split for split in corrected.items()[0])


def test_opencanopy_images_with_their_south_up(layouts, copy):
    source = copy("opencanopy")
    for path in source.rglob("*.tif"):
        with rasterio.open(path) as file:
            values, profile = file.read(), file.profile
        step = profile["transform"]
        profile["transform"] = rasterio.Affine(
            step.a, 0, step.c, 0, -step.e, step.f + step.e * profile["height"]
        )
        with rasterio.open(path, "w", **profile) as file:
            file.write(values[:, ::-1])
    flipped, plain = small("opencanopy", source), small("opencanopy", layouts("opencanopy"))
    for item in plain.split("train"):
        one, other = flipped.example(item, "train"), plain.example(item, "train")
        assert np.array_equal(one.sample.images["optical"].values, other.sample.images["optical"].values)
        assert np.array_equal(one.target, other.target)
        assert one.sample.location == other.sample.location


def test_opencanopy_wrong_folders(copy):
    source = copy("opencanopy")
    path = source / "canopy_height" / "geometries.geojson"
    task = small("opencanopy", source)
    item = task.split("test")[0]
    lidar = source / "canopy_height/2021/lidar/compressed_lidar_2021-3.tif"
    with rasterio.open(lidar) as file:
        values, profile = file.read(), file.profile
    with rasterio.open(lidar, "w", **{**profile, "nodata": 65535}) as file:
        values[:, -8:, -8:] = 65535
        file.write(values)
    with pytest.raises(BadItem, match=r"has pixels without a height \(65535\)"):
        task.example(item, "test")
    shifted = profile["transform"] @ rasterio.Affine.translation(0.5, 0)
    with rasterio.open(lidar, "w", **{**profile, "transform": shifted}) as file:
        file.write(values)
    with pytest.raises(BadItem, match=r"its pixels are not those of compressed_pansharpened_2021-3\.tif"):
        task.example(item, "test")
    content = json.loads(path.read_text())
    for feature in content["features"]:
        corners = feature["geometry"]["coordinates"][0]
        feature["geometry"]["coordinates"] = [[[x + 9000, y] for x, y in corners]]
    path.write_text(json.dumps(content))
    task = small("opencanopy", source)
    item = task.split("test")[0]
    with pytest.raises(
        BadItem, match="the tile of 36x36 pixels from row 3, column 6039 lies outside its 44x78"
    ):
        task.example(item, "test")
    for feature in content["features"]:
        feature["properties"]["image_name"] = "../x_2021.tif"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is no file name"):
        small("opencanopy", source).items()
    for feature in content["features"]:
        del feature["properties"]["split"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected tiles with image_name, split and a polygon"):
        small("opencanopy", source).items()
