"""What a client sees of a cluster, and the topics it makes there: the part that works with any cluster.

Every call here is bounded, and repeats what fails for a moment (a broker just died, a controller is being elected)
until its time is up. Safe to call from any thread; the lock only guards the cached clients and is not held during
requests.

Brokers learn of a change one after another, and a client with several of them asks now this one, now that one: what it
just saw may be gone again. So each broker has a client of its own here. What is read comes from the first that answers;
what is waited for after `create_topic` and `delete_topic` has to be so on all of them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its own names, which it does not re-export
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from safekafka.testing.errors import KafkaClusterError

if TYPE_CHECKING:
    from confluent_kafka.admin import ClusterMetadata, PartitionMetadata  # type: ignore[attr-defined]

T = TypeVar("T")

_REQUEST_TIMEOUT = 3.0  # seconds for one attempt: a paused broker accepts a request and never answers
_VIEW_TIMEOUT = 1.0
_POLL = 0.05

# librdkafka would write to standard error of what a test does on purpose.
_quiet = logging.getLogger("safekafka.testing.librdkafka")
_quiet.setLevel(logging.CRITICAL + 1)

_ENDED_BY_WAITING = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        # The client dropped the broker it had asked, e.g. since new metadata named it otherwise. A newer name.
        getattr(KafkaError, "_DESTROY_BROKER", -137),
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._TRANSPORT,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.NOT_CONTROLLER,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    }
)


def admin_client(bootstrap_servers: str) -> AdminClient:
    """A client for requests to the cluster that keeps quiet about brokers being down."""
    return AdminClient(
        {
            "bootstrap.servers": bootstrap_servers,
            "socket.timeout.ms": int(_REQUEST_TIMEOUT * 1000),
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 200,
            "log_level": 0,
        },
        logger=_quiet,
    )


class ClusterClient:
    """The view of one cluster that `KafkaCluster` and `ExistingCluster` share."""

    def __init__(self) -> None:
        self._client_lock = threading.Lock()
        self._clients: dict[str, AdminClient] = {}
        self._clients_of = os.getpid()

    @property
    def bootstrap_servers(self) -> str:
        """`host:port,...` of all brokers."""
        raise NotImplementedError

    def create_topic(
        self,
        name: str,
        partitions: int = 1,
        replication_factor: int | None = None,
        config: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        """Create a topic, and return when each partition has a leader and all its replicas in sync.

        The replication factor defaults to 3, or to the number of brokers where there are fewer.
        """
        deadline = time.monotonic() + timeout
        if replication_factor is None:
            replication_factor = min(3, len(self._metadata(deadline).brokers))
        topic = NewTopic(
            name, num_partitions=partitions, replication_factor=replication_factor, config=dict(config or {})
        )
        attempts = 0

        def create() -> None:
            nonlocal attempts
            attempts += 1
            try:
                self._admin().create_topics([topic], operation_timeout=_REQUEST_TIMEOUT)[name].result()
            except KafkaException as error:
                # An earlier attempt whose answer did not arrive may have made it.
                if attempts == 1 or _code(error) != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise

        self._attempt(f"create topic {name}", create, deadline)
        self._until(
            f"all {partitions} partitions of {name} with a leader and {replication_factor} in-sync replicas",
            lambda: all(_in_sync(view, name, partitions, replication_factor) for view in self._views(deadline)),
            deadline,
        )

    def delete_topic(self, name: str, timeout: float = 30.0) -> None:
        """Delete a topic, and return when it is not to be seen any more. One that is not there is no error."""
        deadline = time.monotonic() + timeout

        def delete() -> None:
            try:
                self._admin().delete_topics([name], operation_timeout=_REQUEST_TIMEOUT)[name].result()
            except KafkaException as error:
                if _code(error) != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise

        self._attempt(f"delete topic {name}", delete, deadline)
        self._until(
            f"topic {name} to be gone",
            lambda: all(name not in view.topics for view in self._views(deadline)),
            deadline,
        )

    def leader_of(self, topic: str, partition: int = 0, timeout: float = 15.0) -> int:
        """The broker that leads the partition; waits while there is none."""
        deadline = time.monotonic() + timeout
        leader = -1

        def found() -> bool:
            nonlocal leader
            leader = self._partition(topic, partition, deadline).leader
            return leader >= 0

        self._until(f"a leader of {topic}[{partition}]", found, deadline)
        return leader

    def isr_of(self, topic: str, partition: int = 0, timeout: float = 15.0) -> list[int]:
        """The brokers that are in sync for the partition, as the cluster says."""
        return sorted(self._partition(topic, partition, time.monotonic() + timeout).isrs)

    def wait_isr(self, topic: str, partition: int, size: int, timeout: float = 30.0) -> None:
        """Wait until exactly `size` replicas of the partition are in sync."""
        deadline = time.monotonic() + timeout
        self._until(
            f"{size} in-sync replicas of {topic}[{partition}]",
            lambda: len(self._partition(topic, partition, deadline).isrs) == size,
            deadline,
        )

    def topic_setting(self, topic: str, name: str, timeout: float = 15.0) -> str:
        """A setting of a topic as it is in force, whichever level it comes from."""
        resource = ConfigResource(ResourceType.TOPIC, topic)
        deadline = time.monotonic() + timeout

        def describe() -> str:
            answer = self._admin().describe_configs([resource], request_timeout=_REQUEST_TIMEOUT)
            return str(answer[resource].result()[name].value)

        return self._attempt(f"describe topic {topic}", describe, deadline)

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait until the cluster answers."""
        self._metadata(time.monotonic() + timeout)

    def heal(self, timeout: float = 60.0) -> None:
        """Undo what an earlier test may have done to the brokers. Nothing, for brokers that are not ours."""

    def _addresses(self) -> list[str]:
        """The brokers to ask, each as `host:port`."""
        raise NotImplementedError

    def _client(self, servers: str) -> AdminClient:
        with self._client_lock:
            if self._clients_of != os.getpid():  # librdkafka's threads do not follow a fork
                self._clients, self._clients_of = {}, os.getpid()
            if servers not in self._clients:
                self._clients[servers] = admin_client(servers)
            return self._clients[servers]

    def _forget_clients(self) -> None:
        """To be called when a broker ends or starts: its client may have turned to another one meanwhile."""
        with self._client_lock:
            self._clients = {}

    def _admin(self) -> AdminClient:
        """A client for requests that change something."""
        return self._client(",".join(self._addresses()))

    def _view(self, address: str) -> ClusterMetadata:
        # Of all topics, since asking for one would create it on a cluster that allows that.
        return self._client(address).list_topics(timeout=_VIEW_TIMEOUT)

    def _views(self, deadline: float) -> list[ClusterMetadata]:
        """What each broker knows that answers."""

        def ask_all() -> list[ClusterMetadata]:
            answers = []
            for address in self._addresses():
                try:
                    answers.append(self._view(address))
                except KafkaException as error:
                    silent = error
            if not answers:
                raise silent
            return answers

        return self._attempt("read metadata", ask_all, deadline)

    def _metadata(self, deadline: float) -> ClusterMetadata:
        def ask_one() -> ClusterMetadata:
            for address in self._addresses():
                try:
                    return self._view(address)
                except KafkaException as error:
                    silent = error
            raise silent

        return self._attempt("read metadata", ask_one, deadline)

    def _partition(self, topic: str, partition: int, deadline: float) -> PartitionMetadata:
        def find() -> PartitionMetadata:
            found = self._metadata(deadline).topics.get(topic)
            if found is None or partition not in found.partitions:
                raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
            return found.partitions[partition]

        return self._attempt(f"find {topic}[{partition}]", find, deadline)

    def _check(self) -> None:
        """Called while waiting; raises when waiting is in vain."""

    def _attempt(self, what: str, request: Callable[[], T], deadline: float) -> T:
        while True:
            self._check()
            try:
                return request()
            except KafkaException as error:
                if _code(error) not in _ENDED_BY_WAITING or time.monotonic() > deadline:
                    raise KafkaClusterError(f"could not {what}: {error.args[0]}") from error
            time.sleep(_POLL)

    def _until(self, what: str, condition: Callable[[], bool], deadline: float) -> None:
        while not condition():
            self._check()
            if time.monotonic() > deadline:
                raise KafkaClusterError(f"waited in vain for {what}")
            time.sleep(_POLL)


class ExistingCluster(ClusterClient):
    """A cluster that runs already, e.g. the one of docker-compose.yml. Its brokers are not ours to kill."""

    def __init__(self, bootstrap_servers: str) -> None:
        super().__init__()
        self._servers = bootstrap_servers

    @property
    def bootstrap_servers(self) -> str:
        return self._servers

    def _addresses(self) -> list[str]:
        return self._servers.split(",")


def _in_sync(view: ClusterMetadata, topic: str, partitions: int, replicas: int) -> bool:
    found = view.topics.get(topic)
    return (
        found is not None
        and len(found.partitions) == partitions
        and all(p.leader >= 0 and len(p.isrs) == replicas for p in found.partitions.values())
    )


def _code(error: KafkaException) -> int:
    return int(error.args[0].code())
