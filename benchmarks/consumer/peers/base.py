"""What the worker needs of a contestant."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from benchmarks.consumer.setup import Setup


class Handlers(Protocol):
    """The three forms of the handler; each contestant calls the one that suits it."""

    ended: bool
    on_end: Callable[[], object]

    def handle(self, message: Any) -> None: ...

    def ahandle(self, message: Any) -> Awaitable[None]: ...

    def handle_all(self, messages: Sequence[Any]) -> None: ...


class Peer(ABC):
    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @abstractmethod
    def consume(self, handlers: Handlers) -> None:
        """Subscribes, from the beginning of the topic; until `handlers.ended`. All that was handled is committed
        then."""


class AsyncPeer(Peer):
    """A contestant of asyncio, on a loop of its own."""

    def consume(self, handlers: Handlers) -> None:
        asyncio.run(self.aconsume(handlers))

    @abstractmethod
    async def aconsume(self, handlers: Handlers) -> None: ...
