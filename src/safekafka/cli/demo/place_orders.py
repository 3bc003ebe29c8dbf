"""The demo's producer program: places orders through the spool. Killed and started again, it goes on where it was.

Started as `python -m safekafka.cli.demo.place_orders`. Its book (see `book.py`) is all it remembers.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

from safekafka import SafeProducer
from safekafka.cli.demo.book import ACCEPTED, SPOOLED, TRYING, Book
from safekafka.cli.demo.orders import ID_HEADER, TOPIC, make_order

_REPORT_SECONDS = 0.1


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--bootstrap-servers", required=True)
    arguments.add_argument("--spool", required=True, type=Path)
    arguments.add_argument("--book", required=True, type=Path)
    arguments.add_argument("--orders", required=True, type=int)
    arguments.add_argument("--per-second", required=True, type=float)
    arguments.add_argument("--seed", required=True, type=int)
    chosen = arguments.parse_args()

    book = Book(chosen.book)
    tried = Counter(line[1].partition("/")[0] for line in book.past if line[0] == TRYING)
    accepted = sum(line[0] == ACCEPTED for line in book.past)
    with SafeProducer({"bootstrap.servers": chosen.bootstrap_servers}, spool=chosen.spool) as producer:
        pace = _Pace(chosen.per_second)
        reported = 0.0
        for number in range(accepted + 1, chosen.orders + 1):
            order = make_order(chosen.seed, number, 1 + tried[str(number)], chosen.orders)
            book.write(TRYING, order.id, order.key)
            producer.send(TOPIC, order.value, key=order.key, headers={ID_HEADER: order.id})
            book.write(ACCEPTED, order.id, order.key)
            pace.wait()
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                book.write(SPOOLED, len(producer))
        while producer.flush(_REPORT_SECONDS):
            book.write(SPOOLED, len(producer))
    book.write(SPOOLED, len(producer))


class _Pace:
    """Holds a loop to so many rounds a second, without catching up on what was slow."""

    def __init__(self, per_second: float) -> None:
        self._seconds = 1 / per_second
        self._due = time.monotonic()

    def wait(self) -> None:
        now = time.monotonic()
        self._due = max(self._due + self._seconds, now - 0.05)
        if self._due - now > 0.001:
            time.sleep(self._due - now)


if __name__ == "__main__":
    main()
