"""A lane that can't be opened is told and passed over: it holds up neither a start nor the lanes behind it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safekafka import Spool, SpoolCorruptError, SpoolUnusableError
from safekafka.spool import lane as lane_module
from safekafka.spool.codec import encode
from safekafka.spool.inspect import lanes
from safekafka.spool.journal import FILE, HIGH
from safekafka.spool.lane import Identity, Unusable, orphans, own_lane

OURS = Identity("default", "localhost:9092", None)


def leave_lanes(folder: Path, count: int) -> list[Path]:
    """Of as many processes that have ended, each with a record."""
    lanes = [own_lane(Spool(folder), OURS) for _ in range(count)]
    for lane in lanes:
        lane.journal.append([encode(("orders", lane.folder.name.encode(), None, None, -1, 1))])
    for lane in lanes:
        lane.close()
    return [lane.folder for lane in lanes]


def lock_that_is_none(lane: Path) -> None:
    (lane / "lock").unlink()
    (lane / "lock").mkdir()


def no_rights(lane: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root has all rights")
    lane.chmod(0)


def no_rights_to_its_journal(lane: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root has all rights")
    (lane / FILE).chmod(0)


def journal_that_is_none(lane: Path) -> None:
    (lane / FILE).rename(lane / "kept")
    (lane / FILE).mkdir()


def another_format(lane: Path) -> None:
    set_format(lane, 99)


def set_format(lane: Path, version: int) -> None:
    with contextlib.closing(sqlite3.connect(lane / FILE)) as file:
        file.execute(f"PRAGMA user_version = {version}")


def half_a_lane_json(lane: Path) -> None:
    about = (lane / "lane.json").read_text()
    (lane / "lane.json").write_text(about[: len(about) // 2])


def lane_json_of_other_types(lane: Path) -> None:
    (lane / "lane.json").write_text('{"id": 7, "spool": "default", "bootstrap": "localhost:9092", "cluster": null}')


def no_lane_json(lane: Path) -> None:
    (lane / "lane.json").unlink()


def damaged(lane: Path) -> None:
    (lane / FILE).write_bytes(b"not a database, by no means" * 1_000)


WAYS = [
    lock_that_is_none,
    no_rights,
    no_rights_to_its_journal,
    journal_that_is_none,
    another_format,
    half_a_lane_json,
    lane_json_of_other_types,
    no_lane_json,
]


def adopted(spool: Spool, unusable: Unusable) -> list[str]:
    """What a running process finds, and gives back."""
    found = []
    for lane in orphans(spool, OURS, unusable):
        found.append(lane.folder.name)
        lane.close()
    return found


@pytest.mark.parametrize("spoil", [*WAYS, damaged])
def test_P5_a_lane_that_cannot_be_opened_holds_up_no_other_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(lane_module, "_AGAIN_SECONDS", 0.0)
    _, lane, _ = leave_lanes(tmp_path, 3)
    spoil(lane)
    unusable, spool = Unusable(), Spool(tmp_path, on_damage="refuse")
    for _ in range(3):
        assert adopted(spool, unusable) == ["lane-0", "lane-2"]
        (problem,) = unusable.problems
        assert "lane-1" in problem
        assert "Remedy" in problem
    assert caplog.text.count(f"lane_unusable lane='{lane}'") == 1
    assert caplog.text.count("lane_unusable") == 1


@pytest.mark.parametrize("spoil", WAYS)
def test_P5_a_start_takes_another_lane_where_one_cannot_be_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    first, second = leave_lanes(tmp_path, 2)
    for lane, expected in ((first, "lane-1"), (second, "lane-2")):
        spoil(lane)
        unusable = Unusable()
        mine = own_lane(Spool(tmp_path), OURS, unusable)
        mine.close()
        assert mine.folder.name == expected
        assert f"lane_unusable lane='{lane}'" in caplog.text
        assert any(str(lane) in problem for problem in unusable.problems)


def test_P5_a_lane_is_adopted_once_it_can_be_opened_again_and_told_anew_if_that_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lane,) = leave_lanes(tmp_path, 1)
    unusable, spool = Unusable(), Spool(tmp_path)
    for told in (1, 2):
        set_format(lane, 99)
        assert adopted(spool, unusable) == []
        assert caplog.text.count("lane_unusable") == told
        set_format(lane, 2)
        assert adopted(spool, unusable) == []  # not at once: an attempt may take long
        monkeypatch.setattr(lane_module, "monotonic", lambda told=told: 1e12 * told)
        assert adopted(spool, unusable) == ["lane-0"]
        assert unusable.problems == []
    set_format(lane, 99)
    assert adopted(spool, unusable) == []
    lane.rename(tmp_path / "moved")
    assert adopted(spool, unusable) == []
    assert unusable.problems == []


def test_an_empty_slot_that_cannot_be_used_is_nobodys_problem(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lane = own_lane(Spool(tmp_path), OURS)
    lane.close()
    lock_that_is_none(lane.folder)
    unusable = Unusable()
    mine = own_lane(Spool(tmp_path), OURS, unusable)
    mine.close()
    assert mine.folder.name == "lane-1"
    assert unusable.problems == []
    assert "lane_unusable" not in caplog.text


def test_damage_that_is_to_be_refused_refuses_the_start_that_would_take_the_lane_as_its_own(tmp_path: Path) -> None:
    lane, _ = leave_lanes(tmp_path, 2)
    damaged(lane)
    for _ in range(2):
        with pytest.raises(SpoolCorruptError, match=r"lane-0.*Remedy: .*on_damage='set_aside'"):
            own_lane(Spool(tmp_path, on_damage="refuse"), OURS)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["lane-0", "lane-1"]


def test_a_spool_folder_that_cannot_be_listed_is_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(SpoolUnusableError, match=r"can't be used: Permission denied.*Remedy"):
        list(orphans(Spool(tmp_path), OURS))


def test_a_disk_that_becomes_read_only_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **options: Any) -> None:
        raise OSError(30, "Read-only file system")

    lane = own_lane(Spool(tmp_path), OURS)
    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(SpoolUnusableError, match=r"can't be used: Read-only file system.*Remedy"):
        lane.belongs_to(OURS._replace(cluster="A"))
    lane.close()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Looking into a folder, on Python 3.14 or not: from there on pathlib tells of no missing right."""
    refused: list[Path] = []
    plain = os.stat

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if isinstance(path, (str, Path)) and any(folder in Path(path).parents for folder in refused):
            raise PermissionError(13, "Permission denied")
        return plain(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(Path, "exists", os.path.exists)
    monkeypatch.setattr(Path, "is_dir", os.path.isdir)
    return refused.append


def test_a_lane_that_may_not_be_looked_into_is_told_on_any_python(
    tmp_path: Path, refused: Callable[[Path], None]
) -> None:
    first, second = leave_lanes(tmp_path, 2)
    refused(first)
    unusable = Unusable()
    assert adopted(Spool(tmp_path), unusable) == ["lane-1"]
    (problem,) = unusable.problems
    assert "lane-0" in problem
    assert "Permission denied" in problem
    (first / HIGH).unlink()
    assert lanes(tmp_path) == [first, second]


def test_a_spool_folder_that_may_not_be_looked_into_is_told_on_any_python(
    tmp_path: Path, refused: Callable[[Path], None]
) -> None:
    leave_lanes(tmp_path / "spool", 1)
    refused(tmp_path)
    with pytest.raises(SpoolUnusableError, match=r"can't be used: Permission denied.*Remedy"):
        list(orphans(Spool(tmp_path / "spool"), OURS))
