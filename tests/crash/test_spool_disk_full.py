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
