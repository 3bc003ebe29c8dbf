"""What is asked of the brokers inside of rebalance callbacks, which an error must not leave."""

from __future__ import annotations

import concurrent.futures
from types import SimpleNamespace
from typing import Any

import pytest

from safekafka.consumer.topic_ids import TopicIds


class TimeoutOfPython310(Exception):  # noqa: N818
    """There, the one of `concurrent.futures` is not the builtin one."""


class Future:
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def result(self, timeout: float) -> Any:
        if self._answer is None:
            raise concurrent.futures.TimeoutError
        return self._answer


def test_a_topic_whose_id_is_not_told_in_time_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrent.futures, "TimeoutError", TimeoutOfPython310)
    answers = {"orders": Future(None), "payments": Future(SimpleNamespace(topic_id="id"))}
    admin: Any = SimpleNamespace(describe_topics=lambda *_, **__: answers)
    assert TopicIds(lambda: admin).ask(answers) == {"payments": "id"}
