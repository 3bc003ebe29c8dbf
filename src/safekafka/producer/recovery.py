"""Putting right what goes wrong between a producer and its client, on the delivery thread.

Replacing the client (P6): nothing is handed over until every record with the client has its report, or the time for
that is over; then a new client, and what was not delivered goes first, in order. `enable.gapless.guarantee` makes the
client stop in this way at a batch that is refused for good; without it the batches behind would pass it by. A verdict
on a batch is not one on a record, so its records are sent again in halves, and the last suspect alone (`held.Care`).

A topic that refuses records waits, and its oldest record is sent alone, as a probe, after growing pauses; other topics
flow.

The first record of a client in each partition goes alone (`known.py`); those behind it wait in lines of their own.

Threads and locks: see `direct.py`, of whose state this is the other half; all of it runs on the delivery thread.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from confluent_kafka import KafkaError, KafkaException, Producer

from safekafka.client import ClusterWatch, let_go
from safekafka.errors import DeliveryError, DeliveryFailed, ProducerFatalError
from safekafka.observe import Event, emit
from safekafka.producer.alone import Alone, Answer
from safekafka.producer.held import PAUSE_SECONDS, Care
from safekafka.producer.way import PURGE_SECONDS
from safekafka.record import Fields, as_record
from safekafka.verdict import Verdict, judge, refusal_of

if TYPE_CHECKING:
    from safekafka.producer.direct import DirectDelivery, DirectReceipt

BUSY_POLL_SECONDS = 0.01  # while records are fed by the delivery thread
_FEED_RECORDS = 5_000  # in a turn: more than can come meanwhile, or the straight way would stay closed
FATAL_WAIT_SECONDS = 30.0  # requests in flight at a fatal error may still succeed; their reports are waited for
MAX_REBUILDS, REBUILD_WINDOW_SECONDS = 5, 60.0
_METADATA_SECONDS = 2.0
# What a client that breaks off says of the records that it still had; any other error is a broker's answer.
_BYSTANDERS = frozenset(
    {
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
        KafkaError._DESTROY,
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
    }
)


class Recovery:
    def __init__(self, delivery: DirectDelivery, make_client: Callable[[bool], tuple[Producer, ClusterWatch]]) -> None:
        self._delivery = delivery
        self.rebuilds = 0
        self.sent_again = 0
        self._care = Care()
        self._single = Alone(lambda: make_client(False)[0])  # for the last suspect of a refused batch
        self._probe = Alone(lambda: make_client(False)[0])  # for the oldest record of a blocked topic
        self._fatal_until: float | None = None
        self._rebuilt_at: deque[float] = deque(maxlen=MAX_REBUILDS)
        self._told_fatal = False

    def abandon(self) -> None:
        """Let the clients go that send single records, with what they still have."""
        self._single.abandon()
        self._probe.abandon()

    def wait_no_longer(self) -> None:
        """The client had its time: replace it without waiting for reports."""
        self._fatal_until = time.monotonic()

    def settle_returned(self) -> None:
        """With errors that don't stop the client: the topic's, or no verdict at all."""
        back = []
        while self._delivery._returned:
            receipt, error = self._delivery._returned.popleft()
            if receipt in self._delivery._open:
                failure = self._failure(receipt, error)
                if failure is None:
                    back.append((receipt, error))
                else:
                    self._delivery._end_now(receipt, failure)
        if back:
            with self._delivery._handing_over:
                self._delivery._gate = None
                for receipt, error in back:
                    self.block(receipt, error)
                self._delivery._put_back((receipt, True) for receipt, _ in back)

    def _failure(self, receipt: DirectReceipt, error: KafkaError) -> DeliveryError | None:
        """How the record ends by this error of a client that goes on. None: it waits for its topic."""
        fields = receipt.fields()
        verdict = self._verdict(receipt, error)
        if verdict is Verdict.TOPIC_BOUND or (verdict is Verdict.UNKNOWN and self._delivery.endless):
            return None
        if verdict is Verdict.RECORD_BOUND:
            return not_in_kafka(fields, refusal_of(error), error)
        return self._delivery._maybe_in_kafka(fields, f"{error.str()} ({error.name()})", error)

    def _verdict(self, receipt: DirectReceipt, error: KafkaError) -> Verdict:
        if error.code() == KafkaError.INVALID_TIMESTAMP and receipt.fields()[5] and not self._delivery.endless:
            return Verdict.RECORD_BOUND  # a timestamp that the program gave, not the host's clock
        return judge(error)

    def block(self, receipt: DirectReceipt, error: KafkaError) -> None:
        topic = receipt.fields()[0]
        if topic not in self._delivery._held.blocked:
            self._delivery._held.block(topic, error, time.monotonic())

    def replace_client(self) -> None:
        """One step of it; called at each turn until it is done."""
        fatal = self._delivery._fatal
        assert fatal is not None
        if self._fatal_until is None:
            self._fatal_until = time.monotonic() + FATAL_WAIT_SECONDS
        if len(self._delivery.client):
            # What such a client puts back into its queue it never sends again, and does not report by itself.
            self._delivery.client.purge(in_queue=True, in_flight=False, blocking=False)
            if time.monotonic() < self._fatal_until:
                return
            self.purge()
        own = fatal.code() == KafkaError._GAPLESS_GUARANTEE  # how we keep order, and no fault
        if not own and not self._may_rebuild(fatal):
            return
        client, _ = self._delivery._make_client(True)
        old = [self._delivery.client]
        with self._delivery._handing_over:
            self.forget_known()
            given_up, sent_again = self._take_back(own)
            self._delivery.client = client
            self._delivery._fatal = self._fatal_until = None
        self._delivery._take_out(receipt for receipt, _ in given_up)
        let_go(old)
        self._delivery._progress_at = time.monotonic()
        self.sent_again += sent_again
        if not own:
            self.rebuilds += 1
            emit(Event.CLIENT_REBUILT, error=fatal.name(), detail=fatal.str(), records_sent_again=sent_again)
        for receipt, error in given_up:
            cause = error or fatal
            why = f"the client broke off: {cause.str()} ({cause.name()})"
            self._delivery._end([(receipt, self._delivery._maybe_in_kafka(receipt.fields(), why, cause))])

    def _take_back(self, own: bool) -> tuple[list[tuple[DirectReceipt, KafkaError | None]], int]:
        """What the old client did not deliver comes back to our side. Returns what is given up instead, and how many
        records may be sent a second time."""
        errors = dict(self._delivery._returned)
        self._delivery._returned.clear()
        given_up: list[tuple[DirectReceipt, KafkaError | None]] = []
        back: list[tuple[DirectReceipt, bool]] = []
        suspects: list[DirectReceipt] = []
        sent_again = 0
        for receipt in self.with_client():
            error = errors.get(receipt)
            verdict = self._verdict(receipt, error) if error is not None else Verdict.UNKNOWN
            if verdict is Verdict.RECORD_BOUND:
                suspects.append(receipt)
                back.append((receipt, False))
            elif verdict is Verdict.TOPIC_BOUND and error is not None:
                self.block(receipt, error)
                back.append((receipt, True))
            elif verdict is Verdict.UNKNOWN and error is not None and error.code() not in _BYSTANDERS:
                if self._delivery.endless:
                    self.block(receipt, error)
                    back.append((receipt, True))
                else:
                    given_up.append((receipt, error))
            elif own or self._delivery._resend_after_fatal:
                sent_again += 1
                back.append((receipt, True))
            else:
                given_up.append((receipt, error))
        self._delivery._put_back(back)
        if suspects:
            self._care.batch_refused(len(suspects), suspects[-1]._sent_at)
        return given_up, sent_again

    def with_client(self) -> list[DirectReceipt]:
        """The open records that are with the main client, or just came back from it; oldest first."""
        elsewhere = (self._single.receipt, self._probe.receipt)
        return [
            receipt
            for receipt in list(self._delivery._open)
            if receipt not in self._delivery._held and receipt not in elsewhere
        ]

    def _may_rebuild(self, fatal: KafkaError) -> bool:
        """Raises when new clients do not help; with a spool they are only made at longer intervals."""
        now = time.monotonic()
        recent = [at for at in self._rebuilt_at if now - at < REBUILD_WINDOW_SECONDS]
        if len(recent) < MAX_REBUILDS:
            self._rebuilt_at.append(now)
            return True
        if not self._told_fatal:
            emit(Event.PRODUCER_FATAL, error=fatal.name(), detail=fatal.str())
            self._told_fatal = True
        if self._delivery.endless:
            return False
        raise ProducerFatalError(
            f"{MAX_REBUILDS} new clients within {REBUILD_WINDOW_SECONDS:.0f} s did not help: {fatal.str()} "
            f"({fatal.name()})"
        )

    def purge(self) -> None:
        self._delivery.client.purge()
        give_up = time.monotonic() + PURGE_SECONDS
        while len(self._delivery.client) and time.monotonic() < give_up:
            self._delivery._serve(BUSY_POLL_SECONDS, at_once=False)

    def feed(self) -> None:
        """Hand held records to the client, in order; back to the straight way when none is left."""
        for _ in range(_FEED_RECORDS):
            with self._delivery._handing_over:
                receipt = self._next()
                if receipt is None:
                    return
                topic, value, key, headers, _, timestamp = fields = receipt.to_send()
                known = self._delivery._known
                partition, place = known.way(fields)
                if place is not None:
                    if place in known.first:
                        self._delivery._held.park(receipt, place)
                        continue
                    known.first[place] = True
                report = self._delivery._report_to(receipt, place)
                try:
                    self._delivery.client.produce(topic, value, key, partition, report, None, timestamp, headers)
                    self._delivery._held.remove(receipt)
                    if self._care.limit is not None:
                        self._care.left -= 1
                    continue
                except BufferError:
                    known.first.pop(place, None)
                    if len(self._delivery.client):  # else it alone is too much for the client's buffer
                        return
                    error = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, "larger than the client's whole buffer")
                except KafkaException as refused:
                    known.first.pop(place, None)
                    error = refused.args[0]
                if judge(error) is Verdict.FATAL:
                    self._delivery._on_fatal(error)
                    return
                failure = self._failure(receipt, error)
                if failure is None:
                    self.block(receipt, error)
                    continue
                self._delivery._held.remove(receipt)
            self._delivery._end_now(receipt, failure)

    def _next(self) -> DirectReceipt | None:
        """The record to hand over now, if there is one. Under `_handing_over`."""
        held, care = self._delivery._held, self._care
        receipt = held.first()
        with_client = len(self._delivery.client)
        if self._single.receipt is not None or (self._delivery._stalled and with_client):
            return None
        if care.limit is not None and care.left == 0:
            if with_client:
                return None
            care.next_portion(receipt)
        if receipt is None:
            delivery = self._delivery
            idle = not held and not held.blocked and not delivery._passed_by
            if idle and not delivery._stalled and care.limit is None:
                delivery._gate = delivery.client.produce
                if delivery._fatal is not None or delivery._refusal is not None:  # who sets these closes it afterwards
                    delivery._gate = None
            return None
        if care.limit == 1:
            held.remove(receipt)
            self._single.send(receipt, receipt.to_send())
            care.left = 0
            return None
        return receipt

    def settle_first(self) -> None:
        """Records that went alone to a partition have their reports: those that wait behind them are next."""
        known, now = self._delivery._known, time.monotonic()
        with self._delivery._handing_over:
            places = known.settle()
            self._delivery._held.unpark(places)
        for topic in known.to_ask({topic for topic, _ in places}, now):
            try:
                partitions = self._delivery.client.list_topics(topic, _METADATA_SECONDS).topics[topic].partitions
            except (KafkaException, KeyError):
                continue  # the next record goes alone too, and then we ask again
            with_leader = [number for number, partition in partitions.items() if partition.leader >= 0]
            with self._delivery._handing_over:
                known.learned(topic, partitions, with_leader, now)

    def forget_known(self) -> None:
        """By now a broker may have forgotten our producer id."""
        with self._delivery._handing_over:
            self._delivery._known = self._delivery._new_known()
            self._delivery._held.unpark()

    def hear_alone(self) -> None:
        """What became of the records that go alone; the next probe of a blocked topic."""
        suspect = self._single.receipt
        if suspect is not None and (answer := self._heard(self._single)) is not None:
            if answer.error is not None:
                verdict = judge(answer.error)
                if verdict is Verdict.RECORD_BOUND:
                    self._care.one_refused()
                elif verdict is Verdict.FATAL:
                    self._may_rebuild(answer.error)
            self._settle_answer(suspect, answer)
        probe = self._probe.receipt
        if probe is not None and (answer := self._heard(self._probe)) is not None:
            topic = probe.fields()[0]
            self._settle_answer(probe, answer)
            if answer.message is not None:
                with contextlib.suppress(KafkaException):  # or the client would go on refusing by what it remembers
                    self._delivery.client.list_topics(topic, _METADATA_SECONDS)
                with self._delivery._handing_over:
                    self._delivery._held.unblock(topic)
                emit(Event.TOPIC_UNBLOCKED, topic=topic)
        if self._probe.receipt is None:
            self._send_probe()

    def _heard(self, alone: Alone) -> Answer | None:
        if alone.receipt not in self._delivery._open:  # its time was over meanwhile
            alone.abandon()
            return None
        return alone.answer(BUSY_POLL_SECONDS / 2)

    def _settle_answer(self, receipt: DirectReceipt, answer: Answer) -> None:
        if answer.message is not None:
            receipt._report(None, answer.message)
            return
        error = cast(KafkaError, answer.error)
        fatal = judge(error) is Verdict.FATAL
        failure = None if fatal else self._failure(receipt, error)
        unknown_partition = error.code() == KafkaError._UNKNOWN_PARTITION and not self._delivery.endless
        if unknown_partition and self._lacks_partition(receipt.fields()):
            failure = not_in_kafka(receipt.fields(), no_such_partition(receipt.fields()), error)
        if failure is not None:
            self._delivery._end_now(receipt, failure)
            return
        with self._delivery._handing_over:
            if not fatal or receipt.fields()[0] in self._delivery._held.blocked:
                self._delivery._held.block(receipt.fields()[0], error, time.monotonic())
            self._delivery._put_back([(receipt, True)])

    def _lacks_partition(self, fields: Fields) -> bool:
        """Whether the topic is there, but not the partition that the program chose. The client says "unknown partition"
        of a deleted topic as well."""
        try:
            topic = self._delivery.client.list_topics(fields[0], _METADATA_SECONDS).topics[fields[0]]
        except KafkaException:
            return False
        return topic.error is None and bool(topic.partitions) and fields[4] not in (-1, *topic.partitions)

    def _send_probe(self) -> None:
        now = time.monotonic()
        due = [topic for topic, blocked in self._delivery._held.blocked.items() if now >= blocked.not_before]
        with_client = {receipt.fields()[0] for receipt in self.with_client()} if due else set()
        looked = time.monotonic() - now  # it takes its time with many records: not more than a tenth of all
        with self._delivery._handing_over:
            for topic in due:
                receipt = self._delivery._held.first(topic)
                if receipt is None:  # all of its records have ended
                    self._delivery._held.unblock(topic)
                elif topic in with_client:  # those are older, or will come back themselves
                    self._delivery._held.blocked[topic].not_before = now + max(PAUSE_SECONDS[0], 10 * looked)
                else:
                    self._delivery._held.remove(receipt)
                    self._probe.send(receipt, receipt.to_send())
                    return
        if not self._delivery._held.blocked:
            self._probe.abandon()

    def announce_blocked(self) -> None:
        for topic, blocked in list(self._delivery._held.blocked.items()):
            if not blocked.announced:
                blocked.announced = True
                emit(Event.TOPIC_BLOCKED, topic=topic, error=blocked.error.name(), detail=blocked.error.str())


def not_in_kafka(fields: Fields, why: str, error: KafkaError | None = None) -> DeliveryFailed:
    return DeliveryFailed(f"record for topic {fields[0]!r} is not in Kafka: {why}", as_record(fields), error)


def no_such_partition(fields: Fields) -> str:
    return (
        f"topic {fields[0]!r} has no partition {fields[4]}: leave partition out to let the partitioner choose, or "
        "add partitions to the topic"
    )
