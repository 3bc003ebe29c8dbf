"""Runs the demo: starts brokers and programs, hurts them by the schedule, waits until all is handled, and counts.

Who owns what: everything that is started here is `Watched` (the brokers by their cluster, the programs and the
temporary folder by the `Workshop`), so it ends when this process ends, in whatever way. Ctrl-C reaches this process
alone, since the others have sessions of their own, and comes as `Stopped` through the `with` blocks below.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from confluent_kafka import KafkaException
from rich.console import Console

from safekafka.cli.demo.book import ACCEPTED, DEAD_LETTERED, HANDLED, SPOOLED, Line, Reader
from safekafka.cli.demo.clusters import Brokers, MockBrokers, RealBrokers
from safekafka.cli.demo.faults import Fault, Schedule
from safekafka.cli.demo.ledger import Ledger, count
from safekafka.cli.demo.orders import DEAD_LETTER_TOPIC, PARTITIONS, TOPIC, poison_number
from safekafka.cli.demo.screen import Screen, State, say, screen_for, show_ledger
from safekafka.cli.interrupt import Stopped, held_back
from safekafka.errors import SafeKafkaError
from safekafka.testing.errors import KafkaClusterError
from safekafka.testing.ledger import read_log
from safekafka.testing.watched import Watched

_SENDING_SECONDS = 20.0  # on real brokers; enough for them to notice the dead one while orders go on
_MOCK_SENDING_SECONDS = 4.0
_MOST_MOCK_ORDERS = 100_000  # the mock brokers trim a partition at about 5 MB
_ROUND_SECONDS = 0.1
_STALL_SECONDS = 60.0
_END_SECONDS = 40.0  # for a program that was told to end
_READ_SECONDS = 60.0


class DemoFailed(Exception):  # noqa: N818 - a word for the user, not for a handler
    """The demo could not be run to its end; nothing is known about lost records."""


def run_demo(orders: int, *, mock: bool, seed: int) -> int:
    """Run it, tell about it, and return the exit status."""
    console = Console()
    if mock and orders > _MOST_MOCK_ORDERS:
        console.print(f"--mock holds at most {_MOST_MOCK_ORDERS:,} orders: mock brokers keep them in memory.")
        return 2
    try:
        return _run(console, orders, mock, seed)
    except Stopped:
        console.print("Stopped. Nothing was left behind.")
        raise
    except (DemoFailed, KafkaClusterError, SafeKafkaError, KafkaException, TimeoutError, OSError) as error:
        say(console, f"The demo failed: {error}")
        return 1
    except ModuleNotFoundError as error:
        say(console, f"The demo needs the package {error.name!r}: pip install 'safekafka[cli,testing]'")
        return 1


def _run(console: Console, orders: int, mock: bool, seed: int) -> int:
    began = time.monotonic()
    kind = "mock" if mock else "Kafka"
    say(console, f"{orders:,} orders through three {kind} brokers, while one of them and the producer get SIGKILL.")
    say(console, f"The same again: safekafka demo --orders {orders} --seed {seed}{' --mock' if mock else ''}")
    with Workshop() as workshop:
        if not mock:
            console.print("Starting the brokers (the first time, Kafka is downloaded before) ...")
        brokers: Brokers = MockBrokers() if mock else RealBrokers()
        with brokers:
            demo = Demo(workshop, brokers, orders, seed, _MOCK_SENDING_SECONDS if mock else _SENDING_SECONDS)
            try:
                with screen_for(console, began) as screen:
                    demo.send_and_handle(screen)
                console.print("Reading the topics back ...")
                ledger = demo.count()
            except Exception:
                _keep(console, workshop, brokers)
                raise
            show_ledger(console, ledger)
            if not ledger.ok:
                _keep(console, workshop, brokers)
    say(console, f"Lost: {ledger.lost}. Took {time.monotonic() - began:.0f} s.")
    return 0 if ledger.ok else 1


class Workshop:
    """The temporary folder and the programs that work in it. None of it outlives this process."""

    def __enter__(self) -> Workshop:
        with held_back():
            self.folder = Path(tempfile.mkdtemp(prefix="safekafka-demo-"))
            self._watched = Watched([self.folder])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watched.close()

    def start(self, program: str, **options: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"safekafka.cli.demo.{program}"]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        return self._watched.spawn(command, log=self.log(program), cwd=self.folder)

    def end(self, program: subprocess.Popen[bytes], signum: signal.Signals) -> int:
        """Send the signal, wait for the end, and return the exit status."""
        program.send_signal(signum)
        return self.wait(program)

    def wait(self, program: subprocess.Popen[bytes]) -> int:
        try:
            self._watched.reap(program, _END_SECONDS)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"a program did not end within {_END_SECONDS:.0f} s: {program.args!r}") from None
        return program.returncode

    def log(self, program: str) -> Path:
        return self.folder / f"{program}.log"

    def book(self, program: str) -> Path:
        return self.folder / f"{program}.book"


class Demo:
    """From the topics' creation to the count."""

    def __init__(self, workshop: Workshop, brokers: Brokers, orders: int, seed: int, seconds: float) -> None:
        self._workshop = workshop
        self._brokers = brokers
        self._orders = orders
        self._seed = seed
        self._per_second = orders / seconds
        self._schedule = Schedule(seed)
        self._state = State(orders)
        self._victim = 0
        self._placed: list[Line] = []
        self._handled: list[Line] = []
        self._handled_orders: set[str] = set()
        self._placing = Reader(workshop.book("place_orders"))
        self._handling = Reader(workshop.book("handle_orders"))

    def send_and_handle(self, screen: Screen) -> None:
        """Returns when every accepted order was handled or dead-lettered, and the programs have ended."""
        self._brokers.create_topic(TOPIC, PARTITIONS)
        self._brokers.create_topic(DEAD_LETTER_TOPIC, 1)
        screen.say(f"Topics {TOPIC} ({PARTITIONS} partitions) and {DEAD_LETTER_TOPIC} are there, three copies of each.")
        self._consumer = self._workshop.start(
            "handle_orders",
            bootstrap_servers=self._brokers.bootstrap_servers,
            book=self._workshop.book("handle_orders"),
        )
        self._start_producer()
        moved, seen = time.monotonic(), (0, 0)
        while not (self._state.producer == "done" and self._all_finished()):
            now = time.monotonic()
            self._read_books()
            self._watch_programs()
            fault = self._schedule.due(self._state.sent / self._orders, now)
            if fault is not None:
                self._inflict(fault, screen)
            self._state.brokers = self._brokers.states()
            screen.show(self._state)
            if seen != (len(self._placed), len(self._handled)):
                moved, seen = now, (len(self._placed), len(self._handled))
            if now - moved > _STALL_SECONDS:
                raise DemoFailed(f"nothing has moved for {_STALL_SECONDS:.0f} s")
            time.sleep(_ROUND_SECONDS)
        self._read_books()
        screen.show(self._state)
        status = self._workshop.end(self._consumer, signal.SIGTERM)
        if status != 0:
            raise self._failure("handle_orders", status)

    def count(self) -> Ledger:
        self._brokers.settle()
        self._read_books()
        servers = self._brokers.bootstrap_servers
        return count(
            self._placed,
            self._handled,
            read_log(servers, TOPIC, timeout=_READ_SECONDS),
            read_log(servers, DEAD_LETTER_TOPIC, timeout=_READ_SECONDS),
            {poison_number(self._seed, self._orders)},
        )

    # ---- inside

    def _start_producer(self) -> None:
        self._producer = self._workshop.start(
            "place_orders",
            bootstrap_servers=self._brokers.bootstrap_servers,
            spool=self._workshop.folder / "spool",
            book=self._workshop.book("place_orders"),
            orders=self._orders,
            per_second=self._per_second,
            seed=self._seed,
        )
        self._state.producer = "running"

    def _inflict(self, fault: Fault, screen: Screen) -> None:
        if fault is Fault.KILL_BROKER:
            self._victim = self._brokers.leader_of(TOPIC)
            self._brokers.kill(self._victim)
            screen.say(f"SIGKILL to broker {self._victim}, leader of {TOPIC}[0].")
        elif fault is Fault.KILL_PRODUCER:
            self._workshop.end(self._producer, signal.SIGKILL)
            self._state.producer = "killed"
            screen.say(f"SIGKILL to the producer, with about {self._state.spooled:,} orders in its spool.")
        elif fault is Fault.START_PRODUCER:
            self._start_producer()
            screen.say("The producer was started again on the same spool.")
        else:
            self._brokers.start(self._victim)
            screen.say(f"Broker {self._victim} was started again.")

    def _read_books(self) -> None:
        for line in self._placing.news():
            self._placed.append(line)
            if line[0] == ACCEPTED:
                self._state.sent += 1
            elif line[0] == SPOOLED:
                self._state.spooled = int(line[1])
        for line in self._handling.news():
            self._handled.append(line)
            if line[0] == HANDLED:
                self._handled_orders.add(line[1].partition("/")[0])
            elif line[0] == DEAD_LETTERED:
                self._state.dead_lettered += 1
        self._state.handled = len(self._handled_orders)

    def _all_finished(self) -> bool:
        return self._state.handled + min(1, self._state.dead_lettered) >= self._orders

    def _watch_programs(self) -> None:
        if self._consumer.poll() is not None:
            raise self._failure("handle_orders", self._consumer.returncode)
        if self._state.producer == "running" and self._producer.poll() is not None:
            status = self._workshop.wait(self._producer)
            self._read_books()
            if status != 0 or self._state.sent < self._orders or not self._schedule.over:
                raise self._failure("place_orders", status)
            self._state.producer = "done"

    def _failure(self, program: str, status: int) -> DemoFailed:
        lines = self._workshop.log(program).read_text(errors="replace").splitlines()[-20:]
        return DemoFailed("\n".join([f"{program} ended with status {status}. The end of its log:", *lines]))


def _keep(console: Console, workshop: Workshop, brokers: Brokers) -> None:
    """Copy what explains a failure to where it stays."""
    kept = Path(tempfile.mkdtemp(prefix="safekafka-demo-failed-"))
    for pattern in ("*.log", "*.book"):
        for path in workshop.folder.glob(pattern):
            shutil.copy(path, kept)
    brokers.keep_logs(kept)
    say(console, f"The logs and books are kept in {kept}")
