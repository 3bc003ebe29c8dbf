"""Makes the environments that the contestants live in. Standard library only: it runs before there is any of them.

Quix Streams demands an older confluent-kafka than the others have, so it has an environment of its own.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.common.environment import ROOT, SHARED, Environment

QUIX = Environment(
    ROOT / ".venv-bench" / "quix", Path(__file__).resolve().parent / "quix-constraints.txt", ("quixstreams",)
)


if __name__ == "__main__":
    SHARED.make()
    QUIX.make()
