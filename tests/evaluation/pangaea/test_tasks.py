"""Every task reads the original on-disk layout; what the two protocols differ in; what a wrong folder gets."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from ramen_jax.console import UserError
from ramen_jax.corpora import BadItem
from ramen_jax.earth.layouts.pangaea import WRITERS
from ramen_jax.evaluation.pangaea.protocol import CORRECTED, PUBLISHED
from ramen_jax.evaluation.pangaea.tasks import KINDS, load_task, open_task, shipped
from ramen_jax.sensors import sensor
from tests.evaluation.pangaea.small_files import PIXELS, edit, small


@pytest.mark.parametrize("name", sorted(WRITERS))
@pytest.mark.parametrize("protocol", [PUBLISHED, CORRECTED], ids=lambda protocol: protocol.name)
def test_every_split_is_read_as_declared(layouts, name, protocol):
    """`example` checks shapes, dtypes, dates and label values; here also that there is something to learn."""
    task = small(name, layouts(name), protocol)
    splits, rejected = task.items()
    assert list(splits) == ["train", "val", "test"]
    expected = (
        "no months of area",
        "those of val are tested",
    )  # a small SpaceNet 7; Potsdam as it is prepared
    assert [item.cause for item in rejected if not any(cause in item.cause for cause in expected)] == []
    found = set()
    for split, items in splits.items():
        assert items == list(dict.fromkeys(items)), f"{split} names an item twice"
        assert items, f"{split} is empty"
        for item in items[:6]:
            example = task.example(item, split)
            found |= set(np.unique(example.target).tolist())
            for spec in task.modalities:
                assert spec.sensor.mean is not None, f"{spec.sensor.name} has no statistics"
                assert np.isfinite(example.sample.images[spec.name].values).all()
    assert len(found - {task.ignore_index}) > 1
    members = [set(items) for items in splits.values()]
    assert not members[0] & members[1]
    assert not members[0] & members[2]
    assert not members[1] & members[2]


def test_every_task_that_ships_has_a_reader_and_a_writer(tmp_path):
    assert set(shipped()) == set(WRITERS)
    assert {*(load_task(name)["kind"] for name in shipped()), "geotask"} == set(KINDS)
    for name in shipped():
        for protocol in (PUBLISHED, CORRECTED):
            task = open_task(name, tmp_path, protocol)
            assert all(spec.sensor.mean is not None for spec in task.modalities)
            assert len(task.options.get("channels", ())) in (0, len(task.modalities[0].sensor.bands))


def test_every_task_is_in_the_documentation(repository):
    text = (repository / "docs" / "tasks.md").read_text()
    assert [name for name in shipped() if f"`{name}`" not in text] == []


def test_the_published_wavelengths_and_the_true_ones(layouts):
    task = "dynamicearthnet"
    published, true = (
        small(task, layouts(task), protocol).modalities[0] for protocol in (PUBLISHED, CORRECTED)
    )
    assert [band.wavelength_nm for band in published.sensor.bands][
        -1
    ] == 705  # the benchmark calls its infrared B5
    assert true.sensor == sensor("pangaea_dynamicen")
    assert published.sensor.mean == true.sensor.mean


# -- dates -----------------------------------------------------------------------------------------------------------


def test_pastis_dates(layouts):
    """Published: unordered, another choice at every access, days since September 2018. Sorted: the same, in order."""
    source = layouts("pastis")
    published, fixed = small("pastis", source), small("pastis", source, CORRECTED)
    patch = published.split("test")[0]
    first, again, other = (published.example(patch, "test", draw).sample.images["sar"] for draw in (0, 0, 1))
    assert np.array_equal(first.dates, again.dates)
    assert not np.array_equal(first.dates, other.dates)
    assert (np.diff(first.dates) < 0).any()
    optical = published.example(patch, "test").sample.images["optical"]  # 36 dates: no draw
    properties = json.loads((source / "metadata.geojson").read_text())["features"]
    table = next(row["properties"] for row in properties if str(row["properties"]["ID_PATCH"]) == patch)[
        "dates-S2"
    ]
    texts = [str(table[str(i)]) for i in (0, 7, 14, 21, 28, 35)]
    stored = np.load(source / "DATA_S2" / f"S2_{patch}.npy")
    assert np.array_equal(optical.values, stored[[0, 7, 14, 21, 28, 35]].astype(np.float32))
    days = [
        (np.datetime64(f"{t[:4]}-{t[4:6]}-{t[6:]}") - np.datetime64("2018-09-01")).astype(int) for t in texts
    ]
    assert optical.dates.tolist() == days
    image, same = (fixed.example(patch, "test", draw).sample.images["sar"] for draw in (0, 1))
    assert np.array_equal(image.dates, same.dates)
    assert ((image.dates >= 1) & (image.dates <= 366)).all()
    assert (np.diff((image.dates - 244) % 365) > 0).all()  # in the order of time from September on


def test_croptype_newest_first_and_padded_or_in_order_and_short(layouts):
    source = layouts("croptypemapping")
    stored = np.load(source / "southsudan/npy/southsudan_000000.npz")["s2"]  # four dates
    image = small("croptypemapping", source).example("000000", "train").sample.images["optical"]
    assert np.array_equal(image.values[:4], np.moveaxis(stored, -1, 0)[::-1])
    assert not image.values[4:].any()
    assert image.dates[4:].tolist() == [0, 0]
    assert (np.diff(image.dates[:4]) < 0).all()
    fixed = small("croptypemapping", source, CORRECTED).example("000000", "train").sample.images["optical"]
    assert np.array_equal(fixed.values, np.moveaxis(stored, -1, 0))
    assert (np.diff(fixed.dates) > 0).all()
    longer = small("croptypemapping", source).example("000001", "train").sample.images["sar"]
    whole = np.load(source / "southsudan/npy/southsudan_000001.npz")["s1"][:2]
    assert np.array_equal(longer.values, np.moveaxis(whole, -1, 0)[::-1][:6])


def test_dynamicearthnet_days(layouts):
    source = layouts("dynamicearthnet")
    for protocol, expected in ((PUBLISHED, [1, 2, 3, 4, 5, 6]), (CORRECTED, [1, 3, 5, 7, 9, 12])):
        task = small("dynamicearthnet", source, protocol)
        item = task.split("train")[0]  # January
        assert task.example(item, "train").sample.images["optical"].dates.tolist() == expected


def test_single_dates_are_told_by_the_corrected_protocol_only(layouts):
    days = {"hlsburnscars": "optical", "sen1floods11": "optical", "spacenet7": "optical"}
    for name, modality in days.items():
        for protocol in (PUBLISHED, CORRECTED):
            task = small(name, layouts(name), protocol)
            item = task.split("train")[0]
            dates = task.example(item, "train").sample.images[modality].dates
            assert (dates > 0).all() == (protocol is CORRECTED), name
    task = small("hlsburnscars", layouts("hlsburnscars"), CORRECTED)
    item = task.split("test")[0]
    assert f".2020{task.example(item, 'test').sample.images['optical'].dates[0]:03d}." in item


# -- single tasks ----------------------------------------------------------------------------------------------------


def test_burnscars_validation_is_a_fixed_tenth():
    """Sizes and disjointness of the draw; the numbers themselves are NumPy's."""
    from ramen_jax.evaluation.pangaea.tasks.reading import held_out

    train, val = held_out(20, 0.1, 23)
    assert sorted(train + val) == list(range(20))
    assert len(val) == 2
    assert len(held_out(540, 0.1, 23)[1]) == 54


def test_no_data_is_zero_or_masked(layouts):
    source = layouts("hlsburnscars")
    published, masked = (small("hlsburnscars", source, protocol) for protocol in (PUBLISHED, CORRECTED))
    item = published.split("train")[0]
    image = published.example(item, "train").sample.images["optical"]
    assert image.valid is None
    assert not image.values[0, :, -1].any()
    image = masked.example(item, "train").sample.images["optical"]
    assert image.valid is not None
    assert not image.valid[0, -1].any()
    assert image.valid[0, :-1].all()


def test_radar_without_measurement(layouts):
    """NaN never leaves a reader: it is the number 0, as published, or masked."""
    source = layouts("sen1floods11")
    for protocol in (PUBLISHED, CORRECTED):
        task = small("sen1floods11", source, protocol)
        image = task.example(task.split("test")[0], "test").sample.images["sar"]
        assert np.isfinite(image.values).all()
        assert (image.valid is None) == (protocol is PUBLISHED)
        assert not image.values[..., -1].any()
        if image.valid is not None:
            assert not image.valid[..., -1].any()
            assert image.valid[..., 0].all()


def test_orbits_of_the_flood_events(layouts):
    """Published: always ascending. True: the chip's own orbit among both, the other absent."""
    source = layouts("sen1floods11")
    published, true = small("sen1floods11", source), small("sen1floods11", source, CORRECTED)
    assert [band.radar for band in published.modality("sar").sensor.bands] == ["asc_vv", "asc_vh"]
    assert [band.radar for band in true.modality("sar").sensor.bands] == [
        "asc_vv",
        "asc_vh",
        "des_vv",
        "des_vh",
    ]
    seen = set()
    for chip in published.split("train"):
        pair = published.example(chip, "train").sample.images["sar"].values
        image = true.example(chip, "train").sample.images["sar"]
        descending = chip.startswith(("Spain", "India"))
        seen.add(descending)
        assert image.present.tolist() == [not descending] * 2 + [descending] * 2
        assert np.array_equal(image.values[:, image.present], pair)
    assert seen == {True, False}


def test_mados_bands_are_ordered_by_wavelength_and_repeated(layouts):
    source = layouts("mados")
    task = small("mados", source)
    crop = task.split("train")[0]
    example = task.example(crop, "train")
    scene, number = crop.rsplit("_", 1)
    image = example.sample.images["optical"].values[0]
    with rasterio.open(source / scene / "60" / f"{scene}_L2R_rhorc_442_{number}.tif") as file:
        aerosol = np.nan_to_num(file.read(1))
    assert np.array_equal(image[0], np.kron(aerosol, np.ones((6, 6), np.float32)))
    with rasterio.open(source / scene / "20" / f"{scene}_L2R_rhorc_2186_{number}.tif") as file:
        assert np.array_equal(image[-1], np.kron(file.read(1), np.ones((2, 2), np.float32)))
    with rasterio.open(source / scene / "10" / f"{scene}_L2R_cl_{number}.tif") as file:
        assert np.array_equal(example.target, file.read(1).astype(np.int32) - 1)


def test_spacenet7_tiles_make_up_the_scene(layouts):
    source = layouts("spacenet7")
    task = small("spacenet7", source, CORRECTED)
    assert task.modalities[0].sensor.gsd == 4
    assert small("spacenet7", source).modalities[0].sensor.gsd == 40  # as the published command says
    area = "L15-0387E-1276N_1549_3087_13"
    items = [item for item in task.split("test") if item.startswith(f"{area}/2018-01")]
    assert [item.rsplit("/", 1)[1] for item in items] == ["0-0", "0-1", "1-0", "1-1"]
    tiles = [task.example(item, "test") for item in items]
    stem = f"global_monthly_2018_01_mosaic_{area}"
    with rasterio.open(source / "train" / area / "images_masked" / f"{stem}.tif") as file:
        scene = file.read()[:3]
    values = [tile.sample.images["optical"].values[0] for tile in tiles]
    whole = np.concatenate([np.concatenate(values[:2], axis=2), np.concatenate(values[2:], axis=2)], axis=1)
    assert np.array_equal(whole, scene)
    assert not any("2018-02" in item for item in task.split("test"))  # masked out


def test_spacenet7_change_pairs(layouts):
    source = layouts("spacenet7")
    published, fixed = (small("spacenet7_change", source, protocol) for protocol in (PUBLISHED, CORRECTED))
    item = published.split("test")[0]
    assert published.example(item, "test").sample.extra["months"] == [
        "2018-01",
        "2018-05",
    ]  # 6 months: the fourth
    assert fixed.example(item, "test").sample.extra["months"] == ["2018-01", "2018-07"]
    item = fixed.split("train")[1]
    pairs = {tuple(fixed.example(item, "train", draw).sample.extra["months"]) for draw in range(4)}
    assert pairs == {("2018-01", "2018-07")}  # the only pair five months apart among six
    example = fixed.example(item, "train")
    mapping = small("spacenet7", source, CORRECTED)
    area, tile = item.split("/")
    before, after = (
        mapping.example(f"{area}/{month}/{tile}", "train").target for month in ("2018-01", "2018-07")
    )
    assert np.array_equal(example.target, (before != after).astype(np.int32))
    assert example.target.any()


def test_smallfarms_are_resized_and_may_lack_a_validation_split(copy):
    source = copy("ai4smallfarms")
    task = small("ai4smallfarms", source)
    assert {task.example(item, "train").target.shape for item in task.split("train")} == {(PIXELS, PIXELS)}
    shutil.rmtree(source / "sentinel-2-asia" / "validate")
    task = small("ai4smallfarms", source)
    assert task.split("val") == []
    assert "no validation split" in task.items()[1][0].cause


# -- wrong folders ---------------------------------------------------------------------------------------------------


INDEX_FILES = {
    "mados": "splits/val_X.txt",
    "pastis": "metadata.geojson",
    "sen1floods11": "v1.1/splits/flood_handlabeled/flood_valid_data.csv",
    "dynamicearthnet": "dynnet_training_splits/val.txt",
    "croptypemapping": "southsudan/list_eval_partition.csv",
    "spacenet7": "metadata_train.json",
    "biomassters": "val_Data_list.csv",
    "opencanopy": "canopy_height/geometries.geojson",
}


@pytest.mark.parametrize("name", INDEX_FILES)
def test_a_missing_index_file_is_named(copy, name):
    source = copy(name)
    (source / INDEX_FILES[name]).unlink()
    with pytest.raises(UserError, match=f"{Path(INDEX_FILES[name]).name}: no such"):
        small(name, source).items()


LABELS = {
    "hlsburnscars": "training/*.mask.tif",
    "mados": "Scene_0/10/*_cl_1.tif",
    "pastis": "ANNOTATIONS/TARGET_10000.npy",
    "sen1floods11": "v1.1/data/flood_events/HandLabeled/LabelHand/Spain_*.tif",
    "dynamicearthnet": "labels/1311*/Labels/Raster/*.npy",
    "croptypemapping": "southsudan/truth/southsudan_000000.npz",
    "spacenet7": "train/L15-0331E*/labels_raster/*_2018_01_*.tif",
    "xview2": "train/masks/*_00000001_post_disaster.png",
    "fivebillionpixels": "val/labels/*.tif",
    "potsdam": "train/labels/3.png",
    "biomassters": "train_agbm/a0b1c003_agbm.tif",
    "opencanopy": "canopy_height/2022/lidar/*.tif",
}


@pytest.mark.parametrize("name", LABELS)
def test_a_place_without_its_label_is_left_out_and_told(copy, name):
    source = copy(name)
    before = sum(map(len, small(name, source).items()[0].values()))
    label = sorted(source.glob(LABELS[name]))[0]
    label.unlink()
    splits, rejected = small(name, source).items()
    assert sum(map(len, splits.values())) < before
    assert any(label.name in item.file for item in rejected)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("hlsburnscars", "{folder}/{name}.mask.tif"),
        ("potsdam", "{folder}/labels/{name}.png"),
        ("pastis", "ANNOTATIONS/TARGET_{name}.npy"),
        ("m-eurosat", "{name}.hdf5"),
    ],
)
def test_a_split_without_a_complete_place_names_its_own_file(copy, name, file):
    """(Mutant: the first file that was rejected, of whichever split.)"""
    source = copy(name)
    tested = small(name, source).split("test")
    for item in [small(name, source).split("train")[0], *tested]:
        (source / file.format(folder=item.rpartition("/")[0], name=item.rpartition("/")[2])).unlink()
    task = small(name, source)
    assert task.split("train")
    with pytest.raises(UserError, match="no complete item in split test; the first problem: ") as raised:
        task.split("test")
    assert any(item.rpartition("/")[2] in str(raised.value) for item in tested)


@pytest.mark.parametrize("name", ["hlsburnscars", "sen1floods11", "xview2", "fivebillionpixels"])
def test_labels_outside_the_classes(copy, name):
    source = copy(name)
    task = small(name, source)
    top = len(task.classes)
    edit(sorted(source.glob(LABELS[name]))[0], lambda values: np.clip(values, 0, 1) + values.dtype.type(top))
    wrong = []
    for split, items in task.items()[0].items():
        for item in items:
            try:
                task.example(item, split)
            except BadItem as error:
                wrong.append(str(error))
    assert wrong
    assert all(
        f"label values {top}, {top + 1} are outside the classes 0..{top - 1}" in text for text in wrong
    )


def test_files_of_another_size_are_told(layouts):
    task = open_task("sen1floods11", layouts("sen1floods11"))
    with pytest.raises(BadItem, match=rf"{PIXELS}x{PIXELS} pixels, expected 512x512"):
        task.example(task.split("train")[0], "train")


def test_a_chip_without_any_radar_measurement(copy):
    source = copy("sen1floods11")
    task = small("sen1floods11", source)
    chip = task.split("test")[0]
    edit(next(source.glob(f"v1.1/data/*/*/S1Hand/{chip}_*.tif")), lambda values: values * np.float32(np.nan))
    with pytest.raises(BadItem, match=f"{chip}_S1Hand.tif: no valid pixel at all"):
        task.example(chip, "test")


@pytest.mark.parametrize(
    ("name", "spoil", "sentence"),
    [
        (
            "mados",
            lambda root: sorted(root.glob("Scene_0/20/*_1.tif"))[0].unlink(),
            "10 bands .* expected 11",
        ),
        (
            "pastis",
            lambda root: np.save(root / "DATA_S2/S2_10000.npy", np.zeros((36, 4, 36, 36))),
            "at least 10 bands",
        ),
        (
            "pastis",
            lambda root: np.save(root / "DATA_S2/S2_10000.npy", np.zeros((9, 10, 36, 36))),
            "9 frames but 36",
        ),
        (
            "pastis",
            lambda root: (root / "DATA_S2/S2_10000.npy").write_bytes(b"x" * 99),
            "truncated or damaged",
        ),
        (
            "croptypemapping",
            lambda root: (root / "southsudan/npy/southsudan_000000.npz").write_bytes(b""),
            "damaged",
        ),
        (
            "dynamicearthnet",
            lambda root: next(root.glob("planet/1311*/*/*-04.npy")).unlink(),
            "-04.npy: no such file",
        ),
    ],
)
def test_damaged_places_say_what_is_wrong(copy, name, spoil, sentence):
    source = copy(name)
    spoil(source)
    task = small(name, source)
    with pytest.raises(BadItem, match=sentence):
        task.example(task.split("train")[0], "train")


def test_arrays_of_python_objects_are_refused(copy):
    source = copy("pastis")
    np.save(source / "DATA_S2/S2_10000.npy", np.array([{"a": 1}], object), allow_pickle=True)
    task = small("pastis", source)
    with pytest.raises(BadItem, match="cannot be read as a NumPy file"):
        task.example("10000", "train")


def test_pastis_without_radar_is_told(copy):
    source = copy("pastis")
    content = json.loads((source / "metadata.geojson").read_text())
    for feature in content["features"]:
        del feature["properties"]["dates-S1A"]
    (source / "metadata.geojson").write_text(json.dumps(content))
    with pytest.raises(UserError, match="a patch has no dates-S1A; PASTIS-R has"):
        small("pastis", source).items()


def test_lists_cannot_lead_outside(copy):
    source = copy("dynamicearthnet")
    path = source / "dynnet_training_splits" / "train.txt"
    path.write_text("/../../etc /labels/a.tif 2018-01\n")
    with pytest.raises(UserError, match="leads outside"):
        small("dynamicearthnet", source).items()


def test_unknown_names_list_close_ones(layouts, tmp_path):
    with pytest.raises(UserError, match="sen1floods11"):
        load_task("sen1flods11")
    with pytest.raises(UserError, match="no such folder"):
        open_task("mados", tmp_path / "absent")
    with pytest.raises(UserError, match=r"pixel.*pixels"):
        open_task("mados", layouts("mados"), pixel=3)
    with pytest.raises(UserError, match="decoder is missing"):
        open_task("mados", layouts("mados"), command={"crop": 3, "target_gsd": 40, "loss": "dice"})


def test_an_empty_split_says_why(copy):
    source = copy("sen1floods11")
    for path in source.glob("v1.1/data/*/*/S2Hand/*.tif"):
        path.unlink()
    with pytest.raises(UserError, match=r"no complete item in split test; the first problem: .*S2Hand.tif"):
        small("sen1floods11", source).split("test")


def test_protocols_change_nothing_else(layouts):
    """A task of one optical date without no-data is the same image under both protocols, wavelengths apart."""
    source = layouts("spacenet7")
    same = dataclasses.replace(CORRECTED, spacenet7_gsd=40.0)
    published, corrected = small("spacenet7", source), small("spacenet7", source, same)
    item = published.split("test")[0]
    for one, other in ((published, corrected),):
        a, b = one.example(item, "test"), other.example(item, "test")
        assert np.array_equal(a.sample.images["optical"].values, b.sample.images["optical"].values)
        assert np.array_equal(a.target, b.target)
