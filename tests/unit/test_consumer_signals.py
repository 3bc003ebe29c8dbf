"""C6: whose signal handlers are in place, before, while and after a consumer runs."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from safekafka.consumer.signals import stop_on_signal

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def present() -> list[Any]:
    return [signal.getsignal(number) for number in SIGNALS]


def no_handler(_: int, __: FrameType | None) -> None:
    pytest.fail("called")


def test_C6_the_programs_handlers_are_in_place_again_however_the_run_ends() -> None:
    for number in SIGNALS:
        signal.signal(number, no_handler)
    with stop_on_signal(lambda: None):
        assert no_handler not in present()
    assert present() == [no_handler] * 2
    with pytest.raises(KeyError), stop_on_signal(lambda: None):
        raise KeyError
    assert present() == [no_handler] * 2


@pytest.mark.parametrize("number", SIGNALS)
def test_C6_the_first_signal_stops_and_is_told_to_the_program_and_the_second_is_the_programs(
    number: signal.Signals,
) -> None:
    heard: list[str] = []
    signal.signal(number, lambda *_: heard.append("program"))
    with stop_on_signal(lambda: heard.append("stop")):
        signal.raise_signal(number)
        assert heard == ["stop", "program"]
        signal.raise_signal(number)
        assert heard == ["stop", "program", "program"]


def test_C6_a_first_interrupt_raises_nothing_and_the_second_does() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stopped: list[bool] = []
    with stop_on_signal(lambda: stopped.append(True)):
        signal.raise_signal(signal.SIGINT)
        assert stopped == [True]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_C6_a_signal_that_the_program_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_on_signal(lambda: pytest.fail("stopped")):
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_C6_on_another_thread_no_handler_is_touched() -> None:
    before, inside = present(), []

    def run() -> None:
        with stop_on_signal(lambda: None):
            inside.append(present())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == [before]


def test_C6_runs_that_overlap_in_any_way_are_all_stopped_and_leave_the_programs_handlers() -> None:
    for number in SIGNALS:
        signal.signal(number, no_handler)
    stopped: list[str] = []
    one, two = stop_on_signal(lambda: stopped.append("one")), stop_on_signal(lambda: stopped.append("two"))
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert no_handler not in present()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # by the program, meanwhile
    two.__exit__(None, None, None)
    assert present() == [no_handler, signal.SIG_IGN]

    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    with stop_on_signal(lambda: stopped.append("one")), stop_on_signal(lambda: stopped.append("two")):
        signal.raise_signal(signal.SIGTERM)
        assert stopped == ["one", "two"]
        assert heard == [signal.SIGTERM]
        with stop_on_signal(lambda: stopped.append("three")):  # one that begins behind the signal
            signal.raise_signal(signal.SIGTERM)
            assert stopped == ["one", "two", "one", "two", "three"]


def test_C6_a_handler_of_the_program_that_calls_ours_may_outlive_the_run() -> None:
    heard: list[str] = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append("first"))
    for _ in range(2):
        with stop_on_signal(lambda: heard.append("stop")):
            ours: Any = signal.getsignal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, lambda *told, ours=ours: (heard.append("second"), ours(*told)))
    signal.raise_signal(signal.SIGTERM)
    assert heard == ["second", "second", "first"]


def test_C6_a_run_that_ends_on_another_thread_swallows_no_signal() -> None:
    """As that of an iterator which is let go there."""
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    run = stop_on_signal(lambda: pytest.fail("stopped"))
    run.__enter__()
    thread = threading.Thread(target=run.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM]
    signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM] * 2


def test_C6_a_handler_of_the_program_that_calls_ours_behind_the_run_has_the_default_effect() -> None:
    program = """
import signal
from safekafka.consumer.signals import stop_on_signal
with stop_on_signal(lambda: None):
    ours = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *told: ours(*told))
signal.raise_signal(signal.SIGTERM)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert ended.returncode == -signal.SIGTERM, ended.stderr
