"""The orders. Pure: the same seed and number give the same order, so a restarted producer goes on where it was."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from confluent_kafka import Message

TOPIC = "orders"
PARTITIONS = 6
DEAD_LETTER_TOPIC = "orders.dlq"
ID_HEADER = "order"
_CUSTOMERS = 200
_NOT_AN_ORDER = b"\x00\xffthis is not an order"


class Order(NamedTuple):
    """`id` is its number and the attempt to place it, as in "17/1": the application's own handle on duplicates."""

    id: str
    key: str
    value: bytes


def make_order(seed: int, number: int, attempt: int, orders: int) -> Order:
    """Order `number` of 1 to `orders`. One of them, by the seed, is a record that no handler can read."""
    draw = random.Random(f"{seed}/{number}")
    key = f"customer-{draw.randrange(_CUSTOMERS)}"
    content = {"order": number, "customer": key, "item": f"item-{draw.randrange(1_000)}", "pieces": draw.randint(1, 9)}
    value = _NOT_AN_ORDER if number == poison_number(seed, orders) else json.dumps(content).encode()
    return Order(f"{number}/{attempt}", key, value)


def poison_number(seed: int, orders: int) -> int:
    return random.Random(f"{seed}/poison").randint(1, orders)


def order_id(message: Message) -> str:
    """The order's id, from the header that the producer set. A dead letter keeps it."""
    for pair in message.headers() or ():
        if pair[0] == ID_HEADER and isinstance(pair[1], bytes):
            return pair[1].decode()
    return f"no order id at {message.topic()}[{message.partition()}]@{message.offset()}"
