"""KafkaCluster on real brokers: what the tests of everything else rely on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import AdminClient

from safekafka.testing import ExistingCluster, KafkaCluster, KafkaClusterError, broker_settings


def java_processes() -> list[psutil.Process]:
    """The brokers of all clusters of this process."""
    return [p for p in psutil.Process().children(recursive=True) if "kafka.Kafka" in " ".join(p.cmdline())]


def delivery_error(servers: str, topic: str, timeout_ms: int) -> KafkaError | None:
    """The outcome of one record sent with acks=all by a raw producer."""
    outcomes: list[KafkaError | None] = []
    producer = Producer(
        {"bootstrap.servers": servers, "acks": "all", "message.timeout.ms": timeout_ms, "retries": 0, "log_level": 0}
    )
    producer.produce(topic, b"value", partition=0, on_delivery=lambda error, _: outcomes.append(error))
    producer.flush(timeout_ms / 1000 + 10)
    return outcomes[0]


def test_three_brokers_with_ids_1_to_3_serve_clients(kafka_cluster: KafkaCluster) -> None:
    seen = AdminClient({"bootstrap.servers": kafka_cluster.bootstrap_servers}).list_topics(timeout=10).brokers
    assert sorted(seen) == [1, 2, 3]
    assert ",".join(f"{b.host}:{b.port}" for _, b in sorted(seen.items())) == kafka_cluster.bootstrap_servers


def test_settings_in_force_for_a_topic_are_those_of_the_compose_file(kafka_cluster: KafkaCluster, topic: str) -> None:
    durable = broker_settings.durability(broker_settings.compose_text())
    assert durable["min.insync.replicas"] == "2"
    # The topic-level names of the broker settings.
    for setting, broker_setting in (
        ("min.insync.replicas", "min.insync.replicas"),
        ("unclean.leader.election.enable", "unclean.leader.election.enable"),
        ("flush.messages", "log.flush.interval.messages"),
        ("flush.ms", "log.flush.interval.ms"),
    ):
        assert kafka_cluster.topic_setting(topic, setting) == durable[broker_setting]


def test_new_topic_has_all_its_replicas_in_sync_when_it_is_handed_out(kafka_cluster: KafkaCluster, topic: str) -> None:
    for partition in range(3):
        assert kafka_cluster.isr_of(topic, partition) == [1, 2, 3]
        assert kafka_cluster.leader_of(topic, partition) in (1, 2, 3)


def test_topic_settings_and_sizes_are_as_asked_for(kafka_cluster: KafkaCluster) -> None:
    kafka_cluster.create_topic("asked", partitions=2, replication_factor=2, config={"max.message.bytes": "12345"})
    try:
        assert len(kafka_cluster.isr_of("asked", 1)) == 2
        assert kafka_cluster.topic_setting("asked", "max.message.bytes") == "12345"
        with pytest.raises(KafkaClusterError, match="already exists"):
            kafka_cluster.create_topic("asked")
    finally:
        kafka_cluster.delete_topic("asked")
    with pytest.raises(KafkaClusterError, match="could not find asked"):
        kafka_cluster.isr_of("asked", 0, timeout=0.2)


def test_topics_are_not_created_by_accident(kafka_cluster: KafkaCluster) -> None:
    error = delivery_error(kafka_cluster.bootstrap_servers, "no-such-topic", 3000)
    assert error is not None
    seen = AdminClient({"bootstrap.servers": kafka_cluster.bootstrap_servers}).list_topics(timeout=10)
    assert "no-such-topic" not in seen.topics


def test_existing_cluster_gives_the_same_view(kafka_cluster: KafkaCluster) -> None:
    existing = ExistingCluster(kafka_cluster.bootstrap_servers)
    existing.wait_ready(timeout=10)
    existing.create_topic("existing", partitions=2)
    assert existing.isr_of("existing", 1) == kafka_cluster.isr_of("existing", 1) == [1, 2, 3]
    assert existing.leader_of("existing", 1) == kafka_cluster.leader_of("existing", 1)
    existing.delete_topic("existing")


@pytest.mark.kills_brokers
def test_killed_leader_is_replaced_and_comes_back_on_its_port_and_data(kafka_cluster: KafkaCluster, topic: str) -> None:
    servers = kafka_cluster.bootstrap_servers
    leader = kafka_cluster.leader_of(topic, 0)
    kafka_cluster.kill(leader)
    assert leader not in kafka_cluster.running()
    kafka_cluster.wait_isr(topic, 0, 2)
    assert kafka_cluster.leader_of(topic, 0) != leader
    assert delivery_error(servers, topic, 20_000) is None

    kafka_cluster.start(leader)
    kafka_cluster.wait_ready()
    kafka_cluster.wait_isr(topic, 0, 3)
    assert kafka_cluster.bootstrap_servers == servers
    assert kafka_cluster.running() == [1, 2, 3]


@pytest.mark.kills_brokers
def test_stopped_broker_hands_over_and_ends_gently(kafka_cluster: KafkaCluster, topic: str) -> None:
    leader = kafka_cluster.leader_of(topic, 0)
    kafka_cluster.stop(leader)
    assert "exit controlled shutdown" in kafka_cluster.log_tail(leader, lines=400)
    assert kafka_cluster.leader_of(topic, 0) != leader
    kafka_cluster.start(leader)
    kafka_cluster.wait_ready()


@pytest.mark.kills_brokers
def test_paused_leader_is_replaced_and_catches_up_when_resumed(kafka_cluster: KafkaCluster, topic: str) -> None:
    leader = kafka_cluster.leader_of(topic, 0)
    kafka_cluster.pause(leader)
    kafka_cluster.wait_isr(topic, 0, 2)
    assert kafka_cluster.leader_of(topic, 0) != leader
    kafka_cluster.resume(leader)
    kafka_cluster.wait_ready()
    kafka_cluster.wait_isr(topic, 0, 3)


@pytest.mark.kills_brokers
def test_topics_survive_the_kill_of_all_brokers_at_once(kafka_cluster: KafkaCluster, topic: str) -> None:
    for broker in (1, 2, 3):
        kafka_cluster.kill(broker)
    assert kafka_cluster.running() == []
    with pytest.raises(KafkaClusterError, match="no broker is running"):
        kafka_cluster.leader_of(topic, 0)
    for broker in (1, 2, 3):
        kafka_cluster.start(broker)
    kafka_cluster.wait_ready()
    for partition in range(3):
        kafka_cluster.wait_isr(topic, partition, 3)


@pytest.mark.kills_brokers
def test_heal_undoes_kill_pause_and_death_of_their_own(kafka_cluster: KafkaCluster, topic: str) -> None:
    kafka_cluster.kill(1)
    kafka_cluster.pause(2)
    kafka_cluster.heal()
    assert kafka_cluster.running() == [1, 2, 3]
    assert [kafka_cluster.isr_of(topic, p) for p in range(3)] == [[1, 2, 3]] * 3

    process = next(p for p in java_processes() if "broker-3/server.properties" in p.cmdline()[-1])
    process.kill()
    process.wait(10)
    with pytest.raises(KafkaClusterError, match="broker 3 ended on its own"):
        kafka_cluster.wait_ready(timeout=10)
    kafka_cluster.heal()
    assert kafka_cluster.running() == [1, 2, 3]


@pytest.mark.kills_brokers
def test_misused_faults_are_errors(kafka_cluster: KafkaCluster) -> None:
    with pytest.raises(KafkaClusterError, match="broker 1 cannot be started, it is running"):
        kafka_cluster.start(1)
    with pytest.raises(KafkaClusterError, match="broker 1 is not paused"):
        kafka_cluster.resume(1)
    with pytest.raises(ValueError, match="no broker 4: they are numbered 1 to 3"):
        kafka_cluster.kill(4)
    kafka_cluster.pause(1)
    with pytest.raises(KafkaClusterError, match="broker 1 is paused"):
        kafka_cluster.stop(1)
    kafka_cluster.kill(1)
    with pytest.raises(KafkaClusterError, match="broker 1 is not running"):
        kafka_cluster.kill(1)


def test_min_isr_is_enforced_when_two_brokers_die_beside_a_dedicated_controller(
    kafka_cluster_dedicated: KafkaCluster,
) -> None:
    cluster = kafka_cluster_dedicated
    cluster.create_topic("enforced")
    survivor = cluster.leader_of("enforced", 0)
    for broker in {1, 2, 3} - {survivor}:
        cluster.kill(broker)
    cluster.wait_isr("enforced", 0, 1)
    error = delivery_error(cluster.bootstrap_servers, "enforced", 20_000)
    assert error is not None
    assert error.code() in (KafkaError.NOT_ENOUGH_REPLICAS, KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND)

    cluster.heal()
    assert delivery_error(cluster.bootstrap_servers, "enforced", 20_000) is None


def test_broker_that_cannot_start_shows_the_end_of_its_log_and_leaves_nothing(tmp_path: Path) -> None:
    before = java_processes()
    with pytest.raises(KafkaClusterError, match=r"log\.retention\.hours") as caught:
        KafkaCluster(brokers=1, settings={"log.retention.hours": "a while"}, work_dir=tmp_path).start_all()
    assert "The end of" in str(caught.value)
    assert java_processes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_controller_that_overrides_the_brokers_min_isr_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap itself: with eligible leader replicas a controller without the setting turns it off for everybody."""
    merged = broker_settings.merged

    def without_min_isr_on_the_controller(node: broker_settings.Node, *layers: object) -> dict[str, str]:
        properties = merged(node, *layers)  # type: ignore[arg-type]
        if not node.is_broker:
            properties["min.insync.replicas"] = "1"
        return properties

    monkeypatch.setattr(broker_settings, "merged", without_min_isr_on_the_controller)
    with pytest.raises(KafkaClusterError, match=r"min\.insync\.replicas of a new topic is 1, .* set to 2"):
        KafkaCluster(brokers=2, controller="dedicated").start_all()


def test_logs_are_kept_where_asked_and_data_is_not(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("stays")
    with KafkaCluster(brokers=1, work_dir=tmp_path) as cluster:
        assert cluster.logs == tmp_path / "logs"
        assert "Kafka Server started" in (tmp_path / "logs" / "broker-1.log").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "mine"]
    assert (tmp_path / "logs" / "broker-1.log").exists()
    with pytest.raises(KafkaClusterError, match="not running"):
        cluster.start(1)


def test_forked_child_cannot_end_the_cluster_of_its_parent() -> None:
    with KafkaCluster(brokers=1) as cluster:
        child = os.fork()
        if child == 0:
            cluster.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert cluster.running() == [1]
        cluster.wait_ready(timeout=20)
        cluster.kill(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # nothing was installed
