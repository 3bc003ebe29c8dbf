"""A member of a KIP-848 group whose heartbeat timed out joins anew, once, and not while heartbeats go on timing out."""

from __future__ import annotations

from safekafka.client import ClusterWatch
from safekafka.consumer.assignment_watch import QUIET_SECONDS, AssignmentWatch


def joins(watch: AssignmentWatch, timeouts: list[float], until: float, heard: tuple[float, ...] = ()) -> list[float]:
    """When it is to join anew, looked at each second."""
    found = []
    for now in [float(second) for second in range(1, int(until))]:
        if now in heard:
            watch.rebalanced(now)
        last = max((at for at in timeouts if at <= now), default=0.0)
        if watch.look(now, last):
            found.append(now)
    return found


def test_it_joins_anew_once_after_the_last_of_a_run_of_timeouts() -> None:
    found = joins(AssignmentWatch(), [100.5, 101.5, 103.5], 1_000)
    assert len(found) == 1
    assert 103.5 + QUIET_SECONDS <= found[0] <= 103.5 + 2 * QUIET_SECONDS + 1


def test_each_run_of_timeouts_has_its_own() -> None:
    assert len(joins(AssignmentWatch(), [100.5, 300.5], 1_000)) == 2


def test_without_a_timeout_it_stays() -> None:
    assert joins(AssignmentWatch(), [], 1_000) == []


def test_an_assignment_that_was_heard_afterwards_is_the_whole() -> None:
    assert joins(AssignmentWatch(), [100.5], 1_000, heard=(106.0,)) == []


def test_an_assignment_that_was_heard_just_then_may_be_the_one_before() -> None:
    assert len(joins(AssignmentWatch(), [100.5], 1_000, heard=(99.0, 101.0))) == 1


def test_members_do_not_leave_all_at_once() -> None:
    assert len({joins(AssignmentWatch(), [100.5], 1_000)[0] for _ in range(50)}) > 3


def test_a_heartbeat_that_timed_out_is_read_from_the_clients_log() -> None:
    watch = ClusterWatch("localhost:9092", None)
    watch.on_log("[thrd:GroupCoordinator]: GroupCoordinator/1: Timed out FetchRequest in flight (after 1001ms)")
    assert not watch.heartbeat_timed_out_at
    watch.on_log(
        "[thrd:GroupCoordinator]: GroupCoordinator/1: Timed out ConsumerGroupHeartbeatRequest in flight (after 1001ms, "
        "timeout #0)"
    )
    assert watch.heartbeat_timed_out_at
