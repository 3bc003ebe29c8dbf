"""Sends numbered records through a spool for ever: `send.py SERVERS TOPIC SPOOL LEDGER KEYS`.

Two lines a record in the ledger: `try N` before `send()`, `ok N` after it returned. Goes on behind the last `ok` of an
earlier run, but a number whose `try` has no `ok` is left out: it was neither accepted nor refused, so nothing is
claimed for it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from safekafka import SafeProducer


def last_tried(ledger: Path) -> int:
    if not ledger.exists():
        return -1
    numbers = [int(line.split()[1]) for line in ledger.read_text().splitlines() if len(line.split()) == 2]
    return max(numbers, default=-1)


def main(servers: str, topic: str, spool: str, ledger: str, keys: str) -> None:
    number = last_tried(Path(ledger)) + 1
    # One write() a line: after a SIGKILL a line is there whole or not at all, in the page cache at least.
    file = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    producer = SafeProducer({"bootstrap.servers": servers}, spool=spool)
    print("ready", flush=True)
    while True:
        os.write(file, f"try {number}\n".encode())
        producer.send(topic, str(number), key=str(number % int(keys)))
        os.write(file, f"ok {number}\n".encode())
        number += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
