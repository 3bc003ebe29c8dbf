"""Sends orders, one a line on standard input: `customer item`. Lines that were taken survive a kill of this program.

    KAFKA=localhost:19092 python examples/send_orders.py < orders.txt

The topic `orders` must exist. Started again after a kill, it first sends what was left in its spool.
"""

from __future__ import annotations

import json
import logging
import os
import sys

from safekafka import SafeProducer


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    config = {"bootstrap.servers": os.environ.get("KAFKA", "localhost:19092")}
    spool = os.environ.get("SPOOL", "var/spool")
    sent = 0
    with SafeProducer(config, spool=spool) as producer:
        for line in sys.stdin:
            customer, _, item = line.strip().partition(" ")
            producer.send("orders", json.dumps({"customer": customer, "item": item}), key=customer)
            sent += 1
        left = producer.flush(timeout=30)
    print(f"{sent} orders taken, {left} of them not yet in Kafka")


if __name__ == "__main__":
    main()
