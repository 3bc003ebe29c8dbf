"""A replay is killed again and again: every letter gets back to its topic, whatever the moment."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from confluent_kafka import Producer

from safekafka.deadletter.about import About
from safekafka.deadletter.dialects import NATIVE, written
from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from tests.processes import program, wait_until

TOPIC, DEAD, PARTITIONS = "orders", "orders.dlq", 3


@pytest.mark.timeout(600)
def test_a_replay_killed_at_any_moment_loses_no_letter(kafka_mock: MockCluster, tmp_path: Path, scale: int) -> None:
    chance = random.Random(scale)
    kafka_mock.create_topic(TOPIC, partitions=PARTITIONS)
    kafka_mock.create_topic(DEAD, partitions=PARTITIONS)
    servers, log = kafka_mock.bootstrap_servers, tmp_path / "log"
    kills = 6 * scale
    count = 1_000 * (kills + 1)  # more than are replayed in between
    producer = Producer({"bootstrap.servers": servers})
    for number in range(count):
        error = "KeyError" if number % 3 == 0 else "ValueError"
        about = About(TOPIC, number % PARTITIONS, number, group="billing", error_class=error)
        producer.produce(
            DEAD, str(number), str(number % 5), partition=number % PARTITIONS, headers=written(about, NATIVE)
        )
        producer.poll(0)
    assert producer.flush(60) == 0

    def replayed() -> list[int]:
        return [int(message.value() or b"-1") for message in read_log(servers, TOPIC, timeout=60)]

    for _ in range(kills):
        before = len(replayed())
        with program("replay", servers, DEAD, log=log) as killed:
            wait_until(lambda: len(replayed()) > before + 20 or killed.poll() is not None, 90, log.read_text)
            time.sleep(chance.random() * 1.5)  # the moment of the kill, not a wait for something
            assert killed.poll() is None, f"it came to its end: {log.read_text()}"
    with program("replay", servers, DEAD, log=log) as last:
        assert last.wait(300) == 0, log.read_text()
    sent = replayed()
    missing = sorted(set(range(count)) - set(sent))
    assert not missing, f"{len(missing)} letters are not back: {missing[:10]}"
    again = len(sent) - count
    assert again <= kills * 400, (
        f"{again} of {count} were sent again"
    )  # of a second, where commits come five times in it
    print(f"{kills} kills, {count} letters, {again} of them sent again")
