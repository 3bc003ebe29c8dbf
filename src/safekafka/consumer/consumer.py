"""`SafeConsumer`: handlers run on workers, messages are taken on a thread of their own, and a commit goes only behind
what is finished.

Threads
- The poll thread (`session.py`): the one that calls `run()`; with `arun()` and the iterator one of our own; with
  `poll()` and `consume()` the caller's. It alone takes messages, pauses and commits. Handlers never run on it, so a
  slow handler does not cost us the partitions. It closes too, but for an own loop, where any thread may: `_turn` is
  held by the one that polls, or closes.
- Workers (`pool.py`): threads for sync handlers, tasks for async ones.
- `stop()` may be called from any thread, a handler or a signal handler.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import NoneType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from safekafka.client import admin_client, build_client
from safekafka.consumer.decoding import Deserialize, decoding, decoding_async
from safekafka.consumer.lanes import ORDERS, Order
from safekafka.consumer.meeting import Meeting
from safekafka.consumer.own_loop import OwnLoop
from safekafka.consumer.pool import Handler, Pool
from safekafka.consumer.retry import Retry
from safekafka.consumer.session import CLOSE_SECONDS, Limits, Session
from safekafka.consumer.signals import stop_on_signal
from safekafka.consumer.stats import ConsumerStats
from safekafka.consumer.tasks import TaskPool
from safekafka.consumer.threads import ThreadPool
from safekafka.consumer.topic_ids import TopicIds
from safekafka.consumer.verdict import failure_of, judge
from safekafka.deadletter.config import DeadLetter, described, refuse_subscribed
from safekafka.deadletter.publisher import DeadLetterPublisher
from safekafka.errors import ClosedError, SafeKafkaError
from safekafka.observe import Event, emit
from safekafka.producer.health import Health
from safekafka.record import topic_problem
from safekafka.settings import (
    FETCHED_AHEAD,
    FETCHED_AHEAD_KB,
    connection_settings,
    consumer_settings,
    poll_interval,
    positive,
    start_policy,
    whole,
)

if TYPE_CHECKING:
    from typing_extensions import Self

Rebalanced: TypeAlias = "Callable[[SafeConsumer, list[TopicPartition]], Any]"

_COMMIT_RECORDS = 100_000
_MAX_CONCURRENCY = 10_000
_LOOK_SECONDS = 0.1


class SafeConsumer:
    """Hands each message to the handler at least once, and commits an offset only when everything before it is
    finished.

    `config` takes librdkafka's names; auto-commit is off and can't be turned on. `retry` says how often a failing
    handler is tried again.
    `dead_letter`: the topic that takes messages which could not be handled, with their bytes, headers and the reason;
    or a `DeadLetter`, which says more. It must exist. The source offset counts as finished only once the dead letter is
    acknowledged. Without it, such a message stops the consumer with `HandlerFailed`.
    `concurrency`: handlers at once, threads for sync ones and tasks for async ones. `order`: which messages are handled
    one after the other: those of a "partition", those of a "key" (without a key: of the partition), or "none".
    `key_deserializer`, `value_deserializer`: confluent_kafka's, or callables that take the bytes; async ones go with
    async handlers.
    `commit_interval`: seconds between commits. `drain_timeout`: seconds that a running handler gets when its partition
    is taken away or the consumer stops. `shutdown_timeout`: seconds for the whole stop. `max_in_flight`,
    `max_in_flight_bytes` bound what is held in memory. `stuck_after`: seconds after which a handler is reported that
    has not come back (`handler_stuck`); with `on_stuck="stop"` the consumer ends then. `on_records_expired`: whether
    records that retention deleted before they were handled are told (event `records_expired`), or stop the consumer
    too.

    Raises `UnsafeConfigError`, `ValueError`. `stop()`, `close()`, `pause()`, `resume()`, `seek()`, `done()`, `stats()`
    and `health()` are thread safe; everything else belongs to the thread that calls `run()`, or `poll()`.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        topics: Sequence[str],
        *,
        retry: Retry | None = None,
        dead_letter: DeadLetter | str | None = None,
        concurrency: int = 1,
        order: Order = "partition",
        key_deserializer: Deserialize | None = None,
        value_deserializer: Deserialize | None = None,
        commit_interval: float = 1.0,
        drain_timeout: float = 15.0,
        shutdown_timeout: float = 20.0,
        max_in_flight: int = 10_000,
        max_in_flight_bytes: int = 64 << 20,
        on_records_expired: Literal["continue", "stop"] = "continue",
        stuck_after: float = 300.0,
        on_stuck: Literal["report", "stop"] = "report",
    ) -> None:
        letters = None if dead_letter is None else described(dead_letter)
        topics = _checked(topics, letters)
        positive(commit_interval=commit_interval, drain_timeout=drain_timeout, shutdown_timeout=shutdown_timeout)
        positive(stuck_after=stuck_after)
        whole(max_in_flight=max_in_flight, max_in_flight_bytes=max_in_flight_bytes)
        _check_choices(concurrency, order, retry)
        _check_deserializers(key_deserializer=key_deserializer, value_deserializer=value_deserializer)
        _one_of("on_records_expired", on_records_expired, "continue", "stop")
        _one_of("on_stuck", on_stuck, "report", "stop")
        settings, problems = consumer_settings(config, drain_timeout)
        on_commit_of_user = settings.get("on_commit")
        settings["on_commit"] = self._on_commit
        # What the client has fetched and nobody has taken is held in memory too.
        settings.setdefault(FETCHED_AHEAD, max(1, min(FETCHED_AHEAD_KB, int(max_in_flight_bytes) >> 10)))
        start = start_policy(settings)
        settings["auto.offset.reset"] = "error"  # what to do is decided in `positions.py`
        limits = Limits(
            commit_interval,
            _COMMIT_RECORDS,
            drain_timeout,
            shutdown_timeout,
            max_in_flight,
            max_in_flight_bytes,
            stuck_after,
            poll_interval(settings),
        )
        client, watch = build_client(Consumer, settings, problems)
        connection = connection_settings(config)
        group = str(settings["group.id"])
        self._session = Session(
            client,
            watch,
            group,
            TopicIds(lambda: admin_client(connection)),
            limits,
            start=start,
            stop_on_expired=on_records_expired == "stop",
            maps=order != "partition",
            told_once=str(settings.get("group.protocol")).strip().lower() == "consumer",
            static="group.instance.id" in settings,
            on_commit_of_user=on_commit_of_user,
        )
        self._letters = letters
        self._dead_letters = None if letters is None else DeadLetterPublisher(letters, group, config)
        self._topics = topics
        self._retry = retry or Retry()
        self._has_retry = retry is not None
        self._max_in_flight = max_in_flight
        self._meeting: Meeting | None = None
        self._own_loop: OwnLoop | None = None
        self._order: Order = order
        self._concurrency = concurrency
        self._deserializers = key_deserializer, value_deserializer
        self._shutdown_timeout = shutdown_timeout
        self._finishing = limits.finishing
        self._stuck_after = stuck_after
        self._stops_when_stuck = on_stuck == "stop"
        self._pid = os.getpid()
        self._started = False
        self._runner: threading.Thread | None = None  # the poll thread
        self._loops_thread: threading.Thread | None = None  # of arun()
        self._pool: Pool | None = None
        self._turn = threading.RLock()  # of own loops; a signal handler may call close() in the middle of poll()
        self._closes = False  # or in the middle of close()
        self._close_due = False  # asked for inside poll()
        self._closed = threading.Event()
        self._failure: BaseException | None = None

    # ---- messages to a handler

    def run(self, handler: Callable[[Message], Any]) -> None:
        """Handle messages until `stop()`, SIGTERM or SIGINT (on the main thread), or a failure that is raised here.

        `handler(message)` gets a `confluent_kafka.Message`, sync or async. It ends a message by returning;
        `raise Reject("reason")` sends it to the dead letter topic at once; `raise RetryLater(seconds)` asks for another
        attempt that does not count; any other exception follows `retry`. `safekafka.current()` tells it more.

        Raises `HandlerFailed`, `DeadLetterFailed`, `RecordsExpired`, `ConsumerFencedError`,
        `ConsumerAuthorizationError`, `UnreadableRecordError`, `SafeKafkaError`, `ClosedError`, or what a handler
        raised that is no `Exception`. The consumer is closed when this returns.
        """
        self._run(handler, None)

    def run_batches(
        self, handler: Callable[[list[Message]], Any], max_records: int = 500, max_wait: float = 0.5
    ) -> None:
        """As `run`, for a handler that takes a list of messages: at most `max_records`, of which the first waits at
        most `max_wait` seconds for others. Messages of one lane (`order`) are in order in it, and in no other batch
        meanwhile.

        A batch that fails is tried again as a whole, by `retry`; when its attempts have ended it is split until the
        message that spoils it stands alone. That one gets attempts of its own, then it is dead-lettered (or stops the
        consumer). `Reject` splits at once.
        """
        whole(max_records=max_records)
        positive(max_wait=max_wait)
        if self._deserializers != (None, None):
            raise ValueError(
                "key_deserializer and value_deserializer don't go with run_batches(): one message that can't be "
                "decoded would stop its batch. Remedy: decode in the handler."
            )
        self._run(handler, (max_records, float(max_wait)))

    async def arun(self, handler: Callable[[Message], Any]) -> None:
        """`run` inside the running event loop: an async handler runs as tasks of this loop, a sync one on threads.
        Messages are taken on a thread of our own. Cancelled, it stops the consumer first."""
        _check_handler(handler)
        self._begin()
        self._loops_thread = threading.current_thread()
        pool = self._make_pool(handler, None, asyncio.get_running_loop())
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()

        def poll() -> None:
            try:
                self._poll_until_stopped(pool)
            finally:
                loop.call_soon_threadsafe(lambda: None if ended.done() else ended.set_result(None))

        thread = threading.Thread(target=poll, name="safekafka-poll", daemon=True)
        thread.start()
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            self.stop()
            await ended
            raise
        if self._failure is not None:
            raise self._failure

    def _run(self, handler: Handler, batch: tuple[int, float] | None) -> None:
        _check_handler(handler)
        self._begin()
        pool = self._make_pool(handler, batch, None)
        with stop_on_signal(self.stop):
            self._poll_until_stopped(pool)
        if self._failure is not None:
            raise self._failure

    def _begin(self) -> None:
        self._check_process()
        if self._started or self._closed.is_set():
            raise ClosedError("a SafeConsumer runs once. Remedy: make a new one.")
        self._started = True

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ClosedError("this consumer belongs to the parent process. Remedy: make a SafeConsumer in the child.")

    def _make_pool(
        self, handler: Handler, batch: tuple[int, float] | None, loop: asyncio.AbstractEventLoop | None
    ) -> Pool:
        options: dict[str, Any] = {
            "order": self._order,
            "concurrency": self._concurrency,
            "retry": self._retry,
            "dead_letters": self._dead_letters,
            "letters": self._letters,
            "batch": batch,
        }
        decodes = self._deserializers != (None, None)
        if _is_async(handler):
            return TaskPool(decoding_async(handler, *self._deserializers) if decodes else handler, loop=loop, **options)
        return ThreadPool(decoding(handler, *self._deserializers) if decodes else handler, **options)

    def _poll_until_stopped(self, pool: Pool) -> None:
        session = self._session
        self._runner = threading.current_thread()
        self._pool = session.pool = pool
        try:
            pool.start()
            session.subscribe(self._topics)
            while not session.stop_requested.is_set() and pool.failure is None and pool.alive:
                session.turn()
                if self._stops_when_stuck and (stuck := session.stuck):
                    raise SafeKafkaError(
                        f"the handler has not come back from {', '.join(stuck)}. It was not committed: it comes again "
                        "at the next start. Remedy: give the handler's waits a timeout, or raise stuck_after."
                    )
        except KafkaException as error:
            self._failure = _cannot_go_on(error)
            self._failure.__cause__ = error
        except BaseException as error:  # noqa: BLE001 - raised by who called run()
            self._failure = error
        finally:
            self._shut_down(time.monotonic() - session.spent)
        if pool.failure is not None:
            self._failure = pool.failure
        elif self._failure is None and not session.stop_requested.is_set():
            self._failure = SafeKafkaError("a worker thread ended unexpectedly; nothing unhandled was committed")

    # ---- messages to a for loop

    def __iter__(self) -> Iterator[Message]:
        """`for message in consumer:` - a message is committed when the body of the loop has come back for the next one.
        One whose body left the loop (`break`, an exception) is not; the next loop begins with it. The loop ends with
        `stop()`, SIGTERM or SIGINT (on the main thread), or raises what `run()` does.

        `concurrency` must be 1, and there is no `retry` and no `dead_letter`: the body deals with its errors itself.
        """
        self._check_process()
        if self._concurrency != 1 or self._has_retry or self._dead_letters is not None:
            raise ValueError(
                "for message in consumer: goes with concurrency=1, and without retry= and dead_letter=, since the body "
                "of the loop is the program's. Remedy: leave these out, or use consumer.run(handler)."
            )
        meeting = self._meeting
        if meeting is None:
            self._begin()
            meeting = self._meeting = Meeting()
            pool = self._make_pool(meeting.hand_over, None, None)
            threading.Thread(target=self._poll_for, args=(meeting, pool), name="safekafka-poll", daemon=True).start()
        return self._loop(meeting)

    def _loop(self, meeting: Meeting) -> Iterator[Message]:
        meeting.loops = 1
        try:
            with stop_on_signal(self.stop):
                message = meeting.first()
                while message is not None:
                    yield message
                    message = meeting.next()
                    if self._session.stop_requested.is_set():
                        break  # the poll thread may be slower to see it than a quick body
        finally:
            meeting.loops = 0
        self._closed.wait(self._shutdown_timeout + CLOSE_SECONDS)
        if self._failure is not None:
            raise self._failure

    def _poll_for(self, meeting: Meeting, pool: Pool) -> None:
        try:
            self._poll_until_stopped(pool)
        finally:
            meeting.end()

    # ---- messages to the program's own loop

    def poll(self, timeout: float | None = None) -> Message | None:
        """The next message, or None after `timeout` seconds (None: waits for as long as it takes). To be given to
        `done()` when it is handled: only that is committed. Commits and rebalances happen in here.

        None too while `max_in_flight` or `max_in_flight_bytes` are out, until half of that is done. After `stop()` None
        once, then `ClosedError`.

        Errors that the raw client returns as messages are events here, or raised: `SafeKafkaError`. So is that nothing
        was done for `stuck_after` seconds while no more may be handed out.
        """
        return next(iter(self.consume(1, timeout)), None)

    def consume(self, num_messages: int = 1, timeout: float | None = None) -> list[Message]:
        """As `poll`, for up to so many messages. Returns as soon as there are any."""
        whole(num_messages=num_messages)
        self._check_process()
        with self._turn:
            own_loop = self._own_loop or self._begin_own_loop()
            if self._closed.is_set():
                raise ClosedError("the consumer is closed. Remedy: make a new one.")
            self._runner = threading.current_thread()
            try:
                messages = own_loop.consume(num_messages, timeout)
            except KafkaException as error:
                raise _cannot_go_on(error) from error
            finally:
                if self._close_due and not self._closes and not self._closed.is_set():
                    self._shut_down_once(time.monotonic())
            return [] if self._closed.is_set() else messages  # which come again

    def _begin_own_loop(self) -> OwnLoop:
        if self._deserializers != (None, None):
            raise ValueError("key_deserializer and value_deserializer go with run(): here, decode in the loop")
        if self._concurrency != 1 or self._has_retry or self._dead_letters is not None:
            raise ValueError(
                "poll() and consume() go with concurrency=1, and without retry= and dead_letter=, since the loop is "
                "the program's. Remedy: leave these out, or use consumer.run(handler)."
            )
        self._begin()
        self._own_loop = OwnLoop(self._session, self._max_in_flight, self._stuck_after)
        self._session.subscribe(self._topics)
        return self._own_loop

    def done(self, message: Message) -> bool:
        """The message from `poll()` or `consume()` is handled; it is committed when all before it are, at the next
        `commit_interval`. False if its partition was taken away meanwhile: then it is handled again. Thread safe.

        Raises `ValueError` for a message that was not handed out, or is done already.
        """
        if self._own_loop is None:
            raise ValueError("done() is for messages of poll() and consume(): run() and for loops do it themselves")
        return self._own_loop.done(message)

    def subscribe(
        self,
        topics: Sequence[str],
        on_assign: Rebalanced | None = None,
        on_revoke: Rebalanced | None = None,
        on_lost: Rebalanced | None = None,
    ) -> None:
        """Other topics than those given at first, and callbacks `(consumer, partitions)` for rebalances, which run
        inside `poll()`."""
        self._topics = _checked(topics, self._letters)
        callbacks = {"on_assign": on_assign, "on_revoke": on_revoke, "on_lost": on_lost}
        self._session.callbacks = {
            name: functools.partial(callback, self) for name, callback in callbacks.items() if callback is not None
        }
        if self._started:
            self._session.subscribe(self._topics)

    def unsubscribe(self) -> None:
        self._session.unsubscribe()

    def pause(self, partitions: list[TopicPartition]) -> None:
        """Take no messages of these until `resume()`, also after a rebalance."""
        self._session.pause(partitions)

    def resume(self, partitions: list[TopicPartition]) -> None:
        self._session.resume(partitions)

    def seek(self, partition: TopicPartition) -> None:
        """Go on at `partition.offset`, an offset of the log. What was handed out before does not count any more."""
        self._session.seek(partition)

    def assignment(self) -> list[TopicPartition]:
        return self._session.client.assignment()

    def committed(self, partitions: list[TopicPartition], timeout: float = 10.0) -> list[TopicPartition]:
        return self._session.client.committed(partitions, timeout=timeout)

    def position(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """With the offset of the next message to be taken; `OFFSET_INVALID` where that is not known."""
        return self._session.position(partitions)

    def offsets_for_times(self, partitions: list[TopicPartition], timeout: float = 10.0) -> list[TopicPartition]:
        return self._session.client.offsets_for_times(partitions, timeout=timeout)

    def memberid(self) -> str | None:
        return self._session.client.memberid()

    def get_watermark_offsets(
        self, partition: TopicPartition, timeout: float = 10.0, cached: bool = False
    ) -> tuple[int, int]:
        return self._session.client.get_watermark_offsets(partition, timeout=timeout, cached=cached)

    def list_topics(self, topic: str | None = None, timeout: float = 10.0) -> Any:
        named = {} if topic is None else {"topic": topic}
        return self._session.client.list_topics(**named, timeout=timeout)

    def set_sasl_credentials(self, username: str, password: str) -> None:
        """For connections of the consumer's client made from now on; not for those of a dead letter producer."""
        self._session.client.set_sasl_credentials(username, password)

    def commit(self, *_: Any, **__: Any) -> None:
        """Not here: raises `SafeKafkaError`."""
        raise SafeKafkaError(
            "commit() could commit messages that are not handled. Remedy: call consumer.done(message) for each message "
            "that is; it is committed by itself."
        )

    store_offsets = commit

    def assign(self, *_: Any, **__: Any) -> None:
        """Not here: raises `SafeKafkaError`."""
        raise SafeKafkaError(
            "partitions are assigned by the group. Remedy: to start elsewhere, call consumer.seek(partition) in "
            "on_assign, with an offset of the log (get_watermark_offsets() and offsets_for_times() tell them)."
        )

    incremental_assign = incremental_unassign = unassign = assign

    # ---- the end

    def stop(self) -> None:
        """Ask `run()` to finish what is being handled, commit, leave the group and return. Returns at once; the poll
        thread sees it within 0.1 s, in which a quick handler is still called with what was fetched."""
        self._session.stop()

    def close(self) -> None:
        """Stop, and wait for `run()` on another thread to end. Idempotent. In a handler, in a callback, and on the
        event loop of `arun()`, it doesn't wait: these could not finish before it. Inside `poll()`, in a callback or a
        signal handler, it is done when `poll()` returns.

        While another thread polls, it waits for that one to come back, and for what is out to be done, as long as for a
        handler (`drain_timeout`); `poll()` raises `ClosedError` there afterwards.
        """
        if self._pid != os.getpid():
            return  # the parent's client must not be touched
        self.stop()
        if self._meeting is not None:
            self._meeting.closes()
        if self._own_loop is not None:
            self._close_own_loop(self._own_loop)
        elif self._started:
            workers = [] if self._pool is None else self._pool.threads
            # These would wait for themselves.
            if threading.current_thread() not in (*workers, self._runner, self._loops_thread, self._session.helper):
                self._closed.wait(self._shutdown_timeout + CLOSE_SECONDS)
        elif not self._closed.is_set():
            self._closed.set()
            self._session.client.close()
            if self._dead_letters is not None:
                self._dead_letters.close(self._shutdown_timeout)

    def _close_own_loop(self, own_loop: OwnLoop) -> None:
        """The client lets one thread in at a time, and what another one has in hand may still be done."""
        if self._turn._is_owned():  # type: ignore[attr-defined]
            self._close_due = True  # inside poll(), or inside this
            return
        if threading.current_thread() is self._session.helper:  # in a callback of the last commit
            return
        began, runner = time.monotonic(), self._runner
        patience = began if runner is threading.current_thread() else began + self._finishing
        until = began + self._shutdown_timeout + CLOSE_SECONDS
        while self._turn.acquire(timeout=max(0.0, until - time.monotonic())):
            try:
                if self._closed.is_set() or self._closes:
                    return
                waits = runner is not None and runner.is_alive() and own_loop.is_out
                if not waits or time.monotonic() >= patience:
                    self._shut_down_once(began)
                    return
            finally:
                self._turn.release()
            self._closed.wait(_LOOK_SECONDS)
        emit(Event.CLOSE_TIMED_OUT, shutdown_timeout=self._shutdown_timeout)  # the other thread hangs in a callback

    def _shut_down_once(self, began: float) -> None:
        self._closes = True
        try:
            self._shut_down(began)
        finally:  # a signal handler may have raised: the next close() does the rest
            self._closes = False

    def _shut_down(self, began: float) -> None:
        end = self._session.shut_down(began)
        if self._dead_letters is not None:
            try:
                self._dead_letters.close(max(1.0, end - time.monotonic()))
            except SafeKafkaError as error:
                emit(Event.CLIENT_ERROR, error="dead_letter_producer", detail=str(error))
        self._closed.set()
        failure = None if self._pool is None else self._pool.failure
        emit(
            Event.CONSUMER_STOPPED,
            seconds=round(time.monotonic() - began, 2),
            cause=type(failure or self._failure).__name__,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        self._session.on_commit(error, partitions)

    # ---- looking at it

    def stats(self) -> ConsumerStats:
        """Numbers, at most a second old. Thread safe."""
        return self._session.stats

    def health(self) -> Health:
        """Whether messages are being handled. Thread safe."""
        problems = []
        failure = self._failure or (None if self._pool is None else self._pool.failure)
        if failure is not None:
            problems.append(f"the consumer stopped: {failure}")
        elif self._closed.is_set():
            problems.append("the consumer is closed")
        elif self._started and (self._runner is None or not self._runner.is_alive()):
            problems.append("nobody takes messages")
        problems += self._session.problems
        return Health(not problems, tuple(problems))


def _cannot_go_on(error: KafkaException) -> SafeKafkaError:
    """What a call of the client raised."""
    return failure_of(error.args[0], judge(error.args[0]), (None, None, None))


def _is_async(handler: Any) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


def _check_handler(handler: Any) -> None:
    """What is wrong with the handler itself would send every message to the dead letter topic, or none of them through
    its body."""
    if not callable(handler):
        raise ValueError(f"handler={handler!r}: give a function that takes one argument")
    for function in (handler, getattr(handler, "__call__", None)):  # noqa: B004
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ValueError(
                f"handler={handler!r} has a yield: called, it would do nothing, and the message would count as "
                "handled. Remedy: leave the yield out."
            )
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # a builtin may have none
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise ValueError(f"handler={handler!r} can't be called with one argument: {error}") from None


def _checked(topics: Sequence[str], dead_letter: DeadLetter | None) -> list[str]:
    names = [] if isinstance(topics, str) or not isinstance(topics, Iterable) else list(topics)
    if not names:
        raise ValueError(f"topics={topics!r}: give a list of topic names, as in ['orders']")
    for topic in names:
        problem = None if isinstance(topic, str) and topic.startswith("^") else topic_problem(topic)
        if problem:
            raise ValueError(problem)
    if dead_letter is not None:
        refuse_subscribed(dead_letter, names)
    return names


def _check_deserializers(**given: Any) -> None:
    for name, deserializer in given.items():
        if inspect.iscoroutine(deserializer):
            deserializer.close()  # else the interpreter warns of it
            raise ValueError(f"{name} is a coroutine. Remedy: await it, as in {name}=await AsyncAvroDeserializer(...)")
        if deserializer is not None and not callable(deserializer):
            raise ValueError(
                f"{name}={deserializer!r}: give a deserializer of confluent_kafka, or a function that takes the bytes"
            )


def _check_choices(concurrency: Any, order: Any, retry: Any) -> None:
    if not isinstance(concurrency, int) or isinstance(concurrency, bool) or not 1 <= concurrency <= _MAX_CONCURRENCY:
        raise ValueError(f"concurrency={concurrency!r}: give the number of handlers at once, 1 to {_MAX_CONCURRENCY}")
    _one_of("order", order, *ORDERS)
    if not isinstance(retry, (Retry, NoneType)):
        raise ValueError(f"retry={retry!r}: give a Retry, as in Retry(attempts=5)")


def _one_of(name: str, value: Any, *choices: str) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: give one of {', '.join(map(repr, choices))}")
