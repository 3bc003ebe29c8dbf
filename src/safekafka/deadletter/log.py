"""A dead letter topic, read from its beginning or from where a replay got to, up to the ends found at the start.

What comes into the topic later is not read: a letter that is replayed and fails again would come round for ever.

Threads: none of its own; one thread at a time. It joins no group, so nothing rebalances; the group's name only keeps
the progress.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition, Uuid

from safekafka.client import admin_client, build_client
from safekafka.consumer.topic_ids import TopicIds
from safekafka.consumer.verdict import Verdict, failure_of, judge
from safekafka.deadletter.progress import Progress, topic_id_of
from safekafka.errors import SafeKafkaError
from safekafka.settings import connection_settings

if TYPE_CHECKING:
    from typing_extensions import Self

_T = TypeVar("_T")
_PATIENCE = 30.0  # seconds without an answer
_ASK_SECONDS = 5.0
_POLL_SECONDS = 0.2
_PAUSE = 0.2
_SETTINGS = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "check.crcs": True,
    "allow.auto.create.topics": False,
    "queued.max.messages.kbytes": 16_384,
}
_NO_ID = str(Uuid(0, 0))  # by brokers before Kafka 2.8
_NO_TOPIC = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC})
# No waiting mends these.
_HOPELESS = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        *_NO_TOPIC,
        KafkaError._AUTO_OFFSET_RESET,
        KafkaError.OFFSET_METADATA_TOO_LARGE,
    }
)


class LetterLog:
    """`config`: librdkafka settings, of which those for the connection are taken. `group` keeps the progress.

    Raises `SafeKafkaError` when the topic or its brokers can't be reached within 30 seconds.
    """

    def __init__(self, config: Mapping[str, Any], topic: str, group: str) -> None:
        self.topic = topic
        self.group = group
        connection = connection_settings(config)
        settings = {**connection, **_SETTINGS, "group.id": group}
        self._client, self._watch = build_client(Consumer, settings)
        try:
            partitions = self._ask("its partitions", self._ask_partitions)
            # In front of what is found in the topic: what is kept of one made anew meanwhile is not believed later.
            ids = TopicIds(lambda: admin_client(connection))
            self._topic_id = self._ask("its id", lambda: self._ask_id(ids))
            committed = self._ask("the progress", lambda: self._ask_committed(partitions))
            # Behind the progress, which another replay may move meanwhile: it can't be beyond these ends then.
            marks = {p: self._ask(f"the ends of [{p}]", lambda p=p: self._ask_ends(p)) for p in partitions}  # type: ignore[misc]
            self.beginnings = {p: low for p, (low, _) in marks.items()}
            self.ends = {p: high for p, (_, high) in marks.items()}
            self._kept: dict[int, tuple[int, str]] = {}
            self.expired = 0
            self.progress = {one.partition: self._progress_of(one) for one in committed}
        except BaseException:
            self._client.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def stop_at(self, ends: Mapping[int, int]) -> None:
        """Read no further than that."""
        self.ends = {partition: min(end, ends[partition]) for partition, end in self.ends.items()}

    def read(self, starts: Mapping[int, int], most: int) -> Iterator[list[Message]]:
        """The messages from `starts` on, at most `most` at a time; each partition's in their order. Raises
        `UnreadableRecordError` behind the last one in front of what can't be read: the client passes over it."""
        open_ = {partition: self.ends[partition] for partition, start in starts.items() if start < self.ends[partition]}
        self._client.assign([TopicPartition(self.topic, partition, starts[partition]) for partition in open_])
        heard, last = time.monotonic(), ""
        unreadable: SafeKafkaError | None = None
        while open_:
            batch = []
            for message in self._take(most):
                error, partition, offset = message.error(), message.partition(), message.offset()
                if error is not None and (verdict := judge(error)) is Verdict.UNREADABLE:
                    unreadable = failure_of(error, verdict, (self.topic, partition, offset))
                    break
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    last = self._raise_hopeless("its letters", error)
                    continue
                if partition is None or offset is None or partition not in open_:
                    continue
                heard = time.monotonic()
                if error is None and offset < open_[partition]:
                    batch.append(message)
                if offset + (error is None) >= open_[partition]:
                    del open_[partition]
            if batch:
                yield batch
                heard = time.monotonic()
            if unreadable is not None:
                raise unreadable
            if time.monotonic() - heard > _PATIENCE:
                raise self._failed(f"its partitions {sorted(open_)}", last)

    def _take(self, most: int) -> list[Message]:
        try:
            first = self._client.poll(_POLL_SECONDS)
            # consume(n, t) alone would wait the whole time t for n messages.
            return [] if first is None else [first, *(self._client.consume(most - 1, 0) if most > 1 else ())]
        except KafkaException as error:  # what it had taken is unknown: not a letter further
            raise self._failed("its letters", error.args[0].str()) from error

    def commit(self) -> None:
        """Keep the progress. Raises `SafeKafkaError`: what was done since the last time will be done again then."""
        offsets = []
        for partition, progress in self.progress.items():
            offset, metadata = progress.to_commit()
            if (offset, metadata) != self._kept.get(partition):
                offsets.append(TopicPartition(self.topic, partition, offset, metadata))
        if offsets:
            self._ask("a commit (what it leaves out will be done again)", lambda: self._commit(offsets))

    def _commit(self, offsets: list[TopicPartition]) -> None:
        for answer in self._client.commit(offsets=offsets, asynchronous=False) or ():
            if answer.error is not None:
                raise KafkaException(answer.error)
        self._kept.update({one.partition: (one.offset, one.metadata or "") for one in offsets})

    def partitions_of(self, topic: str) -> int | str:
        """Of any topic, how many; or why records can't be sent there. Raises `SafeKafkaError` when nobody answers."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                found = self._client.list_topics(topic, timeout=_ASK_SECONDS).topics[topic]
            except KafkaException as raised:
                error = raised.args[0]
            else:
                if found.error is None:
                    return len(found.partitions)
                error = found.error
            if error.code() in _NO_TOPIC:
                return "there is no such topic"
            if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                return f"there is no right to write to it ({error.name()})"
            if error.code() in _HOPELESS or time.monotonic() >= until:
                raise SafeKafkaError(f"no records can be sent to {topic!r}: {error.str()} ({error.name()})")
            time.sleep(_PAUSE)

    # ---- at the start

    def _ask_partitions(self) -> list[int]:
        found = self._client.list_topics(self.topic, timeout=_ASK_SECONDS).topics[self.topic]
        if found.error is not None:
            raise KafkaException(found.error)
        return sorted(found.partitions)

    def _ask_id(self, ids: TopicIds) -> str:
        """Empty where the brokers tell none."""
        if not self._can_tell_ids():
            return ""
        found = ids.ask([self.topic]).get(self.topic)
        if found is None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer to describe_topics"))
        return "" if found == _NO_ID else found

    def _can_tell_ids(self) -> bool:
        """Mock brokers can't: the one to ask, the controller, is none of them."""
        cluster = self._client.list_topics(self.topic, timeout=_ASK_SECONDS)
        return cluster.controller_id < 0 or cluster.controller_id in cluster.brokers  # -1: not known yet

    def _ask_ends(self, partition: int) -> tuple[int, int]:
        where = TopicPartition(self.topic, partition)
        low, high = self._client.get_watermark_offsets(where, timeout=_ASK_SECONDS, cached=False)
        return low, high

    def _ask_committed(self, partitions: list[int]) -> list[TopicPartition]:
        where = [TopicPartition(self.topic, partition) for partition in partitions]
        answers = self._client.committed(where, timeout=_ASK_SECONDS)
        for answer in answers:
            if answer.error is not None:
                raise KafkaException(answer.error)
        return answers

    def _progress_of(self, committed: TopicPartition) -> Progress:
        """Counts in `expired` what retention has removed before anybody did anything about it (about: some offsets are
        no letters)."""
        partition, offset, metadata = committed.partition, committed.offset, committed.metadata or ""
        low, high = self.beginnings[partition], self.ends[partition]
        kept_for = topic_id_of(metadata)
        # Never, or in a topic of that name that was deleted since.
        if offset < 0 or offset > high or (kept_for and self._topic_id and kept_for != self._topic_id):
            return Progress(low, topic_id=self._topic_id)
        self._kept[partition] = offset, metadata
        progress = Progress(offset, metadata, self._topic_id or kept_for)
        self.expired += progress.expire(low)
        return progress

    # ---- trouble

    def _ask(self, what: str, ask: Callable[[], _T]) -> _T:
        """Again and again until there is an answer, or none is to be had."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return ask()
            except KafkaException as error:
                last = self._raise_hopeless(what, error.args[0])
                if time.monotonic() >= until:
                    raise self._failed(what, last) from error
            time.sleep(_PAUSE)  # not poll(): in the middle of reading it would take a letter, which nobody would see

    def _raise_hopeless(self, what: str, error: KafkaError) -> str:
        reason = f"{error.str()} ({error.name()})"
        if error.fatal() or error.code() in _HOPELESS:
            raise self._failed(what, reason) from KafkaException(error)
        return reason

    def _failed(self, what: str, reason: str) -> SafeKafkaError:
        return SafeKafkaError(
            f"the dead letter topic {self.topic!r} can't be used: asked for {what}: {reason or 'no answer'}. Remedy: "
            f"check bootstrap.servers={self._watch.bootstrap_servers!r}, that the topic exists, and the right to read "
            f"it and to use the group {self.group!r}."
        )
