# SPDX-License-Identifier: Apache-2.0
"""The figures of pyproc's wire: what was promised, and what the run measured. Arithmetic over the results of
``benchmarks.pyproc_wire`` only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure
from benchmarks.parts import measure_parts
from benchmarks.promises import Measured, Promise, figures_of

GROUP, PARTS = "pyproc", ("wire",)

# Half of what pyproc's own worker took on the machine the promises were made for, in microseconds.
SIZES = (("1 KB", "1000", 127 / 2), ("100 KB", "100000", 677 / 2), ("5 MB", "5000000", 47_000 / 2))


def measure_pyproc(python: Path, quick: bool, progress: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """All parts, by name, as ``measure_parts`` gives them."""
    return measure_parts(GROUP, PARTS, python, quick, progress)


def _microseconds(kind: str) -> Measured:
    def measured(part: dict[str, Any]) -> tuple[float, str]:
        p50 = {name: worker[kind]["p50"] / 1e3 for name, worker in part.items()}
        slowest = part["json"][kind]["maximum"] / 1e3
        return p50["json"], (
            f"slowest round {slowest:,.1f}; with the fastest JSON {p50['fastest']:,.1f}; "
            f"a plain worker with threads {p50['plain']:,.1f}"
        )

    return measured


def _calls(part: dict[str, Any]) -> tuple[float, str]:
    kind = "many callers"
    p50 = {name: worker[kind]["p50"] for name, worker in part.items()}
    return p50["json"], (
        f"{part['json'][kind]['minimum']:,.0f} to {part['json'][kind]['maximum']:,.0f}; with the fastest JSON "
        f"{p50['fastest']:,.0f}; plain workers with threads {p50['plain']:,.0f}"
    )


PROMISES: dict[str, tuple[Promise, ...]] = {
    "wire": (
        Promise("pyproc's wire: 1 worker, 1 caller, p50", "µs", 25.0, True, _microseconds("one caller")),
        Promise("pyproc's wire: 2 workers, 4 callers", "calls/s", 60_000.0, False, _calls),
        *(
            Promise(f"pyproc's wire: {name} there and back, p50", "µs", target, True, _microseconds(size))
            for name, size, target in SIZES
        ),
    )
}


def pyproc_figures(parts: dict[str, dict[str, Any]]) -> list[Figure]:
    """A figure for every promise whose part was tried."""
    return figures_of(PROMISES, parts)
