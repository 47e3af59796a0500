"""Samples that could not be used: listed with their reasons, and a limit on their share.

The limit holds for the whole run and for the newest samples: a disk that begins to fail late would hide behind a long
good past.
"""

import json
import math
from collections import deque
from pathlib import Path

import jax

from ramen_jax.rows.pipeline import StepBatch

FILES = "bad_samples*.jsonl"  # one of every process that met any
FREE = 3  # so many bad samples never stop a run, however few were seen
RECENT = 256  # samples that are looked at apart
SIGMAS = (
    5.0  # what chance may add among them: a run at the very limit would stop by it once in a million windows
)


class BadSamples:
    """Counts samples seen and left out, across interruptions.

    Args:
        path: the list, one JSON line per sample left out; of this process.
        most: share of bad samples above which the run must stop.
        saved: what `saved()` gave to the checkpoint that the run goes on from.
    """

    def __init__(self, path: Path, most: float, saved: dict[str, int]) -> None:
        self.path, self.most = path, most
        self.seen, self.bad = saved.get("seen", 0), saved.get("bad", 0)
        self._recent: deque[tuple[int, int]] = deque()  # (seen, bad) of the newest batches

    def saved(self) -> dict[str, int]:
        return {"seen": self.seen, "bad": self.bad}

    def listed(self, batch: StepBatch) -> tuple[int, int]:
        """Lists the bad samples of this process's batch. Returns (seen, bad)."""
        if batch.bad:
            with self.path.open("a") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in batch.bad)
        return len(batch.ids) + len(batch.bad), len(batch.bad)

    def count(self, seen: int, bad: int) -> str:
        """Counts the samples of a step, of all processes. Returns why the run must stop, or ""."""
        self.seen += seen
        self._recent.append((seen, bad))
        while sum(seen for seen, _ in self._recent) - self._recent[0][0] >= RECENT:
            self._recent.popleft()
        if not bad:
            return ""
        self.bad += bad
        recent, recent_bad = (sum(column) for column in zip(*self._recent, strict=True))
        expected = self.most * recent
        if self.bad > FREE and self.bad > self.most * self.seen:
            what = _share(self.bad, self.seen, "")
        elif recent_bad > expected + SIGMAS * math.sqrt(expected) + FREE:
            what = f"{_share(recent_bad, recent, 'newest ')} ({self.bad} of {self.seen} in all)"
        else:
            return ""
        return (
            f"{what} could not be used, more than config.data.max_bad_share = {self.most:.1%}; they are listed with "
            f"their reasons in {self._files()}"
        )

    def _files(self) -> str:
        alone = jax.process_count() == 1
        return str(self.path) if alone else str(self.path.with_name(FILES))

    def summary(self) -> str:
        """A sentence for the end of a run, "" when no sample was left out."""
        if not self.bad:
            return ""
        share = _share(self.bad, self.seen, "")
        return f"{share} could not be used and were left out; they are listed in {self._files()}"


def _share(bad: int, seen: int, which: str) -> str:
    return f"{bad} of {seen} {which}samples ({bad / seen:.1%})"
