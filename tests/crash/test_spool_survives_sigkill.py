"""P5: the producer process is killed again and again, at random moments; whatever `send()` accepted arrives, in
order."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from safekafka.testing import MockCluster
from safekafka.testing.ledger import Entry, audit_log, log_entries, read_log
from tests.processes import accepted, in_doubt, program, wait_until

TOPIC, KEYS = "orders", 7


@pytest.mark.timeout(600)
def test_P5_records_survive_sigkill_of_the_producer_while_brokers_come_and_go(
    kafka_mock: MockCluster, tmp_path: Path, scale: int
) -> None:
    seed = 20260 + scale
    chance = random.Random(seed)
    kafka_mock.create_topic(TOPIC, partitions=3, replication_factor=3)
    servers, spool, ledger, log = (
        kafka_mock.bootstrap_servers,
        tmp_path / "spool",
        tmp_path / "ledger",
        tmp_path / "log",
    )
    kills = 8 * scale
    for _ in range(kills):
        if chance.random() < 0.5:
            kafka_mock.set_broker_down()
        before = len(accepted(ledger))
        with program("send", servers, TOPIC, spool, ledger, KEYS, log=log):
            wait_until(lambda: len(accepted(ledger)) > before + 20, 60, log.read_text)
            kafka_mock.set_broker_up()
            time.sleep(chance.random() * 0.5)  # the moment of the kill, not a wait for something
    kafka_mock.set_broker_up()
    with program("drain", servers, spool, 60, log=log) as process:
        assert process.wait(90) == 0, log.read_text()
    sent = accepted(ledger)
    messages = read_log(servers, TOPIC, timeout=60)
    doubtful = in_doubt(ledger)
    report = audit_log(
        (Entry(str(number % KEYS).encode(), number) for number in sent),
        (
            entry
            for entry in log_entries(messages, lambda message: int(message.value() or b""))
            if entry.id not in doubtful
        ),
    )
    print(f"seed {seed}: {kills} kills, {len(sent)} accepted, {report}")
    assert len(sent) > 20 * kills
    assert (report.lost, report.out_of_order, report.unexpected) == (0, 0, 0), report
    # A duplicate is a record that was delivered and not yet deleted at a kill: bounded by the window of unacknowledged
    # rows.
    assert report.duplicates <= kills * 11_000
