"""What every task is: a corpus whose samples have a target, with the facts and rules needed to train and score on it.

Numpy only. Legend of shape suffixes: T dates, C bands, H rows, W columns, K classes.
"""

from __future__ import annotations

import colorsys
import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.corpora import BadItem, Corpus, check_keys, check_sample, make_image
from ramen_jax.evaluation.pangaea.protocol import PUBLISHED, Protocol
from ramen_jax.no_data import missing_pixels
from ramen_jax.samples import Image, ModalitySpec, Sample
from ramen_jax.sensors import Sensor, registry, sensor

FAMILIES = ("segmentation", "change_detection", "regression", "classification", "multi_label")
SPLITS = ("train", "val", "test")
Rejected = dict[str, list[BadItem]]
_METRICS = {"regression": "RMSE", "classification": "accuracy", "multi_label": "F1"}
_MODALITY = ("sensor", "dtype", "dates")
_SENSOR_CHANGES = ("bands", "gsd", "units", "mean", "std", "nodata", "scale", "offset")


@dataclasses.dataclass(frozen=True)
class Command:
    """How the benchmark runs the task: its command line as data.

    Attributes:
      crop: pixels per side of a training crop and of a tile at inference.
      target_gsd: metres per token.
      decoder, loss: names of `decoders.KINDS` and `losses.NAMES`.
      region: what is seen of a place in training, of `regions.RULES`.
      replicate: copies of each training and validation place per epoch, each with its own crop.
      select: the score that picks the best epoch; "" for that of the family.
      checkpoint: which epoch is tested, "best" or "last".
      expected: RAMEN's published figure of the task's metric, or None where there is none.
    """

    crop: int
    target_gsd: float
    decoder: str
    loss: str
    region: str = "crop"
    replicate: int = 1
    select: str = ""
    checkpoint: str = "best"
    expected: float | None = None


@dataclasses.dataclass
class Example:
    """A sample and the truth.

    `target`, by family: segmentation and change_detection: int32 [H, W] on the grid of the images, `ignore_index` where
    there is no truth; regression: float32 [H, W]; classification: int32 []; multi_label: int32 [K] of 0 and 1.
    """

    sample: Sample
    target: np.ndarray


class Task(Corpus):
    """Original files of one task.

    Args:
      source: the folder of the original files.
      options: the description; keys that no reader of this kind knows are an error.
      protocol: decides dates, wavelengths, orbits and no-data.

    Attributes:
      family: of FAMILIES.
      classes: names of the metric classes; `outputs`: channels of the logits (1 for binary tasks of one logit).
      ignore_index: label without truth, possibly the number of a class.
      distribution: share of each class, for weights; may be empty.
      metric: the score that tables show, the one that is published for its family.
      command: how the benchmark runs it.
      modalities: with the statistics and bands that the protocol names. All share one pixel grid.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "title": "",
        "family": "segmentation",
        "classes": (),
        "colors": (),
        "ignore": -1,
        "outputs": None,
        "distribution": (),
        "pixels": None,
        "modalities": None,
        "command": None,
    }

    def __init__(self, source: Path, options: Mapping[str, Any], protocol: Protocol = PUBLISHED) -> None:
        super().__init__(source, options)
        self.protocol = protocol
        self.family: str = self.options["family"]
        if self.family not in FAMILIES:
            raise UserError(
                f"task {self.name}: family {self.family!r} is unknown; {close_names(self.family, FAMILIES)}",
                USAGE,
            )
        self.metric = _METRICS.get(self.family, "mIoU")
        self.classes = tuple(str(name) for name in self.options["classes"])
        if not self.classes:
            raise UserError(f"task {self.name}: classes is empty, expected the names of its classes", USAGE)
        self.outputs: int = self.options["outputs"] or len(self.classes)
        self.ignore_index: int = self.options["ignore"]
        self.distribution = tuple(float(share) for share in self.options["distribution"])
        self.command = self._command()
        if self.options["modalities"] is not None:
            self.modalities = self._modalities()

    # -- what a reader implements ------------------------------------------------------------------------------------

    @abstractmethod
    def _list(self) -> tuple[dict[str, list[str]], Rejected]:
        """As `items`, the rejected by split ("": of none). Raises UserError where an index file is missing."""

    @abstractmethod
    def _read(self, item: str, split: str, draw: int) -> Example:
        """As `example`, unchecked."""

    # -- what callers use --------------------------------------------------------------------------------------------

    @cached_property
    def _index(self) -> tuple[dict[str, list[str]], Rejected]:
        return self._list()

    def items(self) -> tuple[dict[str, list[str]], list[BadItem]]:
        """(items of train, val and test in a fixed order, what the index names but cannot be read)."""
        splits, rejected = self._index
        return splits, [item for items in rejected.values() for item in items]

    def split(self, name: str) -> list[str]:
        """The items of a split, maybe none. Raises UserError where there are some and all of them are incomplete."""
        splits, rejected = self._index
        if name not in splits:
            raise UserError(f"task {self.name} has no split {name!r}; {close_names(name, splits)}", USAGE)
        if not splits[name] and rejected.get(name):
            raise UserError(
                f"task {self.name}: no complete item in split {name}; the first problem: {rejected[name][0]}"
            )
        return splits[name]

    def example(self, item: str, split: str, draw: int = 0) -> Example:
        """The sample and the target of one item, checked against what the task declares.

        Args:
          draw: number of the access (epoch and copy); only choices that the protocol leaves to chance depend on it.

        Errors: BadItem.
        """
        example = self._read(item, split, draw)
        file = f"{self.source} ({item})"
        # The benchmark's count of days may pass the year's end; everything else must hold as in any corpus.
        images = {
            name: dataclasses.replace(image, dates=np.minimum(image.dates, 366))
            for name, image in example.sample.images.items()
        }
        check_sample(dataclasses.replace(example.sample, images=images), self.modalities, file)
        self.check_target(example.target, file)
        return example

    def read(self, item: str, split: str) -> list[Sample]:
        """The sample without its target: a task is a corpus."""
        return [self.example(item, split).sample]

    def settings(self) -> dict[str, Any]:
        return {**self.options, "protocol": self.protocol.name}

    @property
    def palette(self) -> np.ndarray:
        """A colour per class, uint8 [K, 3]."""
        colors = tuple(self.options["colors"]) or tuple(
            "#" + "".join(f"{round(255 * part):02x}" for part in _spread(index))
            for index in range(len(self.classes))
        )
        return np.array([[int(text[i : i + 2], 16) for i in (1, 3, 5)] for text in colors], np.uint8)

    # -- what readers share ------------------------------------------------------------------------------------------

    def make_image(
        self, values: np.ndarray, dates: Sequence[int], nodata: float | None, file: str | Path
    ) -> Image:
        """An image of [T, C, H, W] by the protocol's rule for pixels without a measurement.

        NaN is one in every task. Errors: BadItem, also for an image without a single valid pixel.
        """
        if self.protocol.no_data == "masked":
            return make_image(values, list(dates), np.nan if nodata is None else nodata, file)
        missing_TxHxW = missing_pixels(values, nodata)
        if missing_TxHxW.all():
            raise BadItem(file, "no valid pixel at all (every pixel is no-data)")
        gone = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
        if nodata is not None and nodata != 0:
            gone |= values == nodata
        return make_image(np.where(gone, values.dtype.type(0), values), list(dates), None, file)

    def one_date(self, day: int) -> list[int]:
        """The date of a single image: the benchmark tells none (0)."""
        return [day if self.protocol.date_values == "day_of_year" else 0]

    def check_target(self, target: np.ndarray, file: str) -> None:
        """Raises BadItem naming the first way in which a target differs from what the family and classes say."""
        first = self.modalities[0]
        shape = {"classification": (), "multi_label": (len(self.classes),)}.get(
            self.family, (first.height, first.width)
        )
        if target.shape != shape:
            raise BadItem(file, f"the target has shape {target.shape}, expected {shape}")
        if self.family == "regression":
            if target.dtype != np.float32 or not np.isfinite(target).all():
                raise BadItem(file, f"the target must be finite float32, found {target.dtype}")
            return
        if target.dtype != np.int32:
            raise BadItem(file, f"the target must be int32, found {target.dtype}")
        limit = 2 if self.family == "multi_label" else len(self.classes)
        found = np.unique(target)
        wrong = [int(value) for value in found if not (0 <= value < limit or value == self.ignore_index)]
        if wrong:
            raise BadItem(
                file,
                f"label values {', '.join(map(str, wrong[:8]))} are outside the classes 0..{limit - 1} "
                f"(and not the ignored {self.ignore_index}); another version of the data set?",
            )

    def _command(self) -> Command:
        values = self.options["command"]
        where = f"task {self.name}, command"
        if not isinstance(values, Mapping):
            raise UserError(f"{where}: expected a mapping with crop, target_gsd, decoder and loss", USAGE)
        fields = dataclasses.fields(Command)
        check_keys(values, [field.name for field in fields], where)
        absent = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in values]
        if absent:
            raise UserError(f"{where}: {', '.join(absent)} is missing", USAGE)
        return Command(**values)

    def _modalities(self) -> tuple[ModalitySpec, ...]:
        pixels = self.options["pixels"]
        if not isinstance(pixels, int) or pixels < 1:
            raise UserError(f"task {self.name}: pixels is {pixels!r}, expected the side of an image", USAGE)
        specs = []
        for name, values in self.options["modalities"].items():
            where = f"task {self.name}, modality {name}"
            changes = check_keys(values, (*_MODALITY, *_SENSOR_CHANGES), where)
            dates = changes.get("dates", 0)
            specs.append(
                ModalitySpec(
                    name,
                    self._sensor(changes),
                    pixels,
                    pixels,
                    series=dates > 0,
                    max_dates=max(1, dates),
                    dtype=changes.get("dtype", "float32"),
                    has_valid=self.protocol.no_data == "masked",
                )
            )
        return tuple(specs)

    def _sensor(self, values: Mapping[str, Any]) -> Sensor:
        """The registry's sensor, with the benchmark's own wavelengths where the protocol asks for them."""
        name = values["sensor"]
        if self.protocol.bands == "published" and f"{name}_reference" in registry():
            name = f"{name}_reference"
        changes = {key: values[key] for key in _SENSOR_CHANGES if key in values}
        return Sensor.from_dict({**sensor(name).to_dict(), **changes}) if changes else sensor(name)

    def modality(self, name: str) -> ModalitySpec:
        return next(spec for spec in self.modalities if spec.name == name)


def _spread(index: int) -> tuple[float, float, float]:
    """The colour of a class: hues a golden angle apart, so that neighbours in the list differ."""
    return colorsys.hsv_to_rgb((0.58 + 0.618034 * index) % 1.0, 0.65, 0.9 if index % 2 else 0.65)
