"""A profile of some steps, for XProf, TensorBoard or Perfetto."""

from pathlib import Path
from typing import Any

import jax

from ramen_jax.console import USAGE, UserError


class Profile:
    """Writes a trace of the steps `first:end` into {folder}/profile; "" profiles nothing.

    Raises:
        UserError: not of that form.
    """

    def __init__(self, steps: str, folder: Path) -> None:
        self._folder = folder / "profile"
        self._first, self._end = parse(steps)

    def before(self, step: int) -> None:
        if step == self._first:
            jax.profiler.start_trace(self._folder)

    def after(self, step: int, result: Any) -> None:
        """`step` steps are dispatched; waits for `result` of the last one profiled."""
        if step == self._end:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()


def require_within(steps: str, end: int) -> None:
    """UserError where steps to be profiled lie beyond the last of a run, or are not of the form."""
    last = parse(steps)[1]
    if last > end:
        raise UserError(
            f"config.logging.profile_steps is {steps!r}, but the run ends after step {end}; "
            f"expected FIRST:END with END at most {end}",
            USAGE,
        )


def parse(steps: str) -> tuple[int, int]:
    """(first, end) of "20:25"; (-1, -1) of ""."""
    if not steps:
        return -1, -1
    first, colon, end = steps.partition(":")
    if not (colon and first.isdigit() and end.isdigit() and int(first) < int(end)):
        raise UserError(
            f"config.logging.profile_steps is {steps!r}, expected two steps FIRST:END, the first below "
            "the second, e.g. 20:25",
            USAGE,
        )
    return int(first), int(end)
