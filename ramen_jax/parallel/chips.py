"""What chips can do, and the slices that TPUs come in.

Sources: docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e, "System architecture", figures per chip, as of November
2026; where two editions differ (v6e: 1,600 and 1,640 GB/s of memory, 3,200 and 3,584 Gbit/s of interconnect), the
smaller. Interconnect bandwidth is that of all links of a chip in one direction together; a slice that is not a full
torus has less. Peaks of GPUs are those of NVIDIA's data sheets, dense, without sparsity.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ramen_jax.console import USAGE, UserError, close_names


@dataclass(frozen=True)
class Chip:
    """A kind of chip.

    Attributes:
        name: as in a topology's name.
        memory: bytes of HBM.
        flops: bfloat16 operations per second at the peak.
        bandwidth: bytes per second between chip and HBM.
        links: bytes per second to other chips.
        axes: of its torus.
        lanes: width of a matrix unit: narrower factors leave the rest of it idle.
        topologies: slices that are sold, the first and the last of each row of the documentation.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    links: float
    axes: int
    lanes: int
    topologies: tuple[str, ...]


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 32 * 2**30, 275e12, 1200e9, 300e9, 3, 128, _CUBES),  # 2400 Gbps
        Chip("v5e", 16 * 2**30, 197e12, 819e9, 200e9, 2, 128, _FLAT),  # 1600 Gbps
        Chip("v5p", 95 * 2**30, 459e12, 2765e9, 600e9, 3, 128, _CUBES),  # 4800 Gbps
        Chip("v6e", 32 * 2**30, 918e12, 1600e9, 400e9, 2, 256, _FLAT),  # 3200 Gbps
    )
}


# Beginnings of a JAX device's `device_kind`, the longest that fits counts -> bfloat16 operations per second.
_PEAKS = {
    "TPU v4": CHIPS["v4"].flops,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5e": CHIPS["v5e"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v6 lite": CHIPS["v6e"].flops,
    "TPU v6e": CHIPS["v6e"].flops,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Bfloat16 operations per second of a device as JAX names it; None for one that is not in the table (a CPU)."""
    known = [start for start in _PEAKS if device_kind.startswith(start)]
    return _PEAKS[max(known, key=len)] if known else None


@dataclass(frozen=True)
class Topology:
    """A slice: `name` as libtpu knows it, its chip, its number of chips."""

    name: str
    chip: Chip
    chips: int


def topology(text: str) -> Topology:
    """The slice "v5e:4x4". Raises UserError with the known ones."""
    known = [f"{chip.name}:{shape}" for chip in CHIPS.values() for shape in chip.topologies]
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
    chip = CHIPS.get(found[1]) if found else None
    if found is None or chip is None or found[2] not in chip.topologies:
        close = close_names(text, known)
        listed = "; ".join(f"{name}:{{{','.join(other.topologies)}}}" for name, other in CHIPS.items())
        hint = f" {close}" if close.startswith("did") else ""
        raise UserError(f"unknown --topology {text!r}, known are {listed}.{hint}", USAGE)
    return Topology(text, chip, math.prod(map(int, found[2].split("x"))))
