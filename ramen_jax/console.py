"""How the commands speak to people: one-line errors, exit statuses, progress.

Every command line ends in

    if __name__ == "__main__":
        console.main(run)

where `run()` parses `sys.argv` and does the work. A wrong input raises `UserError` with one sentence that names
the file or key, what was found, what was expected and the nearest valid choice; the person sees that sentence and
no traceback unless `--debug` was given. Whatever else is raised becomes one line too, which says where it happened.

This module imports neither jax nor numpy: it must cost nothing to print a help text.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from ramen_jax import allocator

USAGE = 2
DATA = 1
INTERRUPTED = 130

LONGEST = 4000  # characters of an error: an input may be of any size
PLAIN_LINE_EVERY_SECONDS = 10.0


class UserError(ValueError):
    """A wrong input, told in one sentence. `code` is the exit status: 2 for usage, 1 for data."""

    def __init__(self, message: str, code: int = DATA) -> None:
        super().__init__(message)
        self.code = code


def fail(message: str, code: int = DATA) -> NoReturn:
    """Prints `error: message` on stderr and exits with `code`."""
    if len(message) > LONGEST:
        message = f"{message[:LONGEST]} ... ({len(message) - LONGEST:,} more characters)"
    # A path may hold bytes that are no text.
    print(f"error: {message}".encode(errors="backslashreplace").decode(), file=sys.stderr)
    raise SystemExit(code)


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {self.prog} --help)", USAGE)


def parser(command: str, description: str, examples: str = "") -> argparse.ArgumentParser:
    """An argument parser for `python -m ramen_jax.COMMAND`, with `--debug` and the examples printed as written."""
    result = _Parser(
        prog=f"python -m ramen_jax.{command}",
        description=description,
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return result


def main(run: Callable[[], int | None]) -> NoReturn:
    """Runs a command and exits: with the status it returns (None is 0), or as the module's docstring says."""
    try:
        status = run()
    except UserError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        fail(str(error), error.code)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output (`| head`) went away: nothing is left to say, and nobody to say it to.
        sys.stderr.close()
        raise SystemExit(0) from None
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        fail(unexpected(error), DATA)
    raise SystemExit(status or 0)


def unexpected(error: Exception) -> str:
    """One line about an error that nobody foresaw: what, on which file, and where in this package."""
    package = Path(__file__).parent
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        frame
        for frame in frames
        if Path(frame.filename).is_relative_to(package) and frame.filename != __file__
    ]
    where = "--debug shows the traceback"
    for frame in (ours or frames)[-1:]:
        file = Path(frame.filename)
        name = file.relative_to(package.parent) if ours else Path(file.name)
        where = f"in {'.'.join(name.with_suffix('').parts)}:{frame.lineno}; {where}"
    where = f" ({where})"
    if isinstance(error, OSError) and error.strerror:
        files = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{files + ': ' if files else ''}{error.strerror}{where}"
    told = one_line(str(error))
    if isinstance(error, MemoryError):
        return f"out of memory{': ' if told else ''}{told}{where}"
    return f"unexpected {type(error).__name__}{': ' if told else ''}{told}{where}"


def one_line(text: str, longest: int = 500) -> str:
    """The first line that says something, shortened."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= longest else f"{line[:longest]} ..."


def call(module: str, *arguments: Any) -> Any:
    """`module.run(*arguments)`, imported only now: a command line is read, and its help printed, without JAX."""
    allocator.keep_memory()
    return importlib.import_module(module).run(*arguments)


def close_names(name: str, choices: Iterable[str], limit: int = 3) -> str:
    """`did you mean "a" or "b"?`, or the list of choices when none is close. Meant to end an error sentence."""
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(name), names, n=limit, cutoff=0.6)
    if not close:
        # A word inside a longer name is close too: "sentinel2" for "sentinel2_l2a".
        close = [other for other in names if name and (name.lower() in other.lower())][:limit]
    if close:
        return "did you mean " + " or ".join(f'"{other}"' for other in close) + "?"
    if not names:
        return "there is none to choose from"
    shown = ", ".join(sorted(names)[:20])
    return f"choose from: {shown}" + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _figures(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


class Progress:
    """Progress of `total` units of work; see `progress`."""

    def __init__(self, total: int, label: str, unit: str, start: int, terminal: bool) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.done = self.start = start
        self.began = self._printed = time.monotonic()
        self._shown = -1  # units done when the last plain line was printed
        self._info = ""
        self._bar: Any = _bar(total, label, unit, start) if terminal else None
        self._task: Any = self._bar.task_ids[0] if self._bar is not None else None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._shown != self.done:
            self._print_line()

    @property
    def rate(self) -> float:
        """Units per second since the start of this run."""
        return (self.done - self.start) / max(time.monotonic() - self.began, 1e-9)

    def advance(self, units: int = 1, info: str = "") -> None:
        """Counts `units` as done. `info` is shown at the end of the line, for example `loss 0.93`."""
        self.done += units
        self._info = info or self._info
        if self._bar is not None:
            self._bar.update(self._task, advance=units, rate=_figures(self.rate), info=self._info)
        elif time.monotonic() - self._printed >= PLAIN_LINE_EVERY_SECONDS:
            self._print_line()

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _print_line(self) -> None:
        self._printed, self._shown = time.monotonic(), self.done
        elapsed, rate = self._printed - self.began, self.rate
        if self.done >= self.total:
            end = f"took {duration(elapsed)}"
        elif self.done > self.start:
            end = f"{duration((self.total - self.done) / rate)} left"
        else:
            end = f"{duration(elapsed)} so far"
        parts = [
            f"{self.label}: {self.done:,}/{self.total:,} {self.unit}",
            f"{_figures(rate)} {self.unit}/s",
            end,
        ]
        print(" · ".join(parts + ([self._info] if self._info else [])), file=sys.stderr, flush=True)


def _bar(total: int, label: str, unit: str, start: int) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]} · {task.fields[rate]}/s ·"),
        TimeElapsedColumn(),
        TextColumn("· left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}"),
        console=Console(stderr=True),
    )
    bar.add_task(label, total=total, completed=start, unit=unit, rate="–", info="")
    return bar


def progress(total: int, label: str, unit: str = "steps", start: int = 0) -> Progress:
    """A progress bar on a terminal, plain lines otherwise (every 10 seconds, and a last one), on stderr.

        with progress(len(files), "reading", "files") as bar:
            for file in files:
                ...
                bar.advance(info=file.name)

    `start` counts as done already (a resumed run) and stays out of the rate and the time left.
    """
    return Progress(total, label, unit, start, sys.stderr.isatty())
