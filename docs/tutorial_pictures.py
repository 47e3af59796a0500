"""Draws the pictures of tutorial.md and prints its table.

python docs/tutorial_pictures.py scene --checkpoint runs/terramesh --image scene.tif --sensor s2 --output pictures
python docs/tutorial_pictures.py detail --checkpoint runs/quickstart --output pictures
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import rasterio

import ramen_jax as rj
from ramen_jax import embed, sampling
from ramen_jax.earth import places
from ramen_jax.visual import display, figures

SCENE_GSDS = (160.0, 80.0, 40.0, 20.0)
OVERLAP = 24  # tokens, half a tile: a model of a few minutes knows places of 640 m only, and shows its tiles
DETAIL_GSDS = (16.0, 10.0, 8.0, 6.0, 5.0, 4.0, 3.0, 2.0)
PLACES, HELD_OUT = 64, 16  # rendered from a seed that no training uses
SEED = 99
RIDGE = 1e-2


def scene(options: argparse.Namespace) -> None:
    """One scene's features at four target GSDs, and what each costs."""
    model = rj.load(options.checkpoint)
    with rasterio.open(options.image) as source:
        sensor = model.sensor(options.sensor)
        pixels = source.read().astype(np.float32) * sensor.scale + sensor.offset
    maps = []
    print("| target GSD | tokens | GFLOP | memory |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for gsd in SCENE_GSDS:
            output = Path(folder) / f"{gsd:g}.tif"
            command = [
                "--checkpoint",
                options.checkpoint,
                "--image",
                options.image,
                "--sensor",
                options.sensor,
            ]
            command += ["--target-gsd", f"{gsd:g}", "--output", output, "--overlap", OVERLAP]
            embed.run([str(text) for text in command])
            with rasterio.open(output) as source:
                maps.append((gsd, source.read().transpose(1, 2, 0)))
            size = (maps[-1][1].shape[0] * gsd, maps[-1][1].shape[1] * gsd)
            cost = rj.cost(model, sensor, size, gsd)
            print(
                f"| {gsd:g} m | {cost.rows} x {cost.columns} | {cost.flops / 1e9:,.1f} | "
                f"{cost.memory / 2**20:,.0f} MiB |"
            )
    extent = (0.0, size[1], size[0], 0.0)
    shown = []
    if not options.features_only:
        look = display.looks(sensor, pixels)[0]
        heading = f"{sensor.name}\n{pixels.shape[1]} × {pixels.shape[2]} pixels of {sensor.gsd:g} m"
        shown.append((heading, look.picture(pixels)))
    title = "One scene at four target GSDs"
    figures.features(shown, maps, extent, title, options.output / "tutorial_gsd.png")


def detail(options: argparse.Namespace) -> None:
    """How well land cover is read from the features of an aerial image, against what they cost."""
    model = rj.load(options.checkpoint)
    spec = places.corpus_spec("tiny")
    aerial = spec.modality("aerial")
    size = aerial.height * aerial.sensor.gsd
    images, labels = [], []
    for place in range(PLACES):
        image = places.render_place(SEED, place, spec).images["aerial"]
        images.append({"aerial": rj.Image(image.values, image.dates)})
        labels.append(places.render_labels(SEED, place, spec, "aerial", "worldcover"))
    classes = np.unique(labels)
    truth_PxHxWxK = (np.stack(labels)[..., None] == classes).astype(np.float32)
    lines = []
    for gsd in DETAIL_GSDS:
        encoded = model.encode(images, target_gsd=gsd)
        features_PxGxGxD = np.stack([features.maps["aerial"].transpose(1, 2, 0) for features in encoded])
        grid = features_PxGxGxD.shape[1]
        area_GxH = sampling.down_matrix(aerial.height, aerial.sensor.gsd, size / grid, grid, "area")
        shares_PxGxGxK = np.einsum("gh,phwk,jw->pgjk", area_GxH, truth_PxHxWxK, area_GxH, optimize=True)
        read_PxGxG = probe(features_PxGxGxD, shares_PxGxGxK)
        scores = [
            agreement(guess, labels[-HELD_OUT:], classes)
            for guess in (read_PxGxG, shares_PxGxGxK[-HELD_OUT:])
        ]
        cost = rj.cost(model, {"aerial": "aerial"}, size, gsd)
        lines.append((gsd, cost.flops / 1e6, *scores))
        print(
            f"{gsd:g} m: {cost.tokens} tokens, {lines[-1][1]:.0f} MFLOP, right {scores[0]:.1%}, at best {scores[1]:.1%}"
        )
    figures.detail(lines, HELD_OUT, options.output / "tutorial_detail.png")


def probe(features_PxGxGxD: np.ndarray, shares_PxGxGxK: np.ndarray) -> np.ndarray:
    """Class scores of the held-out places by ridge regression of class shares on standardised features."""
    seen = features_PxGxGxD[:-HELD_OUT].reshape(-1, features_PxGxGxD.shape[-1])
    mean, std = seen.mean(axis=0), seen.std(axis=0) + 1e-6
    inputs_NxD = np.c_[(seen - mean) / std, np.ones(len(seen))]
    targets_NxK = shares_PxGxGxK[:-HELD_OUT].reshape(len(seen), -1)
    penalty = RIDGE * len(seen) * np.eye(inputs_NxD.shape[1])
    weights_DxK = np.linalg.solve(inputs_NxD.T @ inputs_NxD + penalty, inputs_NxD.T @ targets_NxK)
    held = (features_PxGxGxD[-HELD_OUT:] - mean) / std
    return held @ weights_DxK[:-1] + weights_DxK[-1]


def agreement(scores_PxGxGxK: np.ndarray, labels: list[np.ndarray], classes: np.ndarray) -> float:
    """Share of pixels whose class is that of the token above them."""
    guess_PxGxG = classes[scores_PxGxGxK.argmax(axis=-1)]
    grid, pixels = guess_PxGxG.shape[1], labels[0].shape[0]
    token = ((np.arange(pixels) + 0.5) * grid / pixels).astype(int)
    return float(np.mean(guess_PxGxG[:, token][:, :, token] == np.stack(labels)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for run in (scene, detail):
        command = commands.add_parser(run.__name__, help=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("--checkpoint", type=Path, required=True)
        command.add_argument("--output", type=Path, required=True)
        if run is scene:
            command.add_argument("--image", type=Path, required=True)
            command.add_argument("--sensor", required=True)
            command.add_argument("--features-only", action="store_true", help="leave the scene itself out")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    options.run(options)


if __name__ == "__main__":
    main()
