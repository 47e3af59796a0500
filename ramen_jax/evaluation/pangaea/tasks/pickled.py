"""The facts in a pickled attribute, without unpickling: opcodes are read one by one into plain values.

Nothing is imported and nothing is called. A class or function that the stream names becomes an `Opaque` with its name,
its arguments and its state; NumPy scalars and arrays of plain numbers are recognised by theirs. Opcodes that such files
do not need are refused.
"""

from __future__ import annotations

import dataclasses
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from ramen_jax.corpora import BadItem

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_FRESH = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES"),
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_SKIPPED = ("PROTO", "FRAME")
_MARK = object()


@dataclasses.dataclass
class Opaque:
    """Something the stream would have built: never built here."""

    name: str
    arguments: Any = ()
    state: Any = None


def facts(stream: bytes, file: str | Path) -> Any:
    """The plain values of a pickle stream. Raises BadItem: damaged, or with an opcode that is not allowed."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return stack.pop()
            _step(opcode.name, argument, stack, memo)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise BadItem(file, f"its pickled attribute cannot be read without running it ({error})") from error
    raise BadItem(file, "its pickled attribute is cut off")


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    if name in _SKIPPED:
        return
    if name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _FRESH:
        stack.append(_FRESH[name]())
    elif name in _LITERALS:
        stack.append(argument)
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name in _TUPLES:
        stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
    elif name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name in ("APPEND", "APPENDS"):
        values = [stack.pop()] if name == "APPEND" else _since_mark(stack)
        stack[-1].extend(values)
    elif name in ("SETITEM", "SETITEMS"):
        flat = [stack.pop(-2), stack.pop()] if name == "SETITEM" else _since_mark(stack)
        stack[-1].update(zip(flat[::2], flat[1::2], strict=True))
    elif name == "GLOBAL":
        stack.append(Opaque(str(argument).replace(" ", ".")))
    elif name == "STACK_GLOBAL":
        attribute, module = stack.pop(), stack.pop()
        stack.append(Opaque(f"{module}.{attribute}"))
    elif name in ("REDUCE", "NEWOBJ"):
        arguments, called = stack.pop(), stack.pop()
        stack.append(Opaque(called.name, arguments))
    elif name == "BUILD":
        stack[-2].state = stack[-1]
        stack.pop()
    else:
        raise ValueError(f"opcode {name} is not allowed")


def _since_mark(stack: list[Any]) -> list[Any]:
    position = len(stack) - 1 - next(i for i, value in enumerate(reversed(stack)) if value is _MARK)
    values = stack[position + 1 :]
    del stack[position:]
    return values


def numbers(value: Any, file: str | Path) -> np.ndarray:
    """A label as an array: a number, a list of them, or a pickled NumPy scalar or array. Raises BadItem."""
    try:
        if isinstance(value, Opaque) and value.name.endswith(".scalar"):
            kind, content = value.arguments
            return np.frombuffer(content, _dtype(kind))[0]
        if isinstance(value, Opaque) and value.name.endswith("._reconstruct"):
            _, shape, kind, by_column, content = value.state
            return np.frombuffer(content, _dtype(kind)).reshape(shape, order="F" if by_column else "C")
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            return array
    except (ValueError, TypeError, AttributeError) as error:
        raise BadItem(file, f"its label is no number ({error})") from error
    raise BadItem(file, f"its label is {type(value).__name__}, expected a number or a list of numbers")


def _dtype(kind: Opaque) -> np.dtype[Any]:
    dtype = np.dtype(kind.arguments[0])
    if dtype.kind not in "biuf":
        raise ValueError(f"dtype {dtype}")
    return dtype
