"""One measurement of one contestant, in a process of its own. Prints one line: what it found, as JSON.

`python -m benchmarks.producer.worker --peer safekafka --servers 127.0.0.1:9092 --records 100000 --size 100`
"""

from __future__ import annotations

import argparse
import gc
import signal
from typing import Any

from benchmarks.common.processes import check_count, end_worker
from benchmarks.common.setup import BUFFER_RECORDS, LINGER_MS, Setup
from benchmarks.common.usage import Usage, resident_bytes
from benchmarks.common.values import distinct, repeated
from benchmarks.producer.contestants import CONTESTANTS
from benchmarks.producer.peers.base import Peer

_alive: list[Peer] = []  # until the process ends: closing a client may take long, and is not measured


def main() -> None:
    options = _options()
    signal.alarm(options.timeout)  # ends this process even if nobody is left to do it
    measure = {"throughput": throughput, "latency": latency, "pending": pending, "flat": flat}[options.measure]
    found = measure(options)
    end_worker({"peer": options.peer, **found})


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    """From the first send to the last acknowledgement."""
    peer = _warm(options, Setup(options.servers, options.topic, options.cluster))
    values = repeated(options.records, options.size)
    gc.collect()
    start = Usage.now()
    peer.send(values)
    delivered = peer.wait()
    used = Usage.now() - start
    check_count(delivered, options.records + 1)
    return {"records": options.records, "wall": used.wall, "cpu": used.cpu, **CONTESTANTS[options.peer].versions()}


def latency(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.producer.probes import PROBES

    probe = PROBES[options.peer]
    taken = sorted(
        probe(Setup(options.servers, options.topic, options.cluster, linger_ms=options.linger), options.records)
    )
    check_count(len(taken), options.records)
    return {"p50": taken[len(taken) // 2], "p99": taken[len(taken) * 99 // 100]}


def pending(options: argparse.Namespace) -> dict[str, Any]:
    """Memory for records whose brokers went away after the first one."""
    from benchmarks.common.mock_process import MockProcess
    from benchmarks.producer.settle import highest_resident

    room = options.records + BUFFER_RECORDS
    # aiokafka accepts one batch a partition and no more: only one that holds everything lets the records be pending.
    batch = options.records * (options.size + 100) if options.peer == "aiokafka" else None
    with MockProcess() as brokers:
        setup = Setup(brokers.servers, brokers.topic, buffer_records=room, **({"batch_bytes": batch} if batch else {}))
        peer = _warm(options, setup)
    gc.collect()
    before = resident_bytes()
    peer.send(distinct(options.records, options.size))
    return {"records": options.records, "bytes": highest_resident() - before}


def flat(options: argparse.Namespace) -> dict[str, Any]:
    """Memory after a fifth of the records, and after all of them."""
    peer = _warm(options, Setup(options.servers, options.topic, options.cluster))
    first = options.records // 5
    peer.send(distinct(first, options.size))
    check_count(peer.wait(), first + 1)
    early = resident_bytes()
    peer.send(distinct(options.records - first, options.size))
    check_count(peer.wait(), options.records + 1)
    return {"records": options.records, "early": early, "late": resident_bytes()}


def _warm(options: argparse.Namespace, setup: Setup) -> Peer:
    """Connected, with metadata and a producer id."""
    peer = CONTESTANTS[options.peer].open(setup)
    _alive.append(peer)
    peer.send([b"warm-up"])
    check_count(peer.wait(), 1)
    return peer


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", default="throughput", choices=["throughput", "latency", "pending", "flat"])
    parser.add_argument("--peer", required=True)
    parser.add_argument("--servers", default="")
    parser.add_argument("--topic", default="bench")
    parser.add_argument("--cluster", default="mock", choices=["mock", "real"], help="what the servers are")
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--linger", type=float, default=LINGER_MS, help="milliseconds; latency only")
    parser.add_argument("--timeout", type=int, default=120, help="seconds until it ends itself")
    return parser.parse_args()


if __name__ == "__main__":
    main()
