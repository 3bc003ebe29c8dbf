"""P3, P6: the order of a partition across leader moves, new clients and refused records."""

from __future__ import annotations

import time

import pytest

from safekafka import DeliveryFailed, Receipt, SafeProducer
from safekafka.testing import KafkaCluster, MockCluster
from tests.cluster.producer_faults import Faults, Pace, judge, new_seed

RATE = 1_000.0
REBUILT = 60.0  # s; what the old client has on its way is waited for


@pytest.mark.kills_brokers
@pytest.mark.timeout(900)
def test_P3_the_order_of_a_partition_is_kept_across_leader_moves_and_new_clients(
    kafka_cluster: KafkaCluster, topic: str, scale: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="safekafka")
    seed, servers = new_seed(), kafka_cluster.bootstrap_servers
    records, moves = 20_000 * scale, max(2, scale)
    kinds = ("leader killed", "leader paused")  # a paused one answers the old client's requests later
    errors = max(3, scale)  # within the five new clients a minute that the producer allows itself
    due = [records * number // (errors + 1) for number in range(1, errors + 1)]
    receipts: list[Receipt] = []
    with SafeProducer({"bootstrap.servers": servers}, delivery_timeout=300) as producer:

        def send() -> None:
            receipts.append(producer.send(topic, str(len(receipts)) + " " * 90, key=str(len(receipts) % 97)))

        with Faults(kafka_cluster, topic, seed, moves, records, lambda: len(receipts), kinds, pause=5) as faults:
            pace, injected_at, seconds = Pace(RATE), 0.0, []
            while len(receipts) < records or faults.running() or len(seconds) < errors:
                pace.wait(len(receipts))
                send()
                if len(seconds) < errors - len(due):  # the client of the last error is still to be replaced
                    if producer.stats().rebuilds > len(seconds):
                        seconds.append(time.monotonic() - injected_at)
                    assert time.monotonic() < injected_at + REBUILT, f"seed {seed}: no new client; {faults}"
                elif due and len(receipts) >= due[0]:
                    due.pop(0)
                    for _ in range(200):  # so that there are some on their way
                        send()
                    injected_at = time.monotonic()
                    MockCluster.trigger_fatal_error(producer)
        assert producer.flush(120) == 0
        stats = producer.stats()
    found = judge(servers, topic, receipts)
    rebuilt = [record.getMessage() for record in caplog.records if "client_rebuilt" in record.getMessage()]
    print(
        f"\norder seed={seed}: {found}; {stats}; {faults}; new clients after "
        f"{', '.join(f'{one:.2f} s' for one in seconds)}: {rebuilt}"
    )
    assert found.statuses == {"delivered": len(receipts)}, f"seed {seed}: {found}"
    report = found.report
    assert (report.lost, report.out_of_order, report.unexpected) == (0, 0, 0), f"seed {seed}: {report}"
    assert found.misplaced == []
    assert stats.rebuilds == len(rebuilt) == errors
    assert report.duplicates <= stats.sent_again, f"seed {seed}: {report}"


@pytest.mark.timeout(120)
def test_P1_one_record_too_large_for_its_topic_fails_alone_among_thousands(kafka_cluster: KafkaCluster) -> None:
    topic, servers, count, large = "small-ones-only", kafka_cluster.bootstrap_servers, 5_000, 3_000
    kafka_cluster.create_topic(topic, config={"max.message.bytes": "100000"})
    try:
        with SafeProducer({"bootstrap.servers": servers, "linger.ms": 50}) as producer:
            receipts = [
                producer.send(topic, str(number) + " " * (200_000 if number == large else 100))
                for number in range(count)
            ]
            refusal = receipts[large].exception(60)
            assert isinstance(refusal, DeliveryFailed)
            assert "large" in str(refusal)
            assert producer.flush(60) == 0
            stats = producer.stats()
        found = judge(servers, topic, receipts)
    finally:
        kafka_cluster.delete_topic(topic)
    print(f"\ntoo large: {found}; {stats}")
    assert receipts[large].status == "failed"
    assert found.statuses == {"delivered": count - 1, "failed": 1}
    assert [entry.id for entry in found.report.lost_first] == [large]
    assert (found.report.duplicates, found.report.out_of_order, found.report.unexpected) == (0, 0, 0), found.report
    assert found.misplaced == []
