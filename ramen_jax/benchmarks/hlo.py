"""What a compiled program does, read from its text: collectives and memory traffic, loop bodies as often as they run.

XLA's own cost analysis counts the body of a loop once, however often it runs, and collectives not at all.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
BITS = {
    **dict.fromkeys(("pred", "s8", "u8"), 8),
    **dict.fromkeys(("s16", "u16", "bf16", "f16"), 16),
    **dict.fromkeys(("s32", "u32", "f32"), 32),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 64),
    **dict.fromkeys(("s4", "u4"), 4),
}
# These move nothing by themselves: they name what others wrote, or wait for what others began.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id"),
    *("while", "conditional", "call", "after-all", "optimization-barrier", "iota", "async-start"),
}
_NAMES_ONLY = re.compile(
    r'custom_call_target="(AllocateBuffer|AssumeGather\w*|\w*Bitcast|GatherScatterIndices\w*)"'
)
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_TILED = re.compile(r"\{([\d,]+):T\(([\d,]+)\)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[(\d+),(\d+)\]|mesh\[([^\]]*)\]\s*\{([^}]*)\})")
_MESH_AXIS = re.compile(r"'(\w+)'(?:=(\d+)|:\(\d+\)(\d+))?")


@dataclass(frozen=True)
class Instruction:
    """One line: `name = type opcode(inside), rest`; `operands`: the names inside."""

    name: str
    type: str
    opcode: str
    inside: str
    operands: tuple[str, ...]
    rest: str
    root: bool


@dataclass
class Collective:
    """Collectives of one kind and element type in one step.

    Attributes:
        count: how often they run.
        repeated: how often of these in a loop, as over the layers.
        bytes: of their results (of their operands for reduce-scatter), per device.
        sent: bytes that a device sends, in a ring over its group.
    """

    count: int = 0
    repeated: int = 0
    bytes: float = 0.0
    sent: float = 0.0


@dataclass
class Work:
    """What one device does.

    Attributes:
        collectives: (kind, element type) -> what runs.
        traffic: bytes read and written in device memory.
        rounds: of all loops together: what runs one after the other.
    """

    collectives: dict[tuple[str, str], Collective] = field(default_factory=lambda: defaultdict(Collective))
    traffic: float = 0.0
    rounds: int = 0

    def of_kind(self, kind: str) -> Collective:
        """All element types together."""
        found = [value for (name, _), value in self.collectives.items() if name == kind]
        return Collective(
            sum(c.count for c in found),
            sum(c.repeated for c in found),
            sum(c.bytes for c in found),
            sum(c.sent for c in found),
        )

    @property
    def sent(self) -> float:
        """Bytes that a device sends to others."""
        return sum(value.sent for value in self.collectives.values())


def read(text: str) -> Work:
    """The work of a compiled module, given as its text, on one device.

    A loop runs as often as the compiler says, or, where it says nothing, up to the constant that its condition
    compares with (JAX counts from zero, by one); a loop that ends otherwise counts as one round.
    """
    module = _parse(text)
    work = Work()
    _walk(module, module.entry, 1, work)
    return work


@dataclass(frozen=True)
class _Module:
    """Computations by name; `carried`: of fusions beside which a collective goes on that another one has begun.

    A TPU's compiler writes such a collective anew into each of them.
    """

    computations: dict[str, list[Instruction]]
    entry: str
    carried: frozenset[str]


def _parse(text: str) -> _Module:
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", list[Instruction]()
    for line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line)
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            inside, rest = _operands(found[5])
            names = tuple(re.findall(r"%([\w.\-]+)", inside))
            current.append(Instruction(found[2], found[3], found[4], inside, names, rest, bool(found[1])))
    if not entry:
        raise ValueError("the text has no ENTRY computation: expected the text of a compiled module")
    carried = frozenset(
        name
        for name, inner in computations.items()
        if name.startswith("async_collective_fusion")
        or any('custom_call_target="AsyncCollectiveDone"' in each.rest for each in inner)
    )
    return _Module(computations, entry, carried)


def _operands(text: str) -> tuple[str, str]:
    """What stands up to the closing bracket, and what follows it."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:place], text[place + 1 :]
    return text, ""


def _all_arrays(type_: str) -> Iterator[tuple[str, float, bool]]:
    """(element type, bytes, whether in device memory: a space S(n) is on the chip) of each array of a type.

    Where a layout has tiles, as on a TPU, the array takes whole ones: heads of 32 fill rows of 128.
    """
    for name, shape, layout in _ARRAY.findall(type_):
        if name in BITS:
            sides = [int(side) for side in shape.split(",") if side]
            if sides and (tiled := _TILED.match(layout)):
                minor = [int(axis) for axis in tiled[1].split(",")]
                for axis, tile in zip(minor, reversed(tiled[2].split(",")), strict=False):
                    sides[axis] = -(-sides[axis] // int(tile)) * int(tile)
            yield name, math.prod(sides) * BITS[name] / 8, "S(" not in layout


def _arrays(type_: str) -> Iterator[tuple[str, float]]:
    """(element type, bytes) of each array of a type that lies in device memory."""
    return ((name, size) for name, size, on_device in _all_arrays(type_) if on_device)


def _bytes(type_: str) -> float:
    return sum(size for _, size in _arrays(type_))


def _walk(
    module: _Module, name: str, times: int, work: Work, *, in_fusion: bool = False, in_loop: bool = False
) -> None:
    computations = module.computations
    here = {instruction.name: instruction for instruction in computations[name]}
    for instruction in computations[name]:
        opcode = instruction.opcode
        kind = opcode.removesuffix("-done")
        if kind in COLLECTIVES and name not in module.carried:
            begun = here[instruction.operands[0]] if opcode.endswith("-done") else instruction
            size = _group(begun.rest)
            parts = size if kind == "reduce-scatter" else 1
            if name.startswith("all-reduce-scatter"):  # a TPU's: the sum and the cut that a device keeps
                kind = "reduce-scatter"
            _count(instruction, kind, size, parts, times, work, in_loop)
        called = [] if opcode.endswith(("-done", "-update")) else _CALLED.findall(instruction.rest)
        waits = opcode.endswith(("-done", "-update")) and opcode != "async-done"
        free = opcode in _FREE or waits or _NAMES_ONLY.search(instruction.rest)
        if not in_fusion and not free:
            inner = next(
                (computations[c] for key, c in called if key == "calls" and opcode == "fusion"), None
            )
            carried = any(other in module.carried for _, other in called)
            work.traffic += times * _traffic(instruction, here, inner, carried)
        trips = _rounds(instruction, dict(called), computations) if opcode == "while" else 1
        work.rounds += times * trips if opcode == "while" else 0
        for key, other in called:
            rounds = trips if key in ("body", "condition") else 1
            if key != "to_apply" or opcode == "call":
                fused = in_fusion or opcode == "fusion" or opcode.endswith("-start")
                inside = in_loop or key == "body"
                _walk(module, other, times * rounds, work, in_fusion=fused, in_loop=inside)
        for several, one in _BRANCHES.findall(instruction.rest):
            for other in re.findall(r"[\w.\-]+", several or one):
                _walk(module, other, times, work, in_fusion=in_fusion, in_loop=in_loop)


def _rounds(loop: Instruction, called: dict[str, str], computations: dict[str, list[Instruction]]) -> int:
    if told := _TRIPS.search(loop.rest):
        return int(told[1])
    condition = {other.name: other for other in computations[called["condition"]]}
    compared = next(other for other in condition.values() if other.root)
    if compared.opcode == "compare" and "direction=LT" in compared.rest:
        limit = condition.get(compared.operands[-1])
        if limit is not None and limit.opcode == "constant":
            return int(limit.inside)
    return 1


def _group(attributes: str) -> int:
    """How many devices take part in a collective; 2 where the text does not say."""
    found = _GROUPS.search(attributes)
    if found is None:
        return 2
    if found[4] is None:
        return int(found[3] or len(found[1].split(",")))
    sizes = {name: int(size) for name, size, _ in _MESH_AXIS.findall(found[4])}
    return math.prod(int(part) if part else sizes[name] for name, _, part in _MESH_AXIS.findall(found[5]))


def _count(
    instruction: Instruction, kind: str, size: int, parts: int, times: int, work: Work, in_loop: bool
) -> None:
    """Adds a collective among `size` devices whose result is one of `parts` of what is told."""
    share = {"all-reduce": 2 * (size - 1) / size, "collective-permute": 1.0}.get(kind, (size - 1) / size)
    sizes: dict[str, float] = defaultdict(float)
    for element, result in _arrays(
        re.sub(r"\{[^}]*\}", "", instruction.type)
    ):  # wherever and however it lies
        sizes[element] += result * parts
    for element, whole in sizes.items():
        entry = work.collectives[kind, element]
        entry.count += times
        entry.repeated += times * in_loop
        entry.bytes += times * whole
        entry.sent += times * whole * share


def _traffic(
    instruction: Instruction, here: dict[str, Instruction], inner: list[Instruction] | None, carried: bool
) -> float:
    """Bytes one instruction reads and writes: of an array it only cuts into, the cut.

    `carried`: the fusion hands on arrays of a collective that goes on beside it.
    """
    result, opcode = _bytes(instruction.type), instruction.opcode
    operands = [here[name].type if name in here else "" for name in instruction.operands]
    if opcode in (
        "dynamic-slice",
        "slice",
        "gather",
        "async-done",
    ):  # the last: gathers on a TPU's SparseCores
        return 2 * result
    if opcode in ("dynamic-update-slice", "scatter"):
        return 2 * _bytes(operands[-1 if opcode == "scatter" else 1])
    if opcode.endswith(
        "-start"
    ):  # (from, to, ...): what is moved is the smaller, wherever either of them lies
        ends = list(_all_arrays(instruction.type))[:2]
        return min(size for _, size, _ in ends) * sum(on_device for _, _, on_device in ends) if ends else 0.0
    if inner is None:
        return result + sum(map(_bytes, operands))
    inside = {other.name: other for other in inner}
    root = next(other for other in inner if other.root)
    updated = root
    while updated.opcode in ("bitcast", "copy", "convert") and updated.operands[0] in inside:
        updated = inside[updated.operands[0]]
    total = result
    if carried:
        written = [inside[name] for name in root.operands] if root.opcode == "tuple" else []
        total = sum(
            _bytes(other.type) for other in written if other.opcode not in ("parameter", *COLLECTIVES)
        )
    elif updated.opcode == "dynamic-update-slice":
        total = _bytes(inside[updated.operands[1]].type)
    parameters = [other for other in inner if other.opcode == "parameter"]
    for parameter in parameters:
        type_ = operands[int(parameter.inside)]
        users = [other for other in inner if parameter.name in other.operands]
        if carried and all(user.opcode in ("tuple", "custom-call", *COLLECTIVES) for user in users):
            continue
        if users and all(user.opcode in ("dynamic-slice", "slice", "gather") for user in users):
            total += min(_bytes(type_), sum(_bytes(user.type) for user in users))
        elif updated in users and updated.opcode == "dynamic-update-slice" and len(users) == 1:
            total += 0.0 if updated.operands[0] == parameter.name else _bytes(type_)
        else:
            total += _bytes(type_)
    return total
