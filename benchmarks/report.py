# SPDX-License-Identifier: Apache-2.0
"""Renders a run's results as Markdown, and puts them into a page between two markers.

    python -m benchmarks.report [RESULTS.json [PAGE.md]]

Reads ``benchmarks/results/results.json`` and rewrites ``docs/performance.md`` unless told otherwise. What
always holds: what stands outside of the markers is never touched, so prose about the figures belongs there;
every number comes from the results file.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.contender import ROOT
from benchmarks.go_figures import render_go
from benchmarks.markdown import table
from benchmarks.zero_copy_report import render_zero_copy

BEGIN = "<!-- benchmarks: begin (written by benchmarks/report.py) -->"
END = "<!-- benchmarks: end -->"
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
NEW_PAGE = f"# Performance\n\n{BEGIN}\n{END}\n"
PLOT_NAME = "smallcall.png"


class MarkersMissing(Exception):
    """The page has not both markers, in order, so there is no place to put the figures."""


def render(results: dict[str, Any], plot: str | None = None) -> str:
    """The Markdown of a run: figures against their targets, all contenders, who was left out, arrays, and the
    machine.

    ``plot`` is the picture's address as seen from the page; None leaves it out.
    """
    parts = [_figures(results["figures"]), _contenders(results["contenders"])]
    if plot is not None and results["contenders"]:
        parts.append(f"![Small call, p50 and p99 of every contender]({plot})")
    parts += [_left_out(results["left_out"]), _busy(results["contenders"])]
    parts += [render_go(results.get("go", {})), render_zero_copy(results.get("zero_copy", {})), _machine(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def insert(page: str, rendered: str) -> str:
    """The page with everything between the markers replaced. Raises MarkersMissing."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise MarkersMissing(f"expected {BEGIN!r} and then {END!r}")
    return f"{head}{BEGIN}\n{rendered}{END}{tail}"


def _figures(figures: list[dict[str, Any]]) -> str:
    if not figures:
        return ""
    rows = [
        (
            figure["name"],
            "none" if figure["value"] is None else _amount(figure["value"], figure["unit"]),
            _target(figure),
            {True: "yes", False: "**no**", None: ""}[figure["met"]],
            " ".join(figure["detail"].split()),
        )
        for figure in figures
    ]
    return "## Targets\n\n" + table(("figure", "measured", "target", "met", "from"), "lrrll", rows)


def _amount(value: float, unit: str) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def _target(figure: dict[str, Any]) -> str:
    if figure["target"] is None:
        return ""
    return f"{'≤' if figure['at_most'] else '≥'} {figure['target']:,g} {figure['unit']}"


def _contenders(contenders: dict[str, dict[str, Any]]) -> str:
    if not contenders:
        return ""
    floor = contenders.get("floor", {}).get("nanoseconds", {}).get("p50")
    atoll = contenders.get("atoll", {}).get("nanoseconds", {}).get("p50")
    rows = []
    for contender in sorted(contenders.values(), key=lambda one: one["nanoseconds"]["p50"]):
        taken = contender["nanoseconds"]
        rows.append(
            (
                contender["title"],
                str(contender["description"].get("version", "")),
                f"{taken['p50'] / 1e3:.2f}",
                f"{taken['p99'] / 1e3:.2f}",
                f"{min(contender['p50_of_starts']) / 1e3:.2f} to {max(contender['p50_of_starts']) / 1e3:.2f}",
                f"{taken['p50'] / floor:.2f}" if floor else "",
                f"{taken['p50'] / atoll:.2f}" if atoll else "",
                f"{taken['count']:,}",
            )
        )
    header = ("contender", "version", "p50 µs", "p99 µs", "p50 of starts", "x floor", "x atoll", "calls")
    return (
        "## Small call, warm: keyword arguments in, a dict out\n\n"
        "Wherever the scheduler puts both sides, unless the name says otherwise. Every reply was checked.\n\n"
    ) + table(header, "llrrrrrr", rows)


def _left_out(left_out: dict[str, str]) -> str:
    if not left_out:
        return ""
    lines = [f"- {name}: {' '.join(why.split())}" for name, why in left_out.items()]
    return "Left out, each with its error:\n\n" + "\n".join(lines)


def _busy(contenders: dict[str, dict[str, Any]]) -> str:
    busy = [
        f"{one['title']} ({one['idle_load']:.0%} of a core)" for one in contenders.values() if one["idle_load"] > 0.05
    ]
    return f"Busy while nobody called, and so a disturbance to the others: {', '.join(busy)}." if busy else ""


def _machine(results: dict[str, Any]) -> str:
    machine = results["machine"]
    virtual = ", virtual" if machine["virtual_machine"] else ""
    load = ", ".join(f"{value:.2f}" for value in machine["load_average"])
    options = results["options"]
    facts = (
        f"{machine['processor']}, {machine['usable_cores']} of {machine['cores']} cores{virtual}",
        f"{machine['memory_gib']} GiB",
        f"governor {machine['governor']}",
        f"{machine['system']} {machine['kernel']}",
        machine["libc"],
        machine["python"],
        machine["compiler"],
        f"load average before the run {load}",
        f"{options['rounds']} interleaved rounds, every contender started {options['starts']} times"
        + (" (a quick run)" if options["quick"] else ""),
        results["date"],
        f"atoll at {results['commit'] or 'an unknown commit'}",
    )
    return "## Machine and run\n\n" + "\n".join(f"- {fact}" for fact in facts)


def main() -> int:
    """Renders the results into the page, which is made if it is not there."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "results.json"
    page = Path(sys.argv[2]) if len(sys.argv) > 2 else PAGE
    text = page.read_text() if page.exists() else NEW_PAGE
    picture = source.with_name(PLOT_NAME)
    plot = Path(os.path.relpath(picture, page.parent)).as_posix() if picture.exists() else None
    rendered = render(json.loads(source.read_text()), plot)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(insert(text, rendered))
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
