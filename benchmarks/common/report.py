"""The parts of a report that every benchmark has."""

from __future__ import annotations

from benchmarks.common.journal import Results


def about_run(results: Results) -> str:
    """The command, and the machine."""
    run = results.of("run")[0]
    machine = "\n".join(f"- {name}: {value}" for name, value in run["machine"].items())
    command = f"`{run['command']}`, seed {run['seed']}, {run['date']}."
    return f"{command} Written by the program; every figure is from this one run.\n\n{machine}\n"


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
