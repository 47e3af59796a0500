"""MMEarth64 as it lies on disk: one HDF5 file with a dataset per modality, and three JSON side files."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ramen_jax.earth import places as earth
from ramen_jax.samples import Sample

MMEARTH_NAME = "data_1M_v001_64"
_S2_NAMES = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B8", "B9", "B10", "B11", "B12"]
_RADAR_NAMES = ["VV", "VH", "HH", "HV"]
_DYNAMIC_WORLD = {10: 2, 20: 6, 30: 3, 40: 5, 50: 7, 60: 8, 70: 9, 80: 1}  # WorldCover class -> stored class
_SCENE_CLASS = {10: 4, 20: 4, 30: 4, 40: 4, 50: 5, 60: 5, 70: 11, 80: 6}  # WorldCover class -> SCL


def write_mmearth(
    output: Path,
    places: int,
    seed: int = 0,
    *,
    compressed: bool = True,
    progress: Callable[[], None] = lambda: None,
) -> list[str]:
    """Writes MMEarth64: one HDF5 file and its three JSON side files. Returns the tile identifiers.

    Args:
      compressed: one gzip chunk per tile, as the published converter writes; False for the contiguous form of its
        merge mode.
    """
    spec = earth.corpus_spec("mmearth")
    # The official reader splits by biome, and needs at least ten tiles of each.
    biomes = max(1, min(14, places // 20))
    infos: dict[str, dict[str, Any]] = {}
    output.mkdir(parents=True, exist_ok=True)
    with h5py.File(output / f"{MMEARTH_NAME}.h5", "w") as file:
        for index in range(places):
            place = earth.Place(seed, index, spec)
            tile, info = _mmearth_tile(place, place.sample(), index, index % biomes)
            for key, value in tile.items():
                if index == 0:
                    chunks = (1, *value.shape) if compressed and value.shape else None
                    file.create_dataset(
                        key,
                        (places, *value.shape),
                        value.dtype,
                        chunks=chunks,
                        compression="gzip" if chunks else None,
                    )
                file[key][index] = value
            infos[str(index)] = info
            progress()
        stats = _mmearth_statistics(file, [info["S2_type"] for info in infos.values()])
    side = {
        "tile_info": infos,
        "band_stats": stats,
        "splits": {"train": list(range(places)), "val": [], "test": []},
    }
    for name, content in side.items():
        (output / f"{MMEARTH_NAME}_{name}.json").write_text(json.dumps(content, indent=4))
    return list(infos)


def _mmearth_tile(
    place: earth.Place, sample: Sample, index: int, biome: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays of one tile by HDF5 key, and its entry of the tile info."""
    rng = place.scene.generator("mmearth")
    is_l2a = place.level == "l2a"
    radar = sample.images["s1"].values[0].copy()
    radar[~sample.images["s1"].present] = -np.inf
    cover = place.scene.labels(64, 64, 10.0, "worldcover")
    forest = place.scene.labels(*place.scene.shape, place.scene.gsd, "worldcover") == 10
    tall = place.scene.area(np.where(forest, place.scene.height_hxw, 0), 64, 64, 10.0)
    longitude, latitude = place.scene.location
    day = place.day
    date = datetime.date(2017 + int(rng.integers(0, 4)), 1, 1) + datetime.timedelta(day - 1)
    warm = 288 - 0.35 * abs(latitude) + 10 * np.cos(2 * np.pi * (day - 200) / 365) * np.sign(latitude)
    weather = [
        warm - 2,
        warm - 9,
        warm + 8,
        0.06,
        warm,
        warm - 8,
        warm + 9,
        0.07,
        warm - 6,
        warm - 22,
        warm + 18,
        0.8,
    ]
    eco_region = int(rng.integers(0, 846))
    absent = np.full((1, 64, 64), 65535, np.uint16)
    tile = {
        "sentinel2": sample.images["s2"].values[0],
        "sentinel2_cloudmask": np.zeros((1, 64, 64), np.uint16),
        "sentinel2_cloudprod": rng.integers(0, 4, (1, 64, 64), np.uint16) if is_l2a else absent,
        "sentinel2_scl": (_recode(cover, _SCENE_CLASS) if is_l2a else np.full_like(cover, 255))[None],
        "sentinel1": radar.astype(np.float32),
        "aster": sample.images["dem"].values[0],
        "era5": np.array(weather, np.float32),
        "dynamic_world": _recode(cover, _DYNAMIC_WORLD)[None],
        "canopy_height_eth": np.stack([tall, 2 + 0.2 * tall]).astype(np.int8),
        "esa_worldcover": cover[None],
        "lat": _circle(np.radians(latitude)),
        "lon": _circle(np.radians(longitude)),
        "month": _circle(2 * np.pi * date.month / 12),
        "biome": _one_hot(biome, 14, np.uint8),
        "eco_region": _one_hot(eco_region, 846, np.uint16),
        "metadata": np.array((str(index), place.level), [("tile_id", "S100"), ("S2_type", "S10")]),
    }
    orbits = {
        orbit: [
            name
            for name, is_there in zip(_RADAR_NAMES, sample.images["s1"].present[first : first + 4])
            if is_there
        ]
        for orbit, first in (("asc", 0), ("desc", 4))
    }
    last, this = (date.replace(day=1) - datetime.timedelta(1)).strftime("%Y%m"), date.strftime("%Y%m")
    readings = ("temperature_2m", "temperature_2m_min", "temperature_2m_max", "total_precipitation_sum")
    of_year = (
        "temperature_2m_mean",
        "temperature_2m_min_min",
        "temperature_2m_max_max",
        "total_precipitation_sum_sum",
    )
    bands: dict[str, Any] = {
        "sentinel2": [name for name in _S2_NAMES if not (is_l2a and name == "B10")],
        "sentinel2_cloudmask": ["QA60"],
        "sentinel2_cloudprod": ["MSK_CLDPRB"] if is_l2a else None,
        "sentinel2_scl": ["SCL"] if is_l2a else None,
        "sentinel1_asc": orbits["asc"] or None,
        "sentinel1_desc": orbits["desc"] or None,
        "aster": ["b1", "slope"],
        "era5": [f"{month}_{name}" for month in (last, this) for name in readings]
        + [f"{number}_{name}" for number, name in enumerate(of_year)],
        "dynamic_world": ["label"],
        "canopy_height_eth": ["height", "std"],
        "lat": ["sin", "cos"],
        "lon": ["sin", "cos"],
        "biome": ["biome"],
        "eco_region": ["eco_region"],
        "month": ["sin_month", "cos_month"],
        "esa_worldcover": ["Map"],
    }
    info = {
        "S2_DATE": date.isoformat(),
        "S2_type": place.level,
        "CRS": f"EPSG:{(32600 if latitude >= 0 else 32700) + int((longitude + 180) // 6) + 1}",
        "lat": latitude,
        "lon": longitude,
        "biome": biome,
        "eco_region": eco_region,
        "NO_DATA": {},
        "BANDS": bands,
        "era5": {"month1": weather[:4], "month2": weather[4:8], "year": weather[8:]},
    }
    return tile, info


def _mmearth_statistics(file: h5py.File, levels: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Mean, std, min and max per band without no-data; Sentinel-2 by processing level, as the original has it."""
    is_l2a = np.array([level == "l2a" for level in levels])
    groups: dict[str, tuple[str, np.ndarray, float]] = {
        "sentinel2_l1c": ("sentinel2", ~is_l2a, 0),
        "sentinel2_l2a": ("sentinel2", is_l2a, 0),
        "sentinel1": ("sentinel1", is_l2a | True, -np.inf),
        "aster": ("aster", is_l2a | True, -np.inf),
        "era5": ("era5", is_l2a | True, np.inf),
        "canopy_height_eth": ("canopy_height_eth", is_l2a | True, -1),
        "lat": ("lat", is_l2a | True, np.inf),
        "lon": ("lon", is_l2a | True, np.inf),
        "month": ("month", is_l2a | True, np.inf),
    }
    result: dict[str, dict[str, list[float]]] = {}
    for name, (key, chosen, nodata) in groups.items():
        numbers: dict[str, list[float]] = {"mean": [], "std": [], "min": [], "max": []}
        for band in range(file[key].shape[1]):
            values = file[key][:, band][chosen].astype(np.float64)
            values = values[values != nodata]
            # A band without a single value is NaN in the original too (0 / 0); Python writes it as a bare NaN.
            for statistic, found in numbers.items():
                found.append(float(getattr(np, statistic)(values)) if values.size else float("nan"))
        result[name] = numbers
    return result


def _recode(classes: np.ndarray, codes: Mapping[int, int]) -> np.ndarray:
    table = np.zeros(256, np.uint8)
    table[list(codes)] = list(codes.values())
    return table[classes]


def _circle(angle: float) -> np.ndarray:
    return np.array([np.sin(angle), np.cos(angle)], np.float32)


def _one_hot(index: int, size: int, dtype: type[np.unsignedinteger[Any]]) -> np.ndarray:
    result = np.zeros(size, dtype)
    result[index] = 1
    return result
