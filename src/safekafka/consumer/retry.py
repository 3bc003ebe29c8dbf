"""When a message is tried again: `Retry`, a thin cover over tenacity's own strategies. And `Reject`, for handlers.

Nothing of tenacity is re-written here; what is added is that a wait ends at once when the message is given up (revoke,
stop).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tenacity
from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_base


class Reject(Exception):  # noqa: N818 - reads as what a handler does: raise Reject("reason")
    """Raised by a handler: the message goes to the dead letter topic at once, without further attempts."""


def _exponential_with_jitter() -> wait_base:
    return tenacity.wait_exponential(multiplier=0.1, max=30) + tenacity.wait_random(0, 0.1)


@dataclass(frozen=True)
class Retry:
    """How often, how long apart, and for which errors a handler is tried again.

    `attempts` counts the first one. `wait` is any of tenacity's wait strategies (seconds), `on` the exception types
    that are worth another attempt. `stop` and `retry` take tenacity's strategies in place of `attempts` and `on`.
    """

    attempts: int = 5
    wait: wait_base = field(default_factory=_exponential_with_jitter)
    on: type[Exception] | tuple[type[Exception], ...] = Exception
    stop: stop_base | None = None
    retry: retry_base | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or self.attempts < 1:
            raise ValueError(f"attempts={self.attempts!r}: give the number of attempts, 1 or more (1 = no retry)")

    def run(
        self, call: Callable[[], Any], given_up: threading.Event, on_retry: Callable[[int, BaseException], None]
    ) -> int:
        """Call until it succeeds; returns the number of attempts. Raises `Exhausted` when they have ended.

        `given_up` ends a wait and all further attempts. `on_retry(attempt, error)` is called before each wait.
        """
        attempts = 0
        raised: BaseException | None = None

        def attempt() -> None:
            nonlocal attempts, raised
            attempts += 1
            try:
                call()
            except BaseException as error:
                raised = error
                raise

        def tell(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            if error is not None:
                on_retry(state.attempt_number, error)

        worth_it = self.retry or tenacity.retry_if_exception_type(self.on)
        retrying = tenacity.Retrying(
            stop=tenacity.stop_any(
                self.stop or tenacity.stop_after_attempt(self.attempts), tenacity.stop_when_event_set(given_up)
            ),
            wait=self.wait,
            retry=worth_it & tenacity.retry_if_not_exception_type((Reject, MemoryError)),
            sleep=tenacity.sleep_using_event(given_up),
            before_sleep=tell,
            reraise=True,
        )
        try:
            retrying(attempt)
        except Exception as error:
            if error is not raised or isinstance(error, MemoryError):
                raise  # a strategy's own error, or the process's: nothing that the message is to blame for
            raise Exhausted(attempts, error) from error
        return attempts


class Exhausted(Exception):  # noqa: N818
    """Inside the library: the attempts have ended. `error` is the last one's exception."""

    def __init__(self, attempts: int, error: Exception) -> None:
        super().__init__(attempts, error)
        self.attempts = attempts
        self.error = error
