"""A member of a group: `keyed_work.py JSON` with the servers, topic, group, ledger, member, seconds (the shortest and
the longest of a handling), and the config and options of its SafeConsumer. Handles until it is stopped.

The ledger gets a line for each handling that ended, for each commit that the broker confirmed, and for what the
consumer tells of its partitions (`tests/crash/consumer_ledger.py` reads them). All times are those of the machine's
monotonic clock, in nanoseconds, so they compare between processes.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import sys
import time
from typing import Any

from confluent_kafka import KafkaError, Message, TopicPartition

from safekafka import SafeConsumer
from safekafka.consumer.session import Session


class Ledger(logging.Handler):
    """Appends whole lines, one call each: a kill leaves none that is cut off, and members mix none."""

    def __init__(self, path: str, member: str) -> None:
        super().__init__(logging.INFO)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._member = member

    def write(self, kind: str, *words: object) -> None:
        os.write(self._file, " ".join(map(str, [kind, self._member, *words])).encode() + b"\n")

    def emit(self, record: logging.LogRecord) -> None:
        event, _, fields = record.getMessage().partition(" ")
        partitions = re.findall(r"\[(\d+)\]'", fields)
        self.write("told", event, ",".join(partitions) or "-", time.monotonic_ns())

    def on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        now = time.monotonic_ns()
        for partition in partitions:
            if error is None and partition.error is None:
                self.write("committed", partition.partition, partition.offset, now)


def main(what: dict[str, Any]) -> None:
    ledger, chance = Ledger(what["ledger"], what["member"]), random.Random(what["member"])
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(name)s %(message)s")
    logging.getLogger("safekafka").addHandler(ledger)
    shortest, longest = what["seconds"]

    def handle(message: Message) -> None:
        start = time.monotonic_ns()
        time.sleep(chance.uniform(shortest, longest))
        key = (message.key() or b"").decode()
        ledger.write("handled", message.partition(), message.offset(), key, start, time.monotonic_ns())

    config = {**what["config"], "bootstrap.servers": what["servers"], "group.id": what["group"]}
    config["client.id"] = what["member"]
    on_assign = Session._on_assign

    def asking(session: Session, client: Any, partitions: list[TopicPartition]) -> None:
        numbers = ",".join(str(one.partition) for one in partitions)
        ledger.write("told", "assigning", numbers or "-", time.monotonic_ns())
        on_assign(session, client, partitions)

    Session._on_assign = asking  # type: ignore[method-assign]
    consumer = SafeConsumer({**config, "on_commit": ledger.on_commit}, [what["topic"]], **what["options"])
    ledger.write("told", "started", "-", time.monotonic_ns())
    consumer.run(handle)
    ledger.write("told", "closed", "-", time.monotonic_ns())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
