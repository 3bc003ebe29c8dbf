"""Builds the raw client: settings that it refuses become an `UnsafeConfigError`, its log lines and callbacks become
events.

Thread: `error_cb` and the user's callbacks run on whichever thread polls the client (the delivery, sender or poll
thread). No callback may raise into the client: one raising callback inside `consume()` loses the messages taken so far.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from safekafka.errors import SafeKafkaError, SettingProblem, UnsafeConfigError
from safekafka.observe import Event, emit
from safekafka.settings import Config, shown

_Client = TypeVar("_Client", Producer, Consumer)
_ISOLATED_CALLBACKS = ("stats_cb", "throttle_cb")
# librdkafka's own lines, hundreds in an outage. What matters of them is told by events; the lines are for debugging.
_bridge = logging.getLogger("safekafka.librdkafka")
_bridge.addFilter(lambda line: _demoted(line))


def _demoted(line: logging.LogRecord) -> bool:
    line.levelno, line.levelname = logging.DEBUG, "DEBUG"
    return _bridge.isEnabledFor(logging.DEBUG)


class _Producer(Producer):
    """The raw client, in a class that can be weakly referenced."""


class _Consumer(Consumer):
    """The raw client, in a class that can be weakly referenced."""


_clients: weakref.WeakSet[Producer | Consumer] = weakref.WeakSet()


def _keep_parents_clients() -> None:
    """In a forked child: librdkafka's threads stayed in the parent, and freeing its handle here crashes or hangs.

    So the handles are never freed, not even at exit: one reference more than anybody will ever give back.
    """
    global _forked
    _forked = True
    for client in list(_clients):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))


_SETTLE_SECONDS = 0.25
_LOOK_UP_SECONDS = 5.0
_made_at = -_SETTLE_SECONDS
_forked = False  # and not yet known to be able to look up an address


def _let_clients_settle() -> None:
    """Before a fork: a new client's threads look up the brokers' addresses, under a lock of the C library (glibc's
    `__check_pf`) that a fork does not renew. A child forked meanwhile could never look up an address."""
    while (left := _made_at + _SETTLE_SECONDS - time.monotonic()) > 0:  # others may make one meanwhile
        time.sleep(left)


def _look_up() -> None:
    with contextlib.suppress(OSError):
        socket.getaddrinfo("127.0.0.1", None, flags=socket.AI_ADDRCONFIG)


def _check_look_up() -> None:
    """In a forked child, before its first client: what `_let_clients_settle` can't rule out is no silence at least."""
    global _forked
    if not _forked:
        return
    probe = threading.Thread(target=_look_up, name="safekafka-look-up", daemon=True)
    probe.start()
    probe.join(_LOOK_UP_SECONDS)
    if probe.is_alive():
        raise SafeKafkaError(
            "this process can't look up an address, so no client could connect: it was forked while a thread of its "
            "parent looked one up, and the C library's lock of that stays locked here for good. Nothing was accepted. "
            "Remedy: end this process and fork again; or fork before the parent makes a producer or consumer; or start "
            "workers by multiprocessing's 'spawn' or 'forkserver'."
        )
    _forked = False


os.register_at_fork(before=_let_clients_settle, after_in_child=_keep_parents_clients)


class _Sink:
    """The logger given to the client. One that raises would end the thread that polls."""

    def __init__(self, logger: Any, heard: Callable[[str], None] | None = None) -> None:
        self._logger = logger
        self._heard = heard

    def log(self, *args: Any, **fields: Any) -> None:
        if self._heard is not None and args:
            self._heard(str(args[-1]))
        with contextlib.suppress(Exception):
            self._logger.log(*args, **fields)


class ClusterWatch:
    """Turns the client's error callback into one event when the cluster goes away and one when it is back.

    Owned by the polling thread of one client; `diagnosis()` may be asked for on any thread.
    """

    def __init__(self, bootstrap_servers: str, then: Callable[[KafkaError], None] | None) -> None:
        self.bootstrap_servers = bootstrap_servers
        self._then = then
        self._unreachable_since: float | None = None
        self._authentication_failed = False
        self.heartbeat_timed_out_at = 0.0  # the last of `group.protocol=consumer` that did (monotonic); 0: none

    def on_log(self, line: str) -> None:
        """The client tells of this in its log only, at the level of a notice."""
        if "Timed out ConsumerGroupHeartbeatRequest in flight" in line:
            self.heartbeat_timed_out_at = time.monotonic()

    @property
    def unreachable_since(self) -> float:
        """When the last broker went away (monotonic), if none has answered since; else 0."""
        return self._unreachable_since or 0.0

    def on_error(self, error: KafkaError) -> None:
        code = error.code()
        if code == KafkaError._ALL_BROKERS_DOWN:
            if self._unreachable_since is None:
                self._unreachable_since = time.monotonic()
                emit(
                    Event.CLUSTER_UNREACHABLE,
                    bootstrap_servers=self.bootstrap_servers,
                    remedy="check that the brokers run and that bootstrap.servers names them; nothing is lost "
                    "by waiting",
                )
        elif code in (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED):
            if not self._authentication_failed:
                self._authentication_failed = True
                emit(Event.AUTHENTICATION_FAILED, bootstrap_servers=self.bootstrap_servers, error=error.str())
        elif code not in (
            KafkaError._TRANSPORT,
            KafkaError._RESOLVE,
            KafkaError._TIMED_OUT,
        ):  # told by the events above
            emit(Event.CLIENT_ERROR, error=error.name(), detail=error.str(), fatal=error.fatal())
        if self._then is not None:
            isolated(self._then, "error_cb")(error)

    def alive(self) -> None:
        """A broker answered."""
        if self._unreachable_since is not None:
            seconds = time.monotonic() - self._unreachable_since
            self._unreachable_since = None
            emit(
                Event.CLUSTER_REACHABLE,
                bootstrap_servers=self.bootstrap_servers,
                after_seconds=round(seconds, 1),
            )
        self._authentication_failed = False

    def diagnosis(self) -> str:
        """What is known of the cluster, for an error message. Empty while nothing is wrong."""
        if self._authentication_failed:
            return f" The brokers of bootstrap.servers={self.bootstrap_servers!r} refused our credentials."
        since = self._unreachable_since
        if since is None:
            return ""
        seconds = time.monotonic() - since
        return (
            f" No broker of bootstrap.servers={self.bootstrap_servers!r} has answered for {seconds:.0f} s: "
            "check that the brokers run and that the address is theirs."
        )


def isolated(callback: Callable[..., Any], name: str) -> Callable[..., None]:
    """The callback with its exceptions logged instead of raised into the client."""

    def call(*args: Any) -> None:
        call_isolated(name, callback, *args)

    return call


def call_isolated(name: str, callback: Callable[..., Any], *args: Any) -> None:
    try:
        callback(*args)
    except BaseException as error:  # noqa: BLE001 - the client would swallow it, or lose messages by it
        ours = {"detail": str(error)} if isinstance(error, SafeKafkaError) else {}  # others' texts may hold values
        emit(Event.CALLBACK_FAILED, callback=name, error=type(error).__qualname__, **ours)


def let_go(clients: list[Producer]) -> None:
    """Drop the last references: librdkafka waits for its threads then, and a client that is ill may take its time."""
    if clients:
        try:
            threading.Thread(target=clients.clear, name="safekafka-let-go", daemon=True).start()
        except RuntimeError:  # no thread to be had, as at the interpreter's exit
            clients.clear()


def build_client(
    kind: type[_Client],
    settings: Config,
    problems: Sequence[SettingProblem] = (),
    watch: ClusterWatch | None = None,
) -> tuple[_Client, ClusterWatch]:
    """The client and its watch: the given one, where this client takes the place of another or stands beside it.

    Raises `UnsafeConfigError` with `problems` and with all that the client itself refuses."""
    watch = watch or ClusterWatch(str(settings.get("bootstrap.servers")), settings.get("error_cb"))
    complete = {**settings, "error_cb": watch.on_error}
    for name in _ISOLATED_CALLBACKS:
        if callable(complete.get(name)):
            complete[name] = isolated(complete[name], name)
    complete["logger"] = _Sink(complete.get("logger", _bridge), watch.on_log)
    if problems:
        raise UnsafeConfigError([*problems, *_refused_by_client(kind, settings)])
    _check_look_up()
    try:
        client: Any = (_Producer if kind is Producer else _Consumer)(complete)
        _clients.add(client)
        global _made_at
        _made_at = time.monotonic()
        return client, watch
    except (KafkaException, TypeError, ValueError) as error:
        found = _refused_by_client(kind, settings)
        raise UnsafeConfigError(found or [_combination(settings, error)]) from error


def admin_client(settings: Config) -> AdminClient:
    """Its log lines become debug lines of ours."""
    complete: dict[str, Any] = {**settings, "logger": _Sink(_bridge), "error_cb": lambda _: None}
    return AdminClient(complete)


def _refused_by_client(kind: type[_Client], settings: Config) -> list[SettingProblem]:
    """Each setting tried alone, without an address: the client names only the first one it refuses, and by its
    canonical name."""
    base: Config = {"group.id": "settings-check"} if kind is Consumer else {}
    problems = []
    for name, value in settings.items():
        if name in ("bootstrap.servers", "logger"):
            continue
        try:
            kind({**base, name: value, "logger": _bridge})
        except TypeError as error:
            problems.append(SettingProblem(name, shown(name, value), f"{error}.", "give a value of that type."))
        except KafkaException as error:
            reason = error.args[0].str().strip()
            if "No such" in reason:  # the value is not shown: a mistyped name of a password would show it
                remedy = "check the spelling; the names are librdkafka's (its CONFIGURATION.md)."
                problems.append(SettingProblem(name, "***", f"{reason}.", remedy))
            elif "configuration property" in reason:  # else it only misses its companions
                remedy = "give a value that the setting takes (librdkafka's CONFIGURATION.md)."
                problems.append(SettingProblem(name, shown(name, value), f"{reason}.", remedy))
    return problems


def _combination(settings: Config, error: Exception) -> SettingProblem:
    cause = error.args[0] if error.args else error
    reason = cause.str() if isinstance(cause, KafkaError) else str(error)
    return SettingProblem(
        ", ".join(sorted(settings)), "(together)", f"{reason}.", "change the settings that the reason names."
    )
