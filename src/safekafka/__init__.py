"""safekafka: Kafka for services that must not lose a message.

The names are looked up at first use: pytest and the command line import this package before they know whether they
need a Kafka client, whose import takes a third of a second.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safekafka.consumer import ConsumerStats, Reject, Retry, RetryLater, SafeConsumer, current
    from safekafka.deadletter.config import DeadLetter
    from safekafka.errors import (
        BufferFullError,
        ClosedError,
        ConsumerAuthorizationError,
        ConsumerFencedError,
        DeadLetterFailed,
        DeliveryFailed,
        DeliveryUnknown,
        HandlerFailed,
        InvalidRecordError,
        ProducerFatalError,
        RecordsExpired,
        SafeKafkaError,
        SettingProblem,
        SpoolCorruptError,
        SpoolFullError,
        SpoolLockedError,
        SpoolUnusableError,
        UndeliveredError,
        UnreadableRecordError,
        UnsafeConfigError,
    )
    from safekafka.producer.health import Health, ProducerStats
    from safekafka.producer.producer import SafeProducer
    from safekafka.producer.receipt import Delivery, Receipt
    from safekafka.record import Record
    from safekafka.spool import Spool

__all__ = [
    "BufferFullError",
    "ClosedError",
    "ConsumerAuthorizationError",
    "ConsumerFencedError",
    "ConsumerStats",
    "DeadLetter",
    "DeadLetterFailed",
    "Delivery",
    "DeliveryFailed",
    "DeliveryUnknown",
    "HandlerFailed",
    "Health",
    "InvalidRecordError",
    "ProducerFatalError",
    "ProducerStats",
    "Receipt",
    "Record",
    "RecordsExpired",
    "Reject",
    "Retry",
    "RetryLater",
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
    "UnreadableRecordError",
    "UnsafeConfigError",
    "current",
]

_MODULES = {
    "safekafka.consumer": (
        "ConsumerStats",
        "Reject",
        "Retry",
        "RetryLater",
        "SafeConsumer",
        "current",
    ),
    "safekafka.deadletter.config": ("DeadLetter",),
    "safekafka.errors": (
        "BufferFullError",
        "ClosedError",
        "ConsumerAuthorizationError",
        "ConsumerFencedError",
        "DeadLetterFailed",
        "DeliveryFailed",
        "DeliveryUnknown",
        "HandlerFailed",
        "InvalidRecordError",
        "ProducerFatalError",
        "RecordsExpired",
        "SafeKafkaError",
        "SettingProblem",
        "SpoolCorruptError",
        "SpoolFullError",
        "SpoolLockedError",
        "SpoolUnusableError",
        "UndeliveredError",
        "UnreadableRecordError",
        "UnsafeConfigError",
    ),
    "safekafka.producer.health": ("Health", "ProducerStats"),
    "safekafka.producer.producer": ("SafeProducer",),
    "safekafka.producer.receipt": ("Delivery", "Receipt"),
    "safekafka.record": ("Record",),
    "safekafka.spool": ("Spool",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'safekafka' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
