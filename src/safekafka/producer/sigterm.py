"""SIGTERM: what is pending is delivered before the process ends, and the process still ends by that signal.

Python runs a signal handler on the main thread, on top of whatever that was doing. So `_on_sigterm` only tells each
producer's thread to deliver and end, and waits for no lock without a bound: its holder may be the very code it
interrupted. The threads do the rest; the last to end sends the signal again, with the default effect.

One thread more sees to it that the process ends although a callback of the program hangs one of them. It is started by
`_thread`, since `threading.Thread.start()` takes locks that the interrupted code may hold.

Nothing is set up by the import, nor where the program has a handler of its own; one that it sets later takes the place
of ours. A forked child starts with an empty list: there the signal has its default effect until it uses a producer.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Sized
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from safekafka.observe import Event, emit

if TYPE_CHECKING:
    from safekafka.producer.outcomes import Unobserved

MARGIN_SECONDS = 5.0  # beyond the time for delivery: for the reports of what was not delivered
_TELL_SECONDS = 1.0  # for the last log lines; their sink may wait for a lock that a blocked send() holds
_KILL_SECONDS = 0.2


class Way(Protocol):
    """What a producer's way to Kafka has to have for us."""

    ending_by_signal: bool

    @property
    def ended(self) -> bool: ...
    @property
    def failures(self) -> Unobserved: ...
    def begin_close(self, timeout: float) -> None: ...


class _Process:
    """One process's producers. Each step on `live` is atomic, so no lock is needed."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.live: dict[int, tuple[weakref.ref[Way], float]] = {}
        self.ending = False  # the signal came
        self.producers = 0  # how many were live then
        self.all_ended = _thread.allocate_lock()  # a bell: held while silent
        self.all_ended.acquire()

    def ways(self) -> list[tuple[Way, float]]:
        return [(way, seconds) for ref, seconds in list(self.live.values()) if (way := ref()) is not None]


_process = _Process()
_libc_signal: Callable[[int, int], object] | None = None


def watch(way: Way, seconds: float) -> None:
    """From now on SIGTERM gives this way `seconds` to deliver. Any thread; only the main one can set up the handler."""
    process = _process
    process.live[id(way)] = (weakref.ref(way), seconds)
    if way.ended:  # too late; its thread may have called ended() already
        process.live.pop(id(way), None)
        return
    if process.ending:
        _begin_end(way, seconds)
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        _load_libc()
        with contextlib.suppress(ValueError):  # the main thread of a sub-interpreter
            signal.signal(signal.SIGTERM, _on_sigterm)


def ended(way: Way) -> None:
    """The last thing a way's thread does. Does not return if it was the last one the signal waited for."""
    process = _process
    if process.ending:
        _tell_unobserved(way)
    watched = process.live.pop(id(way), None) is not None  # not before that was told: the others don't wait for us
    if watched and process.ending and not process.ways():
        with contextlib.suppress(RuntimeError):  # another one was the last as well
            process.all_ended.release()
        _tell_end(process)
        _end_process()


def is_ours(handler: object) -> bool:
    return handler is _on_sigterm


# ---- the signal handler


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    process = _process
    if process.pid != os.getpid():  # forked without Python's knowledge, or just now
        _act_as_default()
        return
    if process.ending:
        return
    process.ending = True  # before the look at the list: who ends after it sees this, who ended before is not in it
    ways = process.ways()
    if not ways:
        process.ending = False
        _act_as_default()
        return
    process.producers = len(ways)
    seconds = max(seconds for _, seconds in ways)
    with contextlib.suppress(RuntimeError):  # no thread to be had: the producers' own will do
        _thread.start_new_thread(_end_in_time, (process, seconds + MARGIN_SECONDS))
    for way, its_seconds in ways:
        _begin_end(way, its_seconds)


def _begin_end(way: Way, seconds: float) -> None:
    way.ending_by_signal = True
    way.begin_close(seconds)


def _act_as_default() -> None:
    """As if we were not here. Returns where the signal has no effect: process 1 of a container."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, _on_sigterm)


# ---- threads


def _end_in_time(process: _Process, seconds: float) -> None:
    """On a thread of its own: ends the process although a producer's thread hangs."""
    if process.all_ended.acquire(timeout=seconds):
        time.sleep(_TELL_SECONDS)  # for the thread that rang: it tells and ends the process itself
    else:
        told = _thread.allocate_lock()
        told.acquire()

        def tell() -> None:
            for way, _ in process.ways():
                _tell_unobserved(way)
            _tell_end(process)
            told.release()

        with contextlib.suppress(RuntimeError):
            _thread.start_new_thread(tell, ())
            told.acquire(timeout=_TELL_SECONDS)
    _end_process()


def _tell_unobserved(way: Way) -> None:
    """Nobody will call close() any more to be told."""
    if records := way.failures.count:
        emit(Event.UNDELIVERED_AT_EXIT, records=records)


def _tell_end(process: _Process) -> None:
    if hanging := [way for way, _ in process.ways()]:
        pending = sum(len(way) for way in hanging if isinstance(way, Sized))
        emit(Event.CLOSE_TIMED_OUT, producers=len(hanging), pending=pending, reason="a callback does not return")
    emit(Event.ENDED_BY_SIGNAL, signal="SIGTERM", producers=process.producers)


def _end_process() -> None:
    if _libc_signal is not None:
        with contextlib.suppress(Exception):
            _libc_signal(signal.SIGTERM, 0)  # SIG_DFL. signal.signal() works on the main thread only
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_KILL_SECONDS)
    os._exit(128 + signal.SIGTERM)  # the signal has no effect on process 1 of a container


def _load_libc() -> None:
    """In advance: nothing is imported in a process that ends."""
    global _libc_signal
    if _libc_signal is None:
        with contextlib.suppress(Exception):  # a Python without ctypes
            import ctypes

            function = ctypes.CDLL(None).signal
            function.argtypes, function.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
            _libc_signal = function


def _in_forked_child() -> None:
    global _process
    _process = _Process()


os.register_at_fork(after_in_child=_in_forked_child)
