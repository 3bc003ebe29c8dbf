"""Ends the broker processes of an owner that is gone, however it went: a script, run as a process of its own.

Who owns what: the owner (a test run, the demo) starts this script in a session of its own, so that Ctrl-C in the
terminal does not reach it, and holds the only write end of the pipe that is this script's standard input. When the
owner ends, by any way there is (SIGKILL too), the kernel closes that end and this script reads end-of-file. Nothing
else would do: a parent-death signal fires when the creating *thread* ends, and `atexit` does not run on SIGKILL.

The pipe carries one JSON array a line: `["folder", path]` to be removed at the end, `["born", pid, identity]`,
`["gone", pid]`. Processes are killed with SIGKILL, which ends a stopped (SIGSTOP) one as well.

Standard library only: it must start fast and work whatever the environment of the owner looks like.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

PATIENCE = 10.0  # seconds that killed processes may take to be gone, before their folder is removed all the same


def identity(pid: int) -> str | None:
    """When the process started: tells it from a later one with the same number. None when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The second field is the name in brackets, and may itself hold brackets and spaces.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        if os.path.exists("/proc/self/stat"):
            return None
        return _identity_without_proc(pid)
    return None if fields[0] == "Z" else fields[19]


def _identity_without_proc(pid: int) -> str | None:
    ps = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = ps.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def _kill_all(processes: dict[int, str]) -> None:
    for pid, born in processes.items():
        # Between this comparison and the kill the number would have to be freed and used again: not in microseconds.
        if identity(pid) == born:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and any(identity(pid) == born for pid, born in processes.items()):
        time.sleep(0.02)


def main() -> None:
    # It ends by end-of-file and by nothing milder than SIGKILL: a service manager that sends SIGTERM to a whole group
    # must not end the watchdog first.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    folders: list[str] = []
    processes: dict[int, str] = {}
    for line in sys.stdin.buffer:
        match json.loads(line):
            case ["folder", path]:
                folders.append(path)
            case ["born", int(pid), str(born)]:
                processes[pid] = born
            case ["gone", pid]:
                processes.pop(pid, None)
    _kill_all(processes)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
