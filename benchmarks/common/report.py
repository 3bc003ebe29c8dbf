"""The parts of a report that benchmarks share."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from benchmarks.common.contestants import Contestant
from benchmarks.common.figures import compared, cpu_micros, per_second
from benchmarks.common.journal import Results
from benchmarks.common.tables import shown, table

CLUSTERS = {"mock": "Mock brokers in a process of their own", "real": "Three Apache Kafka brokers"}


def about_run(results: Results) -> str:
    """The command, and the machine."""
    run = results.of("run")[0]
    machine = "\n".join(f"- {name}: {value}" for name, value in run["machine"].items())
    command = f"`{run['command']}`, seed {run['seed']}, {run['date']}."
    return f"{command} Written by the program; every figure is from this one run.\n\n{machine}\n"


def throughput_table(results: Results, contestants: Mapping[str, Contestant], base: str, **where: object) -> str:
    lines = []
    for peer, contestant in contestants.items():
        rows = results.of("throughput", peer=peer, **where)
        if not rows:
            continue
        lines.append(
            [
                contestant.title,
                f"{median(map(per_second, rows)):,.0f}",
                shown(compared(results, "throughput", per_second, peer, base, **where)),
                f"{median(map(cpu_micros, rows)):.2f}",
                shown(compared(results, "throughput", cpu_micros, peer, base, **where)),
                f"{len(rows)} of {rows[0]['records']:,}",
            ]
        )
    to_base = f"to {contestants[base].title}"
    return table(["", "records/s", to_base, "CPU µs/record", to_base, "runs of records"], lines)


def contestants_section(results: Results, contestants: Mapping[str, Contestant], how: str) -> str:
    """Those who took part in the throughput, or nothing. `how`: what is told of each, as its column is named."""
    lines = []
    for peer, contestant in contestants.items():
        rows = results.of("throughput", peer=peer)
        if rows:
            row = rows[0]
            on = f"{row['confluent_kafka']} / {row['librdkafka']}" if "librdkafka" in row else "own protocol"
            lines.append([contestant.title, row["version"], on, contestant.how])
    columns = ["", "version", "confluent-kafka / librdkafka", how]
    return f"## Contestants\n\n{table(columns, lines, figures=False)}" if lines else ""


def failures(results: Results) -> str:
    """What is missing, or nothing."""
    lines = []
    for row in results.of("failure"):
        where = ", ".join(f"{name} {row[name]}" for name in ("cluster", "size", "linger", "round") if name in row)
        lines.append(f"- {row['peer']} ({where}): `{_last_line(row['error'])}`")
    about = "A contestant that does not come to its end, or whose count is wrong, is out from there on."
    return "## Failures\n\n" + about + "\n\n" + "\n".join(lines) + "\n" if lines else ""


def _last_line(error: str) -> str:
    lines = error.strip().splitlines()
    return lines[-1].strip().replace("`", "'")[:300]
