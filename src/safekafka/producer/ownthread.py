"""Calls that would wait for their own thread are refused instead of hanging."""

from __future__ import annotations

import threading

from safekafka.errors import SafeKafkaError


def refuse_on(thread: threading.Thread, call: str) -> None:
    """Raise if this is the thread that resolves receipts: it alone makes the progress that `call` would wait for."""
    if threading.current_thread() is thread:
        raise SafeKafkaError(
            f"{call} inside a delivery callback would wait for ever: this thread is the one that makes the progress. "
            "Remedy: call it from another thread; receipt.done() and receipt.add_done_callback() work here."
        )
