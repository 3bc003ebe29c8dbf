"""A class data archive: what a JVM finds out about Kafka's classes at its start, kept so that later ones need not.

Measured for three brokers on two cores: up in 4.4 s with it, 7.4 s without. It is made once per user, Kafka and Java,
by running one broker to its end, and only ever an optimisation: without it, or with one that does not fit any more, a
JVM starts as usual.

Runs in the caller's thread, under a lock between processes; the training broker is a `Watched` process.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from safekafka.testing import broker_settings
from safekafka.testing.broker_settings import Node
from safekafka.testing.distribution import Distribution
from safekafka.testing.errors import KafkaClusterError
from safekafka.testing.node import Launch, NodeProcess, format_storage
from safekafka.testing.ports import free_ports
from safekafka.testing.watched import Watched

_log = logging.getLogger(__name__)
_TIMEOUT = 60.0  # seconds for each step; all of them together take 8 on two cores


def options(distribution: Distribution) -> tuple[str, ...]:
    """The JVM options that use the archive. Makes it first when there is none; no options when that fails."""
    if distribution.archives is None:
        return ()
    archive = distribution.archives / "kafka.jsa"
    if not archive.exists():
        try:
            distribution.archives.mkdir(exist_ok=True)
            with FileLock(distribution.archives / "lock", timeout=5 * _TIMEOUT):
                if not archive.exists():
                    _make(distribution, archive)
        except (OSError, subprocess.SubprocessError, KafkaClusterError) as error:
            _log.warning("brokers will start more slowly, no class data archive could be made: %s", error)
            return ()
    return (f"-XX:SharedArchiveFile={archive}",)


def _make(distribution: Distribution, archive: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="training-", dir=archive.parent, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        watched = Watched([folder])
        try:
            launch = Launch(distribution, "384m", folder)
            # The Java from pip comes without the archive of its own classes, on which ours builds. Ours keeps its path,
            # so it has to be at its place before.
            base = archive.with_name("java.jsa")
            _dump_java(launch, watched, folder / base.name)
            (folder / base.name).rename(base)
            dump = (f"-XX:SharedArchiveFile={base}", f"-XX:ArchiveClassesAtExit={folder / archive.name}")
            _run_one_broker(launch, dump, watched, folder)
            (folder / archive.name).rename(archive)
        finally:
            watched.close()


def _dump_java(launch: Launch, watched: Watched, target: Path) -> None:
    options = ["-Xshare:dump", "-XX:+UseSerialGC", "-XX:-UsePerfData", f"-XX:SharedArchiveFile={target}"]
    command = [str(launch.distribution.java), *options]
    process = watched.spawn(command, log=target.with_suffix(".log"), cwd=target.parent)
    watched.reap(process, _TIMEOUT)


def _run_one_broker(launch: Launch, dump: tuple[str, ...], watched: Watched, folder: Path) -> None:
    client_port, controller_port = free_ports(2)
    node = Node(1, "broker,controller", client_port, controller_port, folder / "data")
    broker = NodeProcess(node, folder / "broker", folder / "broker.log", launch, watched)
    durable = broker_settings.scaled(broker_settings.durability(broker_settings.compose_text()), 1)
    broker.configure(broker_settings.merged(node, [node], durable, {}))
    format_storage([broker])
    broker.launch = replace(launch, options=dump)
    broker.start()
    deadline = time.monotonic() + _TIMEOUT
    while "Kafka Server started" not in broker.log_tail(40):
        if broker.crashed or time.monotonic() > deadline:
            raise broker.failure("did not start for training")
        time.sleep(0.1)
    broker.signal_end(signal.SIGTERM)
    broker.await_end(_TIMEOUT)
