"""P8 with a spool: a forked child takes a lane of its own, and whatever it does, or outlives, changes nothing about the
parent's."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest

from safekafka.spool.lane import lane_folders
from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from tests.crash.spool_service import count_in, is_locked
from tests.crash.written_here import numbers_in_log, run, running
from tests.mock.conftest import TOPIC
from tests.processes import program, wait_until


@pytest.fixture
def cluster(kafka_mock: MockCluster) -> MockCluster:
    kafka_mock.create_topic(TOPIC, partitions=2, replication_factor=3)
    return kafka_mock


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


# ---- both send


CHILDS_END = {
    "close": "p.close(); os._exit(0)",
    "flush": "p.flush(); os._exit(0)",
    "sys.exit": "sys.exit(0)",
    "a producer of its own": "\n    with make(spool={spool!r}) as q: send(q, 300, 400)\n    p.close(); os._exit(0)",
}


@pytest.mark.parametrize("end", CHILDS_END)
def test_P8_parent_and_forked_child_have_a_lane_each_and_every_record_arrives_once(
    cluster: MockCluster, tmp_path: Path, spool: Path, end: str
) -> None:
    status, output = run(
        cluster,
        tmp_path,
        f"""\
p = make({{"linger.ms": 50}}, spool={str(spool)!r})
send(p, 0, 100)
child = os.fork()
if not child:
    send(p, 200, 300)
    {CHILDS_END[end].format(spool=str(spool))}
send(p, 100, 200)
_, status = os.waitpid(child, 0)
say("child", os.waitstatus_to_exitcode(status))
""",
    )
    assert status == 0, output
    assert "child 0\n" in output
    lanes = lane_folders(spool)
    assert len(lanes) == (3 if end == "a producer of its own" else 2)
    assert not any(map(count_in, lanes))
    log = numbers_in_log(cluster)
    assert sorted(log) == list(range(400 if end == "a producer of its own" else 300))
    assert [number for number in log if number < 200] == list(range(200))
    assert [number for number in log if number >= 200] == sorted(number for number in log if number >= 200)


def test_P8_a_child_forked_in_an_outage_keeps_what_it_accepted_in_its_own_lane(
    cluster: MockCluster, tmp_path: Path, spool: Path
) -> None:
    cluster.set_broker_down()
    status, output = run(
        cluster,
        tmp_path,
        f"""\
p = make(spool={str(spool)!r}, shutdown_timeout=0.5)
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
    assert sorted(map(count_in, lane_folders(spool))) == [100, 200]  # the child's, and the parent's
    cluster.set_broker_up()
    with running(
        cluster,
        tmp_path,
        f"""\
from safekafka.spool import sender
sender._ADOPT_AFTER_SECONDS = 0.3
p = make(spool={str(spool)!r})
wait()
""",
    ) as process:
        wait_until(lambda: not any(map(count_in, lane_folders(spool))), 30, lambda: process.output)
        assert not process.ended, process.output
    assert Counter(numbers_in_log(cluster)) == Counter([*range(200), *range(100, 200)])


# ---- the parent's lock


CHILDS_USES = """
def close():
    p.close()

def unlock_descriptors():
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/dev/fd/{name}").endswith("lane-0/lock"):
                fcntl.flock(int(name), fcntl.LOCK_UN)

def release_locks():
    assert locks()
    for lock in locks():
        with contextlib.suppress(RuntimeError):
            lock.release(force=True)

def take_locks():
    for lock in locks():
        try:
            lock.acquire(timeout=0)
        except (RuntimeError, Timeout):
            continue
        raise AssertionError("the parent's lock was taken")

def collect():
    for name in [name for name in globals() if name not in ("os", "gc", "sys")]:
        del globals()[name]
    gc.collect()

def leave():
    sys.exit(0)

def send_and_close():
    send(p, 900, 910)
    p.close()

USES = close, unlock_descriptors, release_locks, take_locks, collect, leave, send_and_close
"""


def test_P8_nothing_that_a_child_does_frees_the_lane_of_the_living_parent(
    cluster: MockCluster, tmp_path: Path, spool: Path
) -> None:
    """Neither an orderly end, nor what it does to the inherited locks and descriptors, nor garbage collection."""
    with running(
        cluster,
        tmp_path,
        f"""\
import contextlib, fcntl
from filelock import FileLock, Timeout

def locks():
    return [one for one in gc.get_objects() if isinstance(one, FileLock)]

{CHILDS_USES}
p = make({{"linger.ms": 5}}, spool={str(spool)!r})
for n, use in enumerate(USES):
    send(p, 20 * n, 20 * n + 10)
    child = os.fork()
    if not child:
        use()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    send(p, 20 * n + 10, 20 * n + 20)
    say(use.__name__, os.waitstatus_to_exitcode(status))
    while not os.path.exists({str(tmp_path)!r} + f"/looked-{{n}}"):
        time.sleep(0.005)
p.flush()
say("delivered")
wait()
""",
    ) as parent:
        lane = spool / "lane-0"
        uses = re.findall(r"def (\w+)", CHILDS_USES)
        for number, use in enumerate(uses):
            parent.wait_for(f"{use} 0\n")
            assert is_locked(lane), f"{use}: {parent.output}"
            (tmp_path / f"looked-{number}").touch()
        parent.wait_for("delivered\n")
        assert is_locked(lane), parent.output
        parent.terminate()
        assert parent.status() == -signal.SIGTERM, parent.output
    assert not is_locked(lane)
    log = numbers_in_log(cluster)
    assert [number for number in log if number < 900] == list(range(20 * len(uses)))
    assert [number for number in log if number >= 900] == list(range(900, 910))


def test_P8_children_that_outlive_their_killed_parent_do_not_keep_its_lane(
    cluster: MockCluster, tmp_path: Path, spool: Path
) -> None:
    """One that does nothing, one that sends, one of multiprocessing, and a program that keeps all descriptors."""
    cluster.set_broker_down()
    with running(
        cluster,
        tmp_path,
        f"""\
import subprocess
p = make(spool={str(spool)!r})
send(p, 0, 100)

def live(*numbers):
    if numbers:
        send(p, *numbers)
    say("child", os.getpid())
    time.sleep(60)
    os._exit(0)

for numbers in ((), (200, 300)):
    if not os.fork():
        live(*numbers)
multiprocessing.get_context("fork").Process(target=live).start()
code = "import os, time; os.write(1, b'child %d' % os.getpid() + bytes([10])); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", code], close_fds=False)
send(p, 100, 200)
say("parent", os.getpid())
wait()
""",
    ) as parent:

        def children() -> list[int]:
            return [int(pid) for pid in re.findall(r"child (\d+)\n", parent.output)]

        try:
            wait_until(lambda: "parent " in parent.output and len(children()) == 4, 30, lambda: parent.output)
            (pid,) = re.findall(r"parent (\d+)\n", parent.output)
            os.kill(int(pid), signal.SIGKILL)
            assert parent.status() == -signal.SIGKILL
            assert not is_locked(spool / "lane-0")
            assert is_locked(spool / "lane-1")  # the child's that has sent
            cluster.set_broker_up()
            status, output = run(cluster, tmp_path, f"p = make(spool={str(spool)!r})\nsend(p, 300, 310)\n")
            assert status == 0, output
            assert "spool_recovered" in output
            for child in children():
                os.kill(child, 0)  # it lives
        finally:
            for child in children():
                os.kill(child, signal.SIGKILL)
    assert [number for number in numbers_in_log(cluster) if not 200 <= number < 300] == [*range(200), *range(300, 310)]


# ---- many


def test_P8_preforked_workers_each_have_a_lane_and_the_masters_stays_its_own(
    cluster: MockCluster, tmp_path: Path, spool: Path
) -> None:
    """As under gunicorn with `--preload`: the producer is made by the master, before the fork."""
    status, output = run(
        cluster,
        tmp_path,
        f"""\
p = make(spool={str(spool)!r})
def work(first):
    send(p, first, first + 50)
if __name__ == "__main__":
    send(p, 0, 50)
    context = multiprocessing.get_context("fork")
    for generation in range(2):  # workers are recycled
        workers = [context.Process(target=work, args=(100 + 200 * generation + 50 * n,)) for n in range(4)]
        for worker in workers:
            worker.start()
        send(p, 50 + 25 * generation, 75 + 25 * generation)
        for worker in workers:
            worker.join(30)
            say("worker", worker.exitcode)
""",
        seconds=60,
    )
    assert status == 0, output
    assert output.count("worker 0\n") == 8, output
    assert sorted(numbers_in_log(cluster)) == list(range(500)), output
    lanes = lane_folders(spool)
    assert 2 <= len(lanes) <= 5  # a lane that was given back is used again
    assert not any(map(count_in, lanes))


@pytest.mark.timeout(3_600)
def test_P8_forks_while_threads_append_to_a_spool_and_no_child_hangs(
    kafka_mock: MockCluster, tmp_path: Path, spool: Path, scale: int
) -> None:
    forks = 100 * scale
    kafka_mock.create_topic(TOPIC, partitions=200, replication_factor=3)
    log = tmp_path / "output.txt"
    with program("spool_fork_storm", kafka_mock.bootstrap_servers, TOPIC, spool, forks, log=log) as process:
        assert process.wait(60 + 60 * scale) == 0, log.read_text()
    (refused,) = re.findall(r"refused (\d+)", log.read_text())
    assert int(refused) <= 4 * scale  # a look-up is rare, and may spoil all that are forked in it
    sent = re.search(r"parent sent (\d+)", log.read_text())
    slowest = re.search(r"slowest child ([\d.]+) s", log.read_text())
    assert sent is not None
    assert slowest is not None
    children: list[str] = []
    parents: list[str] = []
    for message in read_log(kafka_mock.bootstrap_servers, TOPIC, timeout=120):
        (parents if message.partition() else children).append((message.value() or b"").decode())
    lanes = lane_folders(spool)
    print(f"\n{forks} forks, {sent[1]} records of the parent; slowest child {slowest[1]} s; {len(lanes)} lanes")
    assert Counter(children) == Counter(f"child {number}" for number in range(forks))
    assert Counter(parents) == Counter(f"parent {number}" for number in range(int(sent[1])))
    assert not any(map(count_in, lanes))
