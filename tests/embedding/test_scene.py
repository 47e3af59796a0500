"""embed as a command: never two images in one file, nothing of a user's replaced, impossible sizes refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml

from ramen_jax import embed
from ramen_jax.console import UserError
from ramen_jax.embedding import feature_files
from tests import exported
from tests.embedding.rasters_made import eye, scene, write


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported.folder(tmp_path_factory.mktemp("scene") / "tiny", "fixed")


@pytest.fixture
def sensor(tmp_path: Path) -> str:
    entry = {key: value for key, value in eye(2).to_dict().items() if key != "name"}
    (tmp_path / "eye.yaml").write_text(yaml.safe_dump({"eye": entry}))
    return str(tmp_path / "eye.yaml")


def run(
    checkpoint: Path, image: Path, sensor: str, output: Path, *more: Any, target_gsd: float = 20
) -> np.ndarray:
    given = ["--checkpoint", checkpoint, "--image", image, "--sensor", sensor, "--output", output]
    assert embed.run([str(text) for text in (*given, "--target-gsd", target_gsd, *more)]) == 0
    with rasterio.open(output) as file:
        return file.read()


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> list[int]:
    """Stops the writing of features after that many strips; the list grows with every strip begun."""
    original, begun = feature_files.Output.write, []

    def write_some(self: feature_files.Output, start: int, strip: np.ndarray) -> None:
        begun.append(start)
        if len(begun) == after + 1:
            raise KeyboardInterrupt
        original(self, start, strip)

    monkeypatch.setattr(feature_files.Output, "write", write_some)
    return begun


@pytest.mark.parametrize("suffix", ["tif", "zarr"])
def test_an_image_replaced_under_its_name_is_begun_anew(checkpoint, sensor, tmp_path, monkeypatch, suffix):
    """Catches an identity of names, sizes and times."""
    image, output, tiles = tmp_path / "a.tif", tmp_path / f"features.{suffix}", ("--tile", 6, "--overlap", 2)
    write(image, scene(2, rows=60, seed=0))
    other = write(tmp_path / "other.tif", scene(2, rows=60, seed=1))
    expected = run(checkpoint, other, sensor, tmp_path / f"expected.{suffix}", *tiles)
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint, image, sensor, output, *tiles)
    shutil.copyfile(other, image)
    with monkeypatch.context() as patch:
        begun = interrupt(patch, 1000)
        np.testing.assert_array_equal(run(checkpoint, image, sensor, output, *tiles), expected)
    assert begun[0] == 0


def test_the_same_content_elsewhere_goes_on(checkpoint, sensor, tmp_path, monkeypatch):
    image, output, tiles = tmp_path / "a.tif", tmp_path / "features.tif", ("--tile", 6, "--overlap", 2)
    write(image, scene(2, rows=60))
    expected = run(checkpoint, image, sensor, tmp_path / "expected.tif", *tiles)
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint, image, sensor, output, *tiles)
    image.rename(tmp_path / "moved.tif")
    with monkeypatch.context() as patch:
        begun = interrupt(patch, 1000)
        found = run(checkpoint, tmp_path / "moved.tif", sensor, output, *tiles)
    assert begun[0] > 0
    np.testing.assert_array_equal(found, expected)


def test_an_image_that_changes_while_it_is_read_is_told(checkpoint, sensor, tmp_path, monkeypatch):
    image = write(tmp_path / "a.tif", scene(2))
    original = feature_files.Output.write

    def replace_image(self: feature_files.Output, start: int, strip: np.ndarray) -> None:
        original(self, start, strip)
        write(tmp_path / "b.tif", scene(2, seed=3)).rename(image)

    monkeypatch.setattr(feature_files.Output, "write", replace_image)
    with pytest.raises(UserError, match="changed while it was read"):
        run(checkpoint, image, sensor, tmp_path / "features.tif")
    assert not (tmp_path / "features.tif").exists()


def test_nothing_of_a_user_s_is_replaced(checkpoint, sensor, tmp_path):
    image = write(tmp_path / "a.tif", scene(2))
    mine = write(tmp_path / "mine.tif", scene(3))
    picture = tmp_path / "mine.png"
    picture.write_bytes(b"a picture")
    store = tmp_path / "mine.zarr"
    store.mkdir()
    (store / "notes.txt").write_text("years of work")
    inner = shutil.copyfile(image, store / "inner.tif")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    output = tmp_path / "features.tif"
    for arguments, sentence in (
        ((image, mine, "--overwrite"), "not recognisably features that embed wrote"),
        ((image, store, "--overwrite"), "not recognisably features that embed wrote"),
        ((inner, store, "--overwrite"), "contains --image"),
        ((image, image, "--overwrite"), "is an --image"),
        ((image, output, "--pca", image, "--overwrite"), "is an --image"),
        ((image, output, "--pca", sensor, "--overwrite"), "is an --sensor"),
        ((image, output, "--pca", output, "--overwrite"), "in each other's way"),
        ((image, output, "--pca", picture, "--overwrite"), "not recognisably a picture"),
        ((image, output, "--pca", picture), "exists"),
        ((store, store / "features.tif"), "whose rasters are a series"),
    ):
        given, path, *more = arguments
        with pytest.raises(UserError, match=sentence):
            run(checkpoint, given, sensor, path, *more)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("suffix", ["tif", "zarr"])
def test_an_own_output_is_replaced_but_not_what_was_put_into_it(checkpoint, sensor, tmp_path, suffix):
    image, output, picture = write(tmp_path / "a.tif", scene(2)), tmp_path / f"f.{suffix}", tmp_path / "f.png"
    run(checkpoint, image, sensor, output, "--pca", picture)
    found = run(checkpoint, image, sensor, output, "--pca", picture, "--overwrite", target_gsd=40)
    assert found.shape[1:] == (10, 10)
    if suffix == "zarr":
        (output / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match="not recognisably"):
            run(checkpoint, image, sensor, output, "--overwrite")


def test_impossible_sizes_are_refused_before_anything_is_written(checkpoint, sensor, tmp_path, monkeypatch):
    image = write(tmp_path / "a.tif", scene(2))
    monkeypatch.setattr(
        "ramen_jax.own_files.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000)
    )
    with pytest.raises(
        UserError,
        match=r"asks for 400 cells, 20 x 20, of 64 features, 100 KiB; the disk of .* has 1e\+03 bytes",
    ):
        run(checkpoint, image, sensor, tmp_path / "features.tif")
    monkeypatch.setattr("ramen_jax.limits.machine_memory", lambda: 1000)
    with pytest.raises(
        UserError, match=r"a strip of tiles takes at least 200 KiB of memory, the limit here is 1e\+03"
    ):
        run(checkpoint, image, sensor, tmp_path / "features.tif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "eye.yaml"]
