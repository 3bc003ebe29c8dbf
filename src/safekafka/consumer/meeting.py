"""`for message in consumer`: where the worker hands a message to the loop, and waits for it to come back.

So the loop's body is a handler like any other: it may take its time, and what it has not come back from is not
committed. A body that leaves the loop (`break`, an exception) has not come back: the next loop begins with its message.

Threads: the worker calls `hand_over`, the loop's thread `first` and `next`, anybody `end`. The condition guards all.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from safekafka.consumer.current import current

if TYPE_CHECKING:
    from confluent_kafka import Message

_LOOK_SECONDS = 0.1


class _GivenUp(Exception):  # noqa: N818
    """Nobody comes back for the message: its partition is gone, or the consumer ends."""


class Meeting:
    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._message: Message | None = None  # handed over, and not come back
        self._ended = False
        self._thread: int | None = None  # of the present loop
        self.loops = 0  # 1 while one runs: its body may still come back

    # ---- the worker

    def hand_over(self, message: Message) -> None:
        handling = current()
        with self._condition:
            self._message = message
            self._condition.notify_all()
            while self._message is message:
                if self._ended or (handling.revoked and not self.loops):
                    self._message = None
                    raise _GivenUp
                self._condition.wait(_LOOK_SECONDS)

    # ---- the loop

    def first(self) -> Message | None:
        """The message that did not come back, or the next one; None at the end."""
        self._thread = threading.get_ident()
        with self._condition:
            return self._wait()

    def next(self) -> Message | None:
        """The body has come back."""
        with self._condition:
            self._message = None
            self._condition.notify_all()
            return self._wait()

    def _wait(self) -> Message | None:
        self._condition.wait_for(lambda: self._message is not None or self._ended)
        return None if self._ended else self._message

    def closes(self) -> None:
        """The consumer is about to end. From inside the loop's body, which can't come back before that."""
        if self.loops and self._thread == threading.get_ident():
            self.loops = 0

    def end(self) -> None:
        """No message comes any more."""
        with self._condition:
            self._ended = True
            self._condition.notify_all()
