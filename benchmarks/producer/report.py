"""The report: what was measured, how, on what, and how sure the figures are."""

from __future__ import annotations

from statistics import median

from benchmarks.common.figures import compared
from benchmarks.common.journal import Results
from benchmarks.common.report import CLUSTERS, about_run, contestants_section, failures, throughput_table
from benchmarks.common.setup import BATCH_BYTES, BUFFER_RECORDS, LINGER_MS, PARTITIONS
from benchmarks.common.tables import shown, table
from benchmarks.producer.contestants import BASE, CONTESTANTS

_PROBES = {
    BASE: "raw: `produce()`, `poll()` until the callback",
    "safekafka": "SafeProducer: `send().result()`",
    "safekafka-await": "SafeProducer: `await send()`",
}


def render(results: Results) -> str:
    """The report as Markdown."""
    parts = [_head, _throughput, _latency, _pending, _flat, _contestants, failures]
    return "\n".join(text for part in parts if (text := part(results)))


def _head(results: Results) -> str:
    return f"""# Producer benchmark

{about_run(results)}
All with `acks=all` and idempotence, {PARTITIONS} partitions with three replicas, records without a key, linger
{LINGER_MS} ms, batches of up to {BATCH_BYTES:,} bytes, and, where the client knows such a limit, a buffer of
{BUFFER_RECORDS:,} records. Every run is a fresh process, which connects and has one record acknowledged before the
clock starts; the clock ends with the last acknowledgement. The client's own count and the brokers' logs must both
agree with what was sent. CPU is the user and system time of that process, with all its threads. The rounds are
interleaved: each has every contestant once, in a random order, SafeProducer next to the raw client. A ratio is taken
within a round; told are the median of the rounds' ratios and, in brackets, its 95 % bootstrap interval.
"""


def _throughput(results: Results) -> str:
    tables = [
        f"## {CLUSTERS[cluster]}, values of {size:,} bytes\n\n"
        + throughput_table(results, CONTESTANTS, BASE, cluster=cluster, size=size)
        for cluster in results.values("throughput", "cluster")
        for size in results.values("throughput", "size", cluster=cluster)
    ]
    return "\n".join(["![Throughput](producer.svg)\n", *tables]) if tables else ""


def _latency(results: Results) -> str:
    lines = []
    for cluster in results.values("latency", "cluster"):
        for linger in results.values("latency", "linger", cluster=cluster):
            for peer, title in _PROBES.items():
                where = {"cluster": cluster, "linger": linger}
                rows = results.of("latency", peer=peer, **where)
                if rows:
                    p50, p99 = (median(row[name] for row in rows) for name in ("p50", "p99"))
                    lines.append(
                        [
                            f"{cluster}, linger {linger} ms, {title}",
                            f"{p50 * 1e3:.2f}",
                            shown(compared(results, "latency", lambda row: float(row["p50"]), peer, BASE, **where)),
                            f"{p99 * 1e3:.2f}",
                            shown(compared(results, "latency", lambda row: float(row["p99"]), peer, BASE, **where)),
                        ]
                    )
    columns = ["", "p50 ms", "to raw", "p99 ms", "to raw"]
    about = (
        "One record of 100 bytes at a time, from the call to its known outcome, then the next one; "
        "at most 1,000 a second, fewer where the answer takes longer than a millisecond."
    )
    return f"## Latency of a single awaited send\n\n{about}\n\n{table(columns, lines)}" if lines else ""


def _pending(results: Results) -> str:
    lines = []
    for size in results.values("pending", "size"):
        for peer, contestant in CONTESTANTS.items():
            rows = results.of("pending", peer=peer, size=size)
            if rows:
                each = median(row["bytes"] / row["records"] for row in rows)
                lines.append(
                    [
                        f"{contestant.title}, {size:,} B",
                        f"{each:,.0f}",
                        f"{each * 100_000 / 2**20:,.1f}",
                        shown(compared(results, "pending", lambda row: float(row["bytes"]), peer, BASE, size=size)),
                        f"{len(rows)} of {rows[0]['records']:,}",
                    ]
                )
    columns = ["", "bytes a record", "MiB per 100,000", "to raw with callback", "runs of records"]
    about = (
        "All brokers end after the first acknowledged record; then records are sent, each with a value of its own. "
        "Growth of the resident memory, at its highest within 2 s after the last send. aiokafka was given batches "
        "large enough to accept them all; with others it makes the sender wait."
    )
    return f"## Memory of records that can't be delivered\n\n{about}\n\n{table(columns, lines)}" if lines else ""


def _flat(results: Results) -> str:
    lines = []
    for peer in results.values("flat", "peer"):
        rows = results.of("flat", peer=peer)
        early, late = (median(row[name] for row in rows) / 2**20 for name in ("early", "late"))
        lines.append([CONTESTANTS[peer].title, f"{early:.1f}", f"{late:.1f}", f"{late - early:+.1f}"])
    if not lines:
        return ""
    records = results.of("flat")[0]["records"]
    columns = ["", f"MiB after {records // 5:,}", f"MiB after {records:,}", "growth"]
    about = "Resident memory of a process that keeps no receipt; all is acknowledged at both moments. Mock brokers."
    return f"## Memory of a long run\n\n{about}\n\n{table(columns, lines)}"


def _contestants(results: Results) -> str:
    return contestants_section(results, CONTESTANTS, "how it sends")
