"""Wrong inputs of every kind: command, name -> arguments, given a folder to put files in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

OLD = Path(__file__).resolve().parents[1] / "golden" / "old"
TINY = "configs/tiny.py:quicktest"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)

Arguments = Callable[[Path], list[str]]
CASES: dict[str, tuple[str, Arguments]] = {}


def case(command: str, name: str, arguments: Arguments) -> None:
    assert f"{command}: {name}" not in CASES
    CASES[f"{command}: {name}"] = (command, arguments)


def file(place: Path, name: str, content: str | bytes) -> str:
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)
