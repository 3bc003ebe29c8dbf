"""Messages that are handled many at a time: how a batch is filled, and what becomes of one that fails.

A batch is made of whole lines of lanes, first to last, so order holds. One that fails is tried again as a whole; when
its attempts have ended it is split, and its halves too, until the message that spoils it stands alone: that one gets
attempts of its own, then it is given up. A batch that waits for its next attempt holds its lanes, and no worker.
`max_hold` counts for all of it from its first attempt: after that it is split without waiting.

Lock: the pool's, around every call of `Batches`.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from safekafka.consumer.attempt import Later, Undecodable, decide
from safekafka.consumer.lanes import Lane, Lanes
from safekafka.consumer.retry import Reject, RetryLater, Trial
from safekafka.message import put_back

if TYPE_CHECKING:
    from confluent_kafka import Message

    from safekafka.consumer.current import Handling
    from safekafka.consumer.pool import Pool


class Batch:
    """Messages of some lanes that are handled in one call; after a failure in parts, first to last."""

    __slots__ = ("lanes", "parts", "since", "split", "trial")

    def __init__(self, lanes: list[Lane], messages: list[tuple[Lane, Message]]) -> None:
        self.lanes = lanes
        self.parts: deque[list[tuple[Lane, Message]]] = deque([messages])
        self.split = False
        self.since: float | None = None  # it has failed: when that attempt began
        self.trial: Trial | None = None  # of the first part


class Filling:
    """A worker's batch, as far as it is."""

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self.since = 0.0


class Batches:
    def __init__(self, max_records: int, max_wait: float) -> None:
        self._max_records = max_records
        self._max_wait = max_wait
        self._waiting: list[tuple[float, int, Batch]] = []  # a heap, by the moment
        self._numbers = itertools.count()

    def next(self, filling: Filling, lanes: Lanes, now: float) -> Batch | float | None:
        """A batch to handle now, what is left in the filling to be given back; or the moment until which to wait for
        more; None: until there is something."""
        while self._waiting and self._waiting[0][0] <= now:
            batch = heapq.heappop(self._waiting)[2]
            batch.lanes = [lane for lane in batch.lanes if lanes.resume(lane)]
            if batch.lanes:
                return batch
        mine = filling.lanes
        count = sum(map(len, mine))
        while count < self._max_records and (more := lanes.take(self._max_records - count)):
            if not mine:
                filling.since = now
            mine += more
            count += sum(map(len, more))
        if not mine:
            return self.next_moment()
        until = filling.since + self._max_wait
        if count < self._max_records and now < until and not any(lane.of.progress.revoked for lane in mine):
            moment = self.next_moment()
            return until if moment is None else min(until, moment)
        return self._full(filling)

    def _full(self, filling: Filling) -> Batch:
        """Lanes that it has no room for stay in the filling: nobody shall wait for this batch to handle them."""
        lanes: list[Lane] = []
        messages: list[tuple[Lane, Message]] = []
        for lane in filling.lanes:
            if len(messages) == self._max_records:
                break
            lanes.append(lane)
            for _ in range(min(len(lane), self._max_records - len(messages))):
                messages.append((lane, lane.pop()))
        del filling.lanes[: len(lanes)]
        return Batch(lanes, messages)

    def next_moment(self) -> float | None:
        return self._waiting[0][0] if self._waiting else None

    def wait(self, batch: Batch, moment: float) -> None:
        heapq.heappush(self._waiting, (moment, next(self._numbers), batch))


async def handle(
    pool: Pool, batch: Batch, handling: Handling, call: Callable[[list[Message]], Awaitable[Any]]
) -> float | None:
    """None: it is through. Else the moment of its next attempt. Raises what stops the consumer."""
    parts = batch.parts
    while parts:
        part = [(lane, message) for lane, message in parts[0] if not lane.of.progress.revoked]
        if not part:  # whoever has the partitions next handles them
            parts.popleft()
            continue
        parts[0] = part
        began = monotonic()
        handling.message = part[0][1]
        handling.others = list({lane.of.progress: None for lane, _ in part})
        handling.attempt = 1 if batch.trial is None else batch.trial.attempts + 1
        messages = [message for _, message in part]
        originals = [(one.value(), one.key(), list(one.headers() or ())) for one in messages]
        try:
            await call(messages.copy())
        except BaseException as error:  # noqa: BLE001 - what is no Exception is raised again by `decide`
            for message, original in zip(messages, originals, strict=True):
                put_back(message, *original)
            moment = await _failed(pool, batch, part, error, began)
            if moment is not None:
                return moment
        else:
            _finish(batch, part)
            if pool.troubled:
                pool.succeeds()
        finally:
            handling.message, handling.others = None, ()
    return None


async def _failed(
    pool: Pool, batch: Batch, part: list[tuple[Lane, Message]], error: BaseException, began: float
) -> float | None:
    first = part[0][1]
    alone = len(part) == 1
    by_its_nature = isinstance(error, (Reject, Undecodable))
    searching = batch.split and isinstance(error, Exception) and not isinstance(error, (MemoryError, RetryLater))
    if batch.since is None:
        batch.since = began
    if not alone and (by_its_nature or searching):
        _split(batch, part)
        return None
    if isinstance(error, Exception) and all(lane.of.progress.revoked for lane, _ in part):
        return None
    trial = batch.trial or pool.retry.begin(began, batch.since)
    decision = decide(first, error, trial, pool.retry, began, alone=alone)
    if isinstance(decision, Later):
        pool.retries += 1
        batch.trial = decision.trial
        return pool.next_attempt(decision.moment)
    if not alone:
        _split(batch, part)
        return None
    held_until = pool.fails(first, decision)
    if held_until is not None:
        batch.trial = decision.trial
        return held_until
    await pool.give_up_on(first, decision)
    _finish(batch, part)
    return None


def _finish(batch: Batch, part: list[tuple[Lane, Message]]) -> None:
    for lane, message in part:
        lane.of.progress.finished.append(message)
    batch.parts.popleft()
    batch.trial = None


def _split(batch: Batch, part: list[tuple[Lane, Message]]) -> None:
    middle = len(part) // 2
    batch.split, batch.trial = True, None
    batch.parts[0] = part[middle:]
    batch.parts.appendleft(part[:middle])
