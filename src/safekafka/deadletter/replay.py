"""Dead letters back to where they came from, or done with: which ones, and that none is lost on the way.

A letter counts as done once its replayed record is acknowledged, and not before: a replay that is killed at any moment
goes on where its last commit was, and sends what it had sent since a second time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from confluent_kafka import Message

from safekafka.deadletter.about import First
from safekafka.deadletter.dialects import KIP1191, Told, read
from safekafka.deadletter.headers import original_headers
from safekafka.deadletter.log import LetterLog
from safekafka.deadletter.marks import marks
from safekafka.errors import DeliveryError, SafeKafkaError
from safekafka.message import headers_of
from safekafka.producer.producer import SafeProducer
from safekafka.producer.receipt import Receipt
from safekafka.record import Record, topic_problem
from safekafka.settings import positive
from safekafka.verdict import Verdict, judge

_BATCH = 500
_COMMIT_SECONDS = 0.2  # what a kill makes the next replay send again
_END_SECONDS = 2.0  # for what is on its way when a replay is broken off; what that misses is sent twice
_LARGEST_RECORD = 1_000_000_000  # librdkafka's bound; only the brokers know what is too large for them


class Letter(NamedTuple):
    message: Message
    told: Told | None  # None: it does not say where it comes from

    @property
    def place(self) -> tuple[int, int]:
        return self.message.partition() or 0, self.message.offset() or 0

    @property
    def where(self) -> str:
        return f"{self.message.topic()}[{self.message.partition()}]@{self.message.offset()}"

    @property
    def at_ms(self) -> int:
        """When it failed; where it does not say, when it was written."""
        failed_at = None if self.told is None else self.told.about.failed_at
        return self.message.timestamp()[1] if failed_at is None else failed_at

    @property
    def holds_its_record(self) -> bool:
        """A broker that keeps the letters of a share group (KIP-1191) writes coordinates only, unless told otherwise:
        sent anywhere, such a letter would be a tombstone."""
        by_broker = self.told is not None and self.told.dialect is KIP1191 and not self.told.by_us
        return not by_broker or self.message.key() is not None or self.message.value() is not None


def letter_of(message: Message) -> Letter:
    return Letter(message, read(headers_of(message)))


@dataclass(frozen=True)
class Selection:
    """Which letters; all conditions together. Without any: all."""

    error: str | None = None
    """Part of "class: text" of the error, or of the class of its cause."""
    since_ms: int | None = None
    until_ms: int | None = None
    partition: int | None = None
    """Of the dead letter topic, and so are the offsets."""
    first_offset: int | None = None
    last_offset: int | None = None
    group: str | None = None
    """The consumer group that failed."""

    def takes(self, letter: Letter) -> bool:
        about = None if letter.told is None else letter.told.about
        partition, offset = letter.place
        # Spring's error is its own wrapper's, for all letters; the handler's is the cause.
        cause = "" if about is None else about.error_cause or ""
        error = "" if about is None else f"{about.error_class or ''}: {about.error_message or ''}"
        return (
            (self.error is None or self.error in error or self.error in cause)
            and (self.since_ms is None or letter.at_ms >= self.since_ms)
            and (self.until_ms is None or letter.at_ms < self.until_ms)
            and (self.partition is None or partition == self.partition)
            and (self.first_offset is None or offset >= self.first_offset)
            and (self.last_offset is None or offset <= self.last_offset)
            and (self.group is None or (about is not None and about.group == self.group))
        )


@dataclass
class Outcome:
    done: int = 0
    """Replayed or discarded; with `dry_run`, those that would be."""
    passed_over: int = 0
    """Letters that the selection does not take."""
    held_back: Counter[str] = field(default_factory=Counter)
    """Letters that were asked for and can't be replayed: the reason, how many."""
    expired: int = 0
    """About how many letters retention had removed before anybody did anything about them."""
    failed: str | None = None
    """Why it ended before all was done."""


def progress_group(topic: str) -> str:
    """The consumer group that keeps, as its committed offsets, what of the topic is done."""
    return f"safekafka-replay-{topic}"


def looked_at(
    config: Mapping[str, Any], topic: str, selection: Selection, *, group: str | None = None, done_too: bool = False
) -> Iterator[tuple[Letter, bool]]:
    """The letters, each with whether it is done. Changes nothing."""
    with LetterLog(config, topic, group or progress_group(topic)) as log:
        starts = log.beginnings if done_too else {partition: one.position for partition, one in log.progress.items()}
        if selection.partition is not None:
            starts = {partition: start for partition, start in starts.items() if partition == selection.partition}
        if selection.first_offset is not None:
            starts = {partition: max(start, selection.first_offset) for partition, start in starts.items()}
        if selection.last_offset is not None:
            log.stop_at(dict.fromkeys(log.ends, selection.last_offset + 1))
        for batch in log.read(starts, _BATCH):
            for letter in map(letter_of, batch):
                partition, offset = letter.place
                done = log.progress[partition].is_done(offset)
                if (done_too or not done) and selection.takes(letter):
                    yield letter, done


def replay(
    config: Mapping[str, Any],
    topic: str,
    selection: Selection,
    *,
    to: str | None = None,
    rate: float | None = None,
    group: str | None = None,
    dry_run: bool = False,
    show: Callable[[int, int], None] = lambda seen, of: None,
) -> Outcome:
    """Send the letters that are not done, each to the topic that it comes from, with the key, value and headers of the
    original, and with marks (`marks.py`) that name the group that failed. Its time is that of the replay, or retention
    might remove it before it is read; the original's is in the marks.

    `config`: librdkafka settings; those for the connection, and the producer's. `to`: another topic; then no group is
    named. `rate`: records a second at most. `group` keeps the progress. `show(seen, of)` is called as it goes on.

    It ends at the first record that can't be delivered, so that no more of its key overtake it than were under way
    with it (500; with a `rate`, as many as go in 0.2 seconds); but letters of a topic that refuses all records stay
    open, and those of others go on. Raises `SafeKafkaError` where the dead letter topic can't be read, or the progress
    not kept; `ValueError`.
    """
    if to is not None:
        problem = topic_problem(to) or (f"to={to!r} is the dead letter topic itself" if to == topic else None)
        if problem:
            raise ValueError(problem)
    if rate is not None:
        positive(rate=rate)
    with LetterLog(config, topic, group or progress_group(topic)) as log:
        if dry_run:
            return _Walk(log, selection, _Sender(log, None, to, None), show).run(dry_run=True)
        settings = {"compression.type": "zstd", **config}
        if "queue.buffering.max.kbytes" not in settings:
            settings.setdefault("message.max.bytes", _LARGEST_RECORD)
        with SafeProducer(settings, on_undelivered=lambda *_: None, shutdown_timeout=_END_SECONDS) as producer:
            return _Walk(log, selection, _Sender(log, producer, to, rate), show).run()


def discard(
    config: Mapping[str, Any],
    topic: str,
    selection: Selection,
    *,
    group: str | None = None,
    below: Mapping[int, int] | None = None,
    show: Callable[[int, int], None] = lambda seen, of: None,
) -> Outcome:
    """Count the letters as done. They stay in their topic until retention removes them. `below`: of each partition of
    the dead letter topic only those in front of this offset, as they were counted before; of no other partition any."""
    with LetterLog(config, topic, group or progress_group(topic)) as log:
        if below is not None:
            log.stop_at({partition: below.get(partition, 0) for partition in log.ends})
        return _Walk(log, selection, None, show).run()


class _Sender:
    def __init__(self, log: LetterLog, producer: SafeProducer | None, to: str | None, rate: float | None) -> None:
        self._log = log
        self._producer = producer
        self._to = to
        self._pause = 0.0 if rate is None else 1.0 / rate
        self.at_once = _BATCH if rate is None else max(1, min(_BATCH, int(rate * _COMMIT_SECONDS)))
        self._next_at = 0.0
        self._partitions: dict[str, int | str] = {}  # or why no records can be sent there
        if to is not None and isinstance(reason := self._partitions_of(to), str):
            raise SafeKafkaError(f"no records can be sent to {to!r}: {reason}")

    def problem(self, letter: Letter) -> str | None:
        """Why it can't be replayed."""
        if not letter.holds_its_record:
            return "has no copy of its record (errors.deadletterqueue.copy.record.enable of the share group)"
        if self._to is not None:
            return None
        if letter.told is None:
            return "does not say where it comes from; --to sends it somewhere"
        topic = letter.told.about.topic
        if topic == self._log.topic:
            return "comes from the dead letter topic itself; --to sends it somewhere else"
        # Ending there, as for other failures, would keep those of all other topics back behind it.
        reason = self._partitions_of(topic)
        return f"comes from {topic!r}, and {reason}; --to sends it somewhere else" if isinstance(reason, str) else None

    def is_refused(self, letter: Letter, failure: DeliveryError) -> bool:
        """Whether its topic refuses all records alike: then it is told as the problem of this letter and of those that
        follow. Not of `to`, where all go."""
        if self._to is not None or letter.told is None or failure.error is None:
            return False
        if judge(failure.error) is not Verdict.TOPIC_BOUND:
            return False
        self._partitions[letter.told.about.topic] = f"it refuses records ({failure.error.name()})"
        return True

    def send(self, letter: Letter) -> Receipt:
        assert self._producer is not None
        time.sleep(max(0.0, self._next_at - time.monotonic()))
        self._next_at = max(self._next_at, time.monotonic() - self._pause) + self._pause
        return self._producer.send(*self._record(letter))

    def _record(self, letter: Letter) -> Record:
        message, told = letter
        group = partition = None
        if told is None:
            to, count = self._to or "", 1
            first = First(message.topic() or "", message.partition() or 0, message.offset() or 0)
        else:
            about = told.about
            to, count, first = self._to or about.topic, about.passes, about.origin
        if told is not None and to == told.about.topic:
            group = told.about.group if self._to is None else None
            # The partitioner that put it there may have been another client's.
            partitions = self._partitions_of(to)
            there = isinstance(partitions, int) and told.about.partition < partitions
            partition = told.about.partition if there else None
        headers = [
            *original_headers(message, told.dialect if told else None),
            *marks(to, group, count, letter.where, first),
        ]
        return Record(to, message.value(), message.key(), headers, partition)

    def _partitions_of(self, topic: str) -> int | str:
        """Asked first: a producer would wait for a topic to come."""
        if topic not in self._partitions:
            self._partitions[topic] = self._log.partitions_of(topic)
        return self._partitions[topic]


class _Walk:
    """Through the letters that are not done, in order, batch by batch. Without a sender they are discarded."""

    def __init__(
        self, log: LetterLog, selection: Selection, sender: _Sender | None, show: Callable[[int, int], None]
    ) -> None:
        self._log = log
        self._selection = selection
        self._sender = sender
        self._show = show
        self._outcome = Outcome(expired=log.expired)
        self._committed_at = time.monotonic()

    def run(self, dry_run: bool = False) -> Outcome:
        starts = {partition: progress.position for partition, progress in self._log.progress.items()}
        if self._selection.partition is not None:
            starts = {partition: start for partition, start in starts.items() if partition == self._selection.partition}
        of = sum(max(0, self._log.ends[partition] - start) for partition, start in starts.items())
        seen = 0
        try:
            for batch in self._log.read(starts, _BATCH if self._sender is None else self._sender.at_once):
                if dry_run:
                    self._outcome.done += sum(self._chosen(letter_of(message)) for message in batch)
                else:
                    self._do(batch)
                seen += len(batch)
                self._show(seen, of)
                if self._outcome.failed is not None:
                    break
            else:
                for partition in starts:
                    self._log.progress[partition].at_end(self._log.ends[partition])
        finally:
            if not dry_run:
                self._log.commit()
        return self._outcome

    def _chosen(self, letter: Letter) -> bool:
        partition, offset = letter.place
        if self._log.progress[partition].is_done(offset):
            return False
        if not self._selection.takes(letter):
            self._outcome.passed_over += 1
            return False
        problem = None if self._sender is None else self._sender.problem(letter)
        if problem is not None:
            self._outcome.held_back[problem] += 1
        return problem is None

    def _do(self, batch: list[Message]) -> None:
        chosen = [letter for letter in map(letter_of, batch) if self._chosen(letter)]
        by_partition: dict[int, list[int]] = {}
        for partition, offset in (letter.place for letter in chosen):
            by_partition.setdefault(partition, []).append(offset)
        if not all(self._log.progress[partition].fits(offsets) for partition, offsets in by_partition.items()):
            # Not one of them is sent that could not be remembered.
            self._outcome.failed = (
                "too many letters beyond those that were left behind: the progress has no room for more. Remedy: "
                "replay or discard the earlier ones first."
            )
            return
        sent: dict[tuple[int, int], Receipt | None] = {}
        letter: Letter | None = None
        try:
            for letter in chosen:
                sent[letter.place] = None if self._sender is None else self._sender.send(letter)
            for letter in chosen:
                self._wait(letter, sent[letter.place])
        except SafeKafkaError as failure:
            assert letter is not None
            # Named, so that it can be discarded where nothing helps: no replay gets past it.
            self._outcome.failed = f"the record of {letter.where} could not be replayed: {failure}"
        finally:
            self._settle(batch, sent)
        if time.monotonic() - self._committed_at > _COMMIT_SECONDS:
            self._log.commit()
            self._committed_at = time.monotonic()

    def _wait(self, letter: Letter, receipt: Receipt | None) -> None:
        failure = None if receipt is None else receipt.exception()
        if failure is None:
            return
        assert self._sender is not None
        if not self._sender.is_refused(letter, failure):
            raise failure
        self._outcome.held_back[self._sender.problem(letter) or ""] += 1

    def _settle(self, batch: list[Message], sent: dict[tuple[int, int], Receipt | None]) -> None:
        """Whatever happened in between: what is acknowledged is done, and nothing else."""
        until = time.monotonic() + _END_SECONDS
        for message in batch:
            partition, offset = message.partition() or 0, message.offset() or 0
            progress = self._log.progress[partition]
            done = progress.is_done(offset)
            if not done and (partition, offset) in sent:
                done = _acknowledged(sent[partition, offset], until)
                self._outcome.done += done
            progress.passed(offset, done)


def _acknowledged(receipt: Receipt | None, until: float) -> bool:
    if receipt is None:
        return True
    try:
        return receipt.exception(max(0.0, until - time.monotonic())) is None
    except TimeoutError:
        return False
