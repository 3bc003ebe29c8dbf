"""`safekafka demo`, as a user runs it, on brokers of its own: nothing lost, and twice in a row."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SAFEKAFKA = [sys.executable, "-c", "from safekafka.cli import main; main()"]
pytestmark = pytest.mark.kills_brokers


@pytest.mark.timeout(400)
def test_demo_on_real_brokers_loses_nothing_twice_in_a_row(tmp_path: Path) -> None:
    for seed in (1, 2):
        demo = subprocess.run(
            [*SAFEKAFKA, "demo", "--orders", "2000", "--seed", str(seed)],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=190,
            check=False,
        )

        assert demo.returncode == 0, demo.stdout + demo.stderr
        for name, number in {
            "accepted": "2,000",
            "in Kafka": "2,000",
            "handled": "1,999",
            "dead-lettered": "1",
            "lost": "0",
            "unfinished": "0",
            "out of order": "0",
            "unexpected": "0",
        }.items():
            assert re.search(rf"^\W*{name}\W+{number}\W", demo.stdout, re.MULTILINE), f"{name}:\n{demo.stdout}"
        for event in ("SIGKILL to broker", "SIGKILL to the producer", "was started again"):
            assert event in demo.stdout
        assert list(tmp_path.iterdir()) == [], "everything temporary is removed"
