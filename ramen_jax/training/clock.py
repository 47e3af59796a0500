"""Where the time of a training goes, how much it gets done, and how much of the hardware that uses."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax

from ramen_jax.parallel.chips import peak_flops

Batch = TypeVar("Batch")

WARMING_STEPS = 2  # the first steps of a process fill queues: they stay out of the rates
# "start": compiling and restoring; "lost": steps that were done, but not saved before the process ended
KINDS = ("step", "data", "save", "evaluation", "start", "lost")


class Clock:
    """Time and throughput of a training, across interruptions.

    Args:
        devices, kind: how many of the training's devices there are and what JAX calls them.
        saved: what `saved()` of an earlier process gave.
        began: `time.monotonic()` when this process began to prepare.
        window: steps that rates are taken over.

    Attributes:
        seconds: by what they went into, one of KINDS.
        core_seconds: devices x seconds of steps, by device kind.
    """

    def __init__(
        self,
        devices: int,
        kind: str,
        saved: Mapping[str, Any] | None = None,
        began: float | None = None,
        window: int = 50,
    ) -> None:
        self.devices, self.kind = devices, kind
        self.peak = peak_flops(kind)
        self.core_seconds: dict[str, float] = dict((saved or {}).get("core_seconds", {}))
        self.seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0) | dict((saved or {}).get("seconds", {}))
        self._ticks = 0
        self._last = time.monotonic() if began is None else began
        self._waited = 0.0
        self._window: deque[tuple[float, ...]] = deque(maxlen=window)

    def saved(self) -> dict[str, Any]:
        """What the checkpoint keeps."""
        return {"core_seconds": dict(self.core_seconds), "seconds": dict(self.seconds)}

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; the time that each of them takes to arrive counts as waiting for data."""
        arriving = iter(batches)
        while True:
            began = time.monotonic()
            batch = next(arriving, None)
            self._waited += time.monotonic() - began
            if batch is None:
                return
            yield batch

    def tick(self, views: float, tokens: float, padded: float, flops: float = 0.0) -> float:
        """Ends a step on `views` views, `tokens` real tokens, `padded` including padding. Returns its seconds."""
        seconds = self._since_last()
        waited = min(self._waited, seconds)
        self._waited = 0.0
        self.seconds["data"] += waited
        self.seconds["step"] += seconds - waited
        self.core_seconds[self.kind] = self.core_seconds.get(self.kind, 0.0) + seconds * self.devices
        self._ticks += 1
        if self._ticks > WARMING_STEPS:
            self._window.append((seconds, views, tokens, padded, waited, flops))
        return seconds

    def pause(self, kind: str) -> float:
        """What happened since the last tick was no step but `kind`. Returns its seconds."""
        seconds = self._since_last()
        self.seconds[kind] += seconds
        self._waited = 0.0
        return seconds

    def rates(self) -> dict[str, float]:
        """Of the last steps, empty at first.

        samples, real tokens and tokens with padding per second, the real ones per device too; seconds per step;
        `data_wait_share`: of that time, how much the host waited for its next batch (a device still busy with the step
        before loses less); `tflops_per_device` of the model's blocks and, where the peak of the device is known, the
        `mfu` that this is; `goodput`: the share of steps in all the seconds of the run.
        """
        seconds, *sums = (
            (sum(column) for column in zip(*self._window, strict=True)) if self._window else (0.0,)
        )
        if not seconds:
            return {}
        views, tokens, padded, waited, flops = sums
        rates = {
            "samples_per_second": views / seconds,
            "tokens_per_second": tokens / seconds,
            "padded_tokens_per_second": padded / seconds,
            "tokens_per_second_per_device": tokens / seconds / self.devices,
            "step_seconds": seconds / len(self._window),
            "data_wait_share": waited / seconds,
            "goodput": self.goodput(),
        }
        if flops:
            rates["tflops_per_device"] = flops / seconds / self.devices / 1e12
        if flops and self.peak:
            rates["mfu"] = flops / seconds / self.devices / self.peak
        return rates

    def goodput(self) -> float:
        """The share of steps that count in all the time since the run began, that between its processes apart."""
        return self.seconds["step"] / max(sum(self.seconds.values()), 1e-9)

    def line(self, loss: float) -> str:
        """`loss 0.93 · 41 samples/s · 30,000 tokens/s (97 % real) · 38% MFU`; the progress bar adds the time left."""
        rates = self.rates()
        parts = [f"loss {loss:.5g}"]
        if rates:
            real = rates["tokens_per_second"] / max(rates["padded_tokens_per_second"], 1e-9)
            parts.append(f"{rates['samples_per_second']:.3g} samples/s")
            parts.append(f"{rates['tokens_per_second']:,.0f} tokens/s ({real:.0%} real)")
        if "mfu" in rates:
            parts.append(f"{rates['mfu']:.0%} MFU")
        return " · ".join(parts)

    def summary(self) -> str:
        """`time: 91% steps, 2% waiting for data, ...; 3 compilations in this process`."""
        total = max(sum(self.seconds.values()), 1e-9)
        names = {
            "step": "steps",
            "data": "waiting for data",
            "save": "saving",
            "evaluation": "evaluation",
            "start": "compiling and restoring",
            "lost": "steps lost before they were saved",
        }
        shares = [
            f"{self.seconds[kind] / total:.0%} {name}"
            for kind, name in names.items()
            if self.seconds[kind] > 0
        ]
        return f"time: {', '.join(shares)}; {compilations()} compilations in this process"

    def _since_last(self) -> float:
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        return seconds


_compiled = [0]


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    _compiled[0] += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_listen)


def compilations() -> int:
    """Programs compiled in this process since this module was imported; those found in the cache count too."""
    return _compiled[0]
