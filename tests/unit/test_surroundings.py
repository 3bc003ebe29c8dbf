"""Surroundings in which the delivery thread could not run are refused when a producer is made. Each in a process of its
own, since a patched interpreter stays patched."""

from __future__ import annotations

import subprocess
import sys

import pytest

MAKE = """
from safekafka import SafeKafkaError, SafeProducer
try:
    SafeProducer({"bootstrap.servers": "127.0.0.1:1"}).close(0)
except SafeKafkaError as error:
    print(error)
else:
    print("made")
"""
EVENTLET = """
import sys, types
eventlet, patcher = types.ModuleType("eventlet"), types.ModuleType("eventlet.patcher")
patcher.is_monkey_patched = {patched!r}.__contains__
sys.modules.update({{"eventlet": eventlet, "eventlet.patcher": patcher}})
"""
UWSGI = """
import sys, types
uwsgi = types.ModuleType("uwsgi")
uwsgi.opt, uwsgi.worker_id = {options!r}, lambda: {worker}
sys.modules["uwsgi"] = uwsgi
"""


def answer(before: str) -> str:
    done = subprocess.run([sys.executable, "-c", before + MAKE], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("patch", ["patch_all()", "patch_thread()"])
def test_threads_replaced_by_gevent_are_refused_with_the_remedy(patch: str) -> None:
    refused = answer(f"from gevent import monkey; monkey.{patch}\n")
    assert "gevent has replaced" in refused
    assert "Remedy: leave threads alone (gevent.monkey.patch_all(thread=False))" in refused


@pytest.mark.parametrize("patch", ["monkey.patch_all(thread=False)", "monkey.patch_socket()", "pass"])
def test_gevent_that_leaves_threads_alone_is_no_reason_to_refuse(patch: str) -> None:
    assert answer(f"import gevent; from gevent import monkey; {patch}\n") == "made\n"


def test_threads_replaced_by_eventlet_are_refused_with_the_remedy() -> None:
    refused = answer(EVENTLET.format(patched=["thread", "socket"]))
    assert "eventlet has replaced" in refused
    assert "Remedy: leave threads alone (eventlet.monkey_patch(thread=False))" in refused


def test_eventlet_that_leaves_threads_alone_is_no_reason_to_refuse() -> None:
    assert answer(EVENTLET.format(patched=["socket"])) == "made\n"


@pytest.mark.parametrize("options", [{}, {"master": True}, {"enable-threads": b"false"}, {b"threads": b"0"}], ids=str)
def test_uwsgi_without_threads_is_refused_with_the_remedy(options: dict[str, object]) -> None:
    assert "Remedy: enable-threads = true" in answer(UWSGI.format(options=options, worker=1))


@pytest.mark.parametrize(
    "options",
    [{"enable-threads": True}, {"enable-threads": b"true"}, {b"threads": b"4"}, {"threads": [b"1", b"2"]}],
    ids=str,
)
def test_uwsgi_with_threads_is_no_reason_to_refuse(options: dict[str, object]) -> None:
    assert answer(UWSGI.format(options=options, worker=1)) == "made\n"


def test_a_uwsgi_master_whose_workers_would_not_notice_the_fork_is_refused() -> None:
    options: dict[str, object] = {"enable-threads": True, "master": True}
    assert "lazy-apps = true" in answer(UWSGI.format(options=options, worker=0))
    assert answer(UWSGI.format(options={**options, "py-call-osafterfork": True}, worker=0)) == "made\n"
    assert answer(UWSGI.format(options=options, worker=1)) == "made\n"
