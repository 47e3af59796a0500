"""An exported folder: model.safetensors under the official names, config.json with everything else.

Needs neither PyTorch nor JAX.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ramen_jax.console import USAGE, UserError
from ramen_jax.documents import read_json_object
from ramen_jax.interchange.torch_weights import prefixed
from ramen_jax.model.architecture import Architecture
from ramen_jax.own_files import file_hash

DESCRIBED = ("model", "traps", "sensors")


def is_folder(path: Path) -> bool:
    """Whether there is an exported folder at `path`, where a workdir may be too.

    Raises:
        UserError: a weight file lies there, with how to make a folder of it.
    """
    if path.is_file():
        raise UserError(
            f"{path} is a file, expected a workdir or an exported folder; an official checkpoint becomes one with "
            f"python -m ramen_jax.export --import {path} --output DIR",
            USAGE,
        )
    return (path / "config.json").is_file() and (path / "model.safetensors").is_file()


def read_folder(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors, named `encoder.*` (and `decoder.*`), and the description.

    Raises:
        UserError: one of the two files is damaged or says too little.
    """
    settings, weights = path / "config.json", path / "model.safetensors"
    description = read_json_object(settings, "the description that export wrote")
    missing = [key for key in DESCRIBED if not isinstance(description.get(key), dict)]
    if missing:
        raise UserError(f"{settings} lacks {', '.join(missing)}; expected a folder that export wrote")
    try:
        Architecture.from_dict(description["model"])
    except UserError as error:
        raise UserError(f"{settings}: {error}") from error
    expected = description.pop("weights_sha256", None)  # earlier versions wrote none
    try:
        if expected is not None and file_hash(weights) != expected:
            raise UserError(
                f"{weights} is not the file that {settings} was written with (weights_sha256); export the folder again"
            )
        return prefixed(load_file(weights)), description
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights} cannot be read ({error}); export the folder again") from error
