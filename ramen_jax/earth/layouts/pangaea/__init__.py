"""The tasks of PANGAEA in their original on-disk layout, with imagery and truth of the procedural Earth.

Every reader can so be tested on files of the real format (names, folders, index files, splits, dtypes) without any
download, and its truth can be learnt. `WRITERS` has one per task: `write(output, seed=0, pixels=64)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from ramen_jax.earth.layouts.pangaea.cities_and_forests import (
    write_biomassters,
    write_fivebillionpixels,
    write_opencanopy,
    write_potsdam,
    write_xview2,
)
from ramen_jax.earth.layouts.pangaea.geobench import SETS, write_geobench
from ramen_jax.earth.layouts.pangaea.optical_and_radar import (
    write_croptypemapping,
    write_hlsburnscars,
    write_mados,
    write_pastis,
    write_sen1floods11,
)
from ramen_jax.earth.layouts.pangaea.planet_and_farms import (
    write_ai4smallfarms,
    write_dynamicearthnet,
    write_spacenet7,
)

WRITERS: Mapping[str, Callable[..., None]] = {
    "hlsburnscars": write_hlsburnscars,
    "mados": write_mados,
    "pastis": write_pastis,
    "sen1floods11": write_sen1floods11,
    "dynamicearthnet": write_dynamicearthnet,
    "croptypemapping": write_croptypemapping,
    "spacenet7": write_spacenet7,
    "spacenet7_change": write_spacenet7,
    "ai4smallfarms": write_ai4smallfarms,
    "xview2": write_xview2,
    "fivebillionpixels": write_fivebillionpixels,
    "potsdam": write_potsdam,
    "biomassters": write_biomassters,
    "opencanopy": write_opencanopy,
    **{name: functools.partial(write_geobench, name) for name in SETS},
}
