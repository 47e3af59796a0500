"""JSON and YAML that people hand in: read as plain values, or refused in one sentence that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ramen_jax.console import DATA, UserError, one_line

MOST_VALUES = 1_000_000  # in one document, aliases written out


def read_text(path: Path, code: int = DATA) -> str:
    """A file as UTF-8 text. Errors: UserError when it is not there, cannot be read or is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start:,})", code) from error
    except (OSError, ValueError) as error:
        strerror = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({strerror})", code) from error


def read_json(path: Path, code: int = DATA) -> Any:
    """The value in a JSON file. Errors: UserError."""
    text = read_text(path, code)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({one_line(str(error))})", code) from error


def read_json_object(path: Path, what: str, code: int = DATA) -> dict[str, Any]:
    """The object in a JSON file, which should be `what`. Errors: UserError."""
    value = read_json(path, code)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected {what}", code)
    return value


def parse_yaml(text: str, where: str, code: int = DATA, load: Callable[[str], Any] = yaml.safe_load) -> Any:
    """The plain value of a YAML text. Errors: UserError, also for aliases that stand for more than a document."""
    try:
        value = load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{where}: not a valid YAML file: {' '.join(str(error).split())[:500]}", code
        ) from error
    if _is_beyond(value, MOST_VALUES):
        raise UserError(
            f"{where}: its aliases stand for more than {MOST_VALUES:,} values; write out what is meant", code
        )
    return value


def _is_beyond(value: Any, most: int) -> bool:
    """Whether a value holds more than so many values, one that is referred to twice counted twice."""
    open_values, count = [value], 0
    while open_values:
        entry = open_values.pop()
        count += 1
        if count + len(open_values) > most:
            return True
        if isinstance(entry, Mapping):
            open_values += [*entry.keys(), *entry.values()]
        elif isinstance(entry, list | tuple | set):
            open_values += entry
    return False
