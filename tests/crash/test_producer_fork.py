"""P8: in a forked child the producer works with a client of its own, and the parent's records stay the parent's.

In each case parent and child both send around the fork, everything arrives exactly once, and neither hangs at its end.
`linger.ms` keeps the parent's records in its buffer across the fork.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from tests.crash.written_here import numbers_in_log, run
from tests.mock.conftest import TOPIC
from tests.processes import PROGRAMS, program, wait_until

MASTER = 50


@pytest.fixture
def cluster(kafka_mock: MockCluster) -> MockCluster:
    kafka_mock.create_topic(TOPIC, partitions=2, replication_factor=3)
    return kafka_mock


def values_in_log(cluster: MockCluster) -> list[str]:
    return [(message.value() or b"").decode() for message in read_log(cluster.bootstrap_servers, TOPIC, timeout=30)]


# ---- os.fork

CHILDS_END = {
    "flush, os._exit": "p.flush(); os._exit(0)",
    "close, os._exit": "p.close(); os._exit(0)",
    "sys.exit": "sys.exit(0)",
    "exception": "raise LookupError",
    "with": "\n    with p: pass\n    os._exit(0)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)",
}


@pytest.mark.parametrize("end", CHILDS_END)
def test_P8_parent_and_forked_child_both_send_and_each_record_arrives_once(
    cluster: MockCluster, tmp_path: Path, end: str
) -> None:
    status, output = run(
        cluster,
        tmp_path,
        f"""\
p = make()
send(p, 0, 100)
child = os.fork()
if not child:
    send(p, 200, 300)
    {CHILDS_END[end]}
send(p, 100, 200)
_, status = os.waitpid(child, 0)
say("child", os.waitstatus_to_exitcode(status))
""",
    )
    expected = {"exception": 1, "SIGTERM": -signal.SIGTERM}.get(end, 0)
    assert status == 0, output
    assert f"child {expected}\n" in output
    log = numbers_in_log(cluster)
    assert sorted(log) == list(range(300))
    assert [number for number in log if number < 200] == list(range(200))
    assert [number for number in log if number >= 200] == list(range(200, 300))


CHILDREN_WITHOUT_USE = {
    "sys.exit": "sys.exit(0)",
    "close": "p.close(); sys.exit(0)",
    "close, then send is refused": """
        p.close()
        try:
            p.send("orders", b"999")
        except ClosedError:
            sys.exit(0)
    """,
    "del": "del p; gc.collect(); sys.exit(0)",
    "flush": "sys.exit(p.flush() + len(p) + p.stats().pending)",
    "the parent's receipts": """
        try:
            receipts[0].result(9)
        except ClosedError:
            sys.exit(0)
    """,
}


@pytest.mark.parametrize("use", CHILDREN_WITHOUT_USE)
def test_P8_a_child_that_does_not_send_leaves_the_parents_records_alone(
    cluster: MockCluster, tmp_path: Path, use: str
) -> None:
    child = textwrap.indent(textwrap.dedent(CHILDREN_WITHOUT_USE[use]).strip(), "    ")
    status, output = run(
        cluster,
        tmp_path,
        f"""\
from safekafka import ClosedError
p = make()
receipts = send(p, 0, 100)
child = os.fork()
if not child:
{child}
    os._exit(9)
send(p, 100)
_, status = os.waitpid(child, 0)
say("child", os.waitstatus_to_exitcode(status))
""",
    )
    assert status == 0, output
    assert "child 0\n" in output
    assert numbers_in_log(cluster) == list(range(300))


FORKED_FROM = {
    "a thread": """
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
    """,
    "a callback": """
        receipts[0].add_done_callback(lambda receipt: fork())
        receipts[0].result(30)
        p.flush()
    """,
    "a child": """
        first = os.fork()
        if not first:
            fork()
            sys.exit(0)
        os.waitpid(first, 0)
    """,
    "a child that sends": """
        first = os.fork()
        if not first:
            send(p, 300, 400)
            fork()
            sys.exit(0)
        os.waitpid(first, 0)
    """,
    "anywhere while others wait": """
        for wait_here in (p.flush, p.poll, p.send("none", b"no such topic").result, receipts[-1].result):
            threading.Thread(target=wait_here, daemon=True).start()
        fork()
    """,
}


@pytest.mark.parametrize("forked_from", FORKED_FROM)
def test_P8_the_fork_may_come_from_anywhere(cluster: MockCluster, tmp_path: Path, forked_from: str) -> None:
    status, output = run(
        cluster,
        tmp_path,
        f"""\
p = make(shutdown_timeout=3)
receipts = send(p, 0, 100)
def fork():
    child = os.fork()
    if not child:
        try:
            send(p, 200, 300)
            p.close()
            os._exit(0)
        finally:
            os._exit(9)
    _, status = os.waitpid(child, 0)
    say("child", os.waitstatus_to_exitcode(status))
{textwrap.dedent(FORKED_FROM[forked_from])}
if len(receipts) == 100:
    send(p, 100, 200)
""",
        seconds=45,
    )
    assert status == 0, output
    assert "child 0\n" in output
    log = Counter(numbers_in_log(cluster))
    more = range(300, 400) if forked_from == "a child that sends" else range(0)
    assert log == Counter([*range(300), *more])


def test_P8_a_child_forked_after_the_brokers_went_away_ends_in_time(cluster: MockCluster, tmp_path: Path) -> None:
    cluster.set_broker_down()
    status, output = run(
        cluster,
        tmp_path,
        """\
p = make(shutdown_timeout=1)
send(p, 0, 100)
child = os.fork()
send(p, 100, 200)
if child:
    _, status = os.waitpid(child, 0)
    say("child", os.waitstatus_to_exitcode(status))
""",
    )
    assert status == 0, output
    assert "child 0\n" in output
    assert "undelivered_at_exit records=100\n" in output  # the child's own
    assert "undelivered_at_exit records=200\n" in output


# ---- multiprocessing


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_P8_multiprocessing_children_send_through_the_modules_producer(
    cluster: MockCluster, tmp_path: Path, method: str
) -> None:
    status, output = run(
        cluster,
        tmp_path,
        f"""\
p = make()  # under spawn each child makes its own by importing the module; under fork it inherits the parent's
def child(first):
    send(p, first, first + 50)
if __name__ == "__main__":
    send(p, 0, 50)
    context = multiprocessing.get_context({method!r})
    children = [context.Process(target=child, args=(first,)) for first in (100, 150, 200, 250)]
    for c in children:
        c.start()
    send(p, 50, 100)
    for c in children:
        c.join(30)
        say("child", c.exitcode)
""",
        seconds=60,
    )
    assert status == 0, output
    assert output.count("child 0\n") == 4, output
    assert sorted(numbers_in_log(cluster)) == list(range(300)), output


# ---- servers that fork


def surroundings(cluster: MockCluster, folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "SAFEKAFKA_TEST_SERVERS": cluster.bootstrap_servers,
        "SAFEKAFKA_TEST_TOPIC": TOPIC,
        "SAFEKAFKA_TEST_MASTER": str(MASTER),
        "SAFEKAFKA_TEST_FOLDER": str(folder),
    }


@contextlib.contextmanager
def server(cluster: MockCluster, tmp_path: Path, *command: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A server in a process group of its own, so that no worker outlives the test."""
    log = tmp_path / "server.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=PROGRAMS,
            env=surroundings(cluster, tmp_path),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process, log
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@pytest.mark.parametrize("recycled", [False, True], ids=["", "workers are recycled"])
@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_P8_gunicorn_with_preload(cluster: MockCluster, tmp_path: Path, worker: str, recycled: bool) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    requests = 60
    workers = set()
    command = ["gunicorn", "--preload", "--workers", "3", "--worker-class", worker, "--bind", f"127.0.0.1:{port}"]
    if recycled:
        command += ["--max-requests", "5"]
    with server(cluster, tmp_path, *command, "gunicorn_app:application") as (process, log):
        wait_until(lambda: "Booting worker" in log.read_text(), 30, log.read_text)
        for number in range(requests):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{number}", timeout=30) as answer:
                workers.add(answer.read())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    assert str(process.pid).encode() not in workers
    assert len(workers) >= (6 if recycled else 1)
    everything = [f"master {number}" for number in range(MASTER)] + [str(number) for number in range(requests)]
    assert Counter(values_in_log(cluster)) == Counter(everything), log.read_text()


@pytest.mark.parametrize("recycled", [False, True], ids=["", "children are recycled"])
def test_P8_celery_prefork(cluster: MockCluster, tmp_path: Path, recycled: bool) -> None:
    from celery import Celery

    for folder in ("queue", "control"):
        (tmp_path / folder).mkdir()
    tasks = 40
    folders = {"data_folder_in": str(tmp_path / "queue"), "data_folder_out": str(tmp_path / "queue")}
    client = Celery(broker="filesystem://")
    client.conf.broker_transport_options = {**folders, "control_folder": str(tmp_path / "control")}
    for number in range(tasks):
        client.send_task("send", (number,))
    client.close()
    command = ["celery", "-A", "celery_app", "worker", "--pool", "prefork", "--concurrency", "2"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "INFO"]
    if recycled:
        command += ["--max-tasks-per-child", "10"]
    done = tmp_path / "done.txt"

    def lines() -> list[list[str]]:
        return [line.split() for line in done.read_text().splitlines()] if done.exists() else []

    with server(cluster, tmp_path, *command) as (process, log):
        wait_until(lambda: process.poll() is not None or len(lines()) >= tasks, 60, log.read_text)
        process.send_signal(signal.SIGTERM)  # the warm shutdown
        assert process.wait(60) == 0, log.read_text()
    assert len({pid for _, pid in lines()} - {str(process.pid)}) >= (4 if recycled else 2)
    everything = [f"master {number}" for number in range(MASTER)] + [str(number) for number in range(tasks)]
    assert Counter(values_in_log(cluster)) == Counter(everything), log.read_text()


# ---- many


@pytest.mark.timeout(600)
def test_P8_forks_under_load_and_no_child_hangs(kafka_mock: MockCluster, tmp_path: Path, scale: int) -> None:
    forks = 100 * scale
    kafka_mock.create_topic(TOPIC, partitions=200, replication_factor=3)
    log = tmp_path / "output.txt"
    with program("fork_under_load", kafka_mock.bootstrap_servers, TOPIC, forks, log=log) as process:
        assert process.wait(60 + 60 * scale) == 0, log.read_text()
    (refused,) = re.findall(r"refused (\d+)", log.read_text())
    assert int(refused) <= 4 * scale  # a look-up is rare, and may spoil all that are forked in it
    sent = re.search(r"parent sent (\d+)", log.read_text())
    assert sent is not None
    children, parents = [], []
    for message in read_log(kafka_mock.bootstrap_servers, TOPIC, timeout=120):
        (parents if message.partition() else children).append((message.partition(), message.value()))
    assert Counter(children) == Counter((0, f"child {number}".encode()) for number in range(forks))
    parents.sort(key=lambda message: message[0] or 0)
    assert [value for _, value in parents] == [f"parent {number}".encode() for number in range(int(sent[1]))]


def test_P8_a_child_that_can_never_look_up_an_address_is_told_at_once_and_nothing_is_accepted(
    cluster: MockCluster, tmp_path: Path
) -> None:
    """glibc does not renew the lock of an address look-up in a forked child."""
    status, output = run(
        cluster,
        tmp_path,
        """\
import socket
p = make()
def look_up():
    while True:
        socket.getaddrinfo("127.0.0.1", None, flags=socket.AI_ADDRCONFIG)
delivered, refused = [], 0
for number in range(200):
    if refused:
        break
    if number == 1:
        for _ in range(2):
            threading.Thread(target=look_up, daemon=True).start()
    pid = os.fork()
    if not pid:
        try:
            send(p, number, number + 1)
        except SafeKafkaError as error:
            say(error)
            os._exit(77 if len(p) == 0 else 1)
        os._exit(p.flush(20))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 0:
        delivered.append(number)
    else:
        assert code == 77, code
        refused += 1
say("delivered", delivered)
say("refused", refused)
""",
        seconds=90,
    )
    assert status == 0, output
    assert "it was forked while a thread of its parent looked one up" in output
    assert "refused 0" not in output
    delivered = re.findall(r"delivered \[([\d, ]+)\]", output)
    assert [str(number) for number in numbers_in_log(cluster)] == delivered[0].split(", ")
