"""From examples of a task to what a decoder is given: the encoder's maps, from disk where they are kept.

Shape letters: K levels, B places, T dates, h, w tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.evaluation.cache import Cache, key_of
from ramen_jax.evaluation.drifting import Drifting
from ramen_jax.evaluation.encoders import MapEncoder, Pretrained, check_grid
from ramen_jax.evaluation.pangaea.decoders.decoder import KINDS
from ramen_jax.evaluation.pangaea.protocol import Protocol
from ramen_jax.evaluation.pangaea.tasks import Example, Task

UNET = {"single": "_unet", "linear": "_unet_mt", "ltae": "_unet_mt", "channels": "_unet_mt"}


class Features:
    """What one encoder makes of the examples of one task at one target GSD.

    `series`: each date by itself. `trains`: a decoder is trained on them, step by step.

    Groups are encoded as they are asked for, and a group of which a part is missing on disk is encoded whole: the same
    calls give the same bits whether a run was interrupted or not.
    """

    def __init__(
        self,
        task: Task,
        encoder: MapEncoder,
        target_gsd: float,
        series: bool,
        cache: Cache,
        trains: bool = True,
    ) -> None:
        self.task, self.target_gsd, self.series = task, target_gsd, series
        self.sensors = {spec.name: spec.sensor for spec in task.modalities}
        without = [name for name, sensor in self.sensors.items() if sensor.mean is None or sensor.std is None]
        if without:
            raise UserError(f"task {task.name}: modality {without[0]} has no mean and std of its bands")
        self.dates = max(spec.max_dates for spec in task.modalities)
        self.cache = cache
        merged = self.dates if trains and not series else 1
        self.encoder = _as_the_protocol_runs_it(encoder, task.protocol, merged)
        self.identity = {
            "encoder": self.encoder.identity,
            "sensors": {name: sensor.to_dict() for name, sensor in self.sensors.items()},
            "protocol": task.protocol.as_dict(),
            "task": task.name,
            "target_gsd": target_gsd,
            "series": series,
        }

    @property
    def widths(self) -> tuple[int, ...]:
        return self.encoder.widths(self.sensors, self.dates, self.series)

    def check(self, side: int, places: int) -> None:
        """UserError where a tile of `side` pixels has no token, or where `places` of them do not fit."""
        if isinstance(self.encoder, Pretrained):
            check_grid(self.sensors, side, side, self.target_gsd, self.encoder.encoder.width, places)

    def announce(self, tiles: int, side: int) -> None:
        """Says what `tiles` tiles of `side` pixels will take on disk."""
        if self.encoder.frozen and tiles:
            gsd = self.task.modalities[0].sensor.gsd
            cells = int(side * gsd / self.target_gsd) ** 2
            self.cache.announce(tiles, 4.0 * cells * sum(self.widths) * (self.dates if self.series else 1))

    def initial(self) -> Any:
        """Running statistics that an encoder begins a training with; empty for a frozen one."""
        return self.encoder.initial() if isinstance(self.encoder, Drifting) else {}

    def in_training(
        self, examples: Sequence[Example], keep: bool, statistics: Any, key: jax.Array | None
    ) -> tuple[tuple[np.ndarray, ...], Any]:
        """Levels of a training batch as `of` gives them, and the encoder's running statistics after it.

        Args:
            key: of the encoder's dropout, where it has one; None switches it off.
        """
        if not isinstance(self.encoder, Drifting):
            return self.of(examples, keep, statistics), statistics
        samples = [example.sample for example in examples]
        levels, moved = self.encoder.in_training(samples, self.sensors, self.target_gsd, statistics, key)
        return _stacked(levels), moved

    def of(self, examples: Sequence[Example], keep: bool, statistics: Any) -> tuple[np.ndarray, ...]:
        """Levels, each [B, h, w, D] or [B, T, h, w, D] float32.

        Args:
            keep: these very examples will come again.
            statistics: running ones of the encoder, of `initial` or `in_training`.
        """
        samples = [example.sample for example in examples]
        encoder = self.encoder.by(statistics) if isinstance(self.encoder, Drifting) else self.encoder
        if not (keep and encoder.frozen):
            return _stacked(encoder.levels(samples, self.sensors, self.target_gsd, self.series))
        keys = [key_of(self.identity, sample) for sample in samples]
        found = [self.cache.get(key) for key in keys]
        kept = [each for each in found if each is not None]
        if len(kept) < len(found):
            kept = encoder.levels(samples, self.sensors, self.target_gsd, self.series)
            for key, levels in zip(keys, kept, strict=True):
                self.cache.put(key, levels)
        return _stacked(kept)


def _as_the_protocol_runs_it(encoder: MapEncoder, protocol: Protocol, dates: int) -> MapEncoder:
    """The encoder, frozen, or drifting where it merges several dates."""
    if protocol.encoder_statistics == "batch" and dates > 1 and isinstance(encoder, Pretrained):
        return Drifting(encoder, protocol.encoder_dropout)
    return encoder


def decoder_name(command_name: str, encoder: MapEncoder) -> str:
    """The decoder of a task's command; for the U-Net the one of the same family that takes pixels."""
    if command_name not in KINDS:
        raise UserError(f"no decoder '{command_name}'; {close_names(command_name, KINDS)}")
    kind = KINDS[command_name]
    if encoder.name != "unet":
        if kind.head == "unet":
            raise UserError(
                f"decoder {command_name} reads pixels, not maps of {encoder.name}; use --encoder unet", USAGE
            )
        return command_name
    if kind.head == "classification":
        raise UserError(f"the U-Net predicts maps, and {command_name} classifies; use another encoder")
    if kind.merge in ("difference", "concatenation"):
        return "seg_siamunet_diff" if kind.merge == "difference" else "seg_siamunet_conc"
    return ("reg" if kind.regression else "seg") + UNET[kind.merge]


def _stacked(places: Sequence[Any]) -> tuple[np.ndarray, ...]:
    return tuple(np.stack(level) for level in zip(*places, strict=True))
