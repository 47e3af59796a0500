"""Memory of the process."""

import ctypes
import platform


def return_freed_memory() -> None:
    """Gives the compiler's freed memory back to the system, where the C library (glibc) would keep it."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
