"""One measurement of one contestant, in a process of its own. Prints one line: what it found, as JSON.

`python -m benchmarks.consumer.worker --peer safekafka --servers 127.0.0.1:9092 --topic t --group g --records 100000`
"""

from __future__ import annotations

import argparse
import gc
import signal
from dataclasses import replace
from typing import Any

from benchmarks.common.processes import end_worker
from benchmarks.consumer.contestants import CONTESTANTS
from benchmarks.consumer.counting import Counting
from benchmarks.consumer.setup import Setup


def main() -> None:
    options = _options()
    signal.alarm(options.timeout)  # ends this process even if nobody is left to do it
    found = _MEASURES[options.measure](options)
    end_worker({"peer": options.peer, **found})


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    """From the first record to the last; joining the group comes before, and the last commit after it."""
    counting = Counting(options.records)
    contestant = CONTESTANTS[options.peer]
    peer = contestant.open(_setup(options))
    gc.collect()
    peer.consume(counting)
    used = counting.used()
    return {"records": options.records, "wall": used.wall, "cpu": used.cpu, **contestant.versions()}


def sleeping(options: argparse.Namespace) -> dict[str, Any]:
    """First the same sleeps by as many threads or tasks without Kafka, and by threads at a queue that a raw client
    fills; then those of the handlers."""
    from benchmarks.consumer.ideal import sleep_in_tasks, sleep_in_threads
    from benchmarks.consumer.peers.raw import Queued
    from benchmarks.consumer.peers.safe import Async, One

    form, seconds = options.form, options.milliseconds / 1_000
    ideal, counting = Counting(options.records, seconds), Counting(options.records, seconds)
    sleep = sleep_in_threads if form == "sync" else sleep_in_tasks
    sleep(ideal, min(options.concurrency, options.keys))
    found = {}
    if form == "sync" and options.keys >= options.concurrency:  # it keeps no order: fewer keys would not hold it up
        queued, setup = Counting(options.records, seconds), _setup(options)
        gc.collect()
        Queued(replace(setup, group=f"{setup.group}-queued"), options.concurrency).consume(queued)
        found["queued"] = queued.used().wall
    gc.collect()
    peer = {"sync": One, "async": Async}[form](_setup(options), order="key", concurrency=options.concurrency)
    peer.consume(counting)
    base, used = ideal.used(), counting.used()
    return {
        "records": options.records,
        "ideal": base.wall,
        "ideal_cpu": base.cpu,
        "wall": used.wall,
        "cpu": used.cpu,
        **found,
    }


def idle(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.consumer.stream import Stream

    stream = Stream(options.servers, options.topic, options.records)
    peer = CONTESTANTS[options.peer].open(_setup(options))
    stream.start()
    peer.consume(stream)
    taken = sorted(stream.taken)
    return {"records": len(taken), "p50": taken[len(taken) // 2], "p99": taken[len(taken) * 99 // 100]}


def keys(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.consumer.held import many_keys

    return many_keys(_setup(options), options.records)


def slow(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.consumer.held import slow_handler

    return slow_handler(_setup(options), options.seconds)


_MEASURES = {"throughput": throughput, "sleeping": sleeping, "idle": idle, "keys": keys, "slow": slow}


def _setup(options: argparse.Namespace) -> Setup:
    return Setup(options.servers, options.topic, options.group, options.cluster)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", default="throughput", choices=tuple(_MEASURES))
    parser.add_argument("--peer", required=True)
    parser.add_argument("--servers", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--cluster", default="mock", choices=["mock", "real"], help="what the servers are")
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--form", choices=["sync", "async"], default="sync", help="of sleeping handlers")
    parser.add_argument("--milliseconds", type=float, default=1, help="that they sleep")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--keys", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=10, help="of the slow handler's run")
    parser.add_argument("--timeout", type=int, default=120, help="seconds until it ends itself")
    return parser.parse_args()


if __name__ == "__main__":
    main()
