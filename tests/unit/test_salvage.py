"""Real damage to real files: no wrong record is ever given, what a damaged page did not hold is given byte for byte,
and what is missing is told."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from safekafka import SpoolCorruptError, SpoolFullError, SpoolUnusableError
from safekafka.spool.codec import encode
from safekafka.spool.journal import FILE, RESERVE, Journal

PAGE = 4_096
SEED = 20_261


def row(chance: random.Random, number: int) -> bytes:
    """Mostly small ones, many to a page; some of a page's size, some with a chain of overflow pages."""
    size = chance.choice([0, 10, 50, 200, 200, 500, 1_500, 4_000, 5_000, 15_000])
    return encode(("orders", chance.randbytes(size), str(number).encode(), [("h", b"\xff")], -1, number))


class Original(NamedTuple):
    """A journal as it was before the damage."""

    folder: Path
    older: bytes  # its file some time before
    records: dict[int, bytes]
    rejected: dict[int, bytes]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """Closed, all of it in the one file: rows of all sizes, holes, free pages, rejected and damaged rows."""
    chance, folder = random.Random(SEED), tmp_path_factory.mktemp("original")
    journal = Journal(folder, "process")
    records: dict[int, bytes] = {}

    def append(count: int) -> None:
        batch = [row(chance, len(records) + number) for number in range(count)]
        records.update(enumerate(batch, journal.append(batch)))

    def take(seqs: list[int]) -> list[tuple[int, bytes]]:
        return [(seq, records.pop(seq)) for seq in seqs]

    append(400)
    gone = take(list(range(1, 250)))
    journal.delete([seq for seq, _ in gone], sum(len(data) for _, data in gone))
    append(700)
    journal.close()
    older = (folder / FILE).read_bytes()
    journal = Journal(folder, "process")
    gone = take([*range(250, 420), *chance.sample(range(420, 1_100), 60)])
    journal.delete([seq for seq, _ in gone], sum(len(data) for _, data in gone))
    append(150)
    rejected = dict(take(chance.sample(sorted(records), 20)))
    journal.reject([(seq, len(data), "too large ☹") for seq, data in rejected.items()])
    journal.set_aside([seq for seq, _ in take(chance.sample(sorted(records), 5))])
    gone = take(sorted(records)[-10:-5])
    journal.delete([seq for seq, _ in gone], sum(len(data) for _, data in gone))
    journal.close()
    return Original(folder, older, records, rejected)


def copied(folder: Path, to: Path) -> Path:
    """Without the reserve, which is made anew."""
    return Path(shutil.copytree(folder, to, ignore=shutil.ignore_patterns(RESERVE)))


# ---- what is on which page (https://sqlite.org/fileformat2.html)


class Pages(NamedTuple):
    kinds: dict[int, str]
    beneath: dict[int, set[int]]  # the numbers of `record` that can't be reached without this page

    @staticmethod
    def of(original: Original) -> Pages:
        data = (original.folder / FILE).read_bytes()
        with contextlib.closing(sqlite3.connect(original.folder / FILE)) as file:
            roots = dict(file.execute("SELECT name, rootpage FROM sqlite_master").fetchall())
        kinds = {1: "first"}
        beneath: dict[int, set[int]] = {}
        for table, root in roots.items():
            _walk(data, root, table, kinds, beneath, [])
        for trunk in _free_trunks(data):
            kinds[trunk] = "free trunk"
        for number in range(1, len(data) // PAGE + 1):
            kinds.setdefault(number, "pointer map" if (number - 2) % (PAGE // 5 + 1) == 0 else "free")
        return Pages(kinds, beneath)


def _walk(
    data: bytes, number: int, table: str, kinds: dict[int, str], beneath: dict[int, set[int]], above: list[int]
) -> None:
    start = (number - 1) * PAGE
    kind, _, cells = struct.unpack_from(">BHH", data, start)
    leaf = kind == 0x0D
    kinds[number] = f"{table} {'leaf' if leaf else 'interior'}"
    path = [*above, number]
    for index in range(cells):
        (cell,) = struct.unpack_from(">H", data, start + (8 if leaf else 12) + 2 * index)
        if not leaf:
            _walk(data, struct.unpack_from(">I", data, start + cell)[0], table, kinds, beneath, path)
            continue
        size, position = _varint(data, start + cell)
        seq, position = _varint(data, position)
        needed = list(path)
        most, least = PAGE - 35, (PAGE - 12) * 32 // 255 - 23
        if size > most:
            local = least + (size - least) % (PAGE - 4)
            local = local if local <= most else least
            (page,) = struct.unpack_from(">I", data, position + local)
            while page:
                kinds[page] = f"{table} overflow"
                needed.append(page)
                (page,) = struct.unpack_from(">I", data, (page - 1) * PAGE)
        if table == "record":
            for page in needed:
                beneath.setdefault(page, set()).add(seq)
    if not leaf:
        _walk(data, struct.unpack_from(">I", data, start + 8)[0], table, kinds, beneath, path)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    while True:
        value = value << 7 | data[position] & 0x7F
        position += 1
        if data[position - 1] < 0x80:
            return value, position


def _free_trunks(data: bytes) -> Iterator[int]:
    (trunk,) = struct.unpack_from(">I", data, 32)
    while trunk:
        yield trunk
        (trunk,) = struct.unpack_from(">I", data, (trunk - 1) * PAGE)


@pytest.fixture(scope="module")
def pages(original: Original) -> Pages:
    return Pages.of(original)


# ---- what reads it


class Found(NamedTuple):
    records: dict[int, bytes]
    told: int | None  # how many are said to be missing or damaged, at least; None: some, and how many is not known
    mended: int


def drained(folder: Path, durability: Literal["disk", "process"] = "process") -> Found:
    """What a sender does: reads in order, sets damaged records aside, has the file mended where SQLite calls it
    damaged, deletes what is delivered; and in the end it wonders what is left."""
    journal = Journal(folder, durability)
    try:
        return _drained(journal)
    finally:
        journal.close()


def _drained(journal: Journal) -> Found:
    found: dict[int, bytes] = {}
    told: int | None = 0
    mended = 0
    cursor = 1
    for _ in range(10_000):
        try:
            records, damaged = journal.read(cursor, journal.last_seq, 50, 100_000)
            if damaged:
                journal.set_aside(damaged)
                told = None if told is None else told + len(damaged)
            seqs = [seq for seq, *_ in records]
            assert seqs == sorted(set(seqs)), "out of order"
            for seq, fields, size in records:
                found[seq] = encode(fields)
                assert size == len(found[seq])
            if records:
                cursor = seqs[-1] + 1
                journal.delete(seqs, sum(size for *_, size in records))
            if not records and not damaged:
                if not journal.count:
                    break
                if cursor == 1:
                    raise SpoolCorruptError("there are records left that no read gives")
                cursor = 1
        except SpoolCorruptError:
            assert mended < 5, "mended again and again"
            if not journal.is_damaged():
                raise
            journal.mend()
            mended += 1
            cursor = 1
    else:
        raise AssertionError("no end")
    for loss in journal.losses:
        told = None if told is None or loss.records is None else told + loss.records
        assert loss.evidence is None or loss.evidence.exists()
    return Found(found, told, mended)


def assert_right_and_told(found: Found, original: Original, may_lack: set[int] | None) -> None:
    wrong = {seq for seq, data in found.records.items() if data != original.records.get(seq, data)}
    assert wrong == set(), f"not what was written: {sorted(wrong)}"
    missing = original.records.keys() - found.records.keys()
    if may_lack is not None:
        assert missing <= may_lack, f"readable, and not given: {sorted(missing - may_lack)}"
    # A page as it was before brings delivered records back. Losses are seen by the count, so these hide as many.
    again = found.records.keys() - original.records.keys()
    assert found.told is None or found.told + len(again) >= len(missing), f"{len(missing)} missing, {found.told} told"


def assert_goes_on(folder: Path, highest: int) -> None:
    """After damage that was dealt with: new records are taken, given, and nothing is found again (B-S05)."""
    for number in range(3):
        journal = Journal(folder, "process")
        batch = [row(random.Random(number), n) for n in range(20)]
        if not number:  # only now SQLite may come to it, as to a damaged list of free pages
            try:
                first = journal.append(batch)
            except SpoolCorruptError:
                assert journal.is_damaged()
                journal.mend()
                first = journal.append(batch)
            assert all(loss.records in (0, None) for loss in journal.losses)
            journal.losses.clear()
            evidence = sorted(folder.glob("damaged-*"))
        else:
            assert journal.losses == []
            assert journal.count == 0
            first = journal.append(batch)
        assert first > highest
        assert _drained(journal) == (dict(enumerate(batch, first)), 0, 0)
        journal.close()
    assert sorted(folder.glob("damaged-*")) == evidence
    assert not (folder / f"{FILE}.mended").exists()
    assert not (folder / f"{FILE}-wal.before").exists()


# ---- the damage


Damage = Callable[[bytearray, int, Original, random.Random], None]


def flipped_bits(data: bytearray, page: int, original: Original, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 1, 1, 4])):
        data[(page - 1) * PAGE + chance.randrange(PAGE)] ^= 1 << chance.randrange(8)


def flipped_bits_at_the_head(data: bytearray, page: int, original: Original, chance: random.Random) -> None:
    """Where the page says what is on it."""
    data[(page - 1) * PAGE + chance.randrange(40)] ^= 1 << chance.randrange(8)


def zeroed(data: bytearray, page: int, original: Original, chance: random.Random) -> None:
    data[(page - 1) * PAGE : page * PAGE] = bytes(PAGE)


def garbage(data: bytearray, page: int, original: Original, chance: random.Random) -> None:
    data[(page - 1) * PAGE : page * PAGE] = chance.randbytes(PAGE)


def torn(data: bytearray, page: int, original: Original, chance: random.Random) -> None:
    """Half of it is as it was some time before."""
    cut = chance.randrange(1, PAGE // 512) * 512
    first = (page - 1) * PAGE
    older = original.older[first : first + PAGE].ljust(PAGE, b"\0")
    data[first : first + PAGE] = (
        older[:cut] + data[first + cut : first + PAGE]
        if chance.random() < 0.5
        else bytes(data[first : first + cut]) + older[cut:]
    )


DAMAGES: list[Damage] = [flipped_bits, flipped_bits_at_the_head, zeroed, garbage, torn]
KINDS = [
    "record interior",
    "record leaf",
    "record overflow",
    "rejected leaf",
    "rejected interior",
    "rejected overflow",
    "damaged leaf",
    "damaged interior",
    "damaged overflow",
    "state leaf",
    "free trunk",
    "free",
    "pointer map",
    "first",
]


def test_the_original_has_pages_of_all_kinds(original: Original, pages: Pages) -> None:
    assert set(KINDS) == set(pages.kinds.values())
    assert set().union(*pages.beneath.values()) == original.records.keys()
    assert sum(kind == "record leaf" for kind in pages.kinds.values()) > 50


@pytest.mark.timeout(900)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_B_S03_a_damaged_page_costs_no_record_but_its_own_and_these_are_told(
    tmp_path: Path, original: Original, pages: Pages, scale: int, kind: str, damage: Damage
) -> None:
    intact = (original.folder / FILE).read_bytes()
    chosen = sorted(number for number, its in pages.kinds.items() if its == kind)
    highest = max(original.records)
    refused = mended = 0
    rounds = 3 * scale
    for seed in range(rounds):
        chance = random.Random(f"{SEED} {kind} {damage.__name__} {seed}")
        page = chance.choice(chosen)
        data = bytearray(intact)
        damage(data, page, original, chance)
        folder = copied(original.folder, tmp_path / str(seed))
        (folder / FILE).write_bytes(data)
        where = f"seed {seed}: page {page} ({kind})"
        found = drained_or_refused(folder, where, may_refuse=kind == "first")
        if found is None:
            refused += 1
            assert (folder / FILE).stat().st_size == len(data)  # kept for who looks into it
            continue
        mended += found.mended
        try:
            # The rows of a page as it was before name overflow pages that are others' by now.
            unknown = kind == "first" or damage is torn
            assert_right_and_told(found, original, None if unknown else pages.beneath.get(page, set()))
            assert_goes_on(folder, highest)
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from error
        shutil.rmtree(folder)
    print(f"{kind}, {damage.__name__}: {rounds} rounds, {refused} refused, {mended} mended")


def drained_or_refused(folder: Path, where: str, *, may_refuse: bool) -> Found | None:
    try:
        return drained(folder)
    except (SpoolCorruptError, SpoolUnusableError) as refusal:
        if not may_refuse:
            raise AssertionError(f"{where}: {refusal}") from refusal
        for _ in range(2):  # and again, without a pile of evidence
            with pytest.raises((SpoolCorruptError, SpoolUnusableError)):
                drained(folder)
        assert len(list(folder.glob("damaged-*"))) <= 1
        return None
    except Exception as error:
        raise AssertionError(f"{where}: {error!r}") from error


@pytest.mark.timeout(900)
def test_B_S03_a_file_that_was_cut_short_costs_no_record_but_those_of_the_missing_pages(
    tmp_path: Path, original: Original, pages: Pages, scale: int
) -> None:
    size = len((original.folder / FILE).read_bytes())
    rounds = 12 * scale
    for seed in range(rounds):
        chance = random.Random(f"{SEED} cut {seed}")
        length = chance.choice([chance.randrange(size), chance.randrange(size * 9 // 10, size)])
        folder = copied(original.folder, tmp_path / str(seed))
        os.truncate(folder / FILE, length)
        where = f"seed {seed}: {length} bytes of {size}"
        missing = [page for page in pages.kinds if page * PAGE > length]
        roots_missing = any(pages.kinds[page].endswith("interior") or page < 8 for page in missing)
        found = drained_or_refused(folder, where, may_refuse=roots_missing)
        if found is not None:
            try:
                assert_right_and_told(found, original, set().union(*(pages.beneath.get(page, ()) for page in missing)))
                assert_goes_on(folder, max(original.records))
            except AssertionError as error:
                raise AssertionError(f"{where}: {error}") from error
        shutil.rmtree(folder)


@pytest.mark.timeout(900)
def test_B_S03_whatever_happened_to_a_file_no_wrong_record_is_given(
    tmp_path: Path, original: Original, pages: Pages, scale: int
) -> None:
    """Several pages at once, of any kind."""
    intact = (original.folder / FILE).read_bytes()
    rounds, refused, lost = 20 * scale, 0, 0
    for seed in range(rounds):
        chance = random.Random(f"{SEED} any {seed}")
        data = bytearray(intact)
        for _ in range(chance.choice([2, 5, 20])):
            chance.choice(DAMAGES)(data, chance.randrange(1, len(pages.kinds)), original, chance)
        folder = copied(original.folder, tmp_path / str(seed))
        (folder / FILE).write_bytes(data)
        found = drained_or_refused(folder, f"seed {seed}", may_refuse=True)
        if found is None:
            refused += 1
            continue
        try:
            assert_right_and_told(found, original, None)
            assert_goes_on(folder, max(original.records))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        lost += len(original.records.keys() - found.records.keys())
        shutil.rmtree(folder)
    print(f"{rounds} rounds, {refused} refused; {lost} of {(rounds - refused) * len(original.records)} records lost")
    assert refused < rounds / 2


# ---- a mending that is itself disturbed


def with_a_zeroed_leaf(original: Original, pages: Pages, folder: Path) -> tuple[Path, set[int], bytes]:
    """And which records were on it, and the bytes."""
    page = sorted(number for number, its in pages.kinds.items() if its == "record leaf")[20]
    data = bytearray((original.folder / FILE).read_bytes())
    data[(page - 1) * PAGE : page * PAGE] = bytes(PAGE)
    copied(original.folder, folder)
    (folder / FILE).write_bytes(data)
    return folder, pages.beneath[page], bytes(data)


OPEN = "import sys; from pathlib import Path; from safekafka.spool.journal import Journal; Journal(Path(sys.argv[1]))"


@pytest.mark.parametrize("passage", [1, 2, 3, 4])
def test_B_S05_a_mending_that_was_killed_is_finished_by_the_next_start(
    tmp_path: Path, original: Original, pages: Pages, passage: int
) -> None:
    folder, lost, damaged = with_a_zeroed_leaf(original, pages, tmp_path / "lane")
    process = subprocess.run(
        [sys.executable, "-c", OPEN, folder],
        env={**os.environ, "SAFEKAFKA_CRASH_POINT": f"during_salvage:{passage}"},
        timeout=60,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    found = drained(folder)
    assert found.records == {seq: data for seq, data in original.records.items() if seq not in lost}
    assert found.told is None or found.told >= len(lost)
    assert found.told is None or found.told > 0  # though the one who knew is dead
    (evidence,) = folder.glob("damaged-*")
    assert evidence.read_bytes()[PAGE:] == damaged[PAGE:]  # the first page counts who opened it
    assert_goes_on(folder, max(original.records))
    assert not [path.name for path in folder.iterdir() if "mended" in path.name]


def test_B_S05_a_mending_killed_again_and_again_leaves_no_growing_pile(
    tmp_path: Path, original: Original, pages: Pages
) -> None:
    folder, lost, _ = with_a_zeroed_leaf(original, pages, tmp_path / "lane")
    for passage in (1, 3, 2, 3, 1):
        process = subprocess.run(
            [sys.executable, "-c", OPEN, folder],
            env={**os.environ, "SAFEKAFKA_CRASH_POINT": f"during_salvage:{passage}"},
            timeout=60,
            check=False,
        )
        assert process.returncode == -signal.SIGKILL
        assert len([path for path in folder.iterdir() if "mended" in path.name]) <= 2  # and its rollback journal
    found = drained(folder)
    assert original.records.keys() - found.records.keys() == lost
    assert len(list(folder.glob("damaged-*"))) == 1
    assert_goes_on(folder, max(original.records))


def test_B_S09_a_mending_that_finds_no_room_loses_nothing_and_is_done_once_there_is(
    tmp_path: Path, original: Original, pages: Pages
) -> None:
    folder, lost, damaged = with_a_zeroed_leaf(original, pages, tmp_path / "lane")
    room = [20]

    def connect(path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        if path.name.endswith(".mended"):
            connection.execute(f"PRAGMA max_page_count = {room[0]}")
        return connection

    for _ in range(3):
        with pytest.raises(SpoolFullError, match="Remedy"):
            Journal(folder, "process", connect=connect)
        assert (folder / FILE).read_bytes()[PAGE:] == damaged[PAGE:]
        assert list(folder.glob("damaged-*")) == []
    room[0] = 100_000
    Journal(folder, "process", connect=connect).close()
    found = drained(folder)
    assert original.records.keys() - found.records.keys() == lost


class InUse(NamedTuple):
    journal: Journal
    connect_room: list[int]


def damaged_while_in_use(original: Original, pages: Pages, folder: Path) -> tuple[InUse, set[int]]:
    """A journal that was opened before the damage."""
    room = [100_000]

    def connect(path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        if path.name.endswith(".mended"):
            connection.execute(f"PRAGMA max_page_count = {room[0]}")
        with contextlib.suppress(sqlite3.DatabaseError):  # where it can't even be opened
            connection.execute("PRAGMA cache_size = 1")
        return connection

    copied(original.folder, folder)
    journal = Journal(folder, "process", connect=connect)
    _, lost, damaged = with_a_zeroed_leaf(original, pages, folder.parent / "damaged")
    with (folder / FILE).open("r+b") as file:
        file.write(damaged)
    return InUse(journal, room), lost


def test_B_S03_a_journal_in_use_is_mended_and_goes_on_with_its_numbers(
    tmp_path: Path, original: Original, pages: Pages
) -> None:
    (journal, _), lost = damaged_while_in_use(original, pages, tmp_path / "lane")
    highest = journal.last_seq
    with pytest.raises(SpoolCorruptError):
        journal.read(1, journal.last_seq, 1 << 20, 1 << 30)
    assert journal.is_damaged()
    journal.mend()
    assert not journal.is_damaged()
    assert journal.count == len(original.records) - len(lost)
    assert {one.seq: encode(one.fields) for one in journal.rejected()} == original.rejected
    assert {one.reason for one in journal.rejected()} == {"too large ☹"}
    data = row(random.Random(1), 1)
    assert journal.append([data]) == highest + 1
    found = _drained(journal)
    assert found.records == {seq: its for seq, its in original.records.items() if seq not in lost} | {highest + 1: data}
    assert found.told is not None
    assert len(lost) <= found.told <= len(lost) + 20  # and not as if all of it were lost
    journal.close()


def test_B_S09_a_journal_in_use_whose_mending_finds_no_room_is_mended_later(
    tmp_path: Path, original: Original, pages: Pages
) -> None:
    (journal, room), lost = damaged_while_in_use(original, pages, tmp_path / "lane")
    room[0] = 20
    for _ in range(3):
        with pytest.raises(SpoolFullError, match="Remedy"):
            journal.mend()
        with pytest.raises((SpoolCorruptError, SpoolUnusableError)):
            journal.append([row(random.Random(1), 1)])
        with pytest.raises((SpoolCorruptError, SpoolUnusableError)):
            journal.read(1, 10, 10, 10)
        assert journal.is_damaged()  # so that the sender comes to it again
    room[0] = 100_000
    journal.mend()
    assert journal.append([row(random.Random(1), 1)]) > max(original.records)
    assert journal.count == len(original.records) - len(lost) + 1
    journal.close()


def test_B_S03_a_journal_of_which_nothing_can_be_read_is_kept_and_told_and_the_next_one_goes_on(
    tmp_path: Path, original: Original, pages: Pages
) -> None:
    (journal, _), _ = damaged_while_in_use(original, pages, tmp_path / "lane")
    highest = journal.last_seq
    with journal.path.open("r+b") as file:
        file.write(bytes(PAGE))
    damaged = journal.path.read_bytes()
    journal.mend()
    (loss,) = journal.losses
    assert loss.records is None
    assert loss.evidence is not None
    assert loss.evidence.read_bytes()[PAGE:] == damaged[PAGE:]
    assert journal.append([row(random.Random(1), 1)]) == highest + 1
    journal.close()


# ---- single bits whose harm is known: each was found by chance above, and is kept


def flipped(original: Original, pages: Pages, folder: Path, where: Callable[[bytes, int], int], bit: int) -> Path:
    """A leaf page with many rows, in which the bit of the byte that `where` finds is flipped."""
    page = max(
        (number for number, its in pages.kinds.items() if its == "record leaf"),
        key=lambda number: len(pages.beneath.get(number, ())),
    )
    data = bytearray((original.folder / FILE).read_bytes())
    data[where(bytes(data), (page - 1) * PAGE)] ^= 1 << bit
    copied(original.folder, folder)
    (folder / FILE).write_bytes(data)
    return folder


def _cell(data: bytes, page: int, index: int) -> int:
    return page + struct.unpack_from(">H", data, page + 8 + 2 * index)[0]


def _number(data: bytes, page: int) -> int:
    """The low byte of the third row's number."""
    _, position = _varint(data, _cell(data, page, 2))
    return _varint(data, position)[1] - 1


def _type_of_fields(data: bytes, page: int) -> int:
    """The low byte of the third row's type of `fields`: even for bytes, odd for text."""
    _, position = _varint(data, _cell(data, page, 2))
    _, position = _varint(data, position)
    _, position = _varint(data, position)  # the size of the row's head
    _, position = _varint(data, position)  # the type of seq
    return _varint(data, position)[1] - 1


def _rows_of_the_page(data: bytes, page: int) -> int:
    return page + 4


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("where", [_number, _type_of_fields, _rows_of_the_page])
def test_B_S03_one_flipped_bit_costs_no_more_than_its_page(
    tmp_path: Path, original: Original, pages: Pages, where: Callable[[bytes, int], int], bit: int
) -> None:
    """A row with another's number, out of order, or as a text that is none; a page that says it has fewer rows."""
    folder = flipped(original, pages, tmp_path / "lane", where, bit)
    most = max((seqs for number, seqs in pages.beneath.items() if pages.kinds[number] == "record leaf"), key=len)
    assert_right_and_told(drained(folder), original, most)
    assert_goes_on(folder, max(original.records))


def test_B_S09_a_loss_found_at_a_start_without_room_is_told_by_the_attempt_that_finds_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, refusals = Journal._settle_state, 1

    def full_at_first(self: Journal) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise SpoolFullError("no room on the disk")
        settle(self)

    monkeypatch.setattr(Journal, "_settle_state", full_at_first)
    whole, emptied = tmp_path / "whole", tmp_path / "emptied"
    for folder in (whole, emptied):
        folder.mkdir()
        refusals = 0
        journal = Journal(folder, "process")
        for n in range(100):
            journal.append([b"%d" % n * 100])
        if folder is emptied:
            journal.delete(range(1, 101), 0)
        journal.close()
        refusals = 1
        if folder is emptied:
            (folder / FILE).unlink()
        else:
            with (folder / FILE).open("r+b") as file:
                file.seek(8_192)
                file.write(bytes(8_192))
        journal = Journal(folder, "process")
        assert refusals == 0
        assert bool(journal.losses) == (folder is whole), journal.losses
        assert len({loss.what for loss in journal.losses}) == len(journal.losses)
        assert journal.last_seq == 100
        journal.close()
