"""Whatever gets stuck or blocked, and is well again, at whatever moment: each partition gets its records in order."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from safekafka import Spool
from safekafka.record import Fields
from safekafka.spool import drain as drain_module
from safekafka.spool import sender as sender_module
from safekafka.spool.codec import encode
from safekafka.spool.drain import LaneDrain
from safekafka.spool.journal import Journal
from safekafka.spool.lane import Unusable
from safekafka.spool.sender import Sender
from safekafka.spool.spooled import SpooledReceipt

TOPICS, PARTITIONS = ("orders", "audit"), (0, 1)
PLACES = [(topic, partition) for topic in TOPICS for partition in PARTITIONS]
SOME_PLACES = st.sets(st.sampled_from(PLACES))


class ScriptedStuck:
    """In the place of `Stuck`: what is stuck is what the script says, and comes out at the next look, as there."""

    def __init__(self) -> None:
        self.groups: set[tuple[str, int]] = set()
        self.next: set[tuple[str, int]] = set()
        self.records = self.bytes = 0

    def due(self, now: float) -> bool:
        return self.next != self.groups

    def look(self, now: float, lines: Any, except_topics: Any, crowd: Any) -> None:
        self.groups = self.next

    def group_of(self, fields: Fields) -> tuple[str, int] | None:
        place = fields[0], fields[4]
        return place if place in self.groups else None


class SenderModel(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sender-model-"))
        self.handed_over: dict[tuple[str, int], list[int]] = {place: [] for place in PLACES}
        self.sent: dict[tuple[str, int], list[int]] = {place: [] for place in PLACES}
        self.stuck = ScriptedStuck()
        self.delivery: Any = SimpleNamespace(
            linger=0.0,
            make_admin=None,
            accepts_feeding=True,
            unreachable=False,
            blocked={},
            waiting=(0, 0),
            restored=self.restored,
            hand_over=self.hand_over,
            acknowledged=lambda: None,
        )
        lane: Any = SimpleNamespace(
            journal=Journal(self.folder, "process"),
            id="lane",
            folder=self.folder,
            identity=SimpleNamespace(cluster="A"),
        )
        queue = 1 << 31, 1 << 40
        self.sender = Sender(self.delivery, Spool(self.folder), lane, "murmur2_random", queue, Unusable())
        self.sender._cluster = "A"
        self.sender._stuck = self.stuck  # type: ignore[assignment]
        self.sender._kept_house_at = self.sender._adopt_at = float("inf")
        self.drain = self.sender.own

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.drain.journal.close()
            shutil.rmtree(self.folder)

    def restored(self, drain: LaneDrain, seq: int, fields: Fields, size: int) -> SpooledReceipt:
        receipt = SpooledReceipt(None, fields)  # type: ignore[arg-type]
        receipt._drain, receipt._seq, receipt._size = drain, seq, size
        return receipt

    def hand_over(self, drain: LaneDrain, receipts: list[SpooledReceipt]) -> None:
        for receipt in receipts:
            fields = receipt.fields()
            self.handed_over[fields[0], fields[4]].append(receipt._seq)

    @rule(
        places=st.lists(st.sampled_from(PLACES), max_size=12),
        stuck=SOME_PLACES,
        blocked=st.sets(st.sampled_from(TOPICS)),
        accepts=st.sampled_from([True, True, False]),
    )
    def goes_on(
        self, places: list[tuple[str, int]], stuck: set[tuple[str, int]], blocked: set[str], accepts: bool
    ) -> None:
        self.append(places)
        self.stuck.next = stuck
        self.delivery.blocked = dict.fromkeys(blocked)
        self.delivery.accepts_feeding = accepts
        self.sender.turn()

    def append(self, places: list[tuple[str, int]], value: bytes = b"1") -> None:
        if not places:
            return
        records: list[Fields] = [(topic, value, None, None, partition, 1_000) for topic, partition in places]
        rows = [encode(record) for record in records]
        first = self.drain.journal.append(rows)
        for seq, place in enumerate(places, first):
            self.sent[place].append(seq)
        self.drain.accepted(first, [SpooledReceipt(None, record) for record in records], rows)  # type: ignore[arg-type]

    @rule(share=st.floats(0, 1))
    def delivers(self, share: float) -> None:
        for seq in list(self.drain.open)[: round(len(self.drain.open) * share)]:
            deliver(self.drain, seq)

    @invariant()
    def each_partition_gets_its_records_in_order(self) -> None:
        if hasattr(self, "sent"):
            for place, seqs in self.handed_over.items():
                assert seqs == self.sent[place][: len(seqs)], place

    @rule()
    def all_is_well(self) -> None:
        self.stuck.next, self.delivery.blocked, self.delivery.accepts_feeding = set(), {}, True
        while self.sender.turn() or self.drain.open:
            self.delivers(1.0)
        assert self.handed_over == self.sent


def deliver(drain: LaneDrain, seq: int) -> None:
    receipt = drain.open.pop(seq)
    drain.open_bytes -= receipt._size
    drain.done[seq] = receipt._size


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain_module, "_READ_RECORDS", 3)
    monkeypatch.setattr(drain_module, "_FRESH_RECORDS", 8)
    monkeypatch.setattr(sender_module, "_PORTION", 5)
    monkeypatch.setattr(sender_module, "WINDOW", 20)
    monkeypatch.setattr(sender_module, "_ACK_SECONDS", 0.0)


@pytest.mark.usefixtures("small_portions")
def test_P3_order_holds_whatever_gets_stuck_or_blocked_and_well_again(scale: int) -> None:
    run_state_machine_as_test(
        SenderModel,
        settings=settings(
            max_examples=200 * scale,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def test_a_record_larger_than_what_a_stuck_partition_leaves_to_share_goes_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And no others go with it: they would hold too much of the window if they got stuck as well."""
    monkeypatch.setattr(sender_module, "_WINDOW_BYTES", 1_000)
    stuck, large, small = ("orders", 0), ("orders", 1), ("audit", 0)
    model = SenderModel()
    model.begin()
    try:
        model.append([stuck] * 20)
        model.sender.turn()
        model.stuck.next = {stuck}
        model.stuck.records, model.stuck.bytes = len(model.drain.open), model.drain.open_bytes
        assert 400 < model.stuck.bytes <= 500
        waiting = list(model.drain.open)
        for size, goes in ((700, True), (1_600, False)):
            model.append([large], bytes(size))
            model.append([small] * 20)
            model.sender.turn()
            flowing = model.drain.open.keys() - waiting
            assert flowing == (set(model.sent[large]) if goes else set())
            while flowing:
                for seq in flowing:
                    deliver(model.drain, seq)
                model.sender.turn()
                flowing = model.drain.open.keys() - waiting
            assert (model.handed_over[small] == model.sent[small]) == goes
        model.all_is_well()
    finally:
        model.teardown()


def test_the_window_is_full_when_the_next_record_does_not_fit_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the delivery thread would look again every 2 ms, though only an acknowledgement can make room."""
    monkeypatch.setattr(sender_module, "_WINDOW_BYTES", 1_000)
    model = SenderModel()
    model.begin()
    try:
        model.append([("orders", 0)] * 3, bytes(100))
        model.sender.turn()
        assert (len(model.drain.open), model.sender.full) == (3, False)
        model.append([("orders", 0)], bytes(100))
        model.sender.turn()
        assert (len(model.drain.open), model.sender.full) == (3, True)
        model.delivers(1.0)
        model.sender.turn()
        assert (len(model.drain.open), model.sender.full) == (1, False)
    finally:
        model.teardown()


@pytest.fixture
def model() -> Iterator[SenderModel]:
    one = SenderModel()
    one.begin()
    yield one
    one.teardown()


@pytest.mark.usefixtures("small_portions")
def test_a_turn_passes_over_no_more_than_a_portion_of_what_waits(model: SenderModel) -> None:
    """Reports, callbacks, and the topics that flow wait meanwhile."""
    model.append([("orders", 0)] * 40)
    model.append([("audit", 0)])
    model.delivery.blocked = {"orders": None}
    before, turns = model.drain.cursor, 0
    while model.sender.turn():
        assert 0 < model.drain.cursor - before <= 8
        before, turns = model.drain.cursor, turns + 1
    assert turns >= 5
    assert model.handed_over["audit", 0] == [41]
    model.all_is_well()


@pytest.mark.usefixtures("small_portions")
def test_the_records_of_a_topic_that_is_given_up_are_rejected_in_steps(
    model: SenderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejected: list[int] = []

    def reject(receipt: SpooledReceipt, reason: str, error: Any) -> None:
        model.drain.refused(receipt, reason, reason)  # type: ignore[arg-type]

    def told(some: list[Any]) -> None:
        rejected.extend(receipt._seq for receipt, _, _ in some)

    model.delivery.reject, model.delivery.tell_rejected = reject, told
    model.delivery.reject_held = lambda *_: None
    model.append([("audit", 0), ("orders", 0), ("orders", 1)] * 10)
    model.delivery.blocked = dict.fromkeys(TOPICS)
    while model.sender.turn():
        pass
    ticks = itertools.count()
    monkeypatch.setattr(sender_module, "monotonic", lambda: next(ticks) * 0.15)
    steps, error = 0, KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    while len(rejected) < 20:
        before = len(rejected)
        model.sender._reject_all("orders", error, 1.0)
        assert 0 < len(rejected) - before <= 10
        steps += 1
    assert steps > 2
    assert rejected == sorted(model.sent["orders", 0] + model.sent["orders", 1])
    model.sender._reject_all("orders", error, 1.0)
    monkeypatch.undo()
    model.delivery.blocked = {}
    while model.sender.turn() or model.drain.open:
        model.delivers(1.0)
    assert model.handed_over["audit", 0] == model.sent["audit", 0]
    assert not model.handed_over["orders", 0]
    assert len(model.drain.journal.rejected()) == 20
