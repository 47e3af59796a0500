"""This process ends at once, whatever its threads wait for: what it holds for others is given back first."""

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

SECONDS = 10.0  # that giving back may take: a file system may hang

_held: list[Callable[[], None]] = []
_leaving = threading.Lock()  # taken once, never released: one thread leaves, and speaks


@contextlib.contextmanager
def giving_back(give_back: Callable[[], None]) -> Iterator[None]:
    """`leave` calls `give_back` if it comes while this block runs."""
    _held.append(give_back)
    try:
        yield
    finally:
        _held.remove(give_back)


def say(sentence: str) -> None:
    """On stderr, at once."""
    print(sentence, file=sys.stderr, flush=True)


def leave(code: int, sentence: str) -> NoReturn:
    """Says the sentence and ends the process with this status; an orderly end would wait for who never comes."""
    _leaving.acquire()
    say(sentence)
    returning = threading.Thread(target=_give_all_back, daemon=True)
    returning.start()
    returning.join(SECONDS)
    for worker in multiprocessing.active_children():
        worker.terminate()
    sys.stdout.flush()
    os._exit(code)


def _give_all_back() -> None:
    for give_back in reversed(_held):
        with contextlib.suppress(Exception):
            give_back()
