"""One Kafka process: its files, its storage format, its life from start to kill.

Who owns what: `KafkaCluster` holds its lock around each call that changes a `NodeProcess`, except `await_end()`, which
takes time. The process itself is a `Watched` one. A dead one keeps its files: it can be started again on its data.
"""

from __future__ import annotations

import base64
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safekafka.testing.broker_settings import Node, as_properties_file
from safekafka.testing.distribution import Distribution
from safekafka.testing.errors import KafkaClusterError
from safekafka.testing.watched import Watched

_FORMAT_TIMEOUT = 60.0
_KILL_TIMEOUT = 20.0


@dataclass(frozen=True)
class Launch:
    """How Java programs of this cluster are started."""

    distribution: Distribution
    heap: str
    scratch: Path  # the compression libraries unpack themselves into it, and a killed JVM leaves them behind
    options: Sequence[str] = ()

    def command(self, main: str, *arguments: str) -> list[str]:
        return [
            str(self.distribution.java),
            f"-Xmx{self.heap}",
            # Chosen for a quick start on few cores: no collector threads, and no second compiler. Measured for three
            # brokers on two cores: 12.2 s without TieredStopAtLevel=1, 7.4 s with it.
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:-UsePerfData",  # else a file in the system's temporary folder, which a killed JVM leaves behind
            f"-Djava.io.tmpdir={self.scratch}",
            # For slf4j-simple, which we fetch; and for log4j2 without a configuration file, as in an unpacked Kafka.
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=info",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
            "-Dlog4j2.level=INFO",
            *self.options,
            "-cp",
            self.distribution.class_path,
            main,
            *arguments,
        ]


@dataclass
class NodeProcess:
    """A node with its files in `folder`, its output in `log`."""

    node: Node
    folder: Path
    log: Path
    launch: Launch
    watched: Watched
    paused: bool = False
    _ending: bool = False
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def properties_file(self) -> Path:
        return self.folder / "server.properties"

    @property
    def name(self) -> str:
        return f"broker {self.node.node_id}" if self.node.is_broker else f"controller {self.node.node_id}"

    @property
    def started(self) -> bool:
        """Was started, and its end not awaited yet."""
        return self._process is not None

    @property
    def crashed(self) -> bool:
        """Ended, and not by us."""
        return self._process is not None and not self._ending and self._process.poll() is not None

    @property
    def running(self) -> bool:
        return self.started and not (self.paused or self._ending or self.crashed)

    def configure(self, properties: Mapping[str, str]) -> None:
        self.folder.mkdir()
        self.properties_file.write_text(as_properties_file(properties), encoding="utf-8")

    def start(self) -> None:
        if self.started:
            state = "paused: resume it" if self.paused else "running" if self.running else "ending or dead"
            raise KafkaClusterError(f"{self.name} cannot be started, it is {state}")
        command = self.launch.command("kafka.Kafka", str(self.properties_file))
        self._process = self.watched.spawn(command, log=self.log, cwd=self.folder)

    def signal_end(self, signum: signal.Signals) -> None:
        """Tell the process to end. `await_end()` has to follow."""
        if self._process is None:
            raise KafkaClusterError(f"{self.name} is not running")
        if self.paused and signum is not signal.SIGKILL:
            raise KafkaClusterError(f"{self.name} is paused, and would see the signal only when it is resumed")
        self._ending = True
        self._process.send_signal(signum)

    def await_end(self, timeout: float = _KILL_TIMEOUT) -> None:
        """Wait for the end, after which the node can be started again."""
        process = self._process
        if process is None:
            return
        try:
            self.watched.reap(process, timeout)
        except subprocess.TimeoutExpired:
            raise self.failure(f"did not end within {timeout:g} s") from None
        self._process, self.paused, self._ending = None, False, False

    def pause(self) -> None:
        if not self.running:
            raise KafkaClusterError(f"{self.name} is not running")
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        if self._process is None or not self.paused:
            raise KafkaClusterError(f"{self.name} is not paused")
        self._process.send_signal(signal.SIGCONT)
        self.paused = False

    def revive(self) -> bool:
        """Make it run, whatever it is doing now. False when it was running."""
        if self.running:
            return False
        if self.paused and not self._ending:
            self.resume()
            return True
        if self.started:
            self.signal_end(signal.SIGKILL)
            self.await_end()
        self.start()
        return True

    def log_tail(self, lines: int) -> str:
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - 400 * lines))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def failure(self, what: str, lines: int = 40) -> KafkaClusterError:
        return KafkaClusterError(f"{self.name} {what}. The end of {self.log}:\n{self.log_tail(lines)}")


def format_storage(nodes: Iterable[NodeProcess]) -> None:
    """Format the data folders of all nodes of a new cluster.

    Kafka's tool formats the first. What it wrote holds for all nodes of a fixed quorum but for two ids, so the others
    get copies: a JVM for each would take longer than the brokers' start.
    """
    first, *others = nodes
    cluster_id = _random_id()
    arguments = ("format", "--cluster-id", cluster_id, "--config", str(first.properties_file))
    command = first.launch.command("kafka.tools.StorageTool", *arguments)
    tool = first.watched.spawn(command, log=first.log, cwd=first.folder)
    try:
        first.watched.reap(tool, _FORMAT_TIMEOUT)
    except subprocess.TimeoutExpired:
        tool.kill()
        first.watched.reap(tool, _KILL_TIMEOUT)
    if tool.returncode != 0:
        raise first.failure(f"could not be formatted (exit status {tool.returncode})")
    for other in others:
        shutil.copytree(first.node.data, other.node.data)
        ids = {"cluster.id": cluster_id, "directory.id": _random_id(), "node.id": str(other.node.node_id)}
        meta = as_properties_file({"version": "1", **ids})
        (other.node.data / "meta.properties").write_text(meta, encoding="utf-8")


def _random_id() -> str:
    """A Kafka id: 16 random bytes in URL-safe base64. One that begins with a dash would be taken for an option."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes)[:22].decode()
        if not text.startswith("-"):
            return text
