"""The pytest plugin with brokers: one test that fails in the middle of its fault does not sink the rest."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]


def test_brokers_are_running_again_when_the_next_test_begins(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SAFEKAFKA_BOOTSTRAP", raising=False)
    pytester.makepyfile(
        """
        import pytest

        names = set()

        @pytest.mark.kills_brokers
        def test_fails_with_two_dead_and_one_paused(kafka_cluster, topic):
            names.add(topic)
            kafka_cluster.kill(1)
            kafka_cluster.kill(2)
            kafka_cluster.pause(3)
            raise RuntimeError("in the middle")

        def test_finds_all_running(kafka_cluster, topic):
            assert kafka_cluster.running() == [1, 2, 3]
            assert kafka_cluster.isr_of(topic, 2) == [1, 2, 3]
            assert topic.startswith("test_finds_all_running-") and topic not in names
            topics = kafka_cluster._admin().list_topics(timeout=10).topics
            assert names.isdisjoint(topics)
        """
    )
    result = pytester.runpytest_subprocess(timeout=110)
    result.assert_outcomes(failed=1, passed=1)
