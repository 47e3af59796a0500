"""What this machine can hold: impossible sizes are refused with their figures before anything is allocated."""

from __future__ import annotations

import os
from pathlib import Path

from ramen_jax.console import USAGE, UserError

CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def machine_memory() -> int:
    """Bytes that this process could ever hold: of the machine, or of its container where that has less."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [pages] if pages > 0 else []
    for path in CGROUP:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(limits, default=1 << 62)


def refuse_beyond_memory(what: str, needed: float, advice: str, limit: float | None = None) -> None:
    """UserError when more bytes are needed than the limit (None: this machine's memory)."""
    limit = machine_memory() if limit is None else limit
    if needed > limit:
        raise UserError(
            f"{what} takes at least {size(needed)} of memory, the limit here is {size(limit)}; {advice}",
            USAGE,
        )


def size(count: float) -> str:
    """Bytes for people: `3.8 TiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} PiB"
