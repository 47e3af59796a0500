"""Probes during a pretraining: what the encoder's maps are worth, on the procedural Earth and on any task.

k-NN names the landscape of a place from its neighbours among others; a linear readout in closed form names the class of
every token. Both train nothing of the model and draw nothing at random, so they cannot change the training.

Shape letters: h, w tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from ramen_jax import storage
from ramen_jax.config import recipe_of
from ramen_jax.console import USAGE, UserError
from ramen_jax.earth.places import corpus_spec, render_place, scene_of
from ramen_jax.evaluation.encoders import Pretrained, Sensors
from ramen_jax.evaluation.pangaea.protocol import CORRECTED
from ramen_jax.evaluation.pangaea.tasks import open_task
from ramen_jax.evaluation.pangaea.tasks.regions import crop
from ramen_jax.evaluation.readout import knn, linear_readout
from ramen_jax.inference.encoder import Encoder
from ramen_jax.inference.places import Place
from ramen_jax.model.architecture import Architecture
from ramen_jax.samples import Sample
from ramen_jax.training.evaluators import Evaluator

FIRST_PLACE = 10_000_000  # of the Earth: no training gets that far
SCHEME = "worldcover"


class Probe(NamedTuple):
    """Places to read from. `labels`: per place [h, w] int32, -1 unknown; `kinds`: a class per place, or empty."""

    name: str
    samples: list[Sample]
    labels: list[np.ndarray]
    kinds: list[int]
    classes: int
    sensors: Sensors
    target_gsd: float


class InLoop:
    """An evaluator of the training loop. The first half of a probe's places is learnt from, the second half asked.

    Args:
        every: steps between two runs.
        make: gives the probe, when it is first needed.
    """

    def __init__(self, config: ConfigDict, every: int, make: Callable[[], Probe]) -> None:
        self.every, self._make = every, make
        self._architecture, self._recipe = Architecture.from_dict(config.model.to_dict()), recipe_of(config)
        self._probe: Probe | None = None

    def run(self, params: Any, statistics: Any, step: int) -> dict[str, float]:
        if self._probe is None:
            self._probe = self._make()
        probe = self._probe
        trees = [{"encoder": _whole(tree["encoder"])} for tree in (params, statistics)]
        encoder = Encoder.of(self._architecture, self._recipe, {}, {}, *trees)
        model = Pretrained("in training", encoder, self._recipe.sampling)
        levels = model.levels(probe.samples, probe.sensors, probe.target_gsd, series=False)
        maps = [level[-1] for level in levels]
        half = len(maps) // 2
        values = linear_readout(
            maps[:half], probe.labels[:half], maps[half:], probe.labels[half:], probe.classes
        )
        if probe.kinds:
            values["knn"] = knn(maps[:half], probe.kinds[:half], maps[half:], probe.kinds[half:])
        return {f"probe/{probe.name}_{name}": value for name, value in values.items()}


def run(config: ConfigDict) -> list[Evaluator]:
    """The evaluators that config.evaluators asks for. Nothing is rendered or read yet. Raises UserError."""
    asked = config.evaluators
    found: list[Evaluator] = []
    if asked.every:
        corpus_spec(asked.geometry)  # an unknown one is told before the training begins
        found.append(
            InLoop(config, asked.every, partial(earth, asked.geometry, asked.places, asked.target_gsd))
        )
    for entry in asked.tasks:
        name, equals, folder = entry.partition("=")
        if not equals or not asked.tasks_every:
            raise UserError(
                f"config.evaluators.tasks has {entry!r}, expected NAME=FOLDER, and tasks_every above 0", USAGE
            )
        task = open_task(name, storage.local(folder), CORRECTED)
        if task.family != "segmentation":
            raise UserError(
                f"config.evaluators.tasks: {name} is a {task.family}, expected a segmentation", USAGE
            )
        found.append(InLoop(config, asked.tasks_every, partial(of_task, task, asked.places)))
    return found


def earth(geometry: str, places: int, target_gsd: float) -> Probe:
    """Places of the procedural Earth, far from those of any training."""
    spec = corpus_spec(geometry)
    numbers = range(FIRST_PLACE, FIRST_PLACE + places)
    samples = [render_place(0, number, spec) for number in numbers]
    images = {name: [sample.images[name] for sample in samples] for name in spec.declared}
    samples = [
        dataclasses.replace(s, images={name: s.images[name] for name in spec.declared}) for s in samples
    ]
    sensors = {m.name: with_statistics(m.sensor, images[m.name]) for m in spec.as_declared()}
    grid = Place(samples[0], sensors, target_gsd).grid
    found = [scene_of(0, number, spec).labels(*grid, target_gsd, SCHEME) for number in numbers]
    names = np.unique(np.concatenate([label.ravel() for label in found]))
    labels = [np.searchsorted(names, label).astype(np.int32) for label in found]
    kinds = [int(sample.extra["label"]) for sample in samples]
    return Probe("earth", samples, labels, kinds, len(names), sensors, target_gsd)


def of_task(task: Any, places: int) -> Probe:
    """One tile of each of the first places of training and test; a token has the label of the pixel at its centre."""
    sensors = {spec.name: spec.sensor for spec in task.modalities}
    samples, labels = [], []
    half = min(places // 2, len(task.split("train")), len(task.split("test")))
    for split in ("train", "test"):
        for item in task.split(split)[:half]:
            example = crop(task.example(item, split), 0, 0, min(task.command.crop, task.modalities[0].height))
            grid = Place(example.sample, sensors, task.command.target_gsd).grid
            centres = [
                ((np.arange(tokens) + 0.5) * side / tokens).astype(int)
                for tokens, side in zip(grid, example.target.shape, strict=True)
            ]
            label = example.target[np.ix_(*centres)]
            samples.append(example.sample)
            labels.append(np.where(label == task.ignore_index, -1, label))
    return Probe(task.name, samples, labels, [], len(task.classes), sensors, task.command.target_gsd)


def with_statistics(sensor: Any, images: Sequence[Any]) -> Any:
    """The sensor as it is, or with the statistics of these images."""
    if sensor.mean is not None and sensor.std is not None:
        return sensor
    values = np.concatenate(
        [np.moveaxis(i.values, 1, 0).reshape(i.values.shape[1], -1) for i in images], axis=1
    )
    physical = values * sensor.scale + sensor.offset
    return sensor.with_statistics(physical.mean(1).tolist(), np.maximum(physical.std(1), 1e-6).tolist())


def _whole(tree: Mapping[str, Any]) -> Any:
    """The arrays on this host, gathered from all processes where they are spread."""
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)):
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
