"""The judge of the consumer's fault suites finds what it is there to find."""

from __future__ import annotations

import pytest

from tests.crash.consumer_judge import Judgement, Logged, judge
from tests.crash.consumer_ledger import read_ledger

S = 1_000_000_000
LOG = [Logged(0, offset, "k") for offset in range(3)]


def judged(*lines: str) -> Judgement:
    return judge(read_ledger(lines), LOG)


def assigned(member: str, at: int) -> str:
    return f"told {member} partitions_assigned 0 {at}"


def handled(member: str, offset: int, start: int, end: int | None = None, key: str = "k") -> str:
    return f"handled {member} 0 {offset} {key} {start} {start + 1 if end is None else end}"


GOOD = (assigned("a", 0), handled("a", 0, 10), handled("a", 1, 20), handled("a", 2, 30), "committed a 0 3 40")


def test_a_run_without_a_flaw_has_none() -> None:
    found = judged(*GOOD, "told a closed - 50")
    found.check()
    assert (found.records, found.handlings, found.repeated.total()) == (3, 3, 0)


@pytest.mark.parametrize(
    ("broken", "lines"),
    [
        ("unhandled", [GOOD[0], GOOD[1], GOOD[2]]),
        ("out of order", [GOOD[0], handled("a", 1, 10), handled("a", 0, 20), handled("a", 2, 30)]),
        ("overlapping", [GOOD[0], handled("a", 0, 10, 25), GOOD[2], GOOD[3]]),
        ("committed too far", [GOOD[0], GOOD[1], "committed a 0 2 15", GOOD[2], GOOD[3]]),
        ("handled without having the partition", [*GOOD[:3], "told a partitions_revoked 0 25", GOOD[3]]),
        ("repeated without a reason", [*GOOD, handled("a", 2, 45)]),  # within one assignment
        ("repeated without a reason", [*GOOD, "told a killed - 50", assigned("b", 60), handled("b", 2, 70)]),
        ("repeated without a reason", [*GOOD[:4], "told a closed - 50", assigned("b", 60), handled("b", 2, 70)]),
        (
            "repeated without a reason",
            [*GOOD[:4], "told a partitions_revoked 0 50", assigned("b", 60), handled("b", 2, 70)],
        ),
    ],
)
def test_what_breaks_a_promise_is_found(broken: str, lines: list[str]) -> None:
    found = judged(*lines)
    assert broken in [what for what, cases in found.problems.items() if cases], found


def test_what_was_not_committed_when_a_member_was_killed_may_be_repeated() -> None:
    found = judged(
        *GOOD[:3], "committed a 0 1 25", GOOD[3], "told a killed - 50", assigned("b", 60), handled("b", 2, 70)
    )
    found.check()
    assert (found.repeated, found.uncommitted["killed"]) == ({"killed": 1}, 2)


def test_a_commit_that_failed_when_the_partition_was_revoked_explains_what_is_repeated() -> None:
    left = "told a partitions_revoked 0 50", f"told a commit_failed - {S}", f"told a closed - {9 * S}"
    judged(*GOOD[:4], *left, assigned("b", 60), handled("b", 2, 70)).check()


def test_a_member_that_was_cut_off_and_handles_what_it_had_is_no_breach() -> None:
    found = judged(*GOOD[:3], assigned("b", 60), handled("b", 2, 70), "committed b 0 3 80", handled("a", 2, 90))
    found.check()
    assert found.repeated == {"late": 1}


def test_a_member_that_stood_still_while_it_was_given_partitions_may_repeat_until_it_learns_of_their_loss() -> None:
    def lost(after: int) -> Judgement:
        return judged(*GOOD, assigned("b", 60), handled("b", 2, 70), f"told b partitions_lost 0 {60 + after}")

    lost(S // 2).check()
    assert lost(S // 2).repeated == {"late": 1}
    assert lost(2 * S).problems["repeated without a reason"]


def test_a_commit_whose_answer_came_when_the_next_owner_had_asked_explains_what_is_repeated() -> None:
    """A coordinator was killed in between, say."""

    def answered(at: int) -> Judgement:
        return judged(
            *GOOD[:4],
            "told a partitions_revoked 0 50",
            "told b assigning 0 60",
            f"committed a 0 3 {at}",
            assigned("b", 70),
            handled("b", 2, 80),
        )

    answered(65).check()
    assert answered(65).uncommitted == {"revoked": 3, "kept": 1}
    assert answered(55).problems["repeated without a reason"]


def test_an_earlier_commit_that_came_behind_that_of_the_revocation_explains_what_is_repeated() -> None:
    """The client repeats one whose coordinator was killed, whatever it has sent since."""
    left = "told a partitions_revoked 0 50", "committed a 0 3 55", "committed a 0 1 57"
    went_back = judged(*GOOD[:4], *left, assigned("b", 60), handled("b", 1, 70), handled("b", 2, 80))
    went_back.check()
    assert (went_back.repeated, went_back.uncommitted["revoked"]) == ({"revoked": 2}, 2)
    found = judged(*GOOD[:4], *left[:2], assigned("b", 60), handled("b", 1, 70), handled("b", 2, 80))
    assert found.problems["repeated without a reason"]
