"""Records on the local disk until Kafka has them."""

from safekafka.spool.config import Spool

__all__ = ["Spool"]
