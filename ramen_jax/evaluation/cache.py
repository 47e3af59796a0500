"""Frozen features on disk: computed once, kept under the hash of everything that they depend on.

    cache = Cache(folder, limit=20 << 30)
    features = cache.get(key)                   # None where there is none, or where the file is damaged or foreign
    cache.put(key, features)

A file is a line of JSON (key, dtype, shape, SHA-256 of the rest) and the array. It is written beside its place under
a name of its own and then renamed, so that a kill leaves nothing half written and two writers both succeed; what is
read is hashed again. The folder is bounded: beyond `limit` bytes nothing more is written, which is said once.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ramen_jax.limits import size
from ramen_jax.samples import Sample

FORMAT = "ramen_jax features 1"


def key_of(identity: Mapping[str, Any], sample: Sample) -> str:
    """A name for the features of a sample: changes with any pixel, date or mark, and with anything in `identity`."""
    result = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode())
    for name, image in sample.images.items():
        for array in (image.values, image.dates, image.present, image.valid):
            result.update(f"{name} {None if array is None else (array.dtype, array.shape)}".encode())
            if array is not None:
                result.update(np.ascontiguousarray(array).tobytes())
    return result.hexdigest()


class Cache:
    """Features by key. `limit`: bytes that the folder may hold, 0: keep nothing. `note`: says what happened."""

    def __init__(self, folder: Path, limit: int, note: Callable[[str], None]) -> None:
        self.folder, self.limit, self.note = folder, limit, note
        self.hits = self.misses = self.rebuilt = 0
        self._full = limit <= 0
        files = list(folder.glob("*/*.features")) if folder.is_dir() else []
        self.bytes = sum(file.stat().st_size for file in files)

    def announce(self, count: int, each: float) -> None:
        """Says what is about to be kept, before it is."""
        if not self._full:
            beyond = (
                "" if count * each + self.bytes <= self.limit else "; what does not fit is computed each time"
            )
            self.note(
                f"features: about {size(count * each)} to keep in {self.folder} ({size(self.bytes)} there, "
                f"limit {size(self.limit)}{beyond})"
            )

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.features"

    def get(self, key: str) -> np.ndarray | None:
        path = self.path(key)
        try:
            content = path.read_bytes()
        except OSError:
            self.misses += 1
            return None
        head, _, body = content.partition(b"\n")
        try:
            facts = json.loads(head)
            if facts["format"] != FORMAT or facts["key"] != key:
                raise ValueError("written for something else")
            if hashlib.sha256(body).hexdigest() != facts["sha256"]:
                raise ValueError("its content has changed")
            features = np.frombuffer(body, np.dtype(facts["dtype"])).reshape(facts["shape"])
        except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            self.note(f"{path}: damaged or foreign features ({error}); computed anew")
            self.rebuilt += 1
            self.misses += 1
            return None
        self.hits += 1
        return features

    def put(self, key: str, features: np.ndarray) -> None:
        """Keeps them, if there is room. A full disk is said once and costs nothing but time."""
        if self._full:
            return
        body = np.ascontiguousarray(features).tobytes()
        facts = {
            "format": FORMAT,
            "key": key,
            "sha256": hashlib.sha256(body).hexdigest(),
            "dtype": str(features.dtype),
            "shape": features.shape,
        }
        content = json.dumps(facts).encode() + b"\n" + body
        if self.bytes + len(content) > self.limit:
            self._stop(f"the limit of {size(self.limit)} is reached")
            return
        path = self.path(key)
        partial = path.with_name(f".{key}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            self._stop(str(error.strerror or error))
            return
        self.bytes += len(content)

    def _stop(self, cause: str) -> None:
        self._full = True
        self.note(f"{self.folder}: no more features are kept ({cause}); they are computed each time")
