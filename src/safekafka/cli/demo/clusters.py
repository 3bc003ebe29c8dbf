"""The demo's brokers, real or mock, behind one face.

Threads: all calls come from the main thread. `RealBrokers` waits for a restarted broker on a daemon thread of its own,
which tells of a failure by assigning `_failure`.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from safekafka.testing import MockCluster

if TYPE_CHECKING:
    from safekafka.testing import KafkaCluster

BrokerState: TypeAlias = Literal["up", "down", "starting"]
_READY_SECONDS = 90.0


class Brokers(Protocol):
    """Three brokers that can be hurt. A context manager: they run inside it."""

    def __enter__(self) -> Brokers: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    @property
    def bootstrap_servers(self) -> str: ...
    def create_topic(self, name: str, partitions: int) -> None: ...
    def leader_of(self, topic: str) -> int:
        """The broker that leads the topic's first partition."""

    def kill(self, broker: int) -> None: ...
    def start(self, broker: int) -> None: ...
    def states(self) -> dict[int, BrokerState]:
        """Raises what went wrong with a broker that was started again."""

    def settle(self) -> None:
        """Wait until all brokers are up, so that everything can be read."""

    def keep_logs(self, folder: Path) -> None: ...


class RealBrokers:
    def __init__(self) -> None:
        from safekafka.testing import KafkaCluster  # needs the extra `testing`, which the mock does without

        self._cluster: KafkaCluster = KafkaCluster()
        self._all: tuple[int, ...] = ()
        self._joining = 0  # the broker that was started again
        self._starting: threading.Thread | None = None
        self._failure: Exception | None = None

    def __enter__(self) -> RealBrokers:
        self._cluster.start_all()
        self._all = tuple(self._cluster.running())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cluster.close()

    @property
    def bootstrap_servers(self) -> str:
        return self._cluster.bootstrap_servers

    def create_topic(self, name: str, partitions: int) -> None:
        self._cluster.create_topic(name, partitions=partitions, replication_factor=3)

    def leader_of(self, topic: str) -> int:
        return self._cluster.leader_of(topic)

    def kill(self, broker: int) -> None:
        self._cluster.kill(broker)

    def start(self, broker: int) -> None:
        self._cluster.start(broker)
        self._joining = broker
        self._starting = threading.Thread(target=self._wait_until_joined, name="demo-broker-start", daemon=True)
        self._starting.start()

    def states(self) -> dict[int, BrokerState]:
        if self._failure is not None:
            raise self._failure
        states: dict[int, BrokerState] = dict.fromkeys(self._all, "down")
        states.update(dict.fromkeys(self._cluster.running(), "up"))
        if self._starting is not None and self._starting.is_alive():
            states[self._joining] = "starting"
        return states

    def settle(self) -> None:
        if self._starting is not None:
            self._starting.join(_READY_SECONDS)
        self._cluster.heal()

    def keep_logs(self, folder: Path) -> None:
        shutil.copytree(self._cluster.logs, folder / "brokers", dirs_exist_ok=True)

    def _wait_until_joined(self) -> None:
        try:
            self._cluster.wait_ready(_READY_SECONDS)
        except Exception as error:  # noqa: BLE001 - raised on the main thread by states()
            self._failure = error


class MockBrokers:
    """In this process. "Killed" means: connections cut and refused; what the broker leads waits for it."""

    def __init__(self) -> None:
        self._cluster = MockCluster(brokers=3)
        self._down: set[int] = set()

    def __enter__(self) -> MockBrokers:
        self._cluster.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cluster.close()

    @property
    def bootstrap_servers(self) -> str:
        return self._cluster.bootstrap_servers

    def create_topic(self, name: str, partitions: int) -> None:
        self._cluster.create_topic(name, partitions)

    def leader_of(self, topic: str) -> int:
        return 1  # the mock spreads leaders over all brokers, so each leads some of the topic

    def kill(self, broker: int) -> None:
        self._cluster.set_broker_down(broker)
        self._down.add(broker)

    def start(self, broker: int) -> None:
        self._cluster.set_broker_up(broker)
        self._down.discard(broker)

    def states(self) -> dict[int, BrokerState]:
        return {broker: "down" if broker in self._down else "up" for broker in range(1, self._cluster.brokers + 1)}

    def settle(self) -> None:
        return

    def keep_logs(self, folder: Path) -> None:
        return
