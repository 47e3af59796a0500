"""Twenty steps of the benchmark's own trainer, and of ours on the same files, crops and first weights.

    case = read(Path("tests/golden/pangaea/side_by_side_sen1floods11.json"))
    found = replay(case, folder)

A case holds what the benchmark's trainer gave and the order of its crops. Files and weights are not kept: both sides
make them from the rules below, which use whole numbers of a Mersenne twister alone and so give the same bits anywhere.

Shape letters: T dates, C bands, H, W pixels.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rasterio.transform import from_origin

from ramen_jax.earth.layouts import files
from ramen_jax.evaluation.cache import Cache
from ramen_jax.evaluation.encoders import Pretrained
from ramen_jax.evaluation.pangaea.decoders import Decoder, from_official, official
from ramen_jax.evaluation.pangaea.optimization import schedule
from ramen_jax.evaluation.pangaea.protocol import PUBLISHED
from ramen_jax.evaluation.pangaea.tasks import Task, open_task
from ramen_jax.evaluation.pangaea.tasks.regions import crop
from ramen_jax.evaluation.runs import Run, Settings
from ramen_jax.inference.encoder import Encoder
from ramen_jax.interchange import torch_weights
from ramen_jax.model.architecture import Architecture
from ramen_jax.model.ramen import Ramen
from ramen_jax.recipe import REFERENCE

BLOCK = 6  # pixels of one colour: what a coarse token can tell apart
SPLITS = {"train": 8, "val": 2, "test": 1}


@dataclasses.dataclass
class Trajectory:
    """What a training gave: a loss and a learning rate per step, and confusion matrices (rows truth) by epoch."""

    losses: list[float]
    learning_rates: list[float]
    confusion: dict[str, list[list[int]]]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


# -- files -----------------------------------------------------------------------------------------------------------


def field(name: str, pixels: int) -> np.ndarray:
    """Numbers 0..4095, int64 [H, W]: coarse blocks with fine grain, from the name alone."""
    twister = np.random.RandomState(zlib.crc32(name.encode()))
    side = -(-pixels // BLOCK)
    blocks = np.kron(twister.randint(0, 3072, (side, side), np.int64), np.ones((BLOCK, BLOCK), np.int64))[
        :pixels, :pixels
    ]
    return blocks + twister.randint(0, 1024, (pixels, pixels), np.int64)


def write_floods(folder: Path, pixels: int) -> None:
    """Sen1Floods11: weak radar where there is water; a strip without label, one without radar."""
    root = folder / "v1.1" / "data" / "flood_events" / "HandLabeled"
    where = from_origin(2.0, 40.0, 1e-4, 1e-4)
    for split, word in (("train", "train"), ("val", "valid"), ("test", "test")):
        lines = []
        for number in range(SPLITS[split]):
            chip = f"Spain_{split}{number}"
            depth = field(chip, pixels)
            label = (depth > 2048).astype(np.int16)
            optical = np.stack(
                [(field(f"{chip} {band}", pixels) + depth * (band % 4)) // 2 for band in range(13)]
            )
            radar = np.stack([-field(f"{chip} radar {band}", pixels) / 256 - label * 4 for band in range(2)])
            label[:, :5] = -1
            radar[..., -3:] = np.nan
            for part, values in (
                ("S2Hand", optical.astype(np.int16)),
                ("S1Hand", radar.astype(np.float32)),
                ("LabelHand", label[None]),
            ):
                files.write_tiff(root / part / f"{chip}_{part}.tif", values, crs="EPSG:4326", transform=where)
            lines.append(f"{chip}_S1Hand.tif,{chip}_LabelHand.tif\n")
        lists = folder / "v1.1" / "splits" / "flood_handlabeled"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"flood_{word}_data.csv").write_text("".join(lines))
    facts = {"location": "Spain", "orbit": "DESCENDING", "s1_date": "2018/08/18", "s2_date": "2018/08/19"}
    _collection(folder / "v1.1" / "Sen1Floods11_Metadata.geojson", [facts])


def write_series(folder: Path, pixels: int) -> None:
    """PASTIS-R: five crops by their phase; 9 dates of Sentinel-2, 14 of Sentinel-1, into the second calendar year."""
    folds = {"train": (1, 2, 3), "val": (4,), "test": (5,)}
    patches = []
    for split, count in SPLITS.items():
        for number in range(count):
            patch = 10_000 + len(patches)
            crops = field(str(patch), pixels) * 5 // 4096
            for part, dates, bands in (("S2", 9, 10), ("S1A", 14, 3)):
                values_TxCxHxW = np.stack(
                    [
                        np.stack(
                            [
                                field(f"{patch} {part} {t} {c}", pixels) + 400 * ((crops * t + c) % 5)
                                for c in range(bands)
                            ]
                        )
                        for t in range(dates)
                    ]
                )
                stored = (
                    values_TxCxHxW.astype(np.int16)
                    if part == "S2"
                    else (-values_TxCxHxW / 256).astype(np.float32)
                )
                _save(folder / f"DATA_{part}" / f"{part}_{patch}.npy", stored)
            label = np.where(field(f"{patch} void", pixels) > 3900, 19, crops).astype(np.uint8)
            _save(folder / "ANNOTATIONS" / f"TARGET_{patch}.npy", np.stack([label, label, label]))
            facts: dict[str, Any] = {"ID_PATCH": patch, "Fold": folds[split][number % len(folds[split])]}
            for key, dates in (("dates-S2", 9), ("dates-S1A", 14)):
                days = [np.datetime64("2018-09-17") + 26 * t for t in range(dates)]
                facts[key] = {str(t): int(str(day).replace("-", "")) for t, day in enumerate(days)}
            patches.append(facts)
    _collection(folder / "metadata.geojson", patches)


WRITERS: Mapping[str, Callable[[Path, int], None]] = {"sen1floods11": write_floods, "pastis": write_series}


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def _collection(path: Path, facts: Sequence[Mapping[str, Any]]) -> None:
    features = [{"type": "Feature", "properties": dict(each), "geometry": None} for each in facts]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


# -- weights ---------------------------------------------------------------------------------------------------------


def tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A tensor for every official name: weights as wide as their fan-in asks for, norms near the identity."""
    made = {}
    for name, shape in shapes.items():
        uniform = np.random.RandomState(zlib.crc32(name.encode())).randint(-(1 << 20), 1 << 20, shape) / (
            1 << 20
        )
        if name.endswith("num_batches_tracked"):
            value = np.asarray(7, np.int64)
        elif len(shape) < 2 and name.endswith(("weight", "running_var")):
            value = 1 + uniform / 4
        elif len(shape) < 2 or name.endswith("cls_token"):
            value = uniform / 4
        else:
            value = uniform * (3.0 / np.prod(shape[1:])) ** 0.5
        made[name] = value if value.dtype == np.int64 else value.astype(np.float32)
    return made


def encoder_tensors(sizes: Mapping[str, int]) -> tuple[Ramen, dict[str, np.ndarray]]:
    """The encoder of these sizes and its tensors under the official names, `encoder.` in front."""
    ramen = Ramen(Architecture(**sizes), REFERENCE, with_decoder=False)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), ramen.shapes)
    shapes = {name: array.shape for name, array in torch_weights.to_official(*zeros).items()}
    return ramen, tensors(shapes)


def decoder_tensors(decoder: Decoder) -> dict[str, np.ndarray]:
    """Those of a decoder, its running statistics at their beginning."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), decoder.shapes())
    made = tensors({name: array.shape for name, array in official.to_official(decoder, *zeros).items()})
    first = {"running_mean": np.zeros, "running_var": np.ones, "num_batches_tracked": np.zeros}
    for name, array in made.items():
        fresh = first.get(name.rpartition(".")[2])
        made[name] = array if fresh is None else fresh(array.shape, array.dtype)
    return made


# -- our side --------------------------------------------------------------------------------------------------------


def open_case(case: Mapping[str, Any], files_of_task: Path, folder: Path) -> tuple[Run, Task]:
    """Our run of a case, dropout off, on the original files of its task."""
    ramen, weights = encoder_tensors(case["encoder"])
    params, statistics = torch_weights.from_official(weights, ramen.shapes)
    encoder = Encoder.of(ramen.architecture, REFERENCE, {}, {}, params, statistics)
    task = open_task(case["task"], files_of_task, PUBLISHED, pixels=case["pixels"])
    settings = Settings(
        target_gsd=case["target_gsd"],
        decoder=case["decoder"],
        epochs=case["epochs"],
        batch_size=case["batch_size"],
        replicate=case.get("replicate", 1),
        crop=case["crop"],
        channels=case["channels"],
        dropout=False,
    )
    model = Pretrained("side by side", encoder, PUBLISHED.sampling)
    return Run(task, model, settings, folder, Cache(folder / "features", 0, print), print), task


def replay(case: Mapping[str, Any], files_of_task: Path, folder: Path) -> Trajectory:
    """Ours on the crops of the case: `order` has [item, first row, first column] of every place of every step."""
    run, task = open_case(case, files_of_task, folder)
    state = run.fit.begin(*from_official(run.decoder, decoder_tensors(run.decoder)), run.features.initial())
    found = Trajectory([], [], {})
    rate = schedule(PUBLISHED, len(case["order"]))
    for number, places in enumerate(case["order"]):
        epoch, first = divmod(number, run.per_epoch)
        if not first and PUBLISHED.validates(epoch):
            found.confusion[str(epoch)] = run.scores(state, "val")["confusion"]
        batch = [crop(task.example(item, "train"), y, x, case["crop"]) for item, y, x in places]
        state, loss = run.step(state, batch, number)
        found.losses.append(loss)
        found.learning_rates.append(float(rate(number)))
    found.confusion[str(case["epochs"])] = run.scores(state, "val")["confusion"]
    return found
