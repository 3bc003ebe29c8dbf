"""The demo ended at any moment leaves no process, no file, and no traceback behind.

Processes are found by a mark in their environment, which everything that the demo starts inherits: the brokers, the
programs, and the watchdogs.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

MARK = "SAFEKAFKA_TEST_MARK"
# The handlers are in place when the command has been imported; this line tells, and the tests wait for it.
PROGRAM = "from safekafka.cli import main\nprint('imported', flush=True)\nmain()"


class Demo:
    """A demo that runs, and everything it started."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "demo", *options],
            env={**os.environ, "TMPDIR": str(folder), MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A test run in the background may have been told to ignore it, and the demo would respect that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def until(self, pattern: str) -> None:
        """Read on until a line matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if re.search(pattern, line):
                return
        raise AssertionError(f"the demo ended before {pattern!r}:\n{self.output}")

    def end(self, *signals: signal.Signals) -> int:
        for signum in signals:
            self.process.send_signal(signum)
        rest, _ = self.process.communicate(timeout=40)
        self.output += rest
        return self.process.returncode

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def assert_nothing_left(self, within: float) -> None:
        deadline = time.monotonic() + within
        while (left := self.processes()) or list(self.folder.iterdir()):
            assert time.monotonic() < deadline, f"{left}, {list(self.folder.iterdir())}\n{self.output}"
            time.sleep(0.05)
        assert "Traceback" not in self.output, self.output


@pytest.fixture
def demos(tmp_path: Path) -> Iterator[list[Demo]]:
    started: list[Demo] = []
    yield started
    for demo in started:
        demo.process.kill()
        for process in demo.processes():
            process.kill()


MOMENTS = {
    "at once": "imported",
    "before the brokers": "The same again",
    "while sending": "sent [1-9]",
    "after a broker died": "SIGKILL to broker",
    "while the producer is dead": "SIGKILL to the producer",
    "after the producer came back": "producer was started again",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_ends_everything_with_status_130(moment: str, tmp_path: Path, demos: list[Demo]) -> None:
    demo = Demo(tmp_path, "--mock", "--orders", "2000", "--seed", "3")
    demos.append(demo)
    demo.until(MOMENTS[moment])
    time.sleep(0.05)
    assert demo.end(signal.SIGINT) == 130
    demo.assert_nothing_left(within=0)


@pytest.mark.parametrize("moment", ["at once", "while sending"])
def test_a_second_ctrl_c_changes_nothing(moment: str, tmp_path: Path, demos: list[Demo]) -> None:
    demo = Demo(tmp_path, "--mock", "--orders", "2000", "--seed", "3")
    demos.append(demo)
    demo.until(MOMENTS[moment])
    time.sleep(0.05)
    demo.process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    assert demo.end(signal.SIGINT) == 130
    demo.assert_nothing_left(within=15)


def test_sigterm_ends_everything_with_status_143(tmp_path: Path, demos: list[Demo]) -> None:
    demo = Demo(tmp_path, "--mock", "--orders", "2000", "--seed", "3")
    demos.append(demo)
    demo.until("sent [1-9]")
    assert demo.end(signal.SIGTERM) == 143
    demo.assert_nothing_left(within=0)


def test_sigkill_leaves_nothing_behind(tmp_path: Path, demos: list[Demo]) -> None:
    demo = Demo(tmp_path, "--mock", "--orders", "2000", "--seed", "3")
    demos.append(demo)
    demo.until("sent [1-9]")
    assert len(demo.processes()) > 2
    assert demo.end(signal.SIGKILL) == -signal.SIGKILL
    demo.assert_nothing_left(within=15)


@pytest.mark.kills_brokers
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("signum", "status", "within"), [(signal.SIGINT, 130, 0.0), (signal.SIGKILL, -signal.SIGKILL, 20.0)]
)
@pytest.mark.parametrize("moment", ["Starting the brokers", "sent [1-9]"])
def test_real_brokers_end_with_the_demo(
    moment: str, signum: signal.Signals, status: int, within: float, tmp_path: Path, demos: list[Demo]
) -> None:
    demo = Demo(tmp_path, "--orders", "2000", "--seed", "3")
    demos.append(demo)
    demo.until(moment)
    deadline = time.monotonic() + 120
    while moment.startswith("Starting") and not any("java" in process.name() for process in demo.processes()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert demo.end(signum) == status
    demo.assert_nothing_left(within)
