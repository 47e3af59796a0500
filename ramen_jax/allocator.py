"""How this process asks the system for memory.

A compiled step on a CPU takes its temporary numbers as one piece, and gives it back when it is done; a reader's samples
live for milliseconds. Glibc returns such pieces to the system at once, and the next one comes back page by page, each
zeroed by the kernel first: up to a third of the time of a base model's step. What was asked for once is kept instead.

This module imports nothing but the standard library: a help text is printed before anything else is loaded.
"""

import ctypes
import sys

# Names and numbers of <malloc.h>.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep_memory() -> None:
    """From now on this process keeps what it frees, for itself (glibc; elsewhere nothing happens).

    To be called before threads allocate: only the first arena can grow without the system's mappings. The same from
    outside: `MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=18446744073709551615`.
    """
    if adjustable():
        c_library = ctypes.CDLL(None)
        c_library.mallopt(ARENA_MAX, 1)
        c_library.mallopt(MMAP_MAX, 0)
        c_library.mallopt(TRIM_THRESHOLD, -1)  # never


def return_memory() -> None:
    """What is free now goes back to the system once, as after compiling (glibc; elsewhere nothing happens)."""
    if adjustable():
        ctypes.CDLL(None).malloc_trim(0)


def adjustable() -> bool:
    """Whether the C library of this process has `mallopt`, as glibc does."""
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")
