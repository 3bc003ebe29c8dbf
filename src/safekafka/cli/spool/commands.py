"""`safekafka spool`: see what is in a spool, set rejected records right, and empty it without its program.

What only looks (status, list, show, verify, rejected, export) reads beside a living process. What writes (requeue,
discard, drain) takes the lane's lock first and refuses a lane that a living process has. Keys and values are told by
`list` (keys), `show` and `export`, whose purpose it is, and by nothing else.

What is asked for goes to stdout; notes, the progress bar and errors to stderr.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Annotated

import typer

from safekafka.cli.settings import settings_from
from safekafka.cli.shown import (
    WRONG,
    confirm,
    counted,
    length_of,
    note,
    one_line,
    one_line_errors,
    shown_json,
    size_of,
    tell_json,
    tell_table,
    time_of,
)
from safekafka.cli.spool.changes import change, choose
from safekafka.cli.spool.drain import Drain
from safekafka.cli.spool.looks import export_to, found_in, lanes_of, look_at, new_file
from safekafka.cli.spool.shown import (
    COUNTED,
    list_row,
    note_unreadable,
    number_of,
    partition_of,
    payload_json,
    record_json,
    status_json,
    status_row,
    tell_record,
)
from safekafka.errors import SafeKafkaError

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


@app.command()
def status(path: _Path, as_json: _Json = False) -> None:
    """Each lane: who has it open, whose records it holds, how many, since when, and what went wrong.

    Exit status: 0; 1 when there is no spool, or a lane of it can't be read.
    """
    with one_line_errors():
        looks = look_at(path, None)
        readable = [look.lane for look in looks if look.problem is None]
        total = {name: sum(getattr(lane, name) for lane in readable) for name in COUNTED}
        if as_json:
            tell_json({"spool": str(path), "lanes": [status_json(look) for look in looks], "total": total})
        else:
            tell_table(
                ("LANE", *(name.upper() for name in COUNTED), "OLDEST", "OWNER", "SPOOL", "CLUSTER", "BROKERS"),
                [status_row(lane) for lane in readable]
                + [("total", *(f"{total[name]:,}" for name in COUNTED), "", "", "", "", "")],
            )
            for lane in readable:
                for evidence in lane.evidence:
                    typer.echo(f"evidence of damage: {evidence}")
        note_unreadable(looks)
    raise typer.Exit(WRONG if len(readable) < len(looks) else 0)


@app.command("list")
def list_(
    path: _Path,
    lane: _Lane = None,
    topic: Annotated[str | None, typer.Option(help="Only records for this topic.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="Records at most.")] = 100,
    as_json: _Json = False,
) -> None:
    """The pending records in their order, a line each, with their keys. VALUE and TOTAL are bytes."""
    with one_line_errors():
        from safekafka.spool.inspect import LaneView

        rows: list[tuple[str, ...]] = []
        more = False
        for folder in lanes_of(path, lane):
            with LaneView(folder) as view:
                for seq, fields, size in view.records():
                    if topic is not None and fields[0] != topic:
                        continue
                    if more := len(rows) == limit:
                        break
                    rows.append(list_row(folder, seq, fields, size))
                    if as_json:
                        more_of_it = {"key": shown_json(fields[2]), "value_bytes": length_of(fields[1])}
                        tell_json(record_json(folder, seq, fields, None, **more_of_it))
            if more:
                break
        if not as_json and rows:
            tell_table(("LANE", "SEQ", "TIME", "TOPIC", "PARTITION", "VALUE", "TOTAL", "KEY"), rows)
        if more:
            note(f"These are the first {limit:,}; more with --limit, all with safekafka spool export.")
        elif not rows:
            note("No such record is pending.")


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
    with one_line_errors():
        found = [one for folder in lanes_of(path, lane) for one in found_in(folder, seq)]
        if not found:
            raise SafeKafkaError(
                f"{str(path)!r} has no record {seq}. It was sent, or it is damaged: see safekafka spool verify."
            )
        if len(found) > 1:
            raise typer.BadParameter(f"several lanes have a record {seq}: say which with --lane.")
        folder, fields, rejected = found[0]
        if as_json:
            tell_json(record_json(folder, seq, fields, rejected, **payload_json(fields, shown_json)))
        else:
            tell_record(folder, seq, fields, rejected)


@app.command()
def verify(path: _Path, as_json: _Json = False) -> None:
    """Read everything, and compare it with its checksums and counts.

    Exit status: 0 when all is well, 1 when something is damaged or missing.
    """
    with one_line_errors():
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
                tell_json({"lane": number_of(folder), "ok": result.ok, **result._asdict()})
                continue
            typer.echo(
                f"{folder.name}: {counted(result.records, 'record')} read, {'well' if result.ok else 'NOT WELL'}"
            )
            if result.bad:
                typer.echo(f"{folder.name}: damaged: {counted(len(result.bad), 'record')}: {shown(result.bad)}")
            if result.missing:
                typer.echo(f"{folder.name}: missing: {counted(result.missing, 'record')} of those it counts")
            for problem in result.problems:
                typer.echo(f"{folder.name}: {one_line(problem)}")
    raise typer.Exit(0 if well else WRONG)


@app.command()
def rejected(path: _Path, as_json: _Json = False) -> None:
    """The records that Kafka refused for good, with the reason. VALUE is bytes."""
    with one_line_errors():
        from safekafka.spool.inspect import LaneView

        rows: list[tuple[str, ...]] = []
        for folder in lanes_of(path, None):
            with LaneView(folder) as view:
                for one in view.rejected():
                    about = time_of(one.at), one.fields[0], partition_of(one.fields), size_of(one.fields[1])
                    rows.append((folder.name, str(one.seq), *about, one_line(one.reason)))
                    if as_json:
                        value_bytes = length_of(one.fields[1])
                        tell_json(record_json(folder, one.seq, one.fields, one, value_bytes=value_bytes))
        if not as_json and rows:
            tell_table(("LANE", "SEQ", "REJECTED", "TOPIC", "PARTITION", "VALUE", "REASON"), rows)
        if not rows:
            note("No record is rejected.")


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
    with one_line_errors(), new_file(output) as file:
        exported, unread = export_to(lanes_of(path, lane), of_rejected, file)
        if output is not None:
            note(f"{counted(exported, 'record')} exported.")
        if unread:
            note(f"Not all could be read: {'; '.join(unread)}. See safekafka spool verify.")
    raise typer.Exit(WRONG if unread else 0)


@app.command()
def requeue(path: _Path, seqs: _Seqs = None, every: _All = False, lane: _Lane = None, as_json: _Json = False) -> None:
    """Put rejected records at the end of the line again, after what they were rejected for is mended.

    They get new sequence numbers. Exit status: 0; 1 when one of them is not there (nothing is changed then), 3 when a
    living process has the lane.
    """
    with one_line_errors():
        chosen = choose(path, seqs or [], every, lane)
        requeued = change(chosen, lambda journal, some: journal.requeue(some))
        _tell_changed("requeued", requeued, as_json)
        if requeued:
            note("The next start of their program sends them, and so does safekafka spool drain.")


@app.command()
def discard(
    path: _Path,
    seqs: _Seqs = None,
    every: _All = False,
    lane: _Lane = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: _Json = False,
) -> None:
    """Forget rejected records for good. They can be exported before.

    Exit status: 0; 1 when one of them is not there or the answer is no (nothing is changed then), 3 when a living
    process has the lane.
    """
    with one_line_errors():
        chosen = choose(path, seqs or [], every, lane)
        if chosen and not yes:
            change(chosen, lambda *_: 0)  # refused before the question, not after it
            confirm(f"Forget {counted(sum(map(len, chosen.values())), 'rejected record')} for good?")
        discarded = change(chosen, lambda journal, some: journal.discard(some))
        _tell_changed("discarded", discarded, as_json)


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
    with one_line_errors():
        settings = settings_from(config, bootstrap)
        raise typer.Exit(Drain(path, settings, timeout).run(as_json))


def _tell_changed(what: str, records: int, as_json: bool) -> None:
    if as_json:
        tell_json({what: records})
    else:
        typer.echo(f"{counted(records, 'record')} {what}.")
