"""Encoders: whatever turns samples into maps at a target GSD, frozen, for a decoder to be trained on.

    encoder = open_encoder("checkpoint", Path("runs/base"))
    levels = encoder.levels(samples, sensors, target_gsd=40.0, series=False)    # per sample [K, h, w, D]

`Pretrained` is RAMEN with weights: a workdir, an exported folder or an official .ckpt, or none at all (`untrained`).
`Raw` gives the bands themselves, averaged over each token's footprint. `Pixels` gives the normalised image, for the
U-Net that is trained from scratch. All see the same samples and normalise by the same statistics.

Numpy in and out. Shape letters: K levels, T dates, C bands, H, W pixels, h, w tokens, D channels.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from ramen_jax.console import DATA, USAGE, UserError, close_names
from ramen_jax.inference.encoder import Encoder
from ramen_jax.inference.on_grid import on_grid
from ramen_jax.inference.places import Batch, Place
from ramen_jax.limits import refuse_beyond_memory
from ramen_jax.model import flops
from ramen_jax.model.architecture import Architecture
from ramen_jax.recipe import Recipe
from ramen_jax.samples import Image, Sample
from ramen_jax.sensors import Sensor
from ramen_jax.training import weights

KINDS = ("checkpoint", "untrained", "raw", "unet")
LEVELS = 4
SAME_BAND_NM = 25.0
Sensors = Mapping[str, Sensor]


class MapEncoder(Protocol):
    """What a task's decoder is trained on.

    Attributes:
        name: as printed in tables.
        frozen: whether its maps are worth keeping on disk.
        identity: everything that its numbers depend on besides the sample; JSON-able.
    """

    name: str
    frozen: bool
    identity: dict[str, Any]
    programs: set[Any]

    def widths(self, sensors: Sensors, dates: int, series: bool) -> tuple[int, ...]:
        """Channels of each level; `dates` is the longest series of the task."""

    def unseen(self, sensors: Sensors) -> list[str]:
        """The bands, as `modality/band (what it is)`, unlike any that the weights were trained on."""

    def levels(
        self, samples: Sequence[Sample], sensors: Sensors, target_gsd: float, series: bool
    ) -> list[np.ndarray]:
        """Per sample [K, h, w, D] float32, or [K, T, h, w, D] with `series`: each date by itself."""


def taps(depth: int) -> tuple[int, ...]:
    """The 0-based blocks whose maps a decoder gets: 3, 5, 7 and 11 of 12, in proportion for other depths."""
    return tuple(max(round(depth * share / 12), 1) - 1 for share in (4, 6, 8, 12))


class Pretrained:
    """RAMEN, never trained here. The maps of all modalities are joined on the channels, in the task's order.

    `sampling` None: that of the training, which `metric` leaves alone where it was `area`.
    """

    frozen = True

    def __init__(self, name: str, encoder: Encoder, sampling: str | None, dtype: str = "float32") -> None:
        architecture = dataclasses.replace(encoder.ramen.architecture, dtype=dtype, remat="none")
        recipe = encoder.ramen.recipe
        # `area` has the coordinates of `metric`; a model that was trained on averages keeps them.
        if sampling is not None and (sampling, recipe.sampling) != ("metric", "area"):
            recipe = recipe.but(sampling=sampling)
        ramen = dataclasses.replace(encoder.ramen, architecture=architecture, recipe=recipe)
        self.name, self.encoder = name, dataclasses.replace(encoder, ramen=ramen)
        self.taps = taps(encoder.depth)
        self.identity = {
            "kind": "ramen",
            "weights": digest([encoder.params, encoder.statistics]),
            "architecture": architecture.to_dict(),
            "recipe": recipe.to_dict(),
            "taps": list(self.taps),
        }
        self.programs: set[Any] = set()

    def widths(self, sensors: Sensors, dates: int, series: bool) -> tuple[int, ...]:
        return (self.encoder.width * len(sensors),) * len(self.taps)

    def unseen(self, sensors: Sensors) -> list[str]:
        """None where nothing is known of the training: an official checkpoint names no sensors."""
        known = [band.meaning for sensor in self.encoder.sensors.values() for band in sensor.bands]
        return [
            f"{name}/{band.name} ({band.meaning if band.kind != 'optical' else f'{band.wavelength_nm:g} nm'})"
            for name, sensor in sensors.items()
            for band in sensor.bands
            if known and not any(_alike(band.meaning, other) for other in known)
        ]

    def levels(
        self, samples: Sequence[Sample], sensors: Sensors, target_gsd: float, series: bool
    ) -> list[np.ndarray]:
        if series:
            return _each_date(self, samples, sensors, target_gsd)
        places = [Place(sample, sensors, target_gsd) for sample in samples]
        results: dict[int, np.ndarray] = {}
        for batch in self.encoder.batches(places):
            self.programs.add(shapes_of(batch.rows))
            results |= joined_levels(batch, np.asarray(self.encoder.run(batch, self.taps)))
        return [results[number] for number in range(len(places))]

    def flops(self, samples: Sequence[Sample], sensors: Sensors, target_gsd: float, series: bool) -> float:
        """Of encoding these samples, two per multiply-add, padding included; counted in the trace, nothing runs."""
        if series:
            dates = max(len(image.values) for sample in samples for image in sample.images.values())
            samples = [_frame(sample, date) for sample in samples for date in range(dates)]
        places = [Place(sample, sensors, target_gsd) for sample in samples]
        total, model = 0.0, self.encoder
        for batch in model.batches(places):
            bands = dict(batch.bands)
            total += flops.count(
                lambda p, s, rows, bands=bands: model.ramen.encode(p, s, rows, bands, self.taps),
                model.params,
                model.statistics,
                batch.rows,
            ).flops
        return total


class Raw:
    """The bands, normalised and averaged over each token's footprint: their mean over the dates and their spread."""

    frozen = True
    name = "raw"

    def __init__(self) -> None:
        self.identity = {"kind": "raw"}
        self.recipe = Recipe.named("fixed").but(sampling="area")
        self.programs: set[Any] = set()

    def widths(self, sensors: Sensors, dates: int, series: bool) -> tuple[int, ...]:
        bands = sum(len(sensor.bands) for sensor in sensors.values())
        return (bands * (1 if series or dates == 1 else 2),) * LEVELS

    def unseen(self, sensors: Sensors) -> list[str]:
        return []

    def levels(
        self, samples: Sequence[Sample], sensors: Sensors, target_gsd: float, series: bool
    ) -> list[np.ndarray]:
        if series:
            return _each_date(self, samples, sensors, target_gsd)
        dates = max(len(image.values) for sample in samples for image in sample.images.values())
        return [self._one(sample, sensors, target_gsd, dates) for sample in samples]

    def _one(self, sample: Sample, sensors: Sensors, target_gsd: float, dates: int) -> np.ndarray:
        grid = Place(sample, sensors, target_gsd).grid
        parts = []
        for name, image in sample.images.items():
            values_TxCxhxw = on_grid(image, sensors[name], target_gsd, grid, self.recipe).values
            parts.append(values_TxCxhxw.mean(axis=0))
            if dates > 1:
                parts.append(values_TxCxhxw.std(axis=0))
        map_hxwxD = np.moveaxis(np.concatenate(parts), 0, -1)
        return np.repeat(map_hxwxD[None], LEVELS, axis=0).astype(np.float32)


class Pixels:
    """The normalised image itself, [1, H, W, C] or [1, T, H, W, C], of modalities that share a pixel grid."""

    frozen = False
    name = "unet"

    def __init__(self) -> None:
        self.identity = {"kind": "pixels"}
        self.programs: set[Any] = set()

    def widths(self, sensors: Sensors, dates: int, series: bool) -> tuple[int, ...]:
        return (sum(len(sensor.bands) for sensor in sensors.values()),)

    def unseen(self, sensors: Sensors) -> list[str]:
        return []

    def levels(
        self, samples: Sequence[Sample], sensors: Sensors, target_gsd: float, series: bool
    ) -> list[np.ndarray]:
        return [self._one(sample, sensors, series) for sample in samples]

    def _one(self, sample: Sample, sensors: Sensors, series: bool) -> np.ndarray:
        dates = max(len(image.values) for image in sample.images.values()) if series else 1
        sizes = {image.values.shape[2:] for image in sample.images.values()}
        if len(sizes) > 1:
            raise UserError(
                f"the U-Net stacks all modalities, but those of {sample.id} have different sizes: {sizes}",
                DATA,
            )
        parts = []
        for name, image in sample.images.items():
            values = normalised(image, sensors[name])
            order = np.minimum(np.arange(dates), len(values) - 1)  # a single image stands for every date
            parts.append(values[order])
        stacked_TxHxWxC = np.moveaxis(np.concatenate(parts, axis=1), 1, -1)
        return (stacked_TxHxWxC if series else stacked_TxHxWxC[0])[None]


def _alike(meaning: float | str, other: float | str) -> bool:
    """The same radar channel or elevation, or centre wavelengths that differ as those of one band of two satellites."""
    if isinstance(meaning, str) or isinstance(other, str):
        return meaning == other
    return abs(meaning - other) <= SAME_BAND_NM


def normalised(image: Image, sensor: Sensor) -> np.ndarray:
    """[T, C, H, W] float32 with the sensor's mean 0 and spread 1; 0 where nothing was measured."""
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (sensor.mean, sensor.std))
    values = (image.values * np.float32(sensor.scale) + np.float32(sensor.offset) - mean) / std
    known = image.present[:, None, None]
    if image.valid is not None:
        known = known & image.valid[:, None]
    return np.where(known, values, np.float32(0)).astype(np.float32)


def open_encoder(
    kind: str, checkpoint: Path | None, sampling: str | None, dtype: str = "float32", seed: int = 0
) -> MapEncoder:
    """An encoder by its kind.

    Args:
        kind: of KINDS. `untrained` takes the architecture of the checkpoint, the base one without.
        checkpoint: a workdir, an exported folder, or a .ckpt of the official code.
        sampling: of pixels to tokens, the protocol's; None: that of the training. See `Pretrained`.
        dtype: "bfloat16" halves the encoder's cost on accelerators.

    Raises:
        UserError: an unknown kind, no checkpoint, or one that cannot be read.
    """
    if kind == "raw":
        return Raw()
    if kind == "unet":
        return Pixels()
    if kind not in KINDS:
        raise UserError(f"no encoder '{kind}'; {close_names(kind, KINDS)}", USAGE)
    loaded = _read(checkpoint) if checkpoint is not None else None
    if kind == "checkpoint":
        if loaded is None or checkpoint is None:
            raise UserError(
                "--checkpoint is missing: a workdir, an exported folder or an official .ckpt", USAGE
            )
        return Pretrained(checkpoint.stem, loaded, sampling, dtype)
    if loaded is None:
        architecture, recipe = Architecture(), Recipe.named("reference")
        blank = Encoder.of(architecture, recipe, {}, {}, {"encoder": {}}, {"encoder": {}})
    else:
        blank = dataclasses.replace(loaded, sensors={})
    params, statistics = jax.jit(blank.ramen.init)(jax.random.key(seed))
    return Pretrained(
        "untrained", dataclasses.replace(blank, params=params, statistics=statistics), sampling, dtype
    )


def _read(path: Path) -> Encoder:
    if path.suffix in (".ckpt", ".pt", ".pth", ".safetensors") and path.is_file():
        from ramen_jax.interchange.exchange import (
            read_official,
        )  # needs PyTorch, which nothing else here does

        encoder = read_official(path, None, "reference", None).encoder_model()
        return dataclasses.replace(encoder, facts={**encoder.facts, "source": str(path)})
    return weights.load(path)


def digest(tree: Any) -> str:
    """SHA-256 of the arrays of a tree, their places and shapes included."""
    result = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        result.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        result.update(array.tobytes())
    return result.hexdigest()


def check_grid(
    sensors: Sensors, height: int, width: int, target_gsd: float, channels: int, places: int
) -> tuple[int, int]:
    """Tokens (down, across) of a tile. UserError where there are none, or more than the memory holds."""
    first = next(iter(sensors.values()))
    rows, columns = (int(side * first.gsd / target_gsd) for side in (height, width))
    if rows < 1 or columns < 1:
        raise UserError(
            f"target GSD {target_gsd:g} m: a tile of {height * first.gsd:g} x {width * first.gsd:g} m has no token; "
            f"use at most {min(height, width) * first.gsd:g} m",
            USAGE,
        )
    refuse_beyond_memory(
        f"target GSD {target_gsd:g} m asks for {rows:,} x {columns:,} tokens of {len(sensors)} modalities, which",
        4.0 * places * rows * columns * len(sensors) * channels * LEVELS,
        f"use a coarser target GSD than {target_gsd:g} m",
    )
    return rows, columns


def _each_date(
    encoder: MapEncoder, samples: Sequence[Sample], sensors: Sensors, target_gsd: float
) -> list[np.ndarray]:
    """[K, T, h, w, D] per sample: every date as a sample of its own. A single image stands for every date."""
    single, lengths = [], []
    for sample in samples:
        dates = max(len(image.values) for image in sample.images.values())
        lengths.append(dates)
        single += [_frame(sample, date) for date in range(dates)]
    maps = iter(encoder.levels(single, sensors, target_gsd, False))
    return [np.stack([next(maps) for _ in range(length)], axis=1) for length in lengths]


def _frame(sample: Sample, date: int) -> Sample:
    images = {}
    for name, image in sample.images.items():
        frame = slice(min(date, len(image.values) - 1), min(date, len(image.values) - 1) + 1)
        valid = None if image.valid is None else image.valid[frame]
        images[name] = Image(image.values[frame], image.dates[frame], image.present, valid)
    return dataclasses.replace(sample, images=images)


def joined_levels(batch: Batch, encoded_KxRxExD: np.ndarray) -> dict[int, np.ndarray]:
    """Number of the place -> [K, h, w, D], the maps of its modalities joined on the channels."""
    return {
        number: np.ascontiguousarray(np.moveaxis(np.concatenate(list(maps.values()), axis=1), 1, -1))
        for number, _, maps in batch.maps(encoded_KxRxExD)
    }


def shapes_of(rows: Any) -> tuple[Any, ...]:
    """What a compilation depends on."""
    return tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(rows))
