"""How far a command has come, on a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere. What is yielded takes the number of records that are done, and of all."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda done, of: None
        return
    rate, time_left = TextColumn("{task.fields[rate]}"), TimeRemainingColumn()
    with Progress(BarColumn(), MofNCompleteColumn(), rate, time_left, console=console) as progress:
        task = progress.add_task("", total=None, rate="")

        def show(done: int, of: int) -> None:
            speed = progress.tasks[task].speed
            progress.update(task, completed=done, total=of, rate="" if speed is None else f"{speed:,.0f}/s")

        yield show
