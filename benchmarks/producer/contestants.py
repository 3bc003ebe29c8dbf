"""Who takes part, and where each one lives."""

from __future__ import annotations

from benchmarks.common.contestants import Contestant as BaseContestant
from benchmarks.common.setup import Setup
from benchmarks.producer.environment import QUIX
from benchmarks.producer.peers.base import Peer

BASE = "raw-callback"  # every ratio is to this one
PAIR = ("safekafka", BASE)  # run one right after the other in each round


class Contestant(BaseContestant):
    def open(self, setup: Setup) -> Peer:
        peer: Peer = self.load_from("benchmarks.producer.peers")(setup)
        return peer


_LIST = (
    Contestant(
        "safekafka",
        "SafeProducer.send",
        "safe:WithReceipts",
        "safekafka",
        "receipts dropped, then `flush()`",
        as_many_as_base=True,
    ),
    Contestant(
        "safekafka-produce",
        "SafeProducer.produce",
        "safe:DropIn",
        "safekafka",
        "the code of the raw client with callback, only the class exchanged",
        as_many_as_base=True,
    ),
    Contestant(
        "safekafka-many",
        "SafeProducer.send_many",
        "safe:ManyACall",
        "safekafka",
        "1,000 records a call, receipts dropped",
        as_many_as_base=True,
    ),
    Contestant(
        "raw",
        "raw, no callback",
        "raw:WithoutCallback",
        "confluent-kafka",
        "`produce()`, `poll()` when the buffer is full; nobody would learn of a failure",
        as_many_as_base=True,
    ),
    Contestant(
        BASE,
        "raw with callback",
        "raw:WithCallback",
        "confluent-kafka",
        "`produce(on_delivery=...)` and `poll(0)` per record",
        as_many_as_base=True,
    ),
    Contestant(
        "raw-future",
        "raw + Future",
        "raw:WithFuture",
        "confluent-kafka",
        "the same, the callback resolves a `concurrent.futures.Future` per record",
    ),
    Contestant(
        "quix",
        "Quix Streams",
        "quix:QuixProducer",
        "quixstreams",
        "`Application.get_producer()`, `produce(on_delivery=...)`; on the older confluent-kafka that it demands",
        environment=QUIX,
    ),
    Contestant(
        "aioproducer",
        "AIOProducer",
        "aioproducer:Aioproducer",
        "confluent-kafka",
        "`await produce()`, futures kept, `flush()`; its own batches of 1,000",
    ),
    Contestant(
        "faststream",
        "FastStream (confluent)",
        "faststream_client:Faststream",
        "faststream",
        "`publish()` awaited, 10,000 at once; it adds headers of its own",
    ),
    Contestant(
        "aiokafka",
        "aiokafka",
        "aiokafka_client:Aiokafka",
        "aiokafka",
        "`await send()`, futures kept, `flush()`",
    ),
    Contestant(
        "kafka-python",
        "kafka-python",
        "kafka_python:KafkaPython",
        "kafka-python",
        "`send()`, futures kept, `flush()`; with its optional crc32c",
    ),
)
CONTESTANTS = {contestant.name: contestant for contestant in _LIST}
