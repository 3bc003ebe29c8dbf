"""The ledger: what was accepted against what is in Kafka. It judges the tests, so it uses nothing of what it judges.

`read_log()` reads a topic back with a plain confluent-kafka consumer, `log_entries()` picks each message's identity,
`audit_log()` compares:

    log = log_entries(read_log(servers, "orders", timeout=30), identity=lambda message: int(message.value()))
    report = audit_log(accepted, log)

Limits: everything is held in memory. Order is judged per key and partition. An identity must be unique among the
accepted records of its key, so it has to be in what is sent (the value or a header).

Threads: none of its own; no state between calls.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

__all__ = ["Entry", "LedgerReport", "audit_log", "log_entries", "read_log"]


class Entry(NamedTuple):
    """One record. Its identity is `key` and `id`; `partition` and `offset` may stay open for an accepted one."""

    key: bytes | None
    id: str | int
    partition: int = -1
    offset: int = -1


@dataclass(frozen=True)
class LedgerReport:
    """The counts, each with the first few entries behind it."""

    accepted: int
    in_kafka: int
    """Accepted records that are in the log, once or more often."""
    lost: int
    lost_first: tuple[Entry, ...]
    duplicates: int
    """Copies beyond the first of each accepted record."""
    duplicates_first: tuple[Entry, ...]
    out_of_order: int
    """Records that stand, in their partition, before the one of the same key that was accepted just before them."""
    out_of_order_first: tuple[Entry, ...]
    unexpected: int
    """Records in the log that nobody accepted; also those whose key or identity was changed."""
    unexpected_first: tuple[Entry, ...]

    @property
    def ok(self) -> bool:
        """Each accepted record is in the log once and in order, and nothing else is. For at least once: `lost == 0`."""
        return not (self.lost or self.duplicates or self.out_of_order or self.unexpected)

    def __str__(self) -> str:
        lines = [f"accepted     {self.accepted:>9,}", f"in Kafka     {self.in_kafka:>9,}"]
        for name in ("lost", "duplicates", "out_of_order", "unexpected"):
            first: tuple[Entry, ...] = getattr(self, f"{name}_first")
            shown = ", ".join(f"{entry.key!r} {entry.id!r} [{entry.partition}]@{entry.offset}" for entry in first[:3])
            lines.append(f"{name.replace('_', ' '):12} {getattr(self, name):>9,}  {shown}".rstrip())
        return "\n".join(lines)


def audit_log(accepted: Iterable[Entry], log: Iterable[Entry], show: int = 100) -> LedgerReport:
    """Compares the accepted records, in the order of acceptance, with the log's, in any order.

    A record is out of order if its first copy in a partition stands before the first copy there of the record that was
    accepted just before it (of those of its key which are in that partition). To judge the order of whole partitions,
    give all entries the same key. The report keeps the first `show` entries of each finding. Raises ValueError for an
    identity that was accepted twice.
    """
    ledger = list(accepted)
    known = {(entry.key, entry.id) for entry in ledger}
    if len(known) != len(ledger):
        raise ValueError(
            f"{len(ledger) - len(known)} accepted identities (key, id) are not unique: duplicates can't be told"
        )
    seen: set[tuple[bytes | None, str | int]] = set()
    duplicates, unexpected = [], []
    firsts: dict[int, dict[tuple[bytes | None, str | int], Entry]] = defaultdict(dict)  # by partition
    for entry in sorted(log, key=lambda entry: (entry.partition, entry.offset)):
        identity = entry.key, entry.id
        if identity not in known:
            unexpected.append(entry)
            continue
        if identity in seen:
            duplicates.append(entry)
        seen.add(identity)
        firsts[entry.partition].setdefault(identity, entry)
    lost = [entry for entry in ledger if (entry.key, entry.id) not in seen]
    out_of_order = [entry for partition in firsts.values() for entry in _out_of_order(ledger, partition)]
    return LedgerReport(
        accepted=len(ledger),
        in_kafka=len(seen),
        lost=len(lost),
        lost_first=tuple(lost[:show]),
        duplicates=len(duplicates),
        duplicates_first=tuple(duplicates[:show]),
        out_of_order=len(out_of_order),
        out_of_order_first=tuple(out_of_order[:show]),
        unexpected=len(unexpected),
        unexpected_first=tuple(unexpected[:show]),
    )


def _out_of_order(ledger: list[Entry], partition: dict[tuple[bytes | None, str | int], Entry]) -> Iterator[Entry]:
    by_key: dict[bytes | None, list[Entry]] = defaultdict(list)
    for entry in ledger:
        found = partition.get((entry.key, entry.id))
        if found is not None:
            by_key[entry.key].append(found)
    for in_order_of_acceptance in by_key.values():
        for earlier, later in pairwise(in_order_of_acceptance):
            if later.offset < earlier.offset:
                yield later


def log_entries(messages: Iterable[Message], identity: Callable[[Message], str | int]) -> Iterator[Entry]:
    """The messages as entries; `identity` finds what tells one record of a key from the others."""
    for message in messages:
        yield Entry(message.key(), identity(message), _known(message.partition()), _known(message.offset()))


def _known(number: int | None) -> int:
    if number is None:
        raise ValueError("a message without partition or offset is not from a log")
    return number


# Reading on would hide these: what they stand for is not in the result, and never will be.
_UNREADABLE = frozenset(
    {
        KafkaError._AUTO_OFFSET_RESET,  # removed by retention while we read
        KafkaError._BAD_MSG,  # a wrong checksum
        KafkaError._BAD_COMPRESSION,
        KafkaError._NOT_IMPLEMENTED,  # of a format that the client does not know, as damaged ones seem to have
        KafkaError._AUTHENTICATION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
    }
)
_BATCH = 10_000
_PATIENCE = 0.5  # s; of a single wait, so that Ctrl-C is noticed


def read_log(bootstrap_servers: str, topic: str, timeout: float) -> list[Message]:
    """All committed messages of the topic, by partition and offset, up to the ends found at the start of the call.

    Waits for brokers and partitions that can't be reached, at most `timeout` seconds in all; then raises TimeoutError,
    naming the partitions that were not read to their end. Raises KafkaException at once for what can't be read at all
    (wrong checksum, no permission, messages removed meanwhile). Nothing is committed.
    """
    deadline = time.monotonic() + timeout
    errors: dict[str, None] = {}  # in the order they came; for the message of TimeoutError
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "safekafka-ledger",  # asked for by the client, never joined
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "check.crcs": True,
            "allow.auto.create.topics": False,
            "log_level": 0,
            "error_cb": lambda error: errors.setdefault(error.str()),
        }
    )
    try:
        ends = _ends(consumer, topic, deadline, errors)
        return _read(consumer, topic, ends, deadline, errors)
    finally:
        consumer.close()


def _ends(consumer: Consumer, topic: str, deadline: float, errors: dict[str, None]) -> dict[int, int]:
    """The end offset of each partition that holds anything."""
    missing: list[int] | None = None  # not known yet
    ends: dict[int, int] = {}
    while missing is None or missing:
        if time.monotonic() >= deadline:
            raise _timed_out(topic, missing, errors)
        if missing is None:
            missing = _partitions(consumer, topic, deadline, errors)
        for partition in missing or ():
            try:
                where = TopicPartition(topic, partition)
                low, high = consumer.get_watermark_offsets(where, timeout=_wait(deadline), cached=False)
            except KafkaException as error:
                _remember(error.args[0], errors)
            else:
                ends[partition] = high if high > low else 0
        if missing is not None:
            missing = [partition for partition in missing if partition not in ends]
        if missing is None or missing:
            consumer.poll(min(_wait(deadline), 0.05))  # brokers that come back need a moment
    return {partition: end for partition, end in ends.items() if end}


def _partitions(consumer: Consumer, topic: str, deadline: float, errors: dict[str, None]) -> list[int] | None:
    try:
        found = consumer.list_topics(topic, timeout=_wait(deadline)).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
    except KafkaException as error:
        _remember(error.args[0], errors)
        return None
    return sorted(found.partitions)


def _read(
    consumer: Consumer, topic: str, ends: dict[int, int], deadline: float, errors: dict[str, None]
) -> list[Message]:
    """Reads until each end is reached, by the last message or by the client's word that it has nothing before the end.

    The last offset need not be a message: transaction markers and compacted records take up offsets too.
    """
    log: list[tuple[int, int, Message]] = []
    open_ends = dict(ends)
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in ends])
    while open_ends:
        if time.monotonic() >= deadline:
            raise _timed_out(topic, sorted(open_ends), errors)
        # consume(n, t) alone would wait the whole time t for n messages.
        first = consumer.poll(_wait(deadline))
        for message in [first, *consumer.consume(_BATCH, 0)] if first is not None else ():
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                _remember(error, errors)
                continue
            partition, offset = _known(message.partition()), _known(message.offset())
            if error is None and offset < ends[partition]:
                log.append((partition, offset, message))
            if offset + (error is None) >= ends[partition]:
                open_ends.pop(partition, None)
    log.sort(key=lambda found: found[:2])
    return [message for _, _, message in log]


def _remember(error: KafkaError, errors: dict[str, None]) -> None:
    if error.code() in _UNREADABLE or error.fatal():
        raise KafkaException(error)
    errors.setdefault(error.str())


def _wait(deadline: float) -> float:
    return max(0.0, min(deadline - time.monotonic(), _PATIENCE))


def _timed_out(topic: str, partitions: list[int] | None, errors: dict[str, None]) -> TimeoutError:
    which = "all partitions, whose number is not known," if partitions is None else f"partitions {partitions}"
    return TimeoutError(
        f"topic {topic!r}: {which} could not be read to the end. The client's last errors: {list(errors)[-3:]}"
    )
