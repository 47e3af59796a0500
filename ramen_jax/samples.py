"""Samples: co-registered images of one place, and what every image of a corpus looks like.

Numpy only: data workers import this module.

Legend of shape suffixes: T dates, C bands, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ramen_jax.sensors import Sensor

DTYPES = ("uint8", "int8", "uint16", "int16", "int32", "float32")


@dataclass
class Image:
    """One modality of one place.

    Attributes:
      values: [T, C, H, W], native dtype (one of DTYPES), stored units, finite.
      dates: [T] int16, day of year 1..366; 0 = unknown.
      present: [C] bool; False = the band was not delivered at all (its values are 0 and mean nothing).
      valid: [T, H, W] bool, False = no data; None = every pixel is valid.
    """

    values: np.ndarray
    dates: np.ndarray
    present: np.ndarray
    valid: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 4:
            raise ValueError(f"image values must be [T, C, H, W], found shape {self.values.shape}")
        frames, bands, height, width = self.values.shape
        if self.values.dtype.name not in DTYPES:
            raise ValueError(f"image dtype {self.values.dtype.name} is not one of {', '.join(DTYPES)}")
        if not self.values.dtype.isnative:
            # Of the same name, but records and accelerators take the bytes as they are.
            self.values = self.values.astype(self.values.dtype.newbyteorder("="))
        if self.dates.shape != (frames,) or self.dates.dtype != np.int16:
            raise ValueError(
                f"dates must be int16 of shape ({frames},), found {self.dates.dtype} {self.dates.shape}"
            )
        if self.present.shape != (bands,) or self.present.dtype != np.bool_:
            raise ValueError(
                f"present must be bool of shape ({bands},), found {self.present.dtype} {self.present.shape}"
            )
        if self.valid is not None and (
            self.valid.shape != (frames, height, width) or self.valid.dtype != np.bool_
        ):
            raise ValueError(
                f"valid must be bool of shape {(frames, height, width)}, found {self.valid.dtype} {self.valid.shape}"
            )


@dataclass
class Sample:
    """Co-registered images of one place.

    Attributes:
      id: unique in its corpus and split.
      images: by modality name.
      location: (longitude, latitude) in degrees of the centre, or None.
      extra: JSON-able facts; `extra["variant"][modality]` selects statistics by variant (MMEarth l1c, l2a).
    """

    id: str
    images: dict[str, Image]
    location: tuple[float, float] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModalitySpec:
    """What every image of one modality of a corpus looks like; `max_dates` is the longest series (1 if no series)."""

    name: str
    sensor: Sensor
    height: int
    width: int
    series: bool = False
    max_dates: int = 1
    dtype: str = "uint16"
    has_valid: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "sensor": self.sensor.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModalitySpec:
        return cls(**{**values, "sensor": Sensor.from_dict(values["sensor"])})


@dataclass(frozen=True)
class CorpusSpec:
    """A corpus without its samples.

    Attributes:
      modalities: sorted by name, whatever order they are given in: the one order of capacities, batches and model (JAX
        sorts the keys of every dictionary, so it is the order that a traced program sees).
      declared: the same names as the corpus declares them. The first one defines the extent and the token grid of every
        view, and draws number the modalities in this order.
    """

    name: str
    modalities: tuple[ModalitySpec, ...]
    fingerprint: str = ""
    declared: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [modality.name for modality in self.modalities]
        kept = [name for name in self.declared if name in names]
        added = [name for name in names if name not in kept]
        object.__setattr__(self, "declared", (*kept, *added))
        object.__setattr__(self, "modalities", tuple(sorted(self.modalities, key=lambda m: m.name)))

    @property
    def names(self) -> tuple[str, ...]:
        """Sorted."""
        return tuple(modality.name for modality in self.modalities)

    @property
    def first(self) -> ModalitySpec:
        """The modality that defines extent and grid."""
        return self.modality(self.declared[0])

    def as_declared(self) -> tuple[ModalitySpec, ...]:
        """The modalities in the order of `declared`."""
        return tuple(self.modality(name) for name in self.declared)

    def modality(self, name: str) -> ModalitySpec:
        for modality in self.modalities:
            if modality.name == name:
                return modality
        raise ValueError(f"corpus {self.name} has no modality {name!r}; it has {', '.join(self.declared)}")
