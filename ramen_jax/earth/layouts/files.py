"""Writers of the file formats that the layouts share: GeoTIFF, GeoPackage, CSV."""

from __future__ import annotations

import csv
import datetime
import sqlite3
import struct
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from ramen_jax.samples import ModalitySpec
from ramen_jax.sensors import sensor

SPLITS = ("train", "val", "test")


def modality(
    name: str, sensor_name: str, pixels: int, dtype: str, series: bool, max_dates: int
) -> ModalitySpec:
    """A square modality with a sensor of the registry."""
    return ModalitySpec(name, sensor(sensor_name), pixels, pixels, series, max_dates if series else 1, dtype)


def split_of(places: int) -> list[str]:
    """A split per place: one in eight (at least one of three places) each for val and test, the rest train."""
    share = max(1, places // 8) if places >= 3 else 0
    return ["train"] * (places - 2 * share) + ["val"] * share + ["test"] * share


def day_text(year: int, day: int, form: str) -> str:
    """A day of the year (1..366) as a date."""
    return (datetime.date(year, 1, 1) + datetime.timedelta(int(day) - 1)).strftime(form)


def write_tiff(
    path: Path, values: np.ndarray, *, crs: str, transform: Any = None, compress: str | None = "lzw"
) -> None:
    """Writes [bands, rows, columns] as a GeoTIFF; without a transform it stays an ungeoreferenced image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, rows, columns = values.shape
    profile = {
        "driver": "GTiff",
        "count": bands,
        "height": rows,
        "width": columns,
        "dtype": values.dtype.name,
    }
    if transform is not None:
        profile["transform"] = transform
    if compress:
        profile["compress"] = compress
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", crs=crs, **profile) as file:
            file.write(values)


def write_png(path: Path, values: np.ndarray) -> None:
    """Writes [1 or 3, rows, columns] uint8 as a PNG, grey or red, green, blue."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        profile = {
            "driver": "PNG",
            "count": len(values),
            "height": values.shape[1],
            "width": values.shape[2],
            "dtype": "uint8",
        }
        with rasterio.open(path, "w", **profile) as file:
            file.write(values)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], separator: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


_LAMBERT_93 = (
    'PROJCS["RGF93 / Lambert-93",GEOGCS["RGF93",DATUM["Reseau_Geodesique_Francais_1993",'
    'SPHEROID["GRS 1980",6378137,298.257222101]],PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],'
    'PROJECTION["Lambert_Conformal_Conic_2SP"],PARAMETER["latitude_of_origin",46.5],PARAMETER["central_meridian",3],'
    'PARAMETER["standard_parallel_1",49],PARAMETER["standard_parallel_2",44],PARAMETER["false_easting",700000],'
    'PARAMETER["false_northing",6600000],UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH],'
    'AUTHORITY["EPSG","2154"]]'
)
_WGS_84 = (
    'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],PRIMEM["Greenwich",0],'
    'UNIT["degree",0.0174532925199433],AUTHORITY["EPSG","4326"]]'
)
# The tables a GeoPackage must have (OGC 12-128r18, clauses 1.1.2, 1.1.3 and 2.1.5).
_GEOPACKAGE_TABLES = """
CREATE TABLE gpkg_spatial_ref_sys (
  srs_name TEXT NOT NULL, srs_id INTEGER PRIMARY KEY, organization TEXT NOT NULL,
  organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, description TEXT);
CREATE TABLE gpkg_contents (
  table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE, description TEXT DEFAULT '',
  last_change DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')),
  min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE,
  srs_id INTEGER REFERENCES gpkg_spatial_ref_sys(srs_id));
CREATE TABLE gpkg_geometry_columns (
  table_name TEXT NOT NULL UNIQUE REFERENCES gpkg_contents(table_name), column_name TEXT NOT NULL,
  geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL REFERENCES gpkg_spatial_ref_sys(srs_id),
  z TINYINT NOT NULL, m TINYINT NOT NULL, PRIMARY KEY (table_name, column_name));
"""


def write_geopackage(
    path: Path, rows: Sequence[Mapping[str, str]], boxes: Sequence[tuple[float, float, float, float]]
) -> None:
    """Writes text fields and one box (west, south, east, north; EPSG:2154) per row as a GeoPackage of one layer.

    The layer has the name of the file. A GeoPackage is an SQLite database, so nothing but the standard library is
    needed; GDAL, geopandas and QGIS read it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    layer, fields = path.stem, list(rows[0]) if rows else []
    extent = (
        [function(box[i] for box in boxes) for i, function in enumerate((min, min, max, max))]
        if boxes
        else [0] * 4
    )
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA application_id = 0x47504B47")  # "GPKG"
        connection.execute("PRAGMA user_version = 10300")
        connection.executescript(_GEOPACKAGE_TABLES)
        connection.executemany(
            "INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, NULL)",
            [
                ("Undefined Cartesian SRS", -1, "NONE", -1, "undefined"),
                ("Undefined geographic SRS", 0, "NONE", 0, "undefined"),
                ("WGS 84 geodetic", 4326, "EPSG", 4326, _WGS_84),
                ("RGF93 / Lambert-93", 2154, "EPSG", 2154, _LAMBERT_93),
            ],
        )
        # last_change is fixed so that the same places give the same bytes.
        connection.execute(
            "INSERT INTO gpkg_contents VALUES (?, 'features', ?, '', '2025-01-01T00:00:00.000Z', ?, ?, ?, ?, 2154)",
            (layer, layer, *extent),
        )
        connection.execute(
            "INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', 'POLYGON', 2154, 0, 0)", (layer,)
        )
        columns = "".join(f", {_quoted(field)} TEXT" for field in fields)
        connection.execute(
            f"CREATE TABLE {_quoted(layer)} (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom POLYGON{columns})"
        )
        slots = ", ".join("?" * (2 + len(fields)))
        connection.executemany(
            f"INSERT INTO {_quoted(layer)} VALUES ({slots})",
            [
                (n, _polygon(box), *row.values())
                for n, (row, box) in enumerate(zip(rows, boxes, strict=True), start=1)
            ],
        )
        connection.commit()
    finally:
        connection.close()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _polygon(box: tuple[float, float, float, float]) -> bytes:
    """GeoPackage binary of a rectangle: its header with the envelope, then little-endian well-known binary."""
    west, south, east, north = box
    ring = ((west, south), (east, south), (east, north), (west, north), (west, south))
    header = struct.pack("<2sBBi4d", b"GP", 0, 0b11, 2154, west, east, south, north)
    return (
        header
        + struct.pack("<BIII", 1, 3, 1, len(ring))
        + b"".join(struct.pack("<2d", *point) for point in ring)
    )
