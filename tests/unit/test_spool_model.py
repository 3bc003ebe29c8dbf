"""Lanes and journals against a dictionary: whatever is done, and however it ends, no accepted record is lost, numbers
are never used twice, and nobody touches what is not his (B-S15)."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sqlite3
import tempfile
from collections import Counter
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from safekafka import Spool
from safekafka.spool.codec import encode
from safekafka.spool.journal import FILE, HIGH, RESERVE
from safekafka.spool.lane import Identity, Lane, lane_folders, orphans, own_lane

OURS, OTHERS = Identity("default", "a:9092", None), Identity("default", "b:9092", None)
IDENTITIES = {
    "ours": OURS,
    "our cluster": OURS._replace(cluster="A"),
    "by another address": Identity("default", "c:9092", "A"),
    "others": OTHERS,
    "our other spool": OURS._replace(spool="audit"),
}
Whose: TypeAlias = Literal["ours", "our cluster", "by another address", "others", "our other spool"]
WHOSE = st.sampled_from(["ours"] * 5 + sorted(IDENTITIES))
NUMBERS = st.integers(0, 1 << 30)


def copied(folder: Path, to: Path) -> Path:
    """Without the reserves, which are made anew."""
    return Path(shutil.copytree(folder, to, ignore=shutil.ignore_patterns(RESERVE)))


class Kept:
    """What must be in a lane."""

    def __init__(self, lane: Lane) -> None:
        self.id = lane.id
        self.identity = lane.identity
        self.stored: dict[int, bytes] = {}
        self.rejected: dict[int, bytes] = {}
        self.highest = 0


class SpoolModel(RuleBasedStateMachine):
    """Each open lane stands for a process; there are as many as it takes."""

    seen: ClassVar[Counter[str]] = Counter()  # how often it came to what

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere = Path(tempfile.mkdtemp(prefix="spool-model-"))
        self.copies = itertools.count()
        self.kept: dict[str, Kept] = {}
        self.open: dict[str, Lane] = {}
        self.abandoned: list[Lane] = []
        self.touched: Lane | None = None
        self.accepted = 0

    def teardown(self) -> None:
        for lane in [*self.open.values(), *self.abandoned]:
            with contextlib.suppress(OSError, sqlite3.Error):
                lane.close()
        shutil.rmtree(self.elsewhere)

    @initialize(durability=st.sampled_from(["process", "process", "disk"]))
    def begin(self, durability: Literal["disk", "process"]) -> None:
        self.durability = durability
        self.folder = self.elsewhere / "spool"

    # ---- processes come and go

    @property
    def idle(self) -> list[str]:
        """Lanes that no process has, by number."""
        return [path.name for path in lane_folders(self.folder) if path.name not in self.open]

    def fingerprints(self, names: list[str]) -> dict[str, dict[str, bytes]]:
        return {
            name: {
                path.name: path.read_bytes()
                for path in (self.folder / name).iterdir()
                if path.name not in ("lock", "owner", RESERVE)  # who looks has to hold the lock meanwhile
            }
            for name in names
        }

    def is_let_alone(self, name: str, identity: Identity) -> bool:
        kept = self.kept[name]
        return not kept.identity.equals(identity)

    @precondition(lambda self: len(self.open) < 4)
    @rule(whose=WHOSE)
    def start(self, whose: Whose) -> None:
        identity = IDENTITIES[whose]
        idle = self.idle
        equal = [name for name in idle if self.kept[name].identity.equals(identity)]
        with_records = [name for name in equal if self.kept[name].stored]
        foreign = self.fingerprints([name for name in idle if name not in equal])
        lane = own_lane(Spool(self.folder, durability=self.durability, name=identity.spool), identity)
        name = lane.folder.name
        assert name not in self.open, "two processes have one lane"
        assert self.fingerprints(list(foreign)) == foreign
        if with_records:  # what was left goes first, so the new comes behind it
            assert name == with_records[0]
            self.seen["took over"] += 1
        elif name in self.kept:
            assert name in equal
            self.seen["slot used again"] += 1
        else:
            assert not equal, "a slot was free"
            self.seen["new lane"] += 1
        self.seen["foreign lane let alone"] += any(self.kept[other].stored for other in foreign)
        self.adopt_as(lane)

    @rule(whose=WHOSE, most=st.integers(1, 3))
    def adopt(self, whose: Whose, most: int) -> None:
        """What a running process does with the lanes of dead ones."""
        identity = IDENTITIES[whose]
        idle = self.idle
        expected = [n for n in idle if self.kept[n].identity.equals(identity) and self.kept[n].stored]
        others = self.fingerprints([name for name in idle if self.is_let_alone(name, identity)])
        found: list[str] = []
        for lane in orphans(Spool(self.folder, durability=self.durability, name=identity.spool), identity):
            name = lane.folder.name
            assert name not in self.open, "two processes have one lane"
            if not self.kept[name].stored:  # it was killed when it had nothing left
                assert lane.journal.count == 0
                lane.close()
                self.seen["empty orphan"] += 1
                continue
            self.adopt_as(lane)
            found.append(name)
            if len(found) == most:
                break
        assert found == expected[:most]
        self.seen["adopted"] += len(found)
        assert self.fingerprints(list(others)) == others

    def adopt_as(self, lane: Lane) -> None:
        name = lane.folder.name
        kept = self.kept.setdefault(name, Kept(lane))
        assert lane.id == kept.id, "records were known by another id"
        kept.identity = lane.identity
        assert len({known.id for known in self.kept.values()}) == len(self.kept)
        assert lane.journal.last_seq == kept.highest
        self.open[name] = self.touched = lane

    def chosen(self, number: int, having: Literal["stored", "rejected"] | None = None) -> Lane:
        names = sorted(self.open)
        if having is not None:
            names = [name for name in names if getattr(self.kept[name], having)] or names
        name = names[number % len(names)]
        self.touched = self.open[name]
        return self.touched

    @precondition(lambda self: self.open)
    @rule(number=NUMBERS)
    def close(self, number: int) -> None:
        lane = self.chosen(number)
        lane.close()
        del self.open[lane.folder.name]
        self.touched = None
        assert {path.name for path in lane.folder.iterdir()} <= {FILE, HIGH, RESERVE, "lane.json", "lock", "owner"}

    @precondition(lambda self: self.open)
    @rule(number=NUMBERS)
    def kill_one(self, number: int) -> None:
        lane = self.chosen(number)
        self.abandoned.append(self.open.pop(lane.folder.name))
        copy = self.elsewhere / f"killed-{next(self.copies)}"
        copied(lane.folder, copy)
        lane.folder.rename(self.elsewhere / f"grave-{next(self.copies)}")
        copy.rename(lane.folder)
        self.touched = None
        self.seen["killed one"] += 1

    @precondition(lambda self: self.open)
    @rule()
    def kill_all(self) -> None:
        copy = self.elsewhere / f"spool-{next(self.copies)}"
        copied(self.folder, copy)
        self.abandoned += self.open.values()
        self.open.clear()
        self.folder, self.touched = copy, None
        self.seen["killed all"] += 1

    @precondition(lambda self: self.open)
    @rule(number=NUMBERS, count=st.integers(1, 12))
    def kill_one_between_commit_and_mark(self, number: int, count: int) -> None:
        """`append` has not returned; the records may be there, all of them, or not. Here they are."""
        lane = self.chosen(number)
        mark = (lane.folder / HIGH).read_bytes()
        self.append(number, count, 0)
        (lane.folder / HIGH).write_bytes(mark)
        self.kill_one(number)

    # ---- records

    @precondition(lambda self: self.open)
    @rule(number=NUMBERS, count=st.integers(1, 12) | st.just(1_200), size=st.sampled_from([0, 10, 500, 5_000]))
    def append(self, number: int, count: int, size: int) -> None:
        lane = self.chosen(number)
        kept = self.kept[lane.folder.name]
        if count > 100:
            size = 0
        batch = [encode(("orders", b"x" * size, str(self.accepted + n).encode(), None, -1, 1)) for n in range(count)]
        first = lane.journal.append(batch)
        assert first == kept.highest + 1, "a number was used twice, or left out"
        kept.stored.update(enumerate(batch, first))
        kept.highest += count
        self.accepted += count
        self.seen["accepted"] += count

    def some(self, number: int, among: dict[int, bytes]) -> list[int]:
        """A few, not always in one run."""
        seqs = sorted(among)
        first = number % max(1, len(seqs))
        return seqs[first : first + 1 + number // 7 % 20 : 1 + number % 3]

    @precondition(lambda self: self.open)
    @rule(number=NUMBERS, which=NUMBERS)
    def deliver(self, number: int, which: int) -> None:
        lane = self.chosen(number, "stored")
        kept = self.kept[lane.folder.name]
        seqs = self.some(which, kept.stored)
        lane.journal.delete(seqs[::-1], sum(len(kept.stored.pop(seq)) for seq in seqs))
        self.seen["delivered"] += len(seqs)

    @precondition(lambda self: self.open)
    @rule(number=NUMBERS)
    def deliver_all(self, number: int) -> None:
        lane = self.chosen(number, "stored")
        kept = self.kept[lane.folder.name]
        self.seen["delivered"] += len(kept.stored)
        lane.journal.delete(kept.stored, sum(map(len, kept.stored.values())))
        kept.stored.clear()

    @precondition(lambda self: self.open)
    @rule(number=NUMBERS, which=NUMBERS)
    def reject(self, number: int, which: int) -> None:
        lane = self.chosen(number, "stored")
        kept = self.kept[lane.folder.name]
        seqs = self.some(which, kept.stored)
        lane.journal.reject([(seq, len(kept.stored[seq]), f"because of {seq}") for seq in seqs])
        kept.rejected |= {seq: kept.stored.pop(seq) for seq in seqs}

    @precondition(lambda self: self.open)
    @rule(number=NUMBERS, which=NUMBERS)
    def set_aside(self, number: int, which: int) -> None:
        lane = self.chosen(number, "stored")
        kept = self.kept[lane.folder.name]
        seqs = self.some(which, kept.stored)
        lane.journal.set_aside(seqs)
        for seq in seqs:
            del kept.stored[seq]

    @precondition(lambda self: self.open)
    @rule(number=NUMBERS, which=NUMBERS)
    def requeue(self, number: int, which: int) -> None:
        lane = self.chosen(number, "rejected")
        kept = self.kept[lane.folder.name]
        seqs = self.some(which, kept.rejected)
        assert lane.journal.requeue(seqs) == len(seqs)
        self.seen["requeued"] += len(seqs)
        kept.stored |= {kept.highest + n: kept.rejected.pop(seq) for n, seq in enumerate(seqs, 1)}
        kept.highest += len(seqs)

    @precondition(lambda self: self.open)
    @rule(number=NUMBERS, which=NUMBERS)
    def discard(self, number: int, which: int) -> None:
        lane = self.chosen(number, "rejected")
        kept = self.kept[lane.folder.name]
        seqs = self.some(which, kept.rejected)
        assert lane.journal.discard(seqs) == len(seqs)
        for seq in seqs:
            del kept.rejected[seq]

    @precondition(lambda self: self.open)
    @rule(number=NUMBERS)
    def give_back_room(self, number: int) -> None:
        lane = self.chosen(number)
        steps = 0
        while lane.journal.give_back_room():
            steps += 1
            self.seen["room given back"] += 1
            assert steps < 1_000

    # ---- always

    @invariant()
    def the_lane_is_what_the_dictionary_says(self) -> None:
        """The one that was used last."""
        lane = self.touched
        if lane is None:
            return
        kept, journal = self.kept[lane.folder.name], lane.journal
        found, damaged = journal.read(1, journal.last_seq, 1 << 30, 1 << 40)
        assert damaged == []
        assert [(seq, encode(fields), size) for seq, fields, size in found] == [
            (seq, kept.stored[seq], len(kept.stored[seq])) for seq in sorted(kept.stored)
        ]
        assert (journal.last_seq, journal.count) == (kept.highest, len(kept.stored))
        assert journal.bytes == sum(map(len, kept.stored.values()))
        rejected = journal.rejected()
        assert {one.seq: encode(one.fields) for one in rejected} == kept.rejected
        assert all(one.reason == f"because of {one.seq}" for one in rejected)
        assert journal.losses == []
        assert list(lane.folder.glob("damaged-*")) == []


@pytest.mark.timeout(900)
def test_B_S15_lanes_and_journals_are_what_a_dictionary_would_be(scale: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", logger="safekafka")
    wanted = ("accepted", "delivered", "took over", "slot used again", "killed one", "killed all")
    for _ in range(5):  # chance decides what a run comes to
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            SpoolModel,
            settings=settings(
                max_examples=15 * scale,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        if all(SpoolModel.seen[what] >= scale for what in wanted):
            break
    print(dict(SpoolModel.seen))
    for what in wanted:
        assert SpoolModel.seen[what] >= scale, f"it never came to this: {what}"


@pytest.mark.parametrize("end", ["killed", "closed"])
@pytest.mark.parametrize("what", ["append", "requeue"])
def test_P5_records_of_a_lane_that_was_left_empty_once_are_found_though_its_mark_is_of_then(
    tmp_path: Path, what: str, end: str
) -> None:
    """The mark of the highest number is not synced, and written behind the commit: after a power loss, or a kill
    between the two, it says what it said before."""
    spool = Spool(tmp_path / "spool")
    lane = own_lane(spool, OURS)
    data = encode(("orders", b"v", None, None, -1, 1))
    if what == "requeue":
        lane.journal.append([data])
        lane.journal.reject([(1, len(data), "too large")])
    lane.close()
    lane = own_lane(spool, OURS)
    mark = (lane.folder / HIGH).read_bytes()
    if what == "append":
        lane.journal.append([data])
    else:
        lane.journal.requeue([1])
    if end == "killed":
        copy = copied(spool.folder, tmp_path / "copy")
        (copy / lane.folder.name / HIGH).write_bytes(mark)
    lane.close()
    (found,) = orphans(Spool(copy if end == "killed" else spool.folder), OURS)
    assert found.journal.count == 1
    assert found.journal.losses == []
    found.close()
