"""`poll()`, `consume()` and `done()`: for code that keeps its own loop. Only what is `done()` is committed, and only
when everything before it is.

Threads: the caller's, one at a time, as with the raw client; `done` may be called on any, and so may `is_out`. `_out`
holds what was handed out and is not done, by identity, since messages take no attributes. Of messages whose partition
is gone, only the identities are kept, in `_given_up`: the caller's thread puts each one there before it takes the
message out of `_out`, and `done` looks into `_out` first, so that it never finds neither. An identity comes again only
when its message is no more; then it is forgotten. Each step on either is atomic; `_lanes` is the caller's thread's
alone.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from safekafka.errors import ClosedError, SafeKafkaError

if TYPE_CHECKING:
    from confluent_kafka import Message

    from safekafka.consumer.lanes import PartitionLanes
    from safekafka.consumer.session import Session

_STEP_SECONDS = 0.1
_REMEMBERED = 10_000  # messages that were given up, at least


class OwnLoop:
    """`patience`: seconds in which nothing is handed out for want of room, and nothing is done, until that is an
    error."""

    def __init__(self, session: Session, max_in_flight: int, patience: float) -> None:
        self._session = session
        self._max_in_flight = max_in_flight
        self._patience = patience
        self._held_back = False  # at the last look
        self._moved_at = 0.0  # when something was done last, or there was room
        self._told_stop = False
        self._out: dict[int, tuple[Message, PartitionLanes]] = {}
        self._lanes: set[PartitionLanes] = set()  # that anything in `_out` is of
        self._given_up: OrderedDict[int, bool] = OrderedDict()
        self._remembered = max(max_in_flight, _REMEMBERED)
        self._fetched: deque[tuple[Message, PartitionLanes]] = deque()  # not handed out yet
        self._handing: list[tuple[Message, PartitionLanes]] = []  # on their way to the caller

    def consume(self, count: int, timeout: float | None) -> list[Message]:
        """At most so many messages, as soon as there are any; None: waits for as long as it takes. After a stop,
        nothing, once: a loop that looks at nothing else would never end, and spin."""
        deadline = None if timeout is None or timeout < 0 else time.monotonic() + timeout
        while not self._session.stop_requested.is_set():
            if not self._fetched:
                left = _STEP_SECONDS if deadline is None else min(_STEP_SECONDS, deadline - time.monotonic())
                self._fetch(count, max(0.0, left))
            messages = self._hand_out(count)
            if messages or (deadline is not None and time.monotonic() >= deadline):
                return messages
        if self._told_stop:
            raise ClosedError(
                "stop() was called and the loop goes on. Remedy: leave it and call close(), which commits what is done."
            )
        self._told_stop = True
        return []

    def _hand_out(self, count: int) -> list[Message]:
        """A signal handler may raise between any two steps: then the next call hands them out."""
        fetched, handing = self._fetched, self._handing
        while handing:  # of a call that was broken off
            if not fetched or fetched[0] is not handing[-1]:
                fetched.appendleft(handing[-1])
            handing.pop()
        while fetched and len(handing) < count:
            if not handing or handing[-1] is not fetched[0]:
                handing.append(fetched[0])
            fetched.popleft()
        given = [entry for entry in handing if not entry[1].progress.revoked]
        messages = [message for message, _ in given]
        self._lanes.update(lanes for _, lanes in given)
        if self._given_up:
            for message in messages:
                self._given_up.pop(id(message), None)
        self._out.update((id(entry[0]), entry) for entry in given)
        self._handing = []
        return messages

    def _fetch(self, count: int, timeout: float) -> None:
        session = self._session
        records, size = session.settle()
        self._sweep()
        session.balance(records, size)  # what the program paused, and what came of an assignment since
        self._look(session.held_back)
        session.take(self._keep, min(count, self._max_in_flight - records), size, timeout)
        session.after_take()

    def _look(self, held_back: bool) -> None:
        """Other threads may be busy with what is out, and done with it later; or nobody ever will be."""
        now = time.monotonic()
        if not (held_back and self._held_back):
            self._moved_at = now
        self._held_back = held_back
        if now - self._moved_at >= self._patience:
            raise SafeKafkaError(
                f"{len(self._out)} messages are out, as many as max_in_flight or max_in_flight_bytes allow, and none "
                f"was done for {self._patience:g} s. Remedy: call consumer.done(message) for each message that is "
                "handled; if they take so long, raise stuck_after."
            )

    def _keep(self, lanes: PartitionLanes, messages: Sequence[Message]) -> None:
        self._fetched.extend((message, lanes) for message in messages)

    def _sweep(self) -> None:
        """Give up the messages of partitions that are gone. Goes through what is out only when there are any."""
        gone = [lanes for lanes in self._lanes if lanes.progress.revoked]
        if not gone:
            return
        for number, (_, lanes) in list(self._out.items()):
            if lanes.progress.revoked:
                self._given_up[number] = True
                if self._out.pop(number, None) is None:  # done meanwhile
                    self._given_up.pop(number, None)
        while len(self._given_up) > self._remembered:
            self._given_up.popitem(last=False)
        self._lanes.difference_update(gone)

    @property
    def is_out(self) -> bool:
        """Whether anything was handed out that may still be done."""
        return any(not lanes.progress.revoked for _, lanes in list(self._out.values()))

    def done(self, message: Message) -> bool:
        """False if its partition was taken away meanwhile: whoever has it handles the message again."""
        entry = self._out.pop(id(message), None)
        if entry is None:
            if self._given_up.pop(id(message), False):
                self._moved_at = time.monotonic()
                return False
            raise ValueError(
                f"done({message!r}): this message was not handed out by this consumer, or is done already. Remedy: "
                "give the object that poll() or consume() returned, once."
            )
        entry[1].progress.finished.append(message)
        self._moved_at = time.monotonic()
        return not entry[1].progress.revoked
