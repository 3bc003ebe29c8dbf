"""Ctrl-C, SIGTERM and SIGHUP end a command in order and without a traceback: exit status 130, 143, 129.

The first signal raises `Stopped` in the main thread, so that `with` and `finally` blocks end what was started. The
second one, or a clean-up that takes too long, ends the process on the spot. Nothing is left behind then either: what a
command starts is `Watched`, and so ended by a process of its own once this one is gone.

Signal handlers run on the main thread. They take no lock and print nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 15.0  # seconds for the clean-up
_AGAIN = 0.01
_SHOW_CURSOR = b"\x1b[?25h"


class Stopped(BaseException):
    """A signal asks the command to end. No `Exception`: nothing on the way may take it for an error and go on."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """For the main thread, around a whole command. A signal that is ignored (nohup, `&` in a script) stays ignored."""
    first: list[int] = []

    def stop(signum: int, _: FrameType | None) -> None:
        if first:
            _leave(first[0])
        first.append(signum)
        patience = threading.Timer(_PATIENCE, _leave, (signum,))
        patience.daemon = True
        patience.start()
        raise Stopped(signum)

    def stop_again(_signum: int, _frame: FrameType | None) -> None:
        raise Stopped(first[0])

    def unraisable(about: UnraisableHookArgs) -> None:
        # The signal came while a finalizer or a callback of the interpreter ran, where an exception goes nowhere.
        if issubclass(about.exc_type, Stopped):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        else:
            sys.__unraisablehook__(about)

    for signum in _SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, stop)
    signal.signal(signal.SIGALRM, stop_again)
    sys.unraisablehook = unraisable
    try:
        yield
    except Stopped as stopped:
        # Not sys.exit(): while the interpreter ends, it puts the default handlers back, and a further Ctrl-C would end
        # us by signal.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        _leave(stopped.signum)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Signals that come within are delivered behind it. For a few lines that must be done whole or not at all."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _leave(signum: int) -> NoReturn:
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, _SHOW_CURSOR)  # the progress display may have hidden it
    os._exit(128 + signum)
