"""What SIGTERM does to the producers of a process, with stand-ins for them. Each case in a process of its own."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest

STAND_IN = """
import logging, os, signal, sys, threading, time, _thread
from safekafka.producer import sigterm
logging.basicConfig(level=logging.INFO)

def say(*words):
    "One write() a line, also inside a signal handler."
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

class Failures:
    count = 0

class Way:
    "A producer's thread that needs `drain` seconds to deliver."
    def __init__(self, drain=0.0):
        self.drain, self.ended, self.ending_by_signal, self.failures = drain, False, False, Failures()
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
    def __len__(self):
        return 7
    def begin_close(self, seconds):
        say("closing", seconds, self.ending_by_signal)
        self.closing.set()
    def run(self):
        self.closing.wait()
        time.sleep(self.drain)
        self.ended = True
        say("ended")
        sigterm.ended(self)
    def close(self):
        self.closing.set()
        self.thread.join()

def wait():
    print("ready", flush=True)
    while True:
        time.sleep(0.01)

"""


class Process:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        self._before = ""
        while (line := process.stdout.readline()) != "ready\n":
            self._before += line
            assert line, self._before

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def end(self, seconds: float = 30) -> tuple[int, str]:
        """The wait status (a signal's is negative), and what was printed and logged."""
        output, _ = self._process.communicate(timeout=seconds)
        return self._process.returncode, self._before + output


@contextlib.contextmanager
def running(program: str, *, before: tuple[str, ...] = ()) -> Iterator[Process]:
    process = subprocess.Popen(
        [*before, sys.executable, "-c", STAND_IN + textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Process(process)
    finally:
        process.kill()
        process.communicate(timeout=30)


def terminated(program: str) -> tuple[int, str]:
    with running(program) as process:
        process.terminate()
        return process.end()


def test_nothing_is_set_up_by_the_import() -> None:
    program = STAND_IN + "import safekafka; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=True, capture_output=True, text=True)
    assert done.stdout == "True\n"


def test_every_producer_ends_and_then_the_process_by_the_signal() -> None:
    status, output = terminated("""
        ways = [Way(0.0), Way(0.5), Way(0.2)]
        for way in ways: sigterm.watch(way, 20)
        wait()
    """)
    assert status == -signal.SIGTERM
    assert output.count("closing 20 True") == output.count("ended\n") == 3


def test_what_was_not_delivered_is_logged_with_its_number() -> None:
    status, output = terminated("""
        way = Way()
        way.failures.count = 1234
        sigterm.watch(way, 20)
        wait()
    """)
    assert status == -signal.SIGTERM
    assert "undelivered_at_exit records=1234" in output


def test_without_a_live_producer_the_signal_has_its_default_effect_at_once() -> None:
    status, output = terminated("""
        way = Way()
        sigterm.watch(way, 20)
        way.close()
        wait()
    """)
    assert status == -signal.SIGTERM
    assert "closing" not in output


def test_a_producer_nobody_holds_any_more_is_not_waited_for() -> None:
    status, _ = terminated("""
        class Dropped(Way):
            def __init__(self):
                self.ended = False
        sigterm.watch(Dropped(), 20)
        wait()
    """)
    assert status == -signal.SIGTERM


@pytest.mark.parametrize("handler", ["signal.SIG_IGN", "lambda *_: print('mine', flush=True)"])
@pytest.mark.parametrize("later", [False, True], ids=["earlier", "later"])
def test_the_programs_own_disposition_is_never_replaced(handler: str, later: bool) -> None:
    install = f"signal.signal(signal.SIGTERM, {handler})"
    program = f"""
        {"" if later else install}
        way = Way()
        sigterm.watch(way, 20)
        {install if later else ""}
        other = Way()
        sigterm.watch(other, 20)
        print("ready", flush=True)
        time.sleep(0.5)
        sys.exit(3)
    """
    status, output = terminated(program)
    assert status == 3
    assert "closing" not in output
    assert ("mine" in output) == ("mine" in handler)


def test_a_second_signal_changes_nothing() -> None:
    with running("way = Way(1.0); sigterm.watch(way, 20); wait()") as process:
        for _ in range(5):
            process.terminate()
            time.sleep(0.05)
        status, output = process.end()
    assert status == -signal.SIGTERM
    assert output.count("closing") == output.count("ended\n") == 1


def test_a_producer_made_during_the_end_ends_as_well() -> None:
    status, output = terminated("""
        first = Way(1.0)
        sigterm.watch(first, 20)
        def make_another():
            global second
            first.closing.wait()
            second = Way(1.5)
            sigterm.watch(second, 10)
        threading.Thread(target=make_another, daemon=True).start()
        wait()
    """)
    assert status == -signal.SIGTERM
    assert "closing 10 True" in output
    assert output.count("ended\n") == 2


def test_a_producer_of_another_thread_ends_as_well_where_the_handler_is_ours() -> None:
    status, output = terminated("""
        ways = []
        def make():
            ways.append(Way())
            sigterm.watch(ways[-1], 20)
        make()
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        wait()
    """)
    assert status == -signal.SIGTERM
    assert output.count("ended\n") == 2


def test_a_producer_of_another_thread_alone_leaves_the_signal_as_it_is() -> None:
    status, output = terminated("""
        way = Way()
        thread = threading.Thread(target=sigterm.watch, args=(way, 20))
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        wait()
    """)
    assert status == -signal.SIGTERM
    assert "closing" not in output


def test_the_process_ends_although_a_producers_thread_hangs() -> None:
    started = time.monotonic()
    status, output = terminated("""
        sigterm.MARGIN_SECONDS = 0.5
        ways = [Way(), Way(3600)]
        for way in ways: sigterm.watch(way, 1)
        wait()
    """)
    assert status == -signal.SIGTERM
    assert 1.5 <= time.monotonic() - started < 10
    assert "close_timed_out producers=1 pending=7" in output


@pytest.mark.parametrize("hanging", [False, True], ids=["last line", "hanging thread"])
def test_the_process_ends_although_the_main_thread_holds_the_logs_lock_for_ever(hanging: bool) -> None:
    # A log handler that sends to Kafka does: its send() blocks during the end.
    status, _ = terminated(f"""
        sigterm.MARGIN_SECONDS = 0.5
        way = Way({3600 if hanging else 0})
        way.failures.count = 1
        sigterm.watch(way, 1)
        with logging.getLogger().handlers[0].lock:
            wait()
    """)
    assert status == -signal.SIGTERM


@pytest.mark.parametrize("busy", ["threading.Thread(target=int).start()", "logging.getLogger('a').debug('b')"])
def test_the_handler_may_interrupt_anything(busy: str) -> None:
    for _ in range(10):
        status, output = terminated(f"""
            way = Way()
            sigterm.watch(way, 20)
            print("ready", flush=True)
            while True:
                {busy}
        """)
        assert status == -signal.SIGTERM, output
        assert "ended\n" in output


@pytest.mark.parametrize(
    "main",
    ["sys.exit(3)", "raise ValueError", "way.close(); os.write(1, b'closed')", "atexit.register(way.close)"],
)
def test_a_program_that_returns_meanwhile_neither_hangs_nor_loses_the_wait_status(main: str) -> None:
    status, output = terminated(f"""
        import atexit
        way = Way(0.5)
        sigterm.watch(way, 20)
        atexit.register(way.close)
        print("ready", flush=True)
        way.closing.wait()
        {main}
    """)
    assert status == -signal.SIGTERM, output
    assert "closed" not in output


def test_the_main_thread_may_have_returned_while_others_go_on() -> None:
    status, output = terminated("""
        way = Way(0.2)
        sigterm.watch(way, 20)
        threading.Thread(target=wait).start()
    """)
    assert status == -signal.SIGTERM
    assert "ended\n" in output


@pytest.mark.parametrize("fork", ["os.fork", "multiprocessing"])
def test_a_forked_child_without_a_producer_has_the_default_effect(fork: str) -> None:
    start = {
        "os.fork": "child = os.fork()\n        if not child: sleep(); os._exit(0)",
        "multiprocessing": (
            "process = multiprocessing.get_context('fork').Process(target=sleep)\n"
            "        process.start(); child = process.pid"
        ),
    }[fork]
    with running(f"""
        import multiprocessing
        way = Way(0.2)
        sigterm.watch(way, 20)
        asleep, falls_asleep = os.pipe()
        def sleep():
            os.write(falls_asleep, b"1")
            time.sleep(60)
        {start}
        os.read(asleep, 1)  # Python forgets a signal that comes while it is forking
        os.kill(child, signal.SIGTERM)
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        wait()
    """) as process:
        process.terminate()
        status, output = process.end()
    assert f"child {-signal.SIGTERM}" in output
    assert output.count("ended\n") == 1
    assert status == -signal.SIGTERM


def test_a_forked_child_with_a_producer_of_its_own_delivers_first() -> None:
    with running("""
        parents = Way()
        sigterm.watch(parents, 20)
        print("ready", flush=True)
        child = os.fork()
        if not child:
            childs = Way(0.2)
            sigterm.watch(childs, 10)
            os.kill(os.getpid(), signal.SIGTERM)
            while True: time.sleep(0.01)
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    """) as process:
        status, output = process.end()
    assert f"child {-signal.SIGTERM}" in output
    assert "closing 10 True" in output
    assert output.count("ended\n") == 1
    assert status == 0


def test_process_1_of_a_namespace_where_the_signal_has_no_default_effect_ends_with_143() -> None:
    namespace = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
    tried = subprocess.run([*namespace, "true"], timeout=30, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"the kernel refuses unshare: {tried.stderr.strip()}")
    with running(
        """
        assert os.getpid() == 1
        way = Way(0.2)
        sigterm.watch(way, 20)
        print("ready", flush=True)
        os.kill(1, signal.SIGTERM)
        wait()
        """,
        before=namespace,
    ) as process:
        status, output = process.end()
    assert "ended\n" in output
    assert status == 128 + signal.SIGTERM
