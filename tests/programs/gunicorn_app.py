"""A WSGI application that sends: `/7` sends the number 7, answers with the worker's process id, and waits for nothing.

Loaded by gunicorn's master (`--preload`), which sends `SAFEKAFKA_TEST_MASTER` records of its own before it forks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from safekafka import SafeProducer

TOPIC = os.environ["SAFEKAFKA_TEST_TOPIC"]
MASTER = int(os.environ["SAFEKAFKA_TEST_MASTER"])
producer = SafeProducer({"bootstrap.servers": os.environ["SAFEKAFKA_TEST_SERVERS"], "linger.ms": 60_000})
for number in range(MASTER):
    producer.send(TOPIC, f"master {number}", partition=0)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    producer.send(TOPIC, environ["PATH_INFO"].strip("/"), partition=0)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
