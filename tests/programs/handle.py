"""Handles messages until it is stopped: `handle.py SERVERS TOPIC GROUP LEDGER SECONDS`. A line `PARTITION OFFSET VALUE`
for each handled one."""

from __future__ import annotations

import os
import sys
import time

from confluent_kafka import Message

from safekafka import SafeConsumer


def main(servers: str, topic: str, group: str, ledger: str, seconds: str) -> None:
    file = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def handle(message: Message) -> None:
        time.sleep(float(seconds))
        value = (message.value() or b"").decode()
        os.write(file, f"{message.partition()} {message.offset()} {value}\n".encode())

    consumer = SafeConsumer(
        {
            "bootstrap.servers": servers,
            "group.id": group,
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 500,
        },
        [topic],
        commit_interval=0.1,
    )
    consumer.run(handle)


if __name__ == "__main__":
    main(*sys.argv[1:])
