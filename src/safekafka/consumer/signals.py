"""SIGTERM and SIGINT while `run()` is on the main thread: the first stops the consumer in order, the second acts as if
we were not here."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from safekafka.producer import sigterm

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def stop_on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Only the main thread can have signal handlers; elsewhere this does nothing. A signal that the program ignores
    stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)

    def first(number: int, frame: FrameType | None) -> None:
        restore()
        stop()
        handler = before[signal.Signals(number)]
        if callable(handler) and handler is not signal.default_int_handler and not sigterm.is_ours(handler):
            handler(number, frame)  # the application's own

    for number, handler in before.items():
        if handler is not None and handler is not signal.SIG_IGN:
            signal.signal(number, first)
    try:
        yield
    finally:
        restore()
