"""The workers: they take lanes (`lanes.py`), call the handler, and settle what becomes of each message.

Three kinds: threads for sync handlers, tasks of an event loop for async ones, and both for batches. What they share is
here; `threads.py` and `tasks.py` have the rest.

Threads: `add`, `give_up`, `tend`, `wait_until_free`, `wait_for_progress` and `end` are called by the poll thread,
everything else by workers. Daemon threads and no executor: an executor's threads are joined at the interpreter's exit,
so a handler that never returns would keep the process for ever.

Lock: `lock` guards the lanes, the circuit, the failure and who waits. Handlers, dead letters and events run outside of
it. `progress.finished` takes no lock: a worker appends, and is through with the message before it gives the lane back,
so a drain that finds the lane free finds what was finished.

A worker that had to take the lock for each lane would wait for it with all the others, each of whom gets it only when
the interpreter comes to him. So lanes are dealt in advance, and two queues take no lock:

- `dealt`: lanes for whoever comes next. Filled under the lock, by the poll thread or a worker who found none; any
  worker takes from the left. Under the lock they are taken back from the right, before anything that forbids to begin
  with them: then there are none, and who looks for one comes to the lock and is told.
- `through`: lanes that have no message left, from any worker. Under the lock they are given back. All that is not so
  plain (a retry, a partition that is gone, an open circuit, more messages) is given back under the lock at once.

Both count as lanes that workers have. Who waits for workers looks into `through` after he has said that he waits, and a
worker looks whether somebody does after he has put a lane there: one of them sees the other.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from safekafka.consumer.attempt import DeadLetters, Exhausted, Later, decide
from safekafka.consumer.batches import Batch, Batches, Filling
from safekafka.consumer.current import Handling, Limit
from safekafka.consumer.lanes import Lane, Lanes, Order, PartitionLanes
from safekafka.consumer.retry import Retry
from safekafka.deadletter.publisher import limit_reached
from safekafka.errors import HandlerFailed
from safekafka.observe import Event, emit

if TYPE_CHECKING:
    from confluent_kafka import Message

    from safekafka.deadletter.config import DeadLetter

Handler: TypeAlias = "Callable[[Any], Any]"

SLICE_SECONDS = 0.05  # after so long a worker gives back a lane that has messages left: others shall have their turn
_AHEAD_SECONDS = 0.02  # what is dealt in advance is what workers came to in so long, as of late
_LANES_AT_ONCE = 64  # of one partition
_STEP_SECONDS = 0.1


class Refill(NamedTuple):
    """How many messages are taken at a time while little is in flight, and while much is; how many seconds pass between
    two looks for room; and how many in flight are enough, though the program allows more."""

    to_fill: int
    messages: int
    pause: float
    enough: float = math.inf


# More new objects at once than 700 have Python look for garbage among all that is in flight, again and again.
REFILL = Refill(5_000, 500, 0.002)


class Pool:
    """`batch`: the handler takes lists, of at most so many messages, which wait at most so many seconds for more."""

    def __init__(
        self,
        handler: Handler,
        *,
        order: Order,
        concurrency: int,
        retry: Retry,
        dead_letters: DeadLetters | None,
        letters: DeadLetter | None,
        batch: tuple[int, float] | None,
    ) -> None:
        self.handler = handler
        self.concurrency = concurrency
        self.retry = retry
        self.dead_letters = dead_letters
        self.batches = None if batch is None else Batches(*batch)
        self.lock = threading.Lock()
        self.lanes = Lanes(order)
        self.dealt: deque[Lane] = deque()
        self.through: deque[Lane] = deque()
        self._ahead = 0  # lanes that are dealt in advance
        self._counted, self._counted_since = 0, 0.0  # lanes given back, for the next `_ahead`
        self.limit = Limit()
        self.handlings: list[Handling] = []  # of each worker
        has_limit = letters is not None and (letters.max_consecutive is not None or letters.max_rate is not None)
        self._circuit = letters.circuit() if letters is not None and has_limit else None
        self._stops_at_limit = letters is not None and letters.on_limit == "stop"
        self.troubled = False  # the circuit has heard of a failure, and of no success since
        self.held = False  # the circuit is open: one message at a time is tried, after pauses
        self._held_since = 0.0
        self._probe: Sequence[Lane] = ()  # a message of theirs is being tried meanwhile; the lanes of one worker
        self.failure: BaseException | None = None  # why the consumer has to stop
        self.ended = False
        self.retries = self.dead_lettered = 0
        self._free = threading.Condition(self.lock)
        self._watched = False  # the poll thread waits at `_free`

    # ---- the poll thread

    def start(self) -> None:
        raise NotImplementedError

    def add(self, runs: Sequence[tuple[PartitionLanes, Sequence[Message]]]) -> None:
        """New messages, of a partition each, in one hold of the lock."""
        with self.lock:
            self._collect()
            ready = sum([self.lanes.add(of, messages) for of, messages in runs])
            self._deal()
            self._wake(ready)

    def tend(self) -> None:
        """See to it that workers find lanes, and not more than they come to. Again and again."""
        if not (self.through or self.dealt or self.lanes.ready):
            return
        with self.lock:
            now = monotonic()
            self._collect()
            self._count(now)
            if len(self.dealt) > 2 * self._ahead:
                self._reclaim()
            self.lanes.wake(now)
            self._deal()
            if self.dealt or (self.lanes.ready and not self.held):
                self._wake(1)  # he passes on

    def give_up(self, partitions: Collection[PartitionLanes], deadline: float | None) -> None:
        """Waiting messages of these partitions are not handled any more; a running handler goes on, and may look at its
        deadline."""
        with self.lock:
            self.limit.deadline = deadline
            self._reclaim()  # nobody shall wait until a worker comes to them
            self._collect()
            self.lanes.give_up(partitions)
            self._wake_all()  # who fills a batch with them stops waiting
            if self._probe and all(lane.of.progress.revoked for lane in self._probe):
                self._probe = ()  # nobody has to wait for its handler to try another one
                self._wake(max(1, self.lanes.ready))

    def wait_until_free(self, partitions: Collection[PartitionLanes], until: Callable[[], float]) -> bool:
        """Wait until no message of these partitions is being handled; False if one still is at `until()` (monotonic),
        which may come nearer meanwhile."""
        with self.lock:
            while not self._wait(lambda: self._are_free(partitions), min(_STEP_SECONDS, until() - monotonic())):
                if monotonic() >= until():
                    return False
            return True

    def wait_for_progress(self, seconds: float) -> None:
        """Until a worker gave something back, at most so long."""
        with self.lock:
            self._watched = True
            if not self._collect():
                self._free.wait(seconds)
            self._watched = False

    def _are_free(self, partitions: Collection[PartitionLanes]) -> bool:
        self._collect()
        return self.lanes.are_free(partitions)

    def _wait(self, until: Callable[[], bool], seconds: float) -> bool:
        self._watched = True
        try:
            return self._free.wait_for(until, max(0.0, seconds))
        finally:
            self._watched = False

    def end(self) -> None:
        """Workers stop when they are through with their message."""
        with self.lock:
            self.ended = True
            self._reclaim()
            self._wake_all()

    @property
    def threads(self) -> Sequence[threading.Thread]:
        """Of ours."""
        raise NotImplementedError

    @property
    def refill(self) -> Refill:
        return REFILL

    @property
    def alive(self) -> bool:
        """Whether there is somebody to handle messages."""
        raise NotImplementedError

    # ---- workers; `_wake`, `_wake_all`, `_next` under the lock

    def _wake(self, lanes: int) -> None:
        raise NotImplementedError

    def _wake_all(self) -> None:
        raise NotImplementedError

    def _next(self, now: float) -> Lane | None:
        """A lane to handle now, for one who found none dealt; and lanes for those who come next."""
        self._collect()
        self._count(now)
        self.lanes.wake(now)
        if self.dealt:
            with contextlib.suppress(IndexError):  # another worker was quicker
                return self.dealt.popleft()
        if self.held and not self._may_probe(now):
            return None
        taken = self.lanes.take(1)
        if self.held:
            self._probe = taken
        self._deal()
        return taken[0] if taken else None

    def _deal(self) -> None:
        """Lanes for workers, fair between partitions."""
        if self.held or self.ended or self.failure is not None or self.batches is not None:
            return
        room = self._ahead - len(self.dealt)
        while room > 0 and (taken := self.lanes.take(min(room, _LANES_AT_ONCE))):
            self.dealt.extend(taken)
            room -= len(taken)

    def _reclaim(self) -> None:
        """What was dealt, and nobody has come to: first in line again."""
        dealt = self.dealt
        while dealt:
            try:
                lane = dealt.pop()
            except IndexError:  # a worker was quicker
                break
            self.lanes.give_back(lane, untouched=True)

    def _collect(self) -> int:
        """Lanes that workers are through with. Returns how many."""
        through = self.through
        count = len(through)  # more may come meanwhile
        if not count:
            return 0
        lanes = [through.popleft() for _ in range(count)]
        self._counted += count
        if self._probe and self._probe[0] in lanes:
            self._probe = ()
        ready = self.lanes.ready
        gone = self.lanes.give_back_all(lanes)
        if gone or self.lanes.ready > ready:
            self._wake(max(1, self.lanes.ready - ready))
        return count

    def _count(self, now: float) -> None:
        seconds = now - self._counted_since
        if seconds >= _AHEAD_SECONDS:
            self._ahead = int(self._counted * _AHEAD_SECONDS / seconds)
            self._counted, self._counted_since = 0, now

    def _may_probe(self, now: float) -> bool:
        """While the circuit is open: whether the caller is to try a message now, alone."""
        assert self._circuit is not None
        at = self._circuit.next_probe_at
        return not self._probe and (at is None or now >= at)

    def moment(self, now: float) -> float | None:
        """When something that waits may go on. `now`: when the caller looked for something to do; a probe that was not
        due then, and is by now, is one to wait for."""
        moments = (self.lanes.next_moment(), None if self.batches is None else self.batches.next_moment())
        soonest = min((moment for moment in moments if moment is not None), default=None)
        if not self.held or self._circuit is None:
            return soonest
        if self._probe:
            return None
        probe_at = self._circuit.next_probe_at or 0.0
        if self.lanes.ready and probe_at > now:
            return probe_at
        # A probe that is due waits for a message to try, as long as it takes: its moment lies in the past, and who
        # waited for it would not wait at all.
        return None if soonest is None else max(soonest, probe_at)

    @property
    def more(self) -> bool:
        """Whether one who is idle has something to do, or to wait for."""
        return bool(self.dealt) or self.lanes.ready > 0 or self.moment(monotonic()) is not None

    def give_back(self, lane: Lane, moment: float | None = None) -> None:
        """The worker is through with it, for now; its head is tried again at a `moment`."""
        with self.lock:
            self._counted += 1
            if self._probe and lane is self._probe[0]:
                self._probe = ()
            gone = self.lanes.give_back(lane, moment)
            if gone or moment is not None or self.lanes.ready:
                self._wake(max(1, self.lanes.ready))  # one takes note of the moment
            if self._watched:
                self._free.notify_all()

    def tell(self) -> None:
        """The poll thread waits, and a lane is through."""
        with self.lock:
            self._collect()
            self._free.notify_all()

    def next_batch(self, filling: Filling, now: float) -> Batch | float | None:
        assert self.batches is not None
        if self.held and not self._may_probe(now):
            self.put_back(filling)
            return self.moment(now)
        found = self.batches.next(filling, self.lanes, now)
        if isinstance(found, Batch):
            self.put_back(filling)  # what is not in it, so all of it where it was tried before, is for others meanwhile
            if self.held:
                self._probe = found.lanes
        return found

    def put_back(self, filling: Filling) -> None:
        """Under the lock: nobody is about to handle what was gathered, so nobody shall wait for it."""
        lanes, filling.lanes = filling.lanes, []
        for lane in reversed(lanes):
            self.lanes.give_back(lane, untouched=True)
        if lanes and self._watched:
            self._free.notify_all()

    def batch_ended(self, batch: Batch, moment: float | None) -> None:
        """It is through, or waits for its next attempt."""
        assert self.batches is not None
        with self.lock:
            if self._probe is batch.lanes:
                self._probe = ()
            if moment is None:
                gone = [self.lanes.give_back(lane) for lane in batch.lanes]
            else:
                gone = [self.lanes.park(lane) for lane in batch.lanes]
                self.batches.wait(batch, moment)
            if self.lanes.ready or moment is not None or any(gone):
                self._wake(max(1, self.lanes.ready))  # one of them takes note of the moment
            if self._watched:
                self._free.notify_all()

    def failed(self, error: BaseException) -> None:
        """The consumer has to stop."""
        with self.lock:
            if self.failure is None:
                self.failure = error
            self._reclaim()
            self._wake_all()
            self._free.notify_all()

    def enter(self) -> Handling:
        handling = Handling(self.limit)
        self.handlings.append(handling)
        return handling

    # ---- one message that failed

    async def settle(self, lane: Lane, message: Message, error: BaseException, began: float) -> float | None:
        """None: it is settled (its dead letter is in Kafka), or given up since its partition is gone. Else the moment
        of its next attempt. Raises what stops the consumer."""
        progress = lane.of.progress
        if progress.revoked and isinstance(error, Exception):
            return None  # whoever has the partition next handles it
        decision = decide(message, error, lane.trial, self.retry, began)
        if isinstance(decision, Later):
            self.retries += 1
            lane.trial = decision.trial
            return self.next_attempt(decision.moment)
        held_until = self.fails(message, decision)
        if held_until is not None:
            lane.trial = decision.trial
            return held_until
        lane.trial = None
        await self.give_up_on(message, decision)
        progress.finished.append(message)
        return None

    def fails(self, message: Message, exhausted: Exhausted) -> float | None:
        """Ask the circuit. None: the message may be given up; else when to try it again. Raises `DeadLetterFailed`."""
        circuit = self._circuit
        if circuit is None:
            return None
        with self.lock:
            now, openings = monotonic(), circuit.openings
            may = circuit.failed(now)
            opened, self.troubled, self.held = circuit.openings > openings, True, circuit.is_open
            if self.held:
                self._reclaim()
            if opened:
                self._held_since = now
            until, why, held_for = circuit.next_probe_at, circuit.why, now - self._held_since
        if may:
            return None
        if opened:
            emit(
                Event.DEAD_LETTER_CIRCUIT_OPEN,
                message=f"{message.topic()}[{message.partition()}]@{message.offset()}",
                error=type(exhausted.error).__qualname__,
                why=why,
            )
        if self._stops_at_limit or held_for > self.retry.max_hold:
            raise limit_reached(message, exhausted.error, why)
        return until

    def next_attempt(self, moment: float) -> float:
        """Of what has attempts left. If it was a probe, nobody else tries before the next pause is over."""
        if not self.held:
            return moment
        assert self._circuit is not None
        with self.lock:
            if self._circuit.is_open:  # or a success has closed it meanwhile
                self._circuit.failed(monotonic())
            return max(moment, self._circuit.next_probe_at or 0.0)

    def succeeds(self) -> None:
        """A handler has, after failures."""
        assert self._circuit is not None
        with self.lock:
            closed = self._circuit.succeeded(monotonic())
            self.troubled = self.held = self._circuit.is_open
            if closed:
                self._probe = ()  # it has told what it was to tell, and its worker may go on to the next message
                self._wake_all()
        if closed:
            emit(Event.DEAD_LETTER_CIRCUIT_CLOSED, seconds=round(monotonic() - self._held_since, 1))

    async def give_up_on(self, message: Message, exhausted: Exhausted) -> None:
        """Returns when its dead letter is in Kafka."""
        error = _as_raised_by_handler(exhausted.error)
        if self.dead_letters is None:
            raise HandlerFailed(message, exhausted.attempts, error) from error
        await self._write(message, exhausted._replace(error=error))
        self.dead_lettered += 1

    async def _write(self, message: Message, exhausted: Exhausted) -> None:
        raise NotImplementedError


def _as_raised_by_handler(error: Exception) -> Exception:
    """Without our own frames: the reader of a dead letter wants the handler's."""
    trace = error.__traceback__
    while trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("safekafka.consumer."):
        trace = trace.tb_next
    return error if trace is None else error.with_traceback(trace)
