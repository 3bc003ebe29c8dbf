"""P5: the processes of a service are killed again and again, at random moments and at random crash points; whatever
`send()` and `send_many()` accepted arrives, in order."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from safekafka.testing import MockCluster
from tests.crash.spool_judge import judge
from tests.crash.spool_service import KILLED, Service, Worker
from tests.processes import wait_until

TOPIC, KEYS = "orders", 7
CALLS = "1,1,20,1,3"  # send() twice, send_many() of 20, ...
# Those that ordinary work comes by, with how often it does so within a round.
POINTS = {
    "after_lock_before_open": 1,
    "before_append": 60,
    "after_append_before_commit": 60,
    "after_commit_before_high": 60,
    "after_commit_before_return": 60,
    "after_hand_over": 10,
    "after_deliver_before_ack": 3,
    "after_delete_before_commit": 3,
    "after_delete": 3,
    "during_adoption": 1,
    "after_adopted_lane_emptied": 1,
}


class Chaos:
    """One worker is always started again; a second one is there at times, and may outlive the first."""

    def __init__(self, brokers: MockCluster, service: Service, chance: random.Random) -> None:
        self._brokers = brokers
        self._service = service
        self._chance = chance
        self._siblings = 0
        self._sibling: Worker | None = None
        self._sibling_end = contextlib.ExitStack()
        self._lives = 0
        self._lane: Path | None = None
        self.crashes = 0
        self.together = 0

    def round(self, point: str | None) -> None:
        """Start, accept while brokers come and go, kill."""
        chance, brokers = self._chance, self._brokers
        if point is not None:  # nobody may take over what it leaves before we have looked at it
            self.end_sibling()
        if chance.random() < 0.4:
            self._go_down(None)
        if self._sibling is None and point is None and chance.random() < 0.5:
            self._start_sibling()
        with self._worker(point) as worker:
            wait_until(lambda: "ready" in worker.output or not worker.alive, 60, lambda: worker.output)
            lanes = worker.lanes()
            self._lane = lanes[0] if len(lanes) == 1 else None
            wait_until(lambda: worker.sent() > 20 or not worker.alive, 60, lambda: worker.output)
            if self._sibling is not None:
                self._sibling.wait_ready()
                self.together += 1
            brokers.set_broker_up()
            if chance.random() < 0.3:
                self._go_down(chance.randint(1, 3), worker)
            time.sleep(chance.random() * 0.5)  # the moment of the kill, not a wait for something
            brokers.set_broker_up()
            if point is not None:
                with contextlib.suppress(AssertionError):  # it does not come by that point in this round
                    worker.ended(1)
            if not worker.alive:
                assert worker.process.returncode == KILLED, worker.output
                self.crashes += 1
            self._kill(worker)
        if self._sibling is not None and chance.random() < 0.5:
            self.end_sibling()

    @contextlib.contextmanager
    def _worker(self, point: str | None) -> Iterator[Worker]:
        """Goes on under the same name, and so with the same keys, where it must take over its own lane: the first one,
        while nobody else is there. Else it may get another, and only the records of one life are in order."""
        if self._sibling is not None or self._lane is None or self._lane.name != "lane-0":
            self._lives += 1
        with self._service.worker(
            f"worker{self._lives}", "--keys", KEYS, "--calls", CALLS, "--adopt", 0.4, crash=point
        ) as worker:
            self._lane = None
            yield worker

    def _go_down(self, broker: int | None, *workers: Worker) -> None:
        running = [one for one in (*workers, self._sibling) if one is not None and one.alive]
        self._service.cut_off(self._brokers, broker, *running)

    def _start_sibling(self) -> None:
        self._siblings += 1
        self._sibling = self._sibling_end.enter_context(
            self._service.worker(
                *(f"sibling{self._siblings}", "--keys", KEYS, "--calls", CALLS, "--adopt", 0.4, "--rate", 300),
                *("--durability", "process"),  # the death of the process it survives too
            )
        )

    def _kill(self, worker: Worker) -> None:
        if worker.alive:
            self._service.kill(worker, beside=[] if self._sibling is None else [self._sibling])
        else:
            self._service.wait_crashed(worker)

    def end_sibling(self) -> None:
        if self._sibling is not None:
            self._service.kill(self._sibling)
            self._sibling_end.close()
            self._sibling = None


@pytest.mark.timeout(3_600)
def test_P5_records_survive_sigkill_of_the_producer_while_brokers_come_and_go(
    kafka_mock: MockCluster, tmp_path: Path, scale: int
) -> None:
    seed = int(os.environ.get("SAFEKAFKA_SEED") or random.randrange(1_000_000))
    chance = random.Random(seed)
    kafka_mock.create_topic(TOPIC, partitions=min(60, 3 + 3 * scale), replication_factor=3)  # a mock keeps 5 MB of each
    service = Service(kafka_mock.bootstrap_servers, TOPIC, tmp_path / "service")
    chaos = Chaos(kafka_mock, service, chance)
    begun, rounds = time.monotonic(), 0
    while service.kills < 12 * scale:
        point = None
        if rounds % 3 == 2:
            name = chance.choice(list(POINTS))
            point = f"{name}:{chance.randint(1, POINTS[name])}"
        chaos.round(point)
        rounds += 1
    chaos.end_sibling()
    service.drain()
    judgement = judge(service, KEYS)
    print(
        f"\nseed {seed}: {judgement}; {chaos.crashes} of the kills at a crash point, {chaos.together} rounds with two "
        f"processes; at most {judgement.most_left} records left by one kill; {time.monotonic() - begun:.0f} s"
    )
    assert service.kills >= 12 * scale
    judgement.check()
