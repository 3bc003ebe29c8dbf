"""P3: sixteen threads send through one producer while brokers are killed; the order of each is kept, nothing is lost or
doubled."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from safekafka import Receipt, SafeProducer
from safekafka.testing import KafkaCluster
from safekafka.testing.ledger import Entry, audit_log, read_log
from tests.cluster.producer_faults import KINDS, Faults, Pace, new_seed

THREADS = 16


@pytest.mark.kills_brokers
@pytest.mark.timeout(900)
def test_P3_the_order_of_each_of_sixteen_threads_is_kept_in_each_partition(
    kafka_cluster: KafkaCluster, topic: str, scale: int
) -> None:
    seed, servers = new_seed(), kafka_cluster.bootstrap_servers
    each, count, rate = (1_000, 1, 100.0) if scale == 1 else (4_000 * scale, 8, 150.0)
    kinds = KINDS[:1] if scale == 1 else KINDS
    receipts: list[list[Receipt]] = [[] for _ in range(THREADS)]

    def send_all(thread: int, producer: SafeProducer) -> None:
        pace = Pace(rate)
        for number in range(each):
            pace.wait(number)
            receipts[thread].append(producer.send(topic, f"{thread} {number}", key=str(number % 53)))

    def sent() -> int:
        return sum(map(len, receipts))

    config = {"bootstrap.servers": servers}
    with SafeProducer(config, delivery_timeout=300) as producer, ThreadPoolExecutor(THREADS) as pool:
        with Faults(kafka_cluster, topic, seed, count, THREADS * each, sent, kinds) as faults:
            for thread in [pool.submit(send_all, thread, producer) for thread in range(THREADS)]:
                thread.result(600)
        assert producer.flush(120) == 0

    def entry(text: str, partition: int = -1, offset: int = -1) -> Entry:
        thread, number = text.split()
        return Entry(thread.encode(), int(number), partition, offset)

    log = [
        entry((message.value() or b"").decode(), message.partition() or 0, message.offset() or 0)
        for message in read_log(servers, topic, timeout=60)
    ]
    accepted = [entry(f"{thread} {number}") for thread in range(THREADS) for number in range(each)]
    report = audit_log(accepted, log)
    statuses = {receipt.status for of_thread in receipts for receipt in of_thread}
    print(f"\nthreads seed={seed}: {THREADS} x {each}, {statuses}\n{report}\n{faults}")
    assert all(fault.ended_at > fault.begun_at for fault in faults.done), f"a fault missed the sending: {faults}"
    assert report.ok, f"seed {seed}: {report}"
    assert statuses == {"delivered"}
