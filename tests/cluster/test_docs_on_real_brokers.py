"""The code blocks that need real brokers, and the quick start as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documentation import Block, blocks, run_pytest, run_python

_REAL = [block for block in blocks("python") if block.needs_real_brokers or "KafkaCluster(" in block.code]


@pytest.mark.kills_brokers
@pytest.mark.timeout(180)
@pytest.mark.parametrize("block", _REAL, ids=str)
def test_block_runs_on_real_brokers(block: Block, tmp_path: Path) -> None:
    if "def test_" in block.code:
        ended = run_pytest(block.code, tmp_path)
    else:
        ended = run_python(block.code, tmp_path, block.prints)
    assert ended.status == 0, ended.output
    assert block.prints in ended.output
