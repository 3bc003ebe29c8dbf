"""What is killed when. Pure: the schedule is drawn from the seed and asked for what is due."""

from __future__ import annotations

import enum
import random
from collections import deque

_PRODUCER_DOWN_SECONDS = 1.0


class Fault(enum.Enum):
    KILL_BROKER = enum.auto()
    KILL_PRODUCER = enum.auto()
    START_PRODUCER = enum.auto()
    START_BROKER = enum.auto()


class Schedule:
    """One broker dies; soon after, before the others have taken over all of its partitions, so does the producer.

    The moments are shares of the accepted orders, so they don't depend on how fast the machine is; only the time that
    the producer stays dead is in seconds.
    """

    def __init__(self, seed: int) -> None:
        draw = random.Random(f"{seed}/faults")
        kill_broker = draw.uniform(0.15, 0.25)
        self._steps: deque[tuple[Fault, float | None]] = deque(
            [
                (Fault.KILL_BROKER, kill_broker),
                (Fault.KILL_PRODUCER, kill_broker + draw.uniform(0.05, 0.12)),
                (Fault.START_PRODUCER, None),
                (Fault.START_BROKER, draw.uniform(0.55, 0.65)),
            ]
        )
        self._last_at = 0.0

    def due(self, share_accepted: float, now: float) -> Fault | None:
        """The next fault if its moment has come; it is not given again. `now` is monotonic."""
        if not self._steps:
            return None
        fault, share = self._steps[0]
        if now < self._last_at + _PRODUCER_DOWN_SECONDS if share is None else share_accepted < share:
            return None
        self._steps.popleft()
        self._last_at = now
        return fault

    @property
    def over(self) -> bool:
        return not self._steps
