"""RAMEN in JAX: one transformer encoder for every Earth-observation sensor, at the resolution you choose.

The public interface is imported on first use, so that loader processes and `--help` never pay for JAX:

    import ramen_jax as rj
    model = rj.load("path/to/checkpoint")
    features = model.encode({"s2": rj.Image(array, dates)}, target_gsd=40)
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "load": "ramen_jax.api",
    "cost": "ramen_jax.api",
    "evaluate": "ramen_jax.api",
    "Image": "ramen_jax.api",
    "sensor": "ramen_jax.sensors",
    "load_sensors": "ramen_jax.sensors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ramen_jax' has no attribute '{name}'; it offers {', '.join(_PUBLIC)}")
    return getattr(import_module(_PUBLIC[name]), name)


class _Package(ModuleType):
    """The import system binds a loaded submodule to its package's attribute of that name.

    `ramen_jax.evaluate` is a command (`python -m`), and `rj.evaluate` stays the function, whatever was imported.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
