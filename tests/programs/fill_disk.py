"""Sends into a spool on a tiny disk until it is full, then waits for room: `fill_disk.py SERVERS TOPIC SPOOL GO`.

Tells by lines on stdout: `full N` when `send()` raised after N records, `went on N` when N are accepted and delivered.
Waits for the file GO in between: that brokers answer.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from safekafka import SafeProducer, Spool, SpoolFullError


def main(servers: str, topic: str, folder: str, go: str) -> None:
    spool = Spool(folder, durability="process", min_free_bytes=0)  # the disk itself has to refuse
    producer = SafeProducer({"bootstrap.servers": servers}, spool=spool, max_block=0.5)
    number = 0
    while True:
        try:
            producer.send(topic, str(number).encode() + b" " * 2_000, partition=0)
            number += 1
        except SpoolFullError:
            break
    print("full", number, flush=True)
    while not Path(go).exists():
        time.sleep(0.05)
    producer._way._max_block = 60
    for _ in range(50):
        producer.send(topic, str(number).encode() + b" " * 2_000, partition=0)
        number += 1
    if producer.flush(60) == 0 and producer.stats().delivered == number:
        print("went on", number, flush=True)
    producer.close(10)


if __name__ == "__main__":
    main(*sys.argv[1:])
