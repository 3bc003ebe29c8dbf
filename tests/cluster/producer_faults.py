"""What the producer suites on real brokers share: faults on a schedule, a pace for sending, and the judgement of the
log.

The faults are made on a thread of their own while the test sends: what the thread meets is raised where the test asks
for it. A schedule follows from its seed; a run is repeated with `SAFEKAFKA_SEED=...`.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from safekafka import Receipt
from safekafka.testing import KafkaCluster
from safekafka.testing.ledger import Entry, LedgerReport, audit_log, read_log

KINDS = ("leader killed", "two killed", "leader paused", "all restarted")
HEAL_SECONDS = 90.0


def new_seed() -> int:
    return int(os.environ.get("SAFEKAFKA_SEED") or random.randrange(1_000_000))


class Background:
    """Runs `work` on a thread. What it raises is raised again by `check()`, and at the end of the block."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - raised again by check()
            self._error = error

    def running(self) -> bool:
        self.check()
        return self._thread.is_alive()

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.join(2 * HEAL_SECONDS if error is None else 5)
        if error is None:
            assert not self._thread.is_alive(), "the background work did not end"
            self.check()


@dataclass
class Fault:
    kind: str
    begun_at: int  # records sent
    ended_at: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.kind} {self.seconds:.1f} s ({self.ended_at - self.begun_at} sent)"


class Faults:
    """`count` faults, the k-th begun when k/(count+1) of `records` were sent, and healed before the next.

    All kinds of `kinds` come equally often, in an order that `seed` decides. `pause` is how long a leader is paused.
    """

    def __init__(
        self,
        cluster: KafkaCluster,
        topic: str,
        seed: int,
        count: int,
        records: int,
        sent: Callable[[], int],
        kinds: Sequence[str] = KINDS,
        pause: float = 10.0,
    ) -> None:
        self._cluster, self._topic, self._records, self._sent, self._pause = cluster, topic, records, sent, pause
        self._random = random.Random(seed)
        self._kinds = [kinds[number % len(kinds)] for number in range(count)]
        self._random.shuffle(self._kinds)
        self._stop = threading.Event()
        self.done: list[Fault] = []
        self._background = Background(self._make_all)

    def running(self) -> bool:
        return self._background.running()

    def __enter__(self) -> Faults:
        self._background.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._stop.set()
        self._background.__exit__(kind, error, traceback)

    def __str__(self) -> str:
        return f"{len(self.done)} faults: " + ", ".join(map(str, self.done))

    def _make_all(self) -> None:
        for number, kind in enumerate(self._kinds, 1):
            due = self._records * number // (len(self._kinds) + 1)
            end = time.monotonic() + HEAL_SECONDS
            while self._sent() < due:
                assert time.monotonic() < end, f"sending stood still at {self._sent()}, before {due}"
                if self._stop.wait(0.01):
                    return
            begun, begun_at = time.monotonic(), self._sent()
            self._make(kind)
            self._cluster.heal(HEAL_SECONDS)
            self.done.append(Fault(kind, begun_at, self._sent(), time.monotonic() - begun))

    def _make(self, kind: str) -> None:
        cluster, chance = self._cluster, self._random
        leader = cluster.leader_of(self._topic, chance.randrange(3))
        if kind == "leader paused":
            cluster.pause(leader)
            self._stop.wait(self._pause)
            return
        others = [broker for broker in (1, 2, 3) if broker != leader]
        chance.shuffle(others)
        for broker in [leader, *others][: {"leader killed": 1, "two killed": 2, "all restarted": 3}[kind]]:
            cluster.kill(broker)
            self._stop.wait(chance.uniform(0, 0.3))
        self._stop.wait(chance.uniform(0.2, 2))


class Pace:
    """Holds the sending to `rate` records a second; what a blocked send held up is caught up."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._begun = time.monotonic()

    def wait(self, number: int) -> None:
        """Before record `number`, counted from 0."""
        early = number / self._rate - (time.monotonic() - self._begun)
        if early > 0.005:
            time.sleep(early)


@dataclass
class Judgement:
    report: LedgerReport
    statuses: Counter[str]
    in_log: set[int]
    misplaced: list[int]
    """Delivered records that are not where their receipt says."""
    without_offset: int
    """Delivered records whose receipt has no offset: the broker knew that it had them already, and not where."""

    def __str__(self) -> str:
        found = self.report
        return (
            f"{found.accepted} sent: {dict(self.statuses)}; in the log {found.in_kafka}, not there {found.lost}, "
            f"duplicates {found.duplicates}, out of order {found.out_of_order}, unexpected {found.unexpected}; "
            f"misplaced {len(self.misplaced)}, without offset {self.without_offset}"
        )


def judge(servers: str, topic: str, receipts: Sequence[Receipt], first: int = 0) -> Judgement:
    """The log against the receipts of records whose values are `first`, `first + 1`, ... (and spaces), in the order of
    sending: order is that of whole partitions."""
    log = [
        Entry(None, int(message.value() or b""), message.partition() or 0, message.offset() or 0)
        for message in read_log(servers, topic, timeout=60)
    ]
    at = {(entry.partition, entry.offset): entry.id for entry in log}
    misplaced, without_offset = [], 0
    for number, receipt in enumerate(receipts, first):
        if receipt.status == "delivered":
            delivery = receipt.result(0)
            if delivery.offset is None or delivery.offset < 0:
                without_offset += 1
            elif at.get((delivery.partition, delivery.offset)) != number:
                misplaced.append(number)
    accepted = [Entry(None, number) for number in range(first, first + len(receipts))]
    return Judgement(
        audit_log(accepted, log, show=len(receipts)),
        Counter(receipt.status for receipt in receipts),
        {int(entry.id) for entry in log},
        misplaced,
        without_offset,
    )


@contextmanager
def client_log() -> Iterator[list[str]]:
    """Lines of the client about the identity that its deduplication rests on, for `debug=eos`: what became of it is
    the first question when a duplicate is found."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = record.getMessage()
            if len(lines) < 10_000 and any(word in line for word in ("bump", "changed PID", "FATAL", "reset for")):
                lines.append(f"{time.monotonic():.3f} {line}")

    logger = logging.getLogger("safekafka.librdkafka")
    handler, before = Keep(logging.DEBUG), (logger.level, logger.propagate)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
