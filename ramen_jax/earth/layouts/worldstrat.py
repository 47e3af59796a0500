"""WorldStrat as it lies on disk: SPOT images and Sentinel-2 revisits per place, metadata.csv and the split list."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rasterio.transform import from_bounds

from ramen_jax.console import USAGE, UserError
from ramen_jax.earth import places as earth
from ramen_jax.earth.layouts import files
from ramen_jax.samples import CorpusSpec, ModalitySpec
from ramen_jax.sensors import sensor

METADATA_COLUMNS = (
    "",
    "n",
    "bounds",
    "lowres_date",
    "highres_date",
    "area",
    "cloud_cover",
    "delta",
    "lon",
    "lat",
    "LCCS",
    "SMOD",
    "IPCC Class",
    "LCCS class",
    "SMOD Class",
)
SPLIT_COLUMNS = ("", "tile", "IPCC Class", "SMOD", "source", "joint_class", "split")
_METRES_PER_DEGREE = 111_320.0
_PAN_NM = 590.0
# WorldCover class with the largest share -> LCCS code, its name, IPCC class.
_LCCS = {
    "10": (60, "Tree cover, broadleaved, deciduous", "Forest"),
    "20": (120, "Shrubland", "Grassland"),
    "30": (130, "Grassland", "Grassland"),
    "40": (10, "Cropland, rainfed", "Agriculture"),
    "50": (190, "Urban areas", "Settlement"),
    "60": (200, "Bare areas", "Other"),
    "70": (220, "Permanent snow and ice", ""),
    "80": (210, "Water bodies", "Wetland"),
}
_SMOD = {
    10: "Water",
    11: "Rural: Very Low Density",
    13: "Rural: Cluster",
    21: "Suburban",
    30: "Urban: Centre",
}


def write_worldstrat(
    output: Path,
    places: int,
    seed: int = 0,
    *,
    max_dates: int = 4,
    pixels: int = 1054,
    l1c: bool = False,
    quirks: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> list[str]:
    """Writes WorldStrat places; returns their names.

    Args:
      max_dates: revisits per place, 1..16. They are not in the order of time, and their sizes differ by a pixel.
      pixels: SPOT pixels per side; 1054 in the original (the official loader cuts it in 4 x 4 parts of 263).
      l1c: also the L1C revisits (13 bands).
      quirks: what the original has too: the first place is listed twice in the split list, the last one in two splits,
        and its last revisit has no file.
    """
    if not 1 <= max_dates <= 16:
        raise UserError(f"WorldStrat has 1 to 16 revisits, found max_dates {max_dates}", USAGE)
    how = earth.Recipe("world", cloudy=0.4)
    metadata: list[list[object]] = []
    splits: list[list[object]] = []
    names = []
    for index, split in enumerate(files.split_of(places)):
        name = _place_name(seed, index)
        names.append(name)
        spec = _spec(pixels, max_dates)
        place = earth.Place(seed, index, spec, how)
        facts = _write_place(output, name, place, l1c)
        lccs, lccs_name, ipcc = _LCCS[max(facts.worldcover, key=lambda code: facts.worldcover[code])]
        built = facts.worldcover.get("50", 0.0)
        smod = 30 if built > 0.5 else 21 if built > 0.25 else 13 if built > 0.1 else 11
        for n, (low, high, cloud, delta) in enumerate(facts.revisits, start=1):
            row: list[object] = [name, n, json.dumps(facts.bounds), low, high, facts.area_km2, cloud, delta]
            metadata.append([*row, *place.scene.location, lccs, smod, ipcc, lccs_name, _SMOD[smod]])
        source = name.split("-")[0].split(" ")[0]
        joint = f"{source}/{ipcc or 'nan'}/{smod}"
        # The list counts 16 revisits to a place, whatever is on disk.
        splits.append([16 * index, name, ipcc, smod, source, joint, split])
        if quirks and index == places - 1:
            last = f"{name}-{len(facts.revisits)}"
            (output / "lr_dataset" / name / "L2A" / f"{last}-L2A_data.tiff").unlink()
        progress()
    if quirks:
        splits += [splits[0], [*splits[-1][:-1], "train"]]
    files.write_csv(output / "metadata.csv", METADATA_COLUMNS, metadata)
    files.write_csv(output / "stratified_train_val_test_split.csv", SPLIT_COLUMNS, splits)
    return names


@dataclasses.dataclass
class _Facts:
    worldcover: dict[str, float]
    bounds: list[float]
    area_km2: float
    revisits: list[
        tuple[str, str, float, int]
    ]  # Sentinel-2 date, SPOT date, cloud cover in percent, days between


def _place_name(seed: int, index: int) -> str:
    """A name in the style of one of the four sources; one of them has a space, all have hyphens."""
    number = 10_000 * (seed + 1) + index
    return (
        f"Landcover-{700_000 + number}",
        f"Amnesty POI-{1 + index}-{1 + number % 3}-2",
        f"UNHCR-SYN{number:06d}",
        f"ASMSpotter-{1 + index}-{1 + number % 2}-2",
    )[index % 4]


def _spec(pixels: int, max_dates: int) -> CorpusSpec:
    coarse = max(2, round(pixels * 1.5 / 10))
    spot, s2 = sensor("worldstrat_spot"), sensor("worldstrat_s2")
    red = spot.bands[0]
    pan = dataclasses.replace(
        spot, name="worldstrat_pan", bands=(dataclasses.replace(red, name="pan", wavelength_nm=_PAN_NM),)
    )
    multi = dataclasses.replace(spot, name="worldstrat_rgbn", gsd=6.0)
    return CorpusSpec(
        "worldstrat",
        (
            ModalitySpec("ps", spot, pixels, pixels, dtype="uint16"),
            ModalitySpec("pan", pan, pixels, pixels, dtype="uint16"),
            ModalitySpec("rgbn", multi, pixels // 4, pixels // 4, dtype="uint16"),
            ModalitySpec("l2a", s2, coarse, coarse + 1, True, max_dates, "float32"),
        ),
    )


def _write_place(output: Path, name: str, place: earth.Place, l1c: bool) -> _Facts:
    sample = place.sample()
    rng = place.scene.generator("worldstrat")
    high = output / "hr_dataset" / name
    for kind in ("ps", "pan", "rgbn"):
        # The originals carry a CRS and no transform.
        files.write_tiff(high / f"{name}_{kind}.tiff", sample.images[kind].values[0], crs="EPSG:4326")
    preview = np.clip(sample.images["ps"].values[0, :3].astype(np.float32) / 2500, 0, 1) ** 0.6 * 255
    files.write_png(high / f"{name}_rgb.png", preview.astype(np.uint8))

    longitude, latitude = place.scene.location
    side = place.spec.first.width * 1.5
    half_lat = side / 2 / _METRES_PER_DEGREE
    half_lon = half_lat / np.cos(np.radians(latitude))
    bounds = [longitude - half_lon, latitude - half_lat, longitude + half_lon, latitude + half_lat]
    frames = sample.images["l2a"].values
    order = rng.permutation(len(frames))  # the numbering follows cloud and nearness in time, not the calendar
    year, spot_day = int(rng.integers(2018, 2021)), int(sample.images["ps"].dates[0])
    spot_date = files.day_text(year, spot_day, "%Y-%m-%d")
    revisits = []
    for n, frame in enumerate(order, start=1):
        day = int(sample.images["l2a"].dates[frame])
        values = frames[frame][:, : frames.shape[2] - n % 2]  # heights differ by a pixel within a place
        cloud = place.cloud["l2a"][frame]
        low = files.day_text(year, day, "%Y-%m-%d")
        share = round(min(100.0, 100 * float(cloud.mean(dtype=np.float64)) + float(rng.uniform(0, 8))), 2)
        folder, stem = output / "lr_dataset" / name / "L2A", f"{name}-{n}"
        transform = from_bounds(*bounds, values.shape[2], values.shape[1])
        files.write_tiff(folder / f"{stem}-L2A_data.tiff", values, crs="EPSG:4326", transform=transform)
        mask = (cloud[None, : values.shape[1]] > 0.4).astype(np.uint8)
        files.write_tiff(folder / f"{stem}-CLM.tiff", mask, crs="EPSG:4326", transform=transform)
        facts = {
            "cloud_cover": share,
            "target_date": spot_date,
            "delta": day - spot_day,
            "area": (side / 1e3) ** 2,
        }
        (folder / f"{stem}.metadata").write_text(json.dumps({**facts, "datetime": f"{low}T10:40:00Z"}))
        if l1c:
            seen_by = sensor("sentinel2_l1c")
            raw = place.scene.optical(seen_by, values.shape[1], values.shape[2], np.array([day]), toa=True)[0]
            path = output / "lr_dataset" / name / "L1C" / f"{stem}-L1C_data.tiff"
            files.write_tiff(path, raw.astype(np.float32), crs="EPSG:4326", transform=transform)
        revisits.append((low, spot_date, share, day - spot_day))
    return _Facts(
        sample.extra["worldcover"], [round(v, 6) for v in bounds], round((side / 1e3) ** 2, 3), revisits
    )
