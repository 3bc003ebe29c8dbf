"""Places where a test may have the process killed: `SAFEKAFKA_CRASH_POINT=name:n` in the environment makes the process
send itself SIGKILL at the n-th passage of that place (n from 1; `name` alone is the first). Without it a passage costs
one comparison.

Read once, when the module is imported. Any thread.
"""

from __future__ import annotations

import os
import signal

POINTS = (
    "lane_made_before_identity",  # the folder is there, lane.json is not
    "after_lock_before_open",  # a lane was taken over, its journal not yet opened
    "before_append",
    "after_append_before_commit",
    "after_commit_before_high",  # on the disk, the mark of the highest sequence number is behind
    "after_commit_before_return",  # send() has not returned
    "after_hand_over",  # the client has it
    "after_deliver_before_ack",  # Kafka has it, the journal has it as well
    "after_delete_before_commit",
    "after_delete",
    "after_reject_before_commit",
    "after_reject",
    "during_adoption",  # another lane's lock is taken, nothing of it sent
    "after_adopted_lane_emptied",  # before its lock is given back
    "during_vacuum",
    "during_salvage",  # a new journal is being made out of a damaged one
    "before_close",
)

_name, _, _passage = os.environ.get("SAFEKAFKA_CRASH_POINT", "").partition(":")
if _name and _name not in POINTS:
    raise ValueError(f"SAFEKAFKA_CRASH_POINT names no crash point: {_name!r}. There are: {', '.join(POINTS)}")
_left = int(_passage or 1)
armed = bool(_name)


def passing(point: str) -> None:
    if point == _name:
        _die_in_time()


def _die_in_time() -> None:
    global _left
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
