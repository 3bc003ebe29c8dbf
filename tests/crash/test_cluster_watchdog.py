"""No broker and no data folder outlives the process that started the cluster, however that process ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from safekafka.testing import watchdog

OWNER = """
import json, os, subprocess, sys, time
from safekafka.testing import KafkaCluster

with KafkaCluster(brokers=1) as cluster:
    {action}
    print(json.dumps(str(cluster.logs.parent)), flush=True)
    time.sleep(600)
"""


def wait_for(what: str, condition: Callable[[], object], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


class Owner:
    """A process with a cluster, in a session of its own as behind a terminal."""

    def __init__(self, action: str, temporary: Path) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", OWNER.format(action=action)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        self.temporary = temporary
        self.family: set[psutil.Process] = set()

    def look(self) -> list[str]:
        """Take note of all descendants; the command lines of those that live."""
        self.family.update(psutil.Process(self.popen.pid).children(recursive=True))
        return [" ".join(p.cmdline()) for p in self.family if p.is_running()]

    def wait_running(self) -> Path:
        assert self.popen.stdout is not None
        folder = Path(json.loads(self.popen.stdout.readline()))
        commands = self.look()
        assert [c for c in commands if "kafka.Kafka" in c]
        assert [c for c in commands if "watchdog.py" in c]
        assert folder.parent == self.temporary
        return folder

    def gone(self) -> bool:
        # Killed ones whose parent is gone are zombies until somebody reaps them: here, init.
        return not [
            p for p in self.family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE and p.name() != "sleep"
        ]


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Callable[..., Owner]]:
    owners: list[Owner] = []

    def start(action: str = "pass") -> Owner:
        owners.append(Owner(action, tmp_path))
        return owners[-1]

    yield start
    for each in owners:
        if each.popen.poll() is None:
            each.look()
            each.popen.kill()
        each.popen.wait(20)
        if each.popen.stdout:
            each.popen.stdout.close()
        for process in each.family:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                process.kill()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_an_owner_that_is_killed_or_terminated(owner: Callable[..., Owner], signum: int) -> None:
    # The other child of the owner lives on; it must not hold the pipe open.
    it = owner("subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL, close_fds=False)")
    folder = it.wait_running()
    it.popen.send_signal(signum)
    assert it.popen.wait(20) == -signum
    wait_for("all brokers to be gone", it.gone)
    wait_for("the data to be gone", lambda: not folder.exists())
    assert list(it.temporary.iterdir()) == []


def test_nothing_outlives_ctrl_c_in_the_terminal(owner: Callable[..., Owner]) -> None:
    it = owner()
    it.wait_running()
    os.killpg(it.popen.pid, signal.SIGINT)
    it.popen.wait(20)
    wait_for("all brokers to be gone", it.gone)
    assert list(it.temporary.iterdir()) == []


def test_a_paused_broker_dies_too(owner: Callable[..., Owner]) -> None:
    it = owner("cluster.pause(1)")
    it.wait_running()
    wait_for("the broker to be stopped", lambda: psutil.STATUS_STOPPED in {p.status() for p in it.family})
    it.popen.kill()
    wait_for("all brokers to be gone", it.gone)
    wait_for("the data to be gone", lambda: not list(it.temporary.iterdir()))


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_an_owner_that_ends_while_the_brokers_start(owner: Callable[..., Owner], signum: int) -> None:
    it = owner()
    wait_for("a Java process", lambda: [c for c in it.look() if "StorageTool" in c or "kafka.Kafka" in c])
    os.killpg(it.popen.pid, signum)
    it.popen.wait(30)
    wait_for("all brokers to be gone", it.gone)
    wait_for("the data to be gone", lambda: not list(it.temporary.iterdir()))


def test_a_forked_child_that_lives_on_does_not_keep_the_brokers(owner: Callable[..., Owner]) -> None:
    it = owner("os.fork() or (os.close(1), time.sleep(60), os._exit(0))")
    it.wait_running()
    forked = next(p for p in it.family if p.cmdline() == psutil.Process(it.popen.pid).cmdline())
    it.popen.kill()
    wait_for("all brokers to be gone", lambda: all(not p.is_running() for p in it.family - {forked}))
    assert forked.is_running()
    wait_for("the data to be gone", lambda: not list(it.temporary.iterdir()))


def test_an_owner_that_just_ends_leaves_nothing(tmp_path: Path) -> None:
    code = "from safekafka.testing import KafkaCluster; cluster = KafkaCluster(brokers=1); cluster.start_all()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env={**os.environ, "TMPDIR": str(tmp_path)})
    wait_for("the data to be gone", lambda: not list(tmp_path.iterdir()))
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]


def run_watchdog(*messages: list[object]) -> None:
    text = "".join(json.dumps(message) + "\n" for message in messages)
    subprocess.run([sys.executable, watchdog.__file__], input=text, text=True, check=True, timeout=30)


def test_a_later_process_with_the_number_of_a_dead_broker_is_spared() -> None:
    with subprocess.Popen(["sleep", "60"]) as innocent, subprocess.Popen(["sleep", "60"]) as broker:
        run_watchdog(
            ["born", innocent.pid, "another start time"],
            ["born", broker.pid, watchdog.identity(broker.pid)],
        )
        assert broker.wait(10) == -signal.SIGKILL
        assert innocent.poll() is None
        innocent.kill()


def test_a_broker_that_was_ended_by_its_owner_is_forgotten() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        run_watchdog(["born", process.pid, watchdog.identity(process.pid)], ["gone", process.pid])
        assert process.poll() is None
        process.kill()


def test_identity_tells_the_dead_from_the_living() -> None:
    process = subprocess.Popen(["sleep", "60"])
    assert watchdog.identity(process.pid) == watchdog.identity(process.pid) is not None
    process.kill()
    wait_for("the zombie to count as dead", lambda: watchdog.identity(process.pid) is None)
    process.wait()
    assert watchdog.identity(process.pid) is None
