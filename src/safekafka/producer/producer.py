"""`SafeProducer`: the face of the two ways a record can go, directly to the client or through the spool.

Threads: all methods may be called from any thread. The class itself has no thread and no lock; see `direct.py` and
`spool/spooled.py`. A producer belongs to the process that made it; in a forked child it refuses to work and leaves the
parent's records to the parent.
"""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable, Mapping
from multiprocessing.util import Finalize
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from confluent_kafka import Producer
from confluent_kafka.serialization import MessageField, SerializationContext, SerializationError, Serializer

from safekafka.client import ClusterWatch, build_client
from safekafka.errors import InvalidRecordError, SafeKafkaError, UndeliveredError
from safekafka.observe import Event, emit
from safekafka.producer.direct import DirectDelivery
from safekafka.producer.outcomes import OnUndelivered
from safekafka.producer.receipt import Receipt
from safekafka.record import Headers, checked
from safekafka.settings import message_max_bytes, positive, producer_settings
from safekafka.spool.config import Spool
from safekafka.spool.journal import RejectedRecord
from safekafka.spool.spooled import SpooledDelivery

if TYPE_CHECKING:
    from typing_extensions import Self

Serialize: TypeAlias = "Callable[[Any], bytes | str | None] | Serializer"


class SafeProducer:
    """Sends records to Kafka so that each ends in exactly one known outcome: delivered, failed, or unknown.

    `config` takes librdkafka's names. acks=all and idempotence are set; values that could lose a record raise
    `UnsafeConfigError`.

    `spool`: a folder (or `Spool`). When `send()` returns, the record is on the local disk; it survives the death of the
    process and an outage of any length, and is sent by the next start if not by this one.
    `delivery_timeout`: seconds after which a record without a verdict ends as `unknown` (no spool; with one, records
    never expire).
    `max_block`: the longest `send()` waits for room, in seconds, before it raises `BufferFullError` or
    `SpoolFullError`.
    `on_undelivered(record, error)`: called on the delivery thread for each record that ended as failed or unknown. What
    it does not handle (none given, or it raises), and nobody looked at, is raised by the next `flush()` or `close()`.
    `key_serializer`, `value_serializer`: confluent_kafka serializers or plain callables; their errors surface from
    `send()`.
    `shutdown_timeout`: seconds that `close()` and the interpreter's exit take at most for what is still pending.

    Thread safe. Raises `UnsafeConfigError`, `SpoolUnusableError`, `SpoolLockedError`, `SpoolCorruptError`.
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
    ) -> None:
        positive(delivery_timeout=delivery_timeout, max_block=max_block, shutdown_timeout=shutdown_timeout)
        settings, problems = producer_settings(config, spooled=spool is not None)

        def make_client() -> tuple[Producer, ClusterWatch]:
            return build_client(Producer, settings, problems)

        self._key_serializer = key_serializer
        self._value_serializer = value_serializer
        self._shutdown_timeout = shutdown_timeout
        self._way: DirectDelivery | SpooledDelivery
        if spool is None:
            client, watch = make_client()
            self._way = DirectDelivery(
                client,
                watch,
                delivery_timeout=delivery_timeout,
                max_block=max_block,
                on_undelivered=on_undelivered,
            )
        else:
            self._way = SpooledDelivery(
                make_client,
                spool if isinstance(spool, Spool) else Spool(spool),
                max_record_bytes=message_max_bytes(settings),
                max_block=max_block,
                on_undelivered=on_undelivered,
            )
        # Runs when nobody holds the producer any more, and at the exit of the interpreter or of a multiprocessing child
        # (which never runs atexit): what is pending is not dropped because close() was forgotten.
        self._at_exit = Finalize(self, _close_forgotten, args=(self._way, shutdown_timeout), exitpriority=10)
        _live.add(self)

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
        if self._key_serializer is not None:
            key = _serialized(self._key_serializer, key, topic, MessageField.KEY, headers)
        if self._value_serializer is not None:
            value = _serialized(self._value_serializer, value, topic, MessageField.VALUE, headers)
        return self._way.send(checked(topic, value, key, headers, partition, timestamp))

    def flush(self, timeout: float | None = None) -> int:
        """Wait for every record sent before this call, at most `timeout` seconds. Returns how many of them are still
        pending.

        Raises `UndeliveredError` for failures that nobody observed.
        """
        left = self._way.flush(timeout)
        self._way.failures.raise_if_any()
        self._way.raise_death()
        return left

    def close(self, timeout: float | None = None) -> None:
        """Deliver what is pending within `timeout` seconds (default `shutdown_timeout`), then end. Idempotent.

        Without a spool, what was not delivered by then ends as `unknown`, and `UndeliveredError` is raised for what
        nobody observed. With a spool it stays on the disk for the next start.
        """
        timeout = self._shutdown_timeout if timeout is None else timeout
        if timeout < 0:
            raise ValueError(f"timeout={timeout!r}: give the seconds that close() may take, 0 or more")
        self._way.close(timeout)
        if self._way.ended:
            self._at_exit.cancel()
        self._way.failures.raise_if_any()
        self._way.raise_death()

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

    def __len__(self) -> int:
        """Records accepted and not yet known to be delivered."""
        return len(self._way)

    def rejected(self) -> list[RejectedRecord]:
        """Records of the spool that Kafka can never take, oldest first. Empty without a spool."""
        return self._way.rejected() if isinstance(self._way, SpooledDelivery) else []

    @property
    def raw_client(self) -> Producer:
        """The confluent_kafka client at this moment. For tests and diagnosis: a fatal error replaces it."""
        return self._way.client

    def _disown(self) -> None:
        self._at_exit.cancel()
        self._way.disown()


def _serialized(serialize: Serialize, value: Any, topic: str, field: MessageField, headers: Headers | None) -> Any:
    try:
        if isinstance(serialize, Serializer):
            return serialize(value, SerializationContext(topic, field, headers))  # type: ignore[arg-type]
        return serialize(value)
    except SerializationError as error:
        raise InvalidRecordError(topic, [f"the {field} serializer refused it: {error}"]) from error


def _close_forgotten(way: DirectDelivery | SpooledDelivery, timeout: float) -> None:
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


_live: weakref.WeakSet[SafeProducer] = weakref.WeakSet()


def _in_forked_child() -> None:
    for producer in list(_live):
        producer._disown()


os.register_at_fork(after_in_child=_in_forked_child)
