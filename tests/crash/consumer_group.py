"""A group of consumer processes (`tests/programs/keyed_work.py`) whose members come, go, are killed and stand still.

Used by one thread at a time. Only processes that it started are ended.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.crash.consumer_judge import Judgement, Logged, judge
from tests.crash.consumer_ledger import read_ledger
from tests.processes import PROGRAMS

ENDING = 25.0  # seconds: shutdown_timeout (20), and 5 that C6 grants beyond it


class Member:
    def __init__(self, process: subprocess.Popen[bytes], name: str, log: Path) -> None:
        self.process = process
        self.name = name
        self.paused = False
        self._log = log

    @property
    def output(self) -> str:
        return self._log.read_text()


class Group:
    """`seconds`: the shortest and the longest of a handling."""

    def __init__(
        self,
        servers: str,
        topic: str,
        folder: Path,
        config: Mapping[str, Any],
        options: Mapping[str, Any],
        seconds: tuple[float, float] = (0.001, 0.004),
    ) -> None:
        self.name = f"{topic}-group"
        self.members: list[Member] = []  # that shall live
        self.lives = 0
        self._leaving: list[tuple[Member, float]] = []  # stopped, and until when they must have ended
        self._started: list[Member] = []
        self._numbers = itertools.count(1)
        self._folder = folder
        self._ledger = folder / "ledger"
        self._ledger.touch()
        self._read = 0
        self._seen: set[tuple[int, int]] = set()
        self._assigned: set[str] = set()
        self._what = {
            "servers": servers,
            "topic": topic,
            "group": self.name,
            "ledger": str(self._ledger),
            "config": dict(config),
            "options": dict(options),
            "seconds": seconds,
        }

    def __enter__(self) -> Group:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for member in self._started:
            if member.process.poll() is None:
                member.process.kill()
            member.process.wait(30)

    def start(self) -> Member:
        name = f"m{next(self._numbers)}"
        log = self._folder / f"output-{name}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, str(PROGRAMS / "keyed_work.py"), json.dumps({**self._what, "member": name})],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        member = Member(process, name, log)
        self._started.append(member)
        self.members.append(member)
        return member

    def kill(self, member: Member) -> None:
        self.check()
        self.members.remove(member)
        member.process.kill()
        member.process.wait(30)
        self._note("killed", member)

    def stop(self, member: Member) -> None:
        """SIGTERM; `check()` sees to it that it ends in time."""
        self.check()
        self.members.remove(member)
        member.process.send_signal(signal.SIGTERM)
        self._leaving.append((member, time.monotonic() + ENDING))

    def pause(self, member: Member) -> None:
        member.process.send_signal(signal.SIGSTOP)
        member.paused = True

    def resume(self, member: Member) -> None:
        member.process.send_signal(signal.SIGCONT)
        member.paused = False

    def check(self) -> None:
        """No member has ended but those that were told to, and these did so in order and in time."""
        for member in self.members:
            status = member.process.poll()
            assert status is None, f"{member.name} ended by itself with {status}: {member.output}"
        for member, until in self._leaving[:]:
            status = member.process.poll()
            assert status is not None or time.monotonic() < until, f"{member.name} did not end: {member.output}"
            # One that was still starting up had no handler of the signal yet.
            assert status in (None, 0, -signal.SIGTERM), f"{member.name} ended with {status}: {member.output}"
            if status is not None:
                self._leaving.remove((member, until))
                if status:
                    self._note("killed", member)

    @property
    def leaving(self) -> bool:
        self.check()
        return bool(self._leaving)

    def handled(self) -> int:
        """Different records so far."""
        self._look()
        return len(self._seen)

    def assigned(self) -> list[Member]:
        """The members that run and have got partitions."""
        self._look()
        return [member for member in self.members if member.name in self._assigned and not member.paused]

    def _look(self) -> None:
        with self._ledger.open("rb") as file:
            file.seek(self._read)
            lines, newline, _ = file.read().rpartition(b"\n")
        self._read += len(lines) + len(newline)
        for line in lines.splitlines():
            kind, member, *words = line.split()
            if kind == b"handled":
                self._seen.add((int(words[0]), int(words[1])))
            elif words[0] == b"partitions_assigned":
                self._assigned.add(member.decode())

    def judged(self, log: list[Logged], maps: bool) -> Judgement:
        return judge(read_ledger(self._ledger.read_text().splitlines()), log, maps)

    def outputs(self) -> str:
        """For a failure's message."""
        outputs = [f"--- {member.name}\n{member.output[-3_000:]}" for member in self._started[-6:]]
        return "\n".join([f"--- the group, as its coordinator knows it: {self._described()}", *outputs])

    def _described(self) -> str:
        admin = AdminClient({"bootstrap.servers": self._what["servers"], "log_level": 0})
        try:
            found = admin.describe_consumer_groups([self.name], request_timeout=10)[self.name].result(15)
        except KafkaException as error:
            return str(error)
        members = [
            f"{member.client_id}: {_numbers_of(member.assignment)} of {_numbers_of(member.target_assignment)}"
            for member in found.members
        ]
        return f"{found.state.name}; {'; '.join(members)}"

    def _note(self, what: str, member: Member) -> None:
        line = f"told {member.name} {what} - {time.monotonic_ns()}\n"
        with self._ledger.open("ab", buffering=0) as file:
            file.write(line.encode())


def _numbers_of(assignment: Any) -> list[int]:
    return [] if assignment is None else [one.partition for one in assignment.topic_partitions]


def new_folder(parent: Path) -> Path:
    folder = parent / f"group-{os.urandom(3).hex()}"
    folder.mkdir()
    return folder
