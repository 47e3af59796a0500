"""The benchmark's rules as one value, in two versions: what every result must name.

`PUBLISHED` is what the benchmark's code does, defects included, with RAMEN's own settings. `CORRECTED` is what it means
to do. Fields that differ are listed by `differences()`.

What is not here is part of a task (its decoder, loss, crop, target GSD, data replicate, metric that picks the best
epoch) or the same for everybody (a decoder's dropout, the networks).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ramen_jax.console import USAGE, UserError, close_names


@dataclass(frozen=True)
class Protocol:
    """Every rule of a PANGAEA run that is not a task's own.

    Training:
        seed: of initial weights, crops and draws. `epochs`, `classification_epochs`: of dense and of linear
            classification tasks; k-NN trains nothing. `batch_size`: places per step over all devices; an incomplete
            last batch of an epoch is dropped.
        learning_rate, betas, eps, weight_decay: AdamW, decay on every trained tensor.
        milestones, gamma: the rate is multiplied by gamma from these shares of all steps on.
    Selection:
        validate_every: epochs between validations, each before its epoch's training; epoch 0 (the untrained decoder)
            takes part, and one more follows the last epoch. The strictly best one is tested.
        select_by: task family -> the score that decides.
    Encoder (always without gradient):
        encoder_statistics: `batch`: BatchNorm normalises by the batch, and running statistics start at mean 0 and
            variance 1 and are estimated anew on the task; `running`: those of pretraining, never moved.
        encoder_dropout: whether the dropout inside the encoder is on while the decoder trains.
        sampling: of pixels to tokens, a policy of ramen_jax.sampling.
    Data:
        dates: `published`: the benchmark's choice, which for PASTIS is 6 of a random, unsorted 50 at every access and
            for DynamicEarthNet the first six days of the month; `sorted`: the same number of dates, evenly spread, in
            order, the same at every access.
        date_values: `published`: days since the first of September 2018 for PASTIS and days of the year elsewhere;
            `day_of_year`: everywhere.
        bands: `published`: DynamicEarthNet's near infrared is given as 705 nm and every radar orbit as ascending;
            `true`: the wavelengths and orbits of the sensors.
        spacenet7_gsd: metres per pixel that RAMEN is told for SpaceNet 7; the images have 4.
        no_data: what a pixel without a measurement (NaN, or the files' own value) becomes: `zero`: the number 0, which
            is then normalised like a measurement; `masked`: marked as such.
        focus_crop: `published`: may miss its pixel or leave the image by one; `corrected`: neither.
    Inference:
        tile_batch: tiles decoded at a time. `tiles`: how they are merged, see ramen_jax.evaluation.pangaea.tiling.
    Scores:
        metrics: the definition that selects and is printed first; every result has both.
        dice: whether ignored pixels stay in the dice loss (`published`) or not (`corrected`).
    Limited labels:
        label_strategy, label_bins: how a share of the training places is drawn.
    """

    name: str
    seed: int = 234
    epochs: int = 80
    classification_epochs: int = 50
    batch_size: int = 8
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    milestones: tuple[float, ...] = (0.6, 0.9)
    gamma: float = 0.1
    validate_every: int = 5
    select_by: tuple[tuple[str, str], ...] = (
        ("segmentation", "mIoU"),
        ("change_detection", "mIoU"),
        ("regression", "MSE"),
        ("classification", "accuracy"),
        ("multi_label", "F1"),
    )
    encoder_statistics: str = "batch"
    encoder_dropout: bool = True
    sampling: str = "reference"
    dates: str = "published"
    date_values: str = "published"
    bands: str = "published"
    spacenet7_gsd: float = 40.0
    no_data: str = "zero"
    focus_crop: str = "published"
    tile_batch: int = 8
    tiles: str = "published"
    metrics: str = "published"
    dice: str = "published"
    label_strategy: str = "stratified"
    label_bins: int = 3

    def steps(self, places: int, replicate: int = 1, *, classification: bool = False) -> int:
        """Training steps of a task with this many places, `replicate` copies of each per epoch."""
        per_epoch = places * replicate // self.batch_size
        return per_epoch * (self.classification_epochs if classification else self.epochs)

    def validates(self, epoch: int) -> bool:
        """Whether a validation precedes this epoch's training; one more follows the last epoch."""
        return epoch % self.validate_every == 0

    def selection(self, family: str) -> str:
        """The score that picks the best epoch of a task family."""
        return dict(self.select_by)[family]

    def as_dict(self) -> dict[str, Any]:
        """Every field, for results and cache keys."""
        return dataclasses.asdict(self)


PUBLISHED = Protocol("published")
CORRECTED = Protocol(
    "corrected",
    encoder_statistics="running",
    encoder_dropout=False,
    sampling="metric",
    dates="sorted",
    date_values="day_of_year",
    bands="true",
    spacenet7_gsd=4.0,
    no_data="masked",
    focus_crop="corrected",
    tiles="corrected",
    metrics="corrected",
    dice="corrected",
)
PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in (PUBLISHED, CORRECTED)}


def by_name(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UserError: an unknown name.
    """
    if name not in PROTOCOLS:
        raise UserError(f"no protocol '{name}'; {close_names(name, PROTOCOLS)}", USAGE)
    return PROTOCOLS[name]


def differences() -> dict[str, tuple[Any, Any]]:
    """Field -> (published, corrected) where they differ."""
    pairs = zip(PUBLISHED.as_dict().items(), CORRECTED.as_dict().values(), strict=True)
    return {field: (ours, theirs) for (field, ours), theirs in pairs if ours != theirs and field != "name"}
