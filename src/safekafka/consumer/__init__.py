"""Handling messages: an offset is committed only when everything before it was handled or safely dead-lettered."""

from safekafka.consumer.consumer import SafeConsumer
from safekafka.consumer.retry import Reject, Retry

__all__ = ["Reject", "Retry", "SafeConsumer"]
