"""`python -m ramen_jax.embed`: features of any raster as a georeferenced raster, one vector per target-GSD cell."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ramen_jax import console, storage

EXAMPLES = """  python -m ramen_jax.embed --checkpoint runs/base --image scene.tif --sensor sentinel2_l2a \\
      --target-gsd 40 --output features.tif --pca features.png
  python -m ramen_jax.embed --checkpoint ramen_base --target-gsd 20 --output features.tif \\
      --image s2_folder --sensor s2 --image radar.tif --sensor s1            # a folder: one dated raster per frame
  python -m ramen_jax.embed --checkpoint ramen_base --image drone.tif --sensor mine.yaml:drone \\
      --statistics image --target-gsd 2 --output features.zarr              # read it with xarray, or GDAL
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = console.parser(
        "embed",
        (
            "Features of any raster as a georeferenced raster, tile by tile. Tiles overlap and are blended, so "
            "features change smoothly; an interrupted run goes on where it was."
        ),
        EXAMPLES,
    )
    parser.add_argument(
        "--checkpoint",
        type=storage.checkpoint,
        required=True,
        help="a workdir, or a folder that export wrote",
    )
    parser.add_argument(
        "--image",
        type=storage.local,
        action="append",
        required=True,
        help="raster, or folder of dated rasters; repeat per sensor",
    )
    parser.add_argument(
        "--sensor",
        action="append",
        required=True,
        help="sensor of that image: a name, FILE.yaml or FILE.yaml:NAME",
    )
    parser.add_argument("--target-gsd", type=float, required=True, help="metres per output cell")
    parser.add_argument(
        "--output", type=storage.local, required=True, help="NAME.tif (GeoTIFF) or NAME.zarr to write"
    )
    parser.add_argument(
        "--pca", type=storage.local, help="also a picture: the first three principal components (PNG)"
    )
    parser.add_argument("--layer", type=int, help="0-based block whose output to write; default: the last")
    parser.add_argument("--tile", type=int, default=48, help="tokens per side of a tile (default 48)")
    parser.add_argument(
        "--overlap", type=int, default=16, help="tokens shared by neighbouring tiles (default 16)"
    )
    parser.add_argument(
        "--statistics",
        choices=("sensor", "image"),
        default="sensor",
        help="normalise with the sensor's mean and std (default), or with those of the image itself",
    )
    parser.add_argument(
        "--positions",
        choices=("tile", "scene"),
        default="tile",
        help="tokens know their place in the tile, as in training (default), or in the whole scene",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser.parse_args(arguments)


def run(arguments: Sequence[str] | None = None) -> int:
    return console.call("ramen_jax.embedding.scene", parse(arguments))


if __name__ == "__main__":
    console.main(run)
