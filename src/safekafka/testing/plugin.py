"""pytest fixtures for code that uses Kafka. Loaded in every pytest run of an environment that has safekafka.

- `kafka_mock`: a `MockCluster` for one test, on ports that no other test of the run had.
- `kafka_cluster`: one real cluster for the session, its brokers running whenever a test begins. With
  `SAFEKAFKA_BOOTSTRAP=host:port` it is that existing cluster, and tests marked `kills_brokers` are skipped, by name.
- `kafka_cluster_dedicated`: one real cluster for a module, with a controller of its own, so that the cluster goes on
  deciding when most brokers are dead. Always started by us; its tests are skipped as well on an existing cluster.
- `topic`: the name of a fresh topic on `kafka_cluster`, 3 partitions, 3 replicas, deleted afterwards.

A cluster that cannot start is an error of each test that asked for it, in CI and elsewhere, never a skip: a suite that
quietly tests nothing is worth less than none.

Runs on pytest's own thread. Nothing but pytest is imported until a fixture is used.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from safekafka.testing import ExistingCluster, KafkaCluster, MockCluster

_BOOTSTRAP = "SAFEKAFKA_BOOTSTRAP"
_CLUSTERS = ("kafka_cluster", "kafka_cluster_dedicated")

# The clusters that are up, by the name of their fixture: they are healed before each test that uses them.
_up: pytest.StashKey[dict[str, ExistingCluster | KafkaCluster]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_up] = {}
    config.addinivalue_line(
        "markers",
        f"kills_brokers: kills, stops or pauses brokers; skipped by name on an existing cluster ({_BOOTSTRAP})",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    existing = os.environ.get(_BOOTSTRAP)
    if not existing:
        return
    for item in items:
        if item.get_closest_marker("kills_brokers") or "kafka_cluster_dedicated" in _fixtures(item):
            # The name is in the reason, since pytest's summary folds skipped tests by reason.
            reason = f"{item.name} needs brokers it may kill, and {_BOOTSTRAP}={existing} names an existing cluster"
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch Kafka before the first test: a download must not count as that test's time, and its progress be seen."""
    if session.config.option.collectonly or not any(_starts_brokers(item) for item in session.items):
        return
    from safekafka.testing import KafkaNotAvailableError
    from safekafka.testing.class_archive import options
    from safekafka.testing.distribution import find_distribution

    with _terminal(session.config), contextlib.suppress(KafkaNotAvailableError):  # the fixture raises it again
        options(find_distribution())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before the fixtures of the test: one test that fails in the middle of its fault must not sink the rest."""
    for name, cluster in item.config.stash[_up].items():
        if name in _fixtures(item):
            cluster.heal()


@pytest.fixture
def kafka_mock(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[MockCluster]:
    """A mock cluster of three brokers in this process, on ports that no other of this pytest run had: a client that a
    test has left behind goes on looking for its brokers, and must not commit or write to those of another test."""
    from safekafka.testing import MockCluster

    folder = tmp_path_factory.getbasetemp()
    if hasattr(pytestconfig, "workerinput"):  # pytest-xdist: its processes have a folder each, in one of all
        folder = folder.parent
    with contextlib.ExitStack() as clusters:
        cluster = clusters.enter_context(MockCluster(brokers=3))
        while not _are_new(cluster.bootstrap_servers, folder / "safekafka-mock-ports"):
            cluster = clusters.enter_context(MockCluster(brokers=3))  # the one before keeps its ports meanwhile
        yield cluster


@pytest.fixture(scope="session")
def kafka_cluster(pytestconfig: pytest.Config) -> Iterator[ExistingCluster | KafkaCluster]:
    """Three real brokers, or the cluster that SAFEKAFKA_BOOTSTRAP names. All running when a test begins."""
    existing = os.environ.get(_BOOTSTRAP)
    if existing:
        from safekafka.testing import ExistingCluster

        cluster = ExistingCluster(existing)
        cluster.wait_ready()
        yield cluster
        return
    from safekafka.testing import KafkaCluster

    with KafkaCluster() as started, _healed(pytestconfig, "kafka_cluster", started):
        yield started


@pytest.fixture(scope="module")
def kafka_cluster_dedicated(pytestconfig: pytest.Config) -> Iterator[KafkaCluster]:
    """Three real brokers and one controller that faults leave alone. All running when a test begins."""
    from safekafka.testing import KafkaCluster

    with (
        KafkaCluster(controller="dedicated") as started,
        _healed(pytestconfig, "kafka_cluster_dedicated", started),
    ):
        yield started


@pytest.fixture
def topic(request: pytest.FixtureRequest, kafka_cluster: ExistingCluster | KafkaCluster) -> Iterator[str]:
    """A fresh topic, named after the test: 3 partitions, replicated threefold, all in sync."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", request.node.name)[:100]
    name = f"{readable}-{os.urandom(4).hex()}"
    kafka_cluster.create_topic(name, partitions=3)
    yield name
    kafka_cluster.heal()  # the test may have left too few brokers to delete anything
    kafka_cluster.delete_topic(name)


def _are_new(addresses: str, used: Path) -> bool:
    """Whether none of these addresses has been asked about before. `used`: has a file for each that has."""
    used.mkdir(exist_ok=True)
    try:
        for address in addresses.split(","):
            (used / address.rpartition(":")[2]).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _healed(config: pytest.Config, name: str, cluster: KafkaCluster) -> Iterator[None]:
    config.stash[_up][name] = cluster
    try:
        yield
    finally:
        del config.stash[_up][name]


def _fixtures(item: pytest.Item) -> list[str]:
    return list(getattr(item, "fixturenames", ()))


def _starts_brokers(item: pytest.Item) -> bool:
    return not os.environ.get(_BOOTSTRAP) and any(name in _fixtures(item) for name in _CLUSTERS)


def _terminal(config: pytest.Config) -> AbstractContextManager[Any]:
    """Lets through to the terminal what is written within."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    return capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
