"""Makes the environment that the benchmarks run in. Standard library only: it runs before there is one."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Environment:
    folder: Path
    constraints: Path
    packages: tuple[str, ...]

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def make(self) -> None:
        """Does nothing if it is there and nothing it is made from has changed."""
        stamp, made_from = self.folder / ".ready", self._made_from()
        if stamp.exists() and stamp.read_text() == made_from:
            return
        if sys.version_info < (3, 11):
            sys.exit("the peers need Python >= 3.11. Name another one: make ... PYTHON=python3.12")
        print(f"Installing into {self.folder.relative_to(ROOT)} (first time only) ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", self.folder], check=True)
        (self.folder / ".gitignore").write_text("*\n")
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--constraint", str(self.constraints), *self.packages], cwd=ROOT, check=True)
        stamp.write_text(made_from)  # last: a broken install is never taken for a whole one

    def _made_from(self) -> str:
        parts = [
            self.constraints.read_bytes(),
            (ROOT / "pyproject.toml").read_bytes(),
            " ".join(self.packages).encode(),
        ]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()


SHARED = Environment(
    ROOT / ".venv-bench",
    Path(__file__).resolve().parent / "constraints.txt",
    ("aiokafka", "faststream[confluent]", "kafka-python[crc32c]", "matplotlib", "psutil", "--editable", ".[testing]"),
)


if __name__ == "__main__":
    SHARED.make()
