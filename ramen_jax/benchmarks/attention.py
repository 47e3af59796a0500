"""`python -m ramen_jax.benchmarks.attention`: attention of packed rows beside all pairs and beside PyTorch.

The same queries, keys and values, in turns within one process, forward and with gradients:

- ours: the backend of this machine's devices, foreign segments left out;
- all pairs: the same without segments, what an unpacked row of that length costs;
- dense: XLA's plain attention with a mask, where its scores fit into memory;
- torch: `scaled_dot_product_attention` over all pairs, where PyTorch is installed.

Rows are a single view of a given length, or packed rows of the paper's corpora with the paper's draws. Seconds are
medians; processor seconds stand beside them, which other programs on the machine blur less.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ramen_jax import console
from ramen_jax.attention.attention import Attention, backend_for
from ramen_jax.config import paper_corpora
from ramen_jax.console import USAGE, UserError, close_names
from ramen_jax.earth.places import corpus_spec
from ramen_jax.recipe import REFERENCE
from ramen_jax.rows.plan import Plan, PlannedCorpus
from ramen_jax.rows.views import view_grid

EXAMPLES = """  python -m ramen_jax.benchmarks.attention
  python -m ramen_jax.benchmarks.attention --cases 3073 --rows 2 --heads 16
  python -m ramen_jax.benchmarks.attention --cases flairhub,mmearth,worldstrat"""

DENSE_SCORES = (
    1 << 28
)  # float32 scores beyond which the dense way is left out: 1 GB each for scores and weights
SAMPLES = 10_000  # of the pretended corpora
Way = Callable[[], Any]


def packed_segments(corpus: str, rows: int) -> np.ndarray:
    """Segment ids [rows, L] of the decoder's rows of a paper corpus, drawn as the paper draws."""
    entries = {entry.name: entry for entry in paper_corpora()}
    if corpus not in entries:
        raise UserError(f"--cases: {corpus!r} is no length; {close_names(corpus, entries)}", USAGE)
    spec = corpus_spec(corpus)
    gsds = tuple(float(gsd) for gsd in entries[corpus].target_gsds)
    plan = Plan([PlannedCorpus(spec, SAMPLES, gsds)], seed=0, rows_per_step=rows, recipe=REFERENCE)
    segments = np.zeros((rows, plan.capacity(corpus).decoder_length), np.int32)
    for ids, views in zip(segments, plan.rows(0), strict=True):
        lengths = [
            1 + len(view.modalities) * int(np.prod(view_grid(spec, view.target_gsd))) for view in views
        ]
        ids[: sum(lengths)] = np.repeat(np.arange(1, len(views) + 1), lengths)
    return segments


def useful_share(segments: np.ndarray) -> float:
    """Share of the pairs of a row whose tokens belong to one segment."""
    counts = [np.unique(ids, return_counts=True)[1] for ids in segments]
    return float(np.mean([np.sum((c / segments.shape[1]) ** 2) for c in counts]))


def ways(segments: np.ndarray, heads: int, width: int, dtype: str) -> Iterator[tuple[str, Way, Way]]:
    """(name, forward, forward and backward) of every way there is."""
    rng = np.random.default_rng(0)
    shape = (*segments.shape, heads, width)
    arrays = [rng.standard_normal(shape, np.float32) for _ in range(4)]
    q, k, v, grad = (jnp.asarray(a, dtype) for a in arrays)
    ours = Attention(backend_for(jax.devices()[0].platform))
    yield "ours", *_jax_ways(ours, q, k, v, grad, jnp.asarray(segments))
    yield "all pairs", *_jax_ways(ours, q, k, v, grad, None)
    if segments.shape[0] * heads * segments.shape[1] ** 2 <= DENSE_SCORES:
        yield "dense", *_jax_ways(Attention("dense"), q, k, v, grad, jnp.asarray(segments))
    try:
        import torch
    except ImportError:
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    theirs = [
        torch.from_numpy(a).to(device, getattr(torch, dtype)).transpose(1, 2).contiguous() for a in arrays
    ]
    yield "torch", *_torch_ways(torch, theirs)


def _jax_ways(
    attention: Attention, q: jax.Array, k: jax.Array, v: jax.Array, grad: jax.Array, segments: Any
) -> tuple[Way, Way]:
    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attention(q, k, v, segments)

    def both(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        out, pull = jax.vjp(forward, q, k, v)
        return out, pull(grad)

    once, twice = jax.jit(forward), jax.jit(both)
    return lambda: jax.block_until_ready(once(q, k, v)), lambda: jax.block_until_ready(twice(q, k, v))


def _torch_ways(torch: Any, arrays: list[Any]) -> tuple[Way, Way]:
    q, k, v = (a.requires_grad_() for a in arrays[:3])
    attend = torch.nn.functional.scaled_dot_product_attention
    wait = torch.cuda.synchronize if q.is_cuda else lambda: None

    def forward() -> None:
        with torch.no_grad():
            attend(q, k, v)
        wait()

    def both() -> None:
        torch.autograd.grad(attend(q, k, v), (q, k, v), arrays[3])
        wait()

    return forward, both


class Times(NamedTuple):
    """Seconds of one way, forward and with gradients: by the clock, and of all processors together."""

    forward: float
    both: float
    used_forward: float
    used_both: float


def measure(segments: np.ndarray, heads: int, width: int, dtype: str, turns: int) -> dict[str, Times]:
    """Medians over `turns` of every way."""
    found = list(ways(segments, heads, width, dtype))
    times: dict[str, list[Times]] = {name: [] for name, _, _ in found}
    for turn in range(-1, turns):  # the first turn compiles and is not counted
        for name, forward, both in found:
            (wall, used), (wall_both, used_both) = _clocked(forward), _clocked(both)
            if turn >= 0:
                times[name].append(Times(wall, wall_both, used, used_both))
    return {
        name: Times(*(statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in times.items()
    }


def _clocked(call: Way) -> tuple[float, float]:
    began, used = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - used


def run() -> int:
    """The command."""
    parser = console.parser("benchmarks.attention", "Attention of packed rows beside PyTorch's.", EXAMPLES)
    parser.add_argument(
        "--cases",
        default="3073,flairhub,mmearth",
        help="lengths of a single view, tokens, or corpora whose packed rows to take (3073,flairhub,mmearth)",
    )
    parser.add_argument("--rows", type=int, default=2, help="rows at a time (2)")
    parser.add_argument("--heads", type=int, default=4, help="heads (4; the base decoder has 16)")
    parser.add_argument("--width", type=int, default=32, help="of a head (32, as the base decoder's)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--turns", type=int, default=5, help="measurements of each way, in turns (5)")
    arguments = parser.parse_args()
    if min(arguments.rows, arguments.heads, arguments.width, arguments.turns) < 1:
        raise UserError("--rows, --heads, --width and --turns must be at least 1", USAGE)
    device = jax.devices()[0]
    print(f"{device.device_kind}, {arguments.dtype}, {arguments.heads} heads of {arguments.width}")
    for case in arguments.cases.split(","):
        if case.isdigit() and int(case) > 0:
            segments = np.ones((arguments.rows, int(case)), np.int32)
        else:
            segments = packed_segments(case, arguments.rows)
        figures = measure(segments, arguments.heads, arguments.width, arguments.dtype, arguments.turns)
        print(
            f"\n{case}: {arguments.rows} rows of {segments.shape[1]:,} tokens, "
            f"{useful_share(segments):.0%} of the pairs within a segment"
        )
        print(f"{'seconds':<12}{'forward':>16}{'with gradients':>18}{'ours faster by':>20}")
        ours = figures["ours"]
        for name, its in figures.items():
            forward = f"{its.forward:>8.3f} ({its.used_forward:5.2f})"
            both = f"{its.both:>9.3f} ({its.used_both:6.2f})"
            ratios = (
                f"{its.forward / ours.forward:11.2f} {its.both / ours.both:8.2f}" if its is not ours else ""
            )
            print(f"{name:<12}{forward}{both}{ratios}")
    print("\nin brackets: processor seconds")
    return 0


if __name__ == "__main__":
    console.main(run)
