"""Files of features, written strip by strip: GeoTIFF, and Zarr for those who read features chunk by chunk.

Both are written under a temporary name and renamed when complete. Beside the unfinished file lies a note of the rows
that are done, from where an interrupted run goes on. A failed write leaves neither.
"""

from __future__ import annotations

import json
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from ramen_jax.console import DATA, USAGE, UserError
from ramen_jax.embedding.rasters import Place
from ramen_jax.own_files import SOFTWARE, only_holds, refuse_foreign

BLOCK = 16  # rows of a block: the fewest a GeoTIFF allows, so that a finished row of tiles ends on blocks
BLOCK_COLUMNS = 256
WRITTEN_BY = f"{SOFTWARE} features"
ZARR_MEMBERS = (".zgroup", ".zattrs", ".zmetadata", "features", "x", "y", "band", "spatial_ref")


class Output(ABC):
    """A file of features of a place, [band, row, column] float32, NaN where there are none.

    Attributes:
        start: the row to go on at; 0 for a new file.
    """

    def __init__(
        self, path: Path, place: Place, bands: Sequence[str], identity: str, overwrite: bool
    ) -> None:
        """`identity` tells what the features follow from: an unfinished file of another one is begun anew.

        Raises:
            UserError: something lies at the path that is no older output, or one that was not to be replaced.
        """
        self.path, self.place, self.bands, self.identity = path, place, list(bands), identity
        self.partial = path.with_name(f".{path.name}.partial")
        self.note = path.with_name(f".{path.name}.progress")
        refuse_foreign(path, overwrite, self.is_ours, "features that embed wrote")
        self.start = self._done() if self.partial.exists() else 0
        if not self.start:
            self._guard(self._begin)

    def write(self, start: int, features_DxHxW: np.ndarray) -> None:
        """Writes whole rows of the grid, and notes that they are done."""

        def write() -> None:
            self._write(start, features_DxHxW)
            rows = start + features_DxHxW.shape[1]
            self.note.write_text(json.dumps({"identity": self.identity, "rows": rows}))

        self._guard(write)

    def finish(self) -> None:
        """Gives the complete file its name."""
        self.note.unlink(missing_ok=True)
        if self.path.is_dir() or self.partial.is_dir():
            remove(self.path)
        self.partial.replace(self.path)

    @staticmethod
    @abstractmethod
    def is_ours(path: Path) -> bool:
        """Whether a file or folder is an output of this kind, with nothing else in it."""

    @abstractmethod
    def _create(self) -> None:
        """Writes `partial` with everything but the features."""

    @abstractmethod
    def _write(self, start: int, features_DxHxW: np.ndarray) -> None: ...

    def _begin(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        remove(self.partial)
        self._create()

    def _done(self) -> int:
        try:
            noted = json.loads(self.note.read_text())
        except (OSError, ValueError):
            return 0
        return int(noted["rows"]) if noted["identity"] == self.identity else 0

    def _guard(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, rasterio.errors.RasterioError) as error:
            remove(self.partial)
            remove(self.note)
            told = str(error)
            if isinstance(error, rasterio.errors.RasterioError):
                # It says "see previous exception"; that one knows what happened, but not why.
                told = f"{error.__cause__ or error} (is the disk full?)"
            raise UserError(
                f"cannot write {self.path}: {told}; the unfinished file was removed", DATA
            ) from error


class GeoTiff(Output):
    """One GeoTIFF with a described band per feature."""

    def _create(self) -> None:
        place = self.place
        profile = {
            "driver": "GTiff",
            "dtype": "float32",
            "count": len(self.bands),
            "height": place.rows,
            "width": place.columns,
            "crs": place.crs,
            "transform": place.transform,
            "nodata": float("nan"),
            "interleave": "band",
            "compress": "deflate",
            "predictor": 3,
            "zlevel": 1,
            "BIGTIFF": "IF_SAFER",
        }
        if min(place.rows, place.columns) >= BLOCK:
            across = min(BLOCK_COLUMNS, place.columns // BLOCK * BLOCK)
            profile |= {"tiled": True, "blockysize": BLOCK, "blockxsize": across}
        with rasterio.open(self.partial, "w", **profile) as target:
            target.descriptions = self.bands
            target.update_tags(TIFFTAG_SOFTWARE=WRITTEN_BY)

    @staticmethod
    def is_ours(path: Path) -> bool:
        return said_writer(path, "TIFFTAG_SOFTWARE") == WRITTEN_BY

    def _write(self, start: int, features_DxHxW: np.ndarray) -> None:
        height, width = features_DxHxW.shape[1:]
        with rasterio.open(self.partial, "r+") as target:
            target.write(features_DxHxW, window=Window(0, start, width, height))


class ZarrStore(Output):
    """A Zarr group as xarray, rioxarray and GDAL read it: `features` [band, y, x], its coordinates, `spatial_ref`.

    Format 2, which all of them read (GDAL 3.10 does not read what zarr-python writes as format 3). Coordinates are cell
    centres; the coordinate system is told twice, as CF grid mapping and as GDAL's `_CRS`.
    """

    def _create(self) -> None:
        import zarr

        place, wkt = self.place, self.place.crs.to_wkt()
        group = zarr.create_group(self.partial, zarr_format=2, attributes={"written_by": WRITTEN_BY})
        chunks = (
            len(self.bands) // len(place.layers),
            min(BLOCK, place.rows),
            min(BLOCK_COLUMNS, place.columns),
        )
        group.create_array(
            "features",
            shape=(len(self.bands), place.rows, place.columns),
            chunks=chunks,
            dtype="float32",
            fill_value=float("nan"),
            attributes={
                "_ARRAY_DIMENSIONS": ["band", "y", "x"],
                "grid_mapping": "spatial_ref",
                "_CRS": {"wkt": wkt},
            },
        )
        cell = place.transform
        coordinates = {
            "x": cell.c + cell.a * (np.arange(place.columns) + 0.5),
            "y": cell.f + cell.e * (np.arange(place.rows) + 0.5),
            "band": np.array(self.bands),
        }
        for name, values in coordinates.items():
            self._array(group, name, values, [name], _axis(name, place.crs))
        geotransform = " ".join(repr(float(value)) for value in place.transform.to_gdal())
        mapping = {"crs_wkt": wkt, "spatial_ref": wkt, "GeoTransform": geotransform}
        self._array(group, "spatial_ref", np.array(0, np.int32), [], mapping)
        zarr.consolidate_metadata(group.store)

    @staticmethod
    def is_ours(path: Path) -> bool:
        try:
            attributes = json.loads((path / ".zattrs").read_text())
        except (OSError, ValueError):
            return False
        return (
            isinstance(attributes, dict)
            and attributes.get("written_by") == WRITTEN_BY
            and only_holds(path, ZARR_MEMBERS)
        )

    @staticmethod
    def _array(
        group: Any, name: str, values: np.ndarray, dimensions: list[str], attributes: dict[str, Any]
    ) -> None:
        told = {"_ARRAY_DIMENSIONS": dimensions, **attributes}
        # Without a fill value: a reader would take a coordinate that equals it, x = 0, for a missing one.
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=values.shape or "auto",
            fill_value=None,
            attributes=told,
        )
        array[...] = values

    def _write(self, start: int, features_DxHxW: np.ndarray) -> None:
        import zarr

        features = zarr.open_array(self.partial / "features", mode="r+", zarr_format=2)
        features[:, start : start + features_DxHxW.shape[1]] = features_DxHxW


FORMATS: dict[str, type[Output]] = {".tif": GeoTiff, ".tiff": GeoTiff, ".zarr": ZarrStore}


def output_format(path: Path) -> type[Output]:
    """What a name's ending asks for. UserError for another ending."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--output {path}: expected a name that ends in {', '.join(FORMATS)}", USAGE)
    return FORMATS[path.suffix.lower()]


def said_writer(path: Path, tag: str) -> str:
    """Who wrote a raster, as a tag of it says; "" where it says nothing or is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        try:
            with rasterio.open(path) as file:
                return str(file.tags().get(tag, ""))
        except (rasterio.errors.RasterioError, OSError):
            return ""


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.unlink()


def _axis(name: str, crs: Any) -> dict[str, Any]:
    """CF attributes of a coordinate."""
    if name == "band":
        return {}
    if crs.is_geographic:
        told = {"x": ("longitude", "degrees_east"), "y": ("latitude", "degrees_north")}[name]
    else:
        told = (f"projection_{name}_coordinate", crs.linear_units)
    return {"axis": name.upper(), "standard_name": told[0], "units": told[1]}
