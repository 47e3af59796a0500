"""Sensors: the registry says what the files hold, user files are read, and wrong input gets a useful sentence."""

import json
import math

import pytest

from ramen_jax.console import UserError
from ramen_jax.sensors import Band, Sensor, load_sensors, registry, sensor


def wavelengths(name: str) -> list[float | None]:
    return [band.wavelength_nm for band in sensor(name).bands]


def test_pretraining_sensors_have_the_original_band_order() -> None:
    assert wavelengths("flairhub_aerial") == [640, 560, 480, 810]
    assert wavelengths("flairhub_s2") == [490, 560, 665, 705, 740, 783, 842, 865, 1610, 2190]
    assert [band.elevation for band in sensor("flairhub_dem").bands] == ["dsm", "dtm"]
    assert [band.radar for band in sensor("flairhub_s1_des").bands] == ["des_vv", "des_vh"]
    assert [band.radar for band in sensor("mmearth_s1").bands] == [
        f"{orbit}_{polarisation}" for orbit in ("asc", "des") for polarisation in ("vv", "vh", "hh", "hv")
    ]
    assert [band.elevation for band in sensor("mmearth_dem").bands] == ["dsm", "slope"]
    assert wavelengths("worldstrat_spot") == [665, 560, 490, 835]
    assert wavelengths("worldstrat_s2") == [443, 490, 560, 665, 705, 740, 783, 842, 865, 945, 1610, 2190]
    assert [sensor(f"{name}").gsd for name in ("flairhub_aerial", "flairhub_s2", "worldstrat_spot")] == [
        0.2,
        10.24,
        1.5,
    ]


def test_mmearth_stores_b8a_before_b8_and_the_reference_swaps_their_wavelengths() -> None:
    true, reference = sensor("mmearth_s2"), sensor("mmearth_s2_reference")
    assert [band.name for band in true.bands[7:9]] == ["B8A", "B8"]
    assert wavelengths("mmearth_s2")[7:9] == [865, 842]
    assert wavelengths("mmearth_s2_reference")[7:9] == [842, 865]
    assert [band.name for band in true.bands] == [band.name for band in reference.bands]


def test_pangaea_reference_differs_only_where_the_reference_does() -> None:
    assert wavelengths("pangaea_dynamicen")[3] == 865
    assert wavelengths("pangaea_dynamicen_reference") == [490, 560, 665, 705]
    true, reference = wavelengths("pangaea_sen1floods11_s2"), wavelengths("pangaea_sen1floods11_s2_reference")
    differing = {(a, b) for a, b in zip(true, reference) if a != b}
    assert differing == {(443, 440), (842, 832), (1370, 1373), (2190, 2200)}
    tasks = [name.removesuffix("_reference") for name in registry() if name.startswith("pangaea_")]
    for task in ("hlsburnscars", "mados", "pastis", "sen1floods11", "croptypemapping", "spacenet7"):
        assert any(task in name for name in tasks)


def test_the_sentinel2_offset_is_declared() -> None:
    assert sensor("sentinel2_l2a").offset == 0
    assert sensor("sentinel2_l2a_baseline0400").offset == -1000
    assert sensor("sentinel2_l1c_baseline0400").band("B10").wavelength_nm == 1370


def test_every_registered_sensor_survives_json_and_is_hashable() -> None:
    sensors = registry()
    assert len(set(sensors.values())) == len(sensors)
    for name, entry in sensors.items():
        text = json.dumps(entry.to_dict(), allow_nan=False)
        assert Sensor.from_dict(json.loads(text)) == entry, name


def test_select_and_with_statistics_keep_bands_and_numbers_together() -> None:
    s2 = sensor("sentinel2_rgbn").with_statistics([1, 2, 3, 4], [5, 6, 7, 8])
    chosen = s2.select(["B8", "B3"])
    assert [band.name for band in chosen.bands] == ["B8", "B3"]
    assert chosen.mean == (4.0, 2.0)
    assert chosen.std == (8.0, 6.0)
    assert [Band.of("x", value).kind for value in (560, "asc_vv", "slope")] == [
        "optical",
        "radar",
        "elevation",
    ]


def test_a_user_file_may_mix_kinds_and_use_either_form(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "drone: {gsd: 0.05, bands: {red: 650, vv: asc_vv, height: dsm}, nodata: .nan, offset: -10}\n"
        "other:\n  gsd: 3\n  bands:\n  - {name: a, wavelength_nm: 500}\n  - {name: b, radar: des_hv}\n"
    )
    sensors = load_sensors(path)
    assert [band.kind for band in sensors["drone"].bands] == ["optical", "radar", "elevation"]
    assert sensors["drone"].nodata is not None
    assert math.isnan(sensors["drone"].nodata)
    assert sensors["other"].bands[1].radar == "des_hv"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: {gsd: 10, bands: {x: 490}, nodatta: 0}", r"mine\.yaml: Sensor a: unknown key 'nodatta'.*nodata"),
        ("a: {bands: {x: 490}}", "Sensor a: missing gsd"),
        ("a: {gsd: 10}", "Sensor a: missing bands"),
        ("a: {gsd: 0, bands: {x: 490}}", "gsd is 0"),
        ("a: {gsd: .inf, bands: {x: 490}}", "gsd must be a finite number"),
        ("a: {gsd: ten, bands: {x: 490}}", "gsd must be a number, found 'ten'"),
        ("a: {gsd: 10, bands: {}}", "bands is empty"),
        ("a: {gsd: 10, bands: 490}", "bands must map"),
        ("a: {gsd: 10, bands: {x: asc_vw}}", "Band x: 'asc_vw' is neither.*asc_v"),
        ("a: {gsd: 10, bands: {x: 0.665}}", "wavelength_nm is 0.665, expected nanometres"),
        ("a: {gsd: 10, bands: {x: yes}}", "Band x: True is neither"),
        ("a: {gsd: 10, bands: {on: 490}}", "name must be a non-empty text"),
        ("a: {gsd: 10, bands: {x: 490, x: 560}}", "'x' is written twice"),
        ("a: {gsd: 10, bands: [{name: x}]}", "exactly one of wavelength_nm"),
        ("a: {gsd: 10, bands: [{name: x, wavelenth_nm: 4}]}", "unknown key 'wavelenth_nm'.*wavelength_nm"),
        ("a: {gsd: 10, bands: {x: 490}, mean: [1]}", "mean and std must be given together"),
        ("a: {gsd: 10, bands: {x: 490}, mean: [1, 2], std: [1, 2]}", "mean has 2 numbers, expected 1"),
        ("a: {gsd: 10, bands: {x: 490}, mean: [1], std: [0]}", "std of band x is 0"),
        ("a: {gsd: 10, bands: {x: 490}, scale: 0}", "scale is 0"),
        ("a: {gsd: 10, bands: {x: 490}, plausible: [5, 1]}", "plausible is"),
        ("a: 5", "sensor a must be a mapping"),
        ("- a", "expected a mapping of sensor names"),
        ("a: [", "not a valid YAML file"),
        ("a: !!python/object/apply:os.system ['true']", "not a valid YAML file"),
    ],
)
def test_wrong_files_get_a_sentence(tmp_path, text: str, expected: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=expected) as error:
        load_sensors(path)
    assert "\n" not in str(error.value)


def test_unknown_names_list_the_close_ones(tmp_path) -> None:
    with pytest.raises(UserError, match=r'Unknown sensor .*"sentinel2_l2a"'):
        sensor("sentinel2_l2b")
    with pytest.raises(UserError, match=r"no band 'B8B'.*B8A"):
        sensor("mmearth_s2").band("B8B")
    with pytest.raises(UserError, match="cannot be read"):
        load_sensors(tmp_path / "absent.yaml")
