"""What can go wrong with a cluster that is started for tests."""

from __future__ import annotations


class KafkaClusterError(RuntimeError):
    """A broker did not start, died on its own, or did not come to the expected state in time.

    The message ends with the last lines of that broker's log, where there is one.
    """


class KafkaNotAvailableError(KafkaClusterError):
    """There is no Kafka to start: nothing is cached and nothing could be fetched."""
