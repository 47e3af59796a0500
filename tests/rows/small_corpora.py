"""Small corpora in memory, and the paper's geometries, for the tests of the plan, the packing and the pipeline."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field

import numpy as np

from ramen_jax.samples import CorpusSpec, Image, ModalitySpec, Sample
from ramen_jax.sensors import Band, Sensor


def optical(name: str, bands: int, gsd: float) -> Sensor:
    return Sensor(
        name,
        tuple(Band(f"b{i}", wavelength_nm=450.0 + 60 * i) for i in range(bands)),
        gsd,
        mean=tuple(100.0 + 10 * i for i in range(bands)),
        std=tuple(20.0 + i for i in range(bands)),
    )


def radar(name: str, gsd: float) -> Sensor:
    bands = (Band("vv", radar="des_vv"), Band("vh", radar="des_vh"))
    return Sensor(name, bands, gsd, mean=(0.2, -0.1), std=(1.1, 0.9))


def elevation(name: str, gsd: float) -> Sensor:
    bands = (Band("dsm", elevation="dsm"), Band("dtm", elevation="dtm"))
    return Sensor(name, bands, gsd, mean=(100.0, 90.0), std=(30.0, 20.0))


FIELDS = CorpusSpec(  # 16 m across; names out of alphabetical order, two series, one with invalid pixels
    "fields",
    (
        ModalitySpec("aerial", optical("aerial", 3, 1.0), 16, 16, dtype="uint8"),
        ModalitySpec("s2", optical("s2", 4, 4.0), 4, 4, True, 5, "uint16", has_valid=True),
        ModalitySpec("dem", elevation("dem", 2.0), 8, 8, dtype="float32"),
        ModalitySpec("s1", radar("s1", 4.0), 4, 4, True, 4, "float32"),
    ),
    "fields-1",
)
FIELDS_GSDS = (2.0, 2.5, 3.0, 4.0, 5.0, 8.0)

COASTS = CorpusSpec(  # rectangular
    "coasts",
    (
        ModalitySpec("spot", optical("spot", 4, 1.5), 12, 20, dtype="uint16"),
        ModalitySpec("radar", radar("radar", 3.0), 6, 10, dtype="float32"),
    ),
    "coasts-1",
)
COASTS_GSDS = (3.0, 4.5, 6.0)

PAPER = {
    "flairhub": (
        CorpusSpec(
            "flairhub",
            (
                ModalitySpec("aerial", optical("aerial", 4, 0.2), 512, 512, dtype="uint8"),
                ModalitySpec("dem", elevation("dem", 0.2), 512, 512, dtype="float32"),
                ModalitySpec("s2", optical("s2", 10, 10.24), 10, 10, True, 40, "uint16"),
                ModalitySpec("s1_des", radar("s1_des", 10.24), 10, 10, True, 60, "float32"),
            ),
        ),
        tuple(float(g) for g in range(3, 21)),
    ),
    "mmearth": (
        CorpusSpec(
            "mmearth",
            (
                ModalitySpec("dem", elevation("dem", 10.0), 64, 64, dtype="int16"),
                ModalitySpec("s2", optical("s2", 13, 10.0), 64, 64, dtype="uint16"),
                ModalitySpec("s1", radar("s1", 10.0), 64, 64, dtype="float32"),
            ),
        ),
        tuple(float(g) for g in range(20, 101, 10)),
    ),
    "worldstrat": (
        CorpusSpec(
            "worldstrat",
            (
                ModalitySpec("spot", optical("spot", 4, 1.5), 263, 263, dtype="uint16"),
                ModalitySpec("s2", optical("s2", 12, 10.0), 39, 39, True, 16, "uint16"),
            ),
        ),
        tuple(float(g) for g in range(5, 21)),
    ),
}


def random_sample(spec: CorpusSpec, number: int, *, frames: dict[str, int] | None = None) -> Sample:
    """A sample that its number decides: random pixels, 1..max_dates dates, sometimes an absent band."""
    rng = np.random.default_rng(number)
    images = {}
    for m in spec.modalities:
        count = (frames or {}).get(m.name) or (int(rng.integers(1, m.max_dates + 1)) if m.series else 1)
        shape = (count, len(m.sensor.bands), m.height, m.width)
        mean, std = (np.array(s)[:, None, None] for s in (m.sensor.mean, m.sensor.std))
        present = rng.random(shape[1]) > 0.1
        present[0] = True
        images[m.name] = Image(
            values=(rng.standard_normal(shape) * std + mean).astype(m.dtype),
            dates=np.sort(rng.choice(np.arange(1, 367), count, replace=False)).astype(np.int16),
            present=present,
            valid=rng.random((count, m.height, m.width)) > 0.1 if m.has_valid else None,
        )
    return Sample(f"{spec.name}-{number}", images)


@dataclass
class SmallSource:
    """A corpus whose samples are computed when asked for; `broken` numbers cannot be read, `empty` hold no pixel."""

    spec: CorpusSpec
    samples: int
    broken: tuple[int, ...] = ()
    empty: tuple[int, ...] = ()
    asked: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Sample:
        self.asked.append(index)
        if index in self.broken:
            raise OSError(f"{self.spec.name}-{index}.tif is truncated")
        sample = random_sample(self.spec, index)
        if index in self.empty:
            for image in sample.images.values():
                image.present[:] = False
        return sample


class DeadlySource(SmallSource):
    """Reading from it kills the process, as the kernel does when memory runs out."""

    def __getitem__(self, index: int) -> Sample:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)
