"""Retry: tenacity's strategies, taken in steps, so that nobody sleeps in them."""

from __future__ import annotations

import threading
import time
from typing import Any
from unittest.mock import Mock

import pytest
import tenacity

from safekafka import Reject, Retry, RetryLater
from safekafka.consumer.attempt import Exhausted, decide

NO_WAIT = tenacity.wait_none()


def waits(retry: Retry, *errors: Exception, now: float = 100.0) -> list[float | None]:
    """How long to wait after each of these failures; None: no further attempt."""
    trial = retry.begin(began=100.0)
    return [trial.failed(error, now) for error in errors]


def test_B_C03_exactly_the_attempts_asked_for_with_the_waits_asked_for() -> None:
    retry = Retry(attempts=4, wait=tenacity.wait_incrementing(1, 2))
    assert waits(retry, *[ValueError("again")] * 4) == [1, 3, 5, None]


def test_an_error_that_is_not_worth_it_gets_one_attempt() -> None:
    assert waits(Retry(wait=NO_WAIT, on=KeyError), ValueError()) == [None]


def test_reject_gets_no_second_attempt() -> None:
    assert waits(Retry(wait=NO_WAIT), Reject("never")) == [None]


def test_tenacity_strategies_are_taken_as_they_are() -> None:
    retry = Retry(
        stop=tenacity.stop_after_attempt(2), wait=NO_WAIT, retry=tenacity.retry_if_exception_message(match="flaky")
    )
    assert waits(retry, ValueError("flaky"), ValueError("flaky")) == [0, None]
    assert waits(retry, ValueError("solid")) == [None]


def test_tenacity_stop_after_delay_counts_from_the_begin_of_the_first_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.time.monotonic", lambda: 131.0)
    retry = Retry(stop=tenacity.stop_after_delay(30), wait=NO_WAIT)
    assert waits(retry, ValueError()) == [None]


def test_the_attempts_may_be_made_by_different_threads() -> None:
    trial = Retry(attempts=3, wait=NO_WAIT).begin(0.0)
    found: list[float | None] = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: found.append(trial.failed(ValueError(), 0.0)))
        thread.start()
        thread.join()
    assert found == [0, 0, None]
    assert trial.attempts == 3


def test_retry_later_does_not_count_as_an_attempt() -> None:
    retry = Retry(attempts=2, wait=NO_WAIT)
    assert waits(retry, *[RetryLater(7)] * 5, ValueError(), ValueError()) == [7] * 5 + [0, None]


def test_B_C02_max_hold_bounds_how_long_a_message_holds_up_those_behind_it() -> None:
    retry = Retry(attempts=99, wait=tenacity.wait_fixed(20), max_hold=60)
    assert waits(retry, RetryLater(59)) == [59]
    assert waits(retry, RetryLater(61)) == [None]
    assert waits(retry, ValueError(), now=130) == [20]
    assert waits(retry, ValueError(), now=141) == [None]


def test_max_hold_counts_from_when_the_holding_began_and_a_strategy_from_the_first_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tenacity.time.monotonic", lambda: 120.0)
    retry = Retry(stop=tenacity.stop_after_delay(30), wait=tenacity.wait_fixed(5), max_hold=60)
    assert retry.begin(100.0, since=70.0).failed(ValueError(), 120.0) == 5
    late = retry.begin(100.0, since=60.0)
    assert late.failed(ValueError(), 120.0) is None
    assert late.overdue


def test_a_message_out_of_time_is_told_apart_from_one_out_of_attempts() -> None:
    for attempts, wait, overdue in ((3, 61, True), (1, 61, False), (1, 0, False)):
        trial = Retry(attempts=attempts, wait=tenacity.wait_fixed(wait), max_hold=60).begin(100)
        assert trial.failed(ValueError(), 101) is None
        assert trial.overdue == overdue


def test_a_message_out_of_time_is_told_of_once_and_never_as_one_of_a_batch(caplog: pytest.LogCaptureFixture) -> None:
    """Though an open circuit has it tried again and again."""
    retry = Retry(max_hold=60)
    began = time.monotonic() - 100
    for alone, events in ((False, 0), (True, 1)):
        trial = retry.begin(began)
        for _ in range(3):
            assert isinstance(decide(Mock(), RetryLater(1), trial, retry, began, alone=alone), Exhausted)
        assert caplog.text.count("partition_held") == events


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), "5"])
def test_retry_later_wants_seconds(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds="):
        RetryLater(seconds)


def test_an_error_of_a_strategy_itself_is_not_the_messages_fault() -> None:
    def broken(_: tenacity.RetryCallState) -> float:
        raise RuntimeError("strategy")

    with pytest.raises(RuntimeError, match="strategy"):
        waits(Retry(attempts=5, wait=broken), ValueError())  # type: ignore[arg-type]


def test_no_attempts_at_all_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"attempts=0.*1 or more"):
        Retry(attempts=0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"wait": 5}, "wait=5: give a wait strategy of tenacity"),
        ({"wait": None}, "wait=None"),
        ({"stop": 3}, "stop=3: give a stop strategy"),
        ({"retry": ValueError()}, "retry=ValueError"),
        ({"on": "ValueError"}, "on='ValueError': give an exception type"),
        ({"on": (ValueError, OSError())}, "give an exception type"),
    ],
)
def test_what_is_no_strategy_is_refused_at_once_and_not_when_a_handler_fails(
    options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        Retry(**options)
