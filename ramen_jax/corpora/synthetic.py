"""The procedural Earth as a corpus: places rendered straight into records, in the geometry of any corpus."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ramen_jax.console import USAGE, UserError
from ramen_jax.corpora import BadItem, Corpus
from ramen_jax.earth.places import corpus_spec, render_place
from ramen_jax.samples import Sample


class Synthetic(Corpus):
    """See `ramen_jax.earth.places`. Source is not used.

    Options:
      geometry: name of a geometry, such as tiny, flairhub, mmearth, worldstrat, or one of their small ones.
      places, val_places: how many to render for training and validation.
      seed: of the Earth.
      modalities, max_dates: of the geometry; None = all of them, and its own longest series.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "geometry": "tiny",
        "places": 64,
        "val_places": 8,
        "seed": 0,
        "modalities": None,
        "max_dates": None,
    }

    def __init__(self, source: Path, options: Mapping[str, Any]) -> None:
        super().__init__(source, options)
        for key in ("places", "val_places", "seed"):
            if not isinstance(self.options[key], int) or self.options[key] < 0:
                raise UserError(
                    f"corpus {self.name}: {key} is {self.options[key]!r}, expected a whole number", USAGE
                )
        if not isinstance(self.options["geometry"], str):
            raise UserError(
                f"corpus {self.name}: geometry is {self.options['geometry']!r}, expected a name", USAGE
            )
        dates = self.options["max_dates"]
        if dates is not None and (not isinstance(dates, int) or dates < 1):
            raise UserError(
                f"corpus {self.name}: max_dates is {dates!r}, expected a whole number of dates, at least 1",
                USAGE,
            )
        self.spec = corpus_spec(
            self.options["geometry"],
            max_dates=self.options["max_dates"],
            modalities=self.options["modalities"],
        )
        self.modalities = self.spec.as_declared()

    def items(self) -> tuple[dict[str, list[str]], list[BadItem]]:
        places, val_places = self.options["places"], self.options["val_places"]
        numbers = {"train": range(places), "val": range(places, places + val_places)}
        return {split: [str(place) for place in places] for split, places in numbers.items() if places}, []

    def read(self, item: str, split: str) -> list[Sample]:
        return [render_place(self.options["seed"], int(item), self.spec)]
