"""Events: through the application's logging, and unable to hurt who tells them."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import structlog

from safekafka.observe import Event, emit


def test_without_structlog_an_event_is_a_line_of_the_logger_safekafka(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="safekafka"):
        emit(Event.SPOOL_RECOVERED, records=3)
    assert caplog.records[0].name == "safekafka"
    assert caplog.records[0].getMessage() == "spool_recovered records=3"


def test_with_structlog_configured_an_event_goes_through_it() -> None:
    from structlog.testing import capture_logs

    structlog.configure()
    try:
        with capture_logs() as lines:
            emit(Event.SPOOL_RECOVERED, records=3)
        assert lines == [{"event": "spool_recovered", "records": 3, "log_level": "info"}]
    finally:
        structlog.reset_defaults()


def test_a_log_sink_that_raises_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(logging.getLogger("safekafka"), "log", broken)
    emit(Event.SPOOL_RECOVERED, records=3)


def test_event_names_are_unique() -> None:
    names = [event.value[0] for event in Event]
    assert len(names) == len(set(names)) == len(Event.__members__)


def test_B_X01_importing_the_library_installs_no_signal_handler_and_configures_no_logging() -> None:
    program = (
        "import signal, logging\n"
        "before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]\n"
        "import safekafka, structlog\n"
        "assert before == [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]\n"
        "assert not logging.getLogger().handlers and not structlog.is_configured()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
