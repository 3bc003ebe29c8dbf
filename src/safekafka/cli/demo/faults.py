"""What is killed when. Pure: the schedule is drawn from the seed and asked for what is due."""

from __future__ import annotations

import enum
import random
from collections import deque
from typing import NamedTuple


class Fault(enum.Enum):
    KILL_BROKER = enum.auto()
    KILL_PRODUCER = enum.auto()
    START_PRODUCER = enum.auto()
    START_BROKER = enum.auto()


class _Step(NamedTuple):
    fault: Fault
    share: float = 0.0  # not before this share of all orders is accepted
    seconds: float = 0.0  # nor so soon after the step before


class Schedule:
    """One broker dies. Before the others have taken over its partitions, which takes them three seconds or more, the
    producer dies too, and leaves a spool with orders in it."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(f"{seed}/faults")
        self._steps = deque(
            [
                _Step(Fault.KILL_BROKER, share=draw.uniform(0.15, 0.25)),
                _Step(Fault.KILL_PRODUCER, seconds=draw.uniform(1.5, 2.5)),
                _Step(Fault.START_PRODUCER, seconds=1.0),
                _Step(Fault.START_BROKER, share=draw.uniform(0.55, 0.65)),
            ]
        )
        self._last_at = 0.0

    def due(self, share_accepted: float, now: float) -> Fault | None:
        """The next fault if its moment has come; it is not given again. `now` is monotonic."""
        if not self._steps:
            return None
        step = self._steps[0]
        if share_accepted < step.share or now < self._last_at + step.seconds:
            return None
        self._steps.popleft()
        self._last_at = now
        return step.fault

    @property
    def over(self) -> bool:
        return not self._steps
