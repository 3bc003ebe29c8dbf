"""Handling messages: an offset is committed only when everything before it was handled or safely dead-lettered."""

from safekafka.consumer.consumer import SafeConsumer
from safekafka.consumer.current import current
from safekafka.consumer.retry import Reject, Retry, RetryLater
from safekafka.consumer.stats import ConsumerStats

__all__ = ["ConsumerStats", "Reject", "Retry", "RetryLater", "SafeConsumer", "current"]
