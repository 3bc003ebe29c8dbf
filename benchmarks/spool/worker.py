"""One measurement, in a process of its own. Prints one line: what it found, as JSON.

`python -m benchmarks.spool.worker --measure append --case disk-send-1-1 --size 200 --seconds 1 --folder var/try`
"""

from __future__ import annotations

import argparse
import gc
import signal
import socket
import time
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.common.processes import WrongCountError, check_count, end_worker
from benchmarks.common.setup import Setup
from benchmarks.common.usage import Usage, peak_resident_bytes, resident_bytes
from benchmarks.common.values import Timed, distinct, repeated
from benchmarks.producer.peers.base import Peer
from benchmarks.spool.calls import let_sender_rest, sending
from benchmarks.spool.cases import CASES, most_calls
from benchmarks.spool.contestants import BASE, CONTESTANTS
from benchmarks.spool.timing import call_for

from safekafka import Record, SafeProducer, Spool

_TOPIC = "bench"
_CHUNK = 1_000
_BATCHES = 100  # a second

_alive: list[SafeProducer | Peer] = []  # until the process ends: closing a client may take long, and is not measured
_closed_ports: list[socket.socket] = []


def main() -> None:
    options = _options()
    signal.alarm(options.timeout)  # ends this process even if nobody is left to do it
    measures = {
        "append": append,
        "deliver": deliver,
        "deliver_way": deliver_way,
        "fill": fill,
        "drain": drain,
        "raw": raw,
        "backlog": backlog,
        "outage": outage,
    }
    end_worker(measures[options.measure](options))


def append(options: argparse.Namespace) -> dict[str, Any]:
    """Into a spool whose brokers don't answer."""
    case = CASES[options.case]
    assert not case.is_limit
    producer = _unanswered(Spool(options.folder, durability=case.durability))
    before = let_sender_rest(producer, options.size, _TOPIC)
    calls = [sending(case, options.size, producer, _TOPIC) for _ in range(case.threads)]
    made, start, end = call_for(options.seconds, calls, most_calls(case, options.size))
    used = end - start
    check_count(producer.stats().pending, before + made * case.records)
    return {"records": made * case.records, "wall": used.wall, "cpu": used.cpu}


def deliver(options: argparse.Namespace) -> dict[str, Any]:
    """From the first send, for some seconds, to the last acknowledgement."""
    peer = CONTESTANTS[options.peer].open(_setup(options), options.folder)
    _alive.append(peer)
    peer.send([b"warm-up"])
    check_count(peer.wait(), 1)
    values = Timed(options.seconds, options.size)
    gc.collect()
    start = Usage.now()
    peer.send(values)
    delivered = peer.wait()
    used = Usage.now() - start
    check_count(delivered, values.taken + 1)
    return {"records": values.taken, "wall": used.wall, "cpu": used.cpu}


def deliver_way(options: argparse.Namespace) -> dict[str, Any]:
    """As `deliver`, through a spool, by the calls of one way."""
    case = CASES[options.case]
    producer = SafeProducer(_setup(options).librdkafka(), spool=Spool(options.folder, durability=case.durability))
    _alive.append(producer)
    producer.send(options.topic, b"warm-up")
    producer.flush()
    calls = [sending(case, options.size, producer, options.topic) for _ in range(case.threads)]
    made, start, _ = call_for(options.seconds, calls, most_calls(case, options.size))
    producer.flush()
    used = Usage.now() - start
    check_count(producer.stats().delivered, made * case.records + 1)
    return {"records": made * case.records, "wall": used.wall, "cpu": used.cpu}


def fill(options: argparse.Namespace) -> dict[str, Any]:
    """Leaves records in the folder. The brokers are dead."""
    producer = _opened(options)
    values = repeated(options.records, options.size)
    start = Usage.now()
    while chunk := [Record(options.topic, value) for value in islice(values, _CHUNK)]:
        producer.send_many(chunk)
    used = Usage.now() - start
    check_count(producer.stats().pending, options.records)
    return {"records": options.records, "wall": used.wall, "cpu": used.cpu}


def drain(options: argparse.Namespace) -> dict[str, Any]:
    """What an earlier process left in the folder. Connecting takes as long for any number of records, often a second,
    and is told apart: the clock of the rest starts with the first acknowledgement."""
    opened = Usage.now()
    producer = _opened(options)
    while not (early := producer.stats().delivered):
        time.sleep(0.002)
    start = Usage.now()
    if early > options.records / 2:
        raise WrongCountError(f"{early} of {options.records} records came with the first acknowledgement: give more")
    producer.flush()
    used = Usage.now() - start
    check_count(producer.stats().delivered, options.records)
    return _drained(options.records - early, used, start - opened)


def raw(options: argparse.Namespace) -> dict[str, Any]:
    """The same records by the raw client: one, to connect, then the others."""
    values = repeated(options.records - 1, options.size)
    opened = Usage.now()
    peer = CONTESTANTS[BASE].open(_setup(options), options.folder)
    peer.send([bytes(options.size)])
    check_count(peer.wait(), 1)
    start = Usage.now()
    peer.send(values)
    delivered = peer.wait()
    used = Usage.now() - start
    check_count(delivered, options.records)
    return _drained(options.records - 1, used, start - opened)


def _drained(records: int, used: Usage, first: Usage) -> dict[str, Any]:
    return {
        "records": records,
        "wall": used.wall,
        "cpu": used.cpu,
        "first": first.wall,
        "peak": peak_resident_bytes(),
    }


def backlog(options: argparse.Namespace) -> dict[str, Any]:
    """Memory while a large backlog is drained, for some seconds."""
    producer = _opened(options)
    pending = producer.stats().pending
    time.sleep(options.seconds)
    delivered, resident = producer.stats().delivered, resident_bytes()
    check_count(pending, options.records)
    return {"delivered": delivered, "resident": resident, "peak": peak_resident_bytes()}


def outage(options: argparse.Namespace) -> dict[str, Any]:
    """Memory each second, while records come at a steady rate and no broker answers."""
    producer = _unanswered(Spool(options.folder))
    producer.send(_TOPIC, b"warm-up")
    seconds = round(options.seconds)
    values = distinct(options.rate * seconds, options.size)
    gc.collect()
    resident = [resident_bytes()]
    start = time.perf_counter()
    for batch in range(1, seconds * _BATCHES + 1):
        producer.send_many([Record(_TOPIC, value) for value in islice(values, options.rate // _BATCHES)])
        if batch % _BATCHES == 0:
            resident.append(resident_bytes())
        time.sleep(max(0.0, start + batch / _BATCHES - time.perf_counter()))
    sent = options.rate // _BATCHES * _BATCHES * seconds
    check_count(producer.stats().pending, sent + 1)
    return {"records": sent, "wall": time.perf_counter() - start, "resident": resident}


def _opened(options: argparse.Namespace) -> SafeProducer:
    producer = SafeProducer(_setup(options).librdkafka(), spool=Spool(options.folder))
    _alive.append(producer)
    return producer


def _unanswered(spool: Spool) -> SafeProducer:
    """Nobody listens at its brokers' address, and nobody else can get it."""
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    _closed_ports.append(closed)
    producer = SafeProducer({"bootstrap.servers": f"127.0.0.1:{closed.getsockname()[1]}"}, spool=spool)
    _alive.append(producer)
    return producer


def _setup(options: argparse.Namespace) -> Setup:
    return Setup(options.servers, options.topic, options.cluster)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", required=True)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--peer", choices=CONTESTANTS)
    parser.add_argument("--servers", default="")
    parser.add_argument("--topic", default=_TOPIC)
    parser.add_argument("--cluster", default="real", choices=["mock", "real"], help="what the servers are")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--records", type=int, default=0)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rate", type=int, default=2_000, help="records a second")
    parser.add_argument("--timeout", type=int, default=120, help="seconds until it ends itself")
    return parser.parse_args()


if __name__ == "__main__":
    main()
