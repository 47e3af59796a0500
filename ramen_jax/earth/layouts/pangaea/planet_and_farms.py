"""DynamicEarthNet, SpaceNet 7 and AI4SmallFarms as they lie on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rasterio.transform import from_origin

from ramen_jax.earth.layouts import files
from ramen_jax.earth.layouts.pangaea.site import CROPS, OPEN, PLANTS, ROOFS, SEALED, TREES, WATER, Site
from ramen_jax.sensors import sensor

_COVER = {0: (*ROOFS, *SEALED), 1: CROPS, 2: (*TREES, *PLANTS[:2]), 3: ("brushwood",), 4: OPEN, 5: WATER}
# Areas of each split of the published list, as many as a small copy needs.
_AREAS = {
    "train": ("L15-0331E-1257N_1327_3160_13", "L15-0358E-1220N_1433_3310_13", "L15-0457E-1135N_1831_3648_13"),
    "val": ("L15-0357E-1223N_1429_3296_13",),
    "test": ("L15-0387E-1276N_1549_3087_13", "L15-0434E-1218N_1736_3318_13"),
}


def write_dynamicearthnet(
    output: Path, places: int = 8, seed: int = 0, *, pixels: int = 1024, days: int = 28
) -> None:
    """A month per place; snow (-1) in a corner."""
    seen_by = sensor("pangaea_dynamicen")
    lines: dict[str, list[str]] = {split: [] for split in files.SPLITS}
    for index, split in enumerate(files.split_of(places)):
        site = Site(seed, index, pixels, 3.0, ("village", "lake", "farmland", "forest"))
        month = f"2018-{index % 12 + 1:02d}"
        cube = f"{1311 + index}_3077_13"
        folder = f"/reprocess-cropped/UTM-24000/{cube}/PF-SR"
        label = f"/labels/{cube}/Labels/Raster/{cube}-{month.replace('-', '_')}_01.tif"
        lines[split].append(f"{folder} {label} {month}")
        first = 30 * (index % 12) + 1
        where = output / folder.replace("/reprocess-cropped/UTM-24000/", "planet/").lstrip("/")
        where.mkdir(parents=True, exist_ok=True)
        for day, frame in enumerate(site.optical(seen_by, range(first, first + days), "int16"), start=1):
            np.save(where / f"{month}-{day:02d}.npy", frame)
        cover = site.classes(_COVER, other=2)
        cover[: pixels // 16, : pixels // 16] = -1
        path = output / label.lstrip("/").replace("tif", "npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, cover.astype(np.int64))
    (output / "dynnet_training_splits").mkdir(parents=True, exist_ok=True)
    for split, texts in lines.items():
        (output / "dynnet_training_splits" / f"{split}.txt").write_text("\n".join(texts) + "\n")


def write_spacenet7(output: Path, seed: int = 0, *, pixels: int = 1024, months: int = 8) -> None:
    """Areas of the published split whose right half is built up month by month. One month is masked out (clouds).

    The first area's scenes have a row less than `pixels`, as some of the original's have.
    """
    seen_by = sensor("pangaea_spacenet7")
    content: dict[str, list[dict[str, object]]] = {}
    names = [name for members in _AREAS.values() for name in members]
    for index, area in enumerate(names):
        site = Site(seed, index, pixels, 4.0, ("suburb", "village"))
        built = site.classes({1: ROOFS}, other=0) == 1
        image = site.optical(seen_by, [200], "uint8")[0]
        meadow = np.array([90, 100, 60], np.uint8)[:, None]
        content[area] = []
        for number in range(months):
            year, month = 2018 + number // 12, number % 12 + 1
            edge = pixels // 2 + pixels * (number + 1) // (2 * months)
            now, label = image.copy(), built.copy()
            gone = built & (np.arange(pixels) >= edge)
            now[:, gone], label[gone] = meadow, False
            alpha = np.full((1, pixels, pixels), 255, np.uint8)
            stem = f"global_monthly_{year}_{month:02d}_mosaic_{area}"
            rows = slice(0, pixels - 1 if index == 0 else pixels)
            where = from_origin(0, 0, 4.8, 4.8)
            folder = output / "train" / area
            files.write_tiff(
                folder / "images_masked" / f"{stem}.tif",
                np.concatenate([now, alpha])[:, rows],
                crs="EPSG:3857",
                transform=where,
            )
            files.write_tiff(
                folder / "labels_raster" / f"{stem}_Buildings.tif",
                (255 * label[None, rows]).astype(np.uint8),
                crs="EPSG:3857",
                transform=where,
            )
            entry = {"aoi_id": area, "year": year, "month": month, "mask": number == 1, "label": True}
            content[area].append(entry)
    (output / "metadata_train.json").write_text(json.dumps(content))


def write_ai4smallfarms(output: Path, places: int = 8, seed: int = 0, *, pixels: int = 496) -> None:
    """Tiles with fields; the published name of the validation folder, and tiles that differ by a few pixels in size."""
    seen_by = sensor("pangaea_ai4smallfarms")
    for index, split in enumerate(files.split_of(places)):
        side = pixels + (index % 3) * max(1, pixels // 60)
        site = Site(seed, index, side, 10.0, ("farmland", "bocage", "forest"))
        folder = output / "sentinel-2-asia" / ("validate" if split == "val" else split)
        where = from_origin(600_000 + 5_000 * index, 1_400_000, 10, 10)
        image = site.optical(seen_by, [60], "uint16")[0]
        mask = (255 * site.classes({1: CROPS}, other=0)).astype(np.uint8)
        name = f"{index:05d}.tif"
        files.write_tiff(folder / "images" / name, image, crs="EPSG:32648", transform=where)
        files.write_tiff(folder / "masks" / name, mask[None], crs="EPSG:32648", transform=where)
