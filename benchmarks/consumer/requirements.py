"""What the consumer has to reach, and whether this run saw it."""

from __future__ import annotations

from benchmarks.common.figures import compared, per_second
from benchmarks.common.journal import Results
from benchmarks.common.requirements import Check, Requirement, checked
from benchmarks.common.tables import shown
from benchmarks.consumer.compared import share_of_ideal, slower_by
from benchmarks.consumer.contestants import BASE, OURS, POLL, SAFE_FASTSTREAM
from benchmarks.consumer.setup import PARTITIONS

_MIB = 1 << 20
_FLAT = 10 * _MIB  # of a process of some 50 MiB: what its allocator does
# Beside the two bounds: an answer of each broker that is on its way, with 1 MB of each partition, and the allocator.
_ROOM = (PARTITIONS + 32) * _MIB


def requirements(results: Results) -> list[Requirement]:
    checks: list[tuple[str, Check]] = [
        ("no-op handler, mock brokers: at least 2 times raw `poll()`", _times(POLL, 2)),
        ("no-op handler, mock brokers: at least 20 times FastStream's safe mode", _times(SAFE_FASTSTREAM, 20)),
        ("no-op handler, real brokers: the interval of the ratio to raw `consume(500)` reaches 0.9", _near_raw),
        ("idle stream: p50 at most 5 ms above raw `poll()`", _idle),
        ("100 threads, 10,000 keys, 1 and 10 ms: at least 85 % of the ideal", _share("sync", 0.85)),
        ("100 tasks, 10,000 keys, 1 and 10 ms: at least 95 % of the ideal", _share("async", 0.95)),
        ("very many keys: memory is flat", _keys),
        ("slow handler, records of 1 MB: memory stays within its bounds", _slow),
    ]
    return checked(results, checks)


def _times(base: str, least: float) -> Check:
    def check(results: Results) -> tuple[str, bool] | None:
        where = {"cluster": "mock"}
        if not all(results.of("throughput", peer=peer, **where) for peer in (OURS, base)):
            return None
        found = compared(results, "throughput", per_second, OURS, base, **where)
        return shown(found), found.median >= least

    return check


def _near_raw(results: Results) -> tuple[str, bool] | None:
    where = {"cluster": "real"}
    if not all(results.of("throughput", peer=peer, **where) for peer in (OURS, BASE)):
        return None
    found = compared(results, "throughput", per_second, OURS, BASE, **where)
    return shown(found), found.high >= 0.9


def _idle(results: Results) -> tuple[str, bool] | None:
    told = {name: slower_by(results, OURS, POLL, cluster=name) for name in results.values("idle", "cluster")}
    found = {name: seconds for name, seconds in told.items() if seconds is not None}
    if not found:
        return None
    return ", ".join(f"{name} {s * 1e3:+.2f} ms" for name, s in found.items()), max(found.values()) <= 0.005


def _share(form: str, least: float) -> Check:
    def check(results: Results) -> tuple[str, bool] | None:
        case = {"form": form, "concurrency": 100, "keys": 10_000}
        shares = {ms: share_of_ideal(results, milliseconds=ms, **case) for ms in (1, 10)}
        found = {ms: share for ms, share in shares.items() if share is not None}
        if len(found) < 2:
            return None
        told = ", ".join(f"{ms} ms {shown(share)}" for ms, share in found.items())
        return told, all(share.median >= least for share in found.values())

    return check


def _keys(results: Results) -> tuple[str, bool] | None:
    rows = results.of("keys")
    if not rows:
        return None
    growth = max(row["late"] - row["early"] for row in rows)
    return f"{growth / _MIB:+.1f} MiB from a tenth to the end of {rows[0]['records']:,} keys", growth <= _FLAT


def _slow(results: Results) -> tuple[str, bool] | None:
    rows = results.of("slow")
    if not rows:
        return None
    told = [f"{row['cluster']} {(row['peak'] - row['before']) / _MIB:+.0f} MiB" for row in rows]
    within = all(row["peak"] - row["before"] <= 2 * row["bound"] + _ROOM for row in rows)
    return ", ".join(told), within
