"""Who takes part in a benchmark of clients, and where each one lives."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any

from benchmarks.common.environment import SHARED, Environment

_OWN_PROTOCOL = ("aiokafka", "kafka-python")  # the distributions that are not built on confluent-kafka


@dataclass(frozen=True)
class Contestant:
    name: str
    title: str
    home: str  # module and class in `peers`
    distribution: str  # whose version is reported
    how: str
    # Those about as fast as the base get as many records as it does; for the others a calibration finds the number.
    as_many_as_base: bool = False
    environment: Environment = SHARED

    def load_from(self, peers: str) -> Any:
        """Its class, in this package."""
        module, _, name = self.home.partition(":")
        return getattr(import_module(f"{peers}.{module}"), name)

    def versions(self) -> dict[str, str]:
        """Those of the environment that this process runs in."""
        found = {"version": version(self.distribution)}
        if self.distribution not in _OWN_PROTOCOL:
            from confluent_kafka import libversion

            found |= {"confluent_kafka": version("confluent-kafka"), "librdkafka": libversion()[0]}
        return found
