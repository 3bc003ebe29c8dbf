"""SafeProducer inside event loops: awaiting, waiting for room, cancelling, closing; asyncio's loop and uvloop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from safekafka import BufferFullError, Receipt, SafeProducer, Spool, UndeliveredError
from safekafka.producer import direct
from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from tests.mock.conftest import TOPIC
from tests.processes import wait_until

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a coroutine on a loop in debug mode, which complains of calls from foreign threads."""
    loop = asyncio.new_event_loop() if request.param == "asyncio" else uvloop.new_event_loop()
    loop.set_debug(True)
    yield lambda main: loop.run_until_complete(asyncio.wait_for(main, 60))
    loop.close()


def log_of(cluster: MockCluster, partition: int = 0) -> list[int]:
    messages = read_log(cluster.bootstrap_servers, TOPIC, timeout=30)
    return [int(m.value() or b"") for m in messages if m.partition() == partition]


def test_B_P19_tasks_wake_when_their_records_are_delivered(make: Callable[..., SafeProducer], run: Run) -> None:
    producer = make()

    async def one(n: int) -> int:
        return (await (await producer.asend(TOPIC, str(n), partition=0))).offset

    async def main() -> list[int]:
        return await asyncio.gather(*(one(n) for n in range(500)))

    assert run(main()) == list(range(500))


def test_wake_ups_are_one_for_each_loop_and_poll_not_one_for_each_record(make: Callable[..., SafeProducer]) -> None:
    producer = make({"linger.ms": 200})

    async def main() -> int:
        loop = asyncio.get_running_loop()
        calls = 0
        plain = loop.call_soon_threadsafe

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return plain(*args, **kwargs)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        receipts = [producer.send(TOPIC, str(n), partition=0) for n in range(1_000)]
        await asyncio.gather(*(_awaited(receipt) for receipt in receipts))
        return calls

    assert asyncio.run(main()) < 100


async def _awaited(receipt: Receipt) -> Any:
    return await receipt


def test_several_loops_in_several_threads_await_the_same_receipt(make: Callable[..., SafeProducer]) -> None:
    producer = make({"linger.ms": 200})
    receipt = producer.send(TOPIC, b"0", partition=0)
    got: list[int] = []
    threads = [
        threading.Thread(target=lambda: got.append(asyncio.run(_awaited(receipt)).offset), daemon=True)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert got == [0, 0, 0, 0]


def test_a_cancelled_await_changes_nothing_for_the_record_and_its_receipt(
    cluster: MockCluster, make: Callable[..., SafeProducer], run: Run
) -> None:
    producer = make({"linger.ms": 300})

    async def main() -> Receipt:
        receipt = await producer.asend(TOPIC, b"1", partition=0)
        waiting = asyncio.ensure_future(_awaited(receipt))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await receipt
        return receipt

    assert run(main()).status == "delivered"
    assert log_of(cluster) == [1]


def test_B_P07_tasks_that_wait_for_room_are_let_in_in_their_order_and_the_loop_goes_on(
    cluster: MockCluster, make: Callable[..., SafeProducer], run: Run
) -> None:
    cluster.set_broker_down()
    producer = make({"queue.buffering.max.messages": 20})
    ticks = 0

    async def main() -> list[int]:
        nonlocal ticks
        tasks = [asyncio.ensure_future(producer.asend(TOPIC, str(n), partition=0)) for n in range(300)]
        for _ in range(30):
            await asyncio.sleep(0.01)
            ticks += 1
        assert sum(task.done() for task in tasks) <= 20
        cluster.set_broker_up()
        receipts = await asyncio.gather(*tasks)
        return [(await receipt).offset for receipt in receipts]

    assert sorted(run(main())) == list(range(300))
    assert ticks == 30
    assert log_of(cluster) == list(range(300))


def test_P3_a_loop_that_stands_still_for_a_while_lets_its_tasks_in_in_their_order(
    cluster: MockCluster, make: Callable[..., SafeProducer], run: Run
) -> None:
    cluster.set_broker_down()
    producer = make({"queue.buffering.max.messages": 20})

    async def main() -> None:
        tasks = [asyncio.ensure_future(producer.asend(TOPIC, str(n), partition=0)) for n in range(100)]
        await asyncio.sleep(0.1)
        cluster.set_broker_up()
        for _ in range(3):
            time.sleep(1.5)  # noqa: ASYNC251 - what is under test: a program that blocks its loop
            await asyncio.sleep(0.01)
        for receipt in await asyncio.gather(*tasks):
            await receipt

    run(main())
    assert log_of(cluster) == list(range(100))


def test_P4_a_task_that_finds_no_room_within_max_block_is_told_so(
    cluster: MockCluster, make: Callable[..., SafeProducer], run: Run
) -> None:
    cluster.set_broker_down()
    producer = make({"queue.buffering.max.messages": 1}, max_block=0.3)

    async def main() -> None:
        await producer.asend(TOPIC, b"0", partition=0)
        with pytest.raises(BufferFullError, match=r"max_block=0\.3"):
            await producer.asend(TOPIC, b"1", partition=0)

    run(main())
    cluster.set_broker_up()
    assert producer.flush(30) == 0
    assert log_of(cluster) == [0]


def test_a_task_cancelled_while_it_waits_for_room_has_not_sent(
    cluster: MockCluster, make: Callable[..., SafeProducer], run: Run
) -> None:
    cluster.set_broker_down()
    producer = make({"queue.buffering.max.messages": 1})

    async def main() -> None:
        await producer.asend(TOPIC, b"0", partition=0)
        cancelled = asyncio.ensure_future(producer.asend(TOPIC, b"1", partition=0))
        follower = asyncio.ensure_future(producer.asend(TOPIC, b"2", partition=0))
        await asyncio.sleep(0.1)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        cluster.set_broker_up()
        await (await follower)

    run(main())
    assert log_of(cluster) == [0, 2]


def test_a_loop_that_ended_while_its_task_waited_for_room_holds_up_nobody(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    cluster.set_broker_down()
    producer = make({"queue.buffering.max.messages": 1})
    producer.send(TOPIC, b"0", partition=0)
    abandoned = asyncio.new_event_loop()
    task = abandoned.create_task(producer.asend(TOPIC, b"1", partition=0))
    abandoned.run_until_complete(asyncio.sleep(0.05))
    cluster.set_broker_up()
    assert producer.send(TOPIC, b"2", partition=0).result(30)
    task.cancel()
    abandoned.run_until_complete(asyncio.gather(task, return_exceptions=True))
    abandoned.close()


def test_loops_that_stand_still_hold_up_neither_a_third_one_nor_the_order_of_their_own_tasks(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "_WAITER_SECONDS", 0.1)
    cluster.set_broker_down()
    producer = make({"queue.buffering.max.messages": 1})
    producer.send(TOPIC, b"0", partition=0)
    loops = [asyncio.new_event_loop() for _ in range(2)]
    tasks = []
    for partition, loop in enumerate(loops, 1):
        tasks.append([loop.create_task(producer.asend(TOPIC, str(n), partition=partition)) for n in range(5)])
        loop.run_until_complete(asyncio.sleep(0.01))
    cluster.set_broker_up()

    async def main() -> None:
        for n in range(1, 6):
            await (await asyncio.wait_for(producer.asend(TOPIC, str(n), partition=0), 10))

    asyncio.run(main())
    for loop, waiting in zip(loops, tasks, strict=True):
        loop.run_until_complete(asyncio.wait_for(_all(waiting), 30))
        loop.close()
    assert producer.flush(30) == 0
    assert log_of(cluster) == list(range(6))
    assert log_of(cluster, 1) == log_of(cluster, 2) == list(range(5))


async def _all(tasks: list[asyncio.Task[Receipt]]) -> None:
    await asyncio.gather(*tasks)


def test_aflush_aclose_and_async_with(cluster: MockCluster, run: Run) -> None:
    async def main() -> None:
        async with SafeProducer({"bootstrap.servers": cluster.bootstrap_servers}) as producer:
            await producer.asend(TOPIC, b"0", partition=0)
            assert await producer.aflush(30) == 0
            await producer.asend(TOPIC, b"1", partition=0)
        await producer.aclose()

    run(main())
    assert log_of(cluster) == [0, 1]


def test_B_P09_aclose_ends_in_time_and_tells_what_is_left(
    cluster: MockCluster, make: Callable[..., SafeProducer], run: Run
) -> None:
    cluster.set_broker_down()
    producer = make()

    async def main() -> None:
        for n in range(10):
            await producer.asend(TOPIC, str(n))
        with pytest.raises(UndeliveredError) as caught:
            await producer.aclose(0.3)
        assert caught.value.count == 10

    began = time.monotonic()
    run(main())
    assert time.monotonic() - began < 15


def test_asend_through_a_spool(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Any, run: Run
) -> None:
    producer = make(spool=Spool(tmp_path / "spool"))

    async def main() -> None:
        receipt = await producer.asend(TOPIC, b"0", partition=0)
        assert receipt.durable
        assert (await receipt).offset == 0

    run(main())


def test_a_receipt_awaited_on_a_loop_that_is_closed_meanwhile_harms_nobody(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    cluster.set_broker_down()
    producer = make()
    receipt = producer.send(TOPIC, b"0", partition=0)
    loop = asyncio.new_event_loop()
    task = loop.create_task(_awaited(receipt))
    loop.run_until_complete(asyncio.sleep(0.01))
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    cluster.set_broker_up()
    wait_until(receipt.done, 30, "delivery")
    assert receipt.status == "delivered"
