"""embed: exact georeference, no seams, nodata, several grids, interruption, and wrong inputs."""

from __future__ import annotations

import contextlib
import errno
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr
from affine import Affine

import ramen_jax as rj
from ramen_jax import embed, sampling
from ramen_jax.console import UserError
from ramen_jax.embedding import feature_files, rasters, tiles
from ramen_jax.embedding.pca import pca_picture
from ramen_jax.embedding.scene import choose_sensor
from ramen_jax.inference.encoder import Encoder
from ramen_jax.sensors import sensor
from tests import exported

UTM = "EPSG:32631"
# Tiling, stated: the mean cosine between the tokens of a tiled run and those of a run in one piece (positions counted
# in the scene), and the jump from token to token across the end of a tile against the mean jump.
COSINE = 0.85
JUMP = 1.6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported.folder(tmp_path_factory.mktemp("embed") / "tiny", "fixed")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Encoder:
    return rj.load(checkpoint)


def landscape(height: int, width: int, bands: int, seed: int = 0) -> np.ndarray:
    """Smooth random fields [C, H, W] of reflectance x 10000."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(bands, 8, 8))
    rows, columns = (np.linspace(0, 6.99, size) for size in (height, width))
    r, c = rows.astype(int)[:, None], columns.astype(int)[None]
    fr, fc = (rows % 1)[:, None], (columns % 1)[None]
    field = sum(
        weight * coarse[:, r + i, c + j]
        for i, j, weight in (
            (0, 0, (1 - fr) * (1 - fc)),
            (0, 1, (1 - fr) * fc),
            (1, 0, fr * (1 - fc)),
            (1, 1, fr * fc),
        )
    )
    return (1500 + 500 * field + 30 * rng.normal(size=field.shape)).clip(1, 9000).astype(np.int16)


def write(
    path: Path,
    values: np.ndarray,
    pixel: float = 10.0,
    origin: tuple[float, float] = (500_000.0, 5_000_000.0),
    **how: Any,
) -> Path:
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "dtype": values.dtype,
        "count": values.shape[0],
        "height": values.shape[1],
        "width": values.shape[2],
        "crs": UTM,
        "transform": Affine(pixel, 0, origin[0], 0, -pixel, origin[1]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **(profile | how)) as target:
        target.write(values)
    return path


def run(checkpoint: Path, output: Path, target_gsd: float, *images: Any, **options: Any) -> np.ndarray:
    """`images`: raster, sensor, raster, sensor ..."""
    arguments = ["--checkpoint", checkpoint, "--output", output, "--target-gsd", target_gsd]
    for image, name in zip(images[::2], images[1::2], strict=True):
        arguments += ["--image", image, "--sensor", name]
    for key, value in options.items():
        arguments += [f"--{key}"] if value is True else [f"--{key}", value]
    assert embed.run([str(argument) for argument in arguments]) == 0
    with rasterio.open(output) as source:
        return source.read()


def test_the_output_lies_exactly_on_the_image(checkpoint: Path, model: Encoder, tmp_path: Path) -> None:
    pixels = landscape(64, 83, 12)
    scene = write(tmp_path / "scene.tif", pixels)
    features = run(checkpoint, tmp_path / "features.tif", 40, scene, "s2")
    with rasterio.open(tmp_path / "features.tif") as output:
        assert output.crs == rasterio.crs.CRS.from_string(UTM)
        assert output.transform == Affine(40, 0, 500_000, 0, -40, 5_000_000)
        assert (output.count, output.height, output.width) == (64, 16, 20)
        assert output.bounds == (500_000, 5_000_000 - 640, 500_000 + 800, 5_000_000)
        assert output.descriptions[3] == "s2 3"
        assert np.isnan(output.nodata)
    # One tile is a plain call of the interface, whose metric sampling reads 80 of the 83 columns too.
    np.testing.assert_allclose(features, model.encode({"s2": pixels[..., :80]}, 40).maps["s2"], atol=1e-4)


class Strips:
    """An output that keeps what is written."""

    start = 0

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []

    def write(self, start: int, features: np.ndarray) -> None:
        assert start == sum(part.shape[1] for part in self.parts)
        self.parts.append(features.copy())


def test_tiling_alone_changes_nothing(tmp_path: Path) -> None:
    """Features that depend on their own pixels only are the same, tiled or in one piece."""
    scene = write(tmp_path / "scene.tif", landscape(170, 250, 12))

    class Averages(tiles.Embedder):
        depth = 12

        def __init__(self, place: rasters.Place) -> None:
            self.place = place
            self.model = SimpleNamespace(batch_tokens=1000)

        def read(self, window: rasters.Tokens) -> Any:
            pixels = self.place.layers[0].read(window).values[0].astype(np.float32)
            tokens = (window[1] - window[0], window[3] - window[2])
            rows, columns = (
                sampling.down_matrix(size, 10.0, 25.0, number, "area")
                for size, number in zip(pixels.shape[1:], tokens, strict=True)
            )
            return rows @ pixels @ columns.T

        def encode(self, read: Any) -> list[np.ndarray]:
            return list(read)

    def run_with(tile: int, overlap: int) -> np.ndarray:
        output = Strips()
        with contextlib.ExitStack() as stack:
            place = rasters.open_place(
                [("s2", scene, exported.SENSORS["place/s2"])], 25.0, stack, max_step=16
            )
            tiles.embed(Averages(place), output, tile, overlap)
        return np.concatenate(output.parts, axis=1)

    whole = run_with(200, 0)
    assert whole.shape == (12, 68, 100)
    for tile, overlap in ((24, 8), (17, 5), (40, 0)):
        np.testing.assert_allclose(run_with(tile, overlap), whole, rtol=1e-5)


@pytest.mark.parametrize("positions", ["tile", "scene"])
def test_tiles_leave_no_seams(checkpoint: Path, tmp_path: Path, positions: str) -> None:
    """Random weights are the hardest case: every token depends on the others as much as on its pixels."""
    scene = write(tmp_path / "scene.tif", landscape(80, 160, 12))
    tiled = run(checkpoint, tmp_path / "tiled.tif", 20, scene, "s2", tile=40, overlap=16, positions=positions)
    jumps = np.abs(np.diff(tiled, axis=2)).mean(axis=(0, 1))
    ends = [24, 40, 48, 64]  # where a tile of the 80 columns begins or ends
    assert max(jumps[end - 1] for end in ends) < JUMP * jumps.mean()
    if positions == "scene":
        whole = run(checkpoint, tmp_path / "whole.tif", 20, scene, "s2", tile=80)
        cosine = (tiled * whole).sum(0) / np.linalg.norm(tiled, axis=0) / np.linalg.norm(whole, axis=0)
        assert cosine.mean() > COSINE


def test_a_tile_reads_the_pixels_of_the_whole(tmp_path: Path) -> None:
    pixels = landscape(60, 100, 12)
    scene = write(tmp_path / "scene.tif", pixels)
    with contextlib.ExitStack() as stack:
        place = rasters.open_place([("s2", scene, exported.SENSORS["place/s2"])], 25.0, stack, max_step=16)
        assert (place.rows, place.columns, place.step, place.notes) == (24, 40, 2, [])
        image = place.layers[0].read((4, 20, 6, 40))
    np.testing.assert_array_equal(image.values[0], pixels[:, 10:50, 15:100])


def test_an_awkward_target_gsd_is_still_exact(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = write(tmp_path / "scene.tif", landscape(64, 64, 12))
    run(checkpoint, tmp_path / "features.tif", 33.3, scene, "s2")
    assert "read at 11.1 m per pixel instead of 10 m" in capsys.readouterr().out
    with rasterio.open(tmp_path / "features.tif") as output:
        assert output.transform.a == pytest.approx(33.3, abs=1e-9)
        assert (output.transform.c, output.transform.f) == (500_000, 5_000_000)
        assert output.shape == (19, 19)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_nodata_stays_nodata(checkpoint: Path, tmp_path: Path) -> None:
    pixels = landscape(64, 64, 12)
    pixels[:, :32, :32] = 0
    scene = write(tmp_path / "scene.tif", pixels, nodata=0)
    features = run(checkpoint, tmp_path / "features.tif", 40, scene, "s2", tile=8, overlap=0)
    empty = np.isnan(features).all(axis=0)
    assert empty[:8, :8].all()
    assert not np.isnan(features[:, ~empty]).any()
    assert empty.sum() == 64
    pca_picture(tmp_path / "features.tif", tmp_path / "features.png")
    with rasterio.open(tmp_path / "features.png") as picture:
        assert (picture.read(4)[:8, :8] == 0).all()
        assert picture.read(4)[8:].min() == 255


def test_several_sensors_on_different_grids(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Radar at 20 m in another coordinate system, and a series in a folder."""
    for day, seed in (("2021-01-10", 0), ("20210620", 1)):
        write(tmp_path / "s2" / f"S2_{day}.tif", landscape(64, 64, 12, seed))
    radar = np.full((2, 60, 60), -12.0, np.float32)
    lon, lat = rasterio.warp.transform(UTM, "EPSG:4326", [499_800.0], [5_000_200.0])
    degrees = {"crs": "EPSG:4326", "transform": Affine(0.00025, 0, lon[0], 0, -0.00018, lat[0])}
    other = write(tmp_path / "radar.tif", radar, **degrees)
    far = write(tmp_path / "s2" / "S2_2021-07-01.tif", landscape(64, 64, 12), origin=(600_000.0, 5_000_000.0))
    with pytest.raises(UserError, match="1 of the 3 rasters"):
        run(checkpoint, tmp_path / "features.tif", 40, tmp_path / "s2", "s2", other, "s1", layer=1)
    run(
        checkpoint, tmp_path / "features.tif", 40, other, "s1", tmp_path / "s2", "s2", layer=1, overwrite=True
    )
    assert "1 of the 3 rasters" in capsys.readouterr().out
    far.unlink()
    (tmp_path / "features.tif").unlink()
    features = run(checkpoint, tmp_path / "features.tif", 40, tmp_path / "s2", "s2", other, "s1", layer=1)
    assert features.shape == (128, 16, 16)
    assert np.isfinite(features).all()


@pytest.mark.parametrize("crs", [UTM, "EPSG:4326"])
def test_a_zarr_store_says_the_same_as_the_geotiff(checkpoint: Path, tmp_path: Path, crs: str) -> None:
    pixels = landscape(100, 92, 12)
    pixels[:, :20, :20] = 0
    place = {} if crs == UTM else {"transform": Affine(0.0001, 0, 2.1, 0, -0.0001, 46.3), "crs": crs}
    scene = write(tmp_path / "scene.tif", pixels, nodata=0, **place)
    options = {"tile": 12, "overlap": 4}
    expected = run(checkpoint, tmp_path / "features.tif", 40, scene, "s2", **options)
    assert np.isnan(expected[0, :2, :2]).all()
    picture = tmp_path / "features.png"
    found = run(checkpoint, tmp_path / "features.zarr", 40, scene, "s2", pca=picture, **options)
    np.testing.assert_array_equal(found, expected)
    assert picture.stat().st_size > 500
    group = zarr.open_group(tmp_path / "features.zarr", mode="r")
    np.testing.assert_array_equal(group["features"][:], expected)
    with rasterio.open(tmp_path / "features.tif") as tiff, rasterio.open(tmp_path / "features.zarr") as store:
        assert store.crs == tiff.crs
        assert np.isnan(store.nodata)
        np.testing.assert_allclose(tuple(store.transform)[:6], tuple(tiff.transform)[:6], rtol=1e-12)
        rows, columns = tiff.shape
        mapping = dict(group["spatial_ref"].attrs)
        assert rasterio.crs.CRS.from_wkt(mapping["crs_wkt"]) == tiff.crs
        assert Affine.from_gdal(*map(float, mapping["GeoTransform"].split())) == tiff.transform
        assert [group["x"][0], group["y"][-1]] == [*tiff.xy(rows - 1, 0)]
        assert [group["x"][-1], group["y"][0]] == [*tiff.xy(0, columns - 1)]
        assert list(group["band"][:]) == list(tiff.descriptions)
    for name, dimensions in (
        ("features", ["band", "y", "x"]),
        ("x", ["x"]),
        ("y", ["y"]),
        ("band", ["band"]),
    ):
        assert group[name].attrs["_ARRAY_DIMENSIONS"] == dimensions
        assert name == "features" or group[name].metadata.fill_value is None  # x = 0 is a place
    assert group["features"].attrs["grid_mapping"] == "spatial_ref"
    assert group["x"].attrs["standard_name"] == ("projection_x_coordinate" if crs == UTM else "longitude")
    with pytest.raises(UserError, match="exists"):
        run(checkpoint, tmp_path / "features.zarr", 40, scene, "s2")
    run(checkpoint, tmp_path / "features.zarr", 80, scene, "s2", overwrite=True)
    assert (
        zarr.open_group(tmp_path / "features.zarr", mode="r")["features"].shape[1] == expected.shape[1] // 2
    )


@pytest.mark.parametrize("suffix", ["tif", "zarr"])
def test_an_interrupted_run_goes_on(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    scene = write(tmp_path / "scene.tif", landscape(100, 40, 12))
    expected = run(checkpoint, tmp_path / f"expected.{suffix}", 20, scene, "s2", tile=12, overlap=4)
    original, started = feature_files.Output.write, []

    def stop_later(self: feature_files.Output, start: int, strip: np.ndarray) -> None:
        if len(started) == 3:
            raise KeyboardInterrupt
        started.append(start)
        original(self, start, strip)

    monkeypatch.setattr(feature_files.Output, "write", stop_later)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, tmp_path / f"features.{suffix}", 20, scene, "s2", tile=12, overlap=4)
    assert not (tmp_path / f"features.{suffix}").exists()
    written: list[int] = []

    def count(self: feature_files.Output, start: int, strip: np.ndarray) -> None:
        written.append(start)
        original(self, start, strip)

    monkeypatch.setattr(feature_files.Output, "write", count)
    found = run(checkpoint, tmp_path / f"features.{suffix}", 20, scene, "s2", tile=12, overlap=4)
    assert written[0] > started[-1]
    np.testing.assert_array_equal(found, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"expected.{suffix}",
        f"features.{suffix}",
        "scene.tif",
    ]


def test_a_full_disk_leaves_no_partial_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write(tmp_path / "scene.tif", landscape(32, 32, 12))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rasterio.io.DatasetWriter, "write", full, raising=False)
    with pytest.raises(UserError, match="No space left on device; the unfinished file was removed"):
        run(checkpoint, tmp_path / "features.tif", 40, scene, "s2")
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]
    monkeypatch.setattr(zarr.Array, "__setitem__", full)
    with pytest.raises(UserError, match="No space left on device; the unfinished file was removed"):
        run(checkpoint, tmp_path / "features.zarr", 40, scene, "s2")
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]
    with pytest.raises(UserError, match=r"expected a name that ends in \.tif, \.tiff, \.zarr"):
        run(checkpoint, tmp_path / "features.nc", 40, scene, "s2")


def test_wrong_inputs_are_told(checkpoint: Path, tmp_path: Path) -> None:
    pixels = landscape(32, 32, 12)
    scene = write(tmp_path / "scene.tif", pixels)
    nowhere = write(tmp_path / "nowhere.tif", pixels, crs=None)
    three = write(tmp_path / "three.tif", pixels[:3])
    (tmp_path / "undated").mkdir()
    for name in ("a", "b"):
        write(tmp_path / "undated" / f"{name}.tif", pixels)
    for day, east in (("2021-01-10", 500_000.0), ("2021-01-20", 510_000.0)):
        write(tmp_path / "apart" / f"{day}.tif", pixels, origin=(east, 5_000_000.0))
    (tmp_path / "text.tif").write_text("no raster")
    output = tmp_path / "features.tif"
    for image, name, gsd, sentence in (
        (nowhere, "s2", 40, "has no CRS"),
        (three, "s2", 40, "has 3 bands, sensor 'sentinel2_l2a' has 12"),
        (scene, "s2", 400, r"larger than the image, 320 x 320 m; use at most 320 m"),
        (scene, "s2x", 40, "no sensor 's2x'"),
        (tmp_path / "undated", "s2", 40, "no date in the file's name"),
        (tmp_path / "text.tif", "s2", 40, "cannot be read as a raster"),
        (tmp_path / "absent.tif", "s2", 40, "no raster or folder"),
        (scene, "terramesh_s2l2a", 40, "has no mean and std"),
        (tmp_path / "apart", "s2", 40, "1 of the 2 rasters of .* do not touch .*; give rasters of one place"),
    ):
        with pytest.raises(UserError, match=sentence):
            run(checkpoint, output, gsd, image, name)
        assert not output.exists()
    with pytest.raises(UserError, match="cannot write"):
        run(checkpoint, tmp_path / "text.tif" / "features.tif", 40, scene, "s2")
    for options, sentence in (
        ({"overlap": -3}, "expected 0 or more tokens"),
        ({"overlap": 50}, "fewer than --tile, 48"),
        ({"pca": tmp_path / "absent" / "features.png"}, "there is no folder"),
    ):
        with pytest.raises(UserError, match=sentence):
            run(checkpoint, output, 40, scene, "s2", **options)
    with pytest.raises(UserError, match="is an --image"):
        run(checkpoint, scene, 40, scene, "s2", overwrite=True)
    with pytest.raises(UserError, match="is nan"):
        run(checkpoint, output, "nan", scene, "s2")
    output.write_text("mine")
    with pytest.raises(UserError, match="exists"):
        run(checkpoint, output, 40, scene, "s2")


def test_doubtful_inputs_are_noted(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reflectance = (landscape(16, 16, 12) / 10_000).astype(np.float32)
    scene = write(tmp_path / "scene.tif", reflectance)
    run(checkpoint, tmp_path / "features.tif", 1, scene, "s2", overwrite=True, tile=40, overlap=0)
    told = capsys.readouterr().out
    assert "finer than the 10 m pixels of s2 by more than 8" in told
    assert "are these raw digital numbers, or other units" in told
    coarse = write(tmp_path / "coarse.tif", landscape(16, 16, 12), pixel=20.0)
    run(checkpoint, tmp_path / "features.tif", 40, coarse, "s2", overwrite=True)
    assert "pixels of 20 m count" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("crs", "pixel", "origin"), [("EPSG:3857", 14.4, (2.0, 46.0)), (UTM, 10.0, (3.0, 45.0))]
)
def test_pixels_are_measured_on_the_ground(
    tmp_path: Path, crs: str, pixel: float, origin: tuple[float, float]
) -> None:
    """Web Mercator stretches by 1 / cos(latitude): 14.4 of its metres are 10 on the ground at 46 degrees."""
    x, y = rasterio.warp.transform("EPSG:4326", crs, [origin[0]], [origin[1]])
    scene = write(tmp_path / "scene.tif", landscape(16, 16, 12), pixel, (x[0], y[0]), crs=crs)
    with rasterio.open(scene) as reader:
        assert rasters.ground_size(reader) == pytest.approx((10, 10), rel=5e-3)


@pytest.mark.parametrize("first", [0, 3, 7])
def test_blending_weights_sum_to_one_between_neighbours(first: int) -> None:
    spans = tiles.Tiling(tokens=40, size=12, overlap=4, step=2).spans()
    assert spans[0][0] == 0
    assert spans[-1][1] == 40
    assert all(start % 2 == 0 for start, _ in spans)
    total = np.zeros(40)
    for i, span in enumerate(spans):
        before, after = spans[i - 1] if i else None, spans[i + 1] if i + 1 < len(spans) else None
        total[slice(*span)] += tiles.Tiling.weight(span, before, after)
    assert total[first] == pytest.approx(1.0)
    assert (total > 0).all()


def test_real_scene_of_terramesh(checkpoint: Path, real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "terramesh"
    scene = sorted((folder / "S2L2A").glob("*.tif"))[0]
    images = [folder / kind / scene.name for kind in ("S2L2A", "S1RTC", "DEM")]
    features = run(
        checkpoint,
        *(tmp_path / "features.tif", 80),
        *(images[0], "terramesh_s2l2a", images[1], "terramesh_s1rtc", images[2], "terramesh_dem"),
        statistics="image",
        pca=tmp_path / "features.png",
    )
    assert features.shape == (192, 28, 28)
    with rasterio.open(scene) as source, rasterio.open(tmp_path / "features.tif") as output:
        assert output.crs == source.crs
        assert output.bounds == pytest.approx(source.bounds, abs=1e-6)
    assert (tmp_path / "features.png").stat().st_size > 500


def test_real_series_in_degrees(checkpoint: Path, real_data: Path, tmp_path: Path) -> None:
    """Boadella: 12 dates, 377 x 380 pixels in EPSG:4326."""
    folder = real_data / "s2_boadella_timeseries"
    frames = rasters.find_frames(folder)
    assert len(frames) == 12
    features = run(checkpoint, tmp_path / "features.tif", 80, folder, "sentinel2_l2a")
    assert features.shape == (64, 47, 47)
    assert np.isfinite(features).all()
    with rasterio.open(frames[0]) as source, rasterio.open(tmp_path / "features.tif") as output:
        assert output.crs == source.crs
        assert output.transform.a == pytest.approx(8 * source.transform.a, rel=1e-12)
        assert output.bounds.left == source.bounds.left
        assert output.bounds.top == source.bounds.top
        assert 0 <= output.bounds.bottom - source.bounds.bottom < abs(output.transform.e)


def test_the_help_names_units(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["embed", "--help"])
    with pytest.raises(SystemExit):
        embed.parse(["--help"])
    assert "metres per output cell" in capsys.readouterr().out


def test_sensor_files(model: Encoder, tmp_path: Path) -> None:
    text = "{name}:\n  gsd: 0.1\n  bands: {{red: 650}}\n  mean: [1]\n  std: [2]\n"
    (tmp_path / "one.yaml").write_text(text.format(name="drone"))
    (tmp_path / "two.yaml").write_text(text.format(name="drone") + text.format(name="plane"))
    assert choose_sensor(f"{tmp_path / 'one.yaml'}", model, True).name == "drone"
    assert choose_sensor(f"{tmp_path / 'two.yaml'}:plane", model, True).name == "plane"
    with pytest.raises(UserError, match="describes 2 sensors"):
        choose_sensor(f"{tmp_path / 'two.yaml'}", model, True)
    with pytest.raises(UserError, match="no sensor 'plan'; did you mean"):
        choose_sensor(f"{tmp_path / 'two.yaml'}:plan", model, True)
    assert choose_sensor("terramesh_dem", model, False) == sensor("terramesh_dem")
