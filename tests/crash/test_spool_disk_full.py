"""A disk that is really full: a tiny memory file system, mounted where only the program sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from tests.processes import PROGRAMS, wait_until

TOPIC = "orders"


def mounts_are_allowed() -> bool:
    try:
        return subprocess.run(["unshare", "-Urm", "true"], capture_output=True, timeout=10).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not mounts_are_allowed(), reason="this system lets nobody mount in a user namespace")
def test_B_S09_a_full_disk_refuses_new_records_loses_none_and_goes_on_when_there_is_room(
    kafka_mock: MockCluster, tmp_path: Path
) -> None:
    kafka_mock.create_topic(TOPIC, partitions=1, replication_factor=3)
    kafka_mock.set_broker_down()
    disk, go, log = tmp_path / "disk", tmp_path / "go", tmp_path / "log"
    disk.mkdir()
    program = f'mount -t tmpfs -o size=40m none {disk} && exec {sys.executable} {PROGRAMS / "fill_disk.py"} "$@"'
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["unshare", "-Urm", "sh", "-c", program, "sh", kafka_mock.bootstrap_servers, TOPIC, disk / "spool", go],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: "full" in log.read_text() or process.poll() is not None, 60, log.read_text)
        assert process.poll() is None, log.read_text()
        kafka_mock.set_broker_up()
        go.touch()
        assert process.wait(90) == 0, log.read_text()
    finally:
        process.kill()
        process.wait(10)
    lines = [line.split() for line in log.read_text().splitlines() if line.startswith(("full ", "went on "))]
    full, accepted = int(lines[0][-1]), int(lines[1][-1])
    assert full > 2_000
    numbers = [int(m.value() or b"") for m in read_log(kafka_mock.bootstrap_servers, TOPIC, timeout=30)]
    assert numbers == list(range(numbers[0], accepted))  # the mock broker keeps the last 5 MB


_NO_FILES = """
import itertools, sys
from pathlib import Path
from safekafka import SafeProducer, Spool, SpoolUnusableError

servers, topic, disk = sys.argv[1], sys.argv[2], Path(sys.argv[3])
options = {"durability": "process", "min_free_bytes": 0}
with SafeProducer({"bootstrap.servers": servers}, spool=Spool(disk / "first", **options)) as producer:
    try:
        for number in itertools.count():
            (disk / str(number)).touch()
    except OSError as error:
        print("no more files:", error.strerror)
    for value in range(100):
        producer.send(topic, str(value), partition=0)
    assert producer.flush(60) == 0
    try:
        SafeProducer({"bootstrap.servers": servers}, spool=Spool(disk / "second", **options))
    except SpoolUnusableError as error:
        print("refused:", error)
"""


@pytest.mark.skipif(not mounts_are_allowed(), reason="this system lets nobody mount in a user namespace")
def test_a_disk_that_takes_no_more_files_holds_up_no_open_spool_and_is_told_where_one_is_to_be_made(
    kafka_mock: MockCluster, tmp_path: Path
) -> None:
    kafka_mock.create_topic(TOPIC, partitions=1, replication_factor=3)
    disk = tmp_path / "disk"
    disk.mkdir()
    program = f'mount -t tmpfs -o size=40m,nr_inodes=100 none {disk} && exec {sys.executable} -c "$@"'
    ran = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", program, "sh", _NO_FILES, kafka_mock.bootstrap_servers, TOPIC, disk],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    told = ran.stdout.splitlines()
    assert told[0] == "no more files: No space left on device"
    assert "Remedy: free some room on its disk, or some of its files (df -i)" in told[1]
    assert [int(m.value() or b"") for m in read_log(kafka_mock.bootstrap_servers, TOPIC, timeout=30)] == [*range(100)]


_FULL_AT_START = """
import contextlib, os, signal, sys
from pathlib import Path
from safekafka.spool.journal import RESERVE, Journal

disk = Path(sys.argv[1])
folder = disk / "lane"
folder.mkdir()
child = os.fork()
if not child:
    journal = Journal(folder, "process")
    for _ in range(200):
        journal.append([bytes(10_000)])  # in the log, and not yet in the file
    with (disk / "others").open("wb", buffering=0) as others, contextlib.suppress(OSError):
        while True:
            others.write(bytes(1 << 12))
    os.kill(os.getpid(), signal.SIGKILL)
assert os.waitpid(child, 0)[1] == signal.SIGKILL
print("free", os.statvfs(disk).f_bavail, "reserve", (folder / RESERVE).stat().st_size)
journal = Journal(folder, "process")
print("opened", journal.count, "losses", len(journal.losses), *(path.name for path in folder.glob("*.before")))
journal.delete(range(1, 201), 200 * 10_000)
print("left", journal.count)
"""


@pytest.mark.skipif(not mounts_are_allowed(), reason="this system lets nobody mount in a user namespace")
def test_B_S09_a_process_that_died_on_a_full_disk_starts_again_and_has_all_its_records(tmp_path: Path) -> None:
    """What is in the log goes into the file then, which takes the room that was reserved for that."""
    disk = tmp_path / "disk"
    disk.mkdir()
    program = f'mount -t tmpfs -o size=60m none {disk} && exec {sys.executable} -c "$@"'
    ran = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", program, "sh", _FULL_AT_START, disk],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["free 0 reserve 8388608", "opened 200 losses 0", "left 0"]
