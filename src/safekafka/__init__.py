"""safekafka: Kafka for services that must not lose a message."""

from safekafka.producer import Delivery, Receipt, SafeProducer
from safekafka.record import Record
from safekafka.spool import Spool

__all__ = ["Delivery", "Receipt", "Record", "SafeProducer", "Spool"]
