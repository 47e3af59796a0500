"""What a function of arrays costs, counted in its own trace: nothing runs and no second copy of the model is kept.

A scanned body counts as often as it runs, of branches the dearest. Only products of matrices and convolutions are
counted, two operations per multiply-add.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from ramen_jax.model.architecture import Architecture


class Counted(NamedTuple):
    """What one evaluation takes.

    Attributes:
        flops: two per multiply-add.
        memory: bytes of the arrays alive at once, at the most, as if nothing were fused.
        passes: flops as a unit that multiplies bfloat16 does them, float32 products of the highest precision in six.
    """

    flops: float
    memory: float
    passes: float


def of_training(sizes: Architecture, encoder_RxE: np.ndarray, decoder_RxL: np.ndarray) -> float:
    """Of the blocks of a training step on rows with these segment ids (0: padding), by the algebra.

    A multiply-add is two, the backward pass twice the forward one, nothing is recomputed, and padding and pairs of
    tokens of different views count for nothing. What turns images into tokens and back is left out.
    """
    total = 0.0
    for width, depth, ids in (
        (sizes.embed_dim, sizes.depth, encoder_RxE),
        (sizes.decoder_embed_dim, sizes.decoder_depth, decoder_RxL),
    ):
        hidden = int(width * sizes.mlp_ratio)
        lengths = [np.bincount(row)[1:].astype(np.float64) for row in ids]
        tokens, pairs = (sum(float(np.sum(row**power)) for row in lengths) for power in (1, 2))
        total += depth * 3 * (2 * tokens * (4 * width**2 + 2 * width * hidden) + 4 * width * pairs)
    return total


def count(function: Callable[..., Any], *arguments: Any) -> Counted:
    """Of `function(*arguments)`; the arguments may be abstract."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    constants = sum(_bytes(variable) for variable in jaxpr.constvars)
    return Counted(_flops(jaxpr), constants + _memory(jaxpr), _flops(jaxpr, _passes))


def _passes(equation: Any) -> int:
    precision = equation.params.get("precision")
    highest = {jax.lax.Precision.HIGHEST: 6, jax.lax.Precision.HIGH: 3}
    wanted = precision if isinstance(precision, tuple) else (precision,)
    float32 = all(variable.aval.dtype == jnp.float32 for variable in equation.invars)
    return max(highest.get(each, 1) for each in wanted) if float32 else 1


def _flops(jaxpr: Jaxpr, weight: Callable[[Any], int] = lambda equation: 1) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            depth = math.prod(_shape(equation.invars[0])[axis] for axis in contracted)
            total += weight(equation) * 2.0 * depth * math.prod(_shape(equation.outvars[0]))
        elif name == "conv_general_dilated":
            kernel = _shape(equation.invars[1])
            outputs = kernel[parameters["dimension_numbers"].rhs_spec[0]]
            total += (
                weight(equation) * 2.0 * math.prod(_shape(equation.outvars[0])) * math.prod(kernel) / outputs
            )
        elif name == "cond":
            total += max(_flops(inner, weight) for inner in _inner(equation))
        else:
            times = parameters["length"] if name == "scan" else 1
            total += times * sum(_flops(inner, weight) for inner in _inner(equation))
    return total


def _memory(jaxpr: Jaxpr) -> float:
    """Peak of what is alive: the inputs throughout, every other array from its equation to its last use."""
    last_use = {}
    for place, equation in enumerate(jaxpr.eqns):
        for variable in equation.invars:
            if not isinstance(variable, Literal):
                last_use[variable] = place
    for variable in jaxpr.outvars:
        if not isinstance(variable, Literal):
            last_use[variable] = len(jaxpr.eqns)
    inputs = sum(_bytes(variable) for variable in jaxpr.invars)
    alive: dict[Any, float] = {}
    peak = 0.0
    for place, equation in enumerate(jaxpr.eqns):
        for variable in equation.outvars:
            alive[variable] = _bytes(variable)
        within = max((_memory(inner) for inner in _inner(equation)), default=0.0)
        peak = max(peak, sum(alive.values()) + within)
        for variable in [*equation.invars, *equation.outvars]:
            if not isinstance(variable, Literal) and last_use.get(variable, place) <= place:
                alive.pop(variable, None)
    return inputs + peak


def _inner(equation: Any) -> Iterator[Jaxpr]:
    """The functions inside an equation (a scan's body, a jitted call, both branches of a condition)."""
    for value in equation.params.values():
        for entry in value if isinstance(value, tuple | list) else (value,):
            if isinstance(entry, ClosedJaxpr):
                yield entry.jaxpr
            elif isinstance(entry, Jaxpr):
                yield entry


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _bytes(variable: Any) -> float:
    dtype = getattr(variable.aval, "dtype", None)  # a token of an effect has none
    return float(math.prod(_shape(variable)) * dtype.itemsize) if dtype is not None else 0.0
