"""Running a worker: with a time limit, and ended in any case."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.common.environment import ROOT

_PATIENCE = 150  # seconds; no run is planned to take more than some ten
_TOLD = 4_000  # characters of what a failed worker wrote


class WorkerFailedError(Exception):
    """A worker did not come to its end, or counted wrong."""


def start_worker(python: Path, module: str, *, patience: int = _PATIENCE, **options: object) -> dict[str, Any]:
    """What the worker found, within `patience` seconds. It gets a session of its own, so that Ctrl-C is ours alone;
    leaving here kills it."""
    arguments = {"timeout": patience, **options}
    command = [str(python), "-m", module]
    command += [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise WorkerFailedError(f"{' '.join(command)}\nnot done within {patience} s") from error
    if done.returncode:
        raise WorkerFailedError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-_TOLD:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def end_worker(found: dict[str, Any]) -> NoReturn:
    """In the worker: its last line. The measurement is over, nobody has to wait for a client that is being closed."""
    print(json.dumps(found), flush=True)
    os._exit(0)


class WrongCountError(Exception):
    """Not as many records were delivered as were sent: there is nothing to measure."""


def check_count(delivered: int, expected: int) -> None:
    if delivered != expected:
        raise WrongCountError(f"{delivered} of {expected} records delivered")
