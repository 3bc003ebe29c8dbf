"""`SafeProducer`: the face of the two ways a record can go, directly to the client or through the spool.

Threads: all methods may be called from any thread. The class itself has no thread and no lock; see `direct.py` and
`spool/spooled.py`. A producer belongs to the process that made it; in a forked child it refuses to work and leaves the
parent's records to the parent.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from confluent_kafka import Producer
from confluent_kafka.serialization import MessageField, SerializationContext, SerializationError, Serializer

from safekafka.client import ClusterWatch, build_client
from safekafka.errors import InvalidRecordError, SafeKafkaError, UndeliveredError
from safekafka.producer.direct import DirectDelivery
from safekafka.producer.outcomes import OnUndelivered
from safekafka.producer.receipt import Receipt
from safekafka.record import Headers, checked
from safekafka.settings import producer_settings
from safekafka.spool.config import Spool
from safekafka.spool.journal import RejectedRecord
from safekafka.spool.spooled import SpooledDelivery

if TYPE_CHECKING:
    from typing_extensions import Self

Serialize: TypeAlias = "Callable[[Any], bytes | str | None] | Serializer"
_DEFAULT_MESSAGE_MAX_BYTES = 1_000_000  # librdkafka's message.max.bytes


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
        _positive(delivery_timeout=delivery_timeout, max_block=max_block, shutdown_timeout=shutdown_timeout)
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
                spool if isinstance(spool, Spool) else Spool(Path(spool)),
                max_record_bytes=int(settings.get("message.max.bytes", _DEFAULT_MESSAGE_MAX_BYTES)),
                max_block=max_block,
                on_undelivered=on_undelivered,
            )
        self._pid = os.getpid()
        # Runs when nobody holds the producer any more, and at the interpreter's exit: what is pending is not dropped by
        # forgetting close().
        self._finalizer = weakref.finalize(self, _close_forgotten, self._way, self._pid, shutdown_timeout)
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
        return left

    def close(self, timeout: float | None = None) -> None:
        """Deliver what is pending within `timeout` seconds (default `shutdown_timeout`), then end. Idempotent.

        Without a spool, what was not delivered by then ends as `unknown`, and `UndeliveredError` is raised for what
        nobody observed. With a spool it stays on the disk for the next start.
        """
        if os.getpid() != self._pid:
            return
        self._way.close(self._shutdown_timeout if timeout is None else timeout)
        self._finalizer.detach()
        self._way.failures.raise_if_any()

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
        self._finalizer.detach()
        self._way.disown()


def _positive(**seconds: float) -> None:
    for name, value in seconds.items():
        if not isinstance(value, (int, float)) or not value > 0 or math.isinf(value):
            raise ValueError(f"{name}={value!r}: give a positive number of seconds")


def _serialized(serialize: Serialize, value: Any, topic: str, field: MessageField, headers: Headers | None) -> Any:
    try:
        if isinstance(serialize, Serializer):
            return serialize(value, SerializationContext(topic, field, headers))  # type: ignore[arg-type]
        return serialize(value)
    except SerializationError as error:
        raise InvalidRecordError(topic, [f"the {field} serializer refused it: {error}"]) from error


def _close_forgotten(way: DirectDelivery | SpooledDelivery, pid: int, timeout: float) -> None:
    if os.getpid() != pid:
        return
    try:
        way.close(timeout)
    except SafeKafkaError:
        return  # the last reference went on the delivery thread itself, which goes on and ends with the process


_live: weakref.WeakSet[SafeProducer] = weakref.WeakSet()


def _in_forked_child() -> None:
    for producer in list(_live):
        producer._disown()


os.register_at_fork(after_in_child=_in_forked_child)
