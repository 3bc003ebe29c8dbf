"""Workers for async handlers: tasks of one event loop, as many as `concurrency` says. The loop is one of our own, on a
daemon thread, or the caller's (`arun`).

Threads: the loop's. The poll thread wakes it by `call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from safekafka.consumer.attempt import Exhausted
from safekafka.consumer.batches import Batch, Filling, handle
from safekafka.consumer.current import Handling, enter
from safekafka.consumer.lanes import Lane
from safekafka.consumer.pool import REFILL, SLICE_SECONDS, Pool, Refill
from safekafka.message import put_back

if TYPE_CHECKING:
    from confluent_kafka import Message

# Seconds that a handler takes, of those who wait for somebody. The others keep the interpreter to themselves, or are so
# slow that it does not matter how much is in flight.
_WAITING = (0.0001, 0.05)
_MESSAGES_AHEAD, _SECONDS_AHEAD = 25, 0.04  # for each task


class TaskPool(Pool):
    """`loop`: that of the caller, running; None: one of our own."""

    def __init__(self, *args: Any, loop: asyncio.AbstractEventLoop | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._own = loop is None
        self._loop = loop or asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._ident = None if loop is None else threading.get_ident()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: deque[asyncio.Future[None]] = deque()  # the loop's own
        self._seconds_a_message = math.inf  # that it keeps a task, as of late; not known yet

    def start(self) -> None:
        if self._own:
            self._thread = threading.Thread(target=self._main, name="safekafka-loop", daemon=True)
            self._thread.start()
        self._call(self._start_one)

    @property
    def refill(self) -> Refill:
        """Taking messages keeps the interpreter from the loop, whose next timer may be due: no more is taken at a time
        than fits in while the loop waits. Nor more ahead than all tasks handle in a moment: what waits for long has
        left the processor's caches, and each of ten thousand such messages costs both threads a quarter more."""
        seconds = self._seconds_a_message
        if self.batches is not None or seconds < _WAITING[0] or _WAITING[1] <= seconds < math.inf:
            return REFILL
        if len(self.dealt) + self.lanes.ready < self.concurrency:
            return REFILL._replace(to_fill=REFILL.messages)
        pause = min(max(0.001, seconds / 2), 0.02)
        return Refill(REFILL.to_fill, 100, pause, self.concurrency * max(_MESSAGES_AHEAD, _SECONDS_AHEAD / seconds))

    @property
    def alive(self) -> bool:
        return not self._loop.is_closed() and (self._thread is None or self._thread.is_alive())

    @property
    def threads(self) -> list[threading.Thread]:
        return [] if self._thread is None else [self._thread]

    def end(self) -> None:
        super().end()
        self._call(self._cancel_all)

    def _call(self, function: Any, *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to be told
            self._loop.call_soon_threadsafe(function, *args)

    def _wake(self, lanes: int) -> None:
        if threading.get_ident() == self._ident:
            self._wake_some(lanes)
        elif lanes:
            self._call(self._wake_some, lanes)

    def _wake_all(self) -> None:
        self._call(self._wake_some, self.concurrency)

    # ---- the loop's thread

    def _main(self) -> None:
        self._ident = threading.get_ident()
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _start_one(self) -> None:
        task = self._loop.create_task(self._work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _wake_some(self, lanes: int) -> None:
        while lanes > 0 and self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                lanes -= 1
        for _ in range(min(lanes, self.concurrency - len(self._tasks))):
            self._start_one()

    def _cancel_all(self) -> None:
        """What still runs had its time."""
        for task in list(self._tasks):
            task.cancel()
        if self._own:
            self._loop.call_soon(self._loop.call_soon, self._loop.stop)  # after they heard of it

    async def _work(self) -> None:
        handling = self.enter()
        enter(handling)
        try:
            await (self._run(handling) if self.batches is None else self._run_batches(handling))
        except BaseException as error:  # noqa: BLE001 - what it had is not finished; run() raises it
            if not self.ended:
                self.failed(error)
        finally:
            self.handlings.remove(handling)

    async def _take(self, handling: Handling) -> Lane | None:
        """The next lane to handle, by one who found none dealt; None at the end."""
        handling.message = handling.progress = None
        while True:
            with self.lock:
                if self.ended or self.failure is not None:
                    return None
                at = monotonic()
                lane = self._next(at)
                if lane is not None:
                    if (self._idle or len(self._tasks) < self.concurrency) and self.more:
                        self._wake_some(1)
                    return lane
                moment = self.moment(at)
            await self._sleep(moment)

    async def _sleep(self, moment: float | None) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._idle.append(waiter)
        if moment is not None:
            alarm = self._loop.call_later(max(0.0, moment - monotonic()), _let_go, waiter)
            try:
                await waiter
            finally:
                alarm.cancel()
        else:
            await waiter

    async def _run(self, handling: Handling) -> None:
        handler = self.handler
        next_dealt, through = self.dealt.popleft, self.through.append
        lane = await self._take(handling)  # who begins, or was woken, passes on: not past the lock
        while lane is not None:
            since = began = monotonic()
            end = began + SLICE_SECONDS
            moment: float | None = None
            handled = 0
            progress, rest, message = lane.of.progress, lane.rest, lane.head
            lane.head = None  # the task has it
            handling.progress = progress
            try:
                while message is not None and not progress.revoked:
                    handled += 1
                    handling.message = message
                    handling.attempt = 1 if lane.trial is None else lane.trial.attempts + 1
                    value, key = message.value(), message.key()
                    headers: Any = message.headers()
                    if headers:
                        headers = list(headers)
                    try:
                        await handler(message)
                    except BaseException as error:  # noqa: BLE001 - `settle` raises what is no Exception
                        put_back(message, value, key, headers)
                        moment = await self.settle(lane, message, error, began)
                        if moment is not None:
                            break
                    else:
                        progress.finished.append(message)
                        if self.troubled:
                            self.succeeds()
                    lane.trial = None
                    message = rest.popleft() if rest else None
                    began = monotonic()
                    if began > end or self.held:
                        break
            except BaseException:
                handling.message = handling.progress = None
                self.give_back(lane)
                raise
            if handled:
                each, before = (began - since) / handled, self._seconds_a_message
                self._seconds_a_message = each if before == math.inf else before + (each - before) / 64
            if message is None and not (lane.rest or self.troubled or progress.revoked):
                through(lane)
                if self._watched:
                    self.tell()
            else:
                lane.head = message
                self.give_back(lane, moment)
            try:
                lane = next_dealt()
            except IndexError:
                lane = await self._take(handling)

    async def _run_batches(self, handling: Handling) -> None:
        filling = Filling()
        while (batch := await self._take_batch(filling)) is not None:
            moment: float | None = None
            try:
                moment = await handle(self, batch, handling, self.handler)
            finally:
                self.batch_ended(batch, moment)

    async def _take_batch(self, filling: Filling) -> Batch | None:
        while True:
            with self.lock:
                if self.ended or self.failure is not None:
                    self.put_back(filling)
                    return None
                found = self.next_batch(filling, monotonic())
                more = self.more
            if isinstance(found, Batch):
                if more:
                    self._wake_some(1)
                return found
            await self._sleep(found)

    async def _write(self, message: Message, exhausted: Exhausted) -> None:
        assert self.dead_letters is not None
        await self.dead_letters.awrite(message, exhausted.error, exhausted.attempts)


def _let_go(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
