"""Sync and async in one code: it is written as a coroutine, and run to its end at once where nothing of it waits."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def now(steps: Coroutine[Any, Any, T]) -> T:
    """Run what never waits."""
    try:
        steps.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    steps.close()
    raise RuntimeError("a sync handler's way waited")
