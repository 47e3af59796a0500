"""Replays golden values of the PANGAEA benchmark and prints the worst error of each kind.

    python tests/golden/replay_pangaea.py tests/golden/pangaea

A folder holds any of `encoder_*.npz`, decoders named after `ramen_jax.evaluation.pangaea.decoders.KINDS`,
`trajectory_*.npz`, `harness.npz` and `neighbours.npz`; the arrays are described in `tests/golden/README.md`.
Exit status 1 above a tolerance, 2 for a folder that cannot be read.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A checkout that is not installed is enough to run this file.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ramen_jax.evaluation.pangaea import losses, metrics, optimization
from ramen_jax.evaluation.pangaea.decoders import KINDS, Decoder, build, from_official, neighbours
from ramen_jax.evaluation.pangaea.protocol import PUBLISHED
from ramen_jax.evaluation.pangaea.tiling import Tiles
from ramen_jax.inference.encoder import Encoder
from ramen_jax.inference.images import Image
from ramen_jax.interchange import torch_weights
from ramen_jax.model.architecture import Architecture
from ramen_jax.model.ramen import Ramen
from ramen_jax.recipe import REFERENCE
from ramen_jax.sensors import Band, Sensor
from tests.golden.replay import Worst, relative

Arrays = dict[str, np.ndarray]

# Absolute; the losses of a trajectory relative. Of the tiling test's channels two pass through a mean over a tile,
# which no two codes round alike; the third is exact.
TOLERANCES = {
    "encoder features": 5e-4,
    "logits, evaluation": 1e-4,
    "logits, training": 1e-4,
    "loss": 1e-4,
    "metric": 1e-4,
    "neighbours": 0.0,
    "tiling": 1e-6,
    "tiling, exact channel": 0.0,
    "losses, first ten": 1e-4,
    "losses, the rest": 1e-3,
    "learning rates": 0.0,
    "final logits": 1e-2,
}
# Of the golden model; the files do not say it.
HEADS = 4
FIRST_STEPS = 10


def read(path: Path) -> Arrays:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def under(arrays: Arrays, prefix: str) -> Arrays:
    """The arrays below `prefix/`, by the rest of their names."""
    return {name[len(prefix) + 1 :]: value for name, value in arrays.items() if name.startswith(f"{prefix}/")}


def largest(found: Any, expected: np.ndarray) -> float:
    found = np.asarray(found)
    if found.shape != expected.shape:
        raise ValueError(f"found shape {found.shape}, the golden value has {expected.shape}")
    return float(np.max(np.abs(found - expected)))


def channels_first(x: Any) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)


def encoder_model(weights: Arrays) -> Encoder:
    """The evaluation encoder with the reference recipe; projectors that a file leaves out are not used by it."""
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    architecture = Architecture(embed_dim=weights["cls_token"].shape[-1], depth=depth, num_heads=HEADS)
    ramen = Ramen(architecture, REFERENCE, with_decoder=False)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), ramen.shapes)
    tensors = torch_weights.to_official(*zeros)
    tensors.update({f"encoder.{name}": value for name, value in weights.items()})
    return Encoder(ramen, {}, {}, *torch_weights.from_official(tensors, ramen.shapes))


def encoder_features(arrays: Arrays) -> list[np.ndarray]:
    """One [B, D * modalities, n, n] per layer asked for."""
    case = json.loads(str(arrays["case"]))
    model = encoder_model(under(arrays, "weights"))
    places = []
    for b in range(next(iter(under(arrays, "input").values())).shape[0]):
        images = {}
        for name, codes in case["wavelengths"].items():
            values = np.moveaxis(arrays[f"input/{name}"][b], 0, 1).astype(np.float32) / 8
            bands = tuple(Band.of(str(code), code) for code in codes)
            unit = {"mean": (0.0,) * len(bands), "std": (1.0,) * len(bands)}
            sensor = Sensor(name, bands, case["input_gsd"], "golden integers", **unit)
            images[name] = Image(values, arrays[f"dates/{name}"][b], sensor)
        found = model.encode(images, case["target_gsd"], case["output_layers"])
        places.append([np.concatenate(list(maps.values())) for maps in found.layers])
    return [np.stack(layer) for layer in zip(*places, strict=True)]


def replay_encoder(name: str, arrays: Arrays, worst: Worst) -> None:
    for layer, found in enumerate(encoder_features(arrays)):
        worst.add("encoder features", largest(found, arrays[f"feature/{layer}"]), f"{name} layer {layer}")


def decoder_name(stem: str) -> str | None:
    """The decoder that a file is named after; what follows its name is free."""
    stem = "seg_" + stem if stem.startswith("unet") else stem
    return max((name for name in KINDS if stem.startswith(name)), key=len, default=None)


def decoder_case(name: str, arrays: Arrays) -> tuple[Decoder, list[jax.Array]]:
    """The decoder with the sizes of a file, and its input."""
    weights = under(arrays, "weights")
    outputs = arrays["logits_eval"].shape[1]
    if "input/optical" in arrays or "input/sar" in arrays:
        images = [under(arrays, "input")[key] for key in ("optical", "sar") if f"input/{key}" in arrays]
        pixels = np.moveaxis(np.concatenate(images, axis=1), 1, -1)
        downs = sorted(key for key in weights if re.search(r"down\d+\.mpconv\.1\.conv\.0\.weight", key))
        topology = tuple(weights[key].shape[1] for key in downs)
        decoder = build(name, pixels.shape[-1:], outputs, dates=pixels.shape[1], topology=topology)
        return decoder, [jnp.asarray(pixels if decoder.series else pixels[:, 0])]
    features = under(arrays, "feature")
    levels = [
        np.stack([features[key] for key in sorted(features) if key.split("/")[-1] == str(level)], axis=1)
        for level in range(len({key.split("/")[-1] for key in features}))
    ]
    levels = [np.moveaxis(level, 2, -1) for level in levels]
    channels = weights["fpn_bottleneck.0.weight"].shape[0] if "fpn_bottleneck.0.weight" in weights else 512
    widths = [level.shape[-1] for level in levels]
    decoder = build(name, widths, outputs, dates=max(levels[0].shape[1], 1), channels=channels)
    return decoder, [jnp.asarray(level if decoder.series else level[:, 0]) for level in levels]


def replay_decoder(stem: str, name: str, arrays: Arrays, worst: Worst) -> None:
    decoder, levels = decoder_case(name, arrays)
    params, statistics = from_official(decoder, under(arrays, "weights"))
    size = arrays["logits_eval"].shape[2:]

    @jax.jit
    def both(params: Any, statistics: Any, levels: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        evaluated, _ = decoder.apply(params, statistics, levels, size)
        trained, _ = decoder.apply(params, statistics, levels, size, train=True)
        return evaluated, trained

    evaluated, trained = both(params, statistics, levels)
    worst.add("logits, evaluation", largest(channels_first(evaluated), arrays["logits_eval"]), stem)
    worst.add("logits, training", largest(channels_first(trained), arrays["logits_train"]), stem)


def replay_trajectory(stem: str, arrays: Arrays, worst: Worst) -> None:
    """A whole small training with the benchmark's loss, optimiser and schedule, dropout off."""
    case = json.loads(str(arrays["case"]))
    batches = [under(arrays, f"batch/{b}") for b in range(arrays["logits_eval_final"].shape[0])]
    inputs = [
        [
            jnp.asarray(np.moveaxis(batch[f"feature/{i}"], 1, -1) * np.float32(case["feature_scale"]))
            for i in range(sum(key.startswith("feature/") for key in batch))
        ]
        for batch in batches
    ]
    targets = [jnp.asarray(batch["target"].astype(np.int32)) for batch in batches]
    size = targets[0].shape[1:]
    decoder = build(
        case["decoder"], [x.shape[-1] for x in inputs[0]], case["classes"], channels=case["channels"]
    )
    params, statistics = from_official(decoder, under(arrays, "weights"))
    loss = losses.build(case["loss"], ignore_index=case["ignore_index"])
    protocol = dataclasses.replace(
        PUBLISHED,
        learning_rate=case["learning_rate"],
        weight_decay=case["weight_decay"],
        betas=tuple(case["betas"]),
        eps=case["eps"],
        milestones=tuple(case["milestones"]),
        gamma=case["gamma"],
    )
    optimizer = optimization.optimizer(protocol, case["steps"])
    rate = optimization.schedule(protocol, case["steps"])
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, statistics: Any, state: Any, levels: Any, target: jax.Array) -> tuple:
        def objective(params: Any) -> tuple[jax.Array, Any]:
            logits, moved = decoder.apply(params, statistics, levels, size, train=True)
            return loss(logits, target), moved

        (value, moved), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), moved, state, value

    for number, expected in enumerate(case["losses"]):
        b = number % len(batches)
        params, statistics, state, value = step(params, statistics, state, inputs[b], targets[b])
        kind = "losses, first ten" if number < FIRST_STEPS else "losses, the rest"
        worst.add(kind, relative(value, expected), f"{stem} step {number}")
        difference = float(rate(number)) - float(np.float32(case["learning_rates"][number]))
        worst.add("learning rates", abs(difference), f"{stem} step {number}")
    evaluate = jax.jit(lambda *arguments: decoder.apply(*arguments, size)[0])
    for b, levels in enumerate(inputs):
        found = channels_first(evaluate(params, statistics, levels))
        worst.add("final logits", largest(found, arrays["logits_eval_final"][b]), f"{stem} batch {b}")


def replay_harness(arrays: Arrays, worst: Worst) -> None:
    """Every `metrics_*`, `loss_*` and `tiling_*` of the file."""
    parts: dict[str, Callable[[str, Arrays, Worst], None]] = {
        "metrics": _metrics,
        "loss": _loss,
        "tiling": _tiling,
    }
    for group in sorted({name.split("/")[0] for name in arrays}):
        parts[group.split("_")[0]](group, under(arrays, group), worst)


def _metrics(group: str, arrays: Arrays, worst: Worst) -> None:
    match = re.fullmatch(r"metrics_nc(\d+)_ignore(-?\d+)", group)
    assert match, group
    classes, ignore = map(int, match.groups())
    matrix = metrics.confusion(
        jnp.asarray(arrays["pred"], jnp.int32), jnp.asarray(arrays["target"], jnp.int32), classes, ignore
    )
    found = metrics.segmentation(np.asarray(matrix), metrics.PUBLISHED, ignore)
    for key, expected in json.loads(str(arrays["result"])).items():
        worst.add("metric", largest(np.asarray(found[key]), np.asarray(expected)), f"{group} {key}")


def _loss(group: str, arrays: Arrays, worst: Worst) -> None:
    logits = jnp.asarray(np.moveaxis(arrays["logits"], 1, -1))
    labels = jnp.asarray(arrays["target"], jnp.int32)
    for name in sorted(set(arrays) & set(losses.NAMES)):
        found = losses.build(name, ignore_index=-1)(logits, labels)
        worst.add("loss", abs(float(found) - float(arrays[name])), f"{group} {name}")


def _tiling(group: str, arrays: Arrays, worst: Worst) -> None:
    side = int(group.split("_")[-1])
    image = arrays["input"][:, :, 0]
    tiles = Tiles.of(*image.shape[-2:], side)

    def network(x: np.ndarray) -> np.ndarray:
        mean = x.mean(axis=(2, 3), keepdims=True, dtype=np.float64).astype(np.float32)
        return np.moveaxis(np.concatenate([mean + x[:, :1], 2 * x[:, 1:2]], axis=1), 1, -1)

    logits = jnp.asarray(np.stack([network(tile) for tile in tiles.cut(image)]))
    for published in (False, True):  # the same on square images
        found = channels_first(tiles.merge(logits, published=published))
        worst.add("tiling", largest(found, arrays["merged"]), group)
        worst.add("tiling, exact channel", largest(found[:, 2], arrays["merged"][:, 2]), group)


def replay_neighbours(arrays: Arrays, worst: Worst) -> None:
    """The answers of k-NN: rankings of 5 neighbours, and the 3 highest of several labels by 20 neighbours."""
    queries, bank = jnp.asarray(arrays["queries"]), jnp.asarray(arrays["bank"])
    classes = int(arrays["ranking"].shape[1])
    one_hot = jax.nn.one_hot(jnp.asarray(arrays["labels"], jnp.int32), classes)
    voted = neighbours.vote(queries, bank, one_hot, neighbours=5)
    # Classes without a neighbour are equal, and their order is nobody's.
    places = np.sum(np.asarray(voted) > 0, axis=1)
    found = np.asarray(neighbours.ranking(voted))
    for row, count in enumerate(places):
        wrong = np.sum(found[row, :count] != arrays["ranking"][row, :count])
        worst.add("neighbours", float(wrong), f"ranking of query {row}")
    voted = neighbours.vote(queries, bank, jnp.asarray(arrays["multi_labels"]), neighbours=20)
    found = np.asarray(neighbours.positives(voted, int(arrays["positives"][0].sum())))
    worst.add("neighbours", float(np.sum(found != arrays["positives"])), "several labels")


def replay_file(path: Path, worst: Worst) -> bool:
    """Adds the errors of one file; False when it is of no known kind."""
    arrays = read(path)
    stem = path.stem
    name = decoder_name(stem)
    if stem.startswith("encoder_"):
        replay_encoder(stem, arrays, worst)
    elif stem.startswith("trajectory_"):
        replay_trajectory(stem, arrays, worst)
    elif stem == "harness":
        replay_harness(arrays, worst)
    elif stem == "neighbours":
        replay_neighbours(arrays, worst)
    elif name is not None:
        replay_decoder(stem, name, arrays, worst)
    else:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare with golden values of the PANGAEA benchmark.")
    parser.add_argument(
        "folder", type=Path, help="folder with encoder_*, DECODER*, trajectory_*, harness .npz"
    )
    folder = parser.parse_args().folder
    worst = Worst(TOLERANCES)
    for path in sorted(folder.glob("*.npz")):
        known = replay_file(path, worst)
        print(f"{path.name}: {'replayed' if known else 'of no known kind, left out'}", flush=True)
    if not worst.errors:
        print(
            f"{folder} holds no file to replay; expected the format of tests/golden/pangaea", file=sys.stderr
        )
        return 2
    print(worst.table())
    return 1 if worst.failures() else 0


if __name__ == "__main__":
    sys.exit(main())
