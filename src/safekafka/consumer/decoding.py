"""Messages with decoded keys and values, on the worker: a decoder may ask a schema registry, and take its time.

Bytes that can't be decoded are to blame themselves: no further attempt. A registry that is down is not the message's
fault: it is asked again, without counting, for `Retry(max_hold=...)` at most. Whatever happens to the message, its
bytes are put back: for the next attempt, and for the dead letter.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Iterator
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, TypeAlias

from confluent_kafka.serialization import Deserializer, MessageField, SerializationContext, SerializationError

from safekafka.consumer.attempt import Undecodable, Unusable
from safekafka.consumer.retry import RetryLater

if TYPE_CHECKING:
    from confluent_kafka import Message

Deserialize: TypeAlias = "Deserializer | Callable[[bytes | None], Any]"

_AGAIN_SECONDS = 1.0
# What decoders raise about the bytes. Anything else, as of a registry or a network, is none of theirs.
_OF_BYTES = (
    SerializationError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    AssertionError,
    struct.error,
)
_NOT_THERE = (404, 422)  # the registry answers, and knows no such schema


def decoding(
    handler: Callable[[Message], Any], key: Deserialize | None, value: Deserialize | None
) -> Callable[[Message], Any]:
    """The handler, for messages whose bytes are decoded before."""
    decode = _Decode(key, value)

    def decoded(message: Message) -> Any:
        raw = message.key(), message.value()
        try:
            decode(message)
            result = handler(message)
        except BaseException:
            _put_back(message, *raw)
            raise
        if result is not None and isawaitable(result):
            return _awaited(result, message, *raw)
        return result

    return decoded


def decoding_async(
    handler: Callable[[Message], Any], key: Deserialize | None, value: Deserialize | None
) -> Callable[[Message], Any]:
    decode = _Decode(key, value)

    async def decoded(message: Message) -> None:
        raw = message.key(), message.value()
        try:
            await decode.awaited(message)
            await handler(message)
        except BaseException:
            _put_back(message, *raw)
            raise

    return decoded


async def _awaited(result: Awaitable[Any], message: Message, key: Any, value: Any) -> None:
    """What a handler returned that is async after all."""
    try:
        await result
    except BaseException:
        _put_back(message, key, value)
        raise


class _Decode:
    def __init__(self, key: Deserialize | None, value: Deserialize | None) -> None:
        self._key, self._value = key, value

    def __call__(self, message: Message) -> None:
        for decoder, arguments, set_ in self._of(message):
            try:
                decoded = decoder(*arguments)
            except Exception as error:
                raise _blamed(error) from error
            if isawaitable(decoded):
                raise _unusable(decoder, decoded)
            set_(decoded)

    async def awaited(self, message: Message) -> None:
        for decoder, arguments, set_ in self._of(message):
            try:
                decoded = decoder(*arguments)
                if isawaitable(decoded):
                    decoded = await decoded
            except Exception as error:
                raise _blamed(error) from error
            set_(decoded)

    def _of(self, message: Message) -> Iterator[tuple[Callable[..., Any], tuple[Any, ...], Callable[[Any], None]]]:
        for decoder, field, bytes_, set_ in (
            (self._key, MessageField.KEY, message.key(), message.set_key),
            (self._value, MessageField.VALUE, message.value(), message.set_value),
        ):
            if isinstance(decoder, Deserializer):
                context = SerializationContext(message.topic(), field, message.headers())  # type: ignore[arg-type]
                yield decoder, (bytes_, context), set_
            elif decoder is not None:
                yield decoder, (bytes_,), set_


def _blamed(error: Exception) -> Exception:
    if isinstance(error, _OF_BYTES):
        return Undecodable(error) if _is_about_bytes(error) else RetryLater(_AGAIN_SECONDS, repr(error))
    if getattr(error, "http_status_code", None) in _NOT_THERE:
        return Undecodable(error)
    return RetryLater(_AGAIN_SECONDS, repr(error))


def _unusable(decoder: Any, decoded: Any) -> Unusable:
    if hasattr(decoded, "close"):
        decoded.close()  # else the interpreter warns of it
    name = getattr(decoder, "__qualname__", type(decoder).__qualname__)
    return Unusable(
        f"{name} has to be awaited, which only goes with an async handler. Nothing was committed of the message. "
        "Remedy: give an async handler, or a deserializer that is not async (AvroDeserializer, not "
        "AsyncAvroDeserializer)."
    )


def _is_about_bytes(error: BaseException) -> bool:
    """Not if it came from a network, or a registry that answered so."""
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(cause, "http_status_code", None)
        if isinstance(cause, OSError) or (status is not None and status not in _NOT_THERE):
            return False
        cause = cause.__cause__ or cause.__context__
    return True


def _put_back(message: Message, key: Any, value: Any) -> None:
    message.set_key(key)
    message.set_value(value)
