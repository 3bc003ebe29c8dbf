"""Kafka for tests: a real cluster that can be hurt, a mock one that starts in milliseconds.

- `KafkaCluster`: real brokers on this machine, without Docker and without an installed Java. Kill, pause, restart them.
- `ExistingCluster`: the same view of a cluster that runs already.
- `MockCluster`: librdkafka's mock brokers, with errors on command.

The pytest fixtures are in `safekafka.testing.plugin`, which is loaded in every pytest run of an environment that has
safekafka: hence nothing is imported here until it is used. Needs the extra: `pip install 'safekafka[testing]'`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safekafka.testing.cluster_client import ExistingCluster
    from safekafka.testing.errors import KafkaClusterError, KafkaNotAvailableError
    from safekafka.testing.kafka import KafkaCluster
    from safekafka.testing.mock import MockCluster

__all__ = ["ExistingCluster", "KafkaCluster", "KafkaClusterError", "KafkaNotAvailableError", "MockCluster"]

_HOME = {
    "ExistingCluster": "cluster_client",
    "KafkaCluster": "kafka",
    "KafkaClusterError": "errors",
    "KafkaNotAvailableError": "errors",
    "MockCluster": "mock",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = import_module(f"{__name__}.{_HOME[name]}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("safekafka"):
            raise
        raise ModuleNotFoundError(
            f"safekafka.testing needs the package {error.name!r}. Remedy: pip install 'safekafka[testing]'",
            name=error.name,
        ) from error
    return getattr(home, name)
