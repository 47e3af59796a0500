"""MMEarth64 (Nedungadi et al. 2024, arXiv:2405.02771): one HDF5 file, one dataset per modality, first axis = tile.

What differs from tile to tile is kept: Sentinel-2 is level 1C or 2A (`extra["variant"]["s2"]`, with statistics of
its own), and a band that a tile lacks (B10 of L2A, Sentinel-1 polarisations stored as -inf) is `present` False.
Partly missing pixels (-inf, or all bands 0) are stored as 0 and marked invalid.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np

from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.corpora import BadItem, Corpus, make_image
from ramen_jax.counter_rng import combine, raw_bits
from ramen_jax.samples import Image, ModalitySpec, Sample
from ramen_jax.sensors import sensor

PIXELS = 64
B10 = 10  # its channel
# modality: (key in the file, sensor, dtype)
MODALITIES = {
    "dem": ("aster", "mmearth_dem", "int16"),
    "s2": ("sentinel2", "mmearth_s2", "uint16"),
    "s1": ("sentinel1", "mmearth_s1", "float32"),
}


class MMEarth(Corpus):
    """See the module's docstring.

    Options:
      file: name of the HDF5 file; None = the only one in the source folder.
      modalities: names from MODALITIES, the first one defines extent and grid.
      subset: share of every biome's tiles that is used.
      val: share of those that validates.
      seed: of both draws.
      draw: "fixed" draws one subset and cuts it in two disjoint splits; "reference" draws a subset for each split
        apart, as the official loader does (without a seed), so that training and validation tiles overlap.
      zero_planes: "fixed" takes S2 planes of zeros and S1 planes without a finite pixel for absent bands;
        "reference" takes every plane of zeros for absent, also a flat tile's slope and elevation 0.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "file": None,
        "modalities": ["dem", "s2", "s1"],
        "subset": 0.6,
        "val": 0.1,
        "seed": 42,
        "draw": "fixed",
        "zero_planes": "fixed",
    }

    def __init__(self, source: Path, options: Mapping[str, Any]) -> None:
        super().__init__(source, options)
        for name in self.options["modalities"]:
            if name not in MODALITIES:
                raise UserError(f"MMEarth has no modality {name!r}; {close_names(name, MODALITIES)}", USAGE)
        for key in ("draw", "zero_planes"):
            if self.options[key] not in ("fixed", "reference"):
                raise UserError(
                    f"MMEarth: {key} is {self.options[key]!r}, expected fixed or reference", USAGE
                )
        for key in ("subset", "val"):
            if not 0 <= self.options[key] <= 1:
                raise UserError(f"MMEarth: {key} is {self.options[key]}, expected a share from 0 to 1", USAGE)
        self.modalities = tuple(self._modality(name) for name in self.options["modalities"])
        self.path = self._find()
        try:
            self.file = h5py.File(self.path, "r")
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be opened as HDF5, truncated or damaged? ({error})"
            ) from error
        self._check()
        self.biomes = np.argmax(self._all("biome"), axis=1)

    def _modality(self, name: str) -> ModalitySpec:
        _, sensor_name, dtype = MODALITIES[name]
        return ModalitySpec(name, sensor(sensor_name), PIXELS, PIXELS, False, 1, dtype)

    def _find(self) -> Path:
        if self.options["file"]:
            return self.source / self.options["file"]
        found = sorted(self.source.glob("*.h5"))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise UserError(
                f"{self.source}: expected one .h5 file, found {names}; name it with the option file"
            )
        return found[0]

    def _check(self) -> None:
        """Every key that is needed is there, with the shape and dtype that MMEarth64 has."""
        for key in ("biome", *(MODALITIES[spec.name][0] for spec in self.modalities)):
            if key not in self.file:
                raise UserError(f"{self.path}: no dataset {key!r}; it has {', '.join(sorted(self.file))}")
        tiles = len(self.file["biome"])
        for spec in self.modalities:
            key = MODALITIES[spec.name][0]
            shape, dtype = self.file[key].shape, self.file[key].dtype.name
            expected = (tiles, len(spec.sensor.bands), spec.height, spec.width)
            if shape != expected or dtype != spec.dtype:
                raise UserError(f"{self.path}: {key} is {dtype} {shape}, expected {spec.dtype} {expected}")

    def _all(self, key: str) -> np.ndarray:
        try:
            return self.file[key][()]
        except OSError as error:
            raise UserError(f"{self.path}: {key} cannot be read ({error})") from error

    def items(self) -> tuple[dict[str, list[str]], list[BadItem]]:
        seed, subset, val = (self.options[key] for key in ("seed", "subset", "val"))
        everything = np.arange(len(self.biomes))
        if self.options["draw"] == "fixed":
            pool = draw_by_biome(self.biomes, everything, subset, combine(seed, "subset"))
            chosen = draw_by_biome(self.biomes, pool, val, combine(seed, "val"))
            splits = {"train": np.setdiff1d(pool, chosen), "val": chosen}
        else:
            splits = {}
            for split in ("train", "val"):
                pool = draw_by_biome(self.biomes, everything, subset, combine(seed, split))
                chosen = draw_by_biome(self.biomes, pool, val, combine(seed, split, "val"))
                splits[split] = chosen if split == "val" else np.setdiff1d(pool, chosen)
        self.drawn = splits
        items = {split: [str(place) for place in places] for split, places in splits.items() if len(places)}
        return items, []

    def facts(self) -> dict[str, Any]:
        """How many tiles of each biome the draw took."""
        return {
            "tiles": len(self.biomes),
            "tiles_by_biome": np.bincount(self.biomes, minlength=14).tolist(),
            **{
                f"{split}_by_biome": np.bincount(self.biomes[places], minlength=14).tolist()
                for split, places in self.drawn.items()
            },
        }

    def read(self, item: str, split: str) -> list[Sample]:
        place = int(item)
        variant = self._level(place)
        images = {}
        for spec in self.modalities:
            key = MODALITIES[spec.name][0]
            where = f"{self.path}, {key}[{place}]"
            try:
                values_CxHxW = self.file[key][place]
            except OSError as error:
                raise BadItem(where, f"cannot be read ({error})") from error
            images[spec.name] = self._image(spec, values_CxHxW, variant, where)
        extra: dict[str, Any] = {"biome": int(self.biomes[place])}
        if "s2" in images:
            extra["variant"] = {"s2": variant}
        return [Sample(item, images, self._location(place), extra)]

    def _image(self, spec: ModalitySpec, values_CxHxW: np.ndarray, variant: str, where: str) -> Image:
        finite_or_0 = np.nan_to_num(values_CxHxW, nan=0, posinf=0, neginf=0)
        if self.options["zero_planes"] == "reference" or spec.name == "s2":
            present = finite_or_0.any(axis=(1, 2))
        elif spec.name == "s1":
            present = np.isfinite(values_CxHxW).any(axis=(1, 2))
        else:
            present = np.ones(len(values_CxHxW), bool)
        if spec.name == "s2" and variant == "l2a":
            present[B10] = False
        if not present.any() and spec.name != "s2":
            # A tile without any radar pass is still a good sample of its other modalities.
            return Image(finite_or_0[None], np.zeros(1, np.int16), present)
        return make_image(values_CxHxW[None], [0], spec.sensor.nodata, where, present)

    def _level(self, place: int) -> str:
        """ "l1c" or "l2a": the second field of `metadata` by position; without it, L2A has no B10."""
        if "metadata" in self.file and len(self.file["metadata"].dtype.names or ()) > 1:
            level = self.file["metadata"][place][1].decode().strip("\0 ").lower()
            if level in ("l1c", "l2a"):
                return level
            raise BadItem(f"{self.path}, metadata[{place}]", f"S2_type is {level!r}, expected l1c or l2a")
        return "l1c" if "sentinel2" in self.file and self.file["sentinel2"][place, B10].any() else "l2a"

    def _location(self, place: int) -> tuple[float, float] | None:
        """Stored as sine and cosine of both angles."""
        if "lat" not in self.file or "lon" not in self.file:
            return None
        degrees = [float(np.degrees(np.arctan2(*self.file[key][place]))) for key in ("lon", "lat")]
        return round(degrees[0], 5), round(degrees[1], 5)


def draw_by_biome(biomes: np.ndarray, places: np.ndarray, share: float, key: int) -> np.ndarray:
    """Sorted places: `share` of those of every biome, rounded to whole tiles, drawn without replacement by `key`."""
    order = np.argsort(raw_bits(key, len(biomes))[places], kind="stable")
    shuffled = places[order]
    taken = []
    for biome in np.unique(biomes):
        members = shuffled[biomes[shuffled] == biome]
        taken.append(members[: int(np.floor(len(members) * share + 0.5))])
    return np.sort(np.concatenate(taken)) if taken else places[:0]
