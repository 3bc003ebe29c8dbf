"""`safekafka demo --mock`, as a user runs it; and its ledger, which must see what went wrong."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safekafka.cli.demo.book import ACCEPTED, HANDLED, TRYING, Book, Reader
from safekafka.cli.demo.faults import Fault, Schedule
from safekafka.cli.demo.ledger import Ledger, count

SAFEKAFKA = [sys.executable, "-c", "from safekafka.cli import main; main()"]


def _environment(folder: Path) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    return {**plain, "TMPDIR": str(folder)}


def test_demo_loses_nothing_and_says_so_in_plain_lines(tmp_path: Path) -> None:
    demo = subprocess.run(
        [*SAFEKAFKA, "demo", "--mock", "--orders", "1000", "--seed", "1"],
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert demo.stderr == ""
    assert "\x1b" not in demo.stdout, "colours and cursor movements are for terminals"
    counts = _table(demo.stdout)
    assert counts["accepted"] == counts["in Kafka"] == 1000
    assert counts["handled"] == 999
    assert counts["dead-lettered"] == 1
    assert counts["lost"] == counts["unfinished"] == counts["out of order"] == counts["unexpected"] == 0
    for event in ("SIGKILL to broker", "SIGKILL to the producer", "The producer was started again", "Lost: 0."):
        assert event in demo.stdout
    assert list(tmp_path.iterdir()) == [], "everything temporary is removed"


def test_demo_draws_bars_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    demo = subprocess.Popen(
        [*SAFEKAFKA, "demo", "--mock", "--orders", "300"],
        env={**_environment(tmp_path), "TERM": "xterm", "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # the other end is closed
    finally:
        os.close(ours)

    assert demo.wait(60) == 0, shown.decode()
    text = shown.decode()
    assert "\x1b[" in text
    for bar in ("sent", "on disk", "acknowledged", "handled", "dead-lettered", "broker 1", "producer"):
        assert bar in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is visible again"


def test_demo_refuses_more_orders_than_the_mock_brokers_hold() -> None:
    demo = subprocess.run(
        [*SAFEKAFKA, "demo", "--mock", "--orders", "100001"], capture_output=True, text=True, timeout=60, check=False
    )
    assert demo.returncode == 2
    assert "at most 100,000" in demo.stdout


def _table(output: str) -> dict[str, int]:
    rows = (line.split("│")[1:3] for line in output.splitlines() if line.count("│") == 4)
    return {name.strip(): int(number.replace(",", "")) for name, number in rows}


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_the_command_names_it(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None\nfrom safekafka.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", program, "demo", "--mock"], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode != 0
    assert "pip install 'safekafka[cli" in run.stdout + run.stderr
    assert "Traceback" not in run.stderr


def _demo_with(patch: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = f"import safekafka.cli.demo.run as run\n{patch}\nfrom safekafka.cli import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", program, "demo", "--mock", "--orders", "200", "--seed", "1"],
        env=_environment(folder),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def _kept(folder: Path) -> set[str]:
    """What is left in the temporary folder: one folder with what explains the failure."""
    (kept,) = folder.iterdir()
    return {path.name for path in kept.iterdir()}


def test_a_lost_order_is_exit_status_1_and_the_logs_are_kept(tmp_path: Path) -> None:
    # The plain client's view of the topic without its first message.
    patch = "read = run.read_log\nrun.read_log = lambda s, topic, timeout: read(s, topic, timeout)[topic == 'orders' :]"
    demo = _demo_with(patch, tmp_path)
    assert demo.returncode == 1, demo.stdout + demo.stderr
    assert _table(demo.stdout)["lost"] == 1
    assert "Lost: 1." in demo.stdout
    assert "are kept in" in demo.stdout
    assert {"place_orders.log", "place_orders.book", "handle_orders.log", "handle_orders.book"} <= _kept(tmp_path)


def test_a_program_that_dies_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    patch = (
        "start = run.Workshop.start\n"
        "run.Workshop.start = lambda self, name, **o: start(self, name, **o, **({'no': 1} if name[0] == 'h' else {}))"
    )
    demo = _demo_with(patch, tmp_path)
    assert demo.returncode == 1
    assert "handle_orders ended with status 2" in demo.stdout
    assert "unrecognized arguments: --no" in demo.stdout
    assert "Traceback" not in demo.stdout + demo.stderr
    assert "handle_orders.log" in _kept(tmp_path)


def test_brokers_that_cannot_be_had_are_told_with_the_remedy(tmp_path: Path) -> None:
    demo = subprocess.run(
        [*SAFEKAFKA, "demo"],
        env={**_environment(tmp_path), "SAFEKAFKA_KAFKA_HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert demo.returncode == 1
    assert "The demo failed: SAFEKAFKA_KAFKA_HOME=/nonexistent is not an unpacked Kafka" in demo.stdout
    assert demo.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_ends_the_demo_quietly(tmp_path: Path) -> None:
    command = " ".join([sys.executable, "-c", "'from safekafka.cli import main; main()'", "demo --mock --orders 300"])
    shell = subprocess.run(
        ["/bin/sh", "-c", f"{command} | head -n 1"],
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert shell.stdout.startswith("300 orders through three mock brokers")
    assert shell.stderr == ""
    assert list(tmp_path.iterdir()) == []


class _Message:
    """What the ledger reads of a message."""

    def __init__(self, order: str, offset: int, key: bytes = b"c", value: bytes = b"v", partition: int = 0) -> None:
        self._parts: dict[str, Any] = {
            "topic": "orders",
            "headers": [("order", order.encode())],
            "key": key,
            "value": value,
            "partition": partition,
            "offset": offset,
        }

    def __getattr__(self, name: str) -> Any:
        return lambda: self._parts[name]


def _count(
    accepted: list[str],
    log: list[str],
    handled: list[tuple[str, int]],
    letters: list[str] | None = None,
    tried: list[str] | None = None,
) -> Ledger:
    return count(
        [[TRYING, order, "c"] for order in tried or accepted] + [[ACCEPTED, order, "c"] for order in accepted],
        [[HANDLED, order, "0", str(offset)] for order, offset in handled],
        [_Message(order, offset) for offset, order in enumerate(log)],  # type: ignore[misc]
        [_Message(order, offset) for offset, order in enumerate(letters or [])],  # type: ignore[misc]
        poison={3},
    )


def test_ledger_passes_what_is_whole() -> None:
    ledger = _count(["1/1", "2/1", "3/1"], ["1/1", "2/1", "3/1"], [("1/1", 0), ("2/1", 1)], ["3/1"])
    assert ledger.ok
    assert (ledger.accepted, ledger.in_kafka, ledger.handled, ledger.dead_lettered) == (3, 3, 2, 1)


def test_ledger_sees_a_lost_order() -> None:
    ledger = _count(["1/1", "2/1"], ["1/1"], [("1/1", 0)])
    assert (ledger.lost, ledger.ok) == (1, False)


def test_ledger_sees_an_order_that_was_skipped_by_the_consumer() -> None:
    ledger = _count(["1/1", "2/1"], ["1/1", "2/1"], [("2/1", 1)])
    assert (ledger.lost, ledger.unfinished, ledger.ok) == (0, 1, False)


def test_ledger_counts_a_duplicate_and_does_not_mind_it() -> None:
    handled = [("1/1", 0), ("2/1", 1), ("1/1", 2), ("2/1", 3)]
    ledger = _count(["1/1", "2/1"], ["1/1", "2/1", "1/1", "2/1"], handled)
    assert (ledger.duplicates, ledger.out_of_order, ledger.ok) == (2, 0, True)


def test_ledger_sees_a_wrong_order_in_kafka_and_in_handling() -> None:
    assert _count(["1/1", "2/1"], ["2/1", "1/1"], [("2/1", 0), ("1/1", 1)]).out_of_order == 2
    assert _count(["1/1", "2/1"], ["1/1", "2/1"], [("2/1", 1), ("1/1", 0)]).out_of_order == 1


def test_ledger_sees_an_order_that_nobody_placed_and_a_needless_dead_letter() -> None:
    assert _count(["1/1"], ["1/1", "9/1"], [("1/1", 0), ("9/1", 1)]).unexpected == 1
    assert _count(["1/1"], ["1/1"], [], ["1/1"]).unexpected == 1


@pytest.mark.parametrize("present", [False, True])
def test_ledger_keeps_the_order_in_doubt_apart(present: bool) -> None:
    """Its send() was cut off by the kill: it may be in Kafka or not, and is neither lost nor a duplicate."""
    log = ["1/1", *(["2/1"] if present else []), "2/2"]
    ledger = _count(["1/1", "2/2"], log, [(order, at) for at, order in enumerate(log)], tried=["1/1", "2/1", "2/2"])
    assert (ledger.in_doubt, ledger.in_doubt_in_kafka) == (1, int(present))
    assert (ledger.accepted, ledger.duplicates, ledger.ok) == (2, 0, True)


def test_a_book_goes_on_where_it_was_and_drops_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "book"
    reader = Reader(path)
    assert reader.news() == []
    Book(path).write(ACCEPTED, "1/1", "c")
    with path.open("ab") as file:
        file.write(b"accepted 2/")
    assert reader.news() == [[ACCEPTED, "1/1", "c"]]
    again = Book(path)
    assert again.past == [[ACCEPTED, "1/1", "c"]]
    again.write(ACCEPTED, "2/1", "c")
    assert reader.news() == [[ACCEPTED, "2/1", "c"]]


def test_faults_come_in_order_each_once() -> None:
    for seed in range(20):
        schedule = Schedule(seed)
        assert schedule.due(0.1, now=100.0) is None
        found = []
        for step in range(200):
            fault = schedule.due(step / 200, now=100.0 + step * 0.1)
            found += [fault] if fault else []
        assert found == list(Fault)
        assert schedule.over
