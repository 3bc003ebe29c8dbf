"""The handlers that all contestants are given: they count, and the first and the last record set the clock."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.common.usage import Usage


class Counting:
    """`seconds`: each handler sleeps for so long. `on_end` is called after the last record, from its handler.

    Handlers may run on many threads: counting is one step of the interpreter, and needs no lock.
    """

    def __init__(self, records: int, seconds: float = 0.0) -> None:
        self.records = records
        self.ended = False
        self.on_end: Callable[[], object] = lambda: None
        self._seconds = seconds
        self._begun, self._finished = itertools.count(1).__next__, itertools.count(1).__next__
        self._start = self._stop = Usage(0, 0)

    def handle(self, message: Any) -> None:
        if self._seconds:
            if self._begun() == 1:
                self._start = Usage.now()
            time.sleep(self._seconds)
            if self._finished() == self.records:
                self._end()
            return
        number = self._finished()
        if number == 1:
            self._start = Usage.now()
        if number == self.records:
            self._end()

    async def ahandle(self, message: Any) -> None:
        if not self._seconds:
            self.handle(message)
            return
        if self._begun() == 1:
            self._start = Usage.now()
        await asyncio.sleep(self._seconds)
        if self._finished() == self.records:
            self._end()

    def handle_all(self, messages: Sequence[Any]) -> None:
        for message in messages:
            self.handle(message)

    def used(self) -> Usage:
        """From the first record to the last."""
        if not self.ended:
            raise RuntimeError("the contestant came back before the last record")
        return self._stop - self._start

    def _end(self) -> None:
        self._stop = Usage.now()
        self.ended = True
        self.on_end()
