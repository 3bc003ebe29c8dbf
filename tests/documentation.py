"""The code blocks of the README and the docs, and how they are run: each as a program of its own, as a reader would.

A comment in front of a block, `<!-- prints: text -->`, says what it must print. A program that has printed that and
goes on (a consumer does) gets Ctrl-C, and must end without an error.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_BLOCK = re.compile(r"(?:<!-- prints: (?P<prints>.*?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)```", re.DOTALL)
_SECONDS = 100.0
_GOES_ON_SECONDS = 3.0  # who has not ended by then goes on; on a busy machine an end takes its time


class Block(NamedTuple):
    page: str
    line: int
    language: str
    code: str
    prints: str

    @property
    def needs_real_brokers(self) -> bool:
        return "kafka_cluster" in self.code or "kafka.kill(" in self.code

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            block = Block(
                str(page.relative_to(ROOT)),
                text.count("\n", 0, match.start("code")) + 1,
                match["language"],
                match["code"],
                match["prints"] or "",
            )
            if block.language in languages:
                found.append(block)
    return found


def before(diff: str) -> str:
    return "".join(line[1:] for line in diff.splitlines(keepends=True) if not line.startswith("+"))


def after(diff: str) -> str:
    return "".join(line[1:] for line in diff.splitlines(keepends=True) if not line.startswith("-"))


class Ended(NamedTuple):
    status: int
    output: str


def run(command: list[str], folder: Path, prints: str, stdin: str = "", **environment: str) -> Ended:
    """Run it until it ends, or until it has printed `prints` and then got Ctrl-C."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it may be ignored in the background
    )
    too_long = threading.Timer(_SECONDS, process.kill)
    too_long.start()
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(stdin)
        process.stdin.close()
        output, interrupted = "", False
        for line in process.stdout:
            output += line
            if prints and prints in output and not interrupted:
                interrupted = True
                threading.Timer(_GOES_ON_SECONDS, process.send_signal, (signal.SIGINT,)).start()
        status = process.wait()
        # Who dies of it without a traceback was ending by himself: Python has put its own handler away by then.
        ended_before = status == -signal.SIGINT and interrupted and "Traceback" not in output
        return Ended(0 if ended_before else status, output)
    finally:
        too_long.cancel()
        process.kill()
        process.wait()


def run_python(code: str, folder: Path, prints: str = "") -> Ended:
    program = folder / "program.py"
    program.write_text(code, encoding="utf-8")
    return run([sys.executable, str(program)], folder, prints)


def run_shell(code: str, folder: Path) -> Ended:
    """With the commands of this environment; ends at the first one that fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return run(["sh", "-e", "-c", code], folder, "", PATH=path)


def run_pytest(code: str, folder: Path) -> Ended:
    (folder / "test_block.py").write_text(code, encoding="utf-8")
    return run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."], folder, "")
