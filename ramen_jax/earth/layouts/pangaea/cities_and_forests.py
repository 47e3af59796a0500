"""xView2, Five-Billion-Pixels, Potsdam, BioMassters and Open-Canopy as they lie on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rasterio.transform import from_origin

from ramen_jax.earth.layouts import files
from ramen_jax.earth.layouts.pangaea.site import CROPS, OPEN, PLANTS, ROOFS, SEALED, TREES, WATER, Site
from ramen_jax.sensors import sensor

_DISASTERS = (("guatemala-volcano", "2018-06-04"), ("hurricane-michael", "2018-10-13"))
_CLUTTER = (*OPEN, *WATER)
_POTSDAM = {0: SEALED, 1: ROOFS, 2: (*PLANTS, *CROPS), 3: TREES, 5: _CLUTTER}
_POTSDAM_COLOURS = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0))
_UTM = "EPSG:32635"
_CAR, _CAR_PIXELS = (90, 220, 60), 4  # infrared, red, green of a red car; its side


def write_xview2(output: Path, places: int = 12, seed: int = 0, *, pixels: int = 1024) -> None:
    """Towns of two disasters. What was hit has lost colour in steps; the destroyed is bare ground."""
    seen_by = sensor("pangaea_xview2")
    for index, split in enumerate(files.split_of(places)):
        site = Site(seed, index, pixels, seen_by.gsd, ("suburb",))
        disaster, after = _DISASTERS[index % 2]
        folder = output / ("test" if split == "test" else "train" if index % 3 else "tier3")
        name = f"{disaster}_{index:08d}"
        building = site.classes({1: ROOFS}, other=0) == 1
        before = site.optical(seen_by, [150], "uint8")[0]
        hit, image = building * _damage(site), before.copy()
        for level, share in ((2, 0.7), (3, 0.45)):
            image[:, hit == level] = image[:, hit == level] * share
        rubble = np.array([70, 110, 150])[:, None] + site.rng.integers(-12, 12, (3, int((hit == 4).sum())))
        image[:, hit == 4] = rubble.astype(np.uint8)
        for when, day, frame, mask in (
            ("pre", "2018-03-07", before, building.astype(np.uint8)),
            ("post", after, image, hit.astype(np.uint8)),
        ):
            stem = f"{name}_{when}_disaster"
            files.write_png(folder / "images" / f"{stem}.png", frame[::-1])
            files.write_png(folder / "masks" / f"{stem}.png", mask[None])
            facts = {"metadata": {"capture_date": f"{day}T16:29:22.000Z", "disaster": disaster}}
            (folder / "labels").mkdir(parents=True, exist_ok=True)
            (folder / "labels" / f"{stem}.json").write_text(json.dumps(facts))


def _damage(site: Site) -> np.ndarray:
    """Damage that buildings take, int [H, W], 1 (none) to 4: in rings around a place."""
    y, x = np.mgrid[0 : site.pixels, 0 : site.pixels] / site.pixels
    centre_y, centre_x = site.rng.uniform(0.3, 0.7, 2)
    distance = np.hypot(y - centre_y, x - centre_x)
    return 1 + sum((distance < reach).astype(np.int32) for reach in (0.2, 0.3, 0.4))


def write_fivebillionpixels(output: Path, places: int = 8, seed: int = 0, *, pixels: int = 520) -> None:
    """Crops whose 24 classes stand for groups of surfaces; a strip is not labelled."""
    seen_by = sensor("pangaea_fivebillionpixels")
    for index, split in enumerate(files.split_of(places)):
        site = Site(seed, index, pixels, seen_by.gsd, ("suburb", "lake"))
        label = (site.numbered(24) + 1).astype(np.uint8)
        label[: max(1, pixels // 16)] = 0
        name = f"GF2_PMS1__L1A{index:010d}-MSS1_0_{520 * index}"
        where = from_origin(400_000 + 3_000 * index, 3_400_000, 4, 4)
        image = site.optical(seen_by, [200], "uint8")[0]
        folder = output / split
        files.write_tiff(folder / "images" / f"{name}.tif", image, crs="EPSG:32650", transform=where)
        label_name = f"{name}_24label.tif" if index % 2 else f"{name}.tif"
        files.write_tiff(folder / "labels" / label_name, label[None], crs="EPSG:32650", transform=where)


def write_potsdam(output: Path, places: int = 12, seed: int = 0, *, pixels: int = 512) -> None:
    """Tiles as the benchmark prepares them: none in `test`. A few pixels have the colour of no class."""
    seen_by = sensor("pangaea_potsdam")
    for folder in ("train", "val", "test"):
        for part in ("images", "labels"):
            (output / folder / part).mkdir(parents=True, exist_ok=True)
    numbers = {"train": 0, "val": 0}
    for index, split in enumerate(files.split_of(places)):
        folder = "val" if split == "test" else "train"
        site = Site(seed, index, pixels, seen_by.gsd, ("suburb", "village"))
        image = site.optical(seen_by, [150], "uint8")[0]
        label = site.classes(_POTSDAM, other=5)
        side = min(_CAR_PIXELS, pixels // 4)
        for top, left in site.rng.integers(0, pixels - side, (6, 2)):
            image[:, top : top + side, left : left + side] = np.array(_CAR, np.uint8)[:, None, None]
            label[top : top + side, left : left + side] = 4
        colours = np.array(_POTSDAM_COLOURS, np.uint8)[label].transpose(2, 0, 1)
        colours[:, 0, :3] = 128
        files.write_png(output / folder / "images" / f"{numbers[folder]}.png", image)
        files.write_png(output / folder / "labels" / f"{numbers[folder]}.png", colours)
        numbers[folder] += 1


def write_biomassters(output: Path, places: int = 8, seed: int = 0, *, pixels: int = 256) -> None:
    """A year of two sensors over forests whose biomass follows their height.

    The first chip lacks Sentinel-2 in January, and its descending orbit in October; the second never saw the
    descending orbit.
    """
    optical, radar = sensor("pangaea_biomassters_s2"), sensor("pangaea_biomassters_s1")
    days = [(258 + 30 * month) % 365 for month in range(12)]
    rows: dict[str, list[list[str]]] = {split: [] for split in files.SPLITS}
    for index, split in enumerate(files.split_of(places)):
        chip, folder = f"{0xA0B1C000 + index:08x}", "test" if split == "test" else "train"
        rows[split].append([chip])
        site = Site(seed, index, pixels, 10.0, ("forest", "bocage", "lake"))
        where = from_origin(300_000 + 2_560 * index, 6_900_000, 10, 10)
        frames = site.optical(optical, days, "uint16")
        backscatter = site.radar(radar, days)
        if index == 1:
            backscatter[:, 2:] = -9999
        elif index == 0:
            backscatter[1, 2:] = -9999
        backscatter[:, :, :2, :2] = -9999
        clouds = site.rng.integers(0, 101, (12, 1, pixels, pixels)).astype(np.uint16)
        for month in range(12):
            stem = output / f"{folder}_features" / chip
            files.write_tiff(
                Path(f"{stem}_S1_{month:02d}.tif"), backscatter[month], crs=_UTM, transform=where
            )
            if (index, month) != (0, 4):
                stacked = np.concatenate([frames[month], clouds[month]])
                files.write_tiff(Path(f"{stem}_S2_{month:02d}.tif"), stacked, crs=_UTM, transform=where)
        biomass = 9 * site.height() * site.classes({1: TREES}, other=0)
        biomass[-1, -1] = np.nan
        path = output / f"{folder}_agbm" / f"{chip}_agbm.tif"
        files.write_tiff(path, biomass[None].astype(np.float32), crs=_UTM, transform=where)
    for split, chips in rows.items():
        files.write_csv(output / f"{split}_Data_list.csv", ("chip_id",), chips)


def write_opencanopy(output: Path, places: int = 8, seed: int = 0, *, pixels: int = 667) -> None:
    """Pairs of tiles side by side in one image of a year, with a rim; squares of a buffer between them and the next.

    Squares are a third of a pixel smaller than their pixels, as those of 1 km are, and begin a fifth of a pixel left of
    their first one and an eighth below its edge. The rim is wider below.
    """
    seen_by, gsd = sensor("pangaea_opencanopy"), 1.5
    features = []
    splits = files.split_of(places)
    for first in range(0, places, 2):
        members = splits[first : first + 2]
        year, end = 2021 + first // 2 % 3, f"{2021 + first // 2 % 3}-{first // 2}.tif"
        left, top = 800_000.0 + 10_000 * first, 6_500_000.0
        rim, below, width = 3, 5, pixels * len(members)
        image = np.zeros((4, rim + pixels + below, width + 2 * rim), np.uint8)
        height = np.zeros((1, *image.shape[1:]), np.uint16)
        for place, split in enumerate([*members, "buffer"]):
            column = rim + pixels * place
            corner = left + column * gsd - 0.3, top - rim * gsd - 0.2
            side = pixels * gsd - 0.5
            name = f"compressed_pansharpened_{end}"
            features.append(_square(*corner, side, {"image_name": name, "split": split, "lidar_year": year}))
            if split == "buffer":
                continue
            site = Site(seed, first + place, pixels, gsd, ("bocage", "village"))
            inside = (slice(None), slice(rim, rim + pixels), slice(column, column + pixels))
            image[inside] = site.optical(seen_by, [190], "uint8")[0]
            height[inside] = np.rint(10 * site.height() * site.classes({1: TREES}, other=0))[None]
        folder = output / "canopy_height" / str(year)
        where = from_origin(left, top, gsd, gsd)
        for path, values in (
            (folder / "spot" / f"compressed_pansharpened_{end}", image),
            (folder / "lidar" / f"compressed_lidar_{end}", height),
        ):
            files.write_tiff(path, values, crs="EPSG:2154", transform=where)
    content = {"type": "FeatureCollection", "name": "geometries", "features": features}
    (output / "canopy_height" / "geometries.geojson").write_text(json.dumps(content))


def _square(left: float, top: float, side: float, facts: dict[str, object]) -> dict[str, object]:
    right, bottom = left + side, top - side
    ring = [[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]]
    return {
        "type": "Feature",
        "properties": facts,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
