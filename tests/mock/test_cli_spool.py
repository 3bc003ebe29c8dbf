"""`safekafka spool`, on real folders and mock brokers: in this process, and as a user runs it where signals matter."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError
from typer.testing import CliRunner

from safekafka import SafeProducer, Spool
from safekafka.cli.app import app
from safekafka.spool.inspect import LaneView
from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from safekafka.testing.mock import ApiKey
from tests.mock.conftest import TOPIC
from tests.processes import wait_until

SAFEKAFKA = [sys.executable, "-c", "from safekafka.cli import main; main()"]
SECRET_KEY, SECRET_VALUE = "key-nobody-may-see", "value-nobody-may-see"
COMMANDS = ("status", "list", "show", "verify", "rejected", "export", "requeue", "discard", "drain")


class Ran:
    def __init__(self, *arguments: object, answer: str | None = None) -> None:
        result = CliRunner().invoke(app, ["spool", *map(str, arguments)], input=answer)
        self.status, self.out, self.err = result.exit_code, result.stdout, result.stderr
        self.all = self.out + self.err
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def table(self) -> list[list[str]]:
        return [line.split() for line in self.out.splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def outage(cluster: MockCluster) -> MockCluster:
    cluster.set_broker_down()
    return cluster


@pytest.fixture
def fill(cluster: MockCluster, make: Callable[..., SafeProducer], path: Path) -> Callable[..., Path]:
    """An outage, and lanes whose programs have ended in it: of each, the values of its records."""

    def fill_lanes(*lanes: list[str], name: str = "default", config: dict[str, Any] | None = None) -> Path:
        cluster.set_broker_down()
        producers = [make(config, spool=Spool(path, name=name)) for _ in lanes]
        for producer, values in zip(producers, lanes, strict=True):
            for value in values:
                producer.send(TOPIC, value, key=f"key of {value}", partition=0)
            producer.close(0)
        return path

    return fill_lanes


@pytest.fixture
def with_rejected(cluster: MockCluster, make: Callable[..., SafeProducer], path: Path) -> Path:
    """Lane 0 with two rejected records: 1 and 2."""
    producer = make(spool=path)
    for value in ("first", "second"):
        cluster.push_request_errors(ApiKey.Produce, *[KafkaError.MSG_SIZE_TOO_LARGE] * 2)
        assert producer.send(TOPIC, value, key=SECRET_KEY, partition=0).exception(30) is not None
    producer.close(10)
    return path


@pytest.fixture
def alive(outage: MockCluster, make: Callable[..., SafeProducer], path: Path) -> SafeProducer:
    """A producer that has its lane open, and two records on it that can't be sent."""
    producer = make(spool=path)
    for value in (SECRET_VALUE, "other"):
        producer.send(TOPIC, value, key=SECRET_KEY)
    return producer


@contextlib.contextmanager
def journal(path: Path, lane: int = 0) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path / f"lane-{lane}" / "journal.sqlite3")) as connection:
        yield connection
        connection.commit()


def damage(path: Path, seq: int) -> None:
    with journal(path) as file:
        (data,) = file.execute("SELECT fields FROM record WHERE seq = ?", (seq,)).fetchone()
        file.execute("UPDATE record SET fields = ? WHERE seq = ?", (data[:-1] + bytes([data[-1] ^ 1]), seq))


def in_kafka(cluster: MockCluster, topic: str = TOPIC) -> list[str]:
    return [(message.value() or b"").decode() for message in read_log(cluster.bootstrap_servers, topic, timeout=30)]


def pending(path: Path) -> int:
    return sum(lane["records"] for lane in json.loads(Ran("status", path, "--json").out)["lanes"])


def run_command(*arguments: object, seconds: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SAFEKAFKA, "spool", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        **options,
    )


# ---- looking


def test_status_tells_of_each_lane_who_has_it_whose_it_is_and_what_it_holds(
    outage: MockCluster, fill: Callable[..., Path], make: Callable[..., SafeProducer], path: Path
) -> None:
    living = make(spool=path)
    living.send(TOPIC, b"0")
    fill(["1", "2"], name="mine")
    ran = Ran("status", path)
    assert ran.status == 0, ran.all
    head, first, second, total = ran.table
    assert " ".join(head) == "LANE RECORDS BYTES REJECTED DAMAGED OLDEST OWNER SPOOL CLUSTER BROKERS"
    brokers = ",".join(sorted(outage.bootstrap_servers.split(",")))
    assert first[:2] == ["lane-0", "1"]
    assert first[-5:] == ["process", str(os.getpid()), "default", "unknown", brokers]
    assert second[:2] == ["lane-1", "2"]
    assert second[-4:] == ["nobody", "mine", "unknown", brokers]
    assert total[:2] == ["total", "3"]

    told = json.loads(Ran("status", path, "--json").out)
    assert [lane["records"] for lane in told["lanes"]] == [1, 2]
    assert [lane["owner"] for lane in told["lanes"]] == [f"process {os.getpid()}", None]
    assert [lane["spool"] for lane in told["lanes"]] == ["default", "mine"]
    assert abs(told["lanes"][1]["oldest_at"] - time.time()) < 100
    assert told["total"]["records"] == 3
    assert told["total"]["bytes"] == sum(lane["bytes"] for lane in told["lanes"]) > 0


def test_status_tells_a_lane_that_cannot_be_read_and_the_others_all_the_same(fill: Callable[..., Path]) -> None:
    path = fill(["1"], ["2", "3"])
    (path / "lane-0" / "journal.sqlite3").write_bytes(b"no database" * 1000)
    ran = Ran("status", path)
    assert ran.status == 1
    assert "lane-0 can't be read: file is not a database" in ran.err
    assert ["lane-1", "2"] in [line[:2] for line in ran.table]
    told = json.loads(Ran("status", path, "--json").out)
    assert "not a database" in told["lanes"][0]["problem"]
    assert told["total"]["records"] == 2


def test_status_tells_a_lane_that_cannot_be_opened_and_the_others_all_the_same(fill: Callable[..., Path]) -> None:
    """Here its lock can't be, as where rights are missing."""
    path = fill(["1"], ["2", "3"])
    (path / "lane-0" / "lock").unlink()
    (path / "lane-0" / "lock").mkdir()
    ran = Ran("status", path)
    assert ran.status == 1
    assert "lane-0 can't be read: spool" in ran.err
    assert ["lane-1", "2"] in [line[:2] for line in ran.table]


def test_a_lane_whose_journal_is_gone_is_told_and_the_others_are_read(fill: Callable[..., Path]) -> None:
    path = fill(["a", "b"], ["c"])
    for file in (path / "lane-0").glob("journal.sqlite3*"):
        file.unlink()
    ran = Ran("status", path)
    assert ran.status == 1
    assert "lane-0 can't be read" in ran.err
    assert "records up to number 2" in ran.err
    ran = Ran("verify", path)
    assert ran.status == 1
    assert "lane-0: 0 records read, NOT WELL" in ran.out
    ran = Ran("export", path)
    assert [base64.b64decode(line["value"]) for line in ran.lines] == [b"c"]
    assert "lane-0 has lost its journal.sqlite3" in ran.err


@pytest.mark.parametrize("command", [["status"], ["list"], ["show", 1], ["verify"], ["rejected"], ["export"]], ids=str)
def test_what_only_looks_works_beside_the_living_process(
    command: list[object], alive: SafeProducer, outage: MockCluster, path: Path
) -> None:
    ran = Ran(command[0], path, *command[1:])
    assert ran.status == 0, ran.all
    outage.set_broker_up()
    assert alive.flush(30) == 0
    assert sorted(in_kafka(outage)) == ["other", SECRET_VALUE]


def test_keys_and_values_are_told_by_list_show_and_export_alone(with_rejected: Path, fill: Callable[..., Path]) -> None:
    path = fill([SECRET_VALUE])
    for command in (["status"], ["verify"], ["rejected"], ["drain", "--timeout", 0.5], ["requeue", 1], ["discard", 2]):
        for as_json in ([], ["--json"]) if command[0] not in ("requeue", "discard") else ([],):
            ran = Ran(command[0], path, *command[1:], *as_json, answer="y\n")
            assert SECRET_VALUE not in ran.all
            assert SECRET_KEY not in ran.all
            assert f"key of {SECRET_VALUE}" not in ran.all
    assert f"key of {SECRET_VALUE}" in Ran("list", path).out
    assert SECRET_VALUE not in Ran("list", path).out.replace(f"key of {SECRET_VALUE}", "")


def test_list_has_a_line_for_each_record_in_its_order(fill: Callable[..., Path]) -> None:
    path = fill(["a", "b", "c"], ["d"])
    ran = Ran("list", path)
    assert ran.status == 0
    assert [line[:2] for line in ran.table[1:]] == [["lane-0", "1"], ["lane-0", "2"], ["lane-0", "3"], ["lane-1", "1"]]
    assert ran.out.splitlines()[1].endswith("key of a")
    assert [line["seq"] for line in Ran("list", path, "--json").lines] == [1, 2, 3, 1]
    assert [line["lane"] for line in Ran("list", path, "--lane", 1, "--json").lines] == [1]


def test_list_ends_at_the_limit_and_says_when_there_is_more(fill: Callable[..., Path]) -> None:
    path = fill(["a", "b", "c"])
    ran = Ran("list", path, "--limit", 2)
    assert len(ran.table) == 1 + 2
    assert "first 2" in ran.err
    assert Ran("list", path, "--limit", 3).err == ""


def test_list_can_be_of_one_topic(outage: MockCluster, make: Callable[..., SafeProducer], path: Path) -> None:
    producer = make(spool=path)
    for topic in ("a", "b", "a"):
        producer.send(topic, b"")
    producer.close(0)
    assert [line["seq"] for line in Ran("list", path, "--topic", "a", "--json").lines] == [1, 3]
    nothing = Ran("list", path, "--topic", "c")
    assert (nothing.status, nothing.out) == (0, "")


KEYS = {
    None: "-",
    b"": "(empty)",
    "käse".encode(): "käse",
    b"\x1b[31m": "0x1b5b33316d",
    b"two\nlines": "0x74776f0a6c696e6573",
    b"\xff\xfe": "0xfffe",
    b"k" * 100: "k" * 39 + "…",
}


def test_list_shows_keys_cut_and_never_sends_control_characters_to_the_terminal(
    outage: MockCluster, make: Callable[..., SafeProducer], path: Path
) -> None:
    producer = make(spool=path)
    for key in KEYS:
        producer.send(TOPIC, b"", key=key)
    producer.close(0)
    assert [line.split()[-1] for line in Ran("list", path).out.splitlines()[1:]] == list(KEYS.values())
    told = [line["key"] for line in Ran("list", path, "--json").lines]
    assert told[:3] == [None, {"text": ""}, {"text": "käse"}]
    assert told[5] == {"base64": base64.b64encode(b"\xff\xfe").decode()}


def test_show_tells_one_record_whole(outage: MockCluster, make: Callable[..., SafeProducer], path: Path) -> None:
    producer = make(spool=path)
    headers: list[tuple[str, bytes | None]] = [("a", None), ("b", b"\x00\xff"), ("c", "süß".encode())]
    producer.send(TOPIC, b"one\nmore", key=b"\xff", headers=headers, partition=3, timestamp=1_700_000_000_000)
    producer.send(TOPIC, None)
    producer.close(0)
    ran = Ran("show", path, 1)
    assert ran.status == 0
    for line in (
        "topic:     orders",
        "partition: 3",
        "time:      2023-11-14T22:13:20.000Z",
        "header:    a = none",
        "header:    b = (2 bytes, hex) 00ff",
        "header:    c = (5 bytes, text) süß",
        "key:       (1 bytes, hex) ff",
        "value:     (8 bytes, text) one\nmore",
    ):
        assert line in ran.out
    told = json.loads(Ran("show", path, 1, "--json").out)
    assert told["value"] == {"text": "one\nmore"}
    assert told["key"] == {"base64": "/w=="}
    assert told["headers"] == [["a", None], ["b", {"base64": "AP8="}], ["c", {"text": "süß"}]]
    assert "value:     none" in Ran("show", path, 2).out
    assert json.loads(Ran("show", path, 2, "--json").out)["headers"] is None


def test_show_tells_a_rejected_record_with_the_reason(with_rejected: Path) -> None:
    ran = Ran("show", with_rejected, 2)
    assert ran.status == 0
    assert "too large" in ran.out.lower()
    assert "(6 bytes, text) second" in ran.out
    assert "too large" in json.loads(Ran("show", with_rejected, 2, "--json").out)["reason"].lower()


def test_show_of_a_number_that_several_lanes_have_wants_the_lane(fill: Callable[..., Path]) -> None:
    path = fill(["a"], ["b"])
    assert Ran("show", path, 1).status == 2
    assert "(1 bytes, text) b" in Ran("show", path, 1, "--lane", 1).out
    gone = Ran("show", path, 2)
    assert gone.status == 1
    assert "no record 2" in gone.err


def test_verify_says_that_all_is_well(fill: Callable[..., Path]) -> None:
    path = fill(["a", "b"], ["c"])
    ran = Ran("verify", path)
    assert ran.status == 0
    assert ran.out == "lane-0: 2 records read, well\nlane-1: 1 record read, well\n"
    assert [line["ok"] for line in Ran("verify", path, "--json").lines] == [True, True]


def test_verify_tells_damaged_and_missing_records_with_status_1(fill: Callable[..., Path]) -> None:
    path = fill(list("abcdefgh"))
    damage(path, 3)
    damage(path, 4)
    with journal(path) as file:
        file.execute("DELETE FROM record WHERE seq = 7")
    ran = Ran("verify", path)
    assert ran.status == 1
    assert "damaged: 2 records: 3-4" in ran.out
    assert "missing: 1 record" in ran.out
    (told,) = Ran("verify", path, "--json").lines
    assert (told["ok"], told["bad"], told["missing"]) == (False, [3, 4], 1)


def test_verify_tells_a_file_that_is_no_journal(fill: Callable[..., Path]) -> None:
    path = fill(["a"], ["b"])
    (path / "lane-0" / "journal.sqlite3").write_bytes(b"no database" * 1000)
    ran = Ran("verify", path)
    assert ran.status == 1
    assert "lane-0: file is not a database" in ran.out
    assert "lane-1: 1 record read, well" in ran.out


# ---- export


def fields_of(line: dict[str, Any]) -> tuple[Any, ...]:
    def decoded(text: str | None) -> bytes | None:
        return None if text is None else base64.b64decode(text)

    headers = None if line["headers"] is None else [(name, decoded(content)) for name, content in line["headers"]]
    partition = -1 if line["partition"] is None else line["partition"]
    return line["topic"], decoded(line["value"]), decoded(line["key"]), headers, partition, line["timestamp"]


def test_export_loses_nothing_of_a_record(outage: MockCluster, make: Callable[..., SafeProducer], path: Path) -> None:
    producer = make(spool=path)
    producer.send(TOPIC)
    producer.send(TOPIC, b"", key=b"")
    producer.send(TOPIC, bytes(range(256)), b"\n", [("", b""), ("a", None), ("a", b"\x00")], 7, 1)
    producer.send(TOPIC, "süß\u2028".encode(), headers={"ä": b"\r\n"})
    producer.close(0)
    with LaneView(path / "lane-0") as view:
        stored = list(view.records())
    lines = Ran("export", path).lines
    assert [fields_of(line) for line in lines] == [record.fields for record in stored]
    assert [line["seq"] for line in lines] == [1, 2, 3, 4]
    assert len({line["id"] for line in lines}) == 4


def test_export_writes_a_new_file_whole_and_never_over_another(
    fill: Callable[..., Path], with_rejected: Path, tmp_path: Path
) -> None:
    path, file = fill(["c"]), tmp_path / "records.jsonl"
    ran = Ran("export", path, "--rejected", "--output", file)
    assert (ran.status, ran.out) == (0, "")
    assert "2 records exported" in ran.err
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [base64.b64decode(line["value"]) for line in lines] == [b"first", b"second"]
    assert all("too large" in line["reason"].lower() for line in lines)
    again = Ran("export", path, "--output", file)
    assert again.status == 1
    assert "exists" in again.err
    assert len(file.read_text().splitlines()) == 2
    assert len(Ran("export", path, "--lane", 0).lines) == 1


def test_export_of_a_damaged_lane_tells_which_records_it_lacks(fill: Callable[..., Path]) -> None:
    path = fill(["a", "b", "c"])
    damage(path, 2)
    ran = Ran("export", path)
    assert ran.status == 1
    assert [line["seq"] for line in ran.lines] == [1, 3]
    assert "damaged 2" in ran.err


def test_export_into_a_pipe_that_is_closed_ends_without_a_traceback(fill: Callable[..., Path]) -> None:
    path = fill(["x" * 10_000 for _ in range(50)])
    exporting = subprocess.Popen(
        [*SAFEKAFKA, "spool", "export", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert exporting.stdout is not None
        assert exporting.stderr is not None
        assert json.loads(exporting.stdout.readline())["seq"] == 1
        exporting.stdout.close()
        assert exporting.wait(30) == 1
        assert "Traceback" not in exporting.stderr.read()
    finally:
        exporting.kill()
        exporting.wait(30)
        exporting.stderr.close()


# ---- rejected, requeue, discard


def test_rejected_tells_the_reason_of_each(with_rejected: Path) -> None:
    ran = Ran("rejected", with_rejected)
    assert ran.status == 0
    assert [line[:2] for line in ran.table[1:]] == [["lane-0", "1"], ["lane-0", "2"]]
    assert "too large" in ran.out.lower()
    assert [line["seq"] for line in Ran("rejected", with_rejected, "--json").lines] == [1, 2]


def test_requeued_records_go_to_the_end_of_the_line_and_are_sent(
    with_rejected: Path, fill: Callable[..., Path], cluster: MockCluster
) -> None:
    path = fill(["third"])
    ran = Ran("requeue", path, 2)
    assert (ran.status, ran.out) == (0, "1 record requeued.\n")
    assert [line["seq"] for line in Ran("rejected", path, "--json").lines] == [1]
    assert [line["seq"] for line in Ran("list", path, "--json").lines] == [3, 4]
    assert Ran("requeue", path, "--all").out == "1 record requeued.\n"
    cluster.set_broker_up()
    assert Ran("drain", path, "--timeout", 60).status == 0
    assert in_kafka(cluster) == ["third", "second", "first"]
    assert Ran("requeue", path, "--all").status == 0


def test_discard_asks_before_it_forgets(with_rejected: Path) -> None:
    no = Ran("discard", with_rejected, "--all", answer="n\n")
    assert no.status == 1
    assert "Forget 2 rejected records for good?" in no.err
    assert "Nothing was changed. Without a question: --yes." in no.err
    assert len(Ran("rejected", with_rejected, "--json").lines) == 2
    assert Ran("discard", with_rejected, 1, answer="y\n").out.endswith("1 record discarded.\n")
    assert Ran("discard", with_rejected, 2, "--yes").out == "1 record discarded.\n"
    assert Ran("rejected", with_rejected).out == ""


def test_programs_are_told_how_many_were_requeued_and_discarded(with_rejected: Path) -> None:
    assert Ran("requeue", with_rejected, 2, "--json").lines == [{"requeued": 1}]
    assert Ran("discard", with_rejected, "--all", "--yes", "--json").lines == [{"discarded": 1}]
    assert Ran("discard", with_rejected, "--all", "--yes", "--json").lines == [{"discarded": 0}]


def test_nothing_is_changed_when_one_of_the_numbers_is_not_there(with_rejected: Path) -> None:
    for command in (["requeue"], ["discard", "--yes"]):
        ran = Ran(*command, with_rejected, 1, 7)
        assert ran.status == 1
        assert "no rejected record 7; nothing was changed" in ran.err
        assert Ran(*command, with_rejected).status == 2
        assert Ran(*command, with_rejected, 1, "--all").status == 2
        assert Ran(*command, with_rejected, 1, "--lane", 5).status == 1
    assert len(Ran("rejected", with_rejected, "--json").lines) == 2


def test_a_lane_of_a_living_process_is_not_written_and_its_owner_is_told_with_status_3(
    with_rejected: Path, make: Callable[..., SafeProducer]
) -> None:
    producer = make(spool=with_rejected)
    for command in (["requeue"], ["discard", "--yes"], ["discard"]):
        ran = run_command(*command, with_rejected, "--all")
        assert ran.returncode == 3
        assert ran.stderr.startswith("Error: ")
        assert f"in use by process {os.getpid()}" in ran.stderr
        assert len(ran.stderr.splitlines()) == 1
    assert len(producer.rejected()) == 2


# ---- drain


def test_drain_sends_all_lanes_each_in_its_order(fill: Callable[..., Path], cluster: MockCluster) -> None:
    lanes = [[f"{lane}-{n}" for n in range(50)] for lane in range(4)]
    path = fill(*lanes)
    cluster.set_broker_up()
    began = time.monotonic()
    ran = Ran("drain", path, "--bootstrap", cluster.bootstrap_servers, "--timeout", 60)
    assert ran.status == 0, ran.all
    assert ran.out.startswith("200 records sent in ")
    assert time.monotonic() - began < 20, "it waits for no adoption"
    log = in_kafka(cluster)
    assert [[value for value in log if value.startswith(f"{lane}-")] for lane in range(4)] == lanes
    assert len(log) == 200
    assert pending(path) == 0
    again = Ran("drain", path, "--timeout", 60, "--json")
    assert again.status == 0
    assert json.loads(again.out)["sent"] == 0


def test_drain_sends_the_others_and_tells_why_a_lane_cannot_be_opened(
    fill: Callable[..., Path], cluster: MockCluster
) -> None:
    path = fill(["1"], ["2", "3"])
    with journal(path) as file:
        file.execute("PRAGMA user_version = 99")
    cluster.set_broker_up()
    ran = Ran("drain", path, "--timeout", 60)
    assert ran.status == 1, ran.all
    assert "2 records sent" in ran.out
    assert "left: 1 record in lane-0" in ran.out
    assert "has format 99" in ran.err
    assert in_kafka(cluster) == ["2", "3"]


def test_drain_takes_every_spool_of_the_folder_by_its_name(fill: Callable[..., Path], cluster: MockCluster) -> None:
    fill(["1"], name="one")
    path = fill(["2"], name="two")
    cluster.set_broker_up()
    assert Ran("drain", path, "--timeout", 60).status == 0
    assert sorted(in_kafka(cluster)) == ["1", "2"]


def test_drain_that_has_no_brokers_tells_at_the_timeout_how_many_are_left(fill: Callable[..., Path]) -> None:
    path = fill(["a", "b"], ["c"])
    ran = Ran("drain", path, "--timeout", 1)
    assert ran.status == 1
    assert "0 records sent in" in ran.out
    assert "3 left" in ran.out
    assert "left: 2 records in lane-0" in ran.out
    told = Ran("drain", path, "--timeout", 1, "--json")
    assert told.status == 1
    figures = json.loads(told.out)
    assert (figures["sent"], figures["left"], figures["lanes_left"]) == (0, 3, {"lane-0": 2, "lane-1": 1})
    assert pending(path) == 3


def test_drain_tells_what_holds_the_records_back(
    cluster: MockCluster, make: Callable[..., SafeProducer], path: Path, tmp_path: Path
) -> None:
    producer = make(spool=path)
    producer.send("missing", b"")
    producer.close(0)
    config = tmp_path / "settings.json"
    config.write_text('{"topic.metadata.propagation.max.ms": 200}')
    ran = Ran("drain", path, "--config", config, "--timeout", 5, "--json")
    assert ran.status == 1
    (why,) = json.loads(ran.out)["why"]
    assert "topic 'missing' refuses records" in why


def test_drain_leaves_the_records_for_other_brokers_and_says_so_with_the_remedy(
    fill: Callable[..., Path], cluster: MockCluster
) -> None:
    path = fill(["a"])
    with MockCluster() as other:
        other.create_topic(TOPIC, partitions=1)
        ran = Ran("drain", path, "--bootstrap", other.bootstrap_servers, "--timeout", 60)
        assert in_kafka(other) == []
        theirs = other.bootstrap_servers
    assert ran.status == 1
    ours = ",".join(sorted(cluster.bootstrap_servers.split(",")))
    assert f"1 record of lane-0 stay: they are for {ours}, not for {theirs}" in ran.err
    assert f"Remedy: --bootstrap {ours}" in ran.err
    assert pending(path) == 1


def test_drain_sends_each_lane_to_its_own_brokers_when_none_are_given(
    fill: Callable[..., Path], cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    with MockCluster() as other:
        other.create_topic(TOPIC, partitions=1)
        other.set_broker_down()
        fill(["ours"])
        path = fill(["theirs"], config={"bootstrap.servers": other.bootstrap_servers})
        other.set_broker_up()
        ran = Ran("drain", path, "--timeout", 6)
        assert ran.status == 1
        assert in_kafka(other) == ["theirs"], "brokers that are down hold up no others"
        cluster.set_broker_up()
        assert Ran("drain", path, "--timeout", 60).status == 0
    assert in_kafka(cluster) == ["ours"]


def test_drain_takes_another_list_for_the_same_cluster_whose_brokers_have_moved(
    cluster: MockCluster, make: Callable[..., SafeProducer], path: Path
) -> None:
    producer = make(spool=path)
    producer.send(TOPIC, b"0", partition=0).result(30)
    wait_until(lambda: json.loads((path / "lane-0" / "lane.json").read_text())["cluster"], 30, "the cluster is known")
    cluster.set_broker_down()
    producer.send(TOPIC, b"1", partition=0)
    producer.close(0)
    cluster.set_broker_up()
    one = cluster.bootstrap_servers.split(",")[0]
    ran = Ran("drain", path, "--bootstrap", one, "--timeout", 60)
    assert ran.status == 0, ran.all
    assert in_kafka(cluster) == ["0", "1"]


def test_drain_sends_nothing_to_a_cluster_that_has_taken_the_place_of_the_lanes_own(
    fill: Callable[..., Path], cluster: MockCluster
) -> None:
    path = fill(["a"])
    about = json.loads((path / "lane-0" / "lane.json").read_text())
    (path / "lane-0" / "lane.json").write_text(json.dumps({**about, "cluster": "another"}))
    cluster.set_broker_up()
    ran = Ran("drain", path, "--timeout", 60)
    assert ran.status == 1
    assert "for the cluster another" in ran.err
    assert "Traceback" not in ran.err
    assert in_kafka(cluster) == []
    assert pending(path) == 1


def test_drain_leaves_the_lane_of_a_living_process_to_it_and_tells_with_status_3(
    cluster: MockCluster, make: Callable[..., SafeProducer], fill: Callable[..., Path], path: Path
) -> None:
    alive = make(spool=path)
    alive.send("missing", b"")
    fill(["dead"])
    cluster.set_broker_up()
    ran = run_command("drain", path, "--timeout", 60)
    assert ran.returncode == 3, ran.stderr
    assert ran.stdout.startswith("1 record sent in ")
    assert f"lane-0 is in use by process {os.getpid()}, which has 1 record to send" in ran.stderr
    assert in_kafka(cluster) == ["dead"]
    assert len(alive) == 1


def test_drain_sets_damage_aside_and_tells_with_status_1(fill: Callable[..., Path], cluster: MockCluster) -> None:
    path = fill(["a", "b", "c"])
    damage(path, 2)
    cluster.set_broker_up()
    ran = Ran("drain", path, "--timeout", 60)
    assert ran.status == 1
    assert ran.out.startswith("2 records sent")
    assert "damaged, not sent: 1 record" in ran.out
    assert in_kafka(cluster) == ["a", "c"]


def test_drain_tells_records_that_kafka_refuses_for_good_with_status_1(
    fill: Callable[..., Path], cluster: MockCluster
) -> None:
    path = fill(["a"])
    cluster.push_request_errors(ApiKey.Produce, *[KafkaError.INVALID_RECORD] * 2)
    cluster.set_broker_up()
    ran = Ran("drain", path, "--timeout", 60)
    assert ran.status == 1
    assert "moved aside: 1 rejected record" in ran.out
    assert pending(path) == 0


def test_drain_sends_records_larger_than_the_clients_own_bound(
    outage: MockCluster, make: Callable[..., SafeProducer], path: Path
) -> None:
    producer = make({"message.max.bytes": 3_000_000}, spool=path)
    producer.send(TOPIC, b"x" * 2_000_000, partition=0)
    producer.close(0)
    outage.set_broker_up()
    assert Ran("drain", path, "--timeout", 60).status == 0
    assert [len(value) for value in in_kafka(outage)] == [2_000_000]


def test_drain_takes_the_programs_settings_from_a_file(
    outage: MockCluster, make: Callable[..., SafeProducer], path: Path, tmp_path: Path
) -> None:
    producer = make(spool=path)
    for n in range(30):
        producer.send(TOPIC, str(n), key=str(n))
    producer.close(0)
    outage.set_broker_up()
    config = tmp_path / "settings.json"
    config.write_text('{"acks": 1}')
    refused = Ran("drain", path, "--config", config, "--timeout", 30)
    assert refused.status == 1
    assert "acks = 1" in refused.err
    assert pending(path) == 30
    for wrong in ("no json", "[1]"):
        config.write_text(wrong)
        assert Ran("drain", path, "--config", config).status == 2
    config.write_text(json.dumps({"bootstrap.servers": outage.bootstrap_servers, "partitioner": "murmur2"}))
    assert Ran("drain", path, "--config", config, "--timeout", 60).status == 0
    where = {m.key(): m.partition() for m in read_log(outage.bootstrap_servers, TOPIC, timeout=30)}
    expected = {}
    with make({"partitioner": "murmur2"}) as direct:
        for n in range(30):
            expected[str(n).encode()] = direct.send(TOPIC, b"", key=str(n)).result(30).partition
    assert where == expected


def test_drain_shows_a_bar_on_a_terminal_and_none_elsewhere(fill: Callable[..., Path], cluster: MockCluster) -> None:
    path = fill([str(n) for n in range(20)])
    plain = run_command("drain", path, "--timeout", 1)
    assert "\x1b" not in plain.stderr + plain.stdout
    ours, theirs = pty.openpty()
    cluster.set_broker_up()
    drain = subprocess.Popen(
        [*SAFEKAFKA, "spool", "drain", str(path), "--timeout", "60"],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    shown = b""
    too_long = threading.Timer(60, drain.kill)
    too_long.start()
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass  # the other end is closed
    finally:
        os.close(ours)
        out, _ = drain.communicate(timeout=60)
        too_long.cancel()
    assert drain.returncode == 0, shown.decode()
    assert "20/20" in shown.decode()
    assert out.startswith("20 records sent")
    assert "\x1b" not in out


def test_drain_ends_in_order_at_ctrl_c_with_status_130_and_loses_nothing(
    fill: Callable[..., Path], cluster: MockCluster
) -> None:
    path = fill([str(n) for n in range(20)])
    drain = subprocess.Popen(
        [*SAFEKAFKA, "spool", "drain", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background may have been told to ignore it, and the command would respect that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    too_long = threading.Timer(60, drain.kill)
    too_long.start()
    try:
        assert drain.stderr is not None
        while "cluster_unreachable" not in (line := drain.stderr.readline()):  # its producer is at work
            assert line, "the drain ended by itself"
        drain.send_signal(signal.SIGINT)
        _, err = drain.communicate(timeout=30)
    finally:
        too_long.cancel()
        drain.kill()
        drain.wait(30)
    assert drain.returncode == 130, err
    assert "Traceback" not in err
    assert "0 records sent, the others stay in the spool" in err
    cluster.set_broker_up()
    assert Ran("drain", path, "--timeout", 60).status == 0
    assert in_kafka(cluster) == [str(n) for n in range(20)]


# ---- for scripts


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_no_spool_is_one_line_on_stderr_with_status_1(command: str, tmp_path: Path) -> None:
    more = {"show": [1], "requeue": ["--all"], "discard": ["--all"]}.get(command, [])
    ran = Ran(command, tmp_path, *more)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("Error: ")
    assert "is no spool" in ran.err
    assert len(ran.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_lane_that_is_not_there_is_told_with_those_that_are(fill: Callable[..., Path]) -> None:
    ran = Ran("list", fill(["a"], ["b"]), "--lane", 7)
    assert ran.status == 1
    assert "no lane 7, but lane-0, lane-1" in ran.err


def test_the_help_tells_the_exit_statuses() -> None:
    text = " ".join(Ran("--help").out.split())
    for meaning in ("0 fine", "1 something is damaged, left, or not found", "2 usage", "3 in use by a living process"):
        assert meaning in text
    for command in COMMANDS:
        assert command in text
    for command in ("status", "show", "verify", "export", "requeue", "discard", "drain"):
        assert "Exit status: 0" in " ".join(Ran(command, "--help").out.split())
