"""Every trap of the official code and its two behaviours: one table, and one frozen value that is passed whole.

A trap is a place where the official code does something that a user should know about. `reference` keeps what it
does (released weights and published numbers follow it), `fixed` is what we think is right. `fixed-2` is `fixed` and
what made features better (docs/learning.md has the numbers). A recipe that has a name never changes again: what is
learnt later gets the next number. A configuration names a recipe, which sets all of them, and may set single ones:
`config.traps.sampling = "area"`.

A `Recipe` is made once, at the door: from a configuration (`ramen_jax.config`), from a checkpoint or an exported folder
(`from_dict`), or by name. Whoever honours a trap takes the whole value. The table in the README and the sentences on
model cards are written from `TRAPS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ramen_jax.console import USAGE, UserError, close_names

RECIPES = ("reference", "fixed", "fixed-2")
FOLLOW = "recipe"  # value of a config.traps key that follows config.recipe


@dataclass(frozen=True)
class Trap:
    """One trap.

    Attributes:
        reference, fixed: its value in these two recipes.
        honoured_by: the room that acts on it: what a change of it changes.
        about_reference, about_fixed: a sentence part each, for people.
        others: further values that a configuration may set.
        fixed_2: its value in `fixed-2`; None: as in `fixed`.
    """

    reference: Any
    fixed: Any
    honoured_by: str
    about_reference: str
    about_fixed: str
    others: tuple[Any, ...] = ()
    fixed_2: Any = None

    @property
    def choices(self) -> tuple[Any, ...]:
        return tuple(dict.fromkeys((self.reference, self.fixed, *self.others)))

    def of(self, recipe: str) -> Any:
        """Its value in one of RECIPES."""
        if recipe == "fixed-2" and self.fixed_2 is not None:
            return self.fixed_2
        return self.reference if recipe == "reference" else self.fixed


TRAPS: dict[str, Trap] = {
    "target": Trap(
        "per_pixel",
        "standardised",
        "model/loss.py",
        "every pixel is normalised across its bands, so of two bands only the sign of their difference is learnt, and "
        "one band is impossible (refused)",
        "the normalised image",
    ),
    "time_mask": Trap(
        "reference",
        "fixed",
        "rows/packing.py",
        "series are padded with zero frames of date 0 that the model sees and reconstructs",
        "padding is masked everywhere",
    ),
    "modality_embedding": Trap(
        "none",
        "bands",
        "model/decoder.py",
        "hidden tokens of different modalities at one place are identical in the decoder",
        "a learnt function of what the bands measure, good for new sensors too. The official decoder has no place for "
        "it: such a training exports its encoder alone",
    ),
    "missing": Trap(
        "zeros",
        "excluded",
        "model/images.py, model/loss.py",
        "absent bands and pixels without data are zeros, in the input and in the loss",
        "left out of both",
    ),
    "encodings": Trap(
        "float32",
        "float32",
        "model/encodings.py",
        "float32. The value `bfloat16` imitates mixed precision, which rounds wavelengths and dates",
        "float32",
        ("bfloat16",),
    ),
    "sampling": Trap(
        "reference",
        "metric",
        "sampling.py",
        "truncated grids, two resizes, a bilinear look at 2 x 2 pixels however coarse the token",
        "one resize in true metric coordinates. The value `area` averages a token's whole footprint",
        ("area",),
    ),
    "positions": Trap(
        "corner",
        "corner",
        "rows/pipeline.py",
        "counted in metres from the corner of the tile, so features tell where in its tile a token lies",
        "`corner`. With `random` each view of the training is counted from a point of its own",
        ("random",),
        fixed_2="random",
    ),
    "initialisation": Trap(
        "reference",
        "reference",
        "model/balance.py, model/decoder.py",
        "the first predictions are spread by the square root of the decoder's width: the loss begins above 1,000",
        "`reference`. `scaled` begins with a spread of about 1, by smaller gains of the decoder's last LayerNorms. "
        "`balanced` too, but by its bands' embeddings; LayerNorm leaves the brightness of a token, and radar and "
        "elevation bands begin as different as optical ones",
        ("scaled", "balanced"),
        fixed_2="scaled",
    ),
    "temporal": Trap(
        "all",
        "visible",
        "rows/packing.py",
        "temporal attention runs on every token before masking",
        "on the visible quarter only",
    ),
    "ltae_dropout": Trap(
        0.1,
        0.0,
        "model/temporal.py",
        "0.1, although the official configuration says 0",
        "0. Any share below 1 is accepted",
        (float,),
    ),
    "statistics": Trap(
        "reference",
        "pooled",
        "corpora/records.py",
        "the mean over images of each image's standard deviation",
        "over all valid pixels",
    ),
    "mmearth_wavelengths": Trap(
        "reference",
        "fixed",
        "corpora/records.py",
        "Sentinel-2 B8 and B8A of MMEarth carry each other's wavelength",
        "each its own",
    ),
    "mmearth_draw": Trap(
        "reference",
        "fixed",
        "corpora/mmearth.py",
        "MMEarth's training and validation sets are drawn apart, and overlap",
        "one draw, cut in two",
    ),
    "mmearth_zero_planes": Trap(
        "reference",
        "fixed",
        "corpora/mmearth.py",
        "every plane of zeros counts as an absent band, a flat tile's slope and elevation too",
        "only Sentinel-2 planes of zeros, and radar planes without a finite pixel",
    ),
    "worldstrat_repeats": Trap(
        "reference",
        "fixed",
        "corpora/worldstrat.py",
        "a place that WorldStrat's index names twice has its series repeated",
        "used once",
    ),
    "worldstrat_leaks": Trap(
        "reference",
        "fixed",
        "corpora/worldstrat.py",
        "a place that the index puts into two splits is used in both",
        "in the first one only",
    ),
}
# Decided when a corpus is prepared: a change of one of these asks for another preparation.
PREPARED = ("mmearth_draw", "mmearth_zero_planes", "worldstrat_repeats", "worldstrat_leaks")


@dataclass(frozen=True)
class Recipe:
    """The value of every trap; see `TRAPS` for what each means."""

    target: str
    time_mask: str
    modality_embedding: str
    missing: str
    encodings: str
    sampling: str
    positions: str
    initialisation: str
    temporal: str
    ltae_dropout: float
    statistics: str
    mmearth_wavelengths: str
    mmearth_draw: str
    mmearth_zero_planes: str
    worldstrat_repeats: str
    worldstrat_leaks: str

    @classmethod
    def named(cls, name: str, **changes: Any) -> Recipe:
        """One of RECIPES, single traps set otherwise.

        Raises:
            UserError: an unknown recipe, trap or value; names the close ones.
        """
        if name not in RECIPES:
            raise UserError(
                f"recipe is {name!r}, expected {', '.join(RECIPES[:-1])} or {RECIPES[-1]}; "
                f"{close_names(str(name), RECIPES)}",
                USAGE,
            )
        for key in changes:
            if key not in TRAPS:
                raise UserError(f"no trap {key!r}; {close_names(str(key), list(TRAPS))}", USAGE)
        values = {key: trap.of(name) for key, trap in TRAPS.items()}
        return cls(**{**values, **{key: checked(key, value) for key, value in changes.items()}})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe that a checkpoint or an exported folder recorded.

        A trap that is newer than the record has its fixed value: every trap so far was named when it was repaired.
        """
        known = {key: value for key, value in values.items() if key in TRAPS and value != FOLLOW}
        return cls.named("fixed", **known)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: trap -> value."""
        return dataclasses.asdict(self)

    def but(self, **changes: Any) -> Recipe:
        """The same with single traps set otherwise."""
        return dataclasses.replace(self, **{key: checked(key, value) for key, value in changes.items()})


REFERENCE, FIXED, FIXED_2 = (Recipe.named(name) for name in RECIPES)


def checked(key: str, value: Any) -> Any:
    """A value that a trap accepts. Raises UserError naming the choices."""
    trap = TRAPS[key]
    if float in trap.others:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise UserError(
                f"config.traps.{key} is {value!r}, expected {FOLLOW!r} or a share from 0 to below 1", USAGE
            )
        return float(value)
    if value not in trap.choices:
        known = ", ".join(repr(choice) for choice in (FOLLOW, *trap.choices))
        raise UserError(
            f"config.traps.{key} is {value!r}, expected one of {known}; "
            f"{close_names(str(value), [str(choice) for choice in trap.choices])}",
            USAGE,
        )
    return value


def table() -> str:
    """The traps as a Markdown table, as the README shows it."""
    lines = [
        "| `config.traps.` | `reference`: as the official code | `fixed` | `fixed-2`, where it differs |",
        "|---|---|---|---|",
    ]
    for key, trap in TRAPS.items():
        cells = [
            about if str(value) in about or value in RECIPES else f"`{value}`: {about}"
            for value, about in ((trap.reference, trap.about_reference), (trap.fixed, trap.about_fixed))
        ]
        newer = "" if trap.of("fixed-2") == trap.fixed else f"`{trap.fixed_2}`"
        lines.append(f"| `{key}` | {cells[0]} | {cells[1]} | {newer} |")
    return "\n".join(lines)
