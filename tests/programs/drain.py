"""Starts a producer on a spool, sends nothing, and ends when the spool is empty: `drain.py SERVERS SPOOL TIMEOUT`. Exit
code 1 if it is not."""

from __future__ import annotations

import sys

from safekafka import SafeProducer

if __name__ == "__main__":
    servers, spool, timeout = sys.argv[1:]
    with SafeProducer({"bootstrap.servers": servers}, spool=spool) as producer:
        left = producer.flush(float(timeout))
    sys.exit(1 if left else 0)
