"""What all suites share."""

from __future__ import annotations

import os

import hypothesis
import pytest

hypothesis.settings.register_profile("safekafka", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("safekafka")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two processes that share the tests must not both start the real brokers of tests/cluster, nor disturb them."""
    for item in items:
        if item.nodeid.startswith("tests/cluster/"):
            item.add_marker(pytest.mark.xdist_group("cluster"))


@pytest.fixture(scope="session")
def scale() -> int:
    """How large the fault and kill suites run: 1 in `make test`, more in `make soak SCALE=...`."""
    return int(os.environ.get("SAFEKAFKA_SCALE", "1"))
