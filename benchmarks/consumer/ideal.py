"""The same sleeps without Kafka: what no consumer can do better, by the same handlers."""

from __future__ import annotations

import asyncio
import itertools
import threading

from benchmarks.consumer.counting import Counting


def sleep_in_threads(counting: Counting, count: int) -> None:
    """Each thread takes the next sleep when it has ended one."""
    taken = itertools.count().__next__

    def work() -> None:
        while taken() < counting.records:
            counting.handle(None)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def sleep_in_tasks(counting: Counting, count: int) -> None:
    taken = itertools.count().__next__

    async def work() -> None:
        while taken() < counting.records:
            await counting.ahandle(None)

    async def all_of_them() -> None:
        await asyncio.gather(*(work() for _ in range(count)))

    asyncio.run(all_of_them())
