"""The package's face: every public name is there, and importing the package costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import safekafka


@pytest.mark.parametrize("name", safekafka.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(safekafka, name).__name__ == name
    assert name in dir(safekafka)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'SafeProduccer'"):
        safekafka.SafeProduccer  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_alone_loads_no_kafka_client() -> None:
    program = "import safekafka, sys; sys.exit('confluent_kafka' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
