"""Samples that could not be used: listed with their reasons, and a limit on their share."""

import json
from pathlib import Path

from ramen_jax.rows.pipeline import StepBatch

FREE = 3  # so many bad samples never stop a run, however few were seen


class BadSamples:
    """Counts samples seen and left out, across interruptions.

    Args:
        path: the list, one JSON line per sample left out.
        most: share of bad samples above which the run must stop.
        saved: what `saved()` gave to the checkpoint that the run goes on from.
    """

    def __init__(self, path: Path, most: float, saved: dict[str, int]) -> None:
        self.path, self.most = path, most
        self.seen, self.bad = saved.get("seen", 0), saved.get("bad", 0)

    def saved(self) -> dict[str, int]:
        return {"seen": self.seen, "bad": self.bad}

    def count(self, batch: StepBatch) -> str:
        """Counts a batch and lists its bad samples. Returns why the run must stop, or ""."""
        self.seen += len(batch.ids) + len(batch.bad)
        if not batch.bad:
            return ""
        self.bad += len(batch.bad)
        with self.path.open("a") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in batch.bad)
        share = self.bad / self.seen
        if self.bad <= FREE or share <= self.most:
            return ""
        return (
            f"{self.bad} of {self.seen} samples ({share:.1%}) could not be used, more than "
            f"config.data.max_bad_share = {self.most:.1%}; they are listed with their reasons in {self.path}"
        )
