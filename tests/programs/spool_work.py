"""A worker of a service that sends through a spool: `spool_work.py SERVERS TOPIC SPOOL LEDGER NAME ...`; see `--help`.

The value of a record is `NAME NUMBER` (and spaces up to `--size`), its key `NAME-<NUMBER modulo --keys>`. In the ledger
two lines a call: `try FIRST LAST` before it, `ok FIRST LAST` after it returned, each in one write(): after a SIGKILL a
line is there whole or not at all. Goes on behind the last `try` of an earlier run: a number without `ok` was neither
accepted nor refused, so nothing is claimed for it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from safekafka import Receipt, Record, SafeProducer, Spool, UndeliveredError
from safekafka.spool import sender


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("servers", "topic", "spool", "ledger", "name"):
        parser.add_argument(name)
    parser.add_argument("--keys", type=int, default=7)
    parser.add_argument("--size", type=int, default=0, help="bytes of a value, at least")
    parser.add_argument("--calls", default="1", help="records of each call, in turn: 1 is send(), 20 send_many()")
    parser.add_argument("--rate", type=float, default=0.0, help="records a second; 0: as fast as it goes")
    parser.add_argument("--count", type=int, default=-1, help="records to send; -1: for ever")
    parser.add_argument("--first-alone", action="store_true", help="wait for the outcome of the first record")
    parser.add_argument("--stay", action="store_true", help="wait for SIGTERM before the end")
    parser.add_argument("--flush", type=float, default=60.0, help="seconds; what is left then is exit code 1")
    parser.add_argument("--spool-name", default="default")
    parser.add_argument("--durability", default="disk", choices=["disk", "process"])
    parser.add_argument("--adopt", type=float, help="seconds before, and between, looks for lanes of dead processes")
    parser.add_argument("--config", nargs="*", default=[], help="of the client: name=value")
    return parser.parse_args()


def last_tried(ledger: Path) -> int:
    if not ledger.exists():
        return -1
    lines = [line.split() for line in ledger.read_text().split("\n")[:-1]]
    return max((int(last) for kind, _, last in lines if kind == "try"), default=-1)


def main() -> int:
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    ended = threading.Event()
    if options.stay:
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
    if options.adopt is not None:
        sender._ADOPT_AFTER_SECONDS = sender._ADOPT_SECONDS = options.adopt
    number = last_tried(Path(options.ledger)) + 1
    end = number + options.count if options.count >= 0 else sys.maxsize
    file = os.open(options.ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    spool = Spool(options.spool, name=options.spool_name, durability=options.durability)
    config = {"bootstrap.servers": options.servers, **dict(setting.split("=", 1) for setting in options.config)}
    producer = SafeProducer(config, spool=spool)
    print("ready", flush=True)

    def record(n: int) -> Record:
        return Record(options.topic, f"{options.name} {n}".ljust(options.size), f"{options.name}-{n % options.keys}")

    begun, first = time.monotonic(), number
    sizes = itertools.cycle(int(size) for size in options.calls.split(","))
    while number < end and not ended.is_set():
        size = min(next(sizes), end - number)
        os.write(file, f"try {number} {number + size - 1}\n".encode())
        receipts: list[Receipt] = []
        if size == 1:
            receipts.append(producer.send(*record(number)))
        else:
            producer.send_many([record(n) for n in range(number, number + size)])
        os.write(file, f"ok {number} {number + size - 1}\n".encode())
        if options.first_alone and number == first:
            receipts[0].exception(60)
        number += size
        if options.rate and (early := (number - first) / options.rate - (time.monotonic() - begun)) > 0:
            time.sleep(early)
    if options.stay:
        ended.wait()
    with contextlib.suppress(UndeliveredError):  # told by rejected()
        producer.flush(options.flush)
    left = len(producer)
    with contextlib.suppress(UndeliveredError):
        producer.close(1)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
