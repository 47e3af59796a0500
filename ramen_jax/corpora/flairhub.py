"""FLAIR-HUB (IGNF, arXiv:2506.07080): one GeoTIFF per patch and modality, dates in GeoPackages.

Two layouts exist and both are read:

    published                                      as the RAMEN loader expects it
    any folder beside the data folders:            data/ beside the data folders:
      FLAIR-HUB_TRAIN.csv, FLAIR-HUB_VALID.csv       train.csv, val.csv (separated by ;)
      (separated by ; or, in the toy set, by ,)
    GLOBAL_ALL_MTD/GLOBAL_SENTINEL2_MTD_DATES.gpkg  GLOBAL_ALL_MTD/GLOBAL_SENTINEL2_TS_MTD_DATES.gpkg

The cells of a list are paths relative to the folder of the list; they must stay inside the dataset.

Series are stacked date by date (all bands of date 1, then of date 2). Sentinel-2 dates are kept when at least 95 % of
the pixels are free of snow and cloud by the mask raster; if no date is, those free of snow are kept, clouds or not.
"""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.corpora import BadItem, Corpus, clear_dates, day_of_year, make_image
from ramen_jax.corpora.placement import SAME_PATCH, Footprint, misplaced
from ramen_jax.corpora.raster import read_raster
from ramen_jax.samples import Image, ModalitySpec, Sample
from ramen_jax.sensors import sensor

MASK = "SENTINEL2_MSK-SC"
# modality: (column of the list, name in the published date files, sensor, pixels per side, dtype, series)
MODALITIES = {
    "aerial": ("AERIAL_RGBI", "AERIAL", "flairhub_aerial", 512, "uint8", False),
    "aerial_rlt": ("AERIAL-RLT_PAN", "AERIAL-RLT", "flairhub_aerial_rlt", 256, "uint8", False),
    "dem": ("DEM_ELEV", "AERIAL", "flairhub_dem", 512, "float32", False),
    "spot": ("SPOT_RGBI", "SPOT", "flairhub_spot", 64, "uint16", False),
    "s2": ("SENTINEL2_TS", "SENTINEL2", "flairhub_s2", 10, "uint16", True),
    "s1_asc": ("SENTINEL1-ASC_TS", "SENTINEL1-ASC", "flairhub_s1_asc", 10, "float32", True),
    "s1_des": ("SENTINEL1-DESC_TS", "SENTINEL1-DESC", "flairhub_s1_des", 10, "float32", True),
}
LISTS = {
    "train": ("train.csv", "FLAIR-HUB_TRAIN.csv", "FLAIR-HUB_TOY-DATASET_TRAIN.csv"),
    "val": ("val.csv", "FLAIR-HUB_VALID.csv", "FLAIR-HUB_TOY-DATASET_VALID.csv"),
    "test": ("test.csv", "FLAIR-HUB_TEST.csv", "FLAIR-HUB_TOY-DATASET_TEST.csv"),
}


class FlairHub(Corpus):
    """See the module's docstring.

    Options:
      modalities: names from MODALITIES, the first one defines extent and grid.
      splits: of train, val and test.
      max_covered: largest share of a Sentinel-2 date's pixels that may be snow or cloud.
      max_snow, max_cloud: largest mask value (0..100) of a pixel that counts as free.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "modalities": ["aerial", "dem", "s2", "s1_des"],
        "splits": ["train", "val"],
        "max_covered": 0.05,
        "max_snow": 1,
        "max_cloud": 1,
    }

    def __init__(self, source: Path, options: Mapping[str, Any]) -> None:
        super().__init__(source, options)
        for name in self.options["modalities"]:
            if name not in MODALITIES:
                raise UserError(f"FLAIR-HUB has no modality {name!r}; {close_names(name, MODALITIES)}", USAGE)
        self.modalities = tuple(_modality(name) for name in self.options["modalities"])
        self.lists = {split: PatchList(find_list(source, split)) for split in self.options["splits"]}
        folder = next(iter(self.lists.values())).path.parent
        tables: dict[str, DateTable] = {}
        for name in self.options["modalities"]:
            path = _date_file(folder, name)
            tables.setdefault(str(path), DateTable(path))
        self.dates = {name: tables[str(_date_file(folder, name))] for name in self.options["modalities"]}

    def items(self) -> tuple[dict[str, list[str]], list[BadItem]]:
        rejected = []
        seen: dict[str, str] = {}
        items: dict[str, list[str]] = {}
        for split, listed in self.lists.items():
            items[split] = []
            for patch in listed.lines:
                if patch in seen:
                    rejected.append(BadItem(listed.path, f"patch {patch} is already in {seen[patch]}"))
                else:
                    seen[patch] = split
                    items[split].append(patch)
        return items, rejected

    def read(self, item: str, split: str) -> list[Sample]:
        row, listed = self.lists[split].row(item), self.lists[split].path
        images: dict[str, Image] = {}
        location, first = None, None
        for spec in self.modalities:
            path = _cell(row, MODALITIES[spec.name][0], listed)
            raster = read_raster(path)
            first = first or raster.footprint
            if wrong := misplaced(raster.footprint, first, allowed=SAME_PATCH):
                raise BadItem(path, wrong)
            values_TxCxHxW = _by_date(raster.values, len(spec.sensor.bands), spec.series, path)
            dates = self.dates[spec.name].days(item)
            if len(dates) != len(values_TxCxHxW):
                raise BadItem(
                    path,
                    f"{len(values_TxCxHxW)} dates in the raster, but {len(dates)} for patch {item} "
                    f"in {self.dates[spec.name].path.name}",
                )
            if spec.name == "s2":
                kept = self._clear(_cell(row, MASK, listed), len(dates), first)
                if not kept.any():
                    raise BadItem(
                        path, f"none of its {len(dates)} dates is left after the snow and cloud filter"
                    )
                values_TxCxHxW = values_TxCxHxW[kept]
                dates = [day for day, keep in zip(dates, kept) if keep]
            images[spec.name] = make_image(values_TxCxHxW, dates, spec.sensor.nodata, path)
            location = location or raster.location(spec.height / 2, spec.width / 2)
        return [Sample(item, images, location)]

    def _clear(self, path: Path, dates: int, first: Footprint) -> np.ndarray:
        """[T] bool: the dates that the snow and cloud filter keeps."""
        raster = read_raster(path)
        if wrong := misplaced(raster.footprint, first, allowed=SAME_PATCH):
            raise BadItem(path, wrong)
        mask_Tx2xHxW = _by_date(raster.values, 2, True, path)
        if len(mask_Tx2xHxW) != dates:
            raise BadItem(path, f"{len(mask_Tx2xHxW)} dates in the mask, but {dates} in its Sentinel-2 stack")
        return clear_dates(
            snow_TxHxW=mask_Tx2xHxW[:, 0] > self.options["max_snow"],
            cloud_TxHxW=mask_Tx2xHxW[:, 1] > self.options["max_cloud"],
            max_covered=self.options["max_covered"],
        )


def _modality(name: str) -> ModalitySpec:
    _, _, sensor_name, pixels, dtype, series = MODALITIES[name]
    return ModalitySpec(name, sensor(sensor_name), pixels, pixels, series, 1, dtype)


def find_list(source: Path, split: str) -> Path:
    """The patch list of a split, in `source` or one folder below. Errors: UserError when there is none, or several."""
    if split not in LISTS:
        raise UserError(f"FLAIR-HUB has no split {split!r}; {close_names(split, LISTS)}", USAGE)
    found = [path for name in LISTS[split] for path in (*source.glob(name), *source.glob(f"*/{name}"))]
    if not found:
        raise UserError(f"{source}: no patch list for split {split}, expected {' or '.join(LISTS[split])}")
    if len(found) > 1:
        raise UserError(f"several patch lists for split {split}: {', '.join(map(str, found))}; leave one")
    return found[0]


class PatchList:
    """A patch list, separated by semicolons or commas. Errors: UserError.

    The list of a country is 200 MB of paths in memory, in each process: only the place of each line is held.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, int] = {}
        try:
            with open(path, "rb") as file:
                header = file.readline().decode("utf-8-sig")
                self.separator = ";" if ";" in header else ","
                self.columns = self._cells(header)
                if "patch_id" not in self.columns:
                    raise UserError(f"{path}: no column patch_id; it has {', '.join(self.columns) or 'none'}")
                column, start = self.columns.index("patch_id"), file.tell()
                for number, line in enumerate(file, start=2):
                    cells = self._cells(line.decode())
                    if cells and len(cells) != len(self.columns):
                        raise UserError(
                            f"{path}, line {number}: {len(cells)} cells, the header has {len(self.columns)}"
                        )
                    if cells:
                        self.lines[cells[column]] = start
                    start += len(line)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: cannot be read as a table ({error})") from error

    def _cells(self, line: str) -> list[str]:
        return next(csv.reader([line.rstrip("\r\n")], delimiter=self.separator), [])

    def row(self, patch: str) -> dict[str, str]:
        """{column: cell} of a patch."""
        with open(self.path, "rb") as file:
            file.seek(self.lines[patch])
            return dict(zip(self.columns, self._cells(file.readline().decode())))


def _cell(row: Mapping[str, str], column: str, listed: Path) -> Path:
    """The file a list names. It may lie beside the list's folder, as the original ones do, but not further out."""
    cell = row.get(column)
    if not cell:
        raise BadItem(listed, f"patch {row['patch_id']} has no {column}")
    path = (listed.parent / cell).resolve()
    if not path.is_relative_to(listed.parent.parent.resolve()):
        raise BadItem(listed, f"patch {row['patch_id']}: {cell} leads outside the dataset")
    if not path.is_file():
        raise BadItem(path, f"no such file, but {listed.name} names it for patch {row['patch_id']}")
    return path


def _by_date(stack: np.ndarray, bands: int, series: bool, path: Path) -> np.ndarray:
    """[T * C, H, W] -> [T, C, H, W]; all bands of one date lie together."""
    count = len(stack)
    if count == 0 or count % bands or (count != bands and not series):
        raise BadItem(path, f"{count} bands, expected {f'a multiple of {bands}' if series else bands}")
    return stack.reshape(-1, bands, *stack.shape[1:])


def _date_file(folder: Path, modality: str) -> Path:
    """GLOBAL_ALL_MTD lies in the folder of the lists or beside it; both spellings of the file are tried."""
    column, published = MODALITIES[modality][:2]
    if modality == "dem":
        column = MODALITIES["aerial"][0]
    names = (f"GLOBAL_{published}_MTD_DATES.gpkg", f"GLOBAL_{column}_MTD_DATES.gpkg")
    for root in (folder, folder.parent):
        for name in names:
            path = root / "GLOBAL_ALL_MTD" / name
            if path.is_file():
                return path
    raise UserError(
        f"{folder}: no acquisition dates for {modality}, expected GLOBAL_ALL_MTD/{' or '.join(names)}"
    )


class DateTable:
    """Acquisition dates of one modality: a GeoPackage, which is an SQLite file, of which two columns are read.

    A country has 241,100 rows with long texts, so only the keys are held in memory and each text is fetched by row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # A file opened by many processes and changed by none: no locks, no journal.
            self._file = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
            self._table, self._key, self._column = self._layout()
            rows = self._file.execute(f"SELECT {_quoted(self._key)}, rowid FROM {_quoted(self._table)}")
            self._rows: dict[str, int] = dict(rows)
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: cannot be read as a GeoPackage ({error})") from error

    def _layout(self) -> tuple[str, str, str]:
        """(table, key column, date column) of the first table that has them, whatever the layer is called."""
        tables = [
            name for (name,) in self._file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        for table in tables:
            columns = [row[1] for row in self._file.execute(f"PRAGMA table_info({_quoted(table)})")]
            key = next((name for name in ("patch_id", "zone_id") if name in columns), None)
            dates = next((name for name in ("acquisition_dates", "date") if name in columns), None)
            if key and dates:
                return table, key, dates
        raise UserError(
            f"{self.path}: no table with patch_id (or zone_id) and acquisition_dates (or date); "
            f"it has {', '.join(tables)}"
        )

    def days(self, patch: str) -> list[int]:
        """Days of year in the order of the raster's stack. Raises BadItem when the patch has none, or a wrong one."""
        row = self._rows.get(patch, self._rows.get("_".join(patch.split("_")[:2])))
        if row is None:
            raise BadItem(self.path, f"no dates for patch {patch}")
        query = f"SELECT {_quoted(self._column)} FROM {_quoted(self._table)} WHERE rowid = ?"
        where = f"{self.path}, patch {patch}"
        try:
            text = self._file.execute(query, (row,)).fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise BadItem(where, f"cannot be read ({error})") from error
        if self._column == "date":
            return [_day(text, where)]
        try:
            entries = {int(key): value for key, value in json.loads(text).items()}
        except (TypeError, ValueError, AttributeError) as error:
            raise BadItem(
                where, f"acquisition_dates is no JSON object of numbered dates: {text!r}"
            ) from error
        numbers = sorted(entries)
        if not numbers or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise BadItem(where, f"acquisition_dates are numbered {numbers}, expected 1, 2, 3 ...")
        return [_day(entries[number], where) for number in numbers]


def _day(value: Any, where: str) -> int:
    """YYYYMMDD as text or number, or an ISO date with or without a time of day."""
    return day_of_year(str(value).replace("-", "")[:8], where)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
