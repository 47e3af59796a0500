"""Of `embed`: options, sensor files, rasters."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from tests.wrong_inputs.registry import BOMB, OLD, case, file

# -- embed -------------------------------------------------------------------------------------------------------------


def raster(place: Path, name: str = "scene.tif", **how: object) -> str:
    profile = {
        "driver": "GTiff",
        "count": 4,
        "height": 64,
        "width": 64,
        "dtype": "uint8",
        "crs": "EPSG:32631",
    }
    profile["transform"] = Affine(1.6, 0, 500_000.0, 0, -1.6, 5_600_000.0)
    profile |= how
    with rasterio.open(place / name, "w", **profile) as target:
        shape = (profile["count"], profile["height"], profile["width"])
        target.write(np.random.default_rng(0).integers(1, 255, shape).astype(profile["dtype"]))
    return str(place / name)


def embedded(place: Path, *changes: str, image: str | None = None) -> list[str]:
    options = {
        "--checkpoint": str(OLD / "exported"),
        "--image": image or raster(place),
        "--sensor": "aerial",
        "--target-gsd": "8",
        "--output": str(place / "features.tif"),
    }
    options |= dict(zip(changes[::2], changes[1::2], strict=True))
    return [text for option in options.items() for text in option]


for option, values in {
    "--target-gsd": ("0", "-8", "nan", "inf", "1e-9", "1e300", "ten"),
    "--tile": ("0", "-1", "x"),
    "--overlap": ("-1", "48", "100", "x"),
    "--layer": ("1", "-1", "99", "x"),
    "--sensor": ("nothing", "nothing.yaml", "aerial:3", "", "sentinel2_l2a", "dem"),
    "--checkpoint": ("nowhere", "README.md", "tests", "~nobody_of_that_name"),
    "--statistics": ("mine",),
    "--positions": ("mine",),
    "--image": ("nowhere.tif", "README.md", "tests/model", "/dev/null", "configs"),
}.items():
    for value in values:
        case("embed", f"{option} {value}", lambda place, o=option, v=value: embedded(place, o, v))
for name in ("features.txt", "features", "features.png", "nowhere\0.tif"):
    case("embed", f"--output {name!r}", lambda place, n=name: embedded(place, "--output", str(place / n)))
case("embed", "output over the image", lambda place: embedded(place, "--output", str(place / "scene.tif")))
case("embed", "picture over the image", lambda place: embedded(place, "--pca", str(place / "scene.tif")))
case("embed", "output in no folder", lambda place: embedded(place, "--output", "/proc/nowhere/features.tif"))
case("embed", "two images, one sensor", lambda place: [*embedded(place), "--image", str(place / "scene.tif")])
case("embed", "no arguments", lambda place: [])
SENSORS: dict[str, str | bytes] = {
    "empty": "",
    "a list": "- a\n",
    "a number": "a: 3\n",
    "no bands": "a: {gsd: 1}\n",
    "no gsd": "a: {bands: {b: 490}}\n",
    "gsd is a text": "a: {gsd: fine, bands: {b: 490}}\n",
    "gsd is nan": "a: {gsd: .nan, bands: {b: 490}}\n",
    "gsd is negative": "a: {gsd: -1, bands: {b: 490}}\n",
    "bands is a number": "a: {gsd: 1, bands: 3}\n",
    "a band of a list": "a: {gsd: 1, bands: {b: [1]}}\n",
    "a band of a mapping": "a: {gsd: 1, bands: {b: {c: 1}}}\n",
    "twice": "a: {gsd: 1, bands: {b: 490, b: 500}}\n",
    "unknown key": "a: {gsd: 1, colour: red, bands: {b: 490}}\n",
    "mean of another length": "a: {gsd: 1, bands: {b: 490}, mean: [1, 2], std: [1]}\n",
    "mean is a text": "a: {gsd: 1, bands: {b: 490}, mean: x, std: [1]}\n",
    "bomb": BOMB,
    "not utf-8": b"a: \xff\n",
    "unclosed": "a: [",
    "numbers for names": "3: {gsd: 1, bands: {4: 490}}\n",
    "units is a list": "a: {gsd: 1, units: [x], bands: {b: 490}, mean: [1], std: [1]}\n",
    "scale is a text": "a: {gsd: 1, scale: x, bands: {b: 490}, mean: [1], std: [1]}\n",
}
for name, content in SENSORS.items():
    case(
        "embed",
        f"sensor file, {name}",
        lambda place, c=content: embedded(place, "--sensor", file(place, "s.yaml", c)),
    )
case("embed", "other bands", lambda place: embedded(place, image=raster(place, count=3)))
case(
    "embed",
    "no pixel size",
    lambda place: embedded(place, image=raster(place, transform=Affine.identity(), crs=None)),
)
case("embed", "truncated", lambda place: embedded(place, image=cut(raster(place))))
case("embed", "empty file", lambda place: embedded(place, image=file(place, "empty.tif", "")))


def cut(path: str) -> str:
    os.truncate(path, 900)
    return path
