"""The group protocols, and with the classic one its assignors, that a consumer is tested with."""

from __future__ import annotations

import pytest

PROTOCOLS = pytest.mark.parametrize(
    "protocol",
    [
        {"partition.assignment.strategy": "range"},
        {"partition.assignment.strategy": "cooperative-sticky"},
        {"group.protocol": "consumer"},
    ],
    ids=["range", "cooperative-sticky", "kip-848"],
)
