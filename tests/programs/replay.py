"""Replays a dead letter topic, again and again until it is killed: `replay.py SERVERS TOPIC`."""

from __future__ import annotations

import sys

from safekafka.deadletter.replay import Selection, replay


def main(servers: str, topic: str) -> None:
    # Every third letter first, so that the others are left behind and done later.
    for selection in (Selection(error="KeyError"), Selection()):
        outcome = replay({"bootstrap.servers": servers}, topic, selection, rate=400)
        print(outcome, flush=True)
        if outcome.failed is not None:
            sys.exit(outcome.failed)


if __name__ == "__main__":
    main(*sys.argv[1:])
