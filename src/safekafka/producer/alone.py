"""Sends one record at a time, through a client of its own: what is refused here is refused for its own sake.

Used for a topic that refuses records (its oldest record is the probe) and for the last suspect of a refused batch. The
main client, with everybody else's records, is not disturbed by the refusal.

Thread: all on the delivery thread. The client is made when it is needed and dropped when it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from safekafka.client import let_go
from safekafka.record import Fields

if TYPE_CHECKING:
    from safekafka.producer.direct import DirectReceipt


class Answer(NamedTuple):
    """What became of the record: the client's message of its delivery, or the error."""

    message: Message | None
    error: KafkaError | None


class Alone:
    def __init__(self, make_client: Callable[[], Producer]) -> None:
        self._make_client = make_client
        self._client: Producer | None = None
        self._answer: Answer | None = None
        self.receipt: DirectReceipt | None = None  # of the record under way

    def send(self, receipt: DirectReceipt, fields: Fields) -> None:
        """Hand the record over; `answer` has the rest."""
        topic, value, key, headers, partition, timestamp = fields
        if self._client is None:
            self._client = self._make_client()
        self._answer = None
        self.receipt = receipt
        try:
            self._client.produce(topic, value, key, partition, self._report, None, timestamp, headers)
        except KafkaException as error:
            self._answer = Answer(None, error.args[0])
        except BufferError:  # nothing else is in it, so the record alone is too much
            self._answer = Answer(None, KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))

    def answer(self, seconds: float) -> Answer | None:
        """Wait for the answer, at most so long. None if there is none yet."""
        if self._client is None:
            return None
        if self._answer is None:
            try:
                self._client.flush(seconds)  # not poll(): the record need not wait for linger.ms
            except KafkaException as error:
                if self._answer is None:
                    self._answer = Answer(None, error.args[0])
        answer = self._answer
        if answer is not None:
            self.receipt = self._answer = None
            if answer.error is not None and answer.error.fatal():
                self._client = None
        return answer

    def abandon(self) -> None:
        """Give up what is on its way, and the client."""
        clients = [] if self._client is None else [self._client]
        if clients and self.receipt is not None:
            clients[0].purge()
        self._client = self._answer = self.receipt = None
        let_go(clients)

    def _report(self, error: KafkaError | None, message: Message) -> None:
        self._answer = Answer(None if error else message, error)
