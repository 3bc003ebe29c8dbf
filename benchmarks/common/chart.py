"""The picture: panels of bars, each a multiple of what is 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from benchmarks.common.ratios import Ratio
from matplotlib import pyplot
from matplotlib.axes import Axes

_OURS, _OTHERS, _LINE = "#1f6feb", "#9aa4b2", "#444444"


@dataclass(frozen=True)
class Bar:
    name: str
    ratio: Ratio
    told: str  # beside the bar
    ours: bool


@dataclass(frozen=True)
class Panel:
    title: str
    bars: Sequence[Bar]  # from the top


def draw(panels: Sequence[Panel], title: str, path: Path, height: float) -> None:
    """Two panels beside each other, each as many inches high. Draws nothing if there is none."""
    if not panels:
        return
    mpl.use("svg")
    # The same figures give the same file.
    mpl.rcParams.update({"svg.hashsalt": path.stem, "font.size": 9, "svg.fonttype": "none"})
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(6.5 * columns, height * rows), squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _panel(axes, panel)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    inches = height * rows
    figure.suptitle(title, y=1 - 0.1 / inches, va="top")
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.25 / inches))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _panel(axes: Axes, panel: Panel) -> None:
    bars = panel.bars[::-1]  # matplotlib begins at the bottom
    ratios = [bar.ratio for bar in bars]
    axes.barh(
        [bar.name for bar in bars],
        [ratio.median for ratio in ratios],
        xerr=[[r.median - r.low for r in ratios], [r.high - r.median for r in ratios]],
        color=[_OURS if bar.ours else _OTHERS for bar in bars],
        ecolor=_LINE,
        capsize=2,
    )
    for place, bar in enumerate(bars):
        axes.text(bar.ratio.high, place, f"  {bar.told}", va="center", fontsize=8)
    axes.axvline(1, color=_LINE, linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 1.45 * max(ratio.high for ratio in ratios))
    axes.set_title(panel.title)
    axes.spines[["top", "right"]].set_visible(False)
