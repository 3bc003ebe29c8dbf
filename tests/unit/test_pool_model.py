"""The pool against a naive model: whatever the workers and the poll thread do between two steps of each other, nothing
is handled twice or left out, no two messages of a lane at once or out of order, and nobody sleeps who has work.

The test is all the threads. A worker is a generator that stops wherever another thread could come in between; `between`
says who does so within a step of the poll thread, or of a worker that has the lock: before each look at the two queues
that take no lock.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
from confluent_kafka import Message
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from safekafka import DeadLetter, Retry
from safekafka.consumer import pool as pool_module
from safekafka.consumer.attempt import Exhausted
from safekafka.consumer.lanes import ORDERS, Lane, Order, PartitionLanes
from safekafka.consumer.pool import Pool
from safekafka.consumer.progress import PartitionProgress
from tests.processes import wait_until

PARTITIONS, CONCURRENCY = 3, 3
NUMBERS = st.integers(0, 1 << 20)
KEYS = st.lists(st.sampled_from([None, b"a", b"b", b"c"]), min_size=1, max_size=6)
OUTCOMES = ["ok"] * 8 + ["slice", "slice", "retry", "exhausted"]
BETWEEN = st.lists(st.integers(0, CONCURRENCY), max_size=8)  # `CONCURRENCY`: no more for now
STEPS = st.lists(
    st.sampled_from([(number, outcome) for outcome in OUTCOMES for number in range(CONCURRENCY)]),
    min_size=1,
    max_size=40,
)
LOCK_FREE, LOCKED = False, True


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def fake_time(monkeypatch: pytest.MonkeyPatch) -> None:
    CLOCK.now = 1_000.0
    monkeypatch.setattr(pool_module, "monotonic", CLOCK)
    monkeypatch.setattr(pool_module, "emit", lambda *_, **__: None)


class Shared(deque[Lane]):
    """A queue that takes no lock: others come in before each look at it, and before what was seen is acted upon."""

    def __init__(self, pause: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.pause = pause

    def __len__(self) -> int:
        self.pause()
        length = super().__len__()
        self.pause()
        return length

    def pop(self) -> Lane:  # type: ignore[override]
        self.pause()
        return super().pop()

    def popleft(self) -> Lane:
        self.pause()
        return super().popleft()


class FakeCondition(threading.Condition):
    """The poll thread waits here, while the others go on: `others(seconds)` lets them, and tells whether they notified
    it."""

    def __init__(self, lock: Any, others: Callable[[float], bool]) -> None:
        super().__init__(lock)
        self.others = others
        self.notified = 0

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        return timeout > 0 and self.others(timeout)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        assert timeout is not None
        result = predicate()
        while not result and timeout > 0:
            notified = self.others(timeout)
            result = predicate()
            if not notified:
                break
        return result

    def notify_all(self) -> None:
        self.notified += 1


class NoWorkers(Pool):
    """The test is the workers: of those who were to be woken, it is noted how many."""

    def __init__(self, order: Order, *, wake: Callable[[float], None] = lambda _: None) -> None:
        super().__init__(
            lambda _: None,
            order=order,
            concurrency=CONCURRENCY,
            retry=Retry(max_hold=1e9),
            dead_letters=None,
            letters=DeadLetter("orders.dlq", max_consecutive=1),
            batch=None,
        )
        self.wakes = 0
        self._tell_wake = wake

    def _wake(self, lanes: int) -> None:
        assert self.lock.locked()
        self.wakes += lanes > 0
        self._tell_wake(lanes)

    def _wake_all(self) -> None:
        assert self.lock.locked()
        self.wakes += 1
        self._tell_wake(math.inf)


class Assignment:
    """What a naive consumer knows of one assignment of a partition."""

    def __init__(self, partition: int, position: int) -> None:
        self.partition = partition
        self.lanes = PartitionLanes(PartitionProgress("orders", partition))
        self.position = position  # in the log: what is delivered next
        self.given: list[Message] = []
        self.handled: set[int] = set()
        self.begun: dict[Any, int] = {}  # the last offset of each lane
        self.given_up = False


class Worker:
    """As `ThreadPool._run`."""

    def __init__(self, model: PoolModel) -> None:
        self.model = model
        self.pool = model.pool
        self.lane: Lane | None = None  # it has it
        self.probes = 0  # the opening of the circuit for which its lane is the one that is tried
        self.handling = False  # from the beginning of a handler to the look at the next message
        self.asleep = self.woken = False
        self.until = math.inf
        self.returning: Lane | None = None  # it gives it back, and may have to tell so
        self.running = False
        self.done = False
        self._steps = self._run()
        self.takes_lock = next(self._steps)

    @property
    def may_step(self) -> bool:
        awake = not self.asleep or self.woken or self.until <= CLOCK.now
        return awake and not (self.done or self.running or (self.takes_lock and self.pool.lock.locked()))

    def step(self, outcome: str) -> None:
        self.running = True
        try:
            self.takes_lock = self._steps.send(outcome)
        except StopIteration:
            self.done = True
        finally:
            self.running = False

    def _run(self) -> Generator[bool, str, None]:
        """Before each step it says whether that takes the lock, and is sent what becomes of the message."""
        pool, model = self.pool, self.model
        lane = yield from self._take()
        while lane is not None:
            yield LOCK_FREE
            moment: float | None = None
            progress, rest, message = lane.of.progress, lane.rest, lane.head
            lane.head = None
            yield LOCK_FREE
            while message is not None and not progress.revoked:
                model.begins(self, lane, message)
                self.handling = True
                outcome = yield LOCK_FREE
                if outcome in ("retry", "exhausted"):
                    if not progress.revoked:
                        yield LOCKED
                        with model.locked_step():
                            if outcome == "retry":
                                moment = pool.next_attempt(CLOCK.now + 0.5)
                            else:
                                moment = pool.fails(message, Exhausted(ValueError(), 1, None))  # type: ignore[arg-type]
                        if moment is not None:
                            model.seen["opened" if pool.held else "retry"] += 1
                            break
                        yield LOCK_FREE
                        model.finishes(lane, message)
                else:
                    model.finishes(lane, message)
                    yield LOCK_FREE
                    if pool.troubled:
                        yield LOCKED
                        before = pool.held
                        with model.locked_step():
                            pool.succeeds()
                        model.seen["closed"] += before and not pool.held
                if not rest:
                    message = None
                    break
                yield LOCK_FREE
                message = rest.popleft()
                if outcome == "slice" or pool.held:
                    break
            self.handling = False
            self.returning = lane
            if message is None and not (lane.rest or pool.troubled or progress.revoked):
                yield LOCK_FREE
                pool.through.append(lane)
                self.lane = None
                model.seen["through"] += 1
                model.seen["through late"] += progress.revoked
                model.seen["through with messages"] += bool(lane.rest)
                yield LOCK_FREE
                if pool._watched:
                    yield LOCKED
                    with model.locked_step(), model.tells():
                        pool.tell()
                        model.seen["told"] += 1
                else:
                    assert not model.poll_waits, "nobody tells the poll thread"
            else:
                lane.head = message
                yield LOCKED
                # While the circuit is open, its worker looks next: nothing is dealt that he could take instead.
                with model.locked_step(looks_next=pool.held), model.tells():
                    pool.give_back(lane, moment)
                    self.lane = None
                model.seen["given back late"] += progress.revoked
            self.returning, self.probes = None, 0
            yield LOCK_FREE
            try:
                lane = pool.dealt.popleft()
                model.seen["dealt"] += 1
            except IndexError:
                lane = yield from self._take()
            else:
                self._took(lane)

    def _take(self) -> Generator[bool, str, Lane | None]:
        pool, model = self.pool, self.model
        while True:
            yield LOCKED
            self.asleep = self.woken = False
            with model.locked_step(), pool.lock:
                if pool.ended or pool.failure is not None:
                    return None
                at = CLOCK.now
                openings = pool.held and pool._circuit.openings  # type: ignore[union-attr]
                lane = pool._next(at)
                if lane is not None:
                    self._took(lane)
                    if openings:
                        others = [one for one in model.workers if one is not self and one.probes == openings]
                        assert all(one.lane is None or one.lane.of.progress.revoked for one in others), "two probes"
                        self.probes = openings
                        model.seen["probe"] += 1
                    if pool.more:
                        pool._wake(1)
                    return lane
                self.asleep = True
                moment = pool.moment(at)
                self.until = math.inf if moment is None else moment

    def _took(self, lane: Lane) -> None:
        assert not lane.of.progress.revoked, "a lane of a partition that is gone"
        for other in self.model.workers:
            if other.lane is not None and other.lane.of.place == lane.of.place:
                assert other.lane.of is lane.of, "a handler of an earlier assignment still runs"
                assert other.lane.key != lane.key, "two have the same lane"
        self.lane = lane


class PoolModel(RuleBasedStateMachine):
    order: ClassVar[Order]
    seen: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        CLOCK.now = 1_000.0
        self.pool = NoWorkers(self.order, wake=self.wake)
        self.pool.dealt, self.pool.through = Shared(self.pause), Shared(self.pause)
        self.free = self.pool._free = FakeCondition(self.pool.lock, self.others)
        self.between: list[int] = []
        self.paused = self.poll_waits = False
        self.at_last = "all"
        self.logs: dict[int, list[Message]] = {partition: [] for partition in range(PARTITIONS)}
        self.assigned: dict[int, Assignment] = {}
        self.all: dict[PartitionLanes, Assignment] = {}
        self.next_position = dict.fromkeys(range(PARTITIONS), 0)
        self.workers: list[Worker] = []
        self.workers.append(Worker(self))

    @initialize(ahead=st.integers(0, 10), at_last=st.sampled_from(["all", "all", "end", "failed"]))
    def begin(self, ahead: int, at_last: str) -> None:
        self.at_last = at_last
        for partition in range(PARTITIONS - 1):
            self.assign(partition)
        self.deal_ahead(ahead)

    # ---- who may do something in between

    def pause(self) -> None:
        """Others come in, if they are to. Only while this one has the lock: else a rule has one step anyway."""
        if not self.between or self.paused or not self.pool.lock.locked():
            return
        self.paused = True
        try:
            while self.between and (number := self.between.pop(0)) < CONCURRENCY:  # or no more, this time
                if number < len(self.workers) and not self.workers[number].takes_lock:
                    self.step_one(number, "ok")
                    self.seen["in between"] += 1
        finally:
            self.paused = False

    def others(self, seconds: float) -> bool:
        """The poll thread waits. Whether it was notified."""
        lock, before = self.pool.lock, self.free.notified
        assert self.pool._watched
        self.poll_waits = True
        lock.release()
        try:
            while self.between:
                number = self.between.pop(0)
                if number < len(self.workers):
                    self.step_one(number, "ok")
                elif self.free.notified > before:
                    break
        finally:
            lock.acquire()
            self.poll_waits = False
        self.seen["waited"] += 1
        if self.free.notified > before:
            return True
        about_to_tell = sum(worker.lane is None and worker.returning is not None for worker in self.workers)
        assert len(self.pool.through) <= about_to_tell, "a lane is through, and the poll thread does not hear of it"
        CLOCK.now += seconds
        return False

    @contextmanager
    def tells(self) -> Iterator[None]:
        """Of a lane that is free now, to the poll thread, if it waits."""
        before = self.free.notified
        yield
        if self.poll_waits:
            assert self.free.notified > before, "the poll thread is not told"

    def wake(self, lanes: float) -> None:
        """As `ThreadPool`."""
        idle = [worker for worker in self.workers if worker.asleep]
        for worker in [worker for worker in idle if not worker.woken][: int(min(lanes, CONCURRENCY))]:
            worker.woken = True
        if lanes < math.inf:
            for _ in range(min(int(lanes) - len(idle), CONCURRENCY - len(self.workers))):
                self.workers.append(Worker(self))

    def step_one(self, number: int, outcome: str) -> bool:
        if not (number < len(self.workers) and self.workers[number].may_step):
            return False
        self.workers[number].step(outcome)
        return True

    # ---- what a naive consumer knows

    def begins(self, worker: Worker, lane: Lane, message: Message) -> None:
        of, offset = self.all[lane.of], message.offset()
        assert offset is not None
        assert worker.lane is lane
        assert not of.given_up, "begun after its partition was given up"
        assert offset not in of.handled, "handled twice"
        assert offset >= of.begun.get(lane.key, -1), "out of order"
        assert lane.key == {"partition": None, "key": message.key(), "none": offset}[self.order]
        of.begun[lane.key] = offset

    def finishes(self, lane: Lane, message: Message) -> None:
        of = self.all[lane.of]
        assert message.offset() not in of.handled, "handled twice"
        of.handled.add(message.offset())  # type: ignore[arg-type]
        lane.of.progress.finished.append(message)

    @property
    def soonest(self) -> float:
        """When one who is idle could begin with something, or take note that he can."""
        pool, lanes = self.pool, self.pool.lanes
        if pool.ended or pool.failure is not None:
            return math.inf
        if deque.__len__(pool.dealt):
            return CLOCK.now
        late = self.late()
        takeable = any(one.lanes.ready and one.lanes.place not in late for one in self.assigned.values())
        waiting = min((moment for moment, _, _ in lanes._waiting), default=math.inf)
        if not pool.held:
            return CLOCK.now if takeable else max(CLOCK.now, waiting)
        circuit = pool._circuit
        assert circuit is not None
        for worker in self.workers:
            if worker.probes == circuit.openings and worker.lane is not None and not worker.lane.of.progress.revoked:
                return math.inf
        probe_at = circuit.next_probe_at
        assert probe_at is not None
        return max(CLOCK.now, probe_at, -math.inf if takeable else waiting)

    def had(self) -> list[Lane]:
        """Lanes that count as taken."""
        at_work = [worker.lane for worker in self.workers if worker.lane is not None]
        return [*self.pool.dealt, *self.pool.through, *at_work]

    def late(self) -> dict[tuple[str, int], int]:
        return Counter(lane.of.place for lane in self.had() if lane.of.progress.revoked)

    @contextmanager
    def locked_step(self, *, looks_next: bool = False) -> Iterator[None]:
        """`looks_next`: who does it takes note himself."""
        before, wakes = self.soonest, self.pool.wakes
        if CLOCK.now < before < math.inf:
            self.seen["to wait for"] += 1
        yield
        after = self.soonest
        if after < before:
            self.seen["more to do"] += 1
            assert looks_next or self.pool.wakes > wakes, f"nobody is woken: {before} {after}"

    @contextmanager
    def poll_step(self, between: list[int]) -> Iterator[None]:
        self.between = list(between)
        with self.locked_step():
            yield
        self.between = []

    # ---- the poll thread

    @precondition(lambda self: not self.pool.ended)
    @rule(runs=st.lists(st.tuples(st.integers(0, PARTITIONS - 1), KEYS), min_size=1, max_size=4), between=BETWEEN)
    def poll(self, runs: list[tuple[int, list[bytes | None]]], between: list[int]) -> None:
        added = []
        for number, keys in runs if self.assigned else []:
            of = self.assigned[sorted(self.assigned)[number % len(self.assigned)]]
            partition, log = of.partition, self.logs[of.partition]
            for key in keys[len(log) - of.position :]:
                offset = 1 + (log[-1].offset() or 0) + len(log) % 3 if log else 5
                log.append(Message(topic="orders", partition=partition, offset=offset, key=key, value=b"1"))
            messages = log[of.position : of.position + len(keys)]
            of.position += len(messages)
            of.given += messages
            if messages:
                assert of.lanes.progress.track_run(messages, epochs=False) == messages
                added.append((of.lanes, messages))
        with self.poll_step(between):
            self.pool.add(added)

    @precondition(lambda self: not self.pool.ended)
    @rule(between=BETWEEN)
    def tend(self, between: list[int]) -> None:
        found = [lane for lane in self.pool.through if lane.rest and not lane.of.progress.revoked]
        with self.poll_step(between):
            self.pool.tend()
        assert not any(lane in self.pool.through for lane in found)

    @precondition(lambda self: self.assigned and not self.pool.ended)
    @rule(
        partitions=st.sets(st.integers(0, PARTITIONS - 1), min_size=1),
        seconds=st.sampled_from([None, -1.0, 0.0, 0.3]),
        between=BETWEEN,
        while_waiting=BETWEEN,
        again=st.booleans(),
    )
    def take_away(
        self, partitions: set[int], seconds: float | None, between: list[int], while_waiting: list[int], again: bool
    ) -> None:
        """`seconds`: for the handlers that run; None: the partitions are lost. `again`: they come back at once."""
        gone = [self.assigned[partition] for partition in sorted(partitions) if partition in self.assigned]
        lanes = [of.lanes for of in gone]
        with self.poll_step(between):
            self.pool.give_up(lanes, None)
        for of in gone:
            of.given_up = True
            assert of.lanes.progress.revoked
            assert not of.lanes.ready
            del self.assigned[of.partition]
        if seconds is not None:
            self.wait(lanes, seconds, while_waiting)
            for of in gone:
                self.settle_one(of)
        for of in gone:
            frontier = of.lanes.progress.frontier
            if frontier is not None:
                log = self.logs[of.partition]
                self.next_position[of.partition] = sum((message.offset() or 0) < frontier for message in log)
        self.seen["late"] += any(of.lanes.running for of in gone)
        if again:
            for of in gone:
                self.assign(of.partition)
            self.poll([(partition, [None, b"a"]) for partition in range(len(self.assigned))], between)

    def wait(self, lanes: Collection[PartitionLanes], seconds: float, between: list[int]) -> None:
        end = CLOCK.now + seconds
        with self.poll_step(between):
            free = self.pool.wait_until_free(lanes, lambda: end)
        taken = [lane for lane in self.had() if lane.of in lanes]
        if not between:
            assert not any(lane.of in lanes for lane in self.pool.through)
        assert not (free and taken), "it is not free"
        assert free or taken, "it is free"
        assert not self.pool._watched

    @precondition(lambda self: self.assigned and not self.pool.ended)
    @rule(partition=st.integers(0, PARTITIONS - 1), seconds=st.sampled_from([-1.0, 0.0, 0.3]), between=BETWEEN)
    def wait_until_free(self, partition: int, seconds: float, between: list[int]) -> None:
        """Without `give_up`: what is dealt counts as well."""
        if partition in self.assigned:
            self.wait([self.assigned[partition].lanes], seconds, between)

    @precondition(lambda self: not self.pool.ended)
    @rule(between=BETWEEN)
    def wait_for_progress(self, between: list[int]) -> None:
        with self.poll_step(between):
            self.pool.wait_for_progress(0.01)
        assert not self.pool._watched

    @rule(partition=st.integers(0, PARTITIONS - 1))
    def assign(self, partition: int) -> None:
        if partition not in self.assigned and not self.pool.ended:
            of = self.assigned[partition] = Assignment(partition, self.next_position[partition])
            self.all[of.lanes] = of

    @rule()
    def settle(self) -> None:
        for of in self.assigned.values():
            self.settle_one(of)

    def settle_one(self, of: Assignment) -> None:
        of.lanes.progress.settle()
        assert of.lanes.progress.unfinished == len(of.given) - len(of.handled)

    @rule(ahead=st.integers(0, 10))
    def deal_ahead(self, ahead: int) -> None:
        """As measured just now."""
        self.pool._ahead, self.pool._counted_since = ahead, CLOCK.now

    @rule(seconds=st.sampled_from([0.001, 0.005, 0.03, 0.5, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        CLOCK.now += seconds

    def stop(self, ends: bool, between: list[int]) -> None:
        """With all that is under way, dealt and waiting."""
        with self.poll_step(between):
            if ends:
                self.pool.end()
            else:
                self.pool.failed(SystemExit("injected"))
        self.seen["ended" if ends else "failed"] += 1

    # ---- the workers

    @rule(steps=STEPS, between=BETWEEN)
    def work(self, steps: list[tuple[int, str]], between: list[int]) -> None:
        self.between = list(between)
        for number, outcome in steps:
            if self.step_one(number, outcome):
                self.everything_agrees()
        self.between = []

    @precondition(lambda self: self.assigned and not self.pool.ended)
    @rule(
        runs=st.lists(st.tuples(st.integers(0, PARTITIONS - 1), KEYS), min_size=1, max_size=2),
        steps=STEPS,
        between=BETWEEN,
    )
    def goes_on(
        self, runs: list[tuple[int, list[bytes | None]]], steps: list[tuple[int, str]], between: list[int]
    ) -> None:
        """As nearly always: so that runs are not all trouble."""
        self.poll(runs, [])
        self.work(steps, between)

    @rule(number=st.integers(0, CONCURRENCY - 1), count=st.integers(1, 12), outcome=st.sampled_from(OUTCOMES))
    def work_on(self, number: int, count: int, outcome: str) -> None:
        """One of them, while the others stand still."""
        self.work([(number, outcome)] * count, [])

    @rule(number=st.integers(0, CONCURRENCY - 1))
    def decide_that_it_is_through(self, number: int) -> None:
        """And not put it there yet."""
        for _ in range(12):
            if number < len(self.workers) and self.workers[number].returning is None:
                self.work([(number, "ok")], [])

    @precondition(lambda self: not self.pool.ended)
    @rule(
        number=st.integers(0, CONCURRENCY - 1),
        gone=st.booleans(),
        key=st.sampled_from([None, b"a", b"b", b"c"]),
        between=BETWEEN,
    )
    def comes_before_it_is_there(self, number: int, gone: bool, key: bytes | None, between: list[int]) -> None:
        """The same, and what it is through with is taken away, or goes on."""
        self.decide_that_it_is_through(number)
        lane = self.workers[number].returning if number < len(self.workers) else None
        partition = None if lane is None else lane.of.place[1]
        if partition not in self.assigned:
            return
        if gone:
            self.take_away({partition}, 0.0, between, [], again=True)
        else:
            self.poll([(sorted(self.assigned).index(partition), [key, key])], between)
        self.work([(number, "ok"), (number, "ok")], [])
        self.tend(between)

    # ---- what is behind the handlers

    @precondition(lambda self: not self.pool.held)
    @rule(between=BETWEEN)
    def breaks_down(self, between: list[int]) -> None:
        """As by messages that are of no matter here."""
        message = Message(topic="orders", partition=PARTITIONS, offset=0, key=None, value=b"1")
        while not self.pool.held:
            with self.poll_step(between):
                self.pool.fails(message, Exhausted(ValueError(), 1, None))  # type: ignore[arg-type]
        with self.pool.lock:
            self.pool._wake(1)
        self.seen["opened"] += 1

    @precondition(lambda self: self.pool.held)
    @rule(between=BETWEEN, recovers=st.booleans(), outcome=st.sampled_from(["ok", "slice", "retry", "exhausted"]))
    def is_tried_again(self, between: list[int], recovers: bool, outcome: str) -> None:
        """A probe is due; `recovers`: one that was under way succeeds."""
        CLOCK.now = max(CLOCK.now, self.pool._circuit.next_probe_at or 0.0)  # type: ignore[union-attr]
        if recovers:
            with self.poll_step(between):
                self.pool.succeeds()
            assert not self.pool.held
            self.seen["closed"] += 1
        else:
            self.work([(number, outcome) for number in range(CONCURRENCY)] * 8, between)

    # ---- always

    @invariant()
    def everything_agrees(self) -> None:
        pool, lanes = self.pool, self.pool.lanes
        had, waiting = self.had(), [lane for _, _, lane in lanes._waiting]
        assert not pool.lock.locked()
        assert len(set(had)) == len(had), "a lane in two places"
        running = Counter(lane.of for lane in had)
        assert all(of.running == running[of] for of in self.all)
        assert self.late() == lanes._late
        places: dict[tuple[str, int], set[PartitionLanes]] = {}
        for lane in had:
            places.setdefault(lane.of.place, set()).add(lane.of)
        assert all(len(ofs) == 1 for ofs in places.values()), "two assignments of a partition at once"
        ready = 0
        for assignment in self.assigned.values():
            of = assignment.lanes
            idle = [lane for lane in of.lanes.values() if lane not in had and lane not in waiting]
            assert sorted(map(id, idle)) == sorted(map(id, of.ready))
            assert all(lane.head is not None for lane in idle)
            assert all(of.lanes[lane.key] is lane for lane in had if lane.of is of)
            ready += len(idle)
        assert lanes.ready == ready
        assert not any(lane.of.progress.revoked for lane in [*waiting, *pool.dealt])
        if pool.held or pool.ended or pool.failure is not None:
            assert not pool.dealt, "dealt, although nobody may begin with it"
        self.nobody_sleeps_who_has_work()

    def nobody_sleeps_who_has_work(self) -> None:
        """Or somebody is about to look, and wakes the others."""
        soonest = self.soonest
        if soonest == math.inf:
            return
        asleep = [worker for worker in self.workers if worker.asleep and not worker.woken and worker.until > soonest]
        if not asleep and len(self.workers) == CONCURRENCY:
            return
        self.seen["to look for"] += 1
        for worker in self.workers:
            if not worker.done and worker not in asleep and (worker.lane is None or worker.returning is not None):
                return
        raise AssertionError(f"nobody looks for what is there: {soonest - CLOCK.now} {len(self.workers)} workers")

    def teardown(self) -> None:
        """In the end, with time and no further trouble, everything is handled by those who are awake. Or it is over."""
        if self.at_last != "all":
            self.deal_ahead(5)
            self.poll([(partition, [None, b"a", b"b"]) for partition in range(len(self.assigned))], [])
            self.stop(self.at_last == "end", [1, 0, 2])
            self.everything_agrees()
            self.poll([(partition, [None, b"c"]) for partition in range(len(self.assigned))], [])
            self.everything_agrees()
        for _ in range(300):
            for _ in range(10_000):
                stepped = [self.step_one(number, "ok") for number in range(len(self.workers))]
                if not any(stepped):
                    break
            self.everything_agrees()
            if self.pool.ended or self.pool.failure is not None:
                assert all(worker.done for worker in self.workers), "not all have heard that it is over"
                return
            self.tend([])
            if not (self.missing() or self.pool.through):
                break
            moment = min((worker.until for worker in self.workers if worker.asleep), default=math.inf)
            CLOCK.now = max(CLOCK.now + 0.001, moment if moment < math.inf else 0.0)
        assert not self.missing(), "never handled"
        lanes = self.pool.lanes
        assert not any(of.lanes.lanes for of in self.assigned.values()), "a lane is kept"
        assert not lanes.ready
        assert not lanes._waiting
        assert not lanes._late
        assert not self.pool.dealt
        everyone = [of.lanes for of in self.all.values()]
        assert self.pool.wait_until_free(everyone, lambda: CLOCK.now)
        for of in self.assigned.values():
            self.settle_one(of)
            assert not of.lanes.progress.unfinished
        self.seen["all handled"] += bool(self.all)

    def missing(self) -> list[tuple[int, int | None]]:
        return [
            (of.partition, message.offset())
            for of in self.assigned.values()
            for message in of.given
            if message.offset() not in of.handled
        ]


WANTED = {
    "dealt",
    "in between",
    "through",
    "through late",
    "given back late",
    "late",
    "told",
    "waited",
    "retry",
    "opened",
    "probe",
    "closed",
    "failed",
    "ended",
    "all handled",
}


@pytest.mark.parametrize("order", ORDERS)
def test_C1_C2_whoever_comes_in_between(order: Order, scale: int) -> None:
    model: Any = type(f"PoolModel_{order}", (PoolModel,), {"order": order, "seen": Counter()})
    wanted = WANTED | ({"through with messages"} if order != "none" else set())
    for _ in range(5):  # chance decides what a run comes to
        run_state_machine_as_test(
            model,
            settings=settings(
                max_examples=200 * scale,
                stateful_step_count=50,
                deadline=None,
                report_multiple_bugs=False,
                phases=(Phase.generate, Phase.shrink),  # explaining takes longer than a test may
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            ),
        )
        if all(model.seen[what] for what in wanted):
            break
    print(order, dict(model.seen))
    assert all(model.seen[what] for what in wanted), wanted - {what for what in wanted if model.seen[what]}


# ---- the same races one by one


def given(pool: NoWorkers, *keys: bytes | None) -> PartitionLanes:
    of = PartitionLanes(PartitionProgress("orders", 0))
    add(pool, of, 0, *keys)
    return of


def add(pool: NoWorkers, of: PartitionLanes, offset: int, *keys: bytes | None) -> None:
    messages = [Message("orders", 0, offset + number, key, b"1") for number, key in enumerate(keys)]
    pool.add([(of, of.progress.track_run(messages, epochs=False))])


def taken(pool: NoWorkers) -> Lane:
    with pool.lock:
        lane = pool._next(CLOCK.now)
    assert lane is not None
    return lane


def handled(lane: Lane) -> None:
    """All that its worker knows of."""
    message, lane.head = lane.head, None
    while message is not None:
        lane.of.progress.finished.append(message)
        message = lane.rest.popleft() if lane.rest else None


@pytest.mark.parametrize("when", ["before it looks", "after it looked", "while it waits"])
def test_a_lane_that_is_through_is_told_to_the_poll_thread_whenever_it_begins_to_wait(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never has to look again by itself."""
    monkeypatch.setattr(pool_module, "_STEP_SECONDS", 60.0)
    pool = NoWorkers("key")
    of = given(pool, b"a")
    lane = taken(pool)
    handled(lane)
    pool.give_up([of], None)
    looks: list[bool] = []

    def look() -> None:
        """Twice: before the poll thread sees how many there are, and after it has."""
        looks.append(pool._watched)
        if len(looks) == ["before it looks", "after it looked"].index(when) + 1:
            pool.through.append(lane)

    pool.through = Shared(look if when != "while it waits" else lambda: None)
    free: list[bool] = []
    poll = threading.Thread(target=lambda: free.append(pool.wait_until_free([of], lambda: CLOCK.now + 60)), daemon=True)
    poll.start()
    if when != "before it looks":
        wait_until(lambda: bool(pool._free._waiters), 10, "the poll thread to wait")  # type: ignore[attr-defined]
        if when == "while it waits":
            pool.through.append(lane)
        assert pool._watched
        pool.tell()
    poll.join(10)
    assert free == [True]
    assert all(looks), "it looked before it said that it waits"
    assert not pool._watched


def test_a_lane_that_was_through_before_the_poll_thread_waits_is_found_by_it() -> None:
    pool = NoWorkers("key")
    of = given(pool, b"a")
    lane = taken(pool)
    handled(lane)
    pool.through.append(lane)
    assert not pool._watched  # so nobody tells
    assert pool.wait_until_free([of], lambda: CLOCK.now - 1)
    assert not of.lanes


@pytest.mark.parametrize("order", ["key", "partition"])
def test_a_message_that_comes_between_a_workers_last_look_and_the_end_of_its_lane_is_found(order: Order) -> None:
    pool = NoWorkers(order)
    of = given(pool, b"a")
    lane = taken(pool)
    handled(lane)
    assert not lane.rest  # the worker has looked
    add(pool, of, 1, b"a")
    pool.through.append(lane)
    wakes = pool.wakes
    pool.tend()
    assert pool.wakes > wakes
    assert taken(pool) is lane
    assert lane.head is not None
    assert lane.head.offset() == 1


@pytest.mark.parametrize("left", [0, 1])
def test_a_worker_that_is_quicker_than_who_takes_back_what_was_dealt_has_the_lane(left: int) -> None:
    """`left`: how many lanes are still there after it."""
    pool = NoWorkers("key")
    pool._ahead, pool._counted_since = 10, CLOCK.now
    of = given(pool, *[b"a", b"b"][: left + 1])
    assert len(pool.dealt) == left + 1
    looks = itertools.count()
    quick: list[Lane] = []

    def come() -> None:
        if next(looks) == 1:  # the other has just seen that there are lanes
            quick.append(deque.popleft(pool.dealt))

    pool.dealt, dealt = Shared(come), pool.dealt
    deque.extend(pool.dealt, dealt)
    pool.give_up([of], None)
    assert len(quick) == 1
    assert of.running == 1
    assert quick[0].of.progress.revoked  # its worker sees that before it begins
    assert not pool.wait_until_free([of], lambda: CLOCK.now)
    pool.give_back(quick[0])
    assert pool.wait_until_free([of], lambda: CLOCK.now)


def test_who_has_the_lock_and_sees_a_lane_that_another_one_takes_looks_further() -> None:
    pool = NoWorkers("key")
    pool._ahead, pool._counted_since = 1, CLOCK.now
    given(pool, b"a", b"b")
    looks = itertools.count()
    quick: list[Lane] = []

    def come() -> None:
        if next(looks) == 1:
            quick.append(deque.popleft(pool.dealt))

    pool.dealt, dealt = Shared(come), pool.dealt
    deque.extend(pool.dealt, dealt)
    lane = taken(pool)
    assert [quick[0].key, lane.key] == [b"a", b"b"]
