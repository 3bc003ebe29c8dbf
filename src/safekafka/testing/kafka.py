"""A real Kafka cluster for tests: three brokers on this machine, without Docker and without an installed Java.

Who owns what: the brokers are processes in sessions of their own (Ctrl-C does not reach them), ended by `close()` or,
when this process ends in any other way, by the watchdog process (`watched.py`). The cluster belongs to the process that
started it; in a forked child `close()` does nothing. Methods may be called from any thread: one lock guards the
processes, and is not held while waiting for the cluster.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

from confluent_kafka import KafkaException

from safekafka.testing import broker_settings, class_archive
from safekafka.testing.broker_settings import CONTROLLER_ID, Node
from safekafka.testing.cluster_client import ClusterClient
from safekafka.testing.distribution import find_distribution
from safekafka.testing.errors import KafkaClusterError
from safekafka.testing.node import Launch, NodeProcess, format_storage
from safekafka.testing.ports import free_ports
from safekafka.testing.watched import Watched


class KafkaCluster(ClusterClient):
    """Real Apache Kafka brokers on 127.0.0.1, with the durability settings of docker-compose.yml.

    Brokers are numbered 1 to `brokers`, which are also their node ids: `kill(leader_of("orders"))` means what it says.

    - `controller="combined"`: each broker is a controller too, as in the compose file. With two of three dead the
      controllers have no majority either, so nothing moves until one is back.
    - `controller="dedicated"`: one more process (node id 100) is the controller, and no fault touches it. With two
      brokers dead the in-sync replicas shrink, and writes with `acks=all` end in `NOT_ENOUGH_REPLICAS`.
    - `settings`: broker settings on top of all others (`{"message.max.bytes": "100000"}`).
    - `work_dir`: a folder for the logs, which are kept then. Without it logs and data lie in a temporary folder. The
      data is removed at the end in any case.
    - `heap`: of each broker, as Java writes it.

    Raises `KafkaNotAvailableError` from `start_all()` when there is no Kafka and none can be fetched, and
    `KafkaClusterError` with the end of the broker's log when one does not start.
    """

    def __init__(
        self,
        brokers: int = 3,
        controller: Literal["combined", "dedicated"] = "combined",
        settings: Mapping[str, str] | None = None,
        work_dir: Path | None = None,
        heap: str = "384m",
    ) -> None:
        super().__init__()
        if brokers < 1 or brokers >= CONTROLLER_ID:
            raise ValueError(f"brokers={brokers}: between 1 and {CONTROLLER_ID - 1}")
        if controller not in ("combined", "dedicated"):
            raise ValueError(f"controller={controller!r}: 'combined' or 'dedicated'")
        self._lock = threading.RLock()
        self._brokers = brokers
        self._dedicated = controller == "dedicated"
        self._extra = dict(settings or {})
        self._work_dir = work_dir
        self._heap = heap
        self._nodes: dict[int, NodeProcess] = {}
        self._watched: Watched | None = None
        self._folder = self._logs = Path()

    def __enter__(self) -> KafkaCluster:
        self.start_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(self._address(broker) for broker in range(1, self._brokers + 1))

    @property
    def logs(self) -> Path:
        """The folder with one log a process: `broker-1.log`, ..."""
        return self._logs

    def start_all(self, timeout: float = 90.0) -> None:
        """Start all nodes and wait until they are ready. What was started is ended again when that fails."""
        if self._watched is not None:
            raise KafkaClusterError("this cluster was started before")
        distribution = find_distribution()
        options = class_archive.options(distribution)
        try:
            with self._lock:
                self._make_folders()
                scratch = self._folder / "tmp"
                scratch.mkdir()
                self._make_nodes(Launch(distribution, self._heap, scratch, options))
                format_storage(self._nodes.values())
                for node in self._nodes.values():
                    node.start()
            self.wait_ready(timeout)
        except BaseException:  # KeyboardInterrupt too: nobody will call close() for an object they never got
            self.close()
            raise

    def close(self) -> None:
        """End all nodes at once, with SIGKILL, and remove their data. Does nothing in a forked child."""
        watched = self._watched
        if watched is None or watched.owner != os.getpid():
            return
        with self._lock:
            nodes, self._nodes = self._nodes, {}
            for node in nodes.values():
                if node.started:
                    node.signal_end(signal.SIGKILL)
            for node in nodes.values():
                node.await_end()
        self._forget_clients()
        shutil.rmtree(self._folder, ignore_errors=True)
        watched.close()

    def start(self, broker: int) -> None:
        """Start a killed or stopped broker again, on its port and its data. `wait_ready()` tells when it has joined."""
        with self._lock:
            self._node(broker).start()
        self._forget_clients()

    def kill(self, broker: int) -> None:
        """SIGKILL: the broker has no chance to tell anybody. Returns when the process is gone."""
        self._end(broker, signal.SIGKILL, 20.0)

    def stop(self, broker: int, timeout: float = 60.0) -> None:
        """SIGTERM: the broker hands its partitions over and ends; waits for that."""
        self._end(broker, signal.SIGTERM, timeout)

    def pause(self, broker: int) -> None:
        """SIGSTOP: the broker's connections stay open, and nothing answers."""
        with self._lock:
            self._node(broker).pause()
        self._forget_clients()

    def resume(self, broker: int) -> None:
        """SIGCONT, after `pause()`."""
        with self._lock:
            self._node(broker).resume()
        self._forget_clients()

    def running(self) -> list[int]:
        """The brokers whose processes run: neither killed, stopped, paused, nor dead on their own."""
        with self._lock:
            return [i for i, node in sorted(self._nodes.items()) if node.running and node.node.is_broker]

    def data_of(self, broker: int) -> Path:
        """The folder with the broker's data, in it one folder a partition. To look into; to damage while it is down."""
        return self._node(broker).node.data

    def log_tail(self, broker: int, lines: int = 40) -> str:
        """The last lines of the broker's log."""
        return self._node(broker).log_tail(lines)

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait until each running broker serves requests and knows all the others as registered and unfenced, and
        `min.insync.replicas` of a new topic is what the settings say.

        The last is not a formality: a controller with another setting than the brokers overrides theirs (with eligible
        leader replicas), and every durability test would pass without testing anything.
        """
        deadline = time.monotonic() + timeout
        views: dict[int, list[int]] = {}

        def all_joined() -> bool:
            running = self.running()
            views.clear()
            for broker in running:
                views[broker] = self._brokers_seen_by(broker)
                if not set(running) <= set(views[broker]):
                    return False
            return bool(running)

        try:
            self._until("all running brokers to know each other", all_joined, deadline)
        except KafkaClusterError as error:
            self._check()
            seen = "; ".join(f"{broker} sees {seen}" for broker, seen in views.items())
            tails = "\n".join(
                f"--- {node.log} ---\n{node.log_tail(15)}" for node in self._nodes.values() if node.started
            )
            raise KafkaClusterError(f"{error} ({seen or 'none is running'}).\n{tails}") from None
        self._wait_for_min_isr(deadline)

    def heal(self, timeout: float = 90.0) -> None:
        """Resume and start what is paused, dead or stopped, and wait until all replicas of all topics are in sync."""
        deadline = time.monotonic() + timeout
        with self._lock:
            revived = [node for node in self._nodes.values() if node.revive()]
        if revived:
            self._forget_clients()
            self.wait_ready(deadline - time.monotonic())
        self._until("all replicas of all topics to be in sync", lambda: self._all_in_sync(deadline), deadline)

    def _make_folders(self) -> None:
        name = f"safekafka-{secrets.token_hex(6)}"
        if self._work_dir is None:
            self._folder = Path(tempfile.gettempdir()) / name
            self._logs = self._folder / "logs"
        else:
            self._logs = self._work_dir.absolute() / "logs"
            self._work_dir.mkdir(parents=True, exist_ok=True)
            # A new folder, since it is removed at the end: what was in the caller's folder stays.
            self._folder = self._work_dir.absolute() / name
        self._watched = Watched([self._folder])  # first: a signal that comes in between must not leave a folder behind
        self._folder.mkdir(mode=0o700)
        self._logs.mkdir(exist_ok=True)

    def _make_nodes(self, launch: Launch) -> None:
        assert self._watched is not None
        ids = list(range(1, self._brokers + 1)) + [CONTROLLER_ID] * self._dedicated
        ports = iter(free_ports(2 * len(ids)))
        roles = "broker" if self._dedicated else "broker,controller"
        nodes = [
            Node(
                node_id,
                "controller" if node_id == CONTROLLER_ID else roles,
                next(ports),
                next(ports),
                self._folder / f"data-{node_id}",
            )
            for node_id in ids
        ]
        quorum = [node for node in nodes if node.is_controller]
        durable = broker_settings.scaled(broker_settings.durability(broker_settings.compose_text()), self._brokers)
        self._min_isr = self._extra.get("min.insync.replicas", durable["min.insync.replicas"])
        for node in nodes:
            name = f"broker-{node.node_id}" if node.is_broker else f"controller-{node.node_id}"
            process = NodeProcess(node, self._folder / name, self._logs / f"{name}.log", launch, self._watched)
            properties = broker_settings.merged(node, quorum, durable, self._extra)
            process.configure(properties)
            self._nodes[node.node_id] = process

    def _end(self, broker: int, signum: signal.Signals, timeout: float) -> None:
        with self._lock:
            node = self._node(broker)
            node.signal_end(signum)
        node.await_end(timeout)
        self._forget_clients()

    def _node(self, broker: int) -> NodeProcess:
        if not self._nodes:
            raise KafkaClusterError("the cluster is not running")
        if broker == CONTROLLER_ID or broker not in self._nodes:
            raise ValueError(f"there is no broker {broker}: they are numbered 1 to {self._brokers}")
        return self._nodes[broker]

    def _address(self, broker: int) -> str:
        return f"127.0.0.1:{self._node(broker).node.client_port}"

    def _addresses(self) -> list[str]:
        running = self.running()
        if not running:
            raise KafkaClusterError("no broker is running")
        return [self._address(broker) for broker in running]

    def _check(self) -> None:
        with self._lock:
            for node in self._nodes.values():
                if node.crashed:
                    raise node.failure("ended on its own")

    def _brokers_seen_by(self, broker: int) -> list[int]:
        """The unfenced brokers as this one knows them."""
        try:
            return sorted(self._view(self._address(broker)).brokers)
        except KafkaException:
            return []

    def _wait_for_min_isr(self, deadline: float) -> None:
        probe = f"safekafka-probe-{os.urandom(4).hex()}"
        replicas = min(3, len(self.running()))
        self.create_topic(probe, replication_factor=replicas, timeout=deadline - time.monotonic())
        try:
            found = self.topic_setting(probe, "min.insync.replicas")
        finally:
            self.delete_topic(probe)
        if found != self._min_isr:
            raise KafkaClusterError(
                f"min.insync.replicas of a new topic is {found}, although the brokers are set to {self._min_isr}: "
                f"a controller with another setting overrides them"
            )

    def _all_in_sync(self, deadline: float) -> bool:
        return all(
            partition.leader >= 0 and len(partition.isrs) == len(partition.replicas)
            for topic in self._metadata(deadline).topics.values()
            for partition in topic.partitions.values()
        )
