"""FLAIR-HUB as it lies on disk: a GeoTIFF per patch and modality, patch lists, date tables in GeoPackages."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.warp
from rasterio.transform import from_origin

from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.earth import places as earth
from ramen_jax.earth.layouts import files
from ramen_jax.samples import CorpusSpec, Sample

# Column of the list: modality of the sample, or None for masks and labels.
FLAIRHUB_COLUMNS = {
    "AERIAL-RLT_PAN": "aerial_rlt",
    "AERIAL_LABEL-COSIA": None,
    "AERIAL_RGBI": "aerial",
    "ALL_LABEL-LPIS": None,
    "DEM_ELEV": "dem",
    "SENTINEL1-ASC_TS": "s1_asc",
    "SENTINEL1-DESC_TS": "s1_des",
    "SENTINEL2_MSK-SC": None,
    "SENTINEL2_TS": "s2",
    "SPOT_RGBI": "spot",
}
_FLAIRHUB_GRIDS = {  # modality: sensor, pixels, dtype, series
    "aerial": ("flairhub_aerial", 512, "uint8", False),
    "aerial_rlt": ("flairhub_aerial_rlt", 256, "uint8", False),
    "dem": ("flairhub_dem", 512, "float32", False),
    "spot": ("flairhub_spot", 64, "uint16", False),
    "s2": ("flairhub_s2", 10, "uint16", True),
    "s1_asc": ("flairhub_s1_asc", 10, "float32", True),
    "s1_des": ("flairhub_s1_des", 10, "float32", True),
}
# Date tables: published name, and the name the official RAMEN loader opens.
FLAIRHUB_DATES = {
    "aerial": ("AERIAL", "AERIAL_RGBI"),
    "aerial_rlt": ("AERIAL-RLT", "AERIAL-RLT_PAN"),
    "spot": ("SPOT", "SPOT_RGBI"),
    "s2": ("SENTINEL2", "SENTINEL2_TS"),
    "s1_asc": ("SENTINEL1-ASC", "SENTINEL1-ASC_TS"),
    "s1_des": ("SENTINEL1-DESC", "SENTINEL1-DESC_TS"),
}
VARIANTS = ("published", "loader")


def write_flairhub(
    output: Path,
    places: int,
    seed: int = 0,
    *,
    variant: str = "published",
    max_dates: int = 12,
    modalities: Sequence[str] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[str]:
    """Writes FLAIR-HUB patches; returns their identifiers.

    Args:
      variant: "published" (csv/FLAIR-HUB_TRAIN.csv ..., published names of the date tables beside the data folders, and
        the split table) or "loader" (data/train.csv ... and data/GLOBAL_ALL_MTD, as the official RAMEN loader wants).
      max_dates: longest series; Sentinel-2 is written unfiltered, with its snow and cloud masks.
      modalities: rasters to write (the lists always have all eleven columns); None for all seven.
    """
    if variant not in VARIANTS:
        raise UserError(f"unknown variant {variant!r}; {close_names(variant, VARIANTS)}", USAGE)
    wanted = tuple(modalities or _FLAIRHUB_GRIDS)
    for name in wanted:
        if name not in _FLAIRHUB_GRIDS:
            raise UserError(
                f"FLAIR-HUB has no modality {name!r}; {close_names(name, _FLAIRHUB_GRIDS)}", USAGE
            )
    spec = CorpusSpec(
        "flairhub", tuple(files.modality(name, *_FLAIRHUB_GRIDS[name], max_dates) for name in wanted)
    )
    how = earth.Recipe("france", cloudy=0.45)
    splits = files.split_of(places)
    rows: dict[str, list[dict[str, str]]] = {split: [] for split in files.SPLITS}
    dates: dict[str, dict[str, Any]] = {name: {} for name in FLAIRHUB_DATES if name in wanted}
    boxes: dict[str, tuple[float, float, float, float]] = {}
    origin: dict[str, tuple[float, float]] = {}
    for index in range(places):
        # Test patches lie in a domain of their own, as in the official split; four patches to a ROI.
        domain, year = ("D012", 2019) if splits[index] == "test" else ("D004", 2021)
        roi, position = f"{('AA', 'FF', 'UU')[index // 4 % 3]}-S1-{index // 4 + 1}", index % 4
        patch = f"{domain}-{year}_{roi}_{position // 2 + 1}-{position % 2 + 1}"
        place = earth.Place(seed, index, spec, how)
        sample = place.sample()
        key = f"{domain}-{year}_{roi}"
        if key not in origin:
            (east,), (north,) = rasterio.warp.transform(
                "EPSG:4326", "EPSG:2154", *([v] for v in place.scene.location)
            )
            origin[key] = (round(east, 1), round(north, 1))
        west, top = origin[key][0] + 102.4 * (position % 2), origin[key][1] - 102.4 * (position // 2)
        boxes[patch] = (west, top - 102.4, west + 102.4, top)
        rows[splits[index]].append(_flairhub_patch(output, patch, place, sample, west, top))
        for name in dates:
            days = sample.images[name].dates
            if _FLAIRHUB_GRIDS[name][3]:
                text = json.dumps(
                    {str(n): files.day_text(year, day, "%Y%m%d") for n, day in enumerate(days, start=1)}
                )
            else:
                text = files.day_text(1955 if name == "aerial_rlt" else year, days[0], "%Y%m%d")
            dates[name][patch] = text
        progress()

    folder = output / ("data" if variant == "loader" else "")
    for name, by_patch in dates.items():
        stem = f"GLOBAL_{FLAIRHUB_DATES[name][VARIANTS.index(variant)]}_MTD_DATES"
        field = "acquisition_dates" if _FLAIRHUB_GRIDS[name][3] else "date"
        table = [{"patch_id": patch, field: text} for patch, text in by_patch.items()]
        files.write_geopackage(
            folder / "GLOBAL_ALL_MTD" / f"{stem}.gpkg", table, [boxes[row["patch_id"]] for row in table]
        )
    names = ("train.csv", "val.csv", "test.csv")
    lists = output / "data"
    if variant == "published":
        names = ("FLAIR-HUB_TRAIN.csv", "FLAIR-HUB_VALID.csv", "FLAIR-HUB_TEST.csv")
        lists = output / "csv"
        table = [
            {"patch_id": row["patch_id"], "split_flairhub": "valid" if split == "val" else split}
            for split in files.SPLITS
            for row in rows[split]
        ]
        files.write_geopackage(
            output / "GLOBAL_ALL_MTD" / "GLOBAL_ALL_MTD_SPLIT.gpkg",
            table,
            [boxes[row["patch_id"]] for row in table],
        )
    for split, name in zip(files.SPLITS, names):
        files.write_csv(
            lists / name, ["patch_id", *FLAIRHUB_COLUMNS], [list(row.values()) for row in rows[split]], ";"
        )
    return [row["patch_id"] for split in files.SPLITS for row in rows[split]]


def _flairhub_patch(
    output: Path, patch: str, place: earth.Place, sample: Sample, west: float, top: float
) -> dict[str, str]:
    """Writes the rasters of one patch; returns its row of the list."""
    domain, roi, position = patch.split("_")
    row = {"patch_id": patch}
    for column, modality in FLAIRHUB_COLUMNS.items():
        dated = domain.split("-")[0] + "-195X" if column == "AERIAL-RLT_PAN" else domain
        path = f"{dated}_{column}/{roi}/{dated}_{column}_{roi}_{position}.tif"
        row[column] = f"../{path}"
        if modality is not None:
            if modality not in sample.images:
                continue
            values = sample.images[modality].values
        elif column == "SENTINEL2_MSK-SC":
            if "s2" not in sample.images:
                continue
            values = _snow_and_cloud(place, sample)
        elif column == "AERIAL_LABEL-COSIA":
            values = place.scene.labels(512, 512, 0.2, "cosia")[None, None]
        else:
            crops = place.scene.labels(512, 512, 0.2, "lpis")
            values = np.stack([crops, crops, crops])[None]
        stack = values.reshape(-1, *values.shape[2:])  # date-major: all bands of date 1, then of date 2
        pixel = 102.4 / stack.shape[-1]
        files.write_tiff(
            output / path, stack, crs="EPSG:2154", transform=from_origin(west, top, pixel, pixel)
        )
    return row


def _snow_and_cloud(place: earth.Place, sample: Sample) -> np.ndarray:
    """Snow and cloud probability [T, 2, H, W] uint16, percent."""
    cloud = place.cloud["s2"]
    snow = place.scene.snow(sample.images["s2"].dates)[:, None, None] * np.ones_like(cloud)
    return np.rint(100 * np.stack([snow, cloud], axis=1)).astype(np.uint16)
