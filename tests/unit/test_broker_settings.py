"""The three layers of broker settings, and the compose file that is the first of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from safekafka.testing.broker_settings import (
    ADDRESSES_AND_PATHS,
    CONTROLLER_ID,
    TEST_SPEED,
    Node,
    as_properties_file,
    broker_properties,
    compose_text,
    durability,
    merged,
    property_name,
    scaled,
)

NEVER = str(2**63 - 1)


@pytest.fixture
def compose() -> dict:
    return yaml.safe_load(compose_text())


def node(node_id: int, roles: str = "broker,controller") -> Node:
    return Node(node_id, roles, 19000 + node_id, 19500 + node_id, Path(f"/data-{node_id}"))


def test_compose_file_holds_three_official_brokers_each_with_health_check_and_volume(compose: dict) -> None:
    services = compose["services"]
    assert list(services) == ["kafka-1", "kafka-2", "kafka-3"]
    for name, service in services.items():
        assert service["image"] == "apache/kafka:4.3.1"
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["volumes"] == [f"{name}:{service['environment']['KAFKA_LOG_DIRS']}"]
        assert name in compose["volumes"]
        assert service["environment"]["KAFKA_PROCESS_ROLES"] == "broker,controller"


def test_compose_brokers_are_told_apart_and_belong_to_one_cluster(compose: dict) -> None:
    environments = [service["environment"] for service in compose["services"].values()]
    assert [e["KAFKA_NODE_ID"] for e in environments] == ["1", "2", "3"]
    assert len({e["CLUSTER_ID"] for e in environments}) == 1
    assert len({e["KAFKA_CONTROLLER_QUORUM_VOTERS"] for e in environments}) == 1


def test_compose_brokers_are_reachable_from_the_host_and_between_containers(compose: dict) -> None:
    for service in compose["services"].values():
        environment = service["environment"]
        advertised = dict(entry.split("://") for entry in environment["KAFKA_ADVERTISED_LISTENERS"].split(","))
        assert advertised["INTERNAL"] == f"{service['hostname']}:9092"
        bound = dict(entry.split("://") for entry in environment["KAFKA_LISTENERS"].split(","))
        [published] = service["ports"]
        address, host_port, container_port = published.split(":")
        assert address == "127.0.0.1"  # nobody else: the listeners ask for no password
        assert advertised["HOST"] == f"localhost:{host_port}"
        assert bound["HOST"] == f"0.0.0.0:{container_port}"


def test_compose_file_says_what_durability_rests_on() -> None:
    assert durability(compose_text()) == {
        "default.replication.factor": "3",
        "min.insync.replicas": "2",
        "unclean.leader.election.enable": "false",
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": "3",
        "transaction.state.log.replication.factor": "3",
        "transaction.state.log.min.isr": "2",
        "share.coordinator.state.topic.replication.factor": "3",
        "share.coordinator.state.topic.min.isr": "2",
        "log.flush.interval.messages": NEVER,
        "log.flush.interval.ms": NEVER,
    }


def test_no_durability_setting_is_in_the_test_speed_layer() -> None:
    assert not TEST_SPEED.keys() & durability(compose_text()).keys()
    # Nor one that the compose file happens not to mention.
    for forbidden in ("replication.factor", "min.isr", "insync", "unclean", "flush", "auto.create", "required.acks"):
        assert not [key for key in TEST_SPEED if forbidden in key]


def test_no_address_or_path_is_in_the_test_speed_layer() -> None:
    assert not TEST_SPEED.keys() & ADDRESSES_AND_PATHS
    assert not durability(compose_text()).keys() & ADDRESSES_AND_PATHS


def test_every_node_gets_the_durability_layer_a_dedicated_controller_included() -> None:
    durable = durability(compose_text())
    controller = node(CONTROLLER_ID, "controller")
    for each in (node(1, "broker"), node(2), controller):
        properties = merged(each, [controller], durable, {})
        assert durable.items() <= properties.items()


def test_addresses_of_the_compose_file_are_replaced_and_nothing_else_is() -> None:
    properties = merged(node(2), [node(1), node(2)], durability(compose_text()), {})
    assert properties["listeners"] == "CLIENT://127.0.0.1:19002,CONTROLLER://127.0.0.1:19502"
    assert properties["advertised.listeners"] == "CLIENT://127.0.0.1:19002"
    assert properties["controller.quorum.voters"] == "1@127.0.0.1:19501,2@127.0.0.1:19502"
    assert properties["log.dirs"] == "/data-2"
    assert properties.keys() - TEST_SPEED.keys() - durability(compose_text()).keys() == ADDRESSES_AND_PATHS


def test_a_dedicated_controller_has_no_client_listener() -> None:
    controller = node(CONTROLLER_ID, "controller")
    properties = merged(controller, [controller], {}, {})
    assert properties["listeners"] == "CONTROLLER://127.0.0.1:19600"
    assert "advertised.listeners" not in properties


def test_settings_of_the_caller_win() -> None:
    assert merged(node(1), [node(1)], {"min.insync.replicas": "2"}, {"min.insync.replicas": "1"})[
        "min.insync.replicas"
    ] == ("1")


@pytest.mark.parametrize(
    ("brokers", "replicas", "min_isr"), [(1, "1", "1"), (2, "2", "2"), (3, "3", "2"), (5, "3", "2")]
)
def test_a_smaller_cluster_has_no_more_replicas_than_brokers(brokers: int, replicas: str, min_isr: str) -> None:
    layer = scaled(durability(compose_text()), brokers)
    assert layer["offsets.topic.replication.factor"] == layer["default.replication.factor"] == replicas
    assert layer["min.insync.replicas"] == layer["transaction.state.log.min.isr"] == min_isr
    assert layer["unclean.leader.election.enable"] == "false"


def test_services_that_promise_different_things_are_refused() -> None:
    text = """
services:
  a: {environment: {KAFKA_NODE_ID: 1, KAFKA_MIN_INSYNC_REPLICAS: 2}}
  b: {environment: {KAFKA_NODE_ID: 2, KAFKA_MIN_INSYNC_REPLICAS: 1}}
"""
    with pytest.raises(ValueError, match=r"a and b differ in min\.insync\.replicas$"):
        durability(text)


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("KAFKA_LOG_DIRS", "log.dirs"),
        ("KAFKA_MIN_INSYNC_REPLICAS", "min.insync.replicas"),
        ("KAFKA_FOO__BAR", "foo_bar"),
        ("KAFKA_FOO___BAR", "foo-bar"),
        ("KAFKA_LISTENER_NAME_INTERNAL_SCRAM___SHA___256_X__Y", "listener.name.internal.scram-sha-256.x_y"),
    ],
)
def test_environment_is_translated_as_the_official_image_does(variable: str, name: str) -> None:
    assert property_name(variable) == name


def test_what_is_meant_for_the_image_itself_does_not_reach_the_broker() -> None:
    environment = {"CLUSTER_ID": "x", "KAFKA_HEAP_OPTS": "-Xmx1g", "KAFKA_OPTS": "", "KAFKA_NODE_ID": 1}
    assert broker_properties(environment) == {"node.id": "1"}


def test_backslashes_survive_the_properties_file() -> None:
    assert as_properties_file({"log.dirs": r"C:\data"}) == "log.dirs=C:\\\\data\n"
