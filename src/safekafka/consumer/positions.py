"""Finds out where each partition starts, and assigns it there: never silently past a record, and never by the client.

The client runs with `auto.offset.reset=error`. In the assignment's callback we ask for the committed offsets and the
starts of the logs, and assign absolute offsets (`starts.py` has the rules). What is not known by then is left without a
position, in which state the client reads nothing of the partition; `ask()` goes on asking.

Later, when retention overtakes a slow consumer or a log loses its end, the client tells it once (`lost()`), and reads
no more of the partition. It can't be sought in that state, only assigned anew; with an assignor of the eager kind that
takes all others along, which go on where they were. What the client tells may be late: the partition was assigned anew
since, together with others. It is looked at all the same, since one that nobody looks at would be silent for ever.

No logical offset is ever given to the client (`OFFSET_BEGINNING`): it asks the leader for the number, and obeys an
answer that comes after the partition was assigned elsewhere.

Thread: the poll thread, and its callbacks. `assign()` and `ask()` block for a few times `_ASK_SECONDS` at most, the
latter ever more seldom while brokers do not answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias, TypeVar

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, OFFSET_INVALID, Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as Partition

from safekafka.consumer.starts import Choice, Fate, Start, choice_of_latest, start_of
from safekafka.errors import RecordsExpired, SafeKafkaError
from safekafka.observe import Event, emit

Key: TypeAlias = "tuple[str, int]"
_T = TypeVar("_T")
Policy: TypeAlias = Literal["earliest", "latest", "error"]

_ASK_SECONDS = 2.0
_ASK_ONE_SECONDS = 0.5
_AGAIN_SECONDS = 0.2
_AGAIN_AT_MOST = 5.0
_TELL_SECONDS = 30.0


class Positions:
    """`policy`: for partitions without a committed offset; "error" stops for every position that is not in the log.
    `stop_on_expired`: records that are gone stop the consumer.

    `next_offset` tells the offset behind the last message taken, None if none was. (The client's own position is gone
    with each assignment.) `began_again` is called before messages come that were taken before. `on_committed` gets what
    the group has committed (offset, metadata, leader epoch) before anything of these partitions is fetched.
    """

    def __init__(
        self,
        client: Consumer,
        policy: Policy,
        stop_on_expired: bool,
        *,
        next_offset: Callable[[Key], int | None],
        began_again: Callable[[Key], None],
        on_committed: Callable[[Sequence[Partition]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._policy = policy
        self._stop_on_expired = stop_on_expired or policy == "error"
        self._next_offset = next_offset
        self._began_again = began_again
        self._on_committed = on_committed
        self._clock = clock
        self._ours: dict[Key, int | None] = {}  # with the offset that we last assigned; None: the client's to find
        self._lost: dict[Key, bool] = {}  # read nothing until assigned anew; whether the leader refused the position
        self._left: dict[Key, int] = {}  # the last position that was refused, and is not ours any more
        self._out: set[Key] = set()  # taken out of the assignment, and to be put back
        self.astray: set[Key] = set()  # to be assigned anew; what the client hands out of them until then is not wanted
        # By topic: the ends that we choose for the group, of its partitions when we began. None: not told yet
        self._ends: dict[str, dict[Key, int | None]] = {}
        self._awaited: dict[str, float] = {}  # topics whose start is not known with `latest`; when to tell it
        self.awaited: dict[str, str] = {}  # those of them that it was told of, and what for. Read by any thread
        self._found: dict[Key, int] = {}  # starts of the logs of lost partitions, told by `ask()`, not used yet
        self._ask_at = 0.0
        self._tries = 0  # in a row, since nothing was lost
        self._one_by_one = False  # a leader does not answer, and would keep the answers of the others from us
        self._failure: SafeKafkaError | None = None

    # ---- the assignment's callback

    def assign(self, partitions: Sequence[Partition]) -> None:
        """Tell the client where the partitions start that it has just been given. Raises nothing: the client would
        swallow it."""
        keys = [(one.topic, one.partition) for one in partitions]
        self._ours.update(dict.fromkeys(keys))
        for key in keys:
            self._found.pop(key, None)
            self.astray.discard(key)
        try:
            if keys:
                self._start(keys)
        except KafkaException as error:
            _tell(error)
        self._lost.update((key, False) for key in keys if self._ours[key] is None)
        self._ask_at = 0.0
        self._give([self._placed(key) for key in keys])

    def _start(self, keys: Sequence[Key]) -> None:
        committed = self._committed_of(keys)
        self._ours.update(committed)  # and without an answer about the log, the leader's refusal tells more
        lows = self._ask(keys, OFFSET_BEGINNING)
        starts = {
            key: start_of(offset, lows[key], refused=False)
            for key, offset in committed.items()
            if key in lows and (offset is not None or self._policy == "earliest")
        }
        self._tell_missed(starts)
        self._failure = self._failure or self._failure_at(starts)
        if self._failure is None:
            self._ours.update((key, start.offset) for key, start in starts.items())
            # It is told once, not at each assignment. Nothing of these was taken yet, so nothing unfinished lies below.
            self._commit([Partition(*key, s.offset) for key, s in starts.items() if s.fate is Fate.EXPIRED])

    def _give(self, partitions: list[Partition]) -> None:
        try:
            try:
                self._client.incremental_assign(partitions)
            except KafkaException as error:
                if error.args[0].code() != KafkaError._STATE:
                    raise
                self._client.assign(partitions)
        except KafkaException as error:
            _tell(error)

    def forget(self, keys: Iterable[Key]) -> None:
        """They are not ours any more."""
        for key in keys:
            self._ours.pop(key, None)
            self._lost.pop(key, None)
            self._found.pop(key, None)
            self._left.pop(key, None)
            self._out.discard(key)
            self.astray.discard(key)
            if key[1] == 0:
                self._ends.pop(key[0], None)

    def is_out(self, key: Key) -> bool:
        """Ours, although the client has it not at present."""
        return key in self._out

    def wanted(self, key: Key, offset: int | None) -> None:
        """Go on at this offset; None: where the group has committed. The partition is assigned anew there, unless the
        client can be told before (`moved()`)."""
        self._lost[key] = self._lost.get(key, False) and offset == self.position(key)
        self.astray.add(key)
        self._ours[key] = offset
        self._found.pop(key, None)
        self._ask_at = 0.0

    def moved(self, key: Key) -> None:
        """The client has sought to the offset that is wanted."""
        self._lost.pop(key, None)
        self.astray.discard(key)

    def of(self, key: Key) -> int | None:
        """The next offset to read. None: not known, or it is being looked for, and nothing is read until then."""
        return None if key in self._lost or key not in self._ours else self.position(key)

    # ---- between polls

    def lost(self, key: Key, offset: int | None, error: KafkaError) -> None:
        """The client told `_AUTO_OFFSET_RESET` of the partition, with the offset that it wanted to read."""
        if key not in self._ours or key in self.astray:
            return
        position = self.position(key)
        if position is None or offset is None:
            refused = position is not None and "truncation" in error.str()  # told without an offset
        else:
            refused = offset >= position and offset != self._left.get(key)
        if key not in self._lost:
            self._ask_at = 0.0
        self._lost[key] = refused or self._lost.get(key, False)

    def ask(self) -> None:
        """Find out where the logs of the lost partitions start; what fails is tried again by a later call. May take
        seconds."""
        if self._awaited:
            waiting = {key[0] for key in self._lost if self.position(key) is None}
            for topic in self._awaited.keys() - waiting:
                self._starts(topic)
        if self._failure is None and self._lost and not self._found and self._clock() >= self._ask_at:
            try:
                self._found = self._find()
            except KafkaException as error:  # no answer, or in the middle of a rebalance
                _tell(error)
            if not self._found:
                self._ask_again()

    def place(self) -> bool:
        """Give each lost partition that `ask()` knows of a position. True if partitions were assigned anew.

        To be called right behind a poll: the client takes any unassigning and assigning for the answer to a rebalance
        that it has announced, and whose callback has not run yet. Then others get partitions that we still handle.

        Raises `RecordsExpired` or `SafeKafkaError` where the consumer is to stop instead of going on elsewhere.
        """
        if self._failure is not None:
            raise self._failure
        found, self._found = self._found, {}
        starts = {
            key: start_of(self.position(key), low, self._lost[key]) for key, low in found.items() if key in self._lost
        }
        if not starts:
            return False
        self._failure = self._failure_at(starts)
        if self._failure is not None:
            self._tell_missed(starts)
            raise self._failure
        try:
            self._assign_anew(starts)
        except KafkaException as error:
            _tell(error)
            starts = {}
        self._ask_again()
        return bool(starts)

    def _ask_again(self) -> None:
        self._tries = min(self._tries + 1, 20) if self._lost else 0
        self._ask_at = self._clock() + min(_AGAIN_AT_MOST, _AGAIN_SECONDS * 1.5**self._tries)

    def _find(self) -> dict[Key, int]:
        new = [key for key in self._lost if self.position(key) is None]
        if self._policy == "latest":
            at_beginning = [key for topic in dict.fromkeys(key[0] for key in new) for key in self._latest(topic, new)]
        else:
            committed = self._committed_of(new)
            self._ours.update(committed)
            at_beginning = list(committed)
        known = [key for key in self._lost if self.position(key) is not None]
        return self._lows(list(dict.fromkeys([*known, *at_beginning])))

    def _latest(self, topic: str, new: Sequence[Key]) -> list[Key]:
        """Those of the new partitions that are to start at the beginning of their log."""
        mine = [key for key in new if key[0] == topic]
        numbers = self._client.list_topics(topic, timeout=_ASK_SECONDS).topics[topic].partitions
        committed = self._committed_of([(topic, number) for number in numbers])
        if not committed or len(committed) < len(numbers):
            self._tell_awaited(topic, len(mine), "the brokers to tell what the group has committed")
            return []
        self._ours.update((key, committed[key]) for key in mine if key in committed)
        choice = choice_of_latest(committed, (topic, 0) in self._ours)
        if choice is Choice.BEGINNING:
            self._starts(topic)
            self._ends.pop(topic, None)
            return mine
        if choice is Choice.ANOTHER_MEMBER:
            self._tell_awaited(topic, len(mine), "the member that has partition 0 to commit the ends")
            return []
        ends = self._ends.setdefault(topic, dict.fromkeys(committed))
        # Each counts from when it is told first: what comes behind it, while others are not told yet, is not skipped.
        ends.update(self._edges([key for key, end in ends.items() if end is None], OFFSET_END, ends))
        unknown = sorted(number for (_, number), end in ends.items() if end is None)
        if unknown:
            self._tell_awaited(topic, len(mine), f"the leaders of partitions {unknown} to tell their ends")
            return []
        # Nothing is read before the brokers say that these are committed, when they are asked next. If they are slow,
        # the same ones are sent again: others, arriving late, would move the group past what is handled by then.
        self._commit([Partition(*key, end) for key, end in ends.items() if end is not None])
        return []

    def _starts(self, topic: str) -> None:
        self._awaited.pop(topic, None)
        self.awaited.pop(topic, None)

    def _assign_anew(self, starts: dict[Key, Start]) -> None:
        placed = {key: Partition(*key, start.offset) for key, start in starts.items()}
        try:
            inside = [Partition(*key) for key in starts if key not in self._out]
            if inside:
                self._client.incremental_unassign(inside)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._STATE:
                raise
            self._client.assign([placed.get(key) or self._placed(key) for key in self._ours])
        else:
            self._out.update(starts)
            self._client.incremental_assign(list(placed.values()))
            self._out.difference_update(starts)
        self._tell_missed(starts)
        for key, start in starts.items():
            if start.fate is Fate.BEYOND_END:
                self._left[key] = self.position(key) or 0
                self._began_again(key)
            self._ours[key] = start.offset
            del self._lost[key]
            self.astray.discard(key)

    # ---- asking

    def ends(self, keys: Sequence[Key]) -> dict[Key, int]:
        """Of the logs, as far as they are known within `_ASK_SECONDS`."""
        return self._ask(keys, OFFSET_END)

    def _committed_of(self, keys: Sequence[Key]) -> dict[Key, int | None]:
        """None: the group has no offset there. A partition that is missing had no answer."""
        if not keys:
            return {}
        answer = self._client.committed([Partition(*key) for key in keys], timeout=_ASK_SECONDS)
        found = {(one.topic, one.partition): one for one in answer if one.error is None}
        unread = [key for key in found if key in self._ours and self.position(key) is None and found[key].offset >= 0]
        if unread:
            self._on_committed([found[key] for key in unread])
        return {key: one.offset if one.offset >= 0 else None for key, one in found.items()}

    def _ask(self, keys: Sequence[Key], what: int) -> dict[Key, int]:
        """The first or the last offset of the logs, with one request to each leader. Mostly none at all, if one of the
        leaders does not answer."""
        try:
            # ListOffsets takes -2 and -1 in place of a timestamp; these are the values of the two constants.
            answer = self._client.offsets_for_times([Partition(*key, what) for key in keys], timeout=_ASK_SECONDS)
        except KafkaException as error:
            _tell(error)
            return {}
        return {(one.topic, one.partition): one.offset for one in answer if one.error is None and one.offset >= 0}

    def _lows(self, keys: Sequence[Key]) -> dict[Key, int]:
        return self._edges(keys, OFFSET_BEGINNING, self._lost)

    def _edges(self, keys: Sequence[Key], what: int, order: dict[Key, _T]) -> dict[Key, int]:
        """The starts or the ends of the logs. While a leader does not answer, they are asked for one by one, within a
        bounded time; those without an answer are put last in `order`, for the next time."""
        found: dict[Key, int] = {}
        if keys and not self._one_by_one:
            found = self._ask(keys, what)
        if found or not keys:
            return found
        self._one_by_one = False
        until = self._clock() + _ASK_SECONDS
        for key in keys:
            if self._clock() >= until:
                self._one_by_one = True
                break
            try:
                low, high = self._client.get_watermark_offsets(Partition(*key), timeout=_ASK_ONE_SECONDS)
            except KafkaException:
                self._one_by_one = True
                order[key] = order.pop(key)
            else:
                found[key] = low if what == OFFSET_BEGINNING else high
        return found

    def _commit(self, offsets: list[Partition]) -> None:
        """Sent, not waited for: there is no bounded way."""
        if offsets:
            try:
                self._client.commit(offsets=offsets, asynchronous=True)
            except KafkaException as error:
                _tell(error)

    # ---- what is known

    def position(self, key: Key) -> int | None:
        """The next offset to read: behind what was taken, or where we let it go on beyond that."""
        known = [offset for offset in (self._next_offset(key), self._ours.get(key)) if offset is not None]
        return max(known, default=None)

    def _placed(self, key: Key) -> Partition:
        """Without a position the client asks for the committed offset itself, and reads nothing if there is none."""
        position = self.position(key)
        return Partition(*key, OFFSET_INVALID if position is None else position)

    def _failure_at(self, starts: dict[Key, Start]) -> SafeKafkaError | None:
        """Why the consumer is to stop instead."""
        expired = [
            (*key, self.position(key) or 0, start.offset) for key, start in starts.items() if start.fate is Fate.EXPIRED
        ]
        if expired and self._stop_on_expired:
            return RecordsExpired(expired)
        without = [key for key, start in starts.items() if start.fate in (Fate.NEW, Fate.BEYOND_END)]
        return _no_position(without) if without and self._policy == "error" else None

    # ---- telling

    def _tell_missed(self, starts: dict[Key, Start]) -> None:
        for (topic, partition), start in starts.items():
            position = self.position((topic, partition)) or 0
            if start.fate is Fate.EXPIRED:
                emit(
                    Event.RECORDS_EXPIRED,
                    topic=topic,
                    partition=partition,
                    from_offset=position,
                    to_offset=start.offset,
                    count=start.offset - position,
                )
            elif start.fate is Fate.BEYOND_END:
                emit(Event.POSITION_BEYOND_END, topic=topic, partition=partition, offset=position, start=start.offset)

    def _tell_awaited(self, topic: str, partitions: int, waits_for: str) -> None:
        now = self._clock()
        if now >= self._awaited.setdefault(topic, now + _TELL_SECONDS):
            self._awaited[topic] = now + _TELL_SECONDS
            self.awaited[topic] = waits_for
            emit(Event.START_AWAITED, topic=topic, partitions=partitions, waits_for=waits_for)


def _no_position(keys: list[Key]) -> SafeKafkaError:
    names = ", ".join(f"{topic}[{partition}]" for topic, partition in keys)
    return SafeKafkaError(
        f"no committed offset in the log of {names}, and auto.offset.reset=error. Nothing was committed. Remedy: set "
        "the offsets of the group (kafka-consumer-groups --reset-offsets), or leave auto.offset.reset out to start "
        "at the beginning."
    )


def _tell(error: KafkaException) -> None:
    emit(Event.CLIENT_ERROR, error=error.args[0].name(), detail=error.args[0].str())
