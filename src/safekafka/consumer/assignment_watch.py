"""Decides when a member has to join its group anew, since it may have missed what the coordinator told it, with
`group.protocol=consumer` (KIP-848). Pure.

There the coordinator tells a member of its partitions once, in the answer to a heartbeat. A member whose heartbeat ran
into its timeout has to ask for all of it again. librdkafka (2.16) does so after a lost connection, and not after a
timeout. It may then keep partitions that it is to give up, or never hear of its own, and nobody reads them until the
coordinator gives it up after `max.poll.interval.ms`: five minutes. There is no way to have it ask; to leave and to join
gets the whole answer. (To ask for the group's description instead, whether anything was missed, is none: the client's
coordinator requests end the process by an assertion when the coordinator moves meanwhile.)
"""

from __future__ import annotations

import random

QUIET_SECONDS = 10.0  # without a timeout before it joins anew; and up to so many more: not all members at once
_SURE_SECONDS = 5.0  # what is heard so long behind a timeout was asked after it


class AssignmentWatch:
    def __init__(self) -> None:
        self._timed_out_at = 0.0  # the last heartbeat that did
        self._doubtful = False  # nothing was heard since
        self._pause = 0.0

    def rebalanced(self, now: float) -> None:
        """The client called back: it has heard a whole assignment."""
        if now >= self._timed_out_at + _SURE_SECONDS:
            self._doubtful = False

    def look(self, now: float, timed_out_at: float) -> bool:
        """Whether to join anew; once for each run of timeouts. `timed_out_at`: of the client's last heartbeat that did,
        0 if none has."""
        if timed_out_at > self._timed_out_at:
            self._timed_out_at, self._doubtful = timed_out_at, True
            self._pause = random.uniform(1, 2) * QUIET_SECONDS
        if not self._doubtful or now - self._timed_out_at < self._pause:
            return False
        self._doubtful = False
        return True
