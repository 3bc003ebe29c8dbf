"""`SafeProducer`: the face of the two ways a record can go, directly to the client or through the spool.

Threads: all methods may be called from any thread. The class itself has no thread; see `direct.py` and
`spool/spooled.py`. In a forked child the parent's records stay the parent's: the first use there begins anew, with a
client and a thread of the child's own. `_begin_anew_lock` keeps threads of the child from doing that twice.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.util import Finalize, register_after_fork
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from confluent_kafka import Producer
from confluent_kafka.serialization import MessageField, SerializationContext, SerializationError, Serializer

from safekafka.client import ClusterWatch, admin_client, build_client
from safekafka.errors import BufferFullError, ClosedError, InvalidRecordError, SafeKafkaError, UndeliveredError
from safekafka.observe import Event, emit
from safekafka.producer import sigterm
from safekafka.producer.direct import DirectDelivery
from safekafka.producer.health import Health, ProducerStats
from safekafka.producer.outcomes import OnUndelivered, Unobserved
from safekafka.producer.receipt import Receipt
from safekafka.producer.surroundings import refuse_unfit_surroundings
from safekafka.producer.way import CLOSED
from safekafka.record import OVERHEAD, Fields, Headers, Record, checked, known_topics
from safekafka.settings import (
    buffer_limits,
    connection_settings,
    linger_seconds,
    max_in_flight,
    message_max_bytes,
    positive,
    producer_settings,
)
from safekafka.spool.config import Spool
from safekafka.spool.journal import RejectedRecord
from safekafka.spool.spooled import ID_OVERHEAD, SpooledDelivery

if TYPE_CHECKING:
    from typing_extensions import Self

Serialize: TypeAlias = "Callable[[Any], bytes | str | None] | Serializer"


class SafeProducer:
    """Sends records to Kafka so that each ends in exactly one known outcome: delivered, failed, or unknown.

    `config` takes librdkafka's names. acks=all and idempotence are set; values that could lose a record raise
    `UnsafeConfigError`.

    `spool`: a folder (or `Spool`). When `send()` returns, the record is on the local disk; it survives the death of the
    process and an outage of any length, and is sent by the next start if not by this one.
    `delivery_timeout`: seconds after which a record without a verdict ends: as `failed` if it never left this process,
    else as `unknown` (no spool; with one, records never expire).
    `max_block`: the longest `send()` waits for room, in seconds, before it raises `BufferFullError` or
    `SpoolFullError`.
    `on_undelivered(record, error)`: called on the delivery thread for each record that ended as failed or unknown. What
    it does not handle (none given, or it raises), and nobody looked at, is raised by the next `flush()` or `close()`.
    `key_serializer`, `value_serializer`: confluent_kafka serializers or plain callables; their errors surface from
    `send()`.
    `shutdown_timeout`: seconds that `close()`, SIGTERM and the interpreter's exit take at most for what is still
    pending.
    `on_fatal`: what becomes of records whose fate a fatal client error left open: "resend" (in order, before anything
    new; a duplicate is possible, and counted) or "report" (they end as `unknown`).
    `handle_sigterm`: SIGTERM delivers what is pending before it ends the process; only where the program has no handler
    of its own, and only for producers made on the main thread.

    Thread safe. After a fork the child's first use begins with a client of its own; the parent's receipts stay the
    parent's. Raises `UnsafeConfigError`, `SpoolUnusableError`, `SpoolFullError`, `SpoolCorruptError`, and
    `SafeKafkaError` where no thread can run (gevent, eventlet, uWSGI without threads).
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        spool: Spool | str | os.PathLike[str] | None = None,
        delivery_timeout: float = 120.0,
        max_block: float = 60.0,
        on_undelivered: OnUndelivered | None = None,
        key_serializer: Serialize | None = None,
        value_serializer: Serialize | None = None,
        shutdown_timeout: float = 20.0,
        on_fatal: Literal["resend", "report"] = "resend",
        handle_sigterm: bool = True,
    ) -> None:
        refuse_unfit_surroundings()
        positive(delivery_timeout=delivery_timeout, max_block=max_block, shutdown_timeout=shutdown_timeout)
        if on_fatal not in ("resend", "report"):
            raise ValueError(f"on_fatal={on_fatal!r}: give 'resend' or 'report'")
        described = spool if isinstance(spool, Spool) or spool is None else Spool(spool)
        if described is not None and on_fatal == "report":
            raise ValueError(
                "on_fatal='report' with a spool: a record whose fate is open stays on the disk and is sent again. "
                "Leave on_fatal out."
            )
        settings, problems = producer_settings(config)
        credentials: list[tuple[str, str]] = []  # not self's, or make_client would keep a forgotten producer alive
        self._credentials = credentials
        watch: ClusterWatch | None = None

        def make_client(gapless: bool) -> tuple[Producer, ClusterWatch]:
            nonlocal watch
            complete = settings if gapless else {**settings, "enable.gapless.guarantee": False}
            client, watch = build_client(Producer, complete, problems, watch)
            if credentials:
                client.set_sasl_credentials(*credentials[-1])
            return client, watch

        partitioner = str(settings.get("partitioner", "consistent_random"))
        one_at_a_time = max_in_flight(settings) == 1

        def make_way() -> DirectDelivery:
            if described is not None:
                return SpooledDelivery(
                    make_client,
                    described,
                    bootstrap=str(settings.get("bootstrap.servers", "")),
                    partitioner=partitioner,
                    queue=buffer_limits(settings),
                    one_at_a_time=one_at_a_time,
                    make_admin=lambda: admin_client(connection_settings(settings)),
                    max_block=max_block,
                    linger=linger_seconds(settings),
                    on_undelivered=on_undelivered,
                )
            max_records, max_bytes = buffer_limits(settings)
            return DirectDelivery(
                make_client,
                max_records=max_records,
                max_bytes=max_bytes,
                delivery_timeout=delivery_timeout,
                max_block=max_block,
                linger=linger_seconds(settings),
                partitioner=partitioner,
                one_at_a_time=one_at_a_time,
                on_undelivered=on_undelivered,
                resend_after_fatal=on_fatal == "resend",
            )

        self._key_serializer = key_serializer
        self._value_serializer = value_serializer
        self._max_record_bytes = message_max_bytes(settings)
        self._overhead = OVERHEAD + (ID_OVERHEAD if described is not None and described.record_ids else 0)
        self._plain = key_serializer is None and value_serializer is None
        self._max_plain_bytes = self._max_record_bytes - self._overhead
        self._shutdown_timeout = shutdown_timeout
        self._handle_sigterm = handle_sigterm
        self._make_way = make_way
        self._begin_anew_lock = threading.Lock()
        self._begin()
        _live.add(self)
        register_after_fork(self, SafeProducer._finalizers_were_cleared)

    def _begin(self) -> DirectDelivery:
        self._way: DirectDelivery | _NotYet = (way := self._make_way())
        way.start()
        # Runs when nobody holds the producer any more, and at the exit of the interpreter or of a multiprocessing child
        # (which never runs atexit): what is pending is not dropped because close() was forgotten.
        self._at_exit = Finalize(self, _close_forgotten, args=(way, self._shutdown_timeout), exitpriority=10)
        if self._handle_sigterm:
            sigterm.watch(way, self._shutdown_timeout)
        # The children of Celery's pool end by os._exit: no finalizer and no atexit, but this signal comes before.
        if (signals := sys.modules.get("celery.signals")) is not None:
            signals.worker_process_shutdown.connect(_close_live, weak=False, dispatch_uid="safekafka")
        return way

    def _finalizers_were_cleared(self) -> None:
        """In a multiprocessing child, which has just cleared all finalizers. Under forkserver the main module was
        imported in the child before, so a producer that it made is this process's own."""
        if not isinstance(self._way, _NotYet):
            self._at_exit = Finalize(self, _close_forgotten, args=(self._way, self._shutdown_timeout), exitpriority=10)

    def send(
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        headers: Headers | None = None,
        partition: int | None = None,
        timestamp: int | None = None,
    ) -> Receipt:
        """Accept one record. Without a spool it is in the client's buffer when this returns; with one it is on the
        disk.

        `timestamp` is in ms since the epoch (default: now). Blocks for at most `max_block` seconds for room.
        Raises `InvalidRecordError` (nothing was queued), `BufferFullError` or `SpoolFullError` (not accepted),
        `DeliveryFailed` (the client refused the record), `ClosedError`, `ProducerFatalError`.
        """
        if (  # the commonest record, checked here and now: a call less for each
            type(value) is bytes
            and (key is None or type(key) is bytes)
            and headers is None
            and partition is None
            and timestamp is None
            and self._plain
            and type(topic) is str
            and topic in known_topics
            and len(value) + (0 if key is None else len(key)) <= self._max_plain_bytes
        ):
            return self._way.send((topic, value, key, None, -1, 0))
        return self._way.send(self._checked(topic, value, key, headers, partition, timestamp))

    def send_many(self, records: Iterable[Record]) -> list[Receipt]:
        """Accept many records, in order; with a spool they share one write to the disk.

        All are checked before the first is sent: `InvalidRecordError` names the bad ones by position, and nothing was
        sent. When there is no room for all within `max_block` seconds each, `BufferFullError.receipts` holds those of
        the records that were accepted; with a spool none was.
        """
        problems: list[str] = []
        many: list[Fields] = []
        plain, max_plain_bytes = self._plain, self._max_plain_bytes
        for position, (topic, value, key, headers, partition, timestamp) in enumerate(records):
            if (  # as in `send`
                type(value) is bytes
                and (key is None or type(key) is bytes)
                and headers is None
                and partition is None
                and timestamp is None
                and plain
                and type(topic) is str
                and topic in known_topics
                and len(value) + (0 if key is None else len(key)) <= max_plain_bytes
            ):
                many.append((topic, value, key, None, -1, 0))
                continue
            try:
                many.append(self._checked(topic, value, key, headers, partition, timestamp))
            except InvalidRecordError as error:
                problems += [f"record {position} (topic {error.topic!r}): {problem}" for problem in error.problems]
        if problems:
            raise InvalidRecordError("send_many()", problems)
        way = self._way.begin() if isinstance(self._way, _NotYet) else self._way
        if isinstance(way, SpooledDelivery):
            return way.send_many(many)
        receipts: list[Receipt] = []
        for fields in many:
            try:
                receipts.append(way.send(fields))
            except BufferFullError as error:
                raise BufferFullError(
                    f"{len(receipts)} of {len(many)} records were accepted (see .receipts), then {error}", receipts
                ) from error
        return receipts

    async def asend(
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        headers: Headers | None = None,
        partition: int | None = None,
        timestamp: int | None = None,
    ) -> Receipt:
        """`send()` for an event loop: waits for room (and the disk) without blocking it, first in first out.

        A task cancelled while it waits for room has definitely not sent. Await the receipt for the delivery:
        `await (await producer.asend(...))`. Raises what `send()` raises. Serializers run on the loop.
        """
        fields = self._checked(topic, value, key, headers, partition, timestamp)
        way = self._way
        if isinstance(way, _NotYet):
            way = way.begin()
        return await way.asend(fields)

    def produce(
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        partition: int = -1,
        callback: Callable[..., Any] | None = None,
        on_delivery: Callable[..., Any] | None = None,
        timestamp: int = 0,
        headers: Headers | None = None,
    ) -> None:
        """`send()` in the raw client's words, for code that is moved over.

        `on_delivery(error, message)` (or `callback`) is called once, on the delivery thread: no `poll()` is needed.
        A full buffer blocks for up to `max_block` seconds before `BufferFullError` (a `BufferError`).
        """
        call = callback if callback is not None else on_delivery
        if call is not None and not callable(call):
            raise TypeError(f"on_delivery={call!r}: give a function of (error, message)")
        fields = self._checked(topic, value, key, headers, None if partition == -1 else partition, timestamp or None)
        if call is None:
            self._way.send(fields)
        else:
            self._way.produce(fields, call)

    def poll(self, timeout: float | None = None) -> int:
        """Wait for reports, at most `timeout` seconds (None or negative: until one comes). Returns how many came since
        the last call.

        For code written for the raw client; callbacks run on the delivery thread, with or without this.
        """
        return self._way.poll(timeout)

    def flush(self, timeout: float | None = None) -> int:
        """Wait for every record sent before this call, at most `timeout` seconds (None or negative: no bound). Returns
        how many of them are still pending.

        Raises `UndeliveredError` for failures that nobody observed.
        """
        left = self._way.flush(timeout)
        self._way.failures.raise_if_any()
        self._way.raise_death()
        return left

    async def aflush(self, timeout: float | None = None) -> int:
        """`flush()` for an event loop."""
        return await asyncio.to_thread(self.flush, timeout)

    def close(self, timeout: float | None = None) -> None:
        """Deliver what is pending within `timeout` seconds (default `shutdown_timeout`), then end. Idempotent.

        Without a spool, what was not delivered by then ends as `unknown`, or as `failed` if it was never sent, and
        `UndeliveredError` is raised for what nobody observed. With a spool it stays on the disk for the next start.
        """
        timeout = self._shutdown_timeout if timeout is None else timeout
        if timeout < 0:
            raise ValueError(f"timeout={timeout!r}: give the seconds that close() may take, 0 or more")
        self._way.close(timeout)
        if self._way.ended:
            self._at_exit.cancel()
        self._way.failures.raise_if_any()
        self._way.raise_death()

    async def aclose(self, timeout: float | None = None) -> None:
        """`close()` for an event loop."""
        await asyncio.to_thread(self.close, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except UndeliveredError as undelivered:
            # The body's own exception goes on; it must not hide what was not delivered, nor the other way round.
            undelivered.__cause__ = error
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, traceback)

    def __len__(self) -> int:
        """Records accepted and not yet known to be delivered."""
        return len(self._way)

    def __bool__(self) -> bool:
        """True, also with nothing pending."""
        return True

    def list_topics(self, topic: str | None = None, timeout: float = -1) -> Any:
        """The cluster's brokers and topics (`confluent_kafka.admin.ClusterMetadata`), asked for now. Raises
        `KafkaException`. As in the raw client."""
        return (
            self.raw_client.list_topics(topic, timeout)
            if topic is not None
            else self.raw_client.list_topics(timeout=timeout)
        )

    def set_sasl_credentials(self, username: str, password: str) -> None:
        """For connections made from now on, also those of a client that takes the place of this one."""
        self.raw_client.set_sasl_credentials(username, password)
        self._credentials[:] = [(username, password)]

    def rejected(self) -> list[RejectedRecord]:
        """Records of the spool that Kafka can never take, oldest first. Empty without a spool."""
        way = self._way.begin() if isinstance(self._way, _NotYet) else self._way
        return way.rejected() if isinstance(way, SpooledDelivery) else []

    def stats(self) -> ProducerStats:
        """Numbers of this moment. Cheap enough for every second."""
        return self._way.stats()

    def health(self) -> Health:
        """Whether all is well, and if not, what is the matter. For a readiness probe."""
        problems = self._way.problems()
        return Health(not problems, tuple(problems))

    @property
    def raw_client(self) -> Producer:
        """The confluent_kafka client at this moment. For tests and diagnosis: a fatal error replaces it."""
        return self._way.client

    def _checked(
        self,
        topic: str,
        value: Any,
        key: Any,
        headers: Headers | None,
        partition: int | None,
        timestamp: int | None,
    ) -> Fields:
        if self._plain:
            return checked(topic, value, key, headers, partition, timestamp, self._max_record_bytes, self._overhead)
        if headers is None or isinstance(headers, (Mapping, list, tuple)):
            # A copy: a serializer may add headers, which must not grow into the program's own.
            headers = dict(headers) if isinstance(headers, Mapping) else list(headers or ())
        if self._key_serializer is not None:
            key = _serialized(self._key_serializer, key, topic, MessageField.KEY, headers)
        if self._value_serializer is not None:
            value = _serialized(self._value_serializer, value, topic, MessageField.VALUE, headers)
        return checked(topic, value, key, headers, partition, timestamp, self._max_record_bytes, self._overhead)

    def _begin_anew(self) -> DirectDelivery:
        with self._begin_anew_lock:
            return self._begin() if isinstance(self._way, _NotYet) else self._way

    def _in_forked_child(self) -> None:
        self._begin_anew_lock = threading.Lock()  # another thread of the parent may have held it
        self._at_exit.cancel()
        if isinstance(self._way, _NotYet):
            return
        closing = self._way.closing
        self._way.disown()
        if not closing:
            self._way = _NotYet(self)


class _NotYet:
    """In a forked child, in the place of the parent's way, until the producer is used."""

    def __init__(self, producer: SafeProducer) -> None:
        self._producer = producer
        self._closed = False
        self.failures = Unobserved(None)
        self.ended = True

    def begin(self) -> DirectDelivery:
        if self._closed:
            raise ClosedError(CLOSED)
        return self._producer._begin_anew()

    def send(self, fields: Fields) -> Receipt:
        return self.begin().send(fields)

    def produce(self, fields: Fields, on_delivery: Callable[..., Any]) -> None:
        self.begin().produce(fields, on_delivery)

    def __len__(self) -> int:
        return 0

    def flush(self, timeout: float | None) -> int:
        return 0

    def poll(self, timeout: float | None) -> int:
        return 0

    def close(self, timeout: float) -> None:
        self._closed = True

    def raise_death(self) -> None:
        return

    def stats(self) -> ProducerStats:
        return ProducerStats()

    def problems(self) -> list[str]:
        return [CLOSED] if self._closed else []

    @property
    def client(self) -> Producer:
        return self.begin().client


def _serialized(serialize: Serialize, value: Any, topic: str, field: MessageField, headers: Headers | None) -> Any:
    try:
        if isinstance(serialize, Serializer):
            return serialize(value, SerializationContext(topic, field, headers))  # type: ignore[arg-type]
        return serialize(value)
    except SerializationError as error:
        raise InvalidRecordError(topic, [f"the {field} serializer refused it: {error}"]) from error


def _close_forgotten(way: DirectDelivery, timeout: float) -> None:
    try:
        if way.on_own_thread():  # the last reference went in a delivery callback: the thread can't wait for itself
            atexit.register(_close_forgotten, way, timeout)
            way.begin_close(timeout)
            return
        way.close(timeout)
        way.failures.raise_if_any()
    except UndeliveredError as error:
        emit(Event.UNDELIVERED_AT_EXIT, records=error.count)
    except SafeKafkaError:
        return  # told by an event


def _close_live(**_: Any) -> None:
    for producer in list(_live):
        if not isinstance(producer._way, _NotYet):
            _close_forgotten(producer._way, producer._shutdown_timeout)


_live: weakref.WeakSet[SafeProducer] = weakref.WeakSet()


def _in_forked_child() -> None:
    for producer in list(_live):
        producer._in_forked_child()


os.register_at_fork(after_in_child=_in_forked_child)
