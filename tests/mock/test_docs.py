"""The README, the docs and the examples do what they say: every code block is run, every name looked up."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Producer

from safekafka.deadletter.about import About
from safekafka.deadletter.dialects import NATIVE, written
from safekafka.observe import Event
from safekafka.testing import MockCluster
from tests.documentation import PAGES, ROOT, Block, after, before, blocks, run, run_pytest, run_python, run_shell

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_COMPOSE_CLUSTER = re.compile(r"localhost:19092(,localhost:\d+)*")
# Shell blocks may hold these commands and no others. Make's targets and the extras are looked up.
_COMMANDS = (
    re.compile(r"make (?P<target>\w+)( SUITE=(?P<suite>\w+))?( SCALE=\d+)?"),
    re.compile(r"pip install '?safekafka(\[(?P<extras>[\w,]+)\])?'?"),
    re.compile(r"docker compose (up --wait|down|exec kafka-\d /opt/kafka/bin/kafka-topics\.sh .+)"),
    re.compile(r"safekafka spool .+"),  # run by test_spool_commands_run_...
    re.compile(r"safekafka dlq .+"),  # run by test_dlq_commands_run_...
)


@pytest.fixture
def kafka(kafka_mock: MockCluster) -> MockCluster:
    """The cluster that the blocks find: topics, two orders, and a dead letter."""
    for topic in ("orders", "orders.dlq"):
        kafka_mock.create_topic(topic, partitions=3)
    producer = Producer({"bootstrap.servers": kafka_mock.bootstrap_servers})
    producer.produce("orders", b'{"customer": "anna", "item": "pizza"}', key=b"anna")
    producer.produce("orders", b"not an order", key=b"bob")
    about = About(
        "orders", 0, 1, group="kitchen", error_class="json.decoder.JSONDecodeError", error_message="not an order"
    )
    now_ms = int(time.time() * 1000)
    headers = written(replace(about, failed_at=now_ms), NATIVE)
    producer.produce("orders.dlq", b"not an order", partition=0, headers=headers)
    assert producer.flush(10) == 0
    return kafka_mock


def _on(kafka: MockCluster, code: str) -> str:
    # The quick start brings its own brokers; here they are mock ones. test_docs_on_real_brokers.py runs it as it is.
    code = code.replace("KafkaCluster", "MockCluster")
    return _COMPOSE_CLUSTER.sub(kafka.bootstrap_servers, code)


@pytest.mark.parametrize("block", [b for b in blocks("python") if not b.needs_real_brokers], ids=str)
def test_python_block_runs(block: Block, kafka: MockCluster, tmp_path: Path) -> None:
    if "def test_" in block.code:
        ended = run_pytest(block.code, tmp_path)
    else:
        ended = run_python(_on(kafka, block.code), tmp_path, block.prints)
    assert ended.status == 0, ended.output
    assert block.prints in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.parametrize("block", blocks("diff"), ids=str)
def test_code_before_and_after_runs(block: Block, kafka: MockCluster, tmp_path: Path) -> None:
    new = run_python(_on(kafka, after(block.code)), tmp_path, block.prints)
    assert new.status == 0, new.output
    assert block.prints in new.output

    code = before(block.code).replace('"kitchen"', '"kitchen-before"')  # the group has read everything
    old = run_python(_on(kafka, code), tmp_path, block.prints)
    assert old.status == 0 or "KeyboardInterrupt" in old.output, old.output
    assert block.prints in old.output


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_shell_block_has_commands_that_exist(block: Block) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for line in block.code.splitlines():
        found = next((match for pattern in _COMMANDS if (match := pattern.fullmatch(line))), None)
        assert found is not None, f"{line!r} is not among the commands that are checked"
        named = found.groupdict()
        if named.get("target"):
            assert re.search(rf"^{named['target']}:", makefile, re.MULTILINE), f"make has no {named['target']!r}"
        if named.get("suite"):
            assert (ROOT / "tests" / named["suite"]).is_dir()
        for extra in (named.get("extras") or "").split(","):
            assert not extra or extra in extras


@pytest.mark.parametrize("page", sorted({b.page for b in blocks("sh") if b.code.startswith("safekafka spool")}))
def test_spool_commands_run_on_what_the_programs_of_their_page_left(
    page: str, kafka: MockCluster, tmp_path: Path
) -> None:
    for block in [b for b in blocks("python", "sh") if b.page == page]:
        if block.language == "python":
            kafka.set_broker_down()
            ended = run_python(_on(kafka, block.code), tmp_path, block.prints)
        elif block.code.startswith("safekafka spool"):
            kafka.set_broker_up()
            ended = run_shell(_on(kafka, block.code), tmp_path)
        else:
            continue
        assert ended.status == 0, ended.output
        assert block.prints in ended.output
        assert "Traceback" not in ended.output


def test_dlq_commands_run_on_a_letter_that_is_there(kafka: MockCluster, tmp_path: Path) -> None:
    found = [block for block in blocks("sh") if block.code.startswith("safekafka dlq")]
    assert found
    for block in found:
        ended = run_shell(_on(kafka, block.code), tmp_path)
        assert ended.status == 0, ended.output
        assert block.prints in ended.output
        assert "Traceback" not in ended.output


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    fences = sum(page.read_text(encoding="utf-8").count("\n```") for page in PAGES)
    assert len(blocks("python", "diff", "sh")) * 2 == fences


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("https://"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_docs_name_only_tests_that_exist() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    existing = set(re.findall(r"def (test_\w+)", sources))
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    failures = (ROOT / "docs" / "known-failures.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", text + failures))
    assert named <= existing, f"no such tests: {sorted(named - existing)}"
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        assert re.search(r"`test_\w+`", section), f"no test proves {section.splitlines()[0]!r}"
    promises = re.findall(r"^### (\w\d) ", text, re.MULTILINE)
    assert promises == [f"P{n}" for n in range(1, 9)] + [f"C{n}" for n in range(1, 9)]


def test_docs_name_every_event_with_its_level() -> None:
    text = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.MULTILINE)
    levels = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}
    assert sorted(rows) == sorted((event.value[0], levels[event.value[1]]) for event in Event)


def test_examples_send_and_handle_orders(kafka: MockCluster, tmp_path: Path) -> None:
    sent = run(
        [sys.executable, str(ROOT / "examples" / "send_orders.py")],
        tmp_path,
        prints="",
        stdin="carla soup\ndora cake\n",
        KAFKA=kafka.bootstrap_servers,
    )
    assert sent.status == 0, sent.output
    assert "2 orders taken, 0 of them not yet in Kafka" in sent.output

    handled = run(
        [sys.executable, str(ROOT / "examples" / "handle_orders.py")],
        tmp_path,
        prints="dead_lettered",
        KAFKA=kafka.bootstrap_servers,
    )
    assert handled.status == 0, handled.output
    for line in ("anna gets pizza", "carla gets soup", "dora gets cake", "dead_lettered"):
        assert line in handled.output
