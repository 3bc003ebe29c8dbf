"""Which client settings are enforced, defaulted or refused, each with its reason. Pure: no client, no I/O.

Names are librdkafka's. An alias counts as the setting it stands for, and the nested `default.topic.config` is flattened
first, so a weak setting can't slip in under another name. All problems are found in one pass and raised together.
Sources: librdkafka CONFIGURATION.md; KIP-679 (strongest delivery guarantee by default).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from safekafka.errors import SettingProblem

Config: TypeAlias = "dict[str, Any]"

# librdkafka's aliases of the settings that this page knows (CONFIGURATION.md, "Alias for ...").
_ALIASES = {
    "metadata.broker.list": "bootstrap.servers",
    "request.required.acks": "acks",
    "max.in.flight": "max.in.flight.requests.per.connection",
    "message.send.max.retries": "retries",
    "delivery.timeout.ms": "message.timeout.ms",
    "auto.commit.enable": "enable.auto.commit",
    "linger.ms": "queue.buffering.max.ms",
    "dr_cb": "on_delivery",
    "dr_msg_cb": "on_delivery",
}
_MAX_INT = 2**31 - 1
_SECRET = re.compile(r"^sasl\.|pass|secret|jaas|token|oauth|(^|\.)key(\.|$)|\.pem$", re.IGNORECASE)


@dataclass(frozen=True)
class _Rule:
    """`safe` decides about a given value; the value is taken over as it is when it passes."""

    safe: Callable[[Any], bool]
    reason: str
    remedy: str


def _as_bool(value: Any) -> bool | None:
    text = str(value).strip().lower()
    return True if text in ("true", "t", "1") else False if text in ("false", "f", "0") else None


def _as_int(value: Any) -> int | None:
    try:
        return int(str(value).strip())
    except ValueError:
        return None


def _is_true(value: Any) -> bool:
    return _as_bool(value) is True


def _is_false(value: Any) -> bool:
    return _as_bool(value) is False


def _never(_: Any) -> bool:
    return False


def _between(low: int, high: int) -> Callable[[Any], bool]:
    def inside(value: Any) -> bool:
        number = _as_int(value)
        return number is not None and low <= number <= high

    return inside


_PRODUCER_RULES = {
    "acks": _Rule(
        lambda value: str(value).strip().lower() in ("all", "-1"),
        "a record acknowledged by fewer than all in-sync replicas is lost when their brokers are.",
        "leave it out; acks=all is set for you.",
    ),
    "enable.idempotence": _Rule(
        _is_true,
        "without idempotence a retry can write a record twice or out of order.",
        "leave it out; it is on.",
    ),
    "max.in.flight.requests.per.connection": _Rule(
        _between(1, 5),
        "idempotence keeps order for at most 5 requests in flight.",
        "leave it out (5), or set 1 for the stricter choice.",
    ),
    "retries": _Rule(
        _between(_MAX_INT, _MAX_INT),
        "a client that runs out of retries can't tell whether the record is in Kafka.",
        "leave it out; retries are bounded by delivery_timeout= (seconds), and with a spool they never end.",
    ),
    "enable.gapless.guarantee": _Rule(
        _is_true,
        "a batch that a broker refuses would be overtaken by the records behind it.",
        "leave it out; it is on.",
    ),
    "message.timeout.ms": _Rule(
        _never,
        "a timeout inside the client duplicates and misreports records in an outage.",
        "leave it out and set delivery_timeout= (seconds) on SafeProducer; with a spool nothing expires.",
    ),
    "delivery.report.only.error": _Rule(
        _is_false, "successes would never be reported, so no receipt could resolve.", "leave it out."
    ),
    "transactional.id": _Rule(
        _never,
        "SafeProducer does not run transactions; the setting would make every send fail.",
        "leave it out.",
    ),
    "on_delivery": _Rule(
        _never,
        "delivery reports belong to the receipts.",
        "use receipt.add_done_callback(fn), receipt.result() or on_undelivered=.",
    ),
}

# Of auto.offset.reset: librdkafka has several names for each.
_START_POLICIES: Mapping[str, Literal["earliest", "latest", "error"]] = {
    "smallest": "earliest",
    "earliest": "earliest",
    "beginning": "earliest",
    "largest": "latest",
    "latest": "latest",
    "end": "latest",
    "error": "error",
}

_CONSUMER_RULES = {
    "enable.auto.commit": _Rule(
        _is_false,
        "auto-commit commits messages that were not handled yet; a crash then loses them.",
        "leave it out; offsets are committed after the handler succeeded.",
    ),
    "enable.auto.offset.store": _Rule(
        _is_false,
        "stored offsets are committed although the handler has not finished.",
        "leave it out; offsets are tracked per handled message.",
    ),
    "auto.offset.reset": _Rule(
        lambda value: str(value).strip().lower() in _START_POLICIES,
        "it is none of the ways to start that the client knows.",
        "leave it out (earliest), or set latest or error.",
    ),
    "check.crcs": _Rule(
        _is_true,
        "a message corrupted on the way would be handed to the handler as good.",
        "leave it out; it is on.",
    ),
}

_PRODUCER_SET = {
    "acks": "all",
    "enable.idempotence": True,
    # The client's own clock stays off: delivery_timeout is ours, and lies on the receipt.
    "message.timeout.ms": 0,
    # A batch that is refused stops the client instead of letting later batches pass it by: it is sent again first.
    "enable.gapless.guarantee": True,
    "allow.auto.create.topics": False,
}
_PRODUCER_DEFAULTS = {"queue.buffering.max.messages": 500_000}
_CONSUMER_SET = {"enable.auto.commit": False, "enable.auto.offset.store": False, "check.crcs": True}
_CONSUMER_DEFAULTS = {
    "auto.offset.reset": "earliest",
    "allow.auto.create.topics": False,
    # When enough is fetched ahead, the client looks again after so long; by its own 1000 a fast consumer stands still.
    "fetch.queue.backoff.ms": 50,
}

# Connection and security only, for a client of another kind: other settings mean nothing to it, or something else.
_CONNECTION = (
    "bootstrap.servers",
    "metadata.broker.list",
    "broker.address.",
    "client.",
    "enable.sasl.",
    "enable.ssl.",
    "https.",
    "oauth_cb",
    "sasl.",
    "security.",
    "socket.",
    "ssl.",
)

_POLL_INTERVAL = "max.poll.interval.ms"
DEFAULT_MAX_POLL_INTERVAL_MS = 300_000  # librdkafka's
FETCHED_AHEAD = "queued.max.messages.kbytes"
FETCHED_AHEAD_KB = 65_536  # librdkafka's


def message_max_bytes(settings: Mapping[str, Any]) -> int:
    """The largest record that the client takes, in bytes."""
    return _as_int(settings.get("message.max.bytes")) or 1_000_000  # librdkafka's default


def producer_settings(config: Mapping[str, Any]) -> tuple[Config, list[SettingProblem]]:
    """The settings for the raw producer, and every problem found in `config` (those settings are left out of the
    result)."""
    settings, problems = _judge(config, _PRODUCER_RULES, required=("bootstrap.servers",))
    if _as_bool(settings.pop("allow.auto.create.topics", False)) is not False:
        problems.append(
            SettingProblem(
                "allow.auto.create.topics",
                config.get("allow.auto.create.topics"),
                "a mistyped topic would be created with the broker's defaults, maybe a single replica.",
                "leave it out and create topics on purpose, with replication factor 3.",
            )
        )
    buffer_kbytes = _as_int(settings.get("queue.buffering.max.kbytes", 1_048_576))
    if buffer_kbytes is not None and buffer_kbytes * 1024 < message_max_bytes(settings):
        problems.append(
            SettingProblem(
                "queue.buffering.max.kbytes",
                buffer_kbytes,
                f"a record of message.max.bytes={message_max_bytes(settings)} would never find room.",
                "make the buffer larger than the largest record.",
            )
        )
    return {**_PRODUCER_DEFAULTS, **settings, **_PRODUCER_SET}, problems


def buffer_limits(settings: Mapping[str, Any]) -> tuple[int, int]:
    """The client's buffer: records (its 0 is "no limit"), bytes."""
    records = _as_int(settings.get("queue.buffering.max.messages", 100_000)) or _MAX_INT
    return records, (_as_int(settings.get("queue.buffering.max.kbytes", 1_048_576)) or 0) * 1024


def linger_seconds(settings: Mapping[str, Any]) -> float:
    """How long the client waits for a batch to fill."""
    return float(settings.get("queue.buffering.max.ms", 5)) / 1000


def max_in_flight(settings: Mapping[str, Any]) -> int | None:
    """Requests that may be on their way to a broker at once; None: the client's default."""
    return _as_int(settings.get("max.in.flight.requests.per.connection"))


def consumer_settings(config: Mapping[str, Any], drain_timeout: float) -> tuple[Config, list[SettingProblem]]:
    """The settings for the raw consumer, and every problem found. `drain_timeout` is in seconds."""
    settings, problems = _judge(config, _CONSUMER_RULES, required=("bootstrap.servers", "group.id"))
    interval_ms = _as_int(settings.get(_POLL_INTERVAL, DEFAULT_MAX_POLL_INTERVAL_MS))
    if interval_ms is not None and drain_timeout * 1000 >= interval_ms:
        problems.append(
            SettingProblem(
                _POLL_INTERVAL,
                interval_ms,
                f"a drain of drain_timeout={drain_timeout} s would outlast it, and the broker would take the "
                f"partitions away.",
                "make drain_timeout shorter, or max.poll.interval.ms longer.",
            )
        )
    return {**_CONSUMER_DEFAULTS, **settings, **_CONSUMER_SET}, problems


def poll_interval(settings: Mapping[str, Any]) -> float:
    """How many seconds a consumer may go without a poll before it leaves its group."""
    return (_as_int(settings.get(_POLL_INTERVAL)) or DEFAULT_MAX_POLL_INTERVAL_MS) / 1000


def start_policy(settings: Mapping[str, Any]) -> Literal["earliest", "latest", "error"]:
    """`auto.offset.reset` under its first name."""
    return _START_POLICIES[str(settings["auto.offset.reset"]).strip().lower()]


def positive(**numbers: Any) -> None:
    """Raise `ValueError` naming the argument that is not a finite number above 0."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r}: give a number greater than 0")


def whole(**numbers: Any) -> None:
    """Raise `ValueError` naming the argument that is not a whole number above 0."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: give a whole number greater than 0")


def shown(setting: str, value: Any) -> Any:
    """The value as it may appear in an error or a log line: secrets never do."""
    return "***" if _SECRET.search(setting) else value


def _judge(
    config: Mapping[str, Any], rules: Mapping[str, _Rule], required: tuple[str, ...]
) -> tuple[Config, list[SettingProblem]]:
    settings: Config = {}
    problems: list[SettingProblem] = []
    for given, value in _flat(config).items():
        name = _ALIASES.get(given, given)
        rule = rules.get(name)
        if rule is not None and not rule.safe(value):
            problems.append(SettingProblem(given, shown(given, value), rule.reason, rule.remedy))
        elif name in settings and settings[name] != value:
            problems.append(
                SettingProblem(
                    given,
                    shown(given, value),
                    f"it is another name of {name!r}, which is also given.",
                    "give one of the two.",
                )
            )
        else:
            settings[name] = value
    problems.extend(
        SettingProblem(name, settings.get(name), "it is required.", _REQUIRED[name])
        for name in required
        if not settings.get(name)
    )
    return settings, problems


_REQUIRED = {
    "bootstrap.servers": "give the brokers, as in 'kafka1:9092,kafka2:9092,kafka3:9092'.",
    "group.id": "name the consumer group; its committed offsets are kept under that name.",
}


def _flat(config: Mapping[str, Any]) -> Config:
    if not isinstance(config, Mapping):
        raise ValueError(f"config={config!r}: give a dict of settings, as in {{'bootstrap.servers': 'kafka1:9092'}}")
    nested = config.get("default.topic.config") or {}
    return {**nested, **{name: value for name, value in config.items() if name != "default.topic.config"}}


def connection_settings(settings: Mapping[str, Any]) -> Config:
    """Those that a client of another kind needs to reach the same cluster."""
    return {name: value for name, value in settings.items() if name.startswith(_CONNECTION)}
