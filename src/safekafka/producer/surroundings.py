"""Surroundings in which the delivery thread could not run, refused before a record is accepted: it would stay in the
buffer for ever.

Looks only at modules that are loaded already; imports none.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

from safekafka.errors import SafeKafkaError

_OFF = (b"false", b"0", b"no", b"off", b"")
_THREADS = ("enable-threads", "threads")
_FORK_HOOKS = ("py-call-osafterfork", "py-call-uwsgi-fork-hooks")


def refuse_unfit_surroundings() -> None:
    """Raise `SafeKafkaError` with the remedy where a thread of ours would not run, or a fork would go unnoticed."""
    if _gevent_has_patched():
        raise _green("gevent", "gevent.monkey.patch_all(thread=False)")
    if _eventlet_has_patched():
        raise _green("eventlet", "eventlet.monkey_patch(thread=False)")
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is not None and isinstance(options := getattr(uwsgi, "opt", None), Mapping):
        _refuse_unfit_uwsgi(uwsgi, options)


def _gevent_has_patched() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    with contextlib.suppress(Exception):  # whatever goes by that name, it is not the gevent we know
        return monkey is not None and any(monkey.is_module_patched(name) for name in ("threading", "_thread", "thread"))
    return False


def _eventlet_has_patched() -> bool:
    patcher = sys.modules.get("eventlet.patcher")
    with contextlib.suppress(Exception):
        return patcher is not None and bool(patcher.is_monkey_patched("thread"))
    return False


def _green(library: str, without_threads: str) -> SafeKafkaError:
    return SafeKafkaError(
        f"{library} has replaced Python's threads by its own. The client waits inside C, where {library} can't switch, "
        "so the delivery thread would stop every other one, or never run. "
        f"Remedy: leave threads alone ({without_threads}), or send from a process that is not patched."
    )


def _refuse_unfit_uwsgi(uwsgi: Any, options: Mapping[Any, Any]) -> None:
    if not any(_is_on(options, name) for name in _THREADS):
        raise SafeKafkaError(
            "uWSGI runs without Python threads, so the delivery thread would never run. "
            "Remedy: enable-threads = true in uWSGI's configuration."
        )
    in_master = _is_on(options, "master") and uwsgi.worker_id() == 0
    if in_master and not any(_is_on(options, name) for name in _FORK_HOOKS):
        raise SafeKafkaError(
            "this is uWSGI's master process, and its workers would not notice that they were forked: they would put "
            "records into the buffer of a client that is not theirs. Remedy: lazy-apps = true, or "
            "py-call-osafterfork = true, in uWSGI's configuration; or make the producer in the worker "
            "(uwsgidecorators.postfork)."
        )


def _is_on(options: Mapping[Any, Any], name: str) -> bool:
    """uWSGI gives True for an option without a value, bytes for one with, and a list if it stands there twice."""
    value = options.get(name, options.get(name.encode()))
    if isinstance(value, list):
        value = value[-1] if value else None
    if isinstance(value, str):
        value = value.encode()
    return bool(value) and (not isinstance(value, bytes) or value.strip().lower() not in _OFF)
