"""The report: what was measured, how, on what, and how sure the figures are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from benchmarks.common.figures import compared, cpu_micros, paired, per_second
from benchmarks.common.journal import Results, Row
from benchmarks.common.report import CLUSTERS, about_run, failures
from benchmarks.common.requirements import requirements_section
from benchmarks.common.setup import LINGER_MS, PARTITIONS
from benchmarks.common.tables import shown, table
from benchmarks.spool.cases import CASES, WAYS, Case
from benchmarks.spool.contestants import BASE, CONTESTANTS
from benchmarks.spool.requirements import requirements

_MB = 1e6
_APPEND = """No broker answers: nobody listens at the address, and what the sender takes ahead it has taken before the
clock starts. Ratios are to a plain file that is given the same bytes, as many at once, in the same round: "appended"
grows with each write; "overwritten" has its size and its blocks, so that a sync has no metadata to write. The bytes are
those of the values. `Record`s are made within the clock, but for the line that says otherwise."""
_DELIVERY = """From the first send to the last acknowledgement. Everybody sends for the same time, then waits for what
is left."""
_WAYS = """As above, but by each way to send through a spool, and for a shorter time; the raw client ran in the same
rounds. `send_many(100)` is above. MB are those of the values."""
_DRAIN = """The folders were filled while all brokers were dead; a new process opens one. The raw client is given the
same records by its program. Connecting takes as long for any number of records, so it is told apart: the rate is that
from the first acknowledgement on, which the raw client had for a record of its own. The spool's records lie in the page
cache. MB is 10^6 bytes."""


def render(results: Results) -> str:
    """The report as Markdown."""
    parts = [_head, _requirements, _append, _delivery, _ways, _drain, _backlog, _outage, _contestants, failures]
    return "\n".join(text for part in parts if (text := part(results)))


def _head(results: Results) -> str:
    return f"""# Spool benchmark

{about_run(results)}
Every run is a fresh process with a fresh folder on this disk; what it leaves is removed and synced before the next one.
The rounds are interleaved: each has every case once, in a random order, next to what it is compared to. A ratio is
taken within a round; told are the median of the rounds' ratios and, in brackets, its 95 % bootstrap interval; rates are
medians. CPU is the user and system time of the process, with all its threads. What was accepted is checked against the
spool's count, what was delivered against the client's count and the brokers' logs.

![Rates](spool.svg)
"""


def _requirements(results: Results) -> str:
    return requirements_section(requirements(results))


def _append(results: Results) -> str:
    tables = [
        f"### {size:,} bytes, durability {durability}\n\n{_append_table(results, size, durability)}"
        for size in results.values("append", "size")
        for durability in ("disk", "process")
    ]
    return "\n".join([f"## Appending\n\n{_APPEND}\n", *tables]) if tables else ""


def _append_table(results: Results, size: int, durability: str) -> str:
    lines = []
    for case in CASES.values():
        rows = results.of("append", case=case.name, size=size)
        if not rows or case.durability != durability:
            continue
        rate = median(map(per_second, rows))
        line = [case.title, f"{rate:,.0f}", f"{rate * size / _MB:,.1f}", beside(results, case, "append", size)]
        if durability == "disk":
            line.append(beside(results, case, "overwrite", size))
        lines.append([*line, f"{median(map(cpu_micros, rows)):.2f}", str(len(rows))])
    to = ["to appended", "to overwritten"] if durability == "disk" else ["to appended"]
    return table(["", "records/s", "MB/s", *to, "CPU µs/record", "runs"], lines)


def beside(results: Results, case: Case, way: str, size: int) -> str:
    base = case.limit("append" if way == "append" else "overwrite")
    of_case, of_base = ({"case": each.name, "size": size} for each in (case, base))
    return shown(paired(results, "append", per_second, of_case, of_base))


def _delivery(results: Results) -> str:
    about = (
        f"{_DELIVERY} `acks=all` and idempotence, {PARTITIONS} partitions with three replicas, records without a key, "
        f"linger {LINGER_MS} ms; each process is connected and has had one record acknowledged before."
    )
    tables = [
        f"### {CLUSTERS[cluster]}, values of {size:,} bytes\n\n"
        + _contest(results, "delivery", cluster=cluster, size=size)
        for cluster in results.values("delivery", "cluster")
        for size in results.values("delivery", "size", cluster=cluster)
    ]
    return "\n".join([f"## Delivery, end to end\n\n{about}\n", *tables]) if tables else ""


def _ways(results: Results) -> str:
    tables = [
        f"### {CLUSTERS[cluster]}, values of {size:,} bytes\n\n{_ways_table(results, cluster=cluster, size=size)}"
        for cluster in results.values("ways", "cluster")
        for size in results.values("ways", "size", cluster=cluster)
    ]
    return "\n".join([f"## Delivery, end to end, by each way to send\n\n{_WAYS}\n", *tables]) if tables else ""


def _ways_table(results: Results, **where: Any) -> str:
    titles = {BASE: CONTESTANTS[BASE].title, **{name: f"{way.durability}: {way.title}" for name, way in WAYS.items()}}
    lines = []
    for name, title in titles.items():
        rows = results.of("ways", case=name, **where)
        if not rows:
            continue
        rate, cpu = (median(map(figure, rows)) for figure in (per_second, cpu_micros))
        faster, dearer = (
            shown(paired(results, "ways", figure, {"case": name, **where}, {"case": BASE, **where}))
            for figure in (per_second, cpu_micros)
        )
        megabytes = rate * where["size"] / _MB
        lines.append([title, f"{rate:,.0f}", f"{megabytes:,.1f}", faster, f"{cpu:.2f}", dearer, str(len(rows))])
    to_raw = "to raw with callback"
    return table(["", "records/s", "MB/s", to_raw, "CPU µs/record", to_raw, "runs"], lines)


def _drain(results: Results) -> str:
    if not results.of("drain"):
        return ""
    records, size = (results.of("drain")[0][name] for name in ("total", "size"))
    about = f"{records:,} records of {size:,} bytes, RF 3, min ISR 2, `acks=all`. {_DRAIN}"
    extra: dict[str, Callable[[list[Row]], str]] = {
        "s to connect": lambda rows: f"{median(row['first'] for row in rows):.2f}",
        "peak MB": lambda rows: f"{max(row['peak'] for row in rows) / _MB:,.0f}",
    }
    return f"## Drain after an outage\n\n{about}\n\n{_contest(results, 'drain', extra)}"


def _contest(
    results: Results, part: str, extra: Mapping[str, Callable[[list[Row]], str]] | None = None, **where: object
) -> str:
    """All contestants of a part, beside the raw client."""
    lines, extra = [], extra or {}
    for peer, contestant in CONTESTANTS.items():
        rows = results.of(part, peer=peer, **where)
        if not rows:
            continue
        line = [contestant.title]
        for figure, digits in ((per_second, ",.0f"), (cpu_micros, ".2f")):
            ratio = compared(results, part, figure, peer, BASE, **where)
            line += [format(median(map(figure, rows)), digits), shown(ratio)]
        lines.append([*line, *(told(rows) for told in extra.values()), str(len(rows))])
    columns = ["", "records/s", "to raw with callback", "CPU µs/record", "to raw with callback"]
    return table([*columns, *extra, "runs"], lines)


def _backlog(results: Results) -> str:
    rows = results.of("backlog")
    lines = [[f"{_megabytes(row, 'bytes')} MB", f"{row['delivered']:,}", *_memory(row)] for row in rows]
    columns = ["backlog", "delivered", "peak MB", "MB at the end"]
    about = "A new process opens the folder and drains it for some seconds; resident memory of all of it."
    return f"## Memory with a backlog\n\n{about}\n\n{table(columns, lines)}" if lines else ""


def _memory(row: Row) -> list[str]:
    return [_megabytes(row, "peak"), _megabytes(row, "resident")]


def _megabytes(row: Row, name: str) -> str:
    return f"{row[name] / _MB:,.1f}"


def _outage(results: Results) -> str:
    lines = []
    for row in results.of("outage"):
        memory = [bytes_ / _MB for bytes_ in row["resident"]]
        figures = [f"{memory[0]:.1f}", f"{memory[1]:.1f}", f"{memory[-1]:.1f}", f"{memory[-1] - memory[1]:+.1f}"]
        lines.append([f"{per_second(row):,.0f}/s of {row['size']:,} B for {row['seconds']} s", *figures])
    columns = ["", "MB before", "MB after 1 s", "MB at the end", "growth since 1 s"]
    about = "Resident memory of a process that sends with no broker there, 100 times a second; receipts are dropped."
    return f"## Memory during an outage\n\n{about}\n\n{table(columns, lines)}" if lines else ""


def _contestants(results: Results) -> str:
    there = {*results.values("delivery", "peer"), *results.values("ways", "case"), *results.values("drain", "peer")}
    lines = [[contestant.title, contestant.how] for peer, contestant in CONTESTANTS.items() if peer in there]
    return f"## Contestants\n\n{table(['', 'how it sends'], lines, figures=False)}" if lines else ""
