"""The count at the end: what was promised against what is there. Pure.

It starts from three sources that know nothing of each other: the producer's book (what `send()` accepted), the topics
as a plain client reads them, and the consumer's book (what was handled).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from confluent_kafka import Message

from safekafka.cli.demo.book import ACCEPTED, HANDLED, TRYING, Line
from safekafka.cli.demo.orders import order_id
from safekafka.testing.ledger import Entry, audit_log, log_entries


@dataclass(frozen=True)
class Ledger:
    accepted: int
    in_kafka: int
    handled: int
    dead_lettered: int
    lost: int
    unfinished: int
    """In Kafka, but neither handled nor in the dead letter topic."""
    duplicates: int
    handled_again: int
    out_of_order: int
    unexpected: int
    """In a topic or in the consumer's book, and never placed; or dead-lettered with other bytes, or for no reason."""
    in_doubt: int
    """Orders whose `send()` was cut off by the kill: neither accepted nor refused."""
    in_doubt_in_kafka: int

    @property
    def ok(self) -> bool:
        return not (self.lost or self.unfinished or self.out_of_order or self.unexpected)


def count(
    producer_book: Sequence[Line],
    consumer_book: Sequence[Line],
    log: Sequence[Message],
    dead_letters: Sequence[Message],
    poison: Collection[int],
) -> Ledger:
    """`poison`: the numbers of the orders that nobody can handle."""
    accepted = [Entry(key.encode(), order) for what, order, key in _orders(producer_book, ACCEPTED)]
    known = {entry.id for entry in accepted}
    in_doubt = {order for _, order, _ in _orders(producer_book, TRYING)} - known

    entries = list(log_entries(log, order_id))
    of_accepted = [entry for entry in entries if entry.id not in in_doubt]
    in_kafka = audit_log(accepted, of_accepted)

    handled = [(line[1], int(line[2]), int(line[3])) for line in consumer_book if line[0] == HANDLED]
    where = {(entry.id, entry.partition, entry.offset): entry for entry in entries}
    foreign = sum(what not in where for what in handled)
    # The line's number stands for the offset: the order of handling is judged as the order in the log is.
    handling = [
        where[what]._replace(offset=line) for line, what in enumerate(handled) if what in where and what[0] in known
    ]
    in_handling = audit_log(accepted, handling)

    originals = {(entry.id, message.key(), message.value()) for entry, message in zip(entries, log, strict=True)}
    letters = {order_id(message) for message in dead_letters}
    wrong = sum(
        (order_id(message), message.key(), message.value()) not in originals
        or int(order_id(message).partition("/")[0]) not in poison
        for message in dead_letters
    )
    present = {entry.id for entry in of_accepted} & known
    finished = {order for order, _, _ in handled} | letters
    return Ledger(
        accepted=in_kafka.accepted,
        in_kafka=in_kafka.in_kafka,
        handled=in_handling.in_kafka,
        dead_lettered=len(letters & known),
        lost=in_kafka.lost,
        unfinished=len(present - finished),
        duplicates=in_kafka.duplicates,
        handled_again=len(handled) - len(set(handled)),
        out_of_order=in_kafka.out_of_order + in_handling.out_of_order,
        unexpected=in_kafka.unexpected + foreign + wrong,
        in_doubt=len(in_doubt),
        in_doubt_in_kafka=len(in_doubt & {str(entry.id) for entry in entries}),
    )


def _orders(book: Sequence[Line], kind: str) -> list[Line]:
    return [line for line in book if line[0] == kind]
