"""The picture: throughput beside the raw client with a callback."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import matplotlib as mpl
from benchmarks.producer.compared import compared
from benchmarks.producer.contestants import CONTESTANTS
from benchmarks.producer.journal import Results
from benchmarks.producer.report import cpu_micros, per_second
from matplotlib import pyplot
from matplotlib.axes import Axes

_OURS, _OTHERS, _LINE = "#1f6feb", "#9aa4b2", "#444444"


def draw(results: Results, path: Path) -> None:
    panels = [
        (cluster, size)
        for cluster in results.values("throughput", "cluster")
        for size in results.values("throughput", "size", cluster=cluster)
    ]
    if not panels:
        return
    mpl.use("svg")
    # The same figures give the same file.
    mpl.rcParams.update({"svg.hashsalt": "producer", "font.size": 9, "svg.fonttype": "none"})
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(6.5 * columns, 3.9 * rows), squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _panel(axes, results, *panel)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle("Throughput, acks=all and idempotence; raw confluent-kafka with a delivery callback = 1")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _panel(axes: Axes, results: Results, cluster: str, size: int) -> None:
    where = {"cluster": cluster, "size": size}
    there = [peer for peer in reversed(CONTESTANTS) if results.of("throughput", peer=peer, **where)]
    ratios = [compared(results, "throughput", per_second, peer, **where) for peer in there]
    axes.barh(
        [CONTESTANTS[peer].title for peer in there],
        [ratio.median for ratio in ratios],
        xerr=[[r.median - r.low for r in ratios], [r.high - r.median for r in ratios]],
        color=[_OURS if peer.startswith("safekafka") else _OTHERS for peer in there],
        ecolor=_LINE,
        capsize=2,
    )
    for place, (peer, ratio) in enumerate(zip(there, ratios, strict=True)):
        rows = results.of("throughput", peer=peer, **where)
        told = f"  {median(map(per_second, rows)) / 1000:,.0f} k/s, {median(map(cpu_micros, rows)):.1f} µs CPU"
        axes.text(ratio.high, place, told, va="center", fontsize=8)
    axes.axvline(1, color=_LINE, linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 1.45 * max(ratio.high for ratio in ratios))
    axes.set_title(f"{'mock brokers' if cluster == 'mock' else 'three real brokers'}, {size:,} B")
    axes.spines[["top", "right"]].set_visible(False)
