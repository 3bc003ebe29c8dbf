"""What all suites share."""

from __future__ import annotations

import os
import signal
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

hypothesis.settings.register_profile("safekafka", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("safekafka")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # run in the background of a script; the tests send Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def scale() -> int:
    """How large the fault and kill suites run: 1 in `make test`, more in `make soak SCALE=...`."""
    return int(os.environ.get("SAFEKAFKA_SCALE", "1"))


class _OneCluster(LoadScopeScheduling):
    """The suite that kills brokers runs one test at a time, on one cluster; the others are spread beside it."""

    def _split_scope(self, nodeid: str) -> str:
        return "cluster" if nodeid.startswith("tests/cluster/") else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _OneCluster(config, log)
