"""Who delivers: the raw client, and SafeProducer without and with a spool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.setup import Setup
from benchmarks.producer.peers.base import Peer
from benchmarks.producer.peers.raw import WithCallback
from benchmarks.producer.peers.safe import ManyACall
from benchmarks.spool.cases import Durability

from safekafka import Spool

BASE = "raw-callback"  # every ratio is to this one
SPOOL = "spool-disk"


class HundredACall(ManyACall):
    chunk = 100


@dataclass(frozen=True)
class Contestant:
    title: str
    how: str
    durability: Durability | None = None

    def open(self, setup: Setup, folder: Path) -> Peer:
        if self.durability is None:
            return HundredACall(setup)
        return HundredACall(setup, spool=Spool(folder, durability=self.durability))


class RawContestant(Contestant):
    def open(self, setup: Setup, folder: Path) -> Peer:
        return WithCallback(setup)


CONTESTANTS: dict[str, Contestant] = {
    BASE: RawContestant("raw with callback", "`produce(on_delivery=...)` and `poll(0)` per record, then `flush()`"),
    "without": Contestant("SafeProducer, no spool", "`send_many(100)`, receipts dropped, then `flush()`"),
    SPOOL: Contestant("SafeProducer, spool, disk", 'the same, `Spool(folder, durability="disk")`', "disk"),
    "spool-process": Contestant(
        "SafeProducer, spool, process", 'the same, `Spool(folder, durability="process")`', "process"
    ),
}
