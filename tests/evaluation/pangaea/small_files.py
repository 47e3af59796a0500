"""Small files of each task's layout: what its writer and its reader are told."""

from __future__ import annotations

from pathlib import Path

import rasterio

from ramen_jax.evaluation.pangaea.protocol import PUBLISHED
from ramen_jax.evaluation.pangaea.tasks import open_task

PIXELS = 36
WRITE = {
    "pastis": {"places": 8, "dates": 55},
    "dynamicearthnet": {"places": 4, "days": 12},
    "spacenet7": {"months": 7, "pixels": 64},
}
READ = {"spacenet7": {"pixels": 32, "scene": 64}, "spacenet7_change": {"pixels": 32, "scene": 64}}


def small(name, source, protocol=PUBLISHED, **changes):
    """The reader of a folder of the fixture `layouts`."""
    return open_task(name, source, protocol, **{"pixels": PIXELS, **READ.get(name, {}), **changes})


def edit(path: Path, change) -> None:
    """Changes the pixels of a raster in place."""
    with rasterio.open(path) as file:
        values, profile = file.read(), file.profile
    if profile["driver"] == "PNG":
        profile = {key: profile[key] for key in ("driver", "count", "height", "width", "dtype")}
    with rasterio.open(path, "w", **profile) as file:
        file.write(change(values))
