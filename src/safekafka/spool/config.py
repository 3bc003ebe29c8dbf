"""How a spool is described: `Spool`, and nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Spool:
    """A folder on a local disk that holds accepted records until Kafka has them.

    `max_bytes` bounds keys, values and headers kept (default 10 GiB); at the bound `send()` blocks for `max_block`,
    then raises `SpoolFullError`.
    `durability="disk"` syncs to the disk before `send()` returns: the record survives SIGKILL and power loss.
    `"process"` skips the sync: it survives SIGKILL of the process, not a crash of the machine.
    """

    path: str | os.PathLike[str]
    max_bytes: int = 10 << 30
    durability: Literal["disk", "process"] = "disk"

    def __post_init__(self) -> None:
        if not os.fspath(self.path):
            raise ValueError(f"spool={self.path!r}: name the folder that holds the spool")
        if self.durability not in ("disk", "process"):
            raise ValueError(
                f"durability={self.durability!r}: choose 'disk' (survives power loss) or 'process' (survives SIGKILL)"
            )
        if self.max_bytes <= 0:
            raise ValueError(
                f"max_bytes={self.max_bytes!r} leaves no room for a record: give the bytes that the spool may hold"
            )

    @property
    def folder(self) -> Path:
        return Path(self.path)
