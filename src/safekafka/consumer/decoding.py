"""Messages with decoded keys and values, on the worker: a decoder may ask a schema registry, and take its time.

Bytes that can't be decoded are to blame themselves: no further attempt. A registry that is down is not the message's
fault: it is asked again, without counting, for `Retry(max_hold=...)` at most. The pool puts the bytes back where a
handler fails (`message.put_back`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
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
# The same, by module and name, so that nothing is imported for it.
_OF_BYTES_ELSEWHERE = frozenset(
    {
        ("zlib", "error"),
        ("gzip", "BadGzipFile"),
        ("_lzma", "LZMAError"),
        ("_pickle", "UnpicklingError"),
        ("google.protobuf.message", "DecodeError"),
    }
)
_NOT_FOUND, _UNPROCESSABLE = 404, 422


def decoding(
    handler: Callable[[Message], Any], key: Deserialize | None, value: Deserialize | None
) -> Callable[[Message], Any]:
    """The handler, for messages whose bytes are decoded before."""
    decode = _Decode(key, value)

    def decoded(message: Message) -> Any:
        decode(message)
        return handler(message)

    return decoded


def decoding_async(
    handler: Callable[[Message], Any], key: Deserialize | None, value: Deserialize | None
) -> Callable[[Message], Any]:
    decode = _Decode(key, value)

    async def decoded(message: Message) -> None:
        await decode.awaited(message)
        await handler(message)

    return decoded


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
    if _is_not_there(error) or (_is_of_bytes(error) and _is_about_bytes(error)):
        return Undecodable(error)
    return RetryLater(_AGAIN_SECONDS, repr(error))


def _is_of_bytes(error: BaseException) -> bool:
    return isinstance(error, _OF_BYTES) or _is_of_bytes_elsewhere(error)


def _is_of_bytes_elsewhere(error: BaseException) -> bool:
    return any((kind.__module__, kind.__name__) in _OF_BYTES_ELSEWHERE for kind in type(error).__mro__)


def _is_not_there(error: BaseException) -> bool:
    """The registry answers, and knows no such schema. A 404 without a code of its own (404xx) is not the registry's
    word, but that of a proxy which has none behind it."""
    status = getattr(error, "http_status_code", None)
    if status != _NOT_FOUND:
        return status == _UNPROCESSABLE
    code = getattr(error, "error_code", None)
    return isinstance(code, int) and code // 100 == _NOT_FOUND


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
        if isinstance(cause, OSError) and not _is_of_bytes_elsewhere(cause):
            return False
        if getattr(cause, "http_status_code", None) is not None and not _is_not_there(cause):
            return False
        cause = cause.__cause__ or cause.__context__
    return True
