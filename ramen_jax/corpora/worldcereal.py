"""WorldCereal reference patches: two Sentinel-2 grids (10 and 20 m) and Sentinel-1 in NetCDF4, one folder per place.

    {place}/S2_L2A_10m_{place}_*.nc             B02, B03, B04, B08 [T, 64, 64]
    {place}/S2_L2A_20m_{place}_*.nc             B05, B06, B07, B8A, B11, B12 and the scene classes SCL [T, 32, 32]
    {place}/S1_GRD-ASCENDING_20m_{place}_*.nc   VV, VH [T, 32, 32], int32, dB = stored * 1e-4

Both Sentinel-2 grids hold the same dates; cloudy ones are dropped from both by the scene classes.
A model for readers of your own NetCDF series: h5py reads them, `Hdf.days` reads their time axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.corpora import BadItem, Corpus, clear_dates, make_image, split_by_id
from ramen_jax.corpora.hdf import Hdf, open_hdf
from ramen_jax.samples import Image, ModalitySpec, Sample
from ramen_jax.sensors import sensor

# modality: (start of the file name, sensor, pixels per side, dtype)
MODALITIES = {
    "s2_10m": ("S2_L2A_10m", "worldcereal_s2_10m", 64, "uint16"),
    "s2_20m": ("S2_L2A_20m", "worldcereal_s2_20m", 32, "uint16"),
    "s1": ("S1_GRD-ASCENDING_20m", "worldcereal_s1", 32, "int32"),
}
FILL = 0  # the files' _FillValue, of every band
SNOW = (11,)
CLOUD = (0, 1, 3, 8, 9, 10)  # no data, saturated, shadow, cloud (medium, high), cirrus


class WorldCereal(Corpus):
    """See the module's docstring.

    Options:
      modalities: names from MODALITIES, the first one defines extent and grid.
      split: {val: share of the places, seed}.
      max_covered: largest share of a Sentinel-2 date's pixels that may be snow, cloud, shadow or no data.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "modalities": ["s2_10m", "s2_20m", "s1"],
        "split": None,
        "max_covered": 0.05,
    }

    def __init__(self, source: Path, options: Mapping[str, Any]) -> None:
        super().__init__(source, options)
        for name in self.options["modalities"]:
            if name not in MODALITIES:
                raise UserError(
                    f"WorldCereal has no modality {name!r}; {close_names(name, MODALITIES)}", USAGE
                )
        self.modalities = tuple(_modality(name) for name in self.options["modalities"])

    def items(self) -> tuple[dict[str, list[str]], list[BadItem]]:
        places, rejected = [], []
        for folder in sorted(path for path in self.source.iterdir() if path.is_dir()):
            absent = [name for name in self.options["modalities"] if len(self._files(folder.name, name)) != 1]
            if absent:
                patterns = ", ".join(f"{MODALITIES[name][0]}_*.nc" for name in absent)
                rejected.append(BadItem(folder, f"expected exactly one file {patterns}"))
            else:
                places.append(folder.name)
        return split_by_id(places, self.options["split"], self.name), rejected

    def _files(self, place: str, modality: str) -> list[Path]:
        return sorted((self.source / place).glob(f"{MODALITIES[modality][0]}_*.nc"))

    def read(self, item: str, split: str) -> list[Sample]:
        days, kept = self._clear(item)
        images = {}
        location = None
        for spec in self.modalities:
            with open_hdf(self._files(item, spec.name)[0]) as file:
                location = location or _location(file)
                images[spec.name] = self._image(file, spec, days, kept)
        return [Sample(item, images, location)]

    def _image(self, file: Hdf, spec: ModalitySpec, days: list[int], kept: np.ndarray) -> Image:
        dates = file.days("timestamp")
        shape = (len(dates), spec.height, spec.width)
        names = [band.name for band in spec.sensor.bands]
        values_TxCxHxW = np.stack([file.read(name, shape) for name in names], axis=1)
        if spec.name != "s1":
            if dates != days:
                raise BadItem(
                    file.path, f"its {len(dates)} dates differ from the {len(days)} of the scene classes"
                )
            values_TxCxHxW = values_TxCxHxW[kept]
            dates = [day for day, keep in zip(dates, kept) if keep]
        return make_image(values_TxCxHxW, dates, FILL, file.path)

    def _clear(self, place: str) -> tuple[list[int], np.ndarray]:
        """Days of the Sentinel-2 series, and which of its dates the scene classes keep."""
        if all(spec.name == "s1" for spec in self.modalities):
            return [], np.zeros(0, bool)
        paths = self._files(place, "s2_20m")
        if not paths:
            raise BadItem(self.source / place, "no S2_L2A_20m file, which holds the scene classes")
        with open_hdf(paths[0]) as file:
            days = file.days("timestamp")
            classes_TxHxW = file.read("SCL", (len(days), None, None))
        kept = clear_dates(
            np.isin(classes_TxHxW, SNOW), np.isin(classes_TxHxW, CLOUD), self.options["max_covered"]
        )
        if not kept.any():
            raise BadItem(paths[0], f"none of its {len(days)} dates is left after the snow and cloud filter")
        return days, kept


def _modality(name: str) -> ModalitySpec:
    _, sensor_name, pixels, dtype = MODALITIES[name]
    return ModalitySpec(name, sensor(sensor_name), pixels, pixels, True, 1, dtype)


def _location(file: Hdf) -> tuple[float, float] | None:
    """(longitude, latitude) of the patch centre, from its projected `centroid`."""
    if "centroid" not in file.file.attrs or "epsg" not in file.file.attrs:
        return None
    import rasterio.warp

    x, y = file.file.attrs["centroid"]
    longitudes, latitudes = rasterio.warp.transform(f"EPSG:{file.file.attrs['epsg']}", "EPSG:4326", [x], [y])
    return round(longitudes[0], 6), round(latitudes[0], 6)
