"""How a spool is described: `Spool`, and nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Spool:
    """A folder on a local disk that holds accepted records until Kafka has them.

    `max_bytes` bounds the records pending in each process (default 10 GiB), `min_free_bytes` is left free on the disk
    (default 64 MiB): at either bound, and when the disk is full, `send()` blocks for `max_block`, then raises
    `SpoolFullError`.
    `durability="disk"` syncs to the disk before `send()` returns: the record survives SIGKILL and power loss.
    `"process"` skips the sync: it survives SIGKILL of the process, not a crash of the machine.
    `name` tells spools apart that share a folder: only a producer of the same name and cluster sends what is in one.
    `max_age`: seconds after which the oldest record is reported (`spool_old`). Nothing expires. Counted from the
    record's own timestamp: that of its `send()`, unless the program gave another one.
    `reject_blocked_after`: seconds after which the records of a topic that refuses them are moved to `rejected()`.
    Default: never, they wait for as long as it takes. Each start of the program counts anew.
    `on_damage`: a record damaged on the disk is kept aside as evidence and reported, the others are sent
    ("set_aside"); or nothing is sent any more, `SpoolCorruptError` ("refuse"), where a gap is worse than a stop.
    `record_ids`: each record gets the header `safekafka.id`, by which a consumer recognises one that was sent twice.
    """

    path: str | os.PathLike[str]
    max_bytes: int = 10 << 30
    durability: Literal["disk", "process"] = "disk"
    name: str = "default"
    min_free_bytes: int = 64 << 20
    max_age: float | None = None
    reject_blocked_after: float | None = None
    on_damage: Literal["set_aside", "refuse"] = "set_aside"
    record_ids: bool = True

    def __post_init__(self) -> None:
        if not os.fspath(self.path):
            raise ValueError(f"spool={self.path!r}: name the folder that holds the spool")
        if self.durability not in ("disk", "process"):
            raise ValueError(
                f"durability={self.durability!r}: choose 'disk' (survives power loss) or 'process' (survives SIGKILL)"
            )
        if self.on_damage not in ("set_aside", "refuse"):
            raise ValueError(
                f"on_damage={self.on_damage!r}: choose 'set_aside' (send the others) or 'refuse' (send nothing more)"
            )
        if self.max_bytes <= 0:
            raise ValueError(
                f"max_bytes={self.max_bytes!r} leaves no room for a record: give the bytes that the spool may hold"
            )
        if self.min_free_bytes < 0:
            raise ValueError(f"min_free_bytes={self.min_free_bytes!r}: give the bytes to leave free, 0 or more")
        for option, seconds in (("max_age", self.max_age), ("reject_blocked_after", self.reject_blocked_after)):
            if seconds is not None and not seconds > 0:
                raise ValueError(f"{option}={seconds!r}: give seconds above 0, or leave it out")
        if not self.name:
            raise ValueError("name='': give the spool a name, or leave it out")

    @property
    def folder(self) -> Path:
        return Path(self.path)
