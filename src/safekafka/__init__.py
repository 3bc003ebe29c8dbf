"""safekafka: Kafka for services that must not lose a message."""

from safekafka.consumer import Reject, Retry, SafeConsumer
from safekafka.errors import (
    BufferFullError,
    ClosedError,
    DeadLetterFailed,
    DeliveryFailed,
    DeliveryUnknown,
    HandlerFailed,
    InvalidRecordError,
    ProducerFatalError,
    SafeKafkaError,
    SettingProblem,
    SpoolCorruptError,
    SpoolFullError,
    SpoolLockedError,
    SpoolUnusableError,
    UndeliveredError,
    UnsafeConfigError,
)
from safekafka.producer import Delivery, Receipt, SafeProducer
from safekafka.record import Record
from safekafka.spool import Spool

__all__ = [
    "BufferFullError",
    "ClosedError",
    "DeadLetterFailed",
    "Delivery",
    "DeliveryFailed",
    "DeliveryUnknown",
    "HandlerFailed",
    "InvalidRecordError",
    "ProducerFatalError",
    "Receipt",
    "Record",
    "Reject",
    "Retry",
    "SafeConsumer",
    "SafeKafkaError",
    "SafeProducer",
    "SettingProblem",
    "Spool",
    "SpoolCorruptError",
    "SpoolFullError",
    "SpoolLockedError",
    "SpoolUnusableError",
    "UndeliveredError",
    "UnsafeConfigError",
]
