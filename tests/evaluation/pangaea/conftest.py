"""Each task's layout in small, written once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ramen_jax.earth.layouts.pangaea import WRITERS
from tests.evaluation.pangaea.small_files import PIXELS, WRITE


@pytest.fixture(scope="session")
def layouts(tmp_path_factory):
    """Task name -> its folder in small, written once."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        key = "spacenet7" if name == "spacenet7_change" else name
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp(key)
            WRITERS[key](folders[key], **{"pixels": PIXELS, **WRITE.get(key, {})})
        return folders[key]

    return folder


@pytest.fixture
def copy(layouts, tmp_path):
    """A folder of a task that a test may spoil."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(layouts(name), tmp_path / name))

    return make
