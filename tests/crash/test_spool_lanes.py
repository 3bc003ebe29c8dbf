"""P5 where processes share a spool: each has a lane, and the lanes of the dead are taken over, by their equals only."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from safekafka.spool.lane import identity_of, lane_folders
from safekafka.testing import MockCluster
from tests.crash.spool_judge import judge
from tests.crash.spool_service import JOURNAL, Service, Worker, count_in, is_locked, left_in
from tests.processes import wait_until

TOPIC, PARTITIONS = "orders", 4
QUICK = ("--adopt", 0.3)


@pytest.fixture
def brokers(kafka_mock: MockCluster) -> MockCluster:
    kafka_mock.create_topic(TOPIC, partitions=PARTITIONS, replication_factor=3)
    return kafka_mock


@pytest.fixture
def other_brokers() -> Iterator[MockCluster]:
    with MockCluster(brokers=3) as cluster:
        cluster.create_topic(TOPIC, partitions=PARTITIONS, replication_factor=3)
        yield cluster


@pytest.fixture
def service(brokers: MockCluster, tmp_path: Path) -> Service:
    return Service(brokers.bootstrap_servers, TOPIC, tmp_path / "service")


@contextlib.contextmanager
def workers(service: Service, *names: str, options: tuple[object, ...] = ()) -> Iterator[list[Worker]]:
    """Started one after another, each when the one before has its lane."""
    with contextlib.ExitStack() as stack:
        started = []
        for name in names:
            started.append(stack.enter_context(service.worker(name, *options)))
            started[-1].wait_ready()
        yield started


def accepted_in_an_outage(service: Service, brokers: MockCluster, *names: str, records: int = 100) -> list[Path]:
    """The lanes that their processes leave, killed."""
    brokers.set_broker_down()
    with workers(service, *names) as started:
        lanes = [lane for worker in started for lane in worker.lanes()]
        for worker in started:
            worker.wait_sent(records)
        service.kill(*started)
    return lanes


def send_a_little(service: Service) -> tuple[str, str]:
    """All of it is delivered. Returns the bootstrap list and the id of the cluster, as noted in the lane."""

    def noted() -> tuple[str, str | None]:
        about = identity_of(service.spool / "lane-0")
        assert about is not None
        return about[1].bootstrap, about[1].cluster

    with workers(service, "first", options=("--count", 50, "--stay")) as (worker,):
        worker.wait(lambda: noted()[1] is not None, "the cluster's id is noted")
        worker.terminate()
        assert worker.ended() == 0, worker.output
    bootstrap, cluster = noted()
    assert cluster is not None
    return bootstrap, cluster


def contents(lane: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in lane.iterdir() if path.name not in ("owner", "lock")}


def test_P5_each_process_has_a_lane_and_a_restart_goes_on_behind_what_was_left_in_one(
    service: Service, brokers: MockCluster
) -> None:
    lanes = accepted_in_an_outage(service, brokers, "first", "second", "third")
    assert len(set(lanes)) == 3
    left = {lane: left_in(lane) for lane in lanes}
    assert all(len(ids) >= 100 for ids in left.values())
    with workers(service, "first", "second", "third") as again:
        assert [worker.lanes() for worker in again] == [[lane] for lane in lanes]  # each its old one, so in its order
        assert all(is_locked(lane) for lane in lanes)
        for worker in again:
            worker.wait_sent(50)
        brokers.set_broker_up()
        for worker in again:
            worker.terminate()  # the library's own end, which delivers what is there
        for worker in again:
            assert worker.ended() == -15, worker.output
    assert lane_folders(service.spool) == lanes
    assert not any(map(left_in, lanes))
    judgement = judge(service)
    judgement.check(duplicates=0)
    assert judgement.report.accepted >= 450


def test_P5_the_lane_of_a_dead_process_is_drained_by_exactly_one_of_the_living(
    service: Service, brokers: MockCluster
) -> None:
    brokers.set_broker_down()
    with workers(service, "first", "second", "third", options=("--rate", 200, *QUICK)) as started:
        victim, *living = started
        (lane,) = victim.lanes()
        for worker in started:
            worker.wait_sent(100)
        left = len(left_in(lane))
        service.kill(victim, beside=living)
        brokers.set_broker_up()
        wait_until(lambda: not count_in(lane), 60, service.outputs)
        for worker in living:
            worker.terminate()
        for worker in living:
            assert worker.ended() == -15, worker.output
    assert left >= 100
    told = [line for line in service.outputs().splitlines() if line.startswith("lane_adopted")]
    assert len(told) == 1, told
    assert str(lane) in told[0]
    judgement = judge(service)
    judgement.check(duplicates=0)  # it died in the outage: nothing of it was on its way


def test_P5_a_process_killed_while_it_sends_leaves_at_most_the_window_twice(
    service: Service, brokers: MockCluster
) -> None:
    with workers(service, "first", "second", "third", options=("--calls", "1,20", "--rate", 500, *QUICK)) as started:
        for worker in started:
            worker.wait_sent(200)
        first, victim, third = started
        (lane,) = victim.lanes()
        service.kill(victim, beside=[first, third])
        wait_until(lambda: not count_in(lane), 60, service.outputs)
        for worker in (first, third):
            worker.terminate()
            assert worker.ended() == -15, worker.output
    judge(service).check()


def test_P5_a_process_that_has_nothing_to_send_drains_the_lanes_of_the_dead(
    service: Service, brokers: MockCluster
) -> None:
    lanes = accepted_in_an_outage(service, brokers, "first", "second")
    brokers.set_broker_up()
    with workers(service, "idle", options=("--count", 0, "--stay", *QUICK)) as (idle,):
        assert idle.lanes() == lanes[:1]
        wait_until(lambda: not any(map(count_in, lanes)), 30, service.outputs)
        brokers.set_broker_down()
        with workers(service, "third") as (third,):
            third.wait_sent(100)
            lane = third.lanes()[-1]
            service.kill(third)
        brokers.set_broker_up()
        wait_until(lambda: not count_in(lane), 30, service.outputs)
    judge(service).check(duplicates=0)


def test_P5_a_process_that_never_sent_anything_drains_the_lane_of_a_sibling_that_dies(
    service: Service, brokers: MockCluster
) -> None:
    with workers(service, "idle", options=("--count", 0, "--stay", *QUICK)):
        (lane,) = accepted_in_an_outage(service, brokers, "first")
        brokers.set_broker_up()
        wait_until(lambda: not count_in(lane), 30, service.outputs)
    judge(service).check(duplicates=0)


def test_P5_the_lane_of_another_cluster_is_left_whole(
    service: Service, brokers: MockCluster, other_brokers: MockCluster, tmp_path: Path
) -> None:
    bootstrap, _ = send_a_little(service)
    (lane,) = accepted_in_an_outage(service, brokers, "first")
    before, ids = contents(lane), left_in(lane)
    elsewhere = Service(other_brokers.bootstrap_servers, TOPIC, tmp_path / "elsewhere")
    elsewhere.spool = service.spool
    with workers(elsewhere, "stranger", options=("--rate", 200, *QUICK)) as (stranger,):
        assert f"lane_foreign lane='{lane}'" in stranger.output
        assert bootstrap in stranger.output
        stranger.wait_sent(200)  # longer than three looks for the lanes of dead processes
        stranger.terminate()
        assert stranger.ended() == -15, stranger.output
        assert "lane_adopted" not in stranger.output
    assert contents(lane) == before
    judge(elsewhere).check(duplicates=0)
    brokers.set_broker_up()
    service.drain("first")
    assert len(ids) >= 100
    judge(service).check()


def test_P5_the_lane_of_another_spool_name_is_left_whole(
    service: Service, brokers: MockCluster, tmp_path: Path
) -> None:
    (lane,) = accepted_in_an_outage(service, brokers, "first")
    brokers.set_broker_up()
    before = contents(lane)
    audit = Service(brokers.bootstrap_servers, TOPIC, tmp_path / "audit", spool_name="audit")
    audit.spool = service.spool
    with workers(audit, "stranger", options=("--rate", 200, *QUICK)) as (stranger,):
        assert f"lane_foreign lane='{lane}'" in stranger.output
        assert "'default'" in stranger.output
        stranger.wait_sent(200)
        stranger.terminate()
        assert stranger.ended() == -15, stranger.output
        assert "lane_adopted" not in stranger.output
    assert contents(lane) == before
    service.drain("first")
    service.ledgers.update(audit.ledgers)  # both are in the one topic
    judge(service).check(duplicates=0)


class Address:
    """A port of ours that leads to the first broker of one cluster or another: the same `bootstrap.servers` for both.
    Further connections go where the cluster says."""

    def __init__(self, cluster: MockCluster) -> None:
        self.leads_to(cluster)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.servers = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def leads_to(self, cluster: MockCluster) -> None:
        host, port = cluster.bootstrap_servers.split(",")[0].rsplit(":", 1)
        self._target = host, int(port)

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client, self._target), daemon=True).start()

    @staticmethod
    def _forward(client: socket.socket, target: tuple[str, int]) -> None:
        with (
            client,
            contextlib.suppress(OSError),
            socket.create_connection(target) as broker,
            selectors.DefaultSelector() as selector,
        ):
            ends = {client: broker, broker: client}
            for end in ends:
                selector.register(end, selectors.EVENT_READ, end)
            while True:
                for key, _ in selector.select():
                    data = key.data.recv(65536)
                    if not data:
                        return
                    ends[key.data].sendall(data)


@pytest.fixture
def address(brokers: MockCluster) -> Iterator[Address]:
    address = Address(brokers)
    yield address
    address.close()


def test_P5_nothing_is_sent_to_another_cluster_that_took_the_place_of_ours(
    brokers: MockCluster, other_brokers: MockCluster, address: Address, tmp_path: Path
) -> None:
    service = Service(address.servers, TOPIC, tmp_path / "service")
    _, ours = send_a_little(service)
    (lane,) = accepted_in_an_outage(service, brokers, "first")
    brokers.set_broker_up()
    ids = left_in(lane)

    address.leads_to(other_brokers)
    for options in ((), ("--count", 0)):
        with service.worker("first", *options) as worker:
            assert worker.ended(30) == 1, worker.output
            assert "thread_died" in worker.output
            assert f"for the cluster {ours}, and the brokers are those of the cluster mockCluster" in worker.output
            service.note_kill(worker)
    assert set(ids) <= set(left_in(lane))
    elsewhere = Service(other_brokers.bootstrap_servers, TOPIC, tmp_path / "elsewhere")
    assert judge(elsewhere).report.unexpected == 0, "something was sent"

    address.leads_to(brokers)
    service.drain("first")
    judge(service).check(duplicates=0)


def test_an_empty_lane_of_a_cluster_that_was_replaced_is_used_for_the_new_one(
    brokers: MockCluster, other_brokers: MockCluster, address: Address, tmp_path: Path
) -> None:
    """As on a developer's machine, where the cluster is set up anew at the same address."""
    service = Service(address.servers, TOPIC, tmp_path / "service")
    send_a_little(service)
    address.leads_to(other_brokers)
    elsewhere = Service(address.servers, TOPIC, tmp_path / "elsewhere")
    elsewhere.spool = service.spool
    with workers(elsewhere, "second", options=("--count", 50)) as (worker,):
        assert worker.ended() == 0, worker.output
    assert [lane.name for lane in lane_folders(service.spool)] == ["lane-0"]
    judge(elsewhere).check(duplicates=0)
    assert judge(elsewhere).report.in_kafka == 50


def test_P5_a_number_is_never_used_twice_however_a_process_ends(service: Service, brokers: MockCluster) -> None:
    """Orderly, killed, killed between the commit and the mark of the highest number, with the journal taken away."""
    lane = service.spool / "lane-0"
    with workers(service, "first", options=("--count", 30)) as (worker,):
        assert worker.ended() == 0, worker.output
    with workers(service, "first") as (worker,):
        worker.wait_sent(30)
        service.kill(worker)
    for point in ("after_append_before_commit:10", "after_commit_before_high:10", "after_delete:2"):
        with service.worker("first", crash=point) as worker:
            service.wait_crashed(worker)
    with workers(service, "first", options=("--count", 0)) as (worker,):
        assert worker.ended() == 0, worker.output
    for file in lane.glob(f"{JOURNAL}*"):
        file.unlink()
    with workers(service, "first", options=("--count", 30)) as (worker,):
        assert worker.ended() == 0, worker.output
    assert [lane.name for lane in lane_folders(service.spool)] == ["lane-0"]
    judgement = judge(service)
    judgement.check()  # an id that stands for two records is a problem there
