"""The procedural Earth: deterministic, physical, consistent across sensors, and honest about what is absent."""

import dataclasses
import hashlib
import time

import numpy as np
import pytest

from ramen_jax.console import UserError
from ramen_jax.corpora import records
from ramen_jax.earth import places as earth
from ramen_jax.earth.ground import LANDSCAPES
from ramen_jax.earth.materials import INDEX, endmember_reflectance, growth_curves
from ramen_jax.earth.scene import Scene
from ramen_jax.samples import CorpusSpec, ModalitySpec, Sample
from ramen_jax.sensors import Band, Sensor, registry, sensor


def digest(sample: Sample) -> str:
    return hashlib.sha256(records.encode(sample)).hexdigest()


@pytest.mark.parametrize("name", earth.CORPORA)
def test_places_have_the_declared_geometry_and_fit_a_record(name: str) -> None:
    spec = earth.corpus_spec(name)
    sample = earth.render_place(0, 4, spec)
    assert tuple(sample.images) == spec.declared
    for modality in spec.modalities:
        image = sample.images[modality.name]
        frames, bands, height, width = image.values.shape
        assert (bands, height, width) == (len(modality.sensor.bands), modality.height, modality.width)
        assert image.values.dtype == modality.dtype
        assert 1 <= frames <= modality.max_dates
        assert (np.diff(image.dates) > 0).all()
        assert image.dates.min() >= 1
        assert image.dates.max() <= 366
        if modality.sensor.plausible is not None and image.values.dtype.kind == "f":
            low, high = modality.sensor.plausible
            there = image.values[:, image.present]
            assert low <= there.min()
            assert there.max() <= high
    again = records.decode(records.encode(sample))
    assert again.extra == sample.extra


def test_same_seed_and_place_give_the_same_bytes_and_others_do_not() -> None:
    spec = earth.corpus_spec("tiny")
    first = digest(earth.render_place(3, 11, spec))
    assert digest(earth.render_place(3, 11, spec)) == first
    assert digest(earth.render_place(3, 12, spec)) != first
    assert digest(earth.render_place(4, 11, spec)) != first
    corpus = earth.SyntheticCorpus(spec, places=2, seed=3, first_place=11)
    assert digest(corpus[0]) == first
    assert len(corpus[:2]) == 2


def test_leaving_a_modality_out_does_not_change_the_others() -> None:
    whole = earth.render_place(0, 7, earth.corpus_spec("tiny"))
    part = earth.render_place(0, 7, earth.corpus_spec("tiny", modalities=["aerial", "s2"]))
    for name in part.images:
        np.testing.assert_array_equal(part.images[name].values, whole.images[name].values)


def test_coarse_pixels_are_the_mean_of_the_fine_ones() -> None:
    scene = Scene(0, 5, (64.0, 64.0), 1.0, "france", "bocage")
    spot = sensor("flairhub_spot")
    fine = scene.optical(dataclasses.replace(spot, gsd=1.0), 64, 64, np.array([200]))[0]
    coarse = scene.optical(dataclasses.replace(spot, gsd=8.0), 8, 8, np.array([200]))[0]
    np.testing.assert_allclose(coarse, fine.reshape(4, 8, 8, 8, 8).mean((2, 4)), rtol=2e-5, atol=1e-6)
    # A grid that does not divide the scene: 10.24 m pixels still add up to the whole.
    odd = scene.area(scene.dsm_hxw, 6, 6, 64 / 6)
    assert odd.mean() == pytest.approx(scene.dsm_hxw.mean(), rel=1e-5)


def test_a_series_agrees_with_single_dates() -> None:
    """The fast path of series leaves out cast shadows only: on bare ground both paths give the same reflectance."""
    scene = Scene(0, 2, (640.0, 640.0), 10.0, "world", "desert")
    s2, days = sensor("flairhub_s2"), np.array([150, 240])
    series = scene.optical(s2, 62, 62, days)
    for index, day in enumerate(days):
        single = scene.optical(s2, 62, 62, np.array([day]))[0]
        assert series[index].mean() == pytest.approx(single.mean(), rel=0.06)
        assert np.corrcoef(series[index].ravel(), single.ravel())[0, 1] > 0.97


def test_vegetation_follows_the_seasons() -> None:
    curves = growth_curves(np.array([15, 140, 210, 250]))
    assert curves["wheat"][1] > 0.9 > 0.1 > curves["wheat"][2]
    assert curves["maize"][3] > 0.7 > 0.1 > curves["maize"][1]
    south = growth_curves(np.array([15]), south=True)
    assert south["deciduous"][0] > 0.9 > 0.1 > curves["deciduous"][0]


def test_spectra_have_the_red_edge_and_the_water_bands() -> None:
    s2 = sensor("sentinel2_l2a")
    names = [band.name for band in s2.bands]
    leaf, water = endmember_reflectance(s2)[0], endmember_reflectance(s2)[7]
    assert leaf[names.index("B8")] > 8 * leaf[names.index("B4")]
    assert leaf[names.index("B3")] > leaf[names.index("B4")]
    assert water[names.index("B3")] > water[names.index("B8")] > water[names.index("B12")]
    l1c = sensor("sentinel2_l1c")
    cirrus = [band.name for band in l1c.bands].index("B10")
    assert endmember_reflectance(l1c, toa=True)[0, cirrus] < 0.1 * endmember_reflectance(l1c)[0, cirrus]


@pytest.mark.parametrize("landscape", LANDSCAPES)
def test_heights_and_labels_agree(landscape: str) -> None:
    scene = Scene(1, 3, (102.4, 102.4), 0.8, "world", landscape)
    above = scene.dsm_hxw - scene.dtm_hxw
    assert above.min() >= 0
    assert above.max() < 30
    cover = scene.labels(*scene.shape, scene.gsd, "material")
    houses = np.isin(cover, [INDEX["tile roof"], INDEX["slate roof"], INDEX["metal roof"]])
    if houses.any():
        assert above[houses].min() > 2.5
        assert set(np.unique(scene.labels(*scene.shape, scene.gsd, "cosia")[houses])) == {0}
    flat = np.isin(cover, [INDEX["water"], INDEX["asphalt"]])
    if flat.any():
        assert above[flat].max() == 0


def test_the_orbits_light_opposite_slopes() -> None:
    scene = Scene(0, 1, (640.0, 640.0), 5.0, "world", "mountain")
    still = np.zeros(1)
    grid = (64, 64, 10.0, np.array([200]), still, still)
    difference = scene.radar("asc_vv", *grid)[0] - scene.radar("des_vv", *grid)[0]
    east = scene.area(scene.normal_hxw[0], 64, 64, 10.0)
    assert np.corrcoef(difference.ravel(), east.ravel())[0, 1] < -0.8
    cross = scene.radar("asc_vh", *grid)
    assert (cross < scene.radar("asc_vv", *grid)).all()


def test_mmearth_has_two_levels_and_absent_planes() -> None:
    spec = earth.corpus_spec("mmearth_small")
    levels, orbits = set(), set()
    for place in range(30):
        sample = earth.render_place(0, place, spec)
        level, s2, s1 = sample.extra["variant"]["s2"], sample.images["s2"], sample.images["s1"]
        levels.add(level)
        orbits.add((bool(s1.present[0]), bool(s1.present[4])))
        assert bool(s2.present[10]) == (level == "l1c")
        assert bool(s2.values[0, 10].any()) == (level == "l1c")
        assert not s1.present[[2, 3, 6, 7]].any()
        assert not s1.values[0, ~s1.present].any()
        assert s2.values[0, s2.present].min() >= 1
    assert levels == {"l1c", "l2a"}
    assert (True, True) in orbits
    assert len(orbits) >= 2


def test_any_sensor_any_rectangle_with_no_data() -> None:
    mixed = Sensor(
        "mine",
        (Band("nir", wavelength_nm=840), Band("vh", radar="des_vh"), Band("slope", elevation="slope")),
        gsd=3.0,
        units="reflectance x 10000, dB, degrees",
    )
    shifted = dataclasses.replace(sensor("sentinel2_l2a_baseline0400"), gsd=10.0)
    spec = CorpusSpec(
        "other",
        (
            ModalitySpec("mine", mixed, 20, 41, dtype="float32"),
            ModalitySpec("s2", shifted, 6, 12, True, 30, "uint16", has_valid=True),
        ),
    )
    sample = earth.render_place(0, 0, spec)
    assert sample.images["mine"].values.shape == (1, 3, 20, 41)
    s2 = sample.images["s2"]
    assert s2.valid is not None
    assert not s2.valid.all()
    hidden = ~np.broadcast_to(s2.valid[:, None], s2.values.shape)
    assert not s2.values[hidden].any()
    assert s2.values[~hidden].min() >= 1000  # the declared offset is in the stored numbers


def test_labels_lie_on_the_grid_of_their_modality() -> None:
    spec = earth.corpus_spec("tiny")
    fine = earth.render_labels(0, 9, spec, "aerial", "worldcover")
    coarse = earth.render_labels(0, 9, spec, "s2", "worldcover")
    assert fine.shape == (256, 256)
    assert coarse.shape == (5, 5)
    assert set(np.unique(fine)) <= set(earth.legend("worldcover"))
    shares = earth.render_place(0, 9, spec).extra["worldcover"]
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)


def test_wrong_input_gets_a_sentence() -> None:
    with pytest.raises(UserError, match=r"unknown synthetic corpus 'mmerth'.*mmearth"):
        earth.corpus_spec("mmerth")
    with pytest.raises(UserError, match=r"no modality 'aerail'.*aerial"):
        earth.corpus_spec("tiny", modalities=["aerail"])
    with pytest.raises(UserError, match="max_dates is 0"):
        earth.corpus_spec("tiny", max_dates=0)
    with pytest.raises(UserError, match="seed and place must be whole numbers"):
        earth.render_place(0, -1, earth.corpus_spec("tiny"))
    with pytest.raises(UserError, match="unknown label scheme"):
        earth.render_labels(0, 0, earth.corpus_spec("tiny"), "aerial", "corine")
    strange = dataclasses.replace(sensor("copernicus_dem"), units="feet")
    with pytest.raises(UserError, match="cannot render units 'feet'"):
        earth.render_place(0, 0, CorpusSpec("x", (ModalitySpec("dem", strange, 8, 8, dtype="float32"),)))


def test_every_registered_sensor_with_known_units_can_be_rendered() -> None:
    scene = Scene(0, 0, (80.0, 80.0), 2.0)
    for entry in registry().values():
        eyes = dataclasses.replace(entry, gsd=10.0)
        if all(band.kind == "optical" for band in entry.bands):
            image = scene.optical(eyes, 8, 8, np.array([180]))
            assert image.min() >= 0
            assert image.max() <= 1.1


def test_a_tiny_place_renders_fast() -> None:
    spec = earth.corpus_spec("tiny")
    earth.render_place(0, 0, spec)
    start = time.process_time()
    for place in range(1, 6):
        earth.render_place(0, place, spec)
    # About 40 ms of one core; the bound only catches a change of the order of magnitude on a busy machine.
    assert (time.process_time() - start) / 5 < 0.4
