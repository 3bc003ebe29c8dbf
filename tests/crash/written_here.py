"""Short programs that a test has in its own text: run as a process, with producers on the test's mock brokers."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from tests.mock.conftest import TOPIC
from tests.processes import wait_until

RECORDS = 300

PREAMBLE = """
import asyncio, atexit, gc, logging, multiprocessing, os, signal, sys, threading, time
from safekafka import SafeKafkaError, SafeProducer, UndeliveredError
logging.basicConfig(level=logging.INFO)

def make(config={{}}, **options):
    config = {{"bootstrap.servers": {servers!r}, "linger.ms": 300, **config}}
    return SafeProducer(config, **options)

def send(producer, first=0, end={records}):
    return [producer.send({topic!r}, str(n), partition=0) for n in range(first, end)]

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def wait():
    say("ready")
    while True:
        time.sleep(0.01)

"""


class Program:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def output(self) -> str:
        return self._log.read_text()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait_for(self, word: str, seconds: float = 30) -> None:
        def there() -> bool:
            assert word in self.output or not self.ended, self.output
            return word in self.output

        wait_until(there, seconds, lambda: f"{word!r} in {self.output!r}")

    def children(self) -> list[int]:
        pid = self._process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def status(self, seconds: float = 30) -> int:
        """A signal's is negative."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it hangs: {self.output}") from None


@contextlib.contextmanager
def running(cluster: MockCluster, tmp_path: Path, body: str, *, before: tuple[str, ...] = ()) -> Iterator[Program]:
    preamble = PREAMBLE.format(servers=cluster.bootstrap_servers, topic=TOPIC, records=RECORDS)
    file, log = tmp_path / "program.py", tmp_path / "output.txt"
    file.write_text(preamble + textwrap.dedent(body))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*before, sys.executable, str(file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Program(process, log)
    finally:
        process.kill()
        process.wait(30)


def run(cluster: MockCluster, tmp_path: Path, body: str, seconds: float = 30) -> tuple[int, str]:
    with running(cluster, tmp_path, body) as started:
        return started.status(seconds), started.output


def numbers_in_log(cluster: MockCluster) -> list[int]:
    return [int(message.value() or b"") for message in read_log(cluster.bootstrap_servers, TOPIC, timeout=30)]
