"""`safekafka dlq`: see what is in a dead letter topic, send it back to where it came from, or be done with it.

What only looks (list, show) changes nothing. What a replay or discard has done is kept as the committed offset of a
consumer group, and nothing is ever deleted. Keys and values are told by `show`, whose purpose it is, and by nothing
else; errors, which may quote them, by `list` and `show`.

What is asked for goes to stdout; notes, the progress bar and errors to stderr.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safekafka.cli.dlq.shown import LIST_HEAD, letter_json, list_row, selected, tell_letter, tell_outcome
from safekafka.cli.interrupt import Stopped
from safekafka.cli.progress import progress_bar
from safekafka.cli.settings import settings_from
from safekafka.cli.shown import confirm, counted, note, one_line_errors, tell_json, tell_table
from safekafka.errors import SafeKafkaError

if TYPE_CHECKING:
    from collections.abc import Callable

    from safekafka.deadletter.replay import Outcome

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="See what is in a dead letter topic, replay it to where it came from, or count it as done with.\n\n"
    "Exit status of every command: 0 fine, 1 something is left that was asked for, or not found, 2 usage.",
)

_Topic = Annotated[str, typer.Argument(metavar="TOPIC", help="The dead letter topic.", show_default=False)]
_Bootstrap = Annotated[
    str | None, typer.Option(metavar="SERVERS", help="The brokers; or in --config.", show_default=False)
]
_Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="JSON object of librdkafka settings: what it needs to connect, and for a replay the producer's.",
        show_default=False,
    ),
]
_Progress = Annotated[
    str | None,
    typer.Option(
        "--progress-group",
        metavar="GROUP",
        help="The consumer group that keeps what is done; default: safekafka-replay-TOPIC.",
        show_default=False,
    ),
]
_Error = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Only those: class: text, or the cause's class, has it.", show_default=False),
]
_Since = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Failed then or later: 2026-01-31T12:00:00Z, or 2h ago.", show_default=False),
]
_Until = Annotated[str | None, typer.Option(metavar="TIME", help="Failed before.", show_default=False)]
_Partition = Annotated[int | None, typer.Option(min=0, help="Of the dead letter topic.", show_default=False)]
_Offsets = Annotated[
    str | None,
    typer.Option(metavar="FROM-TO", help="Of that partition, both included; one may be left out.", show_default=False),
]
_Group = Annotated[str | None, typer.Option(help="Failed in this consumer group.", show_default=False)]
_Json = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command("list")
def list_(
    topic: _Topic,
    bootstrap: _Bootstrap = None,
    config: _Config = None,
    error: _Error = None,
    since: _Since = None,
    until: _Until = None,
    partition: _Partition = None,
    offsets: _Offsets = None,
    group: _Group = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that were replayed or discarded.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Letters at most.")] = 100,
    progress_group: _Progress = None,
    as_json: _Json = False,
) -> None:
    """The letters that are still open, a line each. PASSES: how often the record has come here."""
    settings = _settings(bootstrap, config)
    selection = selected(error, since, until, partition, offsets, group)
    with one_line_errors():
        from safekafka.deadletter.replay import looked_at

        rows: list[tuple[str, ...]] = []
        more = False
        letters = looked_at(settings, topic, selection, group=progress_group, done_too=every)
        with contextlib.closing(letters):  # type: ignore[type-var]
            for found, (letter, done) in enumerate(letters):
                if more := found == limit:
                    break
                rows.append(list_row(letter, done))
                if as_json:
                    tell_json(letter_json(letter, done))
        if not as_json and rows:
            tell_table(LIST_HEAD, rows)
        if more:
            note(f"These are the first {limit:,}; more with --limit.")
        elif not rows:
            note("No such letter." if every else "No such letter is open; --all shows those that are done with.")


@app.command()
def show(
    topic: _Topic,
    partition: Annotated[int, typer.Argument(metavar="PARTITION", min=0, show_default=False)],
    offset: Annotated[int, typer.Argument(metavar="OFFSET", min=0, show_default=False)],
    bootstrap: _Bootstrap = None,
    config: _Config = None,
    progress_group: _Progress = None,
    as_json: _Json = False,
) -> None:
    """One letter as it is. Bytes that are not text: in hex, in JSON in base64.

    Exit status: 0; 1 when there is no such letter.
    """
    settings = _settings(bootstrap, config)
    with one_line_errors():
        from safekafka.deadletter.replay import Selection, looked_at

        selection = Selection(partition=partition, first_offset=offset, last_offset=offset)
        found = list(looked_at(settings, topic, selection, group=progress_group, done_too=True))
        if not found:
            raise SafeKafkaError(f"{topic}[{partition}]@{offset} is not there: never written, or removed by retention.")
        ((letter, done),) = found
        if as_json:
            tell_json(letter_json(letter, done, whole=True))
        else:
            tell_letter(letter, done)


@app.command()
def replay(
    topic: _Topic,
    bootstrap: _Bootstrap = None,
    config: _Config = None,
    to: Annotated[
        str | None, typer.Option(metavar="TOPIC", help="Another topic than each came from.", show_default=False)
    ] = None,
    error: _Error = None,
    since: _Since = None,
    until: _Until = None,
    partition: _Partition = None,
    offsets: _Offsets = None,
    group: _Group = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Records a second at most.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    progress_group: _Progress = None,
    as_json: _Json = False,
) -> None:
    """Send the open letters back to the topics they came from, with key, value and headers of the original.

    Those that come in meanwhile are not replayed. SafeConsumers of other groups than the one that failed skip a
    replayed record; other consumers see it. It can be ended at any moment, and goes on from there.

    Exit status: 0 when all that was asked for is replayed, 1 when something is left.
    """
    settings = _settings(bootstrap, config)
    selection = selected(error, since, until, partition, offsets, group)
    if to == topic:
        raise typer.BadParameter("--to is the dead letter topic itself.")
    with one_line_errors():
        from safekafka.deadletter.replay import replay as run

        raise typer.Exit(
            _run(
                lambda show: run(
                    settings, topic, selection, to=to, rate=rate, group=progress_group, dry_run=dry_run, show=show
                ),
                "would be replayed" if dry_run else "replayed",
                as_json,
                dry_run=dry_run,
            )
        )


@app.command()
def discard(
    topic: _Topic,
    bootstrap: _Bootstrap = None,
    config: _Config = None,
    error: _Error = None,
    since: _Since = None,
    until: _Until = None,
    partition: _Partition = None,
    offsets: _Offsets = None,
    group: _Group = None,
    every: Annotated[bool, typer.Option("--all", help="All open letters.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    progress_group: _Progress = None,
    as_json: _Json = False,
) -> None:
    """Count open letters as done with: no replay takes them any more. Nothing is deleted.

    Exit status: 0; 1 when something is left, or the answer is no.
    """
    settings = _settings(bootstrap, config)
    selection = selected(error, since, until, partition, offsets, group)
    if every == (selection != selected(None, None, None, None, None, None)):
        raise typer.BadParameter("say which letters, or --all.")
    with one_line_errors():
        from safekafka.deadletter.replay import discard as run
        from safekafka.deadletter.replay import looked_at

        below: dict[int, int] | None = None
        if not yes:
            number, below = 0, {}  # what comes in while the question stands is not what the answer is about
            for letter, _ in looked_at(settings, topic, selection, group=progress_group):
                number += 1
                below[letter.place[0]] = letter.place[1] + 1
            confirm(f"Be done with {counted(number, 'letter')}?")
        raise typer.Exit(
            _run(
                lambda show: run(settings, topic, selection, group=progress_group, below=below, show=show),
                "discarded",
                as_json,
            )
        )


def _run(
    work: Callable[[Callable[[int, int], None]], Outcome], verb: str, as_json: bool, *, dry_run: bool = False
) -> int:
    began = time.monotonic()
    try:
        with progress_bar() as show:
            outcome = work(show)
    except Stopped:
        note("Ended early: what is done is kept, the others stay open.")
        raise
    return tell_outcome(outcome, verb, time.monotonic() - began, as_json, dry_run=dry_run)


def _settings(bootstrap: str | None, config: Path | None) -> dict[str, Any]:
    settings = settings_from(config, bootstrap)
    if not settings.get("bootstrap.servers"):
        raise typer.BadParameter("name the brokers with --bootstrap, or in --config.")
    return settings
