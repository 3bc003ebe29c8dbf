"""For code that keeps its own loop: the iterator form, and `poll()`, `consume()`, `done()`."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, Message, Producer, TopicPartition

from safekafka import ClosedError, Retry, SafeConsumer, SafeKafkaError
from safekafka.consumer import own_loop
from safekafka.testing import MockCluster
from tests.processes import wait_until

TOPIC, GROUP = "orders", "billing"


@pytest.fixture
def cluster(kafka_mock: MockCluster, caplog: pytest.LogCaptureFixture) -> MockCluster:
    caplog.set_level("INFO", logger="safekafka")
    kafka_mock.create_topic(TOPIC, partitions=3, replication_factor=3)
    return kafka_mock


def fill(cluster: MockCluster, count: int, partition: int | None = None) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
    for number in range(count):
        producer.produce(TOPIC, str(number), partition=number % 3 if partition is None else partition)
    assert producer.flush(30) == 0


def committed(cluster: MockCluster) -> dict[int, int]:
    client = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP})
    try:
        answer = client.committed([TopicPartition(TOPIC, partition) for partition in range(3)], timeout=10)
        return {partition.partition: max(0, partition.offset) for partition in answer}
    finally:
        client.close()


def consumer_of(cluster: MockCluster, config: dict[str, Any] | None = None, **options: Any) -> SafeConsumer:
    own = {"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP, "session.timeout.ms": 6000}
    return SafeConsumer({**own, **(config or {})}, [TOPIC], **options)


def take(consumer: SafeConsumer, count: int, seconds: float = 30) -> list[Message]:
    messages: list[Message] = []
    end = time.monotonic() + seconds
    while len(messages) < count and time.monotonic() < end:
        messages += consumer.consume(count - len(messages), 0.5)
    return messages


def where(message: Message) -> tuple[int | None, int | None]:
    return message.partition(), message.offset()


# ---- for message in consumer


def test_a_message_is_committed_when_the_body_has_come_back(cluster: MockCluster) -> None:
    fill(cluster, 30)
    seen = []
    with consumer_of(cluster) as consumer:
        for message in consumer:
            seen.append(where(message))
            if len(seen) == 30:
                consumer.stop()  # the body comes back once more
    assert len(set(seen)) == 30
    assert sum(committed(cluster).values()) == 30


def test_a_message_whose_body_left_the_loop_is_not_committed_and_begins_the_next_loop(cluster: MockCluster) -> None:
    fill(cluster, 10, partition=0)
    with consumer_of(cluster) as consumer:
        for message in consumer:
            if message.offset() == 3:
                break
        with pytest.raises(KeyError):
            for message in consumer:
                assert message.offset() == 3
                raise KeyError
        again = []
        for message in consumer:
            again.append(message.offset())
            if len(again) == 4:
                break
        assert again == [3, 4, 5, 6]
    assert committed(cluster)[0] == 6


def test_C4_a_body_longer_than_the_poll_interval_keeps_its_partitions(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, 2, partition=0)
    with consumer_of(cluster, {"max.poll.interval.ms": 6000}, drain_timeout=5.0) as consumer:
        seen = []
        for message in consumer:
            seen.append(message.offset())
            if message.offset() == 0:
                time.sleep(7)  # what is under test
            else:
                consumer.stop()
    assert seen == [0, 1]
    assert "partitions_revoked" not in caplog.text
    assert committed(cluster)[0] == 2


def test_closing_does_not_wait_for_a_body_that_left_the_loop(cluster: MockCluster) -> None:
    fill(cluster, 3, partition=0)
    consumer = consumer_of(cluster)
    for _ in consumer:
        break
    began = time.monotonic()
    consumer.close()
    assert time.monotonic() - began < 10
    assert committed(cluster)[0] == 0


def test_closing_inside_the_body_does_not_wait_for_it(cluster: MockCluster) -> None:
    fill(cluster, 3, partition=0)
    consumer = consumer_of(cluster)
    began = time.monotonic()
    seen = 0
    for _ in consumer:
        seen += 1
        consumer.close()
    assert time.monotonic() - began < 20
    assert seen == 1
    assert committed(cluster)[0] == 0


def test_C6_a_quick_body_gets_no_message_behind_its_stop(cluster: MockCluster) -> None:
    fill(cluster, 3_000)
    count = 0
    with consumer_of(cluster) as consumer:
        for _ in consumer:
            count += 1
            if count == 100:
                consumer.stop()
    assert count == 100
    assert sum(committed(cluster).values()) == 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_forked_child_leaves_the_parents_consumer_alone(cluster: MockCluster) -> None:
    fill(cluster, 2, partition=0)
    with consumer_of(cluster) as consumer:
        (message,) = take(consumer, 1)
        child = os.fork()
        if not child:
            status = 1
            try:
                consumer.poll(0)
            except ClosedError:
                consumer.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        consumer.done(message)
        assert [message.offset() for message in take(consumer, 1)] == [1]
    assert committed(cluster)[0] == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_for_loop_of_the_parent_is_not_taken_up_by_a_forked_child(cluster: MockCluster) -> None:
    fill(cluster, 1, partition=0)
    with consumer_of(cluster) as consumer:
        for _ in consumer:
            break
        child = os.fork()
        if not child:
            status = 1
            try:
                next(iter(consumer))
            except ClosedError:
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_C6_a_signal_ends_the_loop_with_what_came_back_committed(cluster: MockCluster) -> None:
    fill(cluster, 5, partition=0)
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    with consumer_of(cluster) as consumer:
        for message in consumer:
            seen.append(message.offset())
            if message.offset() == 2:
                os.kill(os.getpid(), signal.SIGTERM)
    assert seen[:3] == [0, 1, 2]
    assert committed(cluster)[0] == len(seen)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_loop_raises_what_stopped_the_consumer(cluster: MockCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(cluster, 1)
    consumer = consumer_of(cluster)

    def broken(*_: Any) -> None:
        raise RuntimeError("injected")

    with pytest.raises(RuntimeError, match="injected"):
        for _ in consumer:
            monkeypatch.setattr(consumer._session, "turn", broken)


@pytest.mark.parametrize("options", [{"concurrency": 2}, {"retry": Retry()}, {"dead_letter": "orders.dlq"}])
def test_the_loop_goes_with_no_handlers_options(cluster: MockCluster, options: dict[str, Any]) -> None:
    with consumer_of(cluster, **options) as consumer, pytest.raises(ValueError, match=r"consumer\.run"):
        iter(consumer)
    with consumer_of(cluster, **options) as consumer, pytest.raises(ValueError, match=r"consumer\.run"):
        consumer.poll(0)


# ---- the own loop


def test_only_what_is_done_is_committed_and_only_when_all_before_it_is(cluster: MockCluster) -> None:
    fill(cluster, 10, partition=0)
    with consumer_of(cluster, commit_interval=0.1) as consumer:
        messages = take(consumer, 10)
        assert [message.offset() for message in messages] == list(range(10))
        for offset in (5, 0, 1, 3):
            assert consumer.done(messages[offset])
    assert committed(cluster)[0] == 2


def test_what_is_done_is_committed_while_the_loop_goes_on(cluster: MockCluster) -> None:
    fill(cluster, 6, partition=0)
    with consumer_of(cluster, commit_interval=0.1) as consumer:
        for message in take(consumer, 6):
            consumer.done(message)
        end = time.monotonic() + 20
        while committed(cluster)[0] < 6 and time.monotonic() < end:
            assert consumer.poll(0.2) is None
        assert committed(cluster)[0] == 6


def test_a_restart_goes_on_with_what_was_not_done(cluster: MockCluster) -> None:
    fill(cluster, 4, partition=1)
    with consumer_of(cluster) as consumer:
        messages = take(consumer, 4)
        consumer.done(messages[0])
    with consumer_of(cluster) as consumer:
        assert [message.offset() for message in take(consumer, 3)] == [1, 2, 3]


def test_done_wants_a_message_that_was_handed_out_and_once(cluster: MockCluster) -> None:
    fill(cluster, 2, partition=0)
    with consumer_of(cluster) as consumer:
        with pytest.raises(ValueError, match="run"):
            consumer.done(object())  # type: ignore[arg-type]
        (message,) = take(consumer, 1)
        consumer.done(message)
        with pytest.raises(ValueError, match="done already"):
            consumer.done(message)
        with pytest.raises(SafeKafkaError, match="done"):
            consumer.commit(message)
    with pytest.raises(ClosedError):
        consumer.poll(0)


@pytest.mark.parametrize("limit", [{"max_in_flight": 10}, {"max_in_flight_bytes": 8}])
def test_C7_a_loop_that_never_says_done_is_told(cluster: MockCluster, limit: dict[str, int]) -> None:
    fill(cluster, 30)
    with consumer_of(cluster, **limit, stuck_after=1.0) as consumer:  # type: ignore[arg-type]
        with pytest.raises(SafeKafkaError, match=r"consumer\.done\(message\)"):
            take(consumer, 30)
        assert consumer.stats().paused


def test_C7_a_loop_whose_messages_are_done_by_slow_threads_waits_for_them(cluster: MockCluster) -> None:
    fill(cluster, 30)
    out: queue.Queue[Message | None] = queue.Queue()
    with consumer_of(cluster, max_in_flight=4, stuck_after=1.0) as consumer:

        def work() -> None:
            while (message := out.get()) is not None:
                time.sleep(0.5)  # what is under test: longer than poll() waits, and all of them than stuck_after
                consumer.done(message)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        held_back = count = 0
        end = time.monotonic() + 60
        while count < 30 and time.monotonic() < end:
            message = consumer.poll(0.1)
            if message is None:
                held_back += consumer._session.held_back
            else:
                out.put(message)
                count += 1
            assert consumer.stats().in_flight <= 4
        for _ in threads:
            out.put(None)
        for thread in threads:
            thread.join(10)
    assert count == 30
    assert held_back
    assert committed(cluster) == {0: 10, 1: 10, 2: 10}


def test_C6_after_a_stop_the_loop_is_told_once_by_nothing_and_then_by_an_error_that_has_the_remedy(
    cluster: MockCluster,
) -> None:
    fill(cluster, 30, partition=0)
    with consumer_of(cluster) as consumer:
        (message,) = take(consumer, 1)
        timer = threading.Timer(0.5, consumer.stop)
        timer.start()
        seen = [where(message)]
        with pytest.raises(ClosedError, match=r"call close\(\)"):
            while True:
                seen.append(None if (more := consumer.poll()) is None else where(more))
        timer.join()
        assert seen.count(None) == 1
        assert seen[-1] is None
        assert consumer.done(message)
    assert committed(cluster)[0] == 1


def test_done_from_other_threads(cluster: MockCluster) -> None:
    fill(cluster, 300)
    with consumer_of(cluster) as consumer:
        messages = take(consumer, 300)
        parts = [messages[n::4] for n in range(4)]
        threads = [threading.Thread(target=lambda part=part: [consumer.done(m) for m in part]) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert committed(cluster) == {0: 100, 1: 100, 2: 100}


def test_pause_lasts_and_resume_goes_on_without_a_gap(cluster: MockCluster) -> None:
    fill(cluster, 30)
    with consumer_of(cluster) as consumer:
        first = take(consumer, 1)
        paused = [TopicPartition(TOPIC, 0)]
        consumer.pause(paused)
        seen = {where(message) for message in take(consumer, 30, seconds=4)}
        assert {partition for partition, _ in seen} == {1, 2}, "the partition is not paused"
        consumer.resume(paused)
        seen |= {where(message) for message in [*first, *take(consumer, 30 - len(first) - len(seen), seconds=10)]}
        assert len(seen) == 30


def test_C7_a_loop_with_too_many_bytes_out_gets_no_more_until_some_are_done(cluster: MockCluster) -> None:
    fill(cluster, 30, partition=0)
    with consumer_of(cluster, max_in_flight_bytes=8) as consumer:
        out = take(consumer, 10, seconds=5)
        while message := consumer.poll(1.0):
            out.append(message)
        assert len(out) < 30
        for message in out:
            consumer.done(message)
        assert [message.offset() for message in take(consumer, 1)] == [len(out)]


def test_seek_goes_on_at_the_offset_and_what_was_handed_out_before_does_not_count(cluster: MockCluster) -> None:
    fill(cluster, 10, partition=0)
    with consumer_of(cluster) as consumer:
        before = take(consumer, 10)
        consumer.seek(TopicPartition(TOPIC, 0, 4))
        assert not consumer.done(before[0])
        after = take(consumer, 6)
        assert [message.offset() for message in after] == [4, 5, 6, 7, 8, 9]
        consumer.done(after[0])
        with pytest.raises(ValueError, match="offset=-1"):
            consumer.seek(TopicPartition(TOPIC, 0, -1))
        with pytest.raises(ValueError, match="not assigned"):
            consumer.seek(TopicPartition("another", 0, 4))
    assert committed(cluster)[0] == 5


def test_C7_messages_of_before_a_seek_are_not_kept_however_often_that_is(cluster: MockCluster) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
    for _ in range(4):
        producer.produce(TOPIC, b"x" * 900_000, partition=0)
    assert producer.flush(30) == 0
    with consumer_of(cluster, max_in_flight_bytes=8 << 20) as consumer:
        for _ in range(12):
            assert len(take(consumer, 4)) == 4
            assert consumer._own_loop is not None
            assert len(consumer._own_loop._out) == 4
            consumer.seek(TopicPartition(TOPIC, 0, 0))


def test_done_of_a_message_that_was_given_up_is_false_and_of_the_same_offset_handed_out_anew_true(
    cluster: MockCluster,
) -> None:
    fill(cluster, 4, partition=0)
    with consumer_of(cluster) as consumer:
        before = take(consumer, 4)
        consumer.seek(TopicPartition(TOPIC, 0, 0))
        assert not consumer.done(before[0]), "still kept"
        between = take(consumer, 4)
        consumer.seek(TopicPartition(TOPIC, 0, 0))
        after = take(consumer, 4)
        assert [message.offset() for message in after] == [0, 1, 2, 3]
        assert consumer.done(after[1])
        assert [consumer.done(message) for message in (*before[1:], *between)] == [False] * 7
        for message in (before[1], between[1], after[1]):
            with pytest.raises(ValueError, match="done already"):
                consumer.done(message)
        assert consumer.done(after[0])
    assert committed(cluster)[0] == 2


def test_an_object_that_takes_the_place_of_one_given_up_is_done_once(cluster: MockCluster) -> None:
    """Python gives the identity of an object that is no more to the next one."""
    fill(cluster, 500, partition=0)
    with consumer_of(cluster) as consumer:
        again = 0
        for _ in range(2):
            messages = take(consumer, 500)
            before = {id(message) for message in messages}
            consumer.seek(TopicPartition(TOPIC, 0, 0))
            (message,) = take(consumer, 1)
            del messages
            consumer.seek(TopicPartition(TOPIC, 0, 0))
            messages = take(consumer, 500)
            again += len(before & set(map(id, messages)))
            for message in messages:
                assert consumer.done(message)
                with pytest.raises(ValueError, match="done already"):
                    consumer.done(message)
            consumer.seek(TopicPartition(TOPIC, 0, 0))
        assert again


def test_of_messages_that_were_given_up_a_bounded_number_is_remembered(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_loop, "_REMEMBERED", 0)
    fill(cluster, 4, partition=0)
    with consumer_of(cluster, max_in_flight=4) as consumer:
        rounds = []
        for _ in range(3):
            rounds.append(take(consumer, 4))
            consumer.seek(TopicPartition(TOPIC, 0, 0))
        take(consumer, 1)
        assert consumer._own_loop is not None
        assert len(consumer._own_loop._given_up) == 4
        with pytest.raises(ValueError, match="not handed out"):
            consumer.done(rounds[1][3])
        assert [consumer.done(message) for message in rounds[2]] == [False] * 4


def test_done_on_other_threads_while_messages_are_given_up_is_false_for_each(cluster: MockCluster) -> None:
    fill(cluster, 1_000, partition=0)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # what is under test: threads in between any two steps
    try:
        with consumer_of(cluster) as consumer, ThreadPoolExecutor(3) as executor:
            early: Message | None = None  # that the last poll of a round brought already
            for _ in range(8):
                messages = take(consumer, 1_000) if early is None else [early, *take(consumer, 999)]
                assert len(messages) == 1_000
                consumer.seek(TopicPartition(TOPIC, 0, 0))
                told = executor.map(consumer.done, messages)
                early = consumer.poll(0.05)
                assert not any(told)
            assert consumer._own_loop is not None
            assert not consumer._own_loop._given_up
    finally:
        sys.setswitchinterval(interval)


def test_sasl_credentials_can_be_set_again_and_again(cluster: MockCluster) -> None:
    fill(cluster, 1)
    with consumer_of(cluster) as consumer:
        consumer.set_sasl_credentials("user", "password")
        assert len(take(consumer, 1)) == 1
        consumer.set_sasl_credentials("other", "password")
        with pytest.raises(TypeError):
            consumer.set_sasl_credentials(None, "password")  # type: ignore[arg-type]


def test_on_assign_seeks_and_the_raw_clients_assign_is_refused_with_the_remedy(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, 30)

    def on_assign(consumer: SafeConsumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            consumer.seek(TopicPartition(TOPIC, partition.partition, 4))
        consumer.assign(partitions)

    with consumer_of(cluster) as consumer:
        consumer.subscribe([TOPIC], on_assign=on_assign)
        messages = take(consumer, 18)
        assert sorted(map(where, messages)) == [(p, offset) for p in range(3) for offset in range(4, 10)]
        assert "callback_failed callback='on_assign'" in caplog.text
        assert "call consumer.seek(partition) in on_assign" in caplog.text
        told = consumer.position([TopicPartition(TOPIC, 1), TopicPartition("another", 0)])
        assert [one.offset for one in told] == [10, OFFSET_INVALID]
        assert consumer.offsets_for_times([TopicPartition(TOPIC, 0, 0)])[0].partition == 0
        assert consumer.memberid()
        for message in messages:
            consumer.done(message)
        consumer.unsubscribe()
        wait_until(lambda: (consumer.poll(0.1), not consumer.assignment())[1], 20, "no partition")
    assert committed(cluster) == dict.fromkeys(range(3), 10)


@pytest.fixture
def member(cluster: MockCluster) -> Iterator[SafeConsumer]:
    with consumer_of(cluster, {"partition.assignment.strategy": "range"}) as consumer:
        yield consumer


def test_C3_done_after_the_partition_was_taken_away_counts_for_nothing_and_callbacks_are_called(
    cluster: MockCluster, member: SafeConsumer
) -> None:
    fill(cluster, 9)
    heard: list[tuple[str, int]] = []
    member.subscribe(
        [TOPIC],
        on_assign=lambda consumer, partitions: heard.append(("assign", len(partitions))),
        on_revoke=lambda consumer, partitions: heard.append(("revoke", len(partitions))),
    )
    messages = take(member, 9)
    other = consumer_of(cluster, {"partition.assignment.strategy": "range"})
    thread = threading.Thread(target=other.run, args=(lambda _: None,), daemon=True)
    thread.start()

    def moved() -> bool:
        member.poll(0.1)
        return ("revoke", 3) in heard and len(heard) >= 3

    wait_until(moved, 60, "the other member")
    assert [member.done(message) for message in messages] == [False] * 9
    other.close()
    thread.join(30)
    assert heard[0] == ("assign", 3)
    member.close()
    assert all(offset <= 3 for offset in committed(cluster).values())


def test_topics_and_settings_are_checked_as_at_first(cluster: MockCluster) -> None:
    with consumer_of(cluster, value_deserializer=bytes) as consumer:
        with pytest.raises(ValueError, match="list of topic names"):
            consumer.subscribe("orders")
        with pytest.raises(ValueError, match="decode in the loop"):
            consumer.poll(0)
    with consumer_of(cluster) as consumer, pytest.raises(ValueError, match="num_messages=0"):
        consumer.consume(0)


class Interrupt(BaseException):
    """As a signal handler raises it."""


def test_C1_a_signal_handler_that_raises_anywhere_in_a_loop_that_goes_on_skips_nothing(cluster: MockCluster) -> None:
    fill(cluster, 200, partition=0)
    source = random.Random(7)
    left = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(("session.py", "own_loop.py", "progress.py")):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Interrupt
        return trace

    done: set[int] = set()
    interrupts = 0
    end = time.monotonic() + 60
    while len(done) < 200 and time.monotonic() < end:
        with consumer_of(cluster, commit_interval=0.05) as consumer:
            for message in take(consumer, 1):  # joined by now
                consumer.done(message)
                done.add(message.offset() or 0)
            for _ in range(40):
                left = source.choice([0, 0, source.randint(1, 120)])  # 0: it is left alone
                messages: list[Message] = []
                sys.settrace(trace)
                try:
                    messages = consumer.consume(source.randint(1, 20), 1.0)
                except Interrupt:
                    interrupts += 1
                finally:
                    sys.settrace(None)
                for message in messages:
                    done.add(message.offset() or 0)
                    consumer.done(message)
        told = max(0, committed(cluster)[0])
        assert done >= set(range(told)), f"committed {told}, and not handled: {sorted(set(range(told)) - done)[:5]}"
    assert len(done) == 200
    assert interrupts > 5


@pytest.mark.parametrize("assignor", ["range", "cooperative-sticky"])
def test_C1_a_signal_handler_that_raises_anywhere_in_a_rebalance_leaves_no_partition_unread(
    cluster: MockCluster, assignor: str
) -> None:
    # Mock brokers may never answer a JoinGroup that comes while another member's is broken off; the client asks again
    # after max.poll.interval.ms.
    config = {"partition.assignment.strategy": assignor, "heartbeat.interval.ms": 100, "max.poll.interval.ms": 16_000}
    source = random.Random(7)
    left = interrupts = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(("session.py", "positions.py")):
            return None
        if event == "call" and frame.f_code.co_name in ("_on_assign", "_on_revoke"):
            left = source.randint(1, 60)
        if event == "line" and left:
            left -= 1
            if left == 0:
                raise Interrupt
        return trace

    handled: set[tuple[int | None, int | None]] = set()
    with consumer_of(cluster, config, commit_interval=0.05) as consumer:

        def turn() -> None:
            for message in consumer.consume(20, 0.1):
                handled.add(where(message))
                consumer.done(message)

        def is_assigned() -> bool:
            turn()
            return len(consumer.assignment()) == 3

        wait_until(is_assigned, 30, "all partitions")
        end = time.monotonic() + 25
        while interrupts < 6 and time.monotonic() < end:
            fill(cluster, 9)
            other = consumer_of(cluster, config, commit_interval=0.05)
            thread = threading.Thread(target=other.run, args=(lambda message: handled.add(where(message)),))
            thread.start()
            for then in (lambda: None, other.stop):
                then()
                until = time.monotonic() + 1.5
                while time.monotonic() < until:
                    sys.settrace(trace)
                    try:
                        turn()
                    except Interrupt:
                        interrupts += 1
                    finally:
                        sys.settrace(None)
            thread.join(30)
        fill(cluster, 9)
        ends = [consumer.get_watermark_offsets(TopicPartition(TOPIC, number))[1] for number in range(3)]
        everything = {(number, offset) for number in range(3) for offset in range(ends[number])}
        wait_until(
            lambda: (turn(), handled >= everything)[1], 30, lambda: f"not read: {sorted(everything - handled)[:5]}"
        )
        wait_until(
            lambda: (turn(), committed(cluster) == dict(enumerate(ends)))[1], 30, lambda: str(committed(cluster))
        )
    assert interrupts


# ---- close() of another thread than the one that polls


class Loop(threading.Thread):
    """Polls until it is told to end, then closes. `handle` comes between `poll()` and `done()`."""

    def __init__(self, consumer: SafeConsumer, handle: Callable[[Message], object]) -> None:
        super().__init__(daemon=True)
        self.consumer = consumer
        self.handle = handle
        self.handled: list[tuple[int | None, int | None]] = []
        self.counted: list[bool] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            try:
                while True:
                    message = self.consumer.poll()
                    if message is not None:
                        self.handle(message)
                        self.handled.append(where(message))
                        self.counted.append(self.consumer.done(message))
            except ClosedError:
                pass
            finally:
                self.consumer.close()
        except BaseException as failure:  # noqa: BLE001 - the test looks at it
            self.failure = failure


def with_a_message_in_hand(consumer: SafeConsumer) -> tuple[Loop, threading.Event]:
    """A loop that handles one until it may go on."""
    has_it, go_on = threading.Event(), threading.Event()
    loop = Loop(consumer, lambda _: (has_it.set(), go_on.wait(60)))
    loop.start()
    assert has_it.wait(30)
    return loop, go_on


def test_C6_close_beside_a_loop_that_polls_closes_once_with_what_is_done_committed(cluster: MockCluster) -> None:
    handled = 0
    for _ in range(3):
        fill(cluster, 300, partition=0)
        consumer = consumer_of(cluster)
        loop = Loop(consumer, lambda _: None)
        loop.start()
        wait_until(lambda: len(loop.handled) > 100, 30, "messages")
        closers = [threading.Thread(target=consumer.close) for _ in range(2)]
        for closer in closers:
            closer.start()
        consumer.close()
        for thread in (*closers, loop):
            thread.join(30)
            assert not thread.is_alive()
        assert loop.failure is None
        assert all(loop.counted)
        handled += len(loop.handled)
        assert committed(cluster)[0] == handled


def test_C6_close_beside_a_loop_waits_for_the_message_that_it_has_in_hand(cluster: MockCluster) -> None:
    fill(cluster, 1, partition=0)
    consumer = consumer_of(cluster)
    loop, go_on = with_a_message_in_hand(consumer)
    threading.Timer(1.0, go_on.set).start()
    consumer.close()
    loop.join(30)
    assert loop.failure is None
    assert loop.counted == [True]
    assert committed(cluster)[0] == 1


def test_C6_close_beside_a_loop_that_does_not_come_back_waits_as_long_as_for_a_handler(cluster: MockCluster) -> None:
    fill(cluster, 1, partition=0)
    consumer = consumer_of(cluster, drain_timeout=1.0)
    loop, go_on = with_a_message_in_hand(consumer)
    began = time.monotonic()
    consumer.close()
    assert 1.0 <= time.monotonic() - began < 1 + 10
    go_on.set()
    loop.join(30)
    assert loop.failure is None
    assert loop.counted == [False]
    assert committed(cluster)[0] == 0


def test_C6_close_behind_a_loop_whose_thread_has_nothing_in_hand_does_not_wait(cluster: MockCluster) -> None:
    """As where an executor's thread polls, and lives on."""
    fill(cluster, 3, partition=0)
    consumer = consumer_of(cluster)
    with ThreadPoolExecutor(1) as executor:
        for message in executor.submit(take, consumer, 3).result(60):
            consumer.done(message)
        began = time.monotonic()
        consumer.close()
        assert time.monotonic() - began < 10
    assert committed(cluster)[0] == 3


def test_C6_close_beside_a_loop_that_hangs_in_a_callback_returns_in_time(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    consumer = consumer_of(cluster, shutdown_timeout=1.0)
    is_in, go_on = threading.Event(), threading.Event()
    consumer.subscribe([TOPIC], on_assign=lambda *_: (is_in.set(), go_on.wait(60)))
    loop = Loop(consumer, lambda _: None)
    loop.start()
    assert is_in.wait(30)
    began = time.monotonic()
    consumer.close()
    assert time.monotonic() - began < 1 + 5 + 3
    assert "close_timed_out" in caplog.text
    go_on.set()
    loop.join(30)
    assert not loop.is_alive()
    assert loop.failure is None


def test_C6_what_a_close_waits_for_a_loop_counts_in_its_time(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(cluster, 1, partition=0)
    consumer = consumer_of(cluster, drain_timeout=1.0)
    loop, go_on = with_a_message_in_hand(consumer)
    shut_down = consumer._session.shut_down
    begun: list[float] = []

    def noted(began: float) -> float:
        begun.append(time.monotonic() - began)
        return shut_down(began)

    monkeypatch.setattr(consumer._session, "shut_down", noted)
    consumer.close()
    assert begun[0] >= 1.0
    go_on.set()
    loop.join(30)


@pytest.mark.parametrize("where_from", ["on_assign", "signal handler", "signal handler that raises"])
def test_C6_close_inside_poll_is_done_when_that_poll_returns(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture, where_from: str
) -> None:
    """There the client belongs to the call that is interrupted."""
    fill(cluster, 10, partition=0)
    consumer = consumer_of(cluster, commit_interval=60)
    before = signal.getsignal(signal.SIGUSR1)

    def close(*_: object) -> None:
        consumer.close()
        if where_from.endswith("raises"):
            raise Interrupt

    signal.signal(signal.SIGUSR1, close)
    try:
        if where_from == "on_assign":
            consumer.subscribe([TOPIC], on_assign=close)
            assert consumer.poll(30) is None
        else:
            for message in take(consumer, 10):
                consumer.done(message)
            kill = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1))
            kill.start()
            with contextlib.suppress(Interrupt):
                assert consumer.poll(30) is None
            kill.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(ClosedError):
        consumer.poll(1)
    assert "consumer_stopped" in caplog.text
    assert "close_timed_out" not in caplog.text
    assert "commit_failed" not in caplog.text
    assert committed(cluster)[0] == (0 if where_from == "on_assign" else 10)


@pytest.mark.parametrize("loop", ["run", "poll"])
def test_C6_close_in_the_callback_of_the_last_commit_does_not_wait_for_itself(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture, loop: str
) -> None:
    fill(cluster, 5, partition=0)
    called: list[str] = []

    def on_commit(*_: object) -> None:
        called.append(threading.current_thread().name)
        consumer.close()

    consumer = consumer_of(cluster, {"on_commit": on_commit}, commit_interval=60)
    if loop == "run":
        handled: list[Message] = []
        threading.Thread(
            target=lambda: (wait_until(lambda: len(handled) == 5, 30, "handled"), consumer.stop()), daemon=True
        ).start()
        consumer.run(handled.append)
    else:
        for message in take(consumer, 5):
            consumer.done(message)
        consumer.close()
    assert called == ["safekafka-commit"]
    assert "close_timed_out" not in caplog.text
    assert committed(cluster)[0] == 5
