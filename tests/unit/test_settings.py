"""The settings guard: all offending settings at once, each with reason and remedy; aliases count; secrets never
show."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Consumer, Producer

from safekafka import SafeConsumer, SafeProducer, UnsafeConfigError
from safekafka.client import build_client
from safekafka.settings import consumer_settings, producer_settings, shown, start_policy

BROKERS = {"bootstrap.servers": "127.0.0.1:1"}


def refused(problems: list[Any]) -> set[str]:
    return {problem.setting for problem in problems}


def test_P2_safe_settings_are_set_without_being_asked_for() -> None:
    settings, problems = producer_settings(BROKERS)
    assert not problems
    assert settings["acks"] == "all"
    assert settings["enable.idempotence"] is True
    assert settings["allow.auto.create.topics"] is False
    assert settings["message.timeout.ms"] == 0


def test_C1_auto_commit_and_auto_offset_store_are_off_without_being_asked_for() -> None:
    settings, problems = consumer_settings({**BROKERS, "group.id": "billing"}, 15.0)
    assert not problems
    assert settings["enable.auto.commit"] is False
    assert settings["enable.auto.offset.store"] is False
    assert settings["auto.offset.reset"] == "earliest"
    assert settings["check.crcs"] is True


def test_what_the_program_sets_itself_is_left_to_it() -> None:
    assert consumer_settings({**BROKERS, "group.id": "billing"}, 15.0)[0]["fetch.queue.backoff.ms"] == 50
    given = {**BROKERS, "group.id": "billing", "fetch.queue.backoff.ms": 200, "allow.auto.create.topics": True}
    settings, problems = consumer_settings(given, 15.0)
    assert not problems
    assert settings["fetch.queue.backoff.ms"] == 200
    assert settings["allow.auto.create.topics"] is True


def test_all_offending_settings_are_in_one_error_each_with_value_reason_and_remedy() -> None:
    with pytest.raises(UnsafeConfigError) as caught:
        SafeProducer(
            {
                **BROKERS,
                "acks": 1,
                "enable.idempotence": "false",
                "max.in.flight.requests.per.connection": 1_000_000,
                "retries": 0,
                "compresion.type": "zstd",
            }
        )
    assert refused(list(caught.value.problems)) == {
        "acks",
        "enable.idempotence",
        "max.in.flight.requests.per.connection",
        "retries",
        "compresion.type",
    }
    for problem in caught.value.problems:
        assert problem.reason
        assert problem.remedy
        assert str(problem) in str(caught.value)
    assert "acks = 1" in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("acks", 1),
        ("acks", "0"),
        ("request.required.acks", "1"),
        ("enable.idempotence", False),
        ("max.in.flight", 6),
        ("message.send.max.retries", 0),
        ("message.timeout.ms", 10_000),
        ("delivery.timeout.ms", 10_000),
        ("delivery.report.only.error", True),
        ("transactional.id", "t"),
        ("allow.auto.create.topics", True),
        ("on_delivery", print),
        ("dr_cb", print),
    ],
)
def test_an_unsafe_producer_setting_is_refused_under_each_of_its_names(setting: str, value: Any) -> None:
    assert refused(producer_settings({**BROKERS, setting: value})[1]) == {setting}
    assert refused(producer_settings({**BROKERS, "default.topic.config": {setting: value}})[1]) == {setting}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("enable.auto.commit", True),
        ("enable.auto.commit", "true"),
        ("auto.commit.enable", "true"),
        ("enable.auto.offset.store", True),
        ("auto.offset.reset", "newest"),
        ("check.crcs", False),
    ],
)
def test_an_unsafe_consumer_setting_is_refused_under_each_of_its_names(setting: str, value: Any) -> None:
    config = {**BROKERS, "group.id": "billing", setting: value}
    assert refused(consumer_settings(config, 15.0)[1]) == {setting}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("acks", "all"),
        ("acks", "-1"),
        ("acks", -1),
        ("enable.idempotence", "true"),
        ("max.in.flight", 1),
        ("max.in.flight", "5"),
        ("linger.ms", 20),
    ],
)
def test_a_safe_value_is_accepted_however_it_is_written(setting: str, value: Any) -> None:
    settings, problems = producer_settings({**BROKERS, setting: value})
    assert not problems
    build_client(Producer, settings)


def test_missing_bootstrap_servers_and_group_id_are_named_with_an_example() -> None:
    with pytest.raises(UnsafeConfigError, match=r"bootstrap\.servers \(not set\).*kafka1:9092"):
        SafeProducer({})
    with pytest.raises(UnsafeConfigError) as caught:
        SafeConsumer({}, ["orders"])
    assert refused(list(caught.value.problems)) == {"bootstrap.servers", "group.id"}


def test_unknown_setting_and_impossible_value_are_refused_by_name_for_consumers_too() -> None:
    with pytest.raises(UnsafeConfigError) as caught:
        SafeConsumer(
            {**BROKERS, "group.id": "g", "fetch.minimum": 1, "enable.auto.commit": True, "session.timeout.ms": "soon"},
            ["orders"],
        )
    assert refused(list(caught.value.problems)) == {"enable.auto.commit", "fetch.minimum", "session.timeout.ms"}


def test_settings_that_contradict_each_other_are_refused_with_the_clients_reason() -> None:
    with pytest.raises(UnsafeConfigError, match=r"group\.protocol=consumer"):
        SafeConsumer(
            {**BROKERS, "group.id": "g", "group.protocol": "consumer", "session.timeout.ms": 10_000}, ["orders"]
        )


def test_two_names_of_one_setting_with_different_values_are_refused() -> None:
    problems = producer_settings({**BROKERS, "max.in.flight": 1, "max.in.flight.requests.per.connection": 5})[1]
    assert len(problems) == 1


def test_drain_longer_than_the_poll_interval_is_refused() -> None:
    config = {**BROKERS, "group.id": "g", "max.poll.interval.ms": 10_000}
    assert refused(consumer_settings(config, 15.0)[1]) == {"max.poll.interval.ms"}
    assert not consumer_settings(config, 9.0)[1]


def test_secrets_never_reach_an_error() -> None:
    with pytest.raises(UnsafeConfigError) as caught:
        SafeProducer({**BROKERS, "sasl.pasword": "hunter2", "ssl.key.pem": 5, "acks": 1})
    assert "hunter2" not in str(caught.value)
    assert "sasl.pasword" in str(caught.value)
    assert shown("linger.ms", 5) == 5


def test_a_buffer_smaller_than_the_largest_record_is_refused() -> None:
    assert refused(producer_settings({**BROKERS, "queue.buffering.max.kbytes": 100})[1]) == {
        "queue.buffering.max.kbytes"
    }
    assert not producer_settings({**BROKERS, "queue.buffering.max.kbytes": 100, "message.max.bytes": 50_000})[1]


def test_a_client_that_runs_out_of_retries_is_refused_since_it_could_not_tell_the_outcome() -> None:
    assert refused(producer_settings({**BROKERS, "retries": 5})[1]) == {"retries"}
    assert not producer_settings({**BROKERS, "retries": 2**31 - 1})[1]


@pytest.mark.parametrize(
    ("value", "policy"),
    [("beginning", "earliest"), ("latest", "latest"), (" Largest", "latest"), ("end", "latest"), ("error", "error")],
)
def test_the_ways_to_start_are_taken_under_each_of_their_names(value: str, policy: str) -> None:
    settings, problems = consumer_settings({**BROKERS, "group.id": "g", "auto.offset.reset": value}, 15.0)
    assert not problems
    assert start_policy(settings) == policy


def test_partitioner_is_left_alone() -> None:
    assert "partitioner" not in producer_settings(BROKERS)[0]


def test_B_C34_no_default_of_ours_conflicts_with_the_consumer_group_protocol() -> None:
    settings, problems = consumer_settings({**BROKERS, "group.id": "g", "group.protocol": "consumer"}, 15.0)
    assert not problems
    build_client(Consumer, settings)


def test_a_raising_error_callback_of_the_user_is_logged_and_not_raised_into_the_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def raises(_: Any) -> None:
        raise RuntimeError("mine")

    _, watch = build_client(Producer, {**BROKERS, "error_cb": raises})
    from confluent_kafka import KafkaError

    watch.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    assert "callback_failed" in caplog.text
    assert "cluster_unreachable" in caplog.text
