# SPDX-License-Identifier: Apache-2.0
"""Draws a run's small calls: a bar to the p50 and a whisker to the p99, on a logarithmic axis.

Usage: ``python -m benchmarks.plot RESULTS.json PICTURE.png``, under the benchmark's interpreter, which has
matplotlib.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

OURS, FLOOR, PEER = "#0b7a75", "#9aa0a6", "#c98b3c"
SMALLEST_MICROSECONDS = 1.0


def color(name: str) -> str:
    """Whose bar it is."""
    return OURS if name.startswith("atoll") else FLOOR if name.startswith("floor") else PEER


def draw(results: dict[str, Any], picture: Path) -> None:
    """Writes the picture, fastest at the top. The file's type follows from its name."""
    ordered = sorted(results["contenders"].items(), key=lambda item: item[1]["nanoseconds"]["p50"], reverse=True)
    p50s = [one["nanoseconds"]["p50"] / 1e3 for _, one in ordered]
    p99s = [max(one["nanoseconds"]["p99"] / 1e3, p50) for (_, one), p50 in zip(ordered, p50s, strict=True)]
    figure, axes = pyplot.subplots(figsize=(10, 1.6 + 0.36 * len(ordered)), dpi=150, layout="constrained")
    positions = range(len(ordered))
    axes.barh(positions, p50s, color=[color(name) for name, _ in ordered], height=0.62)
    for position, p50, p99 in zip(positions, p50s, p99s, strict=True):
        axes.plot([p50, p99], [position, position], color="#333333", linewidth=1.2)
        axes.plot([p99], [position], marker="|", color="#333333", markersize=9)
        axes.annotate(
            f"{p50:.3g} µs",
            (p99, position),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(list(positions), [one["title"] for _, one in ordered], fontsize=10)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlim(min([SMALLEST_MICROSECONDS, *(p50 / 1.5 for p50 in p50s)]), max(p99s) * 3)
    axes.set_xlabel("µs per call, logarithmic: bar and number p50, whisker p99")
    axes.set_title("Small call, warm: keyword arguments in, a dict out", loc="left", fontsize=12)
    axes.grid(axis="x", which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(
        handles=[
            Patch(color=OURS, label="atoll"),
            Patch(color=FLOOR, label="C floor"),
            Patch(color=PEER, label="peers"),
        ],
        loc="upper right",
        frameon=False,
    )
    figure.savefig(picture)
    pyplot.close(figure)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
