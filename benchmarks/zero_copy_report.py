# SPDX-License-Identifier: Apache-2.0
"""The section about arrays: every way to get 100 MB across, and every size in the payload and beside it.

As in ``report``: every number comes from the results. A part that failed has no table; its error stands at its figures.
"""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import table
from benchmarks.zero_copy_figures import readable_thresholds

TITLES = {
    "copy": "a warm memcpy, here",
    "copy_and_largest": "a warm memcpy and reading all of it, here",
    "atoll": "atoll",
    "atoll_largest": "atoll, all of it read over there",
    "writable": "atoll, `options(writable=True)`",
    "out": "atoll, `out=` an array in a segment",
    "shared_memory": "by hand: one `multiprocessing.shared_memory`",
    "shared_memory_largest": "by hand, all of it read over there",
    "pipe": "pickle 5 over a `multiprocessing.Pipe`",
    "process_pool": "ProcessPoolExecutor",
    "loky": "loky",
}
# Where both processes are this one's, "over there" is here.
RESULT_TITLES = {
    "atoll_largest": "atoll, all of it read here",
    "shared_memory_largest": "by hand, all of it read here",
}


def render_zero_copy(parts: dict[str, dict[str, Any]]) -> str:
    """The section, or nothing if there is nothing to show."""
    tables = [_ways(parts, name) for name in ("argument", "result")] + [_threshold(parts.get("threshold", {}))]
    shown = [one for one in tables if one]
    return "\n\n".join(["## Arrays", *shown]) if shown else ""


def _ways(parts: dict[str, dict[str, Any]], name: str) -> str:
    samples = parts.get(name, {}).get("nanoseconds")
    if not samples:
        return ""
    copy = samples["copy"]["p50"]
    rows = [
        (
            (RESULT_TITLES if name == "result" else {}).get(way, TITLES[way]),
            f"{taken['p50'] / 1e6:.2f}",
            f"{taken['p99'] / 1e6:.2f}",
            f"{taken['p50'] / copy:.2f}",
            f"{taken['count']}",
        )
        for way, taken in sorted(samples.items(), key=lambda one: one[1]["p50"])
    ]
    missing = "".join(f"\n\nLeft out: {way}: {why}" for way, why in parts[name]["left_out"].items())
    header = (
        f"100 MB as {'an argument' if name == 'argument' else 'a result'}",
        "p50 ms",
        "p99 ms",
        "x memcpy",
        "calls",
    )
    return table(header, "lrrrr", rows) + missing


def _threshold(part: dict[str, Any]) -> str:
    kinds = part.get("kinds")
    if not kinds:
        return ""
    sizes = next(iter(kinds.values()))["inline"]
    rows = [
        [
            f"{int(size):,}",
            *(
                f"{ways['inline'][size]['p50'] / 1e3:.1f} / {ways['beside'][size]['p50'] / 1e3:.1f}"
                for ways in kinds.values()
            ),
        ]
        for size in sizes
    ]
    return (f"A call, p50 in µs, with the bytes in the payload / beside it ({readable_thresholds(part)}):\n\n") + table(
        ("bytes", *kinds), "r" * (1 + len(kinds)), rows
    )
