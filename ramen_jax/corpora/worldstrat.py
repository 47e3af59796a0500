"""WorldStrat (Cornebise et al. 2022): a SPOT image of 1.5 m and up to 16 Sentinel-2 revisits per place.

Each place is cut into parts x parts samples, as the official RAMEN loader does: the Sentinel-2 frames, whose size
varies, are first resized to `s2_size` pixels (bilinear), then both modalities are cut on their own grids, which
drops the last one or two pixels and lets the last part of the two differ by about 13 m.

The published split list repeats 38 places, 11 of them in two splits; `repeats` and `leaks` say what becomes of that.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.corpora import BadItem, Corpus, day_of_year, make_image, read_table
from ramen_jax.corpora.placement import SAME_PATCH, misplaced
from ramen_jax.corpora.raster import read_raster
from ramen_jax.counter_rng import combine, raw_bits
from ramen_jax.samples import Image, ModalitySpec, Sample
from ramen_jax.sensors import sensor

SPLITS = ("train", "val", "test")
_RULES = ("fixed", "reference")


@dataclass(frozen=True)
class Revisit:
    """One row of metadata.csv."""

    number: int
    lowres_date: str
    highres_date: str
    cloud_cover: float
    location: tuple[float, float] | None


class WorldStrat(Corpus):
    """See the module's docstring.

    Options:
      modalities: of spot and s2, the first one defines extent and grid.
      splits: of train, val and test.
      parts: cuts per side.
      spot_size: nominal pixels per side of SPOT; larger images lose their margin, smaller ones are rejected.
      s2_size: pixels per side that every Sentinel-2 frame is resized to.
      max_cloud: largest scene cloud cover in percent of a revisit; 100 = all.
      share: of the places (fixed) or revisits (reference) of each split.
      share_of: "places" (fixed), or "revisits", as the official `partition` counts: all places, shorter series.
      seed: of that draw.
      repeats: "fixed" uses a repeated place once; "reference" repeats its revisits, as the official join does.
      leaks: "fixed" keeps a place of two splits in the first of them only (train before val before test);
        "reference" in both.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "modalities": ["spot", "s2"],
        "splits": ["train", "val"],
        "parts": 4,
        "spot_size": 1054,
        "s2_size": 158,
        "max_cloud": 100,
        "share": 1.0,
        "share_of": "places",
        "seed": 42,
        "repeats": "fixed",
        "leaks": "fixed",
    }

    def __init__(self, source: Path, options: Mapping[str, Any]) -> None:
        super().__init__(source, options)
        parts = self.options["parts"]
        spot, s2 = self.options["spot_size"] // parts, self.options["s2_size"] // parts
        sizes = {
            "spot": ModalitySpec("spot", sensor("worldstrat_spot"), spot, spot, False, 1, "uint16"),
            "s2": ModalitySpec("s2", sensor("worldstrat_s2"), s2, s2, True, 1, "float32"),
        }
        for name in self.options["modalities"]:
            if name not in sizes:
                raise UserError(f"WorldStrat has no modality {name!r}; {close_names(name, sizes)}", USAGE)
        for key, choices in (("repeats", _RULES), ("leaks", _RULES), ("share_of", ("places", "revisits"))):
            if self.options[key] not in choices:
                raise UserError(
                    f"WorldStrat: {key} is {self.options[key]!r}, expected {' or '.join(choices)}", USAGE
                )
        self.modalities = tuple(sizes[name] for name in self.options["modalities"])
        self.samples_per_item = parts**2
        revisits = read_metadata(source / "metadata.csv")
        self.listed = read_splits(source / "stratified_train_val_test_split.csv")
        self.places = self._places(revisits)

    def _places(self, revisits: Mapping[str, list[Revisit]]) -> dict[str, dict[str, list[Revisit]]]:
        """{split: {place: revisits}} in the order of metadata.csv, after the rules for repeats, leaks and share."""
        places: dict[str, dict[str, list[Revisit]]] = {}
        for split in self.options["splits"]:
            if split not in SPLITS:
                raise UserError(f"WorldStrat has no split {split!r}; {close_names(split, SPLITS)}", USAGE)
            chosen = {}
            for place, rows in revisits.items():
                count = self.listed.get(place, Counter())[split]
                earlier = (
                    [other for other in SPLITS[: SPLITS.index(split)] if self.listed[place][other]]
                    if count
                    else []
                )
                if count and not (earlier and self.options["leaks"] == "fixed"):
                    times = count if self.options["repeats"] == "reference" else 1
                    chosen[place] = [row for row in rows for _ in range(times)]
            places[split] = self._share(split, chosen)
        return places

    def _share(self, split: str, places: dict[str, list[Revisit]]) -> dict[str, list[Revisit]]:
        share, seed = self.options["share"], self.options["seed"]
        if share >= 1:
            return places
        if self.options["share_of"] == "places":
            order = np.argsort(raw_bits(combine(seed, split), len(places)), kind="stable")
            kept = set(order[: round(share * len(places))].tolist())
            return {place: rows for number, (place, rows) in enumerate(places.items()) if number in kept}
        rows = [(place, row) for place, members in places.items() for row in members]
        # The legacy generator of numpy, whose stream is frozen, draws as pandas' DataFrame.sample does.
        drawn = np.random.RandomState(seed).permutation(len(rows))[: round(share * len(rows))]
        chosen: dict[str, list[Revisit]] = {}
        for number in drawn:
            chosen.setdefault(rows[number][0], []).append(rows[number][1])
        return chosen

    def items(self) -> tuple[dict[str, list[str]], list[BadItem]]:
        rejected = [
            BadItem(path, "no such file, but metadata.csv lists it; its place goes on without this revisit")
            for places in (self.places.values() if "s2" in self.options["modalities"] else ())
            for place, rows in places.items()
            for path in dict.fromkeys(self._s2_path(place, row) for row in self._used(rows))
            if not path.is_file()
        ]
        return {split: list(places) for split, places in self.places.items() if places}, rejected

    def facts(self) -> dict[str, Any]:
        """What the split list repeats."""
        repeated = {place: count for place, count in self.listed.items() if count.total() > 1}
        return {
            "places": {split: len(places) for split, places in self.places.items()},
            "repeated_rows": sum(count.total() - 1 for count in repeated.values()),
            "places_in_two_splits": sorted(place for place, count in repeated.items() if len(count) > 1),
        }

    def read(self, item: str, split: str) -> list[Sample]:
        rows = self.places[split][item]
        images = {
            spec.name: self._spot(spec, item, rows[0]) if spec.name == "spot" else self._s2(spec, item, rows)
            for spec in self.modalities
        }
        parts = self.options["parts"]
        return [
            Sample(
                f"{item}/{row}-{col}",
                {spec.name: _part(images[spec.name], spec, row, col) for spec in self.modalities},
                rows[0].location,
            )
            for row in range(parts)
            for col in range(parts)
        ]

    def _spot(self, spec: ModalitySpec, place: str, row: Revisit) -> Image:
        path = self.source / "hr_dataset" / place / f"{place}_ps.tiff"
        values_CxHxW = read_raster(path).values
        parts = self.options["parts"]
        if min(values_CxHxW.shape[1:]) < spec.height * parts:
            raise BadItem(
                path,
                f"{values_CxHxW.shape[1]}x{values_CxHxW.shape[2]} pixels, "
                f"too few for {parts} x {parts} parts of {spec.height}",
            )
        return make_image(values_CxHxW[None], [_day(row.highres_date, path)], spec.sensor.nodata, path)

    def _s2(self, spec: ModalitySpec, place: str, rows: list[Revisit]) -> Image:
        frames, dates = [], []
        first = None
        path = self.source / "lr_dataset" / place
        for row in self._used(rows):
            if not (path := self._s2_path(place, row)).is_file():
                continue  # listed as rejected by items()
            raster = read_raster(path)
            first = first or raster.footprint
            if wrong := misplaced(raster.footprint, first, allowed=SAME_PATCH):
                raise BadItem(path, wrong)
            values_CxHxW = raster.values
            if values_CxHxW.dtype.name != spec.dtype or len(values_CxHxW) != len(spec.sensor.bands):
                raise BadItem(
                    path,
                    f"{len(values_CxHxW)} bands of {values_CxHxW.dtype.name}, "
                    f"expected {len(spec.sensor.bands)} of {spec.dtype}",
                )
            if not np.isfinite(values_CxHxW).all():
                raise BadItem(path, "NaN or infinite pixels")
            frames.append(resize(values_CxHxW, self.options["s2_size"]))
            dates.append(_day(row.lowres_date, path))
        if not frames:
            raise BadItem(path, f"no Sentinel-2 revisit with at most {self.options['max_cloud']} % clouds")
        # Swath gaps are 0 in all bands.
        return make_image(np.stack(frames), dates, 0, path)

    def _used(self, rows: list[Revisit]) -> list[Revisit]:
        return [row for row in rows if row.cloud_cover <= self.options["max_cloud"]]

    def _s2_path(self, place: str, row: Revisit) -> Path:
        return self.source / "lr_dataset" / place / "L2A" / f"{place}-{row.number}-L2A_data.tiff"


def read_metadata(path: Path) -> dict[str, list[Revisit]]:
    """{place: revisits in file order}. The first column is the place, whatever its header. Errors: UserError."""
    revisits: dict[str, list[Revisit]] = {}
    rows = read_table(path, ("n", "lowres_date", "highres_date", "cloud_cover"))
    for line, row in enumerate(rows, start=2):
        place = next(iter(row.values()))
        _check_place(place, f"{path}, line {line}")
        try:
            # Some copies hold the revisit number as 1.0, others a time of day behind the date.
            location = (float(row["lon"]), float(row["lat"])) if row.get("lon") and row.get("lat") else None
            revisit = Revisit(
                int(float(row["n"])),
                row["lowres_date"][:10],
                row["highres_date"][:10],
                float(row["cloud_cover"]),
                location,
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}, line {line} ({place}): {error}") from error
        revisits.setdefault(place, []).append(revisit)
    return revisits


def read_splits(path: Path) -> dict[str, Counter[str]]:
    """{place: how often it stands in each split}. Errors: UserError."""
    listed: dict[str, Counter[str]] = {}
    for row in read_table(path, ("tile", "split")):
        _check_place(row["tile"], str(path))
        listed.setdefault(row["tile"], Counter())[row["split"]] += 1
    return listed


def _check_place(place: str, where: str) -> None:
    """A place becomes part of a path: it must be a plain folder name."""
    if not place or "/" in place or "\\" in place or place in (".", ".."):
        raise UserError(f"{where}: {place!r} is no place name")


def _day(text: str, path: Path) -> int:
    return day_of_year(text, path, "%Y-%m-%d")


def _part(image: Image, spec: ModalitySpec, row: int, col: int) -> Image:
    top, left = row * spec.height, col * spec.width
    window = (slice(top, top + spec.height), slice(left, left + spec.width))
    valid = None if image.valid is None else np.ascontiguousarray(image.valid[:, *window])
    values = np.ascontiguousarray(image.values[:, :, *window])
    return Image(values, image.dates, image.present, None if valid is None or valid.all() else valid)


def resize(values_CxHxW: np.ndarray, size: int) -> np.ndarray:
    """Bilinear, pixel centres aligned, no anti-aliasing: bit by bit torch.nn.functional.interpolate("bilinear").

    PyTorch computes in float32 with fused multiply-adds, whose single rounding is had here by way of float64.
    """
    height, width = values_CxHxW.shape[1:]
    low, high, weight = _taps(width, size)
    wide = _blend(values_CxHxW[:, :, low], values_CxHxW[:, :, high], weight)
    low, high, weight = _taps(height, size)
    return _blend(wide[:, low], wide[:, high], weight[:, None])


def _blend(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return (first.astype(np.float64) * (np.float32(1) - weight) + second * weight).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _taps(pixels: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each output pixel: its two source pixels and the weight of the second."""
    step = np.float32(pixels) / np.float32(size)
    centre = np.maximum(np.float64(step) * (np.arange(size) + 0.5) - 0.5, 0).astype(np.float32)
    low = np.minimum(centre.astype(np.int64), pixels - 1)
    return low, np.minimum(low + 1, pixels - 1), (centre - low).astype(np.float32)
