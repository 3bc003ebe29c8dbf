"""What the worker needs of a contestant."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable

from benchmarks.common.setup import Setup


class Peer(ABC):
    """A producer that is connected, or connects with its first record."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @abstractmethod
    def send(self, values: Iterable[bytes]) -> None:
        """Sends one record a value, as fast as the contestant accepts them."""

    @abstractmethod
    def wait(self) -> int:
        """Waits until everything sent is acknowledged; how many records were delivered since the start."""


class AsyncPeer(Peer):
    """A contestant of asyncio, on a loop of its own that stands still between the calls."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self.open())

    def send(self, values: Iterable[bytes]) -> None:
        self._loop.run_until_complete(self.asend(values))

    def wait(self) -> int:
        return self._loop.run_until_complete(self.await_all())

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def asend(self, values: Iterable[bytes]) -> None: ...

    @abstractmethod
    async def await_all(self) -> int: ...
