"""What is seen while the demo runs: bars on a terminal, a line a second everywhere else. And the table at the end.

rich draws the bars on a thread of its own; everything here is called by the main thread.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from safekafka.cli.demo.clusters import BrokerState
from safekafka.cli.demo.ledger import Ledger

_LINE_SECONDS = 1.0
_STYLE = {"up": "green", "running": "green", "done": "green", "starting": "yellow", "down": "red", "killed": "red"}


@dataclass
class State:
    """What the bars show."""

    orders: int
    sent: int = 0
    spooled: int = 0
    handled: int = 0
    dead_lettered: int = 0
    producer: str = "running"
    brokers: dict[int, BrokerState] = field(default_factory=dict)

    @property
    def acknowledged(self) -> int:
        return max(0, self.sent - self.spooled)

    def bars(self) -> dict[str, tuple[int, int]]:
        """Name: how many, of how many."""
        return {
            "sent": (self.sent, self.orders),
            "on disk": (self.spooled, self.orders),
            "acknowledged": (self.acknowledged, self.orders),
            "handled": (self.handled, self.orders - 1),  # one is the dead letter
            "dead-lettered": (self.dead_lettered, 1),
        }

    def processes(self) -> dict[str, str]:
        return {"producer": self.producer, **{f"broker {number}": state for number, state in self.brokers.items()}}


class Screen(Protocol):
    def __enter__(self) -> Screen: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def show(self, state: State) -> None: ...
    def say(self, text: str) -> None:
        """A line that stays."""


def screen_for(console: Console, began: float) -> Screen:
    """`began`: monotonic; the times of the lines count from it."""
    animated = console.is_terminal and not console.is_dumb_terminal
    return LiveScreen(console, began) if animated else PlainScreen(console, began)


class LiveScreen:
    def __init__(self, console: Console, began: float) -> None:
        self._console = console
        self._began = began
        self._progress = Progress(
            TextColumn("{task.description:14}"), BarColumn(), MofNCompleteColumn(), console=console
        )
        self._tasks = {name: self._progress.add_task(name) for name in State(0).bars()}
        self._live = Live(console=console, refresh_per_second=10)

    def __enter__(self) -> LiveScreen:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, state: State) -> None:
        for name, (done, of) in state.bars().items():
            self._progress.update(self._tasks[name], completed=done, total=of)
        line = Text()
        for name, now in state.processes().items():
            line.append(f"{name} ").append(now, _STYLE.get(now, "")).append("   ")
        self._live.update(Group(self._progress, line))

    def say(self, text: str) -> None:
        self._live.console.print(_stamped(text, self._began), highlight=False, markup=False)


class PlainScreen:
    def __init__(self, console: Console, began: float) -> None:
        self._console = console
        self._began = began
        self._shown = 0.0

    def __enter__(self) -> PlainScreen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return

    def show(self, state: State) -> None:
        if time.monotonic() - self._shown < _LINE_SECONDS:
            return
        self._shown = time.monotonic()
        counts = "  ".join(f"{name} {done:,}" for name, (done, _) in state.bars().items())
        not_up = "".join(f"  {name} {now}" for name, now in state.processes().items() if now not in ("up", "running"))
        self.say(counts + not_up)

    def say(self, text: str) -> None:
        say(self._console, _stamped(text, self._began))


def say(console: Console, text: str) -> None:
    """A line as it is: neither coloured nor wrapped, so that it can be searched and cut."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def show_ledger(console: Console, ledger: Ledger) -> None:
    table = Table(title="Ledger", title_justify="left")
    table.add_column("orders")
    table.add_column("count", justify="right")
    table.add_column("counted from")
    rows = [
        ("accepted", ledger.accepted, "the producer's book: send() returned"),
        ("in Kafka", ledger.in_kafka, "the topic, read back by a plain client"),
        ("handled", ledger.handled, "the consumer's book: the handler returned"),
        ("dead-lettered", ledger.dead_lettered, "the dead letter topic, read back"),
        ("lost", ledger.lost, "accepted and not in Kafka"),
        ("unfinished", ledger.unfinished, "in Kafka, neither handled nor dead-lettered"),
        ("duplicates", ledger.duplicates, "copies in Kafka beyond the first"),
        ("handled again", ledger.handled_again, "one copy handled twice (redelivered)"),
        ("out of order", ledger.out_of_order, "per key, in Kafka and in handling"),
        ("unexpected", ledger.unexpected, "in Kafka and never sent, or changed"),
    ]
    wrong = {"lost", "unfinished", "out of order", "unexpected"}
    for name, number, source in rows:
        table.add_row(name, f"{number:,}", source, style="bold red" if name in wrong and number else "")
    console.print(table)
    say(
        console,
        f"Duplicates: what Kafka had and the spool had not yet struck off at the SIGKILL was sent again "
        f"(at least once); {ledger.duplicates:,} this time.",
    )
    if ledger.in_doubt:
        say(
            console,
            f"In doubt: {ledger.in_doubt} order whose send() the SIGKILL cut off, so never accepted and not counted "
            f"above (in Kafka: {ledger.in_doubt_in_kafka}). The restarted producer placed it anew.",
        )


def _stamped(text: str, began: float) -> str:
    return f"{time.monotonic() - began:6.1f} s  {text}"
