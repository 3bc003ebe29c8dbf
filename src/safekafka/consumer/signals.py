"""SIGTERM and SIGINT while `run()` is on the main thread: the first stops the consumer in order, the second acts as if
we were not here.

Runs may overlap in any way, as those of two iterators do: the first to begin puts our handler in the place of the
program's, the last to end puts that one back. What the program sets meanwhile stays.

Thread: the main one only.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from safekafka.producer import sigterm

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_stops: list[Callable[[], None]] = []  # of the runs under way
_placed: dict[signal.Signals, _First] = {}  # in the place of the program's handlers


class _First:
    """A handler of ours. The program may have one of its own that calls this one, also when the runs are over."""

    def __init__(self, before: Any) -> None:
        self.before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        stops = list(_stops)
        _restore()
        for stop in stops:
            stop()
        if not callable(self.before):
            if not stops:  # ours could not be taken away: another thread's end, or a handler that calls it
                signal.signal(number, self.before)
                signal.raise_signal(number)
        elif not stops or not (self.before is signal.default_int_handler or sigterm.is_ours(self.before)):
            self.before(number, frame)  # the application's own


@contextlib.contextmanager
def stop_on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Only the main thread can have signal handlers; elsewhere this does nothing. A signal that the program ignores
    stays ignored. A signal stops all runs that are under way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _stops.append(stop)
    try:
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if before not in (None, signal.SIG_IGN, _placed.get(number)):
                _placed[number] = _First(before)
                signal.signal(number, _placed[number])
        yield
    finally:
        _stops.remove(stop)
        if not _stops and threading.current_thread() is threading.main_thread():
            _restore()


def _restore() -> None:
    for number, first in list(_placed.items()):
        now: object = signal.getsignal(number)
        if now is first:
            signal.signal(number, first.before)
    _placed.clear()
