"""The first batch of a new client is refused, the second is taken. What the raw client makes of it: see the first test.

The mock brokers compare no sequence numbers at all; real ones do not for a producer id that is new to a partition. So
what is refused here has to be the first (`tests/cluster/test_producer_first_batch.py` has the real ones).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, Producer

from safekafka import DeliveryUnknown, Record, SafeProducer
from safekafka.producer import known as known_module
from safekafka.producer.held import Held
from safekafka.testing import MockCluster
from safekafka.testing.ledger import Entry, audit_log, log_entries, read_log
from safekafka.testing.mock import ApiKey
from tests.mock.conftest import TOPIC
from tests.processes import wait_until

NOT_LEADER = KafkaError.NOT_LEADER_FOR_PARTITION
ONE_BY_ONE = {"batch.num.messages": 1, "linger.ms": 0}
RECORDS, KEYS = 400, 20


@pytest.fixture(params=["direct", "spool"])
def make_either(
    request: pytest.FixtureRequest, make: Callable[..., SafeProducer], tmp_path: Path
) -> Callable[..., SafeProducer]:
    spool = {"spool": tmp_path / "spool"} if request.param == "spool" else {}

    def make_one(**options: Any) -> SafeProducer:
        return make(ONE_BY_ONE, **spool, **options)

    return make_one


def send_all(producer: SafeProducer, first: int = 0) -> list[Entry]:
    sent = []
    for number in range(first, first + RECORDS):
        key = b"%d" % (number % KEYS)
        producer.send(TOPIC, str(number), key=key)
        sent.append(Entry(key, number))
    return sent


def check(cluster: MockCluster, sent: list[Entry]) -> None:
    log = read_log(cluster.bootstrap_servers, TOPIC, timeout=30)
    report = audit_log(sent, log_entries(log, lambda message: int(message.value() or b"")))
    assert report.ok, str(report)


def test_the_raw_client_tells_of_success_for_a_record_that_is_nowhere(cluster: MockCluster) -> None:
    """The fault that the others are about can be made. (If a later client knows better, this fails, and is to go.)"""
    cluster.push_request_errors(ApiKey.Produce, NOT_LEADER)
    told: dict[int, Any] = {}
    producer = Producer(
        {"bootstrap.servers": cluster.bootstrap_servers, "enable.idempotence": True, **ONE_BY_ONE, "log_level": 0}
    )
    for number in range(10):
        producer.produce(
            TOPIC,
            str(number),
            partition=0,
            on_delivery=lambda error, message, number=number: told.update({number: (error, message.offset())}),
        )
    assert producer.flush(30) == 0
    assert told[0] == (None, None)
    log = [int(message.value() or b"") for message in read_log(cluster.bootstrap_servers, TOPIC, timeout=30)]
    assert log == list(range(1, 10))


def test_P1_P3_records_behind_a_refused_first_one_neither_overtake_it_nor_make_it_vanish(
    cluster: MockCluster, make_either: Callable[..., SafeProducer]
) -> None:
    cluster.push_request_errors(ApiKey.Produce, *[NOT_LEADER] * 3)
    producer = make_either()
    sent = send_all(producer)
    assert producer.flush(60) == 0
    check(cluster, sent)


def test_P3_a_client_made_anew_is_as_careful(cluster: MockCluster, make_either: Callable[..., SafeProducer]) -> None:
    producer = make_either()
    sent = send_all(producer)
    assert producer.flush(60) == 0
    client = producer.raw_client
    cluster.trigger_fatal_error(producer)
    wait_until(lambda: producer.raw_client is not client, 30, "a new client")
    cluster.push_request_errors(ApiKey.Produce, *[NOT_LEADER] * 3)
    sent += send_all(producer, first=RECORDS)
    assert producer.flush(60) == 0
    check(cluster, sent)


def test_P3_what_brokers_may_have_forgotten_is_new_again(
    cluster: MockCluster, make_either: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = make_either()
    sent = send_all(producer)
    assert producer.flush(60) == 0
    before = producer._way._known  # type: ignore[union-attr]
    monkeypatch.setattr("safekafka.producer.direct.FORGET_SECONDS", 0.0)
    wait_until(lambda: producer._way._known is not before, 10, "forgotten")  # type: ignore[union-attr]
    monkeypatch.setattr("safekafka.producer.direct.FORGET_SECONDS", known_module.FORGET_SECONDS)
    cluster.push_request_errors(ApiKey.Produce, *[NOT_LEADER] * 3)
    sent += send_all(producer, first=RECORDS)
    assert producer.flush(60) == 0
    check(cluster, sent)


def test_P1_an_acknowledgement_without_an_offset_is_not_believed_where_the_client_can_be_wrong(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make(ONE_BY_ONE, on_undelivered=lambda *_: None)
    producer._way._known.topics.add(TOPIC)  # type: ignore[union-attr]
    cluster.push_request_errors(ApiKey.Produce, NOT_LEADER)
    receipts = [producer.send(TOPIC, str(number), partition=0) for number in range(10)]
    with pytest.raises(DeliveryUnknown, match="without an offset"):
        receipts[0].result(30)
    assert [receipt.result(30).offset for receipt in receipts[1:]] == list(range(9))


def test_P5_with_a_spool_it_is_sent_again(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path
) -> None:
    producer = make(ONE_BY_ONE, spool=tmp_path / "spool")
    producer._way._known.topics.add(TOPIC)  # type: ignore[union-attr]
    cluster.push_request_errors(ApiKey.Produce, NOT_LEADER)
    receipts = [producer.send(TOPIC, str(number), partition=0) for number in range(10)]
    assert all(receipt.result(30).offset is not None for receipt in receipts)
    log = [int(message.value() or b"") for message in read_log(cluster.bootstrap_servers, TOPIC, timeout=30)]
    assert sorted(log) == list(range(10))


def test_a_backlog_goes_the_straight_way_once_the_partitions_are_known(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.set_broker_down()
    with make(spool=tmp_path / "spool", shutdown_timeout=0.1) as producer:
        producer.send_many(Record(TOPIC, str(number)) for number in range(20_000))
    cluster.set_broker_up()
    waited = 0
    add = Held.add

    def counted(held: Held[Any], receipt: Any) -> None:
        nonlocal waited
        waited += 1
        add(held, receipt)

    monkeypatch.setattr(Held, "add", counted)
    producer = make(spool=tmp_path / "spool")
    assert producer.flush(60) == 0
    assert 0 < waited < 20_000


def test_records_without_a_key_find_all_partitions(
    cluster: MockCluster, make_either: Callable[..., SafeProducer]
) -> None:
    producer = make_either()
    for number in range(200):
        producer.send(TOPIC, str(number))
    assert producer.flush(60) == 0
    log = read_log(cluster.bootstrap_servers, TOPIC, timeout=30)
    assert sorted(int(message.value() or b"") for message in log) == list(range(200))
    assert {message.partition() for message in log} == {0, 1, 2, 3}
    assert TOPIC in producer._way._known.topics  # type: ignore[union-attr]
