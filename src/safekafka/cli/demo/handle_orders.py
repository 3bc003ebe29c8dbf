"""The demo's consumer program: handles orders, and writes down which. What it can't read ends in the dead letter topic.

Started as `python -m safekafka.cli.demo.handle_orders`; ends by SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import tenacity
from confluent_kafka import Message

from safekafka import Retry, SafeConsumer
from safekafka.cli.demo.book import DEAD_LETTERED, HANDLED, Book
from safekafka.cli.demo.orders import DEAD_LETTER_TOPIC, TOPIC, order_id


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--bootstrap-servers", required=True)
    arguments.add_argument("--book", required=True, type=Path)
    chosen = arguments.parse_args()

    book = Book(chosen.book)

    def handle(message: Message) -> None:
        json.loads(message.value() or b"")
        # Here an application would do its work. Then it notes that it did:
        book.write(HANDLED, order_id(message), message.partition(), message.offset())

    logging.getLogger("safekafka").addHandler(_DeadLetters(book))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    SafeConsumer(
        {"bootstrap.servers": chosen.bootstrap_servers, "group.id": "demo"},
        topics=[TOPIC],
        retry=Retry(attempts=3, wait=tenacity.wait_fixed(0.2)),
        dead_letter=DEAD_LETTER_TOPIC,
    ).run(handle)


class _DeadLetters(logging.Handler):
    """The library tells of each dead letter by an event; the live display counts them."""

    def __init__(self, book: Book) -> None:
        super().__init__()
        self._book = book

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("dead_lettered "):
            self._book.write(DEAD_LETTERED)


if __name__ == "__main__":
    main()
