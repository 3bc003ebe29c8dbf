"""P7: however a program ends, nothing it sent is lost in silence, its end hangs nowhere, and its wait status is kept.

Each program is a process of its own, with mock brokers in the test's. `linger.ms` keeps its records in the buffer, so
that all of them are pending when the end begins.

`tests/mock/test_producer.py` has: the end of the main module, `del`, `sys.exit` and an unhandled exception without
`close()` (B_P08); `multiprocessing` children by fork; a producer forgotten inside its own callback; `close()` from a
signal handler, beside other threads that send, with a callback that never returns, and by name of what it could not
deliver. `tests/unit/test_sigterm.py` has SIGTERM down to its races, with stand-ins for producers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest

from safekafka.testing import MockCluster
from tests.crash.written_here import RECORDS, numbers_in_log, run, running
from tests.mock.conftest import TOPIC
from tests.processes import accepted, in_doubt, program, wait_until

ALL = list(range(RECORDS))
TERMINATED = -signal.SIGTERM
MARGIN = 12.0  # beyond shutdown_timeout: for what was not delivered to be told, and for a busy machine


@pytest.fixture
def cluster(kafka_mock: MockCluster) -> MockCluster:
    kafka_mock.create_topic(TOPIC, partitions=2, replication_factor=3)
    return kafka_mock


# ---- by its own will

ENDINGS = {
    "close": ("p.close(10)", 0),
    "close within a time": ("p.close(timeout=10); sys.exit(4)", 4),
    "close twice": ("p.close(); p.close(); sys.exit(4)", 4),
    "close by two threads": (
        """
t = threading.Thread(target=p.close)
t.start()
p.close()
t.join()
sys.exit(4)
""",
        4,
    ),
    "close at the exit": ("atexit.register(p.close); sys.exit(4)", 4),
    "with": ("\nwith p: pass", 0),
    "exception in the with body": ("\nwith p: raise LookupError('in the body')", 1),
    "sys.exit in the with body": ("\nwith p: sys.exit(4)", 4),
    "async with": (
        """
async def main():
    async with p:
        send(p, 300, 300)
asyncio.run(main())
sys.exit(4)
""",
        4,
    ),
    "cancelled in the async with body": (
        """
async def main():
    async with p:
        asyncio.current_task().cancel()
        await asyncio.sleep(9)
try:
    asyncio.run(main())
except asyncio.CancelledError:
    sys.exit(4)
""",
        4,
    ),
    # The program ends by os._exit, so that nothing but the collection can have delivered.
    "garbage collection": ("\nheld = [p]; held.append(held); del p, held\ngc.collect(); os._exit(4)", 4),
    "exit of another thread": ("\nthreading.Thread(target=sys.exit).start(); sys.exit(4)", 4),
    "a thread that goes on after main": ("\nthreading.Timer(1, say, ['bye']).start()", 0),
    "SIGINT": ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", -signal.SIGINT),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_P7_a_program_that_ends_by_its_own_will_delivers_first(
    cluster: MockCluster, tmp_path: Path, ending: str
) -> None:
    end, expected = ENDINGS[ending]
    status, output = run(cluster, tmp_path, f"p = make()\nsend(p)\n{end}")
    assert status == expected, output
    assert numbers_in_log(cluster) == ALL
    assert ("in the body" in output) == ("exception" in ending)


def test_P7_close_from_a_callback_is_refused_and_the_program_still_delivers(
    cluster: MockCluster, tmp_path: Path
) -> None:
    status, output = run(
        cluster,
        tmp_path,
        """
        p = make()
        def close_here(receipt):
            try:
                p.close()
            except SafeKafkaError as error:
                say("refused:", error)
        send(p, 0, 1)[0].add_done_callback(close_here)
        send(p, 1)
        """,
    )
    assert status == 0, output
    assert "refused: close() inside a delivery callback" in output
    assert numbers_in_log(cluster) == ALL


CHILDREN = {
    "spawn": "c = multiprocessing.get_context('spawn').Process(target=child); c.start(); c.join(30)",
    "forkserver": "c = multiprocessing.get_context('forkserver').Process(target=child); c.start(); c.join(30)",
    # Its end terminates the children by SIGTERM.
    "pool": "\nwith multiprocessing.get_context('fork').Pool(1) as pool: pool.apply(child)",
    "terminated": """
        context = multiprocessing.get_context("fork")
        sent = context.Event()
        def forever():
            child()
            sent.set()
            time.sleep(60)
        c = context.Process(target=forever)
        c.start()
        sent.wait(30)
        c.terminate()
        c.join(30)
        assert c.exitcode == -signal.SIGTERM, c.exitcode
    """,
    "executor": """
        import concurrent.futures
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as executor:
            executor.submit(child).result(30)
    """,
}


@pytest.mark.parametrize("start", CHILDREN)
def test_P7_a_multiprocessing_child_that_never_runs_atexit_delivers(
    cluster: MockCluster, tmp_path: Path, start: str
) -> None:
    body = "def child():\n    global p\n    p = make()\n    send(p)\nif __name__ == '__main__':\n"
    status, output = run(cluster, tmp_path, body + textwrap.indent(textwrap.dedent(CHILDREN[start]).strip(), "    "))
    assert status == 0, output
    assert numbers_in_log(cluster) == ALL


# ---- by SIGTERM

WAITING = {
    "idle": "p = make(); send(p); wait()",
    "poll": "p = make({'linger.ms': 3000}); send(p); say('ready'); p.poll(); wait()",
    "flush": "p = make(shutdown_timeout=3); send(p); p.send('none', b''); say('ready'); p.flush(); wait()",
    "result": "p = make({'linger.ms': 3000}); last = send(p)[-1]; say('ready'); last.result(); wait()",
    "two producers": "p, q = make(), make(); send(p, 0, 100); p.flush(); send(q, 100); wait()",
    "a loop": """
        async def main():
            p = make()
            for n in range(300): await p.asend("orders", str(n), partition=0)
            say("ready")
            while True: await asyncio.sleep(0.01)
        asyncio.run(main())
    """,
    "another thread": """
        p = make()
        send(p)
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
    """,
    "main has returned": "p = make(); send(p); threading.Thread(target=wait).start()",
    "the exit of the interpreter": """
        p = make({"linger.ms": 3000})
        send(p)
        atexit.register(say, "ready")
    """,
    "a with block": "\nwith make() as p:\n    send(p)\n    wait()",
}


@pytest.mark.parametrize("waiting", WAITING)
def test_P7_SIGTERM_delivers_what_is_pending_and_still_ends_the_process(
    cluster: MockCluster, tmp_path: Path, waiting: str
) -> None:
    with running(cluster, tmp_path, WAITING[waiting]) as started:
        started.wait_for("ready")
        started.terminate()
        assert started.status() == TERMINATED, started.output
    assert numbers_in_log(cluster) == ALL


SENDING = {
    "send": "while True: send_one()",
    "a small buffer": "while True: send_one()",
    "four threads": """
        def forever():
            while True: send_one()
        for _ in range(3): threading.Thread(target=forever).start()
        forever()
    """,
    "callbacks": "while True: send_one().add_done_callback(lambda receipt: send_one(thread='callback'))",
}


@pytest.mark.parametrize("sending", SENDING)
def test_P7_SIGTERM_while_the_program_sends_at_full_speed_loses_no_accepted_record(
    cluster: MockCluster, tmp_path: Path, sending: str
) -> None:
    small = {"queue.buffering.max.messages": 50} if sending == "a small buffer" else {}
    ledger = tmp_path / "ledger.txt"
    with running(
        cluster,
        tmp_path,
        f"""
        import itertools
        p, numbers = make({small!r}), itertools.count()
        ledger = os.open({str(ledger)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        def send_one(thread=""):
            n = next(numbers)
            os.write(ledger, f"try {{n}}\\n".encode())
            receipt = p.send("orders", str(n), partition=0)
            os.write(ledger, f"ok {{n}}\\n".encode())
            return receipt
        {textwrap.indent(textwrap.dedent(SENDING[sending]).strip(), " " * 8).strip()}
        """,
    ) as started:
        wait_until(
            lambda: started.ended or len(accepted(ledger)) > (200 if small else 2_000), 30, lambda: started.output
        )
        started.terminate()
        assert started.status() == TERMINATED, started.output
    log, sent = Counter(numbers_in_log(cluster)), set(accepted(ledger))
    assert not [number for number, times in log.items() if times > 1]
    assert sent <= log.keys()
    assert log.keys() - sent <= in_doubt(ledger)


def test_P7_SIGTERM_ends_a_program_that_waits_for_room(cluster: MockCluster, tmp_path: Path) -> None:
    cluster.set_broker_down()
    with running(
        cluster,
        tmp_path,
        """
        p = make({"queue.buffering.max.messages": 100}, shutdown_timeout=30)
        send(p, 0, 100)
        say("ready")
        send(p, 100, 101)
        say("accepted")
        """,
    ) as started:
        started.wait_for("ready")
        time.sleep(0.5)  # the signal is to come while it waits; at any other moment the promise is the same
        started.terminate()
        cluster.set_broker_up()
        assert started.status(30 + MARGIN) == TERMINATED
        assert "accepted" not in started.output
    assert numbers_in_log(cluster) == list(range(100))


def test_P7_SIGTERM_delivers_a_full_buffer_also_while_a_thread_waits_for_room_in_it(
    cluster: MockCluster, tmp_path: Path
) -> None:
    cluster.set_broker_down()
    with running(
        cluster,
        tmp_path,
        """
        p = make({"queue.buffering.max.messages": 50_000}, shutdown_timeout=30)
        send(p, 0, 50_000)
        threading.Thread(target=send, args=(p, 50_000, 50_001), daemon=True).start()
        say("ready")
        while True: time.sleep(1)
        """,
    ) as started:
        started.wait_for("ready")
        time.sleep(0.5)  # the signal is to come while the thread waits; at any other moment the promise is the same
        cluster.set_broker_up()
        started.terminate()
        assert started.status(30 + MARGIN) == TERMINATED
        assert "undelivered_at_exit" not in started.output
    assert numbers_in_log(cluster) == list(range(50_000))


def test_P7_SIGTERM_waits_for_brokers_that_come_back_within_the_grace_period(
    cluster: MockCluster, tmp_path: Path
) -> None:
    cluster.set_broker_down()
    with running(cluster, tmp_path, "p = make(shutdown_timeout=20); send(p); wait()") as started:
        started.wait_for("ready")
        started.terminate()
        signalled = time.monotonic()
        wait_until(lambda: started.ended or time.monotonic() - signalled > 10, 20, "10 s")
        assert not started.ended, started.output
        started.terminate()  # a second one changes nothing
        cluster.set_broker_up()
        assert started.status(20 + MARGIN) == TERMINATED
        assert time.monotonic() - signalled < 20 + MARGIN
        assert "undelivered" not in started.output
    assert numbers_in_log(cluster) == ALL


@pytest.mark.parametrize("producers", [1, 3])
def test_P7_SIGTERM_ends_in_time_and_tells_what_was_lost_when_the_brokers_stay_away(
    cluster: MockCluster, tmp_path: Path, producers: int
) -> None:
    cluster.set_broker_down()
    body = f"ps = [make(shutdown_timeout=2) for _ in range({producers})]\nfor p in ps: send(p)\nwait()"
    with running(cluster, tmp_path, body) as started:
        started.wait_for("ready")
        started.terminate()
        signalled = time.monotonic()
        assert started.status(2 + MARGIN) == TERMINATED, started.output
        took = time.monotonic() - signalled
    assert 2 <= took < 2 + MARGIN
    assert started.output.count(f"undelivered_at_exit records={RECORDS}") == producers, started.output


@pytest.mark.parametrize("closing", ["p.close(60)", "with p: pass", "sys.exit(0)"])
def test_P7_SIGTERM_during_an_end_that_may_take_longer_cuts_it_short_and_tells_what_was_lost(
    cluster: MockCluster, tmp_path: Path, closing: str
) -> None:
    cluster.set_broker_down()
    body = f"p = make(shutdown_timeout=2)\nsend(p)\nsay('ready')\n{closing}\n"
    with running(cluster, tmp_path, body) as started:
        started.wait_for("ready")
        started.terminate()
        assert started.status(2 + MARGIN) == TERMINATED, started.output
    assert f"undelivered_at_exit records={RECORDS}" in started.output


def test_P7_SIGTERM_ends_a_program_whose_callback_never_returns_and_tells_what_was_pending(
    cluster: MockCluster, tmp_path: Path
) -> None:
    with running(
        cluster,
        tmp_path,
        """
        p = make(shutdown_timeout=1)
        send(p, 0, 1)[0].add_done_callback(lambda receipt: wait())
        """
        + "while True: time.sleep(0.01)\n",
    ) as started:
        started.wait_for("ready")
        started.terminate()
        assert started.status(1 + MARGIN) == TERMINATED, started.output
    assert "close_timed_out" in started.output


def test_P7_SIGTERM_leaves_the_spools_records_on_the_disk_for_the_next_start(
    cluster: MockCluster, tmp_path: Path
) -> None:
    cluster.set_broker_down()
    spool = tmp_path / "spool"
    with running(cluster, tmp_path, f"p = make(spool={str(spool)!r}, shutdown_timeout=1); send(p); wait()") as started:
        started.wait_for("ready")
        started.terminate()
        assert started.status(1 + MARGIN) == TERMINATED, started.output
    assert f"records={RECORDS}" in started.output
    assert "undelivered_at_exit" not in started.output
    cluster.set_broker_up()
    with program("drain", cluster.bootstrap_servers, spool, 30, log=tmp_path / "drain.txt") as drain:
        assert drain.wait(60) == 0
    assert numbers_in_log(cluster) == ALL


HANDLERS = {
    "sys.exit": "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))",
    "an exception": "def end(*_):\n    raise LookupError\nsignal.signal(signal.SIGTERM, end)",
}


@pytest.mark.parametrize("later", [False, True], ids=["set before", "set after"])
@pytest.mark.parametrize("handler", HANDLERS)
def test_P7_the_programs_own_SIGTERM_handler_stays_and_its_way_to_end_delivers(
    cluster: MockCluster, tmp_path: Path, handler: str, later: bool
) -> None:
    install = HANDLERS[handler]
    body = "\n".join(["" if later else install, "p = make()", install if later else "", "send(p)", "wait()"])
    with running(cluster, tmp_path, body) as started:
        started.wait_for("ready")
        started.terminate()
        assert started.status() == (7 if handler == "sys.exit" else 1), started.output
    assert numbers_in_log(cluster) == ALL


def test_P7_the_SIGTERM_handler_of_an_event_loop_stays(cluster: MockCluster, tmp_path: Path) -> None:
    with running(
        cluster,
        tmp_path,
        """
        async def main():
            stop = asyncio.Event()
            p = make()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
            send(p, 0, 100)
            say("ready")
            await stop.wait()
            send(p, 100)  # its own way to end may still send
            return 7
        sys.exit(asyncio.run(main()))
        """,
    ) as started:
        started.wait_for("ready")
        started.terminate()
        assert started.status() == 7, started.output
    assert numbers_in_log(cluster) == ALL


def test_P7_a_running_consumer_keeps_SIGTERM_and_its_handler_may_send_to_the_end(
    cluster: MockCluster, tmp_path: Path
) -> None:
    cluster.create_topic("in", partitions=1, replication_factor=3)
    with running(
        cluster,
        tmp_path,
        f"""
        from safekafka import SafeConsumer
        p = make()
        p.send("in", b"go")
        p.flush()
        def handle(message):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
            send(p)
            say("handled")
        consumer = SafeConsumer(
            {{"bootstrap.servers": {cluster.bootstrap_servers!r}, "group.id": "g", "auto.offset.reset": "earliest"}},
            ["in"],
        )
        consumer.run(handle)
        sys.exit(7)
        """,
    ) as started:
        assert started.status(60) == 7, started.output
        assert "handled" in started.output
    assert numbers_in_log(cluster) == ALL


def test_P7_with_handle_sigterm_off_the_signal_has_its_default_effect(cluster: MockCluster, tmp_path: Path) -> None:
    with running(cluster, tmp_path, "p = make({'linger.ms': 60000}, handle_sigterm=False); send(p); wait()") as started:
        started.wait_for("ready")
        started.terminate()
        assert started.status(5) == TERMINATED
    assert numbers_in_log(cluster) == []


def test_P7_process_1_of_a_container_delivers_on_SIGTERM_and_ends_with_its_status(
    cluster: MockCluster, tmp_path: Path
) -> None:
    namespace = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
    tried = subprocess.run([*namespace, "true"], timeout=30, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"the kernel refuses unshare: {tried.stderr.strip()}")
    body = "assert os.getpid() == 1; p = make(); send(p); wait()"
    with running(cluster, tmp_path, body, before=namespace) as started:
        started.wait_for("ready")
        (child,) = started.children()
        os.kill(child, signal.SIGTERM)  # from outside, as a container's runtime does
        assert started.status() == 128 + signal.SIGTERM, started.output
    assert numbers_in_log(cluster) == ALL
