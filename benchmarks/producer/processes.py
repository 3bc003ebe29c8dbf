"""Running a worker: in the environment of its contestant, with a time limit, and ended in any case."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.producer.contestants import CONTESTANTS
from benchmarks.producer.environment import PEERS, QUIX, ROOT

_PATIENCE = 150  # seconds; no run is planned to take more than some ten
_TOLD = 4_000  # characters of what a failed worker wrote


class WorkerFailedError(Exception):
    """A worker did not come to its end, or counted wrong."""


def run_worker(measure: str, peer: str, **options: object) -> dict[str, Any]:
    """What the worker found. It gets a session of its own, so that Ctrl-C is ours alone; leaving here kills it."""
    arguments = {"measure": measure, "peer": peer, "timeout": _PATIENCE, **options}
    command = [str(_python(peer)), "-m", "benchmarks.producer.worker"]
    command += [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise WorkerFailedError(f"{' '.join(command)}\nnot done within {_PATIENCE} s") from error
    if done.returncode:
        raise WorkerFailedError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-_TOLD:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _python(peer: str) -> Path:
    contestant = CONTESTANTS.get(peer)
    environment = QUIX if contestant is not None and contestant.environment == "quix" else PEERS
    return environment.python
