"""Emptying the lanes that no living process has."""

from __future__ import annotations

import contextlib
import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from safekafka.cli.progress import progress_bar
from safekafka.cli.shown import IN_USE, WRONG, counted, note, one_line, tell_json
from safekafka.cli.spool.looks import Look, look_at
from safekafka.cli.spool.shown import note_unreadable, of_cluster
from safekafka.errors import SafeKafkaError

if TYPE_CHECKING:
    from safekafka import SafeProducer, Spool
    from safekafka.spool.inspect import LaneStatus

_ROUND_SECONDS = 0.1
_END_SECONDS = 2.0  # for the reports of what is on its way when a drain ends early; what they miss is sent twice
_ASK_SECONDS = 10.0
_LARGEST_RECORD = 1_000_000_000  # librdkafka's bound


class Drain:
    """Producers on the lanes without an owner: one for each name and list of brokers, all at once, so that brokers
    which do not answer hold up no others.

    A producer takes the first such lane as its own and sends the next ones only after a while. So it is ended when it
    has nothing left, and another one takes the next lane at once.
    """

    def __init__(self, path: Path, settings: dict[str, Any], timeout: float | None) -> None:
        self._path = path
        self._settings = settings
        self._bootstrap: str | None = settings.pop("bootstrap.servers", None)
        self._began = time.monotonic()
        self._end = float("inf") if timeout is None else self._began + timeout
        self._folders: list[Path] = []  # what is to be sent
        self._waiting: dict[tuple[str, str], set[Path]] = {}  # name and brokers: lanes when the last producer began
        self._producers: dict[tuple[str, str], SafeProducer] = {}
        self._sent = 0
        self._why: list[str] = []

    def run(self, as_json: bool) -> int:
        before = look_at(self._path, None)
        for look in before:
            self._plan(look)
        try:
            self._send(sum(look.lane.records for look in before if look.lane.folder in self._folders))
        except BaseException:
            note(f"Ended early: {counted(self._sent, 'record')} sent, the others stay in the spool.")
            raise
        return self._tell(before, look_at(self._path, None), as_json)

    def _plan(self, look: Look) -> None:
        lane = look.lane
        if lane.owner is not None or not (lane.records or look.problem):
            return
        stays = f"{counted(lane.records, 'record')} of {lane.folder.name} stay"
        if lane.spool is None or lane.bootstrap is None:
            note(
                f"{stays}: its lane.json, which says whose they are, is missing or unreadable. Remedy: put it back "
                "from a copy; safekafka spool export shows the records."
            )
            return
        bootstrap = lane.bootstrap
        if self._bootstrap is not None and not self._is_for_our_brokers(lane):
            from safekafka.spool.lane import if_address_was_wrong

            note(
                f"{stays}: they are for {lane.bootstrap}{of_cluster(lane)}, not for {self._bootstrap}. Remedy: "
                f"--bootstrap {lane.bootstrap}, or leave it out: then each lane's records go to the brokers it names."
                + ("" if lane.cluster is not None else f" {if_address_was_wrong(lane.folder)}")
            )
            return
        if self._bootstrap is not None:
            bootstrap = self._bootstrap
        self._folders.append(lane.folder)
        self._waiting.setdefault((lane.spool, bootstrap), set())

    def _is_for_our_brokers(self, lane: LaneStatus) -> bool:
        """By the list; or by the cluster, where its brokers have moved: the lane gets the new list then."""
        from safekafka.spool.lane import Identity, Lane, lock_dead
        from safekafka.spool.spooled import normal_bootstrap

        assert self._bootstrap is not None
        assert lane.spool is not None
        ours = normal_bootstrap(self._bootstrap)
        if lane.bootstrap == ours:
            return True
        if lane.cluster is None or lane.cluster != self._cluster:
            return False
        identity = Identity(lane.spool, ours, lane.cluster)
        taken = Lane(lane.folder, lock_dead(lane.folder), self._spool(lane.spool), identity)
        try:
            taken.belongs_to(identity)
        finally:
            taken.close()
        return True

    @functools.cached_property
    def _cluster(self) -> str | None:
        """The id of the cluster of --bootstrap; None if it does not answer."""
        from confluent_kafka import KafkaException

        from safekafka.client import admin_client
        from safekafka.settings import connection_settings

        settings = connection_settings({**self._settings, "bootstrap.servers": self._bootstrap})
        with contextlib.suppress(KafkaException):
            cluster: str | None = admin_client(settings).list_topics(timeout=_ASK_SECONDS).cluster_id
            return cluster
        return None

    # ---- sending

    def _send(self, records: int) -> None:
        try:
            with progress_bar() as show:
                while self._waiting and time.monotonic() < self._end:
                    for whose in list(self._waiting):
                        try:
                            self._look_after(whose)
                        except (SafeKafkaError, ValueError) as error:
                            self._why.append(one_line(str(error)))
                            del self._waiting[whose]
                    delivered = sum(producer.stats().delivered for producer in self._producers.values())
                    show(self._sent + delivered, records)
                    time.sleep(_ROUND_SECONDS if self._waiting else 0)
        finally:
            for producer in self._producers.values():
                self._note_problems(producer)
                with contextlib.suppress(SafeKafkaError):  # what ended it was told
                    self._close(producer)

    def _look_after(self, whose: tuple[str, str]) -> None:
        producer = self._producers.get(whose)
        if producer is not None:
            producer.flush(0)  # raises what ended it
            if len(producer):
                return
            self._note_problems(producer)  # lanes that it could not open
            self._close(self._producers.pop(whose))
        lanes = {
            look.lane.folder
            for look in look_at(self._path, None)
            if look.lane.folder in self._folders and look.lane.owner is None and (look.lane.records or look.problem)
            if (look.lane.spool, self._bootstrap or look.lane.bootstrap) == whose
        }
        if not lanes or lanes == self._waiting[whose]:  # done; or none of them could be emptied
            del self._waiting[whose]
            return
        self._waiting[whose] = lanes
        self._producers[whose] = self._producer(*whose)

    def _note_problems(self, producer: SafeProducer) -> None:
        self._why += [problem for problem in producer.health().problems if problem not in self._why]

    def _close(self, producer: SafeProducer) -> None:
        try:
            producer.close()
        finally:
            self._sent += producer.stats().delivered

    def _producer(self, name: str, bootstrap: str) -> SafeProducer:
        from safekafka import SafeProducer

        settings = {**self._settings, "bootstrap.servers": bootstrap}
        # Not the client's own 1 MB: the program may have allowed larger ones, and only the brokers know what is too
        # large for them. A bound of the buffer would contradict it.
        if "queue.buffering.max.kbytes" not in settings:
            settings.setdefault("message.max.bytes", _LARGEST_RECORD)
        return SafeProducer(
            settings,
            spool=self._spool(name),
            on_undelivered=lambda *_: None,  # rejected ones are counted at the end
            shutdown_timeout=_END_SECONDS,
        )

    def _spool(self, name: str) -> Spool:
        from safekafka.spool.config import Spool

        # Nothing is accepted here, so nothing needs a sync; and it opens what a program without one kept in memory.
        return Spool(self._path, name=name, durability="process")

    # ---- the end

    def _tell(self, before: list[Look], after: list[Look], as_json: bool) -> int:
        seconds = time.monotonic() - self._began
        left = {
            look.lane.folder.name: look.lane.records for look in after if look.lane.owner is None and look.lane.records
        }
        in_use = [look.lane for look in after if look.lane.owner is not None and look.lane.records]
        figures = {"sent": self._sent, "left": sum(left.values()), **self._moved_aside(before, after)}
        known = {path for look in before for path in look.lane.evidence}
        evidence = [str(path) for look in after for path in look.lane.evidence if path not in known]
        if as_json:
            of_others = sum(lane.records for lane in in_use)
            about = {"seconds": round(seconds, 1), "lanes_left": left, "evidence": evidence, "why": self._why}
            tell_json({**figures, "in_use": of_others, **about})
        else:
            typer.echo(f"{counted(self._sent, 'record')} sent in {seconds:.1f} s, {figures['left']:,} left.")
            for name, records in left.items():
                typer.echo(f"left: {counted(records, 'record')} in {name}")
            if figures["rejected"]:
                typer.echo(
                    f"moved aside: {counted(figures['rejected'], 'rejected record')}, see safekafka spool rejected"
                )
            if figures["damaged"]:
                typer.echo(f"damaged, not sent: {counted(figures['damaged'], 'record')}, see safekafka spool status")
            for path in evidence:
                typer.echo(f"evidence of damage: {path}")
        for lane in in_use:
            note(f"{lane.folder.name} is in use by {lane.owner}, which has {counted(lane.records, 'record')} to send.")
        for why in self._why:
            note(why)
        note_unreadable(after)
        if left or figures["rejected"] or figures["damaged"] or evidence or any(look.problem for look in after):
            return WRONG
        return IN_USE if in_use else 0

    def _moved_aside(self, before: list[Look], after: list[Look]) -> dict[str, int]:
        """How many records this drain found that can't be sent."""
        were = {look.lane.folder: look.lane for look in before}
        now = [look.lane for look in after if look.lane.folder in self._folders]
        return {
            "rejected": sum(max(0, lane.rejected - were[lane.folder].rejected) for lane in now),
            "damaged": sum(max(0, lane.damaged - were[lane.folder].damaged) for lane in now),
        }
