"""Retry: tenacity's strategies, ended at once when the message is given up."""

from __future__ import annotations

import threading

import pytest
import tenacity

from safekafka import Reject, Retry
from safekafka.consumer.retry import Exhausted


def failing(times: int, error: Exception, calls: list[int]) -> object:
    def call() -> None:
        calls.append(1)
        if len(calls) <= times:
            raise error

    return call


def run(retry: Retry, times: int, error: Exception, given_up: threading.Event | None = None) -> tuple[int, list[int]]:
    calls: list[int] = []
    seen: list[int] = []
    attempts = retry.run(
        failing(times, error, calls),  # type: ignore[arg-type]
        given_up or threading.Event(),
        lambda attempt, _: seen.append(attempt),
    )
    assert attempts == len(calls)
    return attempts, seen


NO_WAIT = tenacity.wait_none()


def test_success_at_first_is_one_attempt_and_tells_nothing() -> None:
    assert run(Retry(), 0, ValueError()) == (1, [])


def test_B_C03_exactly_the_attempts_asked_for_then_exhausted_with_the_last_error() -> None:
    error = ValueError("again")
    with pytest.raises(Exhausted) as caught:
        run(Retry(attempts=3, wait=NO_WAIT), 99, error)
    assert caught.value.attempts == 3
    assert caught.value.error is error


def test_an_error_that_is_not_worth_it_gets_one_attempt() -> None:
    with pytest.raises(Exhausted) as caught:
        run(Retry(attempts=5, wait=NO_WAIT, on=KeyError), 99, ValueError())
    assert caught.value.attempts == 1


def test_reject_gets_no_second_attempt() -> None:
    with pytest.raises(Exhausted) as caught:
        run(Retry(attempts=5, wait=NO_WAIT), 99, Reject("never"))
    assert caught.value.attempts == 1


def test_tenacity_strategies_are_taken_as_they_are() -> None:
    retry = Retry(
        stop=tenacity.stop_after_attempt(2), wait=NO_WAIT, retry=tenacity.retry_if_exception_message(match="flaky")
    )
    assert run(retry, 1, ValueError("flaky")) == (2, [1])
    with pytest.raises(Exhausted) as caught:
        run(retry, 1, ValueError("solid"))
    assert caught.value.attempts == 1


def test_a_wait_ends_at_once_when_the_message_is_given_up() -> None:
    given_up = threading.Event()
    retry = Retry(attempts=5, wait=tenacity.wait_fixed(3600))
    ended = threading.Event()

    def wait_in_vain() -> None:
        with pytest.raises(Exhausted):
            retry.run(failing(99, ValueError(), []), given_up, lambda *_: given_up.set())  # type: ignore[arg-type]
        ended.set()

    threading.Thread(target=wait_in_vain, daemon=True).start()
    assert ended.wait(10)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_is_no_exception_is_never_retried(error: type[BaseException]) -> None:
    def call() -> None:
        raise error

    with pytest.raises(error):
        Retry(wait=NO_WAIT).run(call, threading.Event(), lambda *_: None)


def test_B_C30_running_out_of_memory_is_not_the_messages_fault() -> None:
    with pytest.raises(MemoryError):
        run(Retry(attempts=5, wait=NO_WAIT), 99, MemoryError())


def test_an_error_of_a_strategy_itself_is_not_the_messages_fault() -> None:
    def broken(_: tenacity.RetryCallState) -> float:
        raise RuntimeError("strategy")

    with pytest.raises(RuntimeError, match="strategy"):
        run(Retry(attempts=5, wait=broken), 99, ValueError())  # type: ignore[arg-type]


def test_no_attempts_at_all_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"attempts=0.*1 or more"):
        Retry(attempts=0)
