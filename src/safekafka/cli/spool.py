"""`safekafka spool`: see what is in a spool, set aside records right, and empty it without the program that filled it.

What only looks (status, list, show, verify, rejected, export) reads beside a living process. What writes (requeue,
discard, drain) takes the lane's lock first and refuses a lane that a living process has. Keys and values are told by
`list` (keys), `show` and `export`, whose purpose it is, and by nothing else.

What is asked for goes to stdout; notes, the progress bar and errors to stderr.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TextIO

import typer

from safekafka.errors import SafeKafkaError, SpoolLockedError

if TYPE_CHECKING:
    from safekafka import SafeProducer, Spool
    from safekafka.record import Fields
    from safekafka.spool.inspect import LaneStatus
    from safekafka.spool.journal import Journal, RejectedRecord

_WRONG, _IN_USE = 1, 3  # exit statuses; 0 is fine, 2 typer's own for a command line that it can't read
_KEY_CHARACTERS = 40
_ROUND_SECONDS = 0.1
_END_SECONDS = 2.0  # for the reports of what is on its way when a drain ends early; what they miss is sent twice
_ASK_SECONDS = 10.0
_LARGEST_RECORD = 1_000_000_000  # librdkafka's bound

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="See what is in a spool, requeue or discard rejected records, and drain it without its program.\n\n"
    "Exit status of every command: 0 fine, 1 something is damaged, left, or not found, 2 usage, "
    "3 in use by a living process.",
)

_Path = Annotated[Path, typer.Argument(metavar="PATH", help="The folder of the spool.", show_default=False)]
_Lane = Annotated[int | None, typer.Option("--lane", min=0, help="Only this lane.", show_default=False)]
_Json = Annotated[bool, typer.Option("--json", help="For programs.")]
_Seqs = Annotated[
    list[int] | None, typer.Argument(metavar="SEQ", help="Sequence numbers, see rejected.", show_default=False)
]
_All = Annotated[bool, typer.Option("--all", help="All rejected records.")]


# ---- commands that only look


@app.command()
def status(path: _Path, as_json: _Json = False) -> None:
    """Each lane: who has it open, whose records it holds, how many, since when, and what went wrong.

    Exit status: 0; 1 when there is no spool, or a lane of it can't be read.
    """
    with _one_line_errors():
        looks = _look_at(path, None)
        readable = [look.lane for look in looks if look.problem is None]
        total = {name: sum(getattr(lane, name) for lane in readable) for name in _COUNTED}
        if as_json:
            _tell_json({"spool": str(path), "lanes": [_status_json(look) for look in looks], "total": total})
        else:
            _tell_table(
                ("LANE", *(name.upper() for name in _COUNTED), "OLDEST", "OWNER", "SPOOL", "CLUSTER", "BROKERS"),
                [_status_row(lane) for lane in readable]
                + [("total", *(f"{total[name]:,}" for name in _COUNTED), "", "", "", "", "")],
            )
            for lane in readable:
                for evidence in lane.evidence:
                    typer.echo(f"evidence of damage: {evidence}")
        _note_unreadable(looks)
    raise typer.Exit(_WRONG if len(readable) < len(looks) else 0)


@app.command("list")
def list_(
    path: _Path,
    lane: _Lane = None,
    topic: Annotated[str | None, typer.Option(help="Only records for this topic.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="Records at most.")] = 100,
    as_json: _Json = False,
) -> None:
    """The pending records in their order, a line each, with their keys. VALUE and TOTAL are bytes."""
    with _one_line_errors():
        from safekafka.spool.inspect import LaneView

        rows: list[tuple[str, ...]] = []
        more = False
        for folder in _lanes(path, lane):
            with LaneView(folder) as view:
                for seq, fields, size in view.records():
                    if topic is not None and fields[0] != topic:
                        continue
                    if more := len(rows) == limit:
                        break
                    rows.append(_list_row(folder, seq, fields, size))
                    if as_json:
                        more_of_it = {"key": _shown_json(fields[2]), "value_bytes": _length(fields[1])}
                        _tell_json(_record_json(folder, seq, fields, None, **more_of_it))
            if more:
                break
        if not as_json and rows:
            _tell_table(("LANE", "SEQ", "TIME", "TOPIC", "PARTITION", "VALUE", "TOTAL", "KEY"), rows)
        if more:
            _note(f"These are the first {limit:,}; more with --limit, all with safekafka spool export.")
        elif not rows:
            _note("No such record is pending.")


@app.command()
def show(
    path: _Path,
    seq: Annotated[int, typer.Argument(metavar="SEQ", help="Its sequence number.", show_default=False)],
    lane: _Lane = None,
    as_json: _Json = False,
) -> None:
    """One record as it is, pending or rejected. Bytes that are not text: in hex, in JSON in base64.

    Exit status: 0; 1 when there is no such record.
    """
    with _one_line_errors():
        found = [one for folder in _lanes(path, lane) for one in _found(folder, seq)]
        if not found:
            raise SafeKafkaError(
                f"{str(path)!r} has no record {seq}. It was sent, or it is damaged: see safekafka spool verify."
            )
        if len(found) > 1:
            raise typer.BadParameter(f"several lanes have a record {seq}: say which with --lane.")
        folder, fields, rejected = found[0]
        if as_json:
            _tell_json(_record_json(folder, seq, fields, rejected, **_payload_json(fields, _shown_json)))
        else:
            _tell_record(folder, seq, fields, rejected)


@app.command()
def verify(path: _Path, as_json: _Json = False) -> None:
    """Read everything, and compare it with its checksums and counts.

    Exit status: 0 when all is well, 1 when something is damaged or missing.
    """
    with _one_line_errors():
        from safekafka.spool.inspect import LaneView, Verification, lanes
        from safekafka.spool.journal import shown

        well = True
        for folder in lanes(path):
            try:
                with LaneView(folder) as view:
                    result = view.verify()
            except (SafeKafkaError, sqlite3.Error) as error:
                result = Verification(0, (), 0, (str(error),))
            well = well and result.ok
            if as_json:
                _tell_json({"lane": _number(folder), "ok": result.ok, **result._asdict()})
                continue
            typer.echo(f"{folder.name}: {_count(result.records, 'record')} read, {'well' if result.ok else 'NOT WELL'}")
            if result.bad:
                typer.echo(f"{folder.name}: damaged: {_count(len(result.bad), 'record')}: {shown(result.bad)}")
            if result.missing:
                typer.echo(f"{folder.name}: missing: {_count(result.missing, 'record')} of those it counts")
            for problem in result.problems:
                typer.echo(f"{folder.name}: {_line(problem)}")
    raise typer.Exit(0 if well else _WRONG)


@app.command()
def rejected(path: _Path, as_json: _Json = False) -> None:
    """The records that Kafka refused for good, with the reason. VALUE is bytes."""
    with _one_line_errors():
        from safekafka.spool.inspect import LaneView, lanes

        rows: list[tuple[str, ...]] = []
        for folder in lanes(path):
            with LaneView(folder) as view:
                for one in view.rejected():
                    about = _time(one.at), one.fields[0], _partition(one.fields), _size(one.fields[1])
                    rows.append((folder.name, str(one.seq), *about, _line(one.reason)))
                    if as_json:
                        value_bytes = _length(one.fields[1])
                        _tell_json(_record_json(folder, one.seq, one.fields, one, value_bytes=value_bytes))
        if not as_json and rows:
            _tell_table(("LANE", "SEQ", "REJECTED", "TOPIC", "PARTITION", "VALUE", "REASON"), rows)
        if not rows:
            _note("No record is rejected.")


@app.command()
def export(
    path: _Path,
    of_rejected: Annotated[
        bool, typer.Option("--rejected", help="The rejected records, not the pending ones.")
    ] = False,
    lane: _Lane = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A new file; default: stdout.", show_default=False)
    ] = None,
) -> None:
    """Whole records as lines of JSON, and nothing is changed. Bytes are base64; null is none, "" is empty.

    Exit status: 0; 1 when something could not be read (what could is there).
    """
    with _one_line_errors(), _new_file(output) as file:
        exported, unread = _export(_lanes(path, lane), of_rejected, file)
        if output is not None:
            _note(f"{_count(exported, 'record')} exported.")
        if unread:
            _note(f"Not all could be read: {'; '.join(unread)}. See safekafka spool verify.")
    raise typer.Exit(_WRONG if unread else 0)


# ---- commands that write


@app.command()
def requeue(path: _Path, seqs: _Seqs = None, every: _All = False, lane: _Lane = None) -> None:
    """Put rejected records at the end of the line again, after what they were rejected for is mended.

    They get new sequence numbers. Exit status: 0; 1 when one of them is not there (nothing is changed then), 3 when a
    living process has the lane.
    """
    with _one_line_errors():
        chosen = _chosen(path, seqs or [], every, lane)
        requeued = _change(chosen, lambda journal, some: journal.requeue(some))
        typer.echo(f"{_count(requeued, 'record')} requeued.")
        if requeued:
            _note("The next start of their program sends them, and so does safekafka spool drain.")


@app.command()
def discard(
    path: _Path,
    seqs: _Seqs = None,
    every: _All = False,
    lane: _Lane = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget rejected records for good. They can be exported before.

    Exit status: 0; 1 when one of them is not there or the answer is no (nothing is changed then), 3 when a living
    process has the lane.
    """
    with _one_line_errors():
        chosen = _chosen(path, seqs or [], every, lane)
        if chosen and not yes:
            _change(chosen, lambda *_: 0)  # refused before the question, not after it
            typer.confirm(
                f"Forget {_count(sum(map(len, chosen.values())), 'rejected record')} for good?", abort=True, err=True
            )
        discarded = _change(chosen, lambda journal, some: journal.discard(some))
        typer.echo(f"{_count(discarded, 'record')} discarded.")


@app.command()
def drain(
    path: _Path,
    bootstrap: Annotated[
        str | None,
        typer.Option(metavar="SERVERS", help="The brokers; default: those each lane names.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="JSON object of librdkafka settings: those of the program, its partitioner above all.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds; default: until it is empty.", show_default=False)
    ] = None,
    as_json: _Json = False,
) -> None:
    """Send the records of all lanes that no living process has, as their program would at its next start.

    Exit status: 0 when the spool is empty, 1 when something is left or was moved aside as rejected or damaged, 3 when
    only lanes of living processes have records left. Ctrl-C ends it in order: what is not sent stays.
    """
    with _one_line_errors():
        settings = _settings(config, bootstrap)
        raise typer.Exit(_Drain(path, settings, timeout).run(as_json))


class _Drain:
    """Producers on the lanes without an owner: one for each name and list of brokers, all at once, so that brokers
    which do not answer hold up no others.

    A producer takes the first such lane as its own and sends the next ones only after a while. So it is ended when it
    has nothing left, and another one takes the next lane at once.
    """

    def __init__(self, path: Path, settings: dict[str, Any], timeout: float | None) -> None:
        self._path = path
        self._settings = settings
        self._bootstrap: str | None = settings.pop("bootstrap.servers", None)
        self._began = time.monotonic()
        self._end = float("inf") if timeout is None else self._began + timeout
        self._folders: list[Path] = []  # what is to be sent
        self._waiting: dict[tuple[str, str], set[Path]] = {}  # name and brokers: lanes when the last producer began
        self._producers: dict[tuple[str, str], SafeProducer] = {}
        self._sent = 0
        self._why: list[str] = []

    def run(self, as_json: bool) -> int:
        before = _look_at(self._path, None)
        for look in before:
            self._plan(look)
        try:
            self._send(sum(look.lane.records for look in before if look.lane.folder in self._folders))
        except BaseException:
            _note(f"Ended early: {_count(self._sent, 'record')} sent, the others stay in the spool.")
            raise
        return self._tell(before, _look_at(self._path, None), as_json)

    def _plan(self, look: _Look) -> None:
        lane = look.lane
        if lane.owner is not None or not (lane.records or look.problem):
            return
        stays = f"{_count(lane.records, 'record')} of {lane.folder.name} stay"
        if lane.spool is None or lane.bootstrap is None:
            _note(
                f"{stays}: its lane.json, which says whose they are, is missing or unreadable. Remedy: put it back "
                "from a copy; safekafka spool export shows the records."
            )
            return
        bootstrap = lane.bootstrap
        if self._bootstrap is not None and not self._is_for_our_brokers(lane):
            _note(
                f"{stays}: they are for {lane.bootstrap}{_of_cluster(lane)}, not for {self._bootstrap}. Remedy: "
                f"--bootstrap {lane.bootstrap}, or leave it out: then each lane's records go to the brokers it names."
            )
            return
        if self._bootstrap is not None:
            bootstrap = self._bootstrap
        self._folders.append(lane.folder)
        self._waiting.setdefault((lane.spool, bootstrap), set())

    def _is_for_our_brokers(self, lane: LaneStatus) -> bool:
        """By the list; or by the cluster, where its brokers have moved: the lane gets the new list then."""
        from safekafka.spool.lane import Identity, Lane, lock_dead
        from safekafka.spool.spooled import _normal

        assert self._bootstrap is not None
        assert lane.spool is not None
        ours = _normal(self._bootstrap)
        if lane.bootstrap == ours:
            return True
        if lane.cluster is None or lane.cluster != self._cluster:
            return False
        identity = Identity(lane.spool, ours, lane.cluster)
        taken = Lane(lane.folder, lock_dead(lane.folder), self._spool(lane.spool), identity)
        try:
            taken.belongs_to(identity)
        finally:
            taken.close()
        return True

    @functools.cached_property
    def _cluster(self) -> str | None:
        """The id of the cluster of --bootstrap; None if it does not answer."""
        from confluent_kafka import KafkaException

        from safekafka.client import admin_client
        from safekafka.settings import connection_settings

        settings = connection_settings({**self._settings, "bootstrap.servers": self._bootstrap})
        with contextlib.suppress(KafkaException):
            cluster: str | None = admin_client(settings).list_topics(timeout=_ASK_SECONDS).cluster_id
            return cluster
        return None

    # ---- sending

    def _send(self, records: int) -> None:
        try:
            with _progress(records) as show:
                while self._waiting and time.monotonic() < self._end:
                    for whose in list(self._waiting):
                        try:
                            self._look_after(whose)
                        except (SafeKafkaError, ValueError) as error:
                            self._why.append(_line(str(error)))
                            del self._waiting[whose]
                    show(self._sent + sum(producer.stats().delivered for producer in self._producers.values()))
                    time.sleep(_ROUND_SECONDS if self._waiting else 0)
        finally:
            for producer in self._producers.values():
                self._why += [problem for problem in producer.health().problems if problem not in self._why]
                with contextlib.suppress(SafeKafkaError):  # what ended it was told
                    self._close(producer)

    def _look_after(self, whose: tuple[str, str]) -> None:
        producer = self._producers.get(whose)
        if producer is not None:
            producer.flush(0)  # raises what ended it
            if len(producer):
                return
            self._close(self._producers.pop(whose))
        lanes = {
            look.lane.folder
            for look in _look_at(self._path, None)
            if look.lane.folder in self._folders and look.lane.owner is None and (look.lane.records or look.problem)
            if (look.lane.spool, self._bootstrap or look.lane.bootstrap) == whose
        }
        if not lanes or lanes == self._waiting[whose]:  # done; or none of them could be emptied
            del self._waiting[whose]
            return
        self._waiting[whose] = lanes
        self._producers[whose] = self._producer(*whose)

    def _close(self, producer: SafeProducer) -> None:
        try:
            producer.close()
        finally:
            self._sent += producer.stats().delivered

    def _producer(self, name: str, bootstrap: str) -> SafeProducer:
        from safekafka import SafeProducer

        settings = {**self._settings, "bootstrap.servers": bootstrap}
        # Not the client's own 1 MB: the program may have allowed larger ones, and only the brokers know what is too
        # large for them. A bound of the buffer would contradict it.
        if "queue.buffering.max.kbytes" not in settings:
            settings.setdefault("message.max.bytes", _LARGEST_RECORD)
        return SafeProducer(
            settings,
            spool=self._spool(name),
            on_undelivered=lambda *_: None,  # rejected ones are counted at the end
            shutdown_timeout=_END_SECONDS,
        )

    def _spool(self, name: str) -> Spool:
        from safekafka.spool.config import Spool

        # Nothing is accepted here, so nothing needs a sync; and it opens what a program without one kept in memory.
        return Spool(self._path, name=name, durability="process")

    # ---- the end

    def _tell(self, before: list[_Look], after: list[_Look], as_json: bool) -> int:
        seconds = time.monotonic() - self._began
        left = {
            look.lane.folder.name: look.lane.records for look in after if look.lane.owner is None and look.lane.records
        }
        in_use = [look.lane for look in after if look.lane.owner is not None and look.lane.records]
        figures = {"sent": self._sent, "left": sum(left.values()), **self._moved_aside(before, after)}
        known = {path for look in before for path in look.lane.evidence}
        evidence = [str(path) for look in after for path in look.lane.evidence if path not in known]
        if as_json:
            of_others = sum(lane.records for lane in in_use)
            about = {"seconds": round(seconds, 1), "lanes_left": left, "evidence": evidence, "why": self._why}
            _tell_json({**figures, "in_use": of_others, **about})
        else:
            typer.echo(f"{_count(self._sent, 'record')} sent in {seconds:.1f} s, {figures['left']:,} left.")
            for name, records in left.items():
                typer.echo(f"left: {_count(records, 'record')} in {name}")
            if figures["rejected"]:
                typer.echo(
                    f"moved aside: {_count(figures['rejected'], 'rejected record')}, see safekafka spool rejected"
                )
            if figures["damaged"]:
                typer.echo(f"damaged, not sent: {_count(figures['damaged'], 'record')}, see safekafka spool status")
            for path in evidence:
                typer.echo(f"evidence of damage: {path}")
        for lane in in_use:
            _note(f"{lane.folder.name} is in use by {lane.owner}, which has {_count(lane.records, 'record')} to send.")
        for why in self._why:
            _note(why)
        _note_unreadable(after)
        if left or figures["rejected"] or figures["damaged"] or evidence or any(look.problem for look in after):
            return _WRONG
        return _IN_USE if in_use else 0

    def _moved_aside(self, before: list[_Look], after: list[_Look]) -> dict[str, int]:
        """How many records this drain found that can't be sent."""
        were = {look.lane.folder: look.lane for look in before}
        now = [look.lane for look in after if look.lane.folder in self._folders]
        return {
            "rejected": sum(max(0, lane.rejected - were[lane.folder].rejected) for lane in now),
            "damaged": sum(max(0, lane.damaged - were[lane.folder].damaged) for lane in now),
        }


@contextlib.contextmanager
def _progress(records: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere. What is yielded takes the number of records that were sent."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda sent: None
        return
    rate, time_left = TextColumn("{task.fields[rate]}"), TimeRemainingColumn()
    with Progress(BarColumn(), MofNCompleteColumn(), rate, time_left, console=console) as progress:
        task = progress.add_task("", total=records, rate="")

        def show(sent: int) -> None:
            speed = progress.tasks[task].speed
            progress.update(task, completed=sent, rate="" if speed is None else f"{speed:,.0f}/s")

        yield show


def _settings(config: Path | None, bootstrap: str | None) -> dict[str, Any]:
    settings: Any = {}
    if config is not None:
        try:
            settings = json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise typer.BadParameter(f"--config {config}: not JSON: {error}") from error
        if not isinstance(settings, dict) or not isinstance(settings.get("bootstrap.servers", ""), str):
            raise typer.BadParameter(f"--config {config}: give a JSON object of settings.")
    return settings if bootstrap is None else {**settings, "bootstrap.servers": bootstrap}


# ---- changing what is rejected


def _chosen(path: Path, seqs: list[int], every: bool, lane: int | None) -> dict[Path, list[int]]:
    """The numbers asked for, by lane. All of them are there."""
    from safekafka.spool.inspect import LaneView

    if bool(seqs) == every:
        raise typer.BadParameter("give the sequence numbers, or --all.")
    there: dict[Path, list[int]] = {}
    for folder in _lanes(path, lane):
        with LaneView(folder) as view:
            there[folder] = [one.seq for one in view.rejected()]
    if every:
        return {folder: some for folder, some in there.items() if some}
    chosen: dict[Path, list[int]] = {}
    for seq in sorted(set(seqs)):
        having = [folder for folder, some in there.items() if seq in some]
        if not having:
            raise SafeKafkaError(f"{str(path)!r} has no rejected record {seq}; nothing was changed.")
        if len(having) > 1:
            raise typer.BadParameter(f"several lanes have a rejected record {seq}: say which with --lane.")
        chosen.setdefault(having[0], []).append(seq)
    return chosen


def _change(chosen: dict[Path, list[int]], change: Callable[[Journal, list[int]], int]) -> int:
    """With all locks held and all journals open before the first change. Damage is left for a producer to mend."""
    from safekafka.spool.journal import Journal
    from safekafka.spool.lane import lock_dead

    with contextlib.ExitStack() as open_:
        for folder in chosen:
            open_.callback(lock_dead(folder).release)
        journals = [open_.enter_context(contextlib.closing(Journal(folder, refuse_damage=True))) for folder in chosen]
        return sum(change(journal, some) for journal, some in zip(journals, chosen.values(), strict=True))


# ---- looking


_COUNTED = ("records", "bytes", "rejected", "damaged")


class _Look(NamedTuple):
    lane: LaneStatus
    problem: str | None  # why it can't be read; its figures are 0 then


def _look_at(path: Path, lane: int | None) -> list[_Look]:
    return [_look(folder) for folder in _lanes(path, lane)]


def _look(folder: Path) -> _Look:
    from safekafka.spool.inspect import LaneStatus, LaneView, owner
    from safekafka.spool.lane import identity_of

    who = owner(folder)
    try:
        with LaneView(folder) as view:
            return _Look(view.status(who), None)
    except (SafeKafkaError, sqlite3.Error) as error:
        lane_id, whose = identity_of(folder) or (None, None)
        spool, bootstrap, cluster = whose or (None, None, None)
        evidence = tuple(sorted(folder.glob("damaged-*")))
        return _Look(
            LaneStatus(folder, lane_id, spool, bootstrap, cluster, who, 0, 0, 0, 0, None, evidence), str(error)
        )


def _lanes(path: Path, number: int | None) -> list[Path]:
    from safekafka.spool.inspect import lanes

    found = lanes(path)
    chosen = [folder for folder in found if number is None or _number(folder) == number]
    if not chosen:
        raise SafeKafkaError(f"{str(path)!r} has no lane {number}, but {', '.join(folder.name for folder in found)}.")
    return chosen


def _number(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _found(folder: Path, seq: int) -> Iterator[tuple[Path, Fields, RejectedRecord | None]]:
    from safekafka.spool.inspect import LaneView

    with LaneView(folder) as view:
        for stored in view.records(1, seq):
            if stored.seq == seq:
                yield folder, stored.fields, None
        for one in view.rejected():
            if one.seq == seq:
                yield folder, one.fields, one


def _export(folders: list[Path], of_rejected: bool, file: TextIO) -> tuple[int, list[str]]:
    """How many were written, and what could not be read."""
    from safekafka.spool.inspect import LaneView
    from safekafka.spool.journal import shown
    from safekafka.spool.lane import identity_of

    exported, unread = 0, []
    for folder in folders:
        about = identity_of(folder)
        lane_id = about[0] if about else None
        with LaneView(folder) as view:
            expected, found = view.status(None).records, 0
            records: Iterator[tuple[int, Fields, RejectedRecord | None]] = (
                ((one.seq, one.fields, one) for one in view.rejected())
                if of_rejected
                else ((stored.seq, stored.fields, None) for stored in view.records())
            )
            for seq, fields, rejection in records:
                found += 1
                more = {"id": lane_id and f"{lane_id}-{seq}", **_payload_json(fields, _base64)}
                file.write(json.dumps(_record_json(folder, seq, fields, rejection, **more)) + "\n")
            exported += found
            if not of_rejected and found < expected:  # fewer: sent meanwhile by a living process, or damaged
                result = view.verify()
                if not result.ok:
                    unread.append(f"{folder.name}: damaged {shown(result.bad) or 'none'}, missing {result.missing}")
    return exported, unread


@contextlib.contextmanager
def _new_file(path: Path | None) -> Iterator[TextIO]:
    """stdout, or a file that is there in whole and on the disk at the end, or not at all: what is exported may be
    discarded next."""
    if path is None:
        yield sys.stdout
        return
    from safekafka.spool.journal import sync_folder

    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError as error:
        raise SafeKafkaError(f"{str(path)!r} exists. Remedy: remove it, or name another file.") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.absolute().parent)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


# ---- telling


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except SpoolLockedError as error:
        _note(f"Error: {_line(str(error))}")
        raise typer.Exit(_IN_USE) from error
    except BrokenPipeError:
        raise  # `| head`: typer knows what to do
    except (SafeKafkaError, sqlite3.Error, OSError) as error:
        _note(f"Error: {_line(str(error))}")
        raise typer.Exit(_WRONG) from error


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _note_unreadable(looks: list[_Look]) -> None:
    for look in looks:
        if look.problem is not None:
            _note(f"{look.lane.folder.name} can't be read: {_line(look.problem)}")


def _tell_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value))


def _tell_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A line each and never cut, so that it can be searched; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    numeric = [all(not cell.strip("-,0123456789") for cell in column) for column in zip(*rows, strict=True)]
    for row in (head, *rows):
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())


def _status_row(lane: LaneStatus) -> tuple[str, ...]:
    oldest = "-" if lane.oldest_at is None else _age(time.time() - lane.oldest_at)
    whose = [text or "unknown" for text in (lane.spool, lane.cluster, lane.bootstrap)]
    counted = [f"{getattr(lane, name):,}" for name in _COUNTED]
    return lane.folder.name, *counted, oldest, lane.owner or "nobody", *whose


def _status_json(look: _Look) -> dict[str, Any]:
    lane, problem = look
    number = _number(lane.folder)
    if problem is not None:
        return {"lane": number, "owner": lane.owner, "problem": problem}
    paths = {"folder": str(lane.folder), "evidence": [str(path) for path in lane.evidence]}
    return {"lane": number, **lane._asdict(), **paths}


def _list_row(folder: Path, seq: int, fields: Fields, size: int) -> tuple[str, ...]:
    key = "-" if fields[2] is None else _printable(fields[2])
    cut = key if len(key) <= _KEY_CHARACTERS else key[: _KEY_CHARACTERS - 1] + "…"
    sizes = _size(fields[1]), f"{size:,}"
    return folder.name, str(seq), _time(fields[5]), fields[0], _partition(fields), *sizes, cut


def _tell_record(folder: Path, seq: int, fields: Fields, rejected: RejectedRecord | None) -> None:
    topic, value, key, headers, _, timestamp = fields
    typer.echo(f"lane:      {folder.name}\nseq:       {seq}\ntopic:     {topic}\npartition: {_partition(fields)}")
    typer.echo(f"time:      {_time(timestamp)}")
    if rejected is not None:
        typer.echo(f"rejected:  {_time(rejected.at)} {_line(rejected.reason)}")
    for name, content in headers or []:
        typer.echo(f"header:    {_printable(name.encode())} = {_whole(content)}")
    typer.echo(f"key:       {_whole(key)}\nvalue:     {_whole(value)}")


def _record_json(
    folder: Path, seq: int, fields: Fields, rejected: RejectedRecord | None, **more: Any
) -> dict[str, Any]:
    why = {} if rejected is None else {"reason": rejected.reason, "rejected_at": rejected.at}
    partition = None if fields[4] < 0 else fields[4]
    return {
        "lane": _number(folder),
        "seq": seq,
        "topic": fields[0],
        "partition": partition,
        "timestamp": fields[5],
        **why,
        **more,
    }


def _payload_json(fields: Fields, shown: Callable[[bytes | str | None], Any]) -> dict[str, Any]:
    _, value, key, headers, _, _ = fields
    pairs = None if headers is None else [[name, shown(content)] for name, content in headers]
    return {"key": shown(key), "value": shown(value), "headers": pairs}


def _base64(data: bytes | str | None) -> str | None:
    return None if data is None else base64.b64encode(_bytes(data)).decode()


def _shown_json(data: bytes | str | None) -> dict[str, str] | None:
    if data is None:
        return None
    text = _text(_bytes(data))
    return {"base64": base64.b64encode(_bytes(data)).decode()} if text is None else {"text": text}


def _whole(data: bytes | str | None) -> str:
    if data is None:
        return "none"
    text = _text(_bytes(data))
    kind, shown = ("hex", _bytes(data).hex()) if text is None else ("text", text)
    return f"({len(data):,} bytes, {kind}) {shown}".rstrip(" ")


def _printable(data: bytes) -> str:
    """On one line."""
    text = _text(data)
    return "0x" + data.hex() if text is None or not text.isprintable() else text or "(empty)"


def _text(data: bytes) -> str | None:
    """None where it is no text, or would do something else to a terminal than be read."""
    with contextlib.suppress(UnicodeDecodeError):
        text = data.decode()
        if all(character.isprintable() or character in "\n\t" for character in text.replace("\r\n", "\n")):
            return text
    return None


def _bytes(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else data


def _partition(fields: Fields) -> str:
    return "-" if fields[4] < 0 else str(fields[4])


def _length(data: bytes | None) -> int | None:
    return None if data is None else len(data)


def _size(data: bytes | None) -> str:
    return "-" if data is None else f"{len(data):,}"


def _of_cluster(lane: LaneStatus) -> str:
    return "" if lane.cluster is None else f" (cluster {lane.cluster})"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _line(text: str) -> str:
    return " ".join(text.split())


def _time(at_ms: int) -> str:
    try:
        return datetime.fromtimestamp(at_ms / 1000, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    except (ValueError, OverflowError, OSError):  # the program may give any number
        return f"{at_ms} ms"


def _age(seconds: float) -> str:
    left, parts = max(0, int(seconds)), []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if left >= length:
            parts.append(f"{left // length} {unit}")
            left %= length
    return " ".join(parts[:2]) or "0 s"
