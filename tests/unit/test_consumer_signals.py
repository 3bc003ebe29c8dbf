"""C6: whose signal handlers are in place, before, while and after a consumer runs."""

from __future__ import annotations

import signal
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
