"""Which rasters of a folder make a series, and on which days: read from the file names, with every doubt told.

A date is 2021-04-02, 2021_04_02 or 20210402, standing alone among the digits of a name. Sentinel and Landsat products
name the acquisition first and the processing later; in any other name two different dates are one too many.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from ramen_jax.console import USAGE, UserError

SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".nc", ".img", ".png")
DATE = re.compile(
    r"(?<!\d)((?:19|20)\d\d)([-_]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?:[T_-]?([0-2]\d[0-5]\d[0-5]\d))?(?!\d)"
)
PRODUCT = re.compile(r"(S1[A-D]|S2[A-D]|S3[A-D]|L[COTEM]0?[1-9]|HLS|MOD|MYD|MCD|VNP)", re.IGNORECASE)
SHOWN = 3


class Moment(NamedTuple):
    """When a frame was taken; `time` is HHMMSS, or "" where the name has none."""

    date: datetime.date
    time: str


def find_frames(path: Path) -> list[Path]:
    """A raster, or the rasters of a folder, oldest first.

    Raises:
        UserError: nothing there; several rasters of which one has no date, or several, in its name; several of one
            date.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no raster or folder {path}", USAGE)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{path} holds no raster ({', '.join(SUFFIXES)})")
    if len(files) == 1:
        return files
    moments = {file: _moment(file) for file in files}
    counts = Counter(moments.values())
    moment, count = counts.most_common(1)[0]
    if count > 1:
        same = [file.name for file in files if moments[file] == moment]
        raise UserError(
            f"{path}: {count} rasters have the same date {moment.date} ({', '.join(same[:SHOWN])}); a series needs one "
            "raster per date. Are these the bands of one acquisition? `gdalbuildvrt -separate stack.vrt FILES` makes "
            "one raster of them"
        )
    return sorted(files, key=lambda file: moments[file])


def date_of(file: Path) -> datetime.date | None:
    """The date in a file's name; None where there is none, or where it cannot be told which one counts."""
    found = _dates(file)
    if len({moment.date for moment in found}) == 1 or (found and PRODUCT.match(file.stem)):
        return found[0].date
    return None


def told(name: str, dates: list[datetime.date]) -> list[str]:
    """What to say of the dates of a series: names hold numbers that only look like dates."""
    notes = []
    if len(dates) > 1:
        shown = [str(date) for date in dates]
        if len(shown) > 2 * SHOWN:
            shown = [*shown[:SHOWN], "...", *shown[-SHOWN:]]
        notes.append(
            f"{name} is a series of {len(dates)} dates, read from the file names: {', '.join(shown)}"
        )
    repeated = [str(date) for date, count in Counter(dates).items() if count > 1]
    if repeated:
        notes.append(f"{name} has more than one raster on the same date, at different times: {repeated[0]}")
    return notes


def _moment(file: Path) -> Moment:
    found = _dates(file)
    if not found:
        impossible = [match[0] for match in DATE.finditer(file.stem)]
        lead = (
            f"{impossible[0]} in the file's name is no date" if impossible else "no date in the file's name"
        )
        raise UserError(f"{file}: {lead}; write one as 2021-04-02 or 20210402")
    dates = list(dict.fromkeys(moment.date for moment in found))
    if len(dates) > 1 and not PRODUCT.match(file.stem):
        raise UserError(
            f"{file}: its name holds {len(dates)} numbers that read as dates ({', '.join(map(str, dates))}); "
            "rename it so that the date of the acquisition is the only one"
        )
    return found[0]


def _dates(file: Path) -> list[Moment]:
    """Every date of a name that the calendar knows."""
    found = []
    for match in DATE.finditer(file.stem):
        year, _, month, day, time = match.groups()
        try:
            found.append(Moment(datetime.date(int(year), int(month), int(day)), time or ""))
        except ValueError:  # the 30th of February
            continue
    return found
