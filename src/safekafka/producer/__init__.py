"""Sending records: every one that is accepted ends in exactly one known outcome."""

from safekafka.producer.health import Health, ProducerStats
from safekafka.producer.producer import SafeProducer
from safekafka.producer.receipt import Delivery, Receipt

__all__ = ["Delivery", "Health", "ProducerStats", "Receipt", "SafeProducer"]
