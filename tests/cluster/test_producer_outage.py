"""P1, P3, P4: an outage of the whole cluster, longer than `delivery_timeout`: each outcome is told in time and is true,
and what is sent afterwards goes as before."""

from __future__ import annotations

import random
import time

import pytest

from safekafka import Receipt, SafeProducer
from safekafka.testing import KafkaCluster
from tests.cluster.producer_faults import HEAL_SECONDS, Background, Pace, judge, new_seed
from tests.processes import wait_until

RATE = 300.0
MARGIN = 2.0  # s beyond delivery_timeout
NORMAL = 2.0  # s from send to delivery, once the cluster is back
NOTICED = 3.5  # s after which records are held back from a client that gets no answers
RECONNECTED = 15.0  # s after the brokers are back


@pytest.mark.kills_brokers
@pytest.mark.timeout(900)
def test_P1_each_outcome_of_an_outage_is_told_in_time_and_true(kafka_cluster: KafkaCluster, scale: int) -> None:
    outage, delivery_timeout, runs = (8.0, 3.0, 1) if scale < 5 else (25.0, 10.0, 5)
    first_seed = new_seed()
    for seed in range(first_seed, first_seed + runs):
        one_outage(kafka_cluster, seed, outage, delivery_timeout)


def one_outage(cluster: KafkaCluster, seed: int, outage: float, delivery_timeout: float) -> None:
    topic, servers, chance = f"outage-{seed}", cluster.bootstrap_servers, random.Random(seed)
    cluster.create_topic(topic, partitions=3)
    receipts: list[Receipt] = []
    sent: list[float] = []
    told: dict[int, float] = {}
    down: list[float] = []  # when the last broker was killed
    back: list[float] = []  # when the first was started again
    up: list[float] = []  # when all replicas were in sync again

    def all_down_and_up() -> None:
        time.sleep(chance.uniform(2, 3))
        for broker in chance.sample((1, 2, 3), 3):
            cluster.kill(broker)
            time.sleep(chance.uniform(0, 0.2))
        down.append(time.monotonic())
        time.sleep(outage)
        back.append(time.monotonic())
        cluster.heal(HEAL_SECONDS)
        up.append(time.monotonic())

    with SafeProducer({"bootstrap.servers": servers}, delivery_timeout=delivery_timeout) as producer:

        def send() -> None:
            number = len(receipts)
            pace.wait(number)
            sent.append(time.monotonic())
            receipt = producer.send(topic, str(number), key=str(number % 17))
            receipts.append(receipt)
            receipt.add_done_callback(lambda _: told.setdefault(number, time.monotonic()))

        with Background(all_down_and_up) as background:
            pace = Pace(RATE)
            while background.running():
                send()
        first = len(receipts)  # of those sent after the brokers were back
        send()
        while not receipts[first].done():
            send()
            assert time.monotonic() < up[0] + RECONNECTED, f"seed {seed}: nothing is delivered after the outage"
        recovered = time.monotonic() - up[0]
        normal = len(receipts)
        for _ in range(int(RATE * 5)):
            send()
        producer.flush(delivery_timeout + MARGIN)
        # Those that ended as unknown are still with the client: the log is complete when it has let them go.
        wait_until(lambda: len(producer.raw_client) == 0, 60, "the client has reports to give yet")
        late = producer.stats().late
    found = judge(servers, topic, receipts)
    cluster.delete_topic(topic)

    numbers = {
        status: {number for number, receipt in enumerate(receipts) if receipt.status == status}
        for status in ("delivered", "failed", "unknown")
    }
    waits = [told[number] - sent[number] for number in range(len(receipts)) if number in told]
    print(
        f"\noutage {outage} s, delivery_timeout {delivery_timeout} s, seed={seed}: {found}; late reports {late}; "
        f"unknown and in the log {len(numbers['unknown'] & found.in_log)}; last outcome told after {max(waits):.2f} s; "
        f"first delivery {recovered:.2f} s after the brokers were back, then at most "
        f"{max(waits[normal:]):.2f} s from send to delivery"
    )
    assert len(told) == len(receipts), f"seed {seed}: {found}"
    assert max(waits) <= delivery_timeout + MARGIN
    assert any(down[0] < at < up[0] for at in sent), "nothing was sent in the outage"
    assert numbers["failed"] | numbers["unknown"], "the outage was too short to be noticed"
    report = found.report
    assert (report.duplicates, report.out_of_order, report.unexpected) == (0, 0, 0), f"seed {seed}: {report}"
    assert numbers["failed"] & found.in_log == set()
    # Sent when the outage was known, and ended within it: the client never had them, so their fate is known.
    held = {number for number, at in enumerate(sent) if down[0] + NOTICED < at < back[0] - delivery_timeout}
    assert held
    assert held <= numbers["failed"], f"seed {seed}: {len(held - numbers['failed'])} of {len(held)} told otherwise"
    assert numbers["delivered"] - found.in_log == set()
    assert found.misplaced == []
    assert {receipt.status for receipt in receipts[first:]} == {"delivered"}
    assert max(waits[normal:]) <= NORMAL
