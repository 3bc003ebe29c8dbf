"""`SafeConsumer`: one poll thread, one worker, and a commit only behind what is finished.

Threads
- The poll thread is the one that calls `run()`. It alone takes messages, pauses, commits, and runs the rebalance
  callbacks (librdkafka calls them inside `poll`). Handlers never run on it, so a slow handler does not cost us the
  partitions.
- The worker handles messages (`worker.py`).
- At the end, helper threads run the last commit (synchronous) and the client's `close()`, which have no timeout of
  their own; they take turns, and the poll thread waits for them for a bounded time only.
- `stop()` may be called from any thread, a handler or a signal handler.

Lock: `_lock` guards progress and the counts of what is in flight, shared by poll thread and worker. Nothing is called
under it.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType, TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from safekafka.client import build_client, isolated
from safekafka.consumer.progress import PartitionProgress
from safekafka.consumer.retry import Retry
from safekafka.consumer.signals import stop_on_signal
from safekafka.consumer.worker import Handler, Worker
from safekafka.deadletter.publisher import DeadLetterPublisher
from safekafka.errors import ClosedError, SafeKafkaError
from safekafka.observe import Event, emit
from safekafka.record import topic_problem
from safekafka.settings import consumer_settings, positive

if TYPE_CHECKING:
    from typing_extensions import Self

_Key: TypeAlias = "tuple[str, int]"
_POLL_SECONDS = 0.1
_TAKE = 500
_CLOSE_SECONDS = 5.0  # what close() keeps of shutdown_timeout for leaving the group
# Errors that no waiting mends: they are the operator's to mend, so the consumer stops instead of looking alive.
_STOPPING = frozenset(
    {
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.UNRELEASED_INSTANCE_ID,
        KafkaError._FATAL,  # its fatal() is False when it comes as a message
        KafkaError._FENCED,
        KafkaError._AUTO_OFFSET_RESET,
    }
)
# What refuses a commit while the group or its coordinator moves.
_COMMIT_AGAIN = frozenset(
    {
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._WAIT_COORD,
    }
)


class SafeConsumer:
    """Hands each message to the handler at least once, and commits an offset only when everything before it is
    finished.

    `config` takes librdkafka's names; auto-commit is off and can't be turned on. `retry` says how often a failing
    handler is tried again.
    `dead_letter`: the topic that takes messages which could not be handled, with their bytes, headers and the reason.
    It must exist. The source offset counts as finished only once the dead letter is acknowledged. Without it, such a
    message stops the consumer with `HandlerFailed`.
    `commit_interval`: seconds between commits. `drain_timeout`: seconds that a running handler gets when its partition
    is taken away or the consumer stops. `shutdown_timeout`: seconds for the whole stop. `max_in_flight`,
    `max_in_flight_bytes` bound what is held in memory.

    Raises `UnsafeConfigError`. `stop()` is thread safe; everything else belongs to the thread that calls `run()`.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        topics: Sequence[str],
        *,
        retry: Retry | None = None,
        dead_letter: str | None = None,
        commit_interval: float = 1.0,
        drain_timeout: float = 15.0,
        shutdown_timeout: float = 20.0,
        max_in_flight: int = 10_000,
        max_in_flight_bytes: int = 64 << 20,
    ) -> None:
        _check(topics, dead_letter)
        positive(commit_interval=commit_interval, drain_timeout=drain_timeout, shutdown_timeout=shutdown_timeout)
        positive(max_in_flight=max_in_flight, max_in_flight_bytes=max_in_flight_bytes)
        if not isinstance(retry, (Retry, NoneType)):
            raise ValueError(f"retry={retry!r}: give a Retry, as in Retry(attempts=5)")
        settings, problems = consumer_settings(config, drain_timeout)
        self._on_commit_of_user = settings.get("on_commit")
        settings["on_commit"] = self._on_commit
        self._client, self._watch = build_client(Consumer, settings, problems)
        group = str(settings["group.id"])
        self._dead_letters = (
            None if dead_letter is None else DeadLetterPublisher(dead_letter, group, config, write_timeout=60.0)
        )
        self._topics = list(topics)
        self._retry = retry or Retry()
        self._commit_interval = commit_interval
        self._drain_timeout = drain_timeout
        self._shutdown_timeout = shutdown_timeout
        self._max_in_flight = max_in_flight
        self._max_in_flight_bytes = max_in_flight_bytes
        self._pid = os.getpid()
        self._stop = threading.Event()
        self._started = False
        self._runner: threading.Thread | None = None  # of run()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._partitions: dict[_Key, PartitionProgress] = {}
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._paused = False
        self._assigned = False  # since the last `_balance`
        self._commit_sent = False
        self._commit_due = 0.0
        self._end = math.inf  # monotonic; set when the end begins
        self._closing = False  # inside the client's close()
        self._helper: threading.Thread | None = None

    def run(self, handler: Handler) -> None:
        """Handle messages until `stop()`, SIGTERM or SIGINT (on the main thread), or a failure that is raised here.

        `handler(message)` gets a `confluent_kafka.Message`, sync or async, one message at a time. It ends a message by
        returning; `raise Reject("reason")` sends it to the dead letter topic at once; any other exception follows
        `retry`.

        Raises `HandlerFailed`, `DeadLetterFailed`, `SafeKafkaError`, `ClosedError`, or what a handler raised that is no
        `Exception`. The consumer is closed when this returns.
        """
        if self._pid != os.getpid():
            raise ClosedError("this consumer belongs to the parent process. Remedy: make a SafeConsumer in the child.")
        if self._started or self._closed.is_set():
            raise ClosedError("a SafeConsumer runs once. Remedy: make a new one.")
        self._started = True
        self._runner = threading.current_thread()
        self._worker = Worker(handler, self._retry, self._dead_letters, self._ended)
        self._worker.start()
        with stop_on_signal(self.stop):
            try:
                self._client.subscribe(
                    self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
                )
                while not self._stop.is_set() and self._worker.is_alive():
                    self._take()
                    self._balance()
                    self._commit_if_due()
            except KafkaException as error:
                raise SafeKafkaError(
                    f"the consumer can't go on: {error.args[0].str()} ({error.args[0].name()}). Nothing unhandled was "
                    "committed. Remedy: start again; what was not committed comes again."
                ) from error
            finally:
                self._shut_down()
        if self._worker.failure is not None:
            raise self._worker.failure
        if not self._stop.is_set():
            raise SafeKafkaError("the worker thread ended unexpectedly; nothing unhandled was committed")

    def stop(self) -> None:
        """Ask `run()` to finish what is being handled, commit, leave the group and return. Returns at once."""
        self._stop.set()

    def close(self) -> None:
        """Stop, and wait for `run()` on another thread to end. Idempotent."""
        self.stop()
        if self._started:
            if threading.current_thread() not in (self._worker, self._runner):  # they would wait for themselves
                self._closed.wait(self._shutdown_timeout + _CLOSE_SECONDS)
        elif not self._closed.is_set() and self._pid == os.getpid():
            self._closed.set()
            self._client.close()
            if self._dead_letters is not None:
                self._dead_letters.close(self._shutdown_timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- taking

    def _take(self) -> None:
        message = self._client.poll(_POLL_SECONDS)
        if message is None:
            return
        self._accept(message)
        # consume(n) alone would wait for all n; behind a poll() it takes what is there.
        room = min(_TAKE, self._max_in_flight - self._in_flight)
        if room > 0:
            for further in self._client.consume(room, 0):
                self._accept(further)

    def _accept(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            self._on_message_error(message, error)
            return
        self._watch.alive()
        key: _Key = (message.topic(), message.partition())  # type: ignore[assignment]
        with self._lock:
            progress = self._partitions.get(key)
            if progress is None:
                # Taken together with the revocation of its partition: it is the next owner's, and untouched here.
                return
            progress.track(message.offset())  # type: ignore[arg-type]
            self._in_flight += 1
            self._in_flight_bytes += len(message)
        self._worker.put(progress, message)

    def _on_message_error(self, message: Message, error: KafkaError) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            return
        if error.fatal() or error.code() in _STOPPING:
            raise SafeKafkaError(
                f"the consumer can't go on: {error.str()} ({error.name()}). Nothing unhandled was committed. "
                "Remedy: mend the cause that the broker names (rights, group.instance.id, offsets), then start again."
            ) from KafkaException(error)
        emit(Event.CLIENT_ERROR, error=error.name(), detail=error.str(), topic=message.topic())

    def _balance(self) -> None:
        """Hold the flow back while too much is in flight; hysteresis, since a pause throws the prefetched messages
        away."""
        with self._lock:
            records, size = self._in_flight, self._in_flight_bytes
        full = records >= self._max_in_flight or size >= self._max_in_flight_bytes
        low = records <= self._max_in_flight // 2 and size <= self._max_in_flight_bytes // 2
        pause = full or (self._paused and not low)
        if pause != self._paused or self._assigned:
            # After an assignment too: the client keeps the pause of a partition that comes back, and knows none for a
            # new one.
            assignment = self._client.assignment()
            if pause:
                self._client.pause(assignment)
            else:
                self._client.resume(assignment)
            self._paused, self._assigned = pause, False

    def _ended(self, progress: PartitionProgress, message: Message, done: bool) -> None:
        """On the worker thread: a message is finished, or was given up."""
        with self._lock:
            self._in_flight -= 1
            self._in_flight_bytes -= len(message)
            if done:
                progress.done(message.offset())  # type: ignore[arg-type]

    # ---- committing

    def _commit_if_due(self) -> None:
        now = time.monotonic()
        if now >= self._commit_due and not self._commit_sent:
            self._commit_due = now + self._commit_interval
            self._send_commit(self._partitions.values())

    def _send_commit(self, progresses: Iterable[PartitionProgress]) -> None:
        """Ask for a commit of what is finished; the broker's word comes to `_on_commit`, inside a later `poll()`."""
        offsets = self._to_commit(progresses)
        if offsets:
            try:
                self._client.commit(offsets=offsets, asynchronous=True)
                self._commit_sent = True
            except KafkaException as error:
                emit(Event.COMMIT_FAILED, error=error.args[0].name(), detail=error.args[0].str(), again=True)

    def _to_commit(self, progresses: Iterable[PartitionProgress]) -> list[TopicPartition]:
        with self._lock:
            pairs = [(progress, progress.to_commit()) for progress in progresses]
        return [TopicPartition(p.topic, p.partition, offset) for p, offset in pairs if offset is not None]

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """On the poll thread. A failed commit moves nothing: the frontier is still to be committed, and is at the next
        interval."""
        self._commit_sent = False
        self._note_committed(partitions, error)
        if self._on_commit_of_user is not None:
            isolated(self._on_commit_of_user, "on_commit")(error, partitions)

    def _note_committed(self, partitions: Iterable[TopicPartition], error: KafkaError | None = None) -> None:
        for partition in partitions:
            failure = error or partition.error
            if failure is not None:
                emit(
                    Event.COMMIT_FAILED,
                    topic=partition.topic,
                    partition=partition.partition,
                    error=failure.name(),
                    again=True,
                )
                continue
            with self._lock:
                progress = self._partitions.get((partition.topic, partition.partition))
                if progress is not None:
                    progress.committed(partition.offset)

    def _commit_at_end(self, until: float) -> None:
        """Commit what is finished and wait for the broker's word, until `until` (monotonic). Without it: redelivery, no
        loss.

        A group in the middle of a rebalance refuses commits until we have rejoined, which takes polling.
        """
        while offsets := self._to_commit(self._partitions.values()):
            refusal = self._commit_sync(offsets, until)
            if refusal is None:
                return
            again = refusal.code() in _COMMIT_AGAIN and time.monotonic() < until
            emit(Event.COMMIT_FAILED, error=refusal.name(), detail=refusal.str(), again=again)
            if not again:
                return
            try:
                self._client.poll(_POLL_SECONDS)  # a message that comes now is not tracked: the next owner's
            except KafkaException as error:
                emit(Event.COMMIT_FAILED, error=error.args[0].name(), detail=error.args[0].str(), again=False)
                return

    def _commit_sync(self, offsets: list[TopicPartition], until: float) -> KafkaError | None:
        refusal: KafkaError | None = KafkaError(KafkaError._TIMED_OUT, "no answer in time")

        def commit() -> None:
            nonlocal refusal
            try:
                answer = self._client.commit(offsets=offsets, asynchronous=False) or []
                refusal = next((partition.error for partition in answer if partition.error), None)
                self._note_committed(partition for partition in answer if not partition.error)
            except KafkaException as error:
                refusal = error.args[0]

        self._bounded(commit, until)
        return refusal

    def _bounded(self, work: Callable[[], None], until: float) -> bool:
        """Run `work` on a helper thread, behind an earlier one that still hangs; False if it has not ended at
        `until`."""
        before = self._helper

        def in_turn() -> None:
            if before is not None:
                before.join()
            work()

        self._helper = threading.Thread(target=in_turn, name="safekafka-commit", daemon=True)
        self._helper.start()
        self._helper.join(max(0.0, until - time.monotonic()))
        return not self._helper.is_alive()

    # ---- rebalance: librdkafka calls these inside poll() and close()

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        with self._lock:
            for partition in partitions:
                self._partitions[partition.topic, partition.partition] = PartitionProgress(
                    partition.topic, partition.partition
                )
        self._assigned = True
        if partitions:
            emit(Event.PARTITIONS_ASSIGNED, partitions=_names(partitions))

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        """Still ours: let running handlers finish within the deadline, commit what is finished, forget the partitions.

        The commit is sent, not waited for: it is on its way to the coordinator before the rejoin that follows this
        callback. A synchronous one has no timeout, and could not be moved to another thread either: while a callback
        runs, the client lets no other thread in. If the commit fails, the next owner handles some messages again.
        """
        if self._closing:
            return  # run() has done all this before it closed the client
        progresses = self._progress_of(partitions)
        self._drain(progresses, min(time.monotonic() + self._drain_timeout, self._end))
        self._send_commit(progresses)
        self._forget(partitions)
        if partitions:
            emit(Event.PARTITIONS_REVOKED, partitions=_names(partitions))

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        """No longer ours: somebody else may have them already. Nothing is committed; late marks fall on objects nobody
        reads."""
        self._worker.give_up(self._progress_of(partitions))
        self._forget(partitions)
        if partitions:
            emit(Event.PARTITIONS_LOST, partitions=_names(partitions))

    def _drain(self, progresses: list[PartitionProgress], until: float) -> None:
        self._worker.give_up(progresses)
        if not self._worker.wait_until_free(progresses, until):
            emit(Event.HANDLER_ABANDONED, drain_timeout=self._drain_timeout, consequence="its message comes again")

    def _progress_of(self, partitions: Iterable[TopicPartition]) -> list[PartitionProgress]:
        with self._lock:
            found = (self._partitions.get((partition.topic, partition.partition)) for partition in partitions)
            return [progress for progress in found if progress is not None]

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        with self._lock:
            for partition in partitions:
                self._partitions.pop((partition.topic, partition.partition), None)

    # ---- the end

    def _shut_down(self) -> None:
        began = time.monotonic()
        end = self._end = began + self._shutdown_timeout
        progresses = list(self._partitions.values())
        self._drain(progresses, min(began + self._drain_timeout, end - _CLOSE_SECONDS))
        self._commit_at_end(max(time.monotonic() + 1.0, end - _CLOSE_SECONDS))
        self._worker.end()
        self._closing = True
        if not self._bounded(self._client.close, end):
            emit(Event.CLOSE_TIMED_OUT, shutdown_timeout=self._shutdown_timeout)
        if self._dead_letters is not None:
            try:
                self._dead_letters.close(max(1.0, end - time.monotonic()))
            except SafeKafkaError as error:
                emit(Event.CLIENT_ERROR, error="dead_letter_producer", detail=str(error))
        self._closed.set()
        emit(
            Event.CONSUMER_STOPPED,
            seconds=round(time.monotonic() - began, 2),
            cause=type(self._worker.failure).__name__,
        )


def _names(partitions: Iterable[TopicPartition]) -> list[str]:
    return [f"{partition.topic}[{partition.partition}]" for partition in partitions]


def _matches(subscribed: str, topic: str) -> bool:
    """Whether the subscription takes the topic; one that starts with ^ is a pattern."""
    return bool(re.search(subscribed, topic)) if subscribed.startswith("^") else subscribed == topic


def _check(topics: Sequence[str], dead_letter: str | None) -> None:
    if isinstance(topics, str) or not topics:
        raise ValueError(f"topics={topics!r}: give a list of topic names, as in ['orders']")
    for topic in topics if dead_letter is None else [*topics, dead_letter]:
        problem = None if isinstance(topic, str) and topic.startswith("^") else topic_problem(topic)
        if problem:
            raise ValueError(problem)
    if dead_letter is not None and any(_matches(topic, dead_letter) for topic in topics):
        raise ValueError(
            f"dead_letter={dead_letter!r} is also subscribed: every dead letter would come back and fail again, "
            f"for ever. "
            "Give it a topic of its own."
        )
