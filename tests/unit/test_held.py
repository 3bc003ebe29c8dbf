"""Records that wait on our side: order of send, whatever comes back from the client and whatever is blocked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from confluent_kafka import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from safekafka.producer.held import PAUSE_SECONDS, BlockedTopic, Care, Held
from safekafka.record import Fields

ERROR = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)


class Waiting:
    """What `Held` needs of a receipt."""

    def __init__(self, number: int, topic: str = "a", size: int = 1) -> None:
        self._sent_at = float(number)
        self._fields: Fields | None = (topic, b"x" * size, None, None, -1, 0)


def taken(held: Held[Waiting]) -> Iterator[int]:
    while (receipt := held.first()) is not None:
        held.remove(receipt)
        yield int(receipt._sent_at)


def test_P3_a_record_that_came_back_goes_before_everything_sent_after_it() -> None:
    held: Held[Waiting] = Held()
    for number in (3, 4, 5):
        held.add(Waiting(number))
    held.put_back([(Waiting(1), True), (Waiting(2), False)])
    assert list(taken(held)) == [1, 2, 3, 4, 5]
    assert (len(held), held.bytes) == (0, 0)


def test_a_blocked_topic_waits_apart_and_comes_back_in_order() -> None:
    held: Held[Waiting] = Held()
    for number in range(6):
        held.add(Waiting(number, "ab"[number % 2]))
    held.block("a", ERROR, 0.0)
    held.put_back([(Waiting(-2, "a"), True)])
    held.add(Waiting(6, "a"))
    first = held.first("a")
    assert first is not None
    assert first._sent_at == -2
    assert held.tried(first)
    assert list(taken(held)) == [1, 3, 5]
    held.unblock("a")
    assert list(taken(held)) == [-2, 0, 2, 4, 6]


def test_the_pause_before_a_blocked_topic_is_tried_again_grows_to_its_bound() -> None:
    blocked = BlockedTopic(ERROR, 10.0)
    assert blocked.not_before == 10.0 + PAUSE_SECONDS[0]
    for _ in range(20):
        blocked.refused_again(ERROR, 20.0)
    assert blocked.not_before == 20.0 + PAUSE_SECONDS[1]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.sampled_from("abc")),
            st.tuples(st.just("take"), st.just("")),
            st.tuples(st.just("return"), st.integers(0, 20)),
            st.tuples(st.just("block"), st.sampled_from("abc")),
            st.tuples(st.just("unblock"), st.sampled_from("abc")),
            st.tuples(st.just("end"), st.integers(0, 20)),
        ),
        max_size=60,
    )
)
def test_P3_order_and_sums_are_those_of_a_naive_model_after_every_step(steps: list[tuple[str, object]]) -> None:
    held: Held[Waiting] = Held()
    numbers = itertools.count()
    ours: list[Waiting] = []  # in the order of send
    away: list[Waiting] = []
    blocked: set[str] = set()

    def topic(receipt: Waiting) -> str:
        assert receipt._fields is not None
        return receipt._fields[0]

    def expected(of: str | None) -> Waiting | None:
        return next((r for r in ours if (topic(r) == of if of else topic(r) not in blocked)), None)

    for step, argument in steps:
        if step == "send":
            ours.append(Waiting(next(numbers), str(argument)))
            held.add(ours[-1])
        elif step == "take" and (receipt := expected(None)) is not None:
            held.remove(receipt)
            ours.remove(receipt)
            away.append(receipt)
        elif step == "return" and away:
            receipt = away.pop(int(str(argument)) % len(away))
            held.put_back([(receipt, True)])
            ours = sorted([*ours, receipt], key=lambda r: r._sent_at)
        elif step == "block":
            held.block(str(argument), ERROR, 0.0)
            blocked.add(str(argument))
        elif step == "unblock" and argument in blocked:
            held.unblock(str(argument))
            blocked.discard(str(argument))
        elif step == "end" and ours:
            receipt = ours.pop(int(str(argument)) % len(ours))
            held.remove(receipt)
        assert held.first() is expected(None)
        for name in blocked:
            assert held.first(name) is expected(name)
        assert (len(held), held.bytes) == (len(ours), len(ours))


@given(st.integers(1, 2_000), st.data())
def test_P1_every_culprit_is_found_alone_and_the_innocent_pass_in_portions(count: int, data: st.DataObject) -> None:
    culprits = data.draw(st.sets(st.integers(0, count - 1), max_size=5))
    care = Care()
    line = [Waiting(number) for number in range(count)]
    found: set[int] = set()
    refusals = 0
    while line:
        if care.limit is not None and care.left == 0:
            care.next_portion(line[0])
        size = len(line) if care.limit is None else care.limit
        portion, line = line[:size], line[size:]
        care.left = 0
        bad = [r for r in portion if int(r._sent_at) in culprits]
        if not bad:
            if care.limit is not None:
                care.next_portion(line[0] if line else None)
            continue
        refusals += 1
        if len(portion) == 1:
            found.add(int(portion[0]._sent_at))
            care.one_refused()
        else:
            care.batch_refused(len(portion), portion[-1]._sent_at)
            line = portion + line
    assert found == culprits
    assert refusals <= 1 + len(culprits) * 14


def test_P3_who_waits_for_the_first_in_its_partition_is_passed_over_and_comes_back_in_order() -> None:
    held: Held[Waiting] = Held()
    waiting = [Waiting(number) for number in range(6)]
    for one in waiting:
        held.add(one)
    for one in (waiting[0], waiting[1]):
        held.park(one, ("a", 0))
    held.park(waiting[2], ("a", 1))
    held.remove(waiting[0])  # its time was over
    held.put_back([(Waiting(-1), True)])
    first = held.first()
    assert first is not None
    assert first._sent_at == -1
    held.unpark([("a", 0), ("a", 7)])
    assert len(held) == 6
    assert list(taken(held)) == [-1, 1, 3, 4, 5]
    held.unpark()
    assert list(taken(held)) == [2]
    assert (len(held), held.bytes) == (0, 0)


def test_a_topic_that_is_blocked_takes_along_those_of_its_records_that_were_passed_over() -> None:
    held: Held[Waiting] = Held()
    for number in range(4):
        held.add(Waiting(number, "ab"[number % 2]))
    first = held.first()
    assert first is not None
    held.park(first, ("a", 0))
    held.block("a", ERROR, 0.0)
    assert list(taken(held)) == [1, 3]
    held.unblock("a")
    assert list(taken(held)) == [0, 2]
