"""How letters are named by options, and how they are shown."""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import typer

from safekafka.cli.shown import (
    WRONG,
    counted,
    length_of,
    note,
    one_line,
    printable,
    readable,
    shown_json,
    tell_json,
    time_of,
    whole,
)

if TYPE_CHECKING:
    from safekafka.deadletter.replay import Letter, Outcome, Selection

LIST_HEAD = ("PARTITION", "OFFSET", "FAILED", "FROM", "GROUP", "PASSES", "ATTEMPTS", "STATE", "ERROR")
_ERROR_CHARACTERS = 100
_AGO = re.compile(r"(\d+) ?(s|min|m|h|d)( ago)?")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}
_RANGE = re.compile(r"(\d*)-(\d*)|(\d+)")


def selected(
    error: str | None,
    since: str | None,
    until: str | None,
    partition: int | None,
    offsets: str | None,
    group: str | None,
) -> Selection:
    from safekafka.deadletter.replay import Selection

    first = last = None
    if offsets is not None:
        found = _RANGE.fullmatch(offsets)
        if found is None or offsets == "-":
            raise typer.BadParameter(f"--offsets {offsets}: give FROM-TO, as in 100-200, 100- or 100.")
        if partition is None:
            raise typer.BadParameter("--offsets count in one partition: give --partition as well.")
        first = int(found[1] or found[3] or 0)
        last = int(found[2] or found[3]) if found[2] or found[3] else None
        if last is not None and last < first:
            raise typer.BadParameter(f"--offsets {offsets}: the first is behind the last.")
    since_ms, until_ms = _time("--since", since), _time("--until", until)
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        raise typer.BadParameter(f"--since {since} --until {until}: nothing is after the one and before the other.")
    return Selection(error, since_ms, until_ms, partition, first, last, group)


def _time(option: str, text: str | None) -> int | None:
    """In ms. A time without a zone is UTC, as all that is shown."""
    if text is None:
        return None
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return int((time.time() - int(ago[1]) * _SECONDS[ago[2]]) * 1000)
    try:
        at = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
        return int((at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"{option} {text}: give a time, as in 2026-01-31T12:00:00Z, or 2h.") from error


def _error_of(letter: Letter) -> str:
    about = None if letter.told is None else letter.told.about
    if about is None:
        return "-"
    kind = about.error_class or ""
    if about.error_cause is not None:
        kind = f"{kind} ({about.error_cause})".strip()
    return one_line(": ".join(part for part in (kind, about.error_message) if part)) or "-"


def list_row(letter: Letter, done: bool) -> tuple[str, ...]:
    message, told = letter
    about = None if told is None else told.about
    error = readable(_error_of(letter))
    return (
        str(message.partition()),
        str(message.offset()),
        time_of(letter.at_ms),
        "-" if about is None else f"{about.topic}[{about.partition}]@{about.offset}",
        "-" if about is None else one_line(readable(about.group or "-")),
        "-" if about is None else str(about.passes),
        "-" if about is None or about.attempts is None else str(about.attempts),
        "done" if done else "open",
        error if len(error) <= _ERROR_CHARACTERS else error[: _ERROR_CHARACTERS - 1] + "…",
    )


def letter_json(letter: Letter, done: bool, whole: bool = False) -> dict[str, Any]:
    message, told = letter
    value, key = message.value(), message.key()
    shown: dict[str, Any] = {
        "partition": message.partition(),
        "offset": message.offset(),
        "timestamp": message.timestamp()[1],
        "done": done,
        "value_bytes": length_of(value),
    }
    if told is not None:
        about = told.about
        shown["about"] = {
            **{name: content for name, content in vars(about).items() if whole or name != "traceback"},
            "first": None if about.first is None else about.first._asdict(),
            "headers": told.dialect.name,
        }
    if whole:
        pairs = [[name, shown_json(content)] for name, content in _originals(letter)]
        shown.update(key=shown_json(key), value=shown_json(value), headers=pairs)
    return shown


def tell_letter(letter: Letter, done: bool) -> None:
    message, told = letter
    lines = [("letter", f"{letter.where} ({'done' if done else 'open'})"), ("written", time_of(message.timestamp()[1]))]
    if told is not None:
        about = told.about
        lines += [("from", f"{about.topic}[{about.partition}]@{about.offset}"), ("headers", told.dialect.name)]
        if about.timestamp is not None:
            lines.append(("time", time_of(about.timestamp)))
        if about.first is not None:
            first = about.first
            at = "" if first.failed_at is None else f", failed {time_of(first.failed_at)}"
            lines.append(("first", f"{first.topic}[{first.partition}]@{first.offset}{at}"))
        lines.append(("passes", str(about.passes)))
        for name in ("group", "host", "attempts", "error_class", "error_cause", "error_message"):
            content = getattr(about, name)
            if content is not None:
                lines.append((name.replace("_", " "), readable(str(content))))
        if about.failed_at is not None:
            lines.append(("failed", time_of(about.failed_at)))
    lines += [("header", f"{printable(name.encode())} = {whole(content)}") for name, content in _originals(letter)]
    lines += [("key", whole(message.key())), ("value", whole(message.value()))]
    for name, text in lines:
        typer.echo(f"{name + ':':15}{text}")
    if told is not None and told.about.traceback:
        typer.echo(f"traceback:\n{readable(told.about.traceback)}")


def _originals(letter: Letter) -> list[tuple[str, Any]]:
    from safekafka.deadletter.headers import original_headers

    return original_headers(letter.message, None if letter.told is None else letter.told.dialect)


def tell_outcome(outcome: Outcome, verb: str, seconds: float, as_json: bool, *, dry_run: bool) -> int:
    left = sum(outcome.held_back.values())
    if as_json:
        tell_json(
            {
                "done": outcome.done,
                "dry_run": dry_run,
                "passed_over": outcome.passed_over,
                "left": left,
                "why": dict(outcome.held_back),
                "expired": outcome.expired,
                "failed": outcome.failed,
                "seconds": round(seconds, 1),
            }
        )
    else:
        others = "other stays open" if outcome.passed_over == 1 else "others stay open"
        typer.echo(
            f"{counted(outcome.done, 'letter')} {verb}"
            + (f", {outcome.passed_over:,} {others}" if outcome.passed_over else "")
            + "."
        )
    for problem, number in outcome.held_back.items():
        note(f"{counted(number, 'letter')} {'stays open: it' if number == 1 else 'stay open: each'} {problem}.")
    if outcome.expired:
        note(f"About {counted(outcome.expired, 'letter')} had been removed by retention before anybody looked.")
    if outcome.failed is not None:
        note(f"Error: {one_line(outcome.failed)} What was not {verb} stays open.")
    return WRONG if left or outcome.failed is not None else 0
