"""SIGTERM asks a run to stop. It is noticed at once, by a thread, and acted upon where that is safe.

Before the first step (joining, preparing, compiling, restoring) nothing new is to be saved: the process says so and
ends, and so do the others. From the first step on, all agree between two steps, save, and end.

The exit status is then 0. Most launchers take any other for a failure, and kill the processes that still save; one that
must tell a stopped run from a complete one names another in RAMEN_JAX_STOPPED_STATUS.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from ramen_jax.parallel import leaving

EARLY = "stopped by SIGTERM before the first step, nothing new was to be saved; the same command goes on from there"
STATUS = "RAMEN_JAX_STOPPED_STATUS"


class Stop:
    """Whether this process has been asked to stop.

    Attributes:
        asked: set by SIGTERM.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._stepping = threading.Lock()  # held while it is decided who acts
        self._began = False

    def begin_steps(self) -> None:
        """From here on whoever makes the steps looks at `asked`."""
        with self._stepping:
            if not self.asked.is_set():
                self._began = True
                return
        threading.Event().wait()  # this process is ending

    def _ask(self) -> None:
        with self._stepping:
            self.asked.set()
            if self._began:
                return
        if _tell_others is not None:
            _tell_others()
        leaving.leave(status(), EARLY)


_current: Stop | None = None
_tell_others: Callable[[], None] | None = None


def tell_others_by(tell: Callable[[], None]) -> None:
    """How the others hear that this process stops before the first step, from now on."""
    global _tell_others
    _tell_others = tell


@contextlib.contextmanager
def listening() -> Iterator[Stop]:
    """SIGTERM sets `asked` while this block runs; a block inside gets the same Stop.

    Signals reach the main thread alone: in another one nothing is listened to.
    """
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield _current or Stop()
        return
    stop = _current = Stop()
    # Python runs its handlers between two instructions of the main thread, which may be compiling for minutes; this
    # pipe is written to at once.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(target=_listen, args=(reader, stop), daemon=True).start()
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)
        signal.set_wakeup_fd(before)
        os.close(writer)
        _current = None


def status() -> int:
    """What a run that was stopped ends with."""
    wanted = os.environ.get(STATUS, "")
    return int(wanted) if wanted.isdecimal() and int(wanted) < 256 else 0


def asked() -> bool:
    """Whether this process has been asked to stop."""
    return _current is not None and _current.asked.is_set()


def listen_again() -> None:
    """After a library has put its own handler of SIGTERM in the place of ours."""
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)


def _listen(reader: int, stop: Stop) -> None:
    while found := os.read(reader, 64):
        if signal.SIGTERM in found:
            stop._ask()
    os.close(reader)


def _forget() -> None:
    """A forked child has no such thread; what ends it must not ask its parent to stop."""
    if _current is not None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget)
