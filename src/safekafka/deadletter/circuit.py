"""The circuit: when so much fails that not the messages are at fault but something behind the handler, nothing more is
dead-lettered. Pure: no clock, no thread.

Closed, it lets failures through to the dead letter topic. A limit opens it: failures are held, and one of them is tried
again after a pause that doubles each time. The first success behind a pause closes it. What was dead-lettered before
counts on for `max_rate`: where half of all messages fail, each pause would else let as many through again.

Not thread safe: the caller has a lock, and tells events outside of it.
"""

from __future__ import annotations

from collections import deque

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds


class Circuit:
    """`max_consecutive`: dead letters in a row without a success between them; the next failure opens it.
    `max_rate` = (count, seconds): dead letters within any such span; likewise. None: no limit of that kind.

    `now` is monotonic, in seconds.
    """

    __slots__ = (
        "_in_a_row",
        "_let_through",
        "_max_consecutive",
        "_max_rate",
        "_pause",
        "_recent",
        "next_probe_at",
        "openings",
        "why",
    )

    def __init__(self, max_consecutive: int | None, max_rate: tuple[int, float] | None) -> None:
        self._max_consecutive = max_consecutive
        self._max_rate = max_rate
        self._in_a_row = 0
        self._recent: deque[float] = deque(maxlen=1 if max_rate is None else max_rate[0])
        self._pause = FIRST_PAUSE
        self._let_through = True  # a failure, since it opened last
        self.next_probe_at: float | None = None
        """When a held message is to be tried again. None while the circuit is closed."""
        self.openings = 0
        """How often it has opened: what has grown by a `failed()` is to be told as an event."""
        self.why = ""
        """Which limit opened it last."""

    @property
    def is_open(self) -> bool:
        return self.next_probe_at is not None

    def failed(self, now: float) -> bool:
        """A message has run out of attempts. Whether it may be dead-lettered; if not, hold it, and try it again at
        `next_probe_at`."""
        if self.next_probe_at is not None:
            # What was under way as the circuit opened fails early, and is no probe.
            if now >= self.next_probe_at:
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
                self.next_probe_at = now + self._pause
            return False
        if self._max_consecutive is not None and self._in_a_row >= self._max_consecutive:
            return self._open(now, f"{self._in_a_row} dead letters in a row (max_consecutive)")
        if self._max_rate is not None:
            count, seconds = self._max_rate
            if len(self._recent) == count and now - self._recent[0] < seconds:
                return self._open(now, f"{count} dead letters within {seconds} s (max_rate)")
            self._recent.append(now)
        self._in_a_row += 1
        self._let_through = True
        return True

    def succeeded(self, now: float) -> bool:
        """A handler has succeeded. Whether that closed the circuit."""
        if self.next_probe_at is not None and now < self.next_probe_at:
            return False  # under way as the circuit opened, as above
        closes, self.next_probe_at = self.is_open, None
        self._in_a_row = 0
        return closes

    def _open(self, now: float, why: str) -> bool:
        self.openings += 1
        self.why = why
        self._pause = FIRST_PAUSE if self._let_through else min(2 * self._pause, LONGEST_PAUSE)
        self._let_through = False
        self.next_probe_at = now + self._pause
        return False
