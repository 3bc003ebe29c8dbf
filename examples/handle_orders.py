"""Handles orders until Ctrl-C or SIGTERM. What can't be handled ends in the topic `orders.dlq`.

    KAFKA=localhost:19092 python examples/handle_orders.py

The topics `orders` and `orders.dlq` must exist.
"""

from __future__ import annotations

import json
import logging
import os

from confluent_kafka import Message

from safekafka import Reject, Retry, SafeConsumer


def handle(message: Message) -> None:
    try:
        order = json.loads(message.value() or b"")
    except ValueError as error:
        raise Reject("not an order") from error  # no attempt will mend it
    # The work goes here. It may run twice for one order (after a crash), so it must bear a repetition.
    print(f"{order['customer']} gets {order['item']}", flush=True)


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    consumer = SafeConsumer(
        {"bootstrap.servers": os.environ.get("KAFKA", "localhost:19092"), "group.id": "kitchen"},
        topics=["orders"],
        retry=Retry(attempts=3),
        dead_letter="orders.dlq",
    )
    consumer.run(handle)


if __name__ == "__main__":
    main()
