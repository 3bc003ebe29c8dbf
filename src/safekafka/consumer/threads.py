"""Workers for sync handlers: daemon threads, as many as `concurrency` says and there is work for.

A handler that returns an awaitable all the same is awaited, in an event loop of the worker's own.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from safekafka.consumer.attempt import Exhausted
from safekafka.consumer.batches import Batch, Filling, handle
from safekafka.consumer.current import Handling, enter
from safekafka.consumer.lanes import Lane
from safekafka.consumer.pool import SLICE_SECONDS, Pool
from safekafka.message import put_back
from safekafka.steps import now

if TYPE_CHECKING:
    from confluent_kafka import Message


class ThreadPool(Pool):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._work = threading.Condition(self.lock)
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._loops = threading.local()
        self._over = False  # one of the threads has ended

    def start(self) -> None:
        with self.lock:
            self._start_one()

    @property
    def alive(self) -> bool:
        return not self._over

    @property
    def threads(self) -> Sequence[threading.Thread]:
        return self._threads

    def _start_one(self) -> None:
        run = self._run if self.batches is None else self._run_batches
        thread = threading.Thread(
            target=self._main, args=(run,), name=f"safekafka-worker-{len(self._threads)}", daemon=True
        )
        thread.start()
        self._threads.append(thread)

    def _wake(self, lanes: int) -> None:
        if lanes and self._idle:
            self._work.notify(lanes)
        for _ in range(min(lanes - self._idle, self.concurrency - len(self._threads))):
            self._start_one()

    def _wake_all(self) -> None:
        self._work.notify_all()

    # ---- the workers

    def _main(self, run: Any) -> None:
        try:
            handling = self.enter()
            enter(handling)
            run(handling)
        except BaseException as error:  # noqa: BLE001 - what it had is not finished; run() raises it
            self.failed(error)
        finally:
            self._over = True
            loop = getattr(self._loops, "loop", None)
            if loop is not None:
                loop.close()

    def _take(self, handling: Handling) -> Lane | None:
        """The next lane to handle, by one who found none dealt; None at the end."""
        handling.message = handling.progress = None
        with self.lock:
            while not self.ended and self.failure is None:
                at = monotonic()
                lane = self._next(at)
                if lane is not None:
                    self._pass_on()
                    return lane
                self._sleep(self.moment(at), at)
        return None

    def _pass_on(self) -> None:
        """Who has got work sees to it that somebody is there for the rest, now or at its moment. Only here is it known
        that nobody is: one who was woken for the first lane counts as idle until he has it."""
        if self.more:
            self._wake(1)

    def _sleep(self, until: float | None, at: float) -> None:
        self._idle += 1
        self._work.wait(None if until is None else max(0.0, until - at))
        self._idle -= 1

    def _run(self, handling: Handling) -> None:
        handler, call_async = self.handler, self._awaited
        next_dealt, through = self.dealt.popleft, self.through.append
        lane = self._take(handling)  # who begins, or was woken, passes on: not past the lock
        while lane is not None:
            began = monotonic()
            end = began + SLICE_SECONDS
            moment: float | None = None
            progress, rest, message = lane.of.progress, lane.rest, lane.head
            lane.head = None  # the worker has it
            finished = progress.finished.append
            handling.progress = progress
            try:
                while message is not None and not progress.revoked:
                    handling.message = message
                    if lane.trial is not None:
                        handling.attempt = lane.trial.attempts + 1
                    value, key = message.value(), message.key()
                    headers: Any = message.headers()
                    if headers:
                        headers = list(headers)
                    try:
                        result = handler(message)
                        if result is not None and inspect.isawaitable(result):
                            call_async(result)
                    except BaseException as error:  # noqa: BLE001 - `settle` raises what is no Exception
                        put_back(message, value, key, headers)
                        moment = now(self.settle(lane, message, error, began))
                        handling.attempt = 1
                        if moment is not None:
                            break
                    else:
                        finished(message)
                        if self.troubled:
                            self.succeeds()
                    if lane.trial is not None:
                        lane.trial, handling.attempt = None, 1
                    if not rest:
                        message = None
                        break
                    message = rest.popleft()
                    began = monotonic()
                    if began > end or self.held:
                        break
            except BaseException as error:
                handling.message = handling.progress = None
                self.failed(error)  # first: nobody takes a lane whose message failed, once it is given back
                self.give_back(lane)
                raise
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
                lane = self._take(handling)

    def _run_batches(self, handling: Handling) -> None:
        async def call(messages: list[Message]) -> None:
            result = self.handler(messages)
            if result is not None and inspect.isawaitable(result):
                self._awaited(result)

        filling = Filling()
        while (batch := self._take_batch(filling)) is not None:
            moment: float | None = None
            try:
                moment = now(handle(self, batch, handling, call))
            except BaseException as error:
                self.failed(error)  # as above
                raise
            finally:
                self.batch_ended(batch, moment)

    def _take_batch(self, filling: Filling) -> Batch | None:
        with self.lock:
            while not self.ended and self.failure is None:
                at = monotonic()
                found = self.next_batch(filling, at)
                if isinstance(found, Batch):
                    self._pass_on()
                    return found
                self._sleep(found, at)
            self.put_back(filling)
        return None

    def _awaited(self, result: Any) -> None:
        loop: asyncio.AbstractEventLoop | None = getattr(self._loops, "loop", None)
        if loop is None:
            loop = self._loops.loop = asyncio.new_event_loop()
        loop.run_until_complete(_await(result))

    async def _write(self, message: Message, exhausted: Exhausted) -> None:
        assert self.dead_letters is not None
        self.dead_letters.write(message, exhausted.error, exhausted.attempts)


async def _await(result: Any) -> None:
    await result
