"""MockCluster: librdkafka's own mock brokers, in this process, started in milliseconds, with faults on command.

The brokers listen on real TCP ports of 127.0.0.1: any number of clients, of this and of other processes, connect to
`bootstrap_servers`. They run in the librdkafka that confluent-kafka itself has loaded, driven by ctypes.

Limits (for what they exclude, use the `KafkaCluster`):
- no admin API: create_topics, describe_configs and the like time out; use `create_topic()`. Unknown topics are created
  with four partitions by any client that allows it (a librdkafka producer does by default);
- nothing is replicated or stored: logs are in memory and trimmed at about 5 MB per partition; `acks` and min ISR mean
  nothing;
- transactions commit, but aborted records stay visible to `read_committed`, and the markers at their ends have no
  checksum: a consumer with `check.crcs=true` (as `read_log()` is) gets stuck there with `_BAD_MSG`;
- a broker that is down stays leader and coordinator of what it led: use `set_leader()` and `set_coordinator()`;
- a member's id is an address in memory, given to others when the member is gone: one that was thrown out of its group
  while it stood still may come back under the id of another. Such a one was seen to crash: told that it is the leader
  of no members, the assignor of cooperative-sticky fails (SIGSEGV, librdkafka 2.16);
- the brokers end with the process, at the latest. They are not taken down before it, so clients can drain at exit.

Threads: the brokers run on threads of librdkafka that never call into Python. Every method may be called from any
thread; one lock makes `close()` wait for the others, since the handles are freed there. After a fork the child has
`bootstrap_servers` only: `close()` does nothing there, the rest raises `ClosedError`.
"""

from __future__ import annotations

import ctypes
import enum
import os
import re
import socket
import stat
import threading
import weakref
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, cimpl, version

from safekafka.errors import ClosedError, SafeKafkaError

__all__ = ["ApiKey", "MockCluster", "MockRequest", "MockUnavailableError"]


class MockUnavailableError(SafeKafkaError, RuntimeError):
    """The installed confluent-kafka offers no mock brokers, or is built otherwise than this module knows."""


class ApiKey(enum.IntEnum):
    """Kafka's request types that its clients use, under Kafka's own names."""

    Produce = 0
    Fetch = 1
    ListOffsets = 2
    Metadata = 3
    OffsetCommit = 8
    OffsetFetch = 9
    FindCoordinator = 10
    JoinGroup = 11
    Heartbeat = 12
    LeaveGroup = 13
    SyncGroup = 14
    SaslHandshake = 17
    ApiVersions = 18
    InitProducerId = 22
    OffsetForLeaderEpoch = 23
    AddPartitionsToTxn = 24
    AddOffsetsToTxn = 25
    EndTxn = 26
    TxnOffsetCommit = 28
    SaslAuthenticate = 36
    ConsumerGroupHeartbeat = 68
    GetTelemetrySubscriptions = 71
    PushTelemetry = 72


class MockRequest(NamedTuple):
    """A request that a broker received. `api_key` compares with `ApiKey`; `received_at` with `time.monotonic()`."""

    broker_id: int
    api_key: int
    received_at: float


class HasRawClient(Protocol):
    """A `SafeProducer`, or anything else that stands around a client of confluent-kafka."""

    @property
    def raw_client(self) -> Producer | Consumer: ...


_REMEDY = "install the wheel: pip install --force-reinstall --only-binary=:all: 'confluent-kafka>=2.13'"
_ALL_BROKERS = _NO_BROKER = -1
_PRODUCER, _CONSUMER = 0, 1  # rd_kafka_type_t
_NAME_SIZE = 128  # of the array in rd_kafka_t that rd_kafka_name() points to

_pointer, _text, _int, _size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
_api_key = ctypes.c_int16
# name: (result, arguments). Without them ctypes would cut pointers to 32 bits.
_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "rd_kafka_conf_new": (_pointer, ()),
    "rd_kafka_conf_set": (_int, (_pointer, _text, _text, _text, _size)),
    "rd_kafka_conf_destroy": (None, (_pointer,)),
    "rd_kafka_new": (_pointer, (_int, _pointer, _text, _size)),
    "rd_kafka_destroy": (None, (_pointer,)),
    "rd_kafka_name": (_pointer, (_pointer,)),
    "rd_kafka_type": (_int, (_pointer,)),
    "rd_kafka_mem_free": (None, (_pointer, _pointer)),
    "rd_kafka_test_fatal_error": (_int, (_pointer, _int, _text)),
    "rd_kafka_mock_cluster_new": (_pointer, (_pointer, _int)),
    "rd_kafka_mock_cluster_destroy": (None, (_pointer,)),
    "rd_kafka_mock_cluster_bootstraps": (_text, (_pointer,)),
    "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, (_pointer, ctypes.c_int32)),
    "rd_kafka_mock_topic_create": (_int, (_pointer, _text, _int, _int)),
    "rd_kafka_mock_topic_set_error": (None, (_pointer, _text, _int)),
    "rd_kafka_mock_broker_set_down": (_int, (_pointer, ctypes.c_int32)),
    "rd_kafka_mock_broker_set_up": (_int, (_pointer, ctypes.c_int32)),
    "rd_kafka_mock_broker_set_rtt": (_int, (_pointer, ctypes.c_int32, _int)),
    "rd_kafka_mock_push_request_errors_array": (None, (_pointer, _api_key, _size, ctypes.POINTER(_int))),
    # Variadic, and has no array variant: exactly the fixed arguments are declared, since ctypes goes by their number.
    "rd_kafka_mock_broker_push_request_error_rtts": (_int, (_pointer, ctypes.c_int32, _api_key, _size)),
    "rd_kafka_mock_clear_request_errors": (None, (_pointer, _api_key)),
    "rd_kafka_mock_partition_set_leader": (_int, (_pointer, _text, ctypes.c_int32, ctypes.c_int32)),
    "rd_kafka_mock_coordinator_set": (_int, (_pointer, _text, _text, ctypes.c_int32)),
    "rd_kafka_mock_start_request_tracking": (None, (_pointer,)),
    "rd_kafka_mock_get_requests": (ctypes.POINTER(_pointer), (_pointer, ctypes.POINTER(_size))),
    "rd_kafka_mock_request_destroy_array": (None, (_pointer, _size)),
    "rd_kafka_mock_request_id": (ctypes.c_int32, (_pointer,)),
    "rd_kafka_mock_request_api_key": (_api_key, (_pointer,)),
    "rd_kafka_mock_request_timestamp": (ctypes.c_int64, (_pointer,)),
}


def load_librdkafka(extension: str = cimpl.__file__) -> ctypes.CDLL:
    """The librdkafka in use by confluent-kafka. Raises `MockUnavailableError`.

    A symbol looked up in the handle of confluent-kafka's extension module is found in the very library it was linked
    to, under whatever name and folder: no second librdkafka, whose structures might differ, can be hit.
    """
    try:
        library = ctypes.CDLL(extension)
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise MockUnavailableError(
            f"no mock brokers in the librdkafka that {extension} uses: {error}. Remedy: {_REMEDY}"
        ) from error
    return library


class MockCluster:
    """Mock brokers with ids from 1 to `brokers`. Started by `start()` or `with`; see the module for limits and threads.

    An `error` is a code of `confluent_kafka.KafkaError` (`KafkaError.NOT_ENOUGH_REPLICAS`); what librdkafka itself
    refuses (an unknown partition, a topic that exists) raises `KafkaException`. All waits are for milliseconds.
    """

    def __init__(self, brokers: int = 3) -> None:
        if brokers < 1:
            raise ValueError(f"brokers={brokers!r}: at least 1 is needed")
        self.brokers = brokers
        self._lock = threading.Lock()
        self._address: str | None = None
        self._cluster: int | None = None
        self._pid = os.getpid()
        self._destroy: weakref.finalize[Any, MockCluster] | None = None

    def start(self) -> MockCluster:
        """Starts the brokers, if they do not run yet. Raises `MockUnavailableError`."""
        if self._cluster is not None:  # asked before the lock, which another thread may have held at a fork
            return self
        with self._lock:
            if self._cluster is not None:
                return self
            self._library = library = load_librdkafka()
            host = _new_host(library)
            cluster: int | None = library.rd_kafka_mock_cluster_new(host, self.brokers)
            if cluster is None:
                library.rd_kafka_destroy(host)
                raise MockUnavailableError(f"librdkafka could not start {self.brokers} mock brokers on 127.0.0.1")
            # The default, 3 s, is what every first join of a group would wait.
            library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0)
            self._cluster, self._pid = cluster, os.getpid()
            self._address = library.rd_kafka_mock_cluster_bootstraps(cluster).decode()
            self._destroy = weakref.finalize(self, _destroy, library, host, cluster, self._pid)
            self._destroy.atexit = False  # clients may drain at exit; the process ends the brokers
            _running.add(self)
        return self

    def close(self) -> None:
        """Ends the brokers and forgets their logs. Does nothing the second time, and in a forked child."""
        if self._cluster is None or self._pid != os.getpid():
            return
        with self._lock:
            _running.discard(self)
            self._cluster = self._address = None
            if self._destroy is not None:
                self._destroy()

    def __enter__(self) -> MockCluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def bootstrap_servers(self) -> str:
        """For `bootstrap.servers` of clients in any process of this machine."""
        if self._address is None:
            raise ClosedError("the mock cluster is not running: start() it or use it by `with`")
        return self._address

    def create_topic(self, name: str, partitions: int = 1, replication_factor: int | None = None) -> None:
        """Creates the topic; by default replicated as often as the brokers allow, at most three times."""
        replicas = replication_factor if replication_factor is not None else min(3, self.brokers)
        self._checked("rd_kafka_mock_topic_create", name.encode(), partitions, replicas)

    def set_topic_error(self, topic: str, error: int | None) -> None:
        """Metadata requests answer `error` for the topic, until it is set to None."""
        self._call("rd_kafka_mock_topic_set_error", topic.encode(), error or 0)

    def set_broker_down(self, broker_id: int | None = None) -> None:
        """Cuts the broker's connections and refuses new ones; its port and its log stay its own. None: all brokers."""
        self._checked("rd_kafka_mock_broker_set_down", self._broker(broker_id))

    def set_broker_up(self, broker_id: int | None = None) -> None:
        """Accepts connections again. None: all brokers."""
        self._checked("rd_kafka_mock_broker_set_up", self._broker(broker_id))

    def set_rtt(self, broker_id: int | None, seconds: float) -> None:
        """The broker (None: every broker) holds each response back for so long; the request is carried out at once."""
        self._checked("rd_kafka_mock_broker_set_rtt", self._broker(broker_id), _milliseconds(seconds))

    def push_request_errors(self, api_key: int, *errors: int) -> None:
        """The next requests of this type, to any broker, are answered with these errors, one each, and not carried out.

        `KafkaError._TRANSPORT` cuts the connection instead of an answer. 0 lets one request through.
        """
        array = (_int * len(errors))(*errors)
        self._call("rd_kafka_mock_push_request_errors_array", api_key, len(errors), array)

    def push_broker_request_errors(self, broker_id: int, api_key: int, *errors: tuple[int, float]) -> None:
        """The same for one broker, each as (error, seconds before the answer); used before those of all brokers.

        (0, seconds) carries the request out and answers late: so the acknowledgement of a record in the log gets lost.
        """
        arguments = [_int(value) for error, rtt in errors for value in (error, _milliseconds(rtt))]
        function = "rd_kafka_mock_broker_push_request_error_rtts"
        self._checked(function, self._broker(broker_id), api_key, len(errors), *arguments)

    def clear_request_errors(self, api_key: int) -> None:
        """Forgets the pending errors of `push_request_errors()`; those of single brokers stay."""
        self._call("rd_kafka_mock_clear_request_errors", api_key)

    def set_leader(self, topic: str, partition: int, broker_id: int | None) -> None:
        """Moves the leader, with the log. None leaves the partition without one."""
        broker = _NO_BROKER if broker_id is None else self._broker(broker_id)
        self._checked("rd_kafka_mock_partition_set_leader", topic.encode(), partition, broker)

    def set_coordinator(self, key_type: str, key: str, broker_id: int) -> None:
        """Moves the coordinator of a "group" or a "transaction", `key` being its id."""
        arguments = key_type.encode(), key.encode(), self._broker(broker_id)
        self._checked("rd_kafka_mock_coordinator_set", *arguments)

    def start_request_tracking(self) -> None:
        """From now on requests are kept, in memory, for `requests()`."""
        self._call("rd_kafka_mock_start_request_tracking")

    def requests(self, api_key: int | None = None) -> list[MockRequest]:
        """The requests kept so far, in the order of arrival; of one type, or all."""
        count = _size()
        pointers = self._call("rd_kafka_mock_get_requests", ctypes.byref(count))
        library = self._library
        try:
            found = [
                MockRequest(
                    library.rd_kafka_mock_request_id(pointers[i]),
                    library.rd_kafka_mock_request_api_key(pointers[i]),
                    library.rd_kafka_mock_request_timestamp(pointers[i]) / 1e6,
                )
                for i in range(count.value)
            ]
        finally:
            library.rd_kafka_mock_request_destroy_array(pointers, count.value)
        return [request for request in found if api_key is None or request.api_key == api_key]

    @staticmethod
    def trigger_fatal_error(
        client: Producer | Consumer | HasRawClient,
        code: int = KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
        reason: str = "triggered by a test",
    ) -> None:
        """Puts the client into the fatal state, as if librdkafka had found the error. Works with any cluster.

        The client must not be closed by another thread meanwhile. Raises `KafkaException` if it is in that state.
        Don't `close()` a raw Consumer afterwards: in librdkafka 2.16.0 that never returns; drop the last reference.
        """
        raw = client if isinstance(client, (Producer, Consumer)) else client.raw_client
        library = load_librdkafka()
        _check("trigger_fatal_error", library.rd_kafka_test_fatal_error(_handle(library, raw), code, reason.encode()))

    def _broker(self, broker_id: int | None) -> int:
        if broker_id is None:
            return _ALL_BROKERS
        if not 1 <= broker_id <= self.brokers:
            raise ValueError(f"broker_id={broker_id!r}: the brokers are 1 to {self.brokers}")
        return broker_id

    def _call(self, function: str, *arguments: Any) -> Any:
        if self._pid != os.getpid():  # before the lock, as in start()
            raise ClosedError(f"the mock cluster belongs to process {self._pid}: here it can only be connected to")
        with self._lock:
            if self._cluster is None:
                raise ClosedError("the mock cluster is not running: start() it or use it by `with`")
            return getattr(self._library, function)(self._cluster, *arguments)

    def _checked(self, function: str, *arguments: Any) -> None:
        _check(f"{function}{arguments}", self._call(function, *arguments))


def _check(what: str, code: int) -> None:
    if code:
        raise KafkaException(KafkaError(code, f"{what}: {KafkaError(code).str()}"))


def _milliseconds(seconds: float) -> int:
    if seconds < 0:
        raise ValueError(f"seconds={seconds!r} must not be negative")
    return round(seconds * 1000)


def _new_host(library: ctypes.CDLL) -> int:
    """The client that the mock brokers need for their book-keeping. It connects to nothing."""
    reason = ctypes.create_string_buffer(512)
    settings = library.rd_kafka_conf_new()
    # Its log goes to stderr; a Python callback would be called from foreign threads, even while the interpreter ends.
    refused = library.rd_kafka_conf_set(settings, b"log_level", b"0", reason, len(reason))
    host: int | None = None if refused else library.rd_kafka_new(_PRODUCER, settings, reason, len(reason))
    if host is None:
        library.rd_kafka_conf_destroy(settings)
        raise MockUnavailableError(
            f"librdkafka refused the client that carries the mock brokers: {reason.value.decode()}"
        )
    return host


def _destroy(library: ctypes.CDLL, host: int, cluster: int, pid: int) -> None:
    if pid != os.getpid():  # a forked child has the handles, but not the threads that it would wait for
        return
    library.rd_kafka_mock_cluster_destroy(cluster)
    library.rd_kafka_destroy(host)


def _handle(library: ctypes.CDLL, client: Producer | Consumer) -> int:
    """The `rd_kafka_t *` of the client: the first field of confluent-kafka's `Handle` (its confluent_kafka.h).

    That is no public interface, so what is found there is looked at before it is used: an `rd_kafka_t` has its name,
    like "rdkafka#producer-1", at a fixed distance from its start, and reading there may be tried without a crash.
    """
    kind, type_name = (_PRODUCER, b"producer") if isinstance(client, Producer) else (_CONSUMER, b"consumer")
    found = ctypes.c_void_p.from_address(id(client) + object.__basicsize__).value
    if found is None:
        raise ClosedError(f"{client!r} is closed")
    name = _read_memory(library.rd_kafka_name(found), _NAME_SIZE).split(b"\0")[0]  # only computes the address
    if not re.fullmatch(rb".*#" + type_name + rb"-\d+", name) or library.rd_kafka_type(found) != kind:
        raise MockUnavailableError(
            f"confluent-kafka {version()} keeps its client elsewhere than this module knows: {client!r} can't "
            "be given a fatal error. Remedy: use the version that safekafka's constraints.txt names, and report this."
        )
    return found


def _read_memory(address: int, size: int) -> bytes:
    """Empty if there is no such memory: of a bad address the kernel tells by an error, where we would crash."""
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, (ctypes.c_char * size).from_address(address))
        return os.read(read_end, size)
    except OSError:
        return b""
    finally:
        os.close(read_end)
        os.close(write_end)


_running: weakref.WeakSet[MockCluster] = weakref.WeakSet()


def _close_inherited_sockets() -> None:
    """In a forked child: closes its copies of the brokers' sockets.

    With a copy left open, a broker that goes down would not free its port, so that librdkafka can't bind it again and
    ends the parent by an assertion; nor would the connections of its clients be cut.
    """
    ports = {int(server.rsplit(":")[-1]) for cluster in _running for server in cluster.bootstrap_servers.split(",")}
    for name in os.listdir("/dev/fd") if ports else ():
        descriptor = int(name)
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            probe = socket.socket(fileno=descriptor)
        except OSError:  # the descriptor of the listing itself
            continue
        if probe.family == socket.AF_INET and probe.getsockname()[1] in ports:
            probe.close()
        else:
            probe.detach()


os.register_at_fork(after_in_child=_close_inherited_sockets)
