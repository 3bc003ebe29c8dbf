"""The settings of the brokers that tests run on, in three layers that must not mix.

1. *Durability*: what `docker-compose.yml` says in its `KAFKA_*` environment. What is tested is what that file says.
2. *Addresses and paths*: where this run's nodes live. They replace those of the compose file.
3. *Test speed*: `TEST_SPEED`, a closed list. None of it may weaken what a broker promises; a test holds that.

Pure but for `compose_text()`: values in, values out, no thread and no process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CONTROLLER_ID = 100
"""The node id of the dedicated controller; brokers count from 1."""

ADDRESSES_AND_PATHS = frozenset(
    {
        "advertised.listeners",
        "controller.listener.names",
        "controller.quorum.voters",
        "inter.broker.listener.name",
        "listener.security.protocol.map",
        "listeners",
        "log.dirs",
        "node.id",
        "process.roles",
    }
)

TEST_SPEED: Mapping[str, str] = {
    # A dead broker is noticed in 3 s instead of 9, a dead controller in 1 s instead of 2: on loopback a heartbeat
    # is late only when its sender is gone.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "controller.quorum.election.timeout.ms": "500",
    "controller.quorum.fetch.timeout.ms": "1000",
    # A follower that stopped fetching leaves the in-sync replicas after 3 s instead of 30. When it leaves earlier,
    # min.insync.replicas refuses earlier: the promise to the producer is the same.
    "replica.lag.time.max.ms": "3000",
    # Groups form at once, and a dead member is missed in 6 s. The bounds allow clients to ask for as little; the
    # group.consumer.* settings are those of KIP-848, where the broker decides (45 s by default).
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.session.timeout.ms": "6000",
    "group.consumer.heartbeat.interval.ms": "1000",
    "group.consumer.min.heartbeat.interval.ms": "1000",
    # 3 partitions instead of 50 in each internal topic: as many copies, fewer of them to open and to hand over.
    "offsets.topic.num.partitions": "3",
    "transaction.state.log.num.partitions": "3",
    "share.coordinator.state.topic.num.partitions": "3",
    # The compaction buffer is 128 MB by default, a third of the heap these brokers get.
    "log.cleaner.dedupe.buffer.size": "4194304",
}

# Settings of the image's launcher, which it does not pass to the broker.
_LAUNCHER = frozenset(
    {
        "KAFKA_GC_LOG_OPTS",
        "KAFKA_HEAP_OPTS",
        "KAFKA_JMX_HOSTNAME",
        "KAFKA_JMX_OPTS",
        "KAFKA_JVM_PERFORMANCE_OPTS",
        "KAFKA_LOG4J_LOGGERS",
        "KAFKA_LOG4J_OPTS",
        "KAFKA_LOG4J_ROOT_LOGLEVEL",
        "KAFKA_OPTS",
        "KAFKA_TOOLS_LOG4J_LOGLEVEL",
        "KAFKA_VERSION",
    }
)

# Counts of replicas: they cannot exceed the number of brokers, and requiring all of a single one is all there is.
_REPLICATION = (
    "default.replication.factor",
    "offsets.topic.replication.factor",
    "share.coordinator.state.topic.replication.factor",
    "transaction.state.log.replication.factor",
)
_MIN_ISR = (
    "min.insync.replicas",
    "share.coordinator.state.topic.min.isr",
    "transaction.state.log.min.isr",
)


@dataclass(frozen=True)
class Node:
    """One Kafka process: where it listens on 127.0.0.1, and where its data lies."""

    node_id: int
    roles: str  # "broker,controller" | "broker" | "controller"
    client_port: int  # unused on a controller
    controller_port: int  # unused on a plain broker
    data: Path

    @property
    def is_broker(self) -> bool:
        return "broker" in self.roles

    @property
    def is_controller(self) -> bool:
        return "controller" in self.roles


def compose_text() -> str:
    """The compose file: beside this module in an installed wheel, at the root of the repository in a checkout."""
    installed = Path(__file__).with_name("docker-compose.yml")
    checkout = Path(__file__).resolve().parents[3] / "docker-compose.yml"
    return (installed if installed.is_file() else checkout).read_text(encoding="utf-8")


def property_name(variable: str) -> str:
    """`KAFKA_FOO_BAR` -> `foo.bar`, with `__` for `_` and `___` for `-`, as the official image translates it."""
    name = variable.removeprefix("KAFKA_").lower().replace("_", ".")
    return name.replace("...", "-").replace("..", "_")


def broker_properties(environment: Mapping[str, Any]) -> dict[str, str]:
    """The broker properties that the official image makes of a container's environment."""
    return {
        property_name(name): str(value)
        for name, value in environment.items()
        if name.startswith("KAFKA_") and name not in _LAUNCHER
    }


def durability(compose: str) -> dict[str, str]:
    """The first layer: what all services of a compose file have in common, addresses and paths left out.

    Raises `ValueError` when the services differ: then there is no one answer to what the cluster promises.
    """
    services = yaml.safe_load(compose)["services"]
    layers = {
        name: {
            key: value
            for key, value in broker_properties(service["environment"]).items()
            if key not in ADDRESSES_AND_PATHS
        }
        for name, service in services.items()
    }
    first, *others = layers
    for other in others:
        if layers[other] != layers[first]:
            differing = sorted(key for key, _ in layers[other].items() ^ layers[first].items())
            raise ValueError(f"services {first} and {other} differ in {', '.join(sorted(set(differing)))}")
    return layers[first]


def scaled(layer: Mapping[str, str], brokers: int) -> dict[str, str]:
    """The durability layer for a cluster of another size: no more replicas than there are brokers."""
    result = dict(layer)
    for key in (*_REPLICATION, *_MIN_ISR):
        if key in result:
            result[key] = str(min(int(result[key]), brokers))
    return result


def addresses(node: Node, quorum: list[Node]) -> dict[str, str]:
    """The second layer: everything on 127.0.0.1, and a fixed quorum, so that every node knows it from the start."""
    listeners = []
    if node.is_broker:
        listeners.append(f"CLIENT://127.0.0.1:{node.client_port}")
    if node.is_controller:
        listeners.append(f"CONTROLLER://127.0.0.1:{node.controller_port}")
    result = {
        "node.id": str(node.node_id),
        "process.roles": node.roles,
        "listeners": ",".join(listeners),
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": ",".join(f"{v.node_id}@127.0.0.1:{v.controller_port}" for v in quorum),
        "log.dirs": str(node.data),
    }
    if node.is_broker:
        result["advertised.listeners"] = listeners[0]
        result["inter.broker.listener.name"] = "CLIENT"
    return result


def merged(node: Node, quorum: list[Node], durable: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """All layers of one node. Every node gets all of them, a dedicated controller included: it decides on topics.

    `extra` is what the caller of `KafkaCluster` asks for on top, and wins.
    """
    return {**durable, **TEST_SPEED, **addresses(node, quorum), **extra}


def as_properties_file(properties: Mapping[str, str]) -> str:
    """A Java properties file. Backslashes would start an escape there."""
    return "".join(f"{key}={value}\n".replace("\\", "\\\\") for key, value in sorted(properties.items()))
