"""Receipts: resolved once, seen by everybody who waits, from threads and from event loops."""

from __future__ import annotations

import asyncio
import threading

import pytest

from safekafka import Delivery, DeliveryFailed, DeliveryUnknown, Receipt, Record, SafeKafkaError, UndeliveredError
from safekafka.errors import DeliveryError
from safekafka.producer.outcomes import MAX_HELD, Unobserved
from safekafka.producer.receipt import awaken
from safekafka.record import Fields

FIELDS: Fields = ("orders", b"v", b"k", None, -1, 0)
DELIVERY = Delivery("orders", 0, 7, None)


class Owner:
    def __init__(self, unobserved: Unobserved | None = None, thread: threading.Thread | None = None) -> None:
        self.unobserved = unobserved or Unobserved(None)
        self.thread = thread or threading.Thread()

    def check_may_wait(self, call: str) -> None:
        if threading.current_thread() is self.thread:
            raise SafeKafkaError(f"{call} would wait for ever")

    def observed(self, receipt: Receipt) -> None:
        self.unobserved.observed(receipt)

    def watched(self, receipt: Receipt) -> None:
        return

    def wake(self, loop: asyncio.AbstractEventLoop, awaiting: asyncio.Future[None]) -> None:
        awaken(loop, [awaiting])


def unknown() -> DeliveryUnknown:
    return DeliveryUnknown("no report", Record("orders", b"v", b"k"))


def test_a_new_receipt_is_pending_and_holds_its_record() -> None:
    receipt = Receipt(Owner(), FIELDS)
    assert (receipt.status, receipt.done(), receipt.durable) == ("pending", False, False)
    assert receipt.record == Record("orders", b"v", b"k")
    with pytest.raises(TimeoutError, match="still on its way"):
        receipt.result(0)


def test_P1_delivered_failed_and_unknown_are_told_apart() -> None:
    for outcome, status in (
        (DELIVERY, "delivered"),
        (DeliveryFailed("too large", Record("orders")), "failed"),
        (unknown(), "unknown"),
    ):
        receipt = Receipt(Owner(), FIELDS)
        receipt._resolve(outcome)
        assert receipt.status == status
        assert receipt.done()


def test_a_delivered_receipt_lets_its_payload_go_and_is_durable() -> None:
    receipt = Receipt(Owner(), FIELDS)
    receipt._resolve(DELIVERY)
    assert receipt.record is None
    assert receipt.durable
    assert receipt.result() == DELIVERY
    assert receipt.exception() is None


def test_a_failure_is_raised_by_result_and_returned_by_exception_with_its_record() -> None:
    receipt = Receipt(Owner(), FIELDS)
    failure = unknown()
    receipt._resolve(failure)
    with pytest.raises(DeliveryUnknown) as caught:
        receipt.result()
    assert caught.value.record.value == b"v"
    assert receipt.exception() is failure


def test_P4_a_wait_that_timed_out_leaves_nothing_behind() -> None:
    receipt = Receipt(Owner(), FIELDS)
    for _ in range(10):
        with pytest.raises(TimeoutError):
            receipt.result(0)
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(asyncio.wait_for(_delivery(receipt), 0.01))
    assert not receipt._callbacks


def test_many_threads_waiting_for_one_receipt_all_see_its_outcome() -> None:
    receipt = Receipt(Owner(), FIELDS)
    seen: list[Delivery] = []
    threads = [threading.Thread(target=lambda: seen.append(receipt.result(10))) for _ in range(8)]
    for thread in threads:
        thread.start()
    receipt._resolve(DELIVERY)
    for thread in threads:
        thread.join(10)
    assert seen == [DELIVERY] * 8


def test_callbacks_run_once_each_whether_added_before_or_after_the_outcome() -> None:
    for _ in range(300):  # the race of adding against resolving, from both sides
        receipt = Receipt(Owner(), FIELDS)
        calls: list[int] = []
        start = threading.Barrier(3)

        def add(
            number: int, receipt: Receipt = receipt, calls: list[int] = calls, start: threading.Barrier = start
        ) -> None:
            start.wait()
            for i in range(5):
                receipt.add_done_callback(lambda _, i=i: calls.append(number + i))  # type: ignore[misc]

        threads = [threading.Thread(target=add, args=(number,)) for number in (0, 10)]
        for thread in threads:
            thread.start()
        start.wait()
        receipt._resolve(DELIVERY)
        for thread in threads:
            thread.join(10)
        assert sorted(calls) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]


def test_a_raising_callback_is_logged_and_the_others_still_run(caplog: pytest.LogCaptureFixture) -> None:
    receipt = Receipt(Owner(), FIELDS)
    calls: list[Receipt] = []
    receipt.add_done_callback(lambda _: 1 / 0)
    receipt.add_done_callback(calls.append)
    receipt._resolve(DELIVERY)
    assert calls == [receipt]
    assert "ZeroDivisionError" in caplog.text


def test_waiting_on_the_resolving_thread_is_refused_instead_of_hanging() -> None:
    receipt = Receipt(Owner(thread=threading.current_thread()), FIELDS)
    with pytest.raises(SafeKafkaError, match="would wait for ever"):
        receipt.result(1)


def test_await_works_on_any_loop_and_survives_cancellation() -> None:
    receipt = Receipt(Owner(), FIELDS)

    async def wait() -> Delivery:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_delivery(receipt), 0.01)
        threading.Timer(0.01, receipt._resolve, (DELIVERY,)).start()
        first, second = await asyncio.gather(_delivery(receipt), _delivery(receipt))
        assert first == second
        return await receipt

    assert asyncio.run(wait()) == DELIVERY
    assert asyncio.run(_delivery(receipt)) == DELIVERY


def test_a_loop_that_was_closed_does_not_disturb_the_outcome() -> None:
    receipt = Receipt(Owner(), FIELDS)
    loop = asyncio.new_event_loop()
    task = loop.create_task(_delivery(receipt))
    loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()
    receipt._resolve(DELIVERY)
    assert receipt.status == "delivered"


async def _delivery(receipt: Receipt) -> Delivery:
    return await receipt


def test_a_failure_nobody_looked_at_is_raised_once() -> None:
    unobserved = Unobserved(None)
    receipt = Receipt(Owner(unobserved), FIELDS)
    failure = unknown()
    unobserved.fail(receipt, failure)
    with pytest.raises(UndeliveredError) as caught:
        unobserved.raise_if_any()
    assert (caught.value.failures, caught.value.count) == ((failure,), 1)
    unobserved.raise_if_any()


@pytest.mark.parametrize("look", ["result", "exception", "callback before", "callback after", "await"])
def test_a_failure_somebody_looked_at_is_not_raised_again(look: str) -> None:
    unobserved = Unobserved(None)
    receipt = Receipt(Owner(unobserved), FIELDS)
    told: list[Receipt] = []
    if look == "callback before":
        receipt.add_done_callback(told.append)
    unobserved.fail(receipt, unknown())
    if look == "result":
        with pytest.raises(DeliveryUnknown):
            receipt.result()
    elif look == "exception":
        receipt.exception()
    elif look == "callback after":
        receipt.add_done_callback(told.append)
    elif look == "await":
        with pytest.raises(DeliveryUnknown):
            asyncio.run(_delivery(receipt))
    else:
        assert told
    unobserved.raise_if_any()


def test_on_undelivered_handles_failures_and_what_it_raises_for_is_raised_by_flush() -> None:
    handled: list[tuple[Record, DeliveryError]] = []

    def take(record: Record, error: DeliveryError) -> None:
        if record.value == b"bad":
            raise RuntimeError("can't")
        handled.append((record, error))

    unobserved = Unobserved(take)
    owner = Owner(unobserved)
    unobserved.fail(Receipt(owner, FIELDS), unknown())
    unobserved.raise_if_any()
    assert handled[0][0] == Record("orders", b"v", b"k")
    unobserved.fail(Receipt(owner, FIELDS), DeliveryUnknown("no report", Record("orders", b"bad")))
    with pytest.raises(UndeliveredError):
        unobserved.raise_if_any()


def test_P4_failures_are_held_up_to_a_bound_and_all_of_them_counted() -> None:
    unobserved = Unobserved(None)
    owner = Owner(unobserved)
    receipts = [Receipt(owner, FIELDS) for _ in range(MAX_HELD + 50)]
    for receipt in receipts:
        unobserved.fail(receipt, unknown())
    receipts[0].exception()
    receipts[-1].exception()
    with pytest.raises(UndeliveredError) as caught:
        unobserved.raise_if_any()
    assert len(caught.value.failures) == MAX_HELD - 1
    assert caught.value.count == MAX_HELD + 48
    receipts[-2].exception()  # raised before: looking later takes nothing away from later failures
    unobserved.fail(Receipt(owner, FIELDS), unknown())
    with pytest.raises(UndeliveredError) as again:
        unobserved.raise_if_any()
    assert again.value.count == 1
