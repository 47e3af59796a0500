"""Tasks by name: the YAML file that describes one, and the reader it names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.evaluation.pangaea.protocol import PUBLISHED, Protocol
from ramen_jax.evaluation.pangaea.tasks.task import Task

KINDS = {
    "geotask": ("geotask", "GeoTask"),
    "burnscars": ("burnscars", "BurnScars"),
    "mados": ("mados", "Mados"),
    "pastis": ("pastis", "Pastis"),
    "sen1floods11": ("sen1floods11", "Sen1Floods11"),
    "dynamicearthnet": ("dynamicearthnet", "DynamicEarthNet"),
    "croptype": ("croptype", "CropType"),
    "spacenet7": ("spacenet7", "SpaceNet7"),
    "spacenet7_change": ("spacenet7", "SpaceNet7Change"),
    "smallfarms": ("smallfarms", "SmallFarms"),
    "xview2": ("xview2", "XView2"),
    "fivebillionpixels": ("fivebillionpixels", "FiveBillionPixels"),
    "potsdam": ("potsdam", "Potsdam"),
    "biomassters": ("biomassters", "BioMassters"),
    "opencanopy": ("opencanopy", "OpenCanopy"),
    "geobench": ("geobench", "GeoBench"),
}
DESCRIPTIONS = Path(__file__).parents[1] / "descriptions"


def shipped() -> list[str]:
    """Names of the tasks that ship with the package."""
    return sorted(path.stem for path in DESCRIPTIONS.glob("*.yaml"))


def load_task(name: str | Path) -> dict[str, Any]:
    """A task's description: the name of one that ships, or a YAML file. Errors: UserError."""
    path = Path(name)
    if not path.suffix:
        path = DESCRIPTIONS / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"task {name}: no file {path}; {close_names(str(name), shipped())} (or give a YAML file)", USAGE
        )
    try:
        description = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})", USAGE) from error
    if not isinstance(description, dict) or "kind" not in description:
        raise UserError(f"{path}: expected a mapping with the key kind (one of {', '.join(KINDS)})", USAGE)
    if isinstance(description.get("sensors"), str):
        # A file of user sensors is named relative to the description that uses it.
        description["sensors"] = str((path.parent / description["sensors"]).resolve())
    return {"name": path.stem, **description}


def open_task(
    description: str | Path | Mapping[str, Any], source: Path, protocol: Protocol = PUBLISHED, **changes: Any
) -> Task:
    """The reader of a task.

    Args:
      description: a name of `shipped()`, a YAML file, or its content.
      source: the folder of the original files.
      protocol: decides dates, wavelengths, orbits and no-data.
      changes: options over those of the description, such as `pixels=64` for small files.

    Errors: UserError for an unknown task, kind or option, or a missing folder.
    """
    given = description if isinstance(description, Mapping) else load_task(description)
    values = {**given, **changes}
    if values["kind"] not in KINDS:
        raise UserError(
            f"task kind {values['kind']!r} is unknown; {close_names(str(values['kind']), KINDS)}", USAGE
        )
    if not source.is_dir():
        raise UserError(f"task {values['name']}: source {source}: no such folder")
    module, name = KINDS[values["kind"]]
    reader: type[Task] = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    return reader(source, values, protocol)
