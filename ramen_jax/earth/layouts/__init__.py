"""Synthetic places in the original on-disk layout of FLAIR-HUB, MMEarth64 and WorldStrat.

Every reader can so be tested on files of the real format (names, columns, fields, keys, dtypes) without any download;
the values come from the procedural Earth. On the command line:

    python -m ramen_jax.earth.layouts --corpus flairhub --output DIR --places 8 --seed 0
"""

from ramen_jax.earth.layouts.flairhub import write_flairhub
from ramen_jax.earth.layouts.mmearth import write_mmearth
from ramen_jax.earth.layouts.worldstrat import write_worldstrat

__all__ = ["write_flairhub", "write_mmearth", "write_worldstrat"]
