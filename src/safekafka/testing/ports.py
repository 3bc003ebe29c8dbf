"""Free ports on 127.0.0.1 that stay free while their broker is down. No thread, no process."""

from __future__ import annotations

import contextlib
import random
import socket

from safekafka.testing.errors import KafkaClusterError

# Below the range that systems take the ports of outgoing connections from (Linux from 32768, macOS and Windows from
# 49152): a killed broker would else find its port taken by some client's connection when it comes back.
_RANGE = range(10_000, 32_768)


def free_ports(count: int) -> list[int]:
    """As many different ports as asked for, each free at this moment."""
    with contextlib.ExitStack() as held:
        found: list[int] = []
        for port in random.SystemRandom().sample(_RANGE, 200 + count):
            candidate = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            # As a broker binds: connections of a past run that linger (TIME_WAIT) are no obstacle.
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise KafkaClusterError(f"no {count} free ports on 127.0.0.1 between {_RANGE.start} and {_RANGE.stop}")
