"""When a message is tried again: `Retry`, a thin cover over tenacity's own strategies. And what handlers raise to say
it themselves: `Reject`, `RetryLater`.

Nothing of tenacity is re-written here. Its loop is taken in steps (`Retrying.iter`), so that nobody sleeps in it: a
message that waits for its next attempt holds up its own lane, and no worker.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import tenacity
from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from safekafka.settings import positive

_AS_IN = {"wait": "wait_fixed(1)", "stop": "stop_after_delay(60)", "retry": "retry_if_exception_type(OSError)"}


class Reject(Exception):  # noqa: N818 - reads as what a handler does: raise Reject("reason")
    """Raised by a handler: the message goes to the dead letter topic at once, without further attempts."""


class RetryLater(Exception):  # noqa: N818 - as above: raise RetryLater(30)
    """Raised by a handler: try this message again in `seconds`, without counting the attempt. `Retry(max_hold=...)`
    bounds it."""

    def __init__(self, seconds: float, reason: str = "") -> None:
        positive(seconds=seconds)
        super().__init__(seconds, reason)
        self.seconds = seconds


def _exponential_with_jitter() -> wait_base:
    return tenacity.wait_exponential(multiplier=0.1, max=30) + tenacity.wait_random(0, 0.1)


@dataclass(frozen=True)
class Retry:
    """How often, how long apart, and for which errors a handler is tried again.

    `attempts` counts the first one. `wait` is any of tenacity's wait strategies (seconds), `on` the exception types
    that are worth another attempt. `stop` and `retry` take tenacity's strategies in place of `attempts` and `on`.
    `max_hold`: seconds from the beginning of its first attempt, or of its batch's, for which a message may hold up
    those behind it, whatever the rest says; then it is dead-lettered, or stops the consumer.
    """

    attempts: int = 5
    wait: wait_base = field(default_factory=_exponential_with_jitter)
    on: type[Exception] | tuple[type[Exception], ...] = Exception
    stop: stop_base | None = None
    retry: retry_base | None = None
    max_hold: float = 3600.0

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or self.attempts < 1:
            raise ValueError(f"attempts={self.attempts!r}: give the number of attempts, 1 or more (1 = no retry)")
        positive(max_hold=self.max_hold)
        types = self.on if isinstance(self.on, tuple) else (self.on,)
        if not all(isinstance(one, type) and issubclass(one, BaseException) for one in types):
            raise ValueError(f"on={self.on!r}: give an exception type, or a tuple of them")
        for name, strategy in (("wait", self.wait), ("stop", self.stop), ("retry", self.retry)):
            if not callable(strategy) and (strategy is not None or name == "wait"):
                raise ValueError(
                    f"{name}={strategy!r}: give a {name} strategy of tenacity, as in tenacity.{_AS_IN[name]}"
                )

    def begin(self, began: float, since: float | None = None) -> Trial:
        """`began`: when the first attempt began (monotonic, seconds). `since`: when the holding did, if before."""
        return Trial(self, began, began if since is None else since)


class Trial:
    """The attempts at one message, or one batch, so far. Thread: the worker's that has its lane."""

    __slots__ = ("_max_hold", "_retrying", "_state", "attempts", "overdue", "since")

    def __init__(self, retry: Retry, began: float, since: float) -> None:
        worth_it = retry.retry or tenacity.retry_if_exception_type(retry.on)
        self._retrying = tenacity.Retrying(
            stop=retry.stop or tenacity.stop_after_attempt(retry.attempts),
            wait=retry.wait,
            retry=worth_it & tenacity.retry_if_not_exception_type((Reject, MemoryError)),
            reraise=True,
        )
        self._state = tenacity.RetryCallState(self._retrying, None, (), {})
        self._state.start_time = began
        self.since = since
        self._max_hold = retry.max_hold
        self.attempts = 0  # that counted
        self.overdue = False  # there would be another one, but for `max_hold`

    def failed(self, error: Exception, now: float) -> float | None:
        """An attempt ended with this error. How many seconds to wait for the next one; None: there is none.

        Raises what a strategy raises itself: nothing that the message is to blame for.
        """
        held = now - self.since
        if isinstance(error, RetryLater):
            return self._if_in_time(held, error.seconds)
        self.attempts += 1
        self._state.set_exception((type(error), error, error.__traceback__))
        self._retrying.begin()  # its statistics, which belong to a thread; the attempts so far are in `_state`
        try:
            wait = self._retrying.iter(retry_state=self._state)
        except Exception as raised:
            if raised is error:
                return None
            raise
        self._state.prepare_for_next_attempt()
        return self._if_in_time(held, float(cast(float, wait)))

    def _if_in_time(self, held: float, seconds: float) -> float | None:
        self.overdue = held + seconds > self._max_hold
        return None if self.overdue else seconds
