"""TreeSatAI-TS (Astruc et al. 2024): aerial images of 0.2 m with year-long Sentinel-2 and Sentinel-1 series in HDF5.

    aerial/{place}.tif                  304 x 304 pixels, bands infrared, green, blue, red
    sentinel-ts/{place}_{year}.h5       sen-2-data [T, 10, 6, 6], sen-2-masks (snow, cloud, 0..100), sen-1-asc-data,
                                        sen-1-des-data [T, 2, 6, 6], and *-products, whose names hold the dates
    *.csv                               optional, columns aerial_name and aerial_date (YYYYMMDD)

A model for readers of your own series in HDF5: list the places in `items`, return their images in `read`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.corpora import BadItem, Corpus, clear_dates, day_of_year, make_image, read_table, split_by_id
from ramen_jax.corpora.hdf import Hdf, open_hdf
from ramen_jax.corpora.raster import read_raster
from ramen_jax.samples import Image, ModalitySpec, Sample
from ramen_jax.sensors import sensor

AERIAL_PIXELS = 304
SENTINEL_PIXELS = 6
# modality of a series: (prefix of its keys, sensor)
SERIES = {
    "s2": ("sen-2", "treesatai_s2"),
    "s1_asc": ("sen-1-asc", "treesatai_s1_asc"),
    "s1_des": ("sen-1-des", "treesatai_s1_des"),
}


class TreeSatAI(Corpus):
    """See the module's docstring.

    Options:
      modalities: aerial and names from SERIES, the first one defines extent and grid.
      split: {val: share of the places, seed}.
      max_covered: largest share of a Sentinel-2 date's pixels that may be snow or cloud.
      max_snow, max_cloud: largest mask value (percent) of a pixel that counts as free.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "modalities": ["aerial", "s2", "s1_asc", "s1_des"],
        "split": None,
        "max_covered": 0.05,
        "max_snow": 10,
        "max_cloud": 10,
    }

    def __init__(self, source: Path, options: Mapping[str, Any]) -> None:
        super().__init__(source, options)
        self.modalities = tuple(_modality(name) for name in self.options["modalities"])
        self.aerial = {path.stem: path for path in sorted((source / "aerial").glob("*.tif"))}
        self.series = {
            re.sub(r"_\d{4}$", "", path.stem): path for path in sorted((source / "sentinel-ts").glob("*.h5"))
        }
        self.aerial_dates = _aerial_dates(source)

    def items(self) -> tuple[dict[str, list[str]], list[BadItem]]:
        both = sorted(self.aerial.keys() & self.series.keys())
        rejected = [
            BadItem(path, f"place {place} has no {missing}")
            for paths, missing in ((self.aerial, "sentinel-ts/*.h5"), (self.series, "aerial/*.tif"))
            for place, path in paths.items()
            if place not in both
        ]
        return split_by_id(both, self.options["split"], self.name), rejected

    def read(self, item: str, split: str) -> list[Sample]:
        raster = read_raster(self.aerial[item])
        images = {}
        with open_hdf(self.series[item]) as file:
            for spec in self.modalities:
                if spec.name == "aerial":
                    day = self.aerial_dates.get(self.aerial[item].name, 0)
                    images["aerial"] = make_image(raster.values[None], [day], None, self.aerial[item])
                else:
                    images[spec.name] = self._series(file, spec)
        return [Sample(item, images, raster.location(AERIAL_PIXELS / 2, AERIAL_PIXELS / 2))]

    def _series(self, file: Hdf, spec: ModalitySpec) -> Image:
        prefix = SERIES[spec.name][0]
        shape = (None, len(spec.sensor.bands), SENTINEL_PIXELS, SENTINEL_PIXELS)
        values_TxCxHxW = file.read(f"{prefix}-data", shape)
        dates = [_product_day(name, file.path) for name in file.read(f"{prefix}-products", (None,))]
        where = f"{file.path} ({spec.name})"
        if len(dates) != len(values_TxCxHxW):
            raise BadItem(where, f"{len(values_TxCxHxW)} frames but {len(dates)} products")
        if spec.name != "s2":
            # Linear power of exactly 0 is outside the swath; some files hold NaN there.
            values = np.where(values_TxCxHxW == 0, values_TxCxHxW.dtype.type(np.nan), values_TxCxHxW)
            return make_image(values, dates, np.nan, where)
        # Some files hold ten mask channels, of which the first two are snow and cloud.
        masks = file.read("sen-2-masks", (len(dates), None, SENTINEL_PIXELS, SENTINEL_PIXELS))
        kept = clear_dates(
            snow_TxHxW=masks[:, 0] > self.options["max_snow"],
            cloud_TxHxW=masks[:, 1] > self.options["max_cloud"],
            max_covered=self.options["max_covered"],
        )
        if not kept.any():
            raise BadItem(where, f"none of its {len(dates)} dates is left after the snow and cloud filter")
        return make_image(values_TxCxHxW[kept], [day for day, keep in zip(dates, kept) if keep], None, where)


def _modality(name: str) -> ModalitySpec:
    if name == "aerial":
        return ModalitySpec(name, sensor("treesatai_aerial"), AERIAL_PIXELS, AERIAL_PIXELS, False, 1, "uint8")
    if name not in SERIES:
        raise UserError(
            f"TreeSatAI has no modality {name!r}; {close_names(name, ['aerial', *SERIES])}", USAGE
        )
    return ModalitySpec(name, sensor(SERIES[name][1]), SENTINEL_PIXELS, SENTINEL_PIXELS, True, 1, "float32")


def _product_day(name: bytes, path: Path) -> int:
    """The day of a product such as S2A_MSIL2A_20190103T104431_N0211_... : the first time in its name."""
    match = re.search(rb"_(\d{8})T\d{6}_", name)
    if match is None:
        raise BadItem(path, f"product {name!r} holds no date")
    return day_of_year(match[1].decode(), path)


def _aerial_dates(source: Path) -> dict[str, int]:
    """{file name: day of year} from whatever label tables lie in the source folder."""
    dates = {}
    for path in sorted(source.glob("*.csv")):
        for row in read_table(path):
            if row.get("aerial_name") and row.get("aerial_date"):
                dates[row["aerial_name"]] = day_of_year(row["aerial_date"], path)
    return dates
