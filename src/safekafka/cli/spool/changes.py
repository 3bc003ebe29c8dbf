"""Rejected records back into the line, or forgotten: which ones, and all of them at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from safekafka.cli.spool.looks import lanes_of
from safekafka.errors import SafeKafkaError

if TYPE_CHECKING:
    from safekafka.spool.journal import Journal


def choose(path: Path, seqs: list[int], every: bool, lane: int | None) -> dict[Path, list[int]]:
    """The numbers asked for, by lane. All of them are there."""
    from safekafka.spool.inspect import LaneView

    if bool(seqs) == every:
        raise typer.BadParameter("give the sequence numbers, or --all.")
    there: dict[Path, list[int]] = {}
    for folder in lanes_of(path, lane):
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


def change(chosen: dict[Path, list[int]], change: Callable[[Journal, list[int]], int]) -> int:
    """With all locks held and all journals open before the first change. Damage is left for a producer to mend."""
    from safekafka.spool.journal import Journal
    from safekafka.spool.lane import lock_dead

    with contextlib.ExitStack() as open_:
        for folder in chosen:
            open_.callback(lock_dead(folder).release)
        journals = [open_.enter_context(contextlib.closing(Journal(folder, refuse_damage=True))) for folder in chosen]
        return sum(change(journal, some) for journal, some in zip(journals, chosen.values(), strict=True))
