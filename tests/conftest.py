"""What all suites share."""

from __future__ import annotations

import os

import hypothesis
import pytest

hypothesis.settings.register_profile("safekafka", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("safekafka")


@pytest.fixture(scope="session")
def scale() -> int:
    """How large the fault and kill suites run: 1 in `make test`, more in `make soak SCALE=...`."""
    return int(os.environ.get("SAFEKAFKA_SCALE", "1"))
