"""This process ends at once, whatever its threads wait for: what it holds for others is given back first."""

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import signal
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


def hold_aborts() -> None:
    """Gives this process six seconds to say why it ends, when a library aborts it.

    JAX aborts every process, with a dump that names nobody, as soon as it misses process 0. Nothing may run in the
    thread that aborts but what is safe inside a signal handler: so the handler is the C library's `sleep` itself, which
    is called with the number of the signal, 6. Other threads go on meanwhile.
    """
    if sys.platform != "linux" or faulthandler.is_enabled():
        return
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


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
