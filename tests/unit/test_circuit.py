"""The circuit in front of the dead letter topic: opens at its limits, probes after growing pauses, closes at the first
success."""

from __future__ import annotations

import random
from collections import deque

import hypothesis.strategies as st
import pytest
from hypothesis import given

from safekafka.deadletter.circuit import FIRST_PAUSE, LONGEST_PAUSE, Circuit


def test_B_D08_as_many_failures_in_a_row_as_allowed_are_dead_lettered_and_the_next_opens() -> None:
    circuit = Circuit(3, None)
    assert [circuit.failed(float(n)) for n in range(4)] == [True, True, True, False]
    assert circuit.is_open
    assert circuit.openings == 1
    assert circuit.why == "3 dead letters in a row (max_consecutive)"


def test_a_success_between_starts_the_count_again() -> None:
    circuit = Circuit(2, None)
    for _ in range(10):
        assert circuit.failed(0.0)
        assert circuit.failed(0.0)
        assert not circuit.succeeded(0.0)


def test_B_D08_a_rate_opens_it_although_others_succeed() -> None:
    circuit = Circuit(None, (3, 10.0))
    for now in (0.0, 1.0, 2.0):
        assert circuit.failed(now)
        circuit.succeeded(now)
    assert not circuit.failed(9.9)
    assert circuit.why == "3 dead letters within 10.0 s (max_rate)"
    slow = Circuit(None, (3, 10.0))
    assert all(slow.failed(now) for now in (0.0, 4.0, 8.0, 12.0, 16.0, 20.0))


def test_probes_come_after_growing_pauses_and_what_was_under_way_is_none() -> None:
    circuit = Circuit(1, None)
    circuit.failed(0.0)
    circuit.failed(0.0)
    pauses, now = [], 0.0
    for _ in range(9):
        probe = circuit.next_probe_at
        assert probe is not None
        assert not circuit.failed(probe - 0.01)  # of another worker
        assert circuit.next_probe_at == probe
        pauses.append(probe - now)
        now = probe
        assert not circuit.failed(now)
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60])
    assert circuit.openings == 1
    assert not circuit.succeeded(now)  # of another worker
    now += LONGEST_PAUSE
    assert circuit.succeeded(now)
    assert not circuit.succeeded(now)
    assert circuit.failed(now)
    assert not circuit.failed(now)
    assert circuit.next_probe_at == now + FIRST_PAUSE
    assert circuit.openings == 2


def test_B_D08_a_rate_holds_although_half_of_all_handlers_succeed() -> None:
    """A thousand messages a second, for ten minutes, of which half fail: one of two shards is down, say."""
    chance = random.Random(1)
    circuit = Circuit(None, (100, 60.0))
    letters = 0
    for tick in range(600_000):
        now = tick / 1000
        if circuit.next_probe_at is not None and now < circuit.next_probe_at:
            continue  # nobody tries
        if chance.random() < 0.5:
            letters += circuit.failed(now)
        else:
            circuit.succeeded(now)
    assert 500 < letters <= 1_000
    assert circuit.openings < 100


_steps = st.lists(st.tuples(st.booleans(), st.floats(0, 5)), max_size=200)


@given(
    max_consecutive=st.none() | st.integers(1, 5),
    max_rate=st.none() | st.tuples(st.integers(1, 5), st.floats(0.5, 10)),
    steps=_steps,
)
def test_B_D08_no_run_of_failures_gets_more_into_the_dead_letter_topic_than_its_limits(
    max_consecutive: int | None, max_rate: tuple[int, float] | None, steps: list[tuple[bool, float]]
) -> None:
    circuit = Circuit(max_consecutive, max_rate)
    now, in_a_row = 0.0, 0
    written: deque[float] = deque()
    for fails, seconds in steps:
        now += seconds
        was_open, openings = circuit.is_open, circuit.openings
        if fails:
            allowed = circuit.failed(now)
            assert allowed == (not circuit.is_open)
            assert circuit.openings - openings == (circuit.is_open and not was_open)
            if allowed:
                in_a_row += 1
                written.append(now)
        else:
            due = circuit.next_probe_at is None or now >= circuit.next_probe_at
            assert circuit.succeeded(now) == (was_open and due)
            assert circuit.is_open == (was_open and not due)
            in_a_row = in_a_row if circuit.is_open else 0
        assert max_consecutive is None or in_a_row <= max_consecutive
        if max_rate is not None:
            assert sum(now - at < max_rate[1] for at in written) <= max_rate[0]
        assert circuit.next_probe_at is None or circuit.next_probe_at <= now + LONGEST_PAUSE
    if max_consecutive is None and max_rate is None:
        assert not circuit.openings
