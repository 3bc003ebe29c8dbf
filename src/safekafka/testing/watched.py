"""Starts processes that end when we do: the owner's side of `watchdog.py`.

Who owns what: one `Watched` has one watchdog process and the write end of its pipe. Only the process that made it may
use it; in a forked child the write end is closed at once, or the child would keep the brokers alive after its parent's
end. A lock guards the pipe's line protocol; no other lock is taken under it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from safekafka.testing import watchdog
from safekafka.testing.errors import KafkaClusterError

_open: weakref.WeakSet[Watched] = weakref.WeakSet()


class Watched:
    """A group of processes, and folders, that do not outlive this process.

    `folders` are removed at the end, also when this process is killed.
    """

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        # Neither end is inheritable (PEP 446): no broker, no other child has one; the watchdog its standard input.
        read_end, self._pipe = os.pipe()
        try:
            self._watchdog = subprocess.Popen(
                [sys.executable, "-I", "-S", watchdog.__file__],
                stdin=read_end,
                # Not ours: whoever reads our output to its end would otherwise wait for the watchdog too.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(read_end)
        _open.add(self)
        for folder in folders:
            self._tell("folder", str(folder))

    def spawn(
        self, argv: Sequence[str], *, log: Path, cwd: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `argv` in a session of its own, its output appended to `log`.

        The shell in between waits for one line before it becomes the program. We write it when the watchdog knows the
        process: were we killed before, it would read end-of-file and end.
        """
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "sh", *argv],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=env,
                start_new_session=True,
            )
        assert process.stdin is not None
        try:
            self._tell("born", process.pid, watchdog.identity(process.pid))
            process.stdin.write(b"go\n")
        finally:
            process.stdin.close()
        return process

    def reap(self, process: subprocess.Popen[bytes], timeout: float) -> None:
        """Wait for the end of a process that was told to end. Raises `subprocess.TimeoutExpired`."""
        process.wait(timeout)
        self._tell("gone", process.pid)

    def close(self) -> None:
        """Let the watchdog end what is left, and wait for it. Does nothing in a forked child, and when called again."""
        if os.getpid() != self.owner:
            return
        self._close_pipe()
        self._watchdog.wait(2 * watchdog.PATIENCE)

    def _tell(self, *message: object) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            if self._pipe < 0:
                raise KafkaClusterError(
                    "the cluster is closed, or belongs to the process that this one was forked from"
                )
            try:
                # One write of less than PIPE_BUF: the watchdog sees all of it or nothing, also if we are killed here.
                os.write(self._pipe, line)
            except BrokenPipeError:
                raise KafkaClusterError("the watchdog process of this cluster was killed") from None

    def _close_pipe(self) -> None:
        with self._lock:
            pipe, self._pipe = self._pipe, -1
        if pipe >= 0:
            os.close(pipe)

    def _forget_in_child(self) -> None:
        # The lock may have been held by a thread that does not exist here.
        self._lock = threading.Lock()
        self._close_pipe()


def _after_fork_in_child() -> None:
    for watched in list(_open):
        watched._forget_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
