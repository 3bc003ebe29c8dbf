"""Who takes part, and where each one lives."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.common.contestants import Contestant as BaseContestant
from benchmarks.consumer.peers.base import Peer
from benchmarks.consumer.setup import Setup
from benchmarks.producer.environment import QUIX

OURS, BASE = "safekafka", "raw-consume"  # every ratio is to the base
POLL, SAFE_FASTSTREAM = "raw-poll", "faststream"
STEADY = "raw-consume-tuned"  # no pauses of the client in it: it tells how many records the raw loops and ours handle
PAIR = (OURS, BASE)  # run one right after the other in each round


@dataclass(frozen=True)
class Contestant(BaseContestant):
    clusters: tuple[str, ...] = ("mock", "real")

    def open(self, setup: Setup) -> Peer:
        peer: Peer = self.load_from("benchmarks.consumer.peers")(setup)
        return peer


_LIST = (
    Contestant(
        OURS,
        "SafeConsumer.run",
        "safe:One",
        "safekafka",
        "`run(handler)`, a function; commits every second",
        as_many_as_base=True,
    ),
    Contestant(
        "safekafka-batches",
        "SafeConsumer.run_batches",
        "safe:Batches",
        "safekafka",
        "`run_batches(handler, max_records=500)`",
        as_many_as_base=True,
    ),
    Contestant("safekafka-async", "SafeConsumer.run, async", "safe:Async", "safekafka", "`run(handler)`, a coroutine"),
    Contestant("safekafka-key", "SafeConsumer.run, by key", "safe:ByKey", "safekafka", '`order="key", concurrency=8`'),
    Contestant(
        BASE,
        "raw consume(500)",
        "raw:Consume",
        "confluent-kafka",
        "`consume(500)`, an asynchronous commit a batch",
        as_many_as_base=True,
    ),
    Contestant(
        POLL,
        "raw poll()",
        "raw:Poll",
        "confluent-kafka",
        "`poll()`, auto-commit: commits what was taken, handled or not",
        as_many_as_base=True,
    ),
    Contestant(
        STEADY,
        "raw consume(500), tuned",
        "raw:Tuned",
        "confluent-kafka",
        "as raw consume(500), with SafeConsumer's `fetch.queue.backoff.ms` of 50 instead of the client's 1000",
        as_many_as_base=True,
    ),
    Contestant(
        "raw-poll-tuned",
        "raw poll(), tuned",
        "raw:TunedPoll",
        "confluent-kafka",
        "as raw poll(), with the same 50",
        as_many_as_base=True,
    ),
    Contestant(
        "raw-sync",
        "raw, commit a record",
        "raw:SyncCommit",
        "confluent-kafka",
        "`poll()`, a synchronous commit of each record",
    ),
    Contestant(
        "aioconsumer",
        "AIOConsumer",
        "aioconsumer:Aioconsumer",
        "confluent-kafka",
        "`await consume(500)`, an asynchronous commit a batch",
    ),
    Contestant(
        "aiokafka",
        "aiokafka",
        "aiokafka_client:Aiokafka",
        "aiokafka",
        "`getmany(max_records=500)`, a commit a batch",
    ),
    Contestant(
        SAFE_FASTSTREAM,
        "FastStream, safe mode",
        "faststream_client:Faststream",
        "faststream",
        "`ack_policy=NACK_ON_ERROR`, one record at a time, acknowledged after its handler",
    ),
    Contestant(
        "quix",
        "Quix Streams",
        "quix:Quix",
        "quixstreams",
        "`dataframe(topic).apply(handler)`, commits every 5 s; on the older confluent-kafka that it demands",
        environment=QUIX,
        clusters=("real",),  # it asks the admin API for the topic, which mock brokers don't have
    ),
)
CONTESTANTS = {contestant.name: contestant for contestant in _LIST}
