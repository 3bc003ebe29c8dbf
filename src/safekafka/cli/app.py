"""The commands of `safekafka`. Each only reads its options and calls the part that does the work."""

from __future__ import annotations

import random
from typing import Annotated

import typer

from safekafka.cli.dlq.commands import app as dlq
from safekafka.cli.spool.commands import app as spool

app = typer.Typer(
    name="safekafka",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(spool, name="spool")
app.add_typer(dlq, name="dlq")


@app.callback()
def safekafka() -> None:
    """Kafka for services that must not lose a message."""


@app.command()
def demo(
    orders: Annotated[int, typer.Option(min=100, help="How many orders to send.")] = 20_000,
    mock: Annotated[bool, typer.Option("--mock", help="On librdkafka's mock brokers: seconds, no download.")] = False,
    seed: Annotated[
        int | None, typer.Option(help="Of the orders and of the moments of the faults; drawn if not given.")
    ] = None,
) -> None:
    """Send orders through a three-broker Kafka while a broker and the producer are killed, and count what arrived.

    Exit status: 0 when nothing was lost, 1 when something was or the demo could not run.
    """
    from safekafka.cli.demo.run import run_demo

    raise typer.Exit(run_demo(orders, mock=mock, seed=random.randrange(1_000_000) if seed is None else seed))
