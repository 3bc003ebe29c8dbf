"""The report: what was measured, how, on what, and how sure the figures are."""

from __future__ import annotations

from statistics import median

from benchmarks.common.figures import compared
from benchmarks.common.journal import Results
from benchmarks.common.report import CLUSTERS, about_run, contestants_section, failures, throughput_table
from benchmarks.common.requirements import requirements_section
from benchmarks.common.tables import shown, table
from benchmarks.consumer.compared import share_of_ideal
from benchmarks.consumer.contestants import BASE, CONTESTANTS, POLL
from benchmarks.consumer.requirements import requirements
from benchmarks.consumer.setup import KEYS, PARTITIONS, VALUE_BYTES

_MIB = 1 << 20
_SLEEPING = """`order="key"`: the rate of handlers that sleep, as a share of that of the same sleeps by as many threads
(tasks) without Kafka, measured just before in the same process. As many as there are keys, if these are fewer. "On
cores" is the processor time per second: where the sleeps alone take nearly one, which is all that an interpreter has,
whatever a consumer does for a record is missing in its rate. "At a queue": as many threads at a queue that a tuned raw
`consume(500)` fills, without order, count or commit, in the same process too, where there are keys for all of them.
Mock brokers."""
_IDLE = """A record every 20 ms on average, from the call of `produce()` (linger 0) to the handler, in one process."""
_KEYS = """One record a key, sent while they are handled, `order="key"`, 8 at once; resident memory. Mock brokers."""
_SLOW = """A handler that takes 0.5 s a record, and a topic full of records of 1 MB; `max_in_flight_bytes` and the
client's `queued.max.messages.kbytes` are set to the bound. Resident memory before the start, and its peak."""


def render(results: Results) -> str:
    """The report as Markdown."""
    parts = [_head, _requirements, _throughput, _sleeping, _idle, _keys, _slow, _contestants, failures]
    return "\n".join(text for part in parts if (text := part(results)))


def _head(results: Results) -> str:
    return f"""# Consumer benchmark

{about_run(results)}
{PARTITIONS} partitions with three replicas, values of {VALUE_BYTES} bytes, {KEYS:,} keys in turn. Every run is a fresh
process with a group of its own, which starts at the beginning of a topic that holds exactly the records of its run. The
clock runs from the first record that the handler gets to the last, so joining the group is not in it. On mock brokers a
fetch that finds nothing waits for 10 ms, for everybody: they do not end it when a record comes. When the process
has ended, the group's committed offsets must cover every record. CPU is the user and system time of that process
between the same two moments, with all its threads. The rounds are interleaved: each has every contestant once, in a
random order, SafeConsumer next to raw `consume(500)`. A ratio is taken within a round; told are the median of the
rounds' ratios and, in brackets, its 95 % bootstrap interval. Raw loops that are not tuned have the client's own
`fetch.queue.backoff.ms`, a second for which they stand still when enough is fetched ahead: what SafeConsumer itself
costs is seen beside the tuned ones.

![Rates](consumer.svg)
"""


def _requirements(results: Results) -> str:
    return requirements_section(requirements(results))


def _throughput(results: Results) -> str:
    tables = []
    for cluster in results.values("throughput", "cluster"):
        brokers = CLUSTERS[cluster][0].lower() + CLUSTERS[cluster][1:]
        figures = throughput_table(results, CONTESTANTS, BASE, cluster=cluster)
        tables.append(f"## A handler that does nothing: {brokers}\n\n{figures}")
    return "\n".join(tables)


def _sleeping(results: Results) -> str:
    lines = []
    for form, title in (("sync", "threads"), ("async", "tasks")):
        for milliseconds in sorted(results.values("sleeping", "milliseconds")):
            for concurrency in sorted(results.values("sleeping", "concurrency")):
                for keys in sorted(results.values("sleeping", "keys")):
                    case = {"form": form, "milliseconds": milliseconds, "concurrency": concurrency, "keys": keys}
                    share, rows = share_of_ideal(results, **case), results.of("sleeping", **case)
                    if share is not None:
                        workers = f"{concurrency:,} {title if concurrency > 1 else title[:-1]}"
                        what = f"{workers}, {milliseconds} ms, {keys:,} key{'s' if keys > 1 else ''}"
                        line = [what]
                        for wall, cpu in (("ideal", "ideal_cpu"), ("wall", "cpu")):
                            line.append(f"{median(row['records'] / row[wall] for row in rows):,.0f}")
                            line.append(f"{median(row[cpu] / row[wall] for row in rows):.2f}")
                        told = form == "sync" and keys >= concurrency
                        at_queue = f"{median(row['ideal'] / row['queued'] for row in rows):.2f}" if told else "-"
                        lines.append([*line, shown(share), at_queue, str(len(rows))])
    columns = ["", "ideal, records/s", "on cores", "records/s", "on cores", "share", "at a queue", "runs"]
    return f"## Handlers that sleep\n\n{_SLEEPING}\n\n{table(columns, lines)}" if lines else ""


def _idle(results: Results) -> str:
    lines = []
    for cluster in results.values("idle", "cluster"):
        for peer, contestant in CONTESTANTS.items():
            rows = results.of("idle", peer=peer, cluster=cluster)
            if rows:
                line = [f"{cluster}, {contestant.title}"]
                for name in ("p50", "p99"):
                    ratio = compared(results, "idle", lambda row, of=name: float(row[of]), peer, POLL, cluster=cluster)
                    line += [f"{median(row[name] for row in rows) * 1e3:.2f}", shown(ratio)]
                lines.append(line)
    columns = ["", "p50 ms", "to raw poll()", "p99 ms", "to raw poll()"]
    return f"## An idle stream\n\n{_IDLE}\n\n{table(columns, lines)}" if lines else ""


def _keys(results: Results) -> str:
    lines = [
        [
            f"{row['records']:,}",
            *(f"{row[name] / _MIB:.1f}" for name in ("early", "middle", "late")),
            f"{row['wall']:.0f}",
        ]
        for row in results.of("keys")
    ]
    columns = ["keys", "MiB after a tenth", "MiB after half", "MiB at the end", "seconds"]
    return f"## Memory with very many keys\n\n{_KEYS}\n\n{table(columns, lines)}" if lines else ""


def _slow(results: Results) -> str:
    lines = [
        [
            row["cluster"],
            *(f"{row[name] / _MIB:.0f}" for name in ("bytes", "bound", "before", "peak")),
            f"{row['handled']}",
        ]
        for row in results.of("slow")
    ]
    columns = ["brokers", "MiB in the topic", "bound, MiB", "MiB before", "peak MiB", "handled"]
    return f"## Memory with a slow handler\n\n{_SLOW}\n\n{table(columns, lines)}" if lines else ""


def _contestants(results: Results) -> str:
    return contestants_section(results, CONTESTANTS, "how it handles and commits")
