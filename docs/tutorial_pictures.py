"""Draws a scene and its features at four target GSDs, and prints the table of tutorial.md.

python docs/tutorial_pictures.py --checkpoint runs/terramesh --image scene.tif --sensor s2 --output pictures
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import rasterio

import ramen_jax as rj
from ramen_jax import display, embed, figures

TARGET_GSDS = (160.0, 80.0, 40.0, 20.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--checkpoint", "--image", "--output"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--sensor", required=True)
    options = parser.parse_args()
    model = rj.load(options.checkpoint)
    sensor = model.sensor(options.sensor)
    with rasterio.open(options.image) as source:
        pixels = source.read().astype(np.float32) * sensor.scale + sensor.offset
    height, width = pixels.shape[1:]
    extent = (0.0, width * sensor.gsd, height * sensor.gsd, 0.0)

    maps, seconds = [], []
    print("| target GSD | tokens | GFLOP | memory | seconds |\n|---|---|---|---|---|")
    for gsd in TARGET_GSDS:
        output = options.output / f"features_{gsd:g}m.tif"
        began = time.monotonic()
        embed.run(
            [
                *("--checkpoint", str(options.checkpoint), "--image", str(options.image)),
                *(
                    "--sensor",
                    options.sensor,
                    "--target-gsd",
                    f"{gsd:g}",
                    "--output",
                    str(output),
                    "--overwrite",
                ),
            ]
        )
        seconds.append(time.monotonic() - began)
        with rasterio.open(output) as source:
            features = source.read()
        output.unlink()
        maps.append((gsd, features.transpose(1, 2, 0)))
        whole = rj.cost(model, sensor, (height * sensor.gsd, width * sensor.gsd), gsd)
        print(
            f"| {gsd:g} m | {whole.rows} x {whole.columns} | {whole.flops / 1e9:,.1f} | "
            f"{whole.memory / 2**20:,.0f} MiB | {seconds[-1]:.0f} |"
        )

    look = display.looks(sensor, pixels)[0]
    scenes = [(f"{sensor.name}\n{height} x {width} pixels of {sensor.gsd:g} m", look.picture(pixels))]
    figures.features(
        scenes, maps, extent, "One Sentinel-2 scene at four target GSDs", options.output / "tutorial_gsd.png"
    )


if __name__ == "__main__":
    main()
