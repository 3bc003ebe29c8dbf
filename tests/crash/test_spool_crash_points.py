"""P5: a process is killed at each of the points that the spool names (`crashpoint.POINTS`); the next one goes on."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from safekafka.spool.crashpoint import POINTS
from safekafka.testing import MockCluster
from safekafka.testing.mock import ApiKey
from tests.crash.spool_judge import judge
from tests.crash.spool_service import JOURNAL, Service, left_in

TOPIC, PARTITIONS = "orders", 4
AFTER_RESTART = 40  # records that the next process sends


class Scene:
    """The brokers, the service, and what a case has to say to the one who judges."""

    def __init__(self, brokers: MockCluster, service: Service) -> None:
        self.brokers = brokers
        self.service = service
        self.destroyed: frozenset[tuple[str, int]] = frozenset()

    @property
    def lane(self) -> Path:
        return self.service.spool / "lane-0"

    def accept_in_an_outage(self, *names: str, records: int = 200, size: int = 0, calls: str = "1") -> None:
        """Killed while no broker answers, so all of it is left on the disk."""
        self.brokers.set_broker_down()
        with contextlib.ExitStack() as stack:
            workers = []
            for name in names:  # the first has lane-0, and takes it again
                workers.append(stack.enter_context(self.service.worker(name, "--size", size, "--calls", calls)))
                workers[-1].wait_ready()
            for worker in workers:
                worker.wait_sent(records)
            self.service.kill(*workers)
        self.brokers.set_broker_up()


def nothing(scene: Scene) -> None:
    return


def an_orphan(scene: Scene) -> None:
    scene.accept_in_an_outage("first")


def two_orphans(scene: Scene) -> None:
    scene.accept_in_an_outage("first", "sibling")


def a_large_backlog(scene: Scene) -> None:
    scene.accept_in_an_outage("first", records=5_500, size=1_000, calls="500")


def a_refusal(scene: Scene) -> None:
    """Of the first record, in its batch and then alone."""
    scene.brokers.push_request_errors(ApiKey.Produce, *[KafkaError.MSG_SIZE_TOO_LARGE] * 2)


def a_damaged_file(scene: Scene) -> None:
    """A page in the middle of the journal is overwritten."""
    scene.accept_in_an_outage("first", records=600)
    before = set(left_in(scene.lane))
    with contextlib.closing(sqlite3.connect(scene.lane / JOURNAL)) as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = file.execute("PRAGMA page_size").fetchone()
        (pages,) = file.execute("PRAGMA page_count").fetchone()
    with (scene.lane / JOURNAL).open("r+b") as journal:
        journal.seek(size * (pages // 2))
        journal.write(b"\xff" * size)
    readable = set()
    with contextlib.closing(sqlite3.connect(scene.lane / JOURNAL)) as file:
        for one in before:
            with contextlib.suppress(sqlite3.DatabaseError):
                if file.execute("SELECT fields FROM record WHERE seq = ?", (one.split("-")[1],)).fetchone():
                    readable.add(one)
    numbers = sorted(int(one.split("-")[1]) for one in before - readable)
    assert 1 <= len(numbers) < 100, "one page is damaged, not the table"
    scene.destroyed = frozenset(("first", number - 1) for number in numbers)  # the first record has number 1 there


def lane_without_identity(scene: Scene) -> None:
    assert scene.lane.is_dir()
    assert not (scene.lane / "lane.json").exists()


def two_journals(scene: Scene) -> None:
    assert (scene.lane / f"{JOURNAL}.mended").exists()
    assert (scene.lane / JOURNAL).exists()


def no_journal(scene: Scene) -> None:
    assert (scene.lane / f"{JOURNAL}.mended").exists()
    assert not (scene.lane / JOURNAL).exists()
    assert list(scene.lane.glob("damaged-*.sqlite3"))


def something_left(scene: Scene) -> None:
    assert left_in(scene.lane)


def nothing_left(scene: Scene) -> None:
    assert not left_in(scene.lane)


def rejected_and_not_in_the_line(scene: Scene) -> None:
    assert scene.service.rejected() == [("first", 0)]
    assert not left_in(scene.lane)


def not_yet_rejected(scene: Scene) -> None:
    assert scene.service.rejected() == []
    assert len(left_in(scene.lane)) == 1


@dataclass(frozen=True)
class Case:
    point: str
    passage: int
    before: Callable[[Scene], None] = nothing
    options: tuple[object, ...] = ()
    """Of the worker that is killed at the point."""
    after: Callable[[Scene], None] = nothing
    """What the disk looks like then: the place where it was killed is the one that was meant."""
    doubtful_delivered: bool | None = None
    """Whether the record of the `send()` that did not return arrives; None: no `send()` was broken off for sure."""
    duplicates: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return f"{self.point}:{self.passage}"


ANY = 10_000
QUICK = ("--adopt", 0.3)
ONE = ("--count", 1, "--first-alone", "--stay")
CASES = [
    Case("lane_made_before_identity", 1, after=lane_without_identity),
    Case("after_lock_before_open", 1, an_orphan, after=something_left),
    Case("before_append", 30, doubtful_delivered=False, duplicates=(0, ANY)),
    Case("after_append_before_commit", 30, doubtful_delivered=False, duplicates=(0, ANY)),
    Case("after_commit_before_high", 30, doubtful_delivered=True, duplicates=(0, ANY)),
    Case("after_commit_before_return", 30, doubtful_delivered=True, duplicates=(0, ANY)),
    Case("after_hand_over", 3, after=something_left, duplicates=(0, ANY)),
    Case("after_deliver_before_ack", 3, after=something_left, duplicates=(1, ANY)),
    Case("after_delete_before_commit", 3, after=something_left, duplicates=(1, ANY)),
    Case("after_delete", 3, duplicates=(0, ANY)),
    Case("after_reject_before_commit", 1, a_refusal, ONE, after=not_yet_rejected),
    Case("after_reject", 1, a_refusal, ONE, after=rejected_and_not_in_the_line),
    Case("during_adoption", 1, two_orphans, ("--count", 20, "--stay", *QUICK), duplicates=(0, ANY)),
    Case("after_adopted_lane_emptied", 1, two_orphans, ("--count", 20, "--stay", *QUICK), duplicates=(0, ANY)),
    Case("during_vacuum", 2, a_large_backlog, ("--count", 20, "--stay"), duplicates=(0, ANY)),
    Case("during_salvage", 1, a_damaged_file, after=two_journals),
    Case("during_salvage", 4, a_damaged_file, after=no_journal),
    Case("before_close", 1, options=("--count", 100), after=nothing_left),
]


def test_there_is_a_case_for_every_crash_point() -> None:
    assert {case.point for case in CASES} == set(POINTS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_P5_whatever_was_accepted_survives_a_kill_at(case: Case, kafka_mock: MockCluster, tmp_path: Path) -> None:
    kafka_mock.create_topic(TOPIC, partitions=PARTITIONS, replication_factor=3)
    service = Service(kafka_mock.bootstrap_servers, TOPIC, tmp_path / "service")
    scene = Scene(kafka_mock, service)
    case.before(scene)
    with service.worker("first", *case.options, crash=str(case)) as worker:
        service.wait_crashed(worker)
        returned = worker.sent()
    case.after(scene)
    if case.after is not_yet_rejected:  # it is refused again
        a_refusal(scene)
        with service.worker("first", "--count", 0) as worker:
            assert worker.ended() == 0, worker.output
    output = service.drain("first", count=AFTER_RESTART)

    judgement = judge(service, damaged=scene.destroyed)
    print(f"{case}: {judgement}; {returned} calls of the killed one returned")
    judgement.check()
    least, most = case.duplicates
    assert least <= judgement.report.duplicates <= most
    if case.doubtful_delivered is not None:
        assert returned == case.passage - 1
        assert judgement.doubtful_delivered == ({("first", returned)} if case.doubtful_delivered else set())
    assert len(judgement.rejected) == (case.before is a_refusal)
    assert ("spool_records_lost" in service.outputs()) == bool(scene.destroyed), output
