"""HLS Burn Scars, MADOS, PASTIS-R, Sen1Floods11 and CropTypeMapping as they lie on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rasterio.transform import from_origin

from ramen_jax.earth.layouts import files
from ramen_jax.earth.layouts.pangaea.site import CROPS, WATER, Site
from ramen_jax.sensors import sensor

# Wavelengths in the file names of the two Sentinel-2 satellites, B1 to B12 without B9 and B10, and metres per pixel.
_MADOS_NM = {
    "A": (442, 492, 559, 665, 704, 739, 780, 833, 864, 1610, 2186),
    "B": (442, 492, 560, 665, 704, 740, 783, 833, 865, 1614, 2202),
}
_MADOS_METRES = (60, 10, 10, 10, 20, 20, 20, 10, 20, 20, 20)
_PASTIS_CLASSES: dict[int, tuple[str, ...]] = {
    1: ("grass", "lawn"),
    2: ("wheat",),
    3: ("maize",),
    4: ("barley",),
    5: ("rapeseed",),
    7: ("sunflower",),
    8: ("vineyard",),
    19: ("gravel", "asphalt"),
}
_FLOODS = (("Spain", "DESCENDING"), ("India", "DESCENDING"), ("Ghana", "ASCENDING"), ("Mekong", "ASCENDING"))
_UTM = "EPSG:32631"


def write_hlsburnscars(output: Path, places: int = 8, seed: int = 0, *, pixels: int = 512) -> None:
    """Training and validation scenes; what burnt is dark in the near and bright in the short-wave infrared."""
    seen_by = sensor("pangaea_hlsburnscars")
    for index, split in enumerate(files.split_of(places)):
        site = Site(seed, index, pixels, 30.0, ("forest", "farmland", "bocage"))
        folder = output / ("validation" if split == "test" else "training")
        day = int(site.rng.integers(150, 280))
        stem = f"subsetted_512x512_HLS.S30.T{10 + index % 9}S{'DEFGH'[index % 5]}H.2020{day:03d}.v1.4"
        image = site.optical(seen_by, [day], "float32")[0]
        burnt = site.blob()
        image[:, burnt] *= np.array([1.0, 0.8, 0.8, 0.35, 0.9, 1.5], np.float32)[:, None]
        mask = burnt.astype(np.int16)
        mask[: pixels // 16] = -1
        image[:, -1] = 9999  # the rim of a scene
        where = from_origin(500_000, 4_000_000 - 16_000 * index, 30, 30)
        files.write_tiff(folder / f"{stem}_merged.tif", image, crs=_UTM, transform=where)
        files.write_tiff(folder / f"{stem}.mask.tif", mask[None], crs=_UTM, transform=where)


def write_mados(output: Path, places: int = 8, seed: int = 0, *, pixels: int = 240) -> None:
    """Crops of scenes, a band per file; the 15 classes stand for groups of surfaces, one pixel in ten is labelled."""
    seen_by = sensor("pangaea_mados")
    splits: dict[str, list[str]] = {split: [] for split in files.SPLITS}
    for index, split in enumerate(files.split_of(places)):
        scene, crop = f"Scene_{index // 2}", index % 2 + 1
        splits[split].append(f"{scene}_{crop}")
        site = Site(seed, index, pixels, 10.0)
        image = site.optical(seen_by, [180], "float32")[0]
        image[0, :6, :6] = np.nan
        for band, nm, metres in zip(image, _MADOS_NM["AB"[index % 2]], _MADOS_METRES, strict=True):
            coarse = band[:: metres // 10, :: metres // 10]
            path = output / scene / str(metres) / f"{scene}_L2R_rhorc_{nm}_{crop}.tif"
            files.write_tiff(path, coarse[None], crs=_UTM, transform=from_origin(0, 0, metres, metres))
        labelled = site.rng.random((pixels, pixels)) < 0.1
        label = np.where(labelled, site.numbered(15) + 1, 0).astype(np.uint8)
        path = output / scene / "10" / f"{scene}_L2R_cl_{crop}.tif"
        files.write_tiff(path, label[None], crs=_UTM, transform=from_origin(0, 0, 10, 10))
    (output / "splits").mkdir(parents=True, exist_ok=True)
    for split, crops in splits.items():
        (output / "splits" / f"{split}_X.txt").write_text("\n".join(crops) + "\n")


def write_pastis(output: Path, places: int = 8, seed: int = 0, *, pixels: int = 128, dates: int = 60) -> None:
    """Patches with series from September 2018 on; `dates` of Sentinel-1, about two thirds as many of Sentinel-2."""
    optical, radar = sensor("pangaea_pastis_s2"), sensor("pangaea_pastis_s1")
    folds = {"train": (1, 2, 3), "val": (4,), "test": (5,)}
    features = []
    for index, split in enumerate(files.split_of(places)):
        patch = 10_000 + index
        site = Site(seed, index, pixels, 10.0, ("farmland", "vineyard", "bocage"))
        properties = {"ID_PATCH": patch, "Fold": folds[split][index % len(folds[split])], "TILE": "t30uxv"}
        for folder, name, count in (("S2", "dates-S2", max(6, dates * 2 // 3)), ("S1A", "dates-S1A", dates)):
            # The series starts in September: the days of the later year come last.
            days = sorted(site.days(count), key=lambda day: (day - 244) % 365)
            texts = [files.day_text(2018 if day >= 244 else 2019, day, "%Y%m%d") for day in days]
            properties[name] = {str(n): int(text) for n, text in enumerate(texts)}
            if folder == "S2":
                values = site.optical(optical, days, "int16")
            else:
                pair = site.radar(radar, days)
                values = np.concatenate([pair, pair[:, :1] - pair[:, 1:]], axis=1).astype(np.float32)
            _save(output / f"DATA_{folder}" / f"{folder}_{patch}.npy", values)
        label = site.classes(_PASTIS_CLASSES, other=0).astype(np.uint8)
        parcels = site.scene.labels(pixels, pixels, 10.0, "cosia")
        _save(output / "ANNOTATIONS" / f"TARGET_{patch}.npy", np.stack([label, parcels, parcels]))
        features.append({"type": "Feature", "properties": properties, "geometry": None})
    content = {"type": "FeatureCollection", "name": "metadata", "features": features}
    (output / "metadata.geojson").write_text(json.dumps(content))


def write_sen1floods11(output: Path, places: int = 8, seed: int = 0, *, pixels: int = 512) -> None:
    """Chips with water, a strip without label and, in the radar image, a strip without measurement (NaN)."""
    optical, radar = sensor("pangaea_sen1floods11_s2"), sensor("pangaea_sen1floods11_s1")
    root = output / "v1.1" / "data" / "flood_events" / "HandLabeled"
    rows: dict[str, list[str]] = {split: [] for split in files.SPLITS}
    for index, split in enumerate(files.split_of(places)):
        event, orbit = _FLOODS[index % len(_FLOODS)]
        chip = f"{event}_{100_000 + index}"
        site = Site(seed, index, pixels, 10.0, ("lake",))
        label = site.classes({1: WATER}, other=0).astype(np.int16)
        label[:, : max(1, pixels // 32)] = -1
        seen = radar if orbit == "ASCENDING" else radar.from_dict(_descending(radar.to_dict()))
        backscatter = site.radar(seen, [230])[0]
        backscatter[..., -max(1, pixels // 32) :] = np.nan
        where = from_origin(2.0 + 0.1 * index, 40.0, 1e-4, 1e-4)
        for folder, values in (
            ("S2Hand", site.optical(optical, [230], "int16")[0]),
            ("S1Hand", backscatter),
            ("LabelHand", label[None]),
        ):
            files.write_tiff(root / folder / f"{chip}_{folder}.tif", values, crs="EPSG:4326", transform=where)
        rows[split].append(f"{chip}_S1Hand.tif,{chip}_LabelHand.tif")
    lists = output / "v1.1" / "splits" / "flood_handlabeled"
    lists.mkdir(parents=True, exist_ok=True)
    for split, word in (("train", "train"), ("val", "valid"), ("test", "test")):
        (lists / f"flood_{word}_data.csv").write_text("\n".join(rows[split]) + "\n")
    events = [
        {
            "location": "Cambodia" if event == "Mekong" else event,
            "orbit": orbit,
            "s1_date": "2018/08/18",
            "s2_date": "2018/08/19",
        }
        for event, orbit in _FLOODS
    ]
    features = [{"type": "Feature", "properties": event, "geometry": None} for event in events]
    content = {"type": "FeatureCollection", "name": "Sen1Floods11_Metadata", "features": features}
    (output / "v1.1" / "Sen1Floods11_Metadata.geojson").write_text(json.dumps(content))


def _descending(entry: dict[str, object]) -> dict[str, object]:
    return {**entry, "bands": {"VV": "des_vv", "VH": "des_vh"}}


def write_croptypemapping(output: Path, places: int = 8, seed: int = 0, *, pixels: int = 64) -> None:
    """Series of different lengths, of which the first place's is shorter than six dates; labels 1..4 and others."""
    optical, radar = sensor("pangaea_croptypemapping_s2"), sensor("pangaea_croptypemapping_s1")
    root = output / "southsudan"
    partitions = {"train": 0, "val": 1, "test": 2}
    rows = []
    for index, split in enumerate(files.split_of(places)):
        name = f"southsudan_{index:06d}"
        site = Site(seed, index, pixels, 10.0, ("farmland",))
        rows.append([index, partitions[split]])
        series = {}
        for key, count in (("s1", 9), ("s2", 4 if index == 0 else 8 + index % 3)):
            days = site.days(count)
            path = root / key / f"{key}_{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"dates": [files.day_text(2017, day, "%Y-%m-%d") for day in days]}))
            if key == "s1":
                pair = site.radar(radar, days)
                values = np.concatenate([pair, pair[:, 1:] / pair[:, :1]], axis=1)
            else:
                values = site.optical(optical, days, "float32")
            series[key] = np.moveaxis(values, 0, -1)
        path = root / "npy" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, s1=series["s1"], s2=series["s2"])
        crops = {number + 1: (crop,) for number, crop in enumerate(CROPS[:5])}
        truth = root / "truth" / f"{name}.npz"
        truth.parent.mkdir(parents=True, exist_ok=True)
        np.savez(truth, truth=site.classes(crops, other=0).astype(np.int64))
    files.write_csv(root / "list_eval_partition.csv", ("id", "partition"), rows)


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)
