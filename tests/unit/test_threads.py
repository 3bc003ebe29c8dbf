"""Workers for sync handlers: nothing waits while a worker could have it."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tenacity
from confluent_kafka import Message

from safekafka import DeadLetter, Reject, Retry
from safekafka.consumer.batches import Batch, Filling
from safekafka.consumer.lanes import PartitionLanes
from safekafka.consumer.pool import REFILL, Pool
from safekafka.consumer.progress import PartitionProgress
from safekafka.consumer.tasks import TaskPool
from safekafka.consumer.threads import ThreadPool
from tests.processes import wait_until


class FakeMessage:
    def __init__(self, partition: int) -> None:
        self._partition = partition

    def topic(self) -> str:
        return "orders"

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return 0

    def value(self) -> bytes:
        return b""

    key = headers = value

    def set_value(self, _: Any) -> None: ...

    set_key = set_headers = set_value


class Handler:
    """Partition 0 does not come back before the end; of the others, what begins is noted."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.fails: set[int] = set()
        self.gate = threading.Event()

    def __call__(self, given: Any) -> None:
        partition = (given[0] if isinstance(given, list) else given).partition()
        self.begun.append(partition)
        if partition in self.fails:
            self.fails.discard(partition)
            raise ValueError("once")
        if partition == 0:
            self.gate.wait(60)


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture(params=["one by one", "batches"])
def pool(handler: Handler, request: pytest.FixtureRequest) -> Iterator[ThreadPool]:
    made = ThreadPool(
        handler,
        order="partition",
        concurrency=3,
        retry=Retry(wait=tenacity.wait_fixed(0.3)),
        dead_letters=None,
        letters=None,
        batch=(1, 0.01) if request.param == "batches" else None,
    )
    made.start()
    wait_until(lambda: made._idle == 1, 10, "the first worker to be idle")
    yield made
    handler.gate.set()
    made.end()
    for thread in made.threads:
        thread.join(10)


def adding(pool: ThreadPool) -> Callable[[int], None]:
    def add(partition: int) -> None:
        messages: Any = [FakeMessage(partition)]
        pool._wake(pool.lanes.add(PartitionLanes(PartitionProgress("orders", partition)), messages))

    return add


def test_a_worker_that_ends_before_its_first_message_ends_the_consumer(handler: Handler) -> None:
    pool = ThreadPool(
        handler, order="partition", concurrency=1, retry=Retry(), dead_letters=None, letters=None, batch=None
    )
    assert pool.alive
    refused = MemoryError("no room for a worker")

    def enter() -> Any:
        raise refused

    pool.enter = enter  # type: ignore[method-assign]
    pool.start()
    wait_until(lambda: not pool.alive, 10, "the thread has ended")
    assert pool.failure is refused


def test_lanes_that_come_while_a_worker_wakes_up_do_not_wait_for_each_other(pool: ThreadPool, handler: Handler) -> None:
    add = adding(pool)
    with pool.lock:  # nobody wakes up before all have come
        for partition in range(3):
            add(partition)
    wait_until(lambda: sorted(handler.begun) == [0, 1, 2], 10, lambda: f"all to begin: {handler.begun}")


def test_a_retry_does_not_wait_for_a_handler_that_began_meanwhile(pool: ThreadPool, handler: Handler) -> None:
    handler.fails.add(1)
    add = adding(pool)
    with pool.lock:
        add(1)
    wait_until(lambda: handler.begun == [1], 10, "the first attempt")
    with pool.lock:
        add(0)
    wait_until(lambda: sorted(handler.begun) == [0, 1, 1], 10, lambda: f"the second attempt: {handler.begun}")


@pytest.mark.parametrize("kind", [ThreadPool, TaskPool])
def test_a_worker_that_is_started_for_one_of_the_lanes_that_were_dealt_sees_to_the_others(kind: Any) -> None:
    begun: list[int] = []
    gate = threading.Event()

    def handle(message: Any) -> None:
        begun.append(message.partition())
        if message.partition() < 2:
            gate.wait(30)

    async def handle_async(message: Any) -> None:
        await asyncio.to_thread(handle, message)

    pool = kind(
        handle if kind is ThreadPool else handle_async,
        order="partition",
        concurrency=3,
        retry=Retry(),
        dead_letters=None,
        letters=None,
        batch=None,
    )
    pool.start()
    try:
        added(pool, 0)
        wait_until(lambda: begun == [0], 10, "the only worker to be busy")
        with pool.lock:
            for partition in (1, 2):
                of = PartitionLanes(PartitionProgress("orders", partition))
                pool.lanes.add(of, [Message("orders", partition, 0, None, b"1")])
            pool._ahead = 10
            pool._deal()
            pool._wake(1)  # as when the last handler of an earlier assignment is through
        wait_until(lambda: sorted(begun) == [0, 1, 2], 10, lambda: f"all to begin: {begun}")
    finally:
        gate.set()
        ended(pool)


@pytest.mark.parametrize("kind", [ThreadPool, TaskPool])
def test_lanes_that_nobody_was_woken_for_are_found_at_the_next_turn(kind: Any) -> None:
    begun = threading.Event()

    async def handle_async(_: Any) -> None:
        begun.set()

    pool = kind(
        (lambda _: begun.set()) if kind is ThreadPool else handle_async,
        order="partition",
        concurrency=1,
        retry=Retry(),
        dead_letters=None,
        letters=None,
        batch=None,
    )
    pool.start()
    try:
        wait_until(lambda: len(pool.handlings) == 1 and pool._idle, 10, "the worker to be idle")
        with pool.lock:
            pool.lanes.add(PartitionLanes(PartitionProgress("orders", 0)), [Message("orders", 0, 0, None, b"1")])
        pool.tend()
        assert begun.wait(10)
    finally:
        ended(pool)


class FakeDeadLetters:
    def write(self, message: Any, error: BaseException, attempts: int) -> None: ...

    async def awrite(self, message: Any, error: BaseException, attempts: int) -> None: ...


def with_a_circuit(kind: Any, handler: Any, batch: Any) -> Any:
    """A pool that gives up on the first failure, and whose circuit opens at the second."""
    return kind(
        handler,
        order="partition",
        concurrency=3,
        retry=Retry(attempts=1),
        dead_letters=FakeDeadLetters(),
        letters=DeadLetter("orders.dlq", max_consecutive=1),
        batch=batch,
    )


@pytest.mark.parametrize("kind", [ThreadPool, TaskPool])
@pytest.mark.parametrize("batch", [None, (1, 0.01)])
def test_an_open_circuit_with_nothing_to_try_costs_no_cpu_and_tries_what_comes(kind: Any, batch: Any) -> None:
    begun: list[int] = []

    def fail(given: Any) -> None:
        begun.append((given[0] if isinstance(given, list) else given).partition())
        raise ConnectionError("downstream")

    async def fail_async(given: Any) -> None:
        fail(given)

    pool = with_a_circuit(kind, fail if kind is ThreadPool else fail_async, batch)
    pool.start()
    try:
        lanes = [PartitionLanes(PartitionProgress("orders", partition)) for partition in range(3)]
        for of in lanes[:2]:
            pool.add([(of, [FakeMessage(of.place[1])])])
        wait_until(lambda: pool.held, 10, "the circuit to open")
        pool.give_up(lanes[:2], None)  # as a rebalance that takes all partitions
        assert pool._circuit.next_probe_at is not None
        wait_until(lambda: time.monotonic() > pool._circuit.next_probe_at + 0.1, 10, "a probe to be due")
        tries, wake = 0, pool.lanes.wake

        def counting(now: float) -> None:
            nonlocal tries
            tries += 1
            wake(now)

        pool.lanes.wake = counting
        time.sleep(0.5)  # in which nothing is to happen
        assert tries <= 3
        pool.add([(lanes[2], [FakeMessage(2)])])
        wait_until(lambda: 2 in begun, 10, "what comes to be tried")
    finally:
        pool.end()
        for thread in pool.threads:
            thread.join(10)


class HalfFull:
    """Two workers: one has a full batch of partition 0, whose handler fails when it may go on; the other waits for more
    than the one message of partition 1 that it has."""

    def __init__(self, kind: Any, error: BaseException, **options: Any) -> None:
        self.go_on = threading.Event()
        self.lanes = [PartitionLanes(PartitionProgress("orders", partition)) for partition in range(2)]
        self.handled: list[int | None] = []

        def fail(messages: list[Message]) -> None:
            self.handled.append(messages[0].partition())
            assert self.go_on.wait(30)
            raise error

        async def fail_async(messages: list[Message]) -> None:
            self.handled.append(messages[0].partition())
            await asyncio.to_thread(self.go_on.wait, 30)
            raise error

        self.pool = kind(
            fail if kind is ThreadPool else fail_async,
            order="partition",
            concurrency=2,
            retry=Retry(attempts=1),
            batch=(2, 60.0),
            **{"dead_letters": None, "letters": None, **options},
        )

    def __enter__(self) -> HalfFull:
        self.pool.start()
        for partition, count in ((0, 2), (1, 1)):
            of = self.lanes[partition]
            messages = [Message("orders", partition, offset, None, b"1") for offset in range(count)]
            self.pool.add([(of, of.progress.track_run(messages, epochs=False))])
            wait_until(lambda: of.running == 1, 10, "a worker to take the lane")
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self.pool.end()
        for thread in self.pool.threads:
            thread.join(10)

    def drain(self) -> float:
        """As a rebalance, and the end, do it. Seconds."""
        began = time.monotonic()
        self.pool.give_up(self.lanes, began + 10)
        assert self.pool.wait_until_free(self.lanes, lambda: began + 10), [of.running for of in self.lanes]
        return time.monotonic() - began


@pytest.mark.parametrize("kind", [ThreadPool, TaskPool])
def test_a_half_filled_batch_holds_up_no_end_of_a_consumer_that_failed(kind: Any) -> None:
    with HalfFull(kind, SystemExit("injected")) as half:
        half.go_on.set()
        wait_until(lambda: half.pool.failure is not None, 10, "the failure")
        assert half.drain() < 3
        assert 1 not in half.handled


@pytest.mark.parametrize("kind", [ThreadPool, TaskPool])
def test_a_half_filled_batch_holds_up_no_rebalance_while_the_circuit_is_open(kind: Any) -> None:
    letters = DeadLetter("orders.dlq", max_consecutive=1)
    with HalfFull(kind, ConnectionError("downstream"), dead_letters=FakeDeadLetters(), letters=letters) as half:
        half.go_on.set()
        wait_until(lambda: half.pool.held, 10, "the circuit to open")
        with half.pool.lock:
            half.pool._circuit.next_probe_at += 30  # as later, when the pauses are long
        assert half.drain() < 3
        assert 1 not in half.handled


@pytest.mark.parametrize("kind", [ThreadPool, TaskPool])
def test_what_a_half_filled_batch_had_is_tried_when_the_circuit_allows_it(kind: Any) -> None:
    letters = DeadLetter("orders.dlq", max_consecutive=1)
    with HalfFull(kind, ConnectionError("downstream"), dead_letters=FakeDeadLetters(), letters=letters) as half:
        half.go_on.set()
        wait_until(lambda: half.pool.held, 10, "the circuit to open")
        half.pool.batches._max_wait = 0.01  # of what is filled from now on
        half.pool.give_up(half.lanes[:1], None)
        wait_until(lambda: 1 in half.handled, 10, lambda: f"partition 1 to be tried: {half.handled}")


def test_a_probe_that_becomes_due_while_a_worker_looks_is_waited_for() -> None:
    """It would sleep until the next message comes, although there is one to try."""
    pool = ThreadPool(
        lambda _: None,
        order="partition",
        concurrency=1,
        retry=Retry(),
        dead_letters=None,
        letters=DeadLetter("orders.dlq", max_consecutive=1),
        batch=None,
    )
    assert pool._circuit is not None
    message: Any = FakeMessage(0)
    pool.lanes.add(PartitionLanes(PartitionProgress("orders", 0)), [message])
    pool.held = True
    due = pool._circuit.next_probe_at = time.monotonic() - 0.001
    assert pool.moment(due - 0.001) == due


def pool_of(handler: Callable[[Any], None], batch: tuple[int, float] | None, **options: Any) -> ThreadPool:
    settings: dict[str, Any] = {"concurrency": 1, "dead_letters": None, "letters": None, **options}
    pool = ThreadPool(handler, order="partition", batch=batch, **settings)
    pool.start()
    return pool


def added(pool: Pool, partition: int, count: int = 1) -> PartitionLanes:
    lanes = PartitionLanes(PartitionProgress("orders", partition))
    messages = [Message(topic="orders", partition=partition, offset=offset, value=b"") for offset in range(count)]
    lanes.progress.track_run(messages, epochs=False)
    pool.add([(lanes, messages)])
    return lanes


@pytest.mark.parametrize("batch", [None, (1, 0.01)])
def test_C2_a_lane_whose_message_stops_the_consumer_is_given_back_when_nobody_takes_it_any_more(batch: Any) -> None:
    """Another worker would handle the next message of the key."""

    def fail(_: Any) -> None:
        raise ValueError("never")

    pool = pool_of(fail, batch, retry=Retry(attempts=1))
    given_back: list[bool] = []
    give_back = pool.lanes.give_back

    def noted(*arguments: Any, **options: Any) -> bool:
        given_back.append(pool.failure is not None)
        return give_back(*arguments, **options)

    pool.lanes.give_back = noted  # type: ignore[method-assign]
    added(pool, 0, 2)
    wait_until(lambda: bool(given_back), 10, "the lane to be given back")
    pool.end()
    assert given_back == [True]


@pytest.mark.parametrize("batch", [None, (1, 0.01)])
def test_a_probe_of_an_open_circuit_with_attempts_left_is_followed_by_a_pause(batch: Any) -> None:
    tried: list[float] = []

    def fail(given: Any) -> None:
        tried.append(time.monotonic())
        partition = (given[0] if isinstance(given, list) else given).partition()
        raise ConnectionError("downstream") if partition < 50 else Reject("poison")

    letters = DeadLetter("orders.dlq", max_consecutive=1)
    retry = Retry(attempts=100, wait=tenacity.wait_fixed(0.01))
    pool = pool_of(fail, batch, retry=retry, letters=letters, dead_letters=FakeDeadLetters())
    try:
        for partition in range(52):  # the last two open it
            added(pool, partition)
        wait_until(lambda: pool.held, 10, "the circuit to open")
        before = len(tried)
        wait_until(lambda: len(tried) >= before + 2, 20, "two probes")
        assert tried[before + 1] - tried[before] > 1.5  # pauses of 1 s, 2 s, 4 s
    finally:
        pool.end()


def test_a_batch_that_is_tried_again_keeps_none_of_the_lanes_that_were_gathered_meanwhile() -> None:
    """A rebalance that takes their partition away would wait for it."""
    again = threading.Event()
    gate = threading.Event()
    calls: list[int] = []

    def handle(messages: list[Message]) -> None:
        calls.append(messages[0].partition() or 0)
        if calls == [0]:
            raise OSError("once")
        if calls[-1] == 0:
            again.set()
            gate.wait(30)

    pool = pool_of(handle, (500, 20.0), retry=Retry(wait=tenacity.wait_fixed(0.3)))
    try:
        first = added(pool, 0, 500)  # a full one
        wait_until(lambda: calls == [0], 10, "the first attempt")
        other = added(pool, 1)
        assert again.wait(10), "the second attempt waited for the batch that is being gathered"
        at = time.monotonic()
        assert pool.wait_until_free([other], lambda: at)
        assert not pool.wait_until_free([first], lambda: at)
    finally:
        gate.set()
        pool.end()


# ---- the one message at a time that is tried while the circuit is open


class NoWorkers(Pool):
    """The test is the workers."""

    def _wake(self, lanes: int) -> None: ...

    def _wake_all(self) -> None: ...


def held(kind: Any, handler: Any, batch: Any = None) -> Any:
    """A pool whose circuit has just opened."""
    pool = with_a_circuit(kind, handler, batch)
    for _ in range(2):
        pool._circuit.failed(time.monotonic())
    pool.troubled = pool.held = True
    pool._circuit.next_probe_at += 60  # the test says when
    return pool


def due(pool: Any) -> None:
    with pool.lock:
        pool._circuit.next_probe_at = time.monotonic()
        pool._wake(1)


def ended(pool: Any) -> None:
    pool.end()
    for thread in pool.threads:
        thread.join(10)


def test_while_a_probe_runs_no_other_message_is_tried_whoever_gives_back() -> None:
    pool = held(NoWorkers, None)
    pool.held = False
    added(pool, 0)
    early = pool._next(time.monotonic())  # under way as the circuit opens
    pool.held = True
    due(pool)
    added(pool, 1)
    added(pool, 2)
    probe = pool._next(time.monotonic())
    pool.give_back(early)
    assert pool._next(time.monotonic()) is None
    pool.give_back(probe)
    assert pool._next(time.monotonic()) is not None


def test_while_a_batch_is_a_probe_no_other_one_is_tried_whichever_ends() -> None:
    pool = held(NoWorkers, None, (1, 0.0))
    pool.held = False
    added(pool, 0)
    early = pool.next_batch(Filling(), time.monotonic())
    pool.held = True
    due(pool)
    added(pool, 1)
    added(pool, 2)
    probe = pool.next_batch(Filling(), time.monotonic())
    pool.batch_ended(early, None)
    assert pool.next_batch(Filling(), time.monotonic()) is None
    pool.batch_ended(probe, None)
    assert isinstance(pool.next_batch(Filling(), time.monotonic()), Batch)


@pytest.mark.parametrize("kind", [ThreadPool, TaskPool])
@pytest.mark.parametrize("batch", [None, (1, 0.01)])
def test_a_probe_whose_partition_was_taken_away_holds_up_no_other(kind: Any, batch: Any) -> None:
    begun: list[int] = []
    gate = threading.Event()

    def handle(given: Any) -> None:
        begun.append((given[0] if isinstance(given, list) else given).partition())
        if begun[-1] == 0:
            gate.wait(30)

    async def handle_async(given: Any) -> None:
        await asyncio.to_thread(handle, given)

    pool = held(kind, handle if kind is ThreadPool else handle_async, batch)
    pool.start()
    try:
        first = added(pool, 0)
        due(pool)
        wait_until(lambda: begun == [0], 10, "the probe")
        added(pool, 1)
        pool.give_up([first], None)
        wait_until(lambda: begun == [0, 1], 10, lambda: f"another one to be tried: {begun}")
    finally:
        gate.set()
        ended(pool)


@pytest.mark.parametrize("kind", [ThreadPool, TaskPool])
def test_a_worker_whose_probe_succeeded_holds_up_none_of_a_circuit_that_opens_again(kind: Any) -> None:
    begun: list[int] = []
    gate = threading.Event()

    def handle(given: Any) -> None:
        begun.append(given.partition())
        if begun[-1] == 0 and given.offset() == 1:
            gate.wait(30)
        if begun[-1] > 0:
            raise ConnectionError("downstream")

    async def handle_async(given: Any) -> None:
        await (asyncio.to_thread(handle, given) if given.partition() == 0 else asyncio.sleep(0))
        if given.partition() > 0:
            handle(given)

    pool = held(kind, handle if kind is ThreadPool else handle_async)
    pool.start()
    try:
        added(pool, 0, 2)
        due(pool)
        wait_until(lambda: begun == [0, 0], 10, "the probe, and the message behind it")
        added(pool, 1)
        wait_until(lambda: begun == [0, 0, 1], 10, "a failure that is let through")
        added(pool, 2)
        wait_until(lambda: pool.held, 10, "the circuit to open")
        wait_until(lambda: begun.count(2) > 1, 10, lambda: f"a probe: {begun}")
    finally:
        gate.set()
        ended(pool)


# ---- what a batch has no room for


@pytest.mark.parametrize("kind", [ThreadPool, TaskPool])
def test_a_full_batch_keeps_no_lane_that_it_has_no_message_of(kind: Any) -> None:
    """Through all its attempts others would wait for it."""
    calls: list[list[tuple[int | None, int | None]]] = []
    gate = threading.Event()

    def handle(messages: list[Message]) -> None:
        calls.append([(message.partition(), message.offset()) for message in messages])
        if messages[0].partition() == 0:
            gate.wait(30)

    async def handle_async(messages: list[Message]) -> None:
        await asyncio.to_thread(handle, messages)

    pool = kind(
        handle if kind is ThreadPool else handle_async,
        order="key",
        concurrency=2,
        retry=Retry(),
        dead_letters=None,
        letters=None,
        batch=(4, 60.0),
    )
    lanes = PartitionLanes(PartitionProgress("orders", 0))

    def add(*keys: bytes) -> None:
        messages = [
            Message("orders", 0, offset, key, b"1") for offset, key in enumerate(keys, lanes.progress.unfinished)
        ]
        pool.add([(lanes, lanes.progress.track_run(messages, epochs=False))])

    pool.start()
    try:
        add(b"a", b"b", b"c")
        wait_until(lambda: lanes.running == 3, 10, "a worker to gather them")
        pool.batches._max_wait = 0.01  # of what is filled from now on
        add(b"a", b"a", b"c", b"d")
        wait_until(lambda: len(calls) == 2, 10, lambda: f"the others to be handled: {calls}")
        assert calls == [[(0, 0), (0, 3), (0, 4), (0, 1)], [(0, 2), (0, 5), (0, 6)]]
    finally:
        gate.set()
        ended(pool)


def tasks(concurrency: int, batch: tuple[int, float] | None = None) -> TaskPool:
    return TaskPool(
        lambda _: None,
        order="partition",
        concurrency=concurrency,
        retry=Retry(),
        dead_letters=None,
        letters=None,
        batch=batch,
    )


def test_an_event_loop_is_kept_from_its_timers_for_few_messages_at_a_time_where_all_tasks_have_something_to_do() -> (
    None
):
    pool = tasks(3)
    for seconds in (0.001, 0.01, math.inf):  # the last one: not known yet
        pool._seconds_a_message = seconds
        assert pool.refill == REFILL._replace(to_fill=REFILL.messages)
    for partition in range(3):
        added(pool, partition)
    for seconds in (0.001, 0.01, math.inf):
        pool._seconds_a_message = seconds
        assert pool.refill.messages <= REFILL.messages / 5
        assert pool.refill.pause <= 0.02
    for slow_or_always_busy in (0.1, 0.00001):
        pool._seconds_a_message = slow_or_always_busy
        assert pool.refill == REFILL
    pool._loop.close()  # it never ran


def test_no_more_is_taken_ahead_than_the_tasks_handle_in_a_moment() -> None:
    pool = tasks(2)
    enough = []
    for partition in range(2):
        added(pool, partition)
        pool._seconds_a_message = 0.001
        enough.append(pool.refill.enough)
    assert enough == [math.inf, 2 * 40]  # with one lane for two tasks it goes on until the other finds something
    pool._seconds_a_message = 0.01
    assert pool.refill.enough == 2 * 25
    pool._loop.close()


def test_a_batch_is_filled_however_few_messages_are_enough_for_single_handlers() -> None:
    pool = tasks(1, batch=(500, 60.0))
    added(pool, 0)
    assert pool.refill == REFILL
    pool._loop.close()
