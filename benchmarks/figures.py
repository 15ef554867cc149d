# SPDX-License-Identifier: Apache-2.0
"""The figures atoll promises, what this run measured for each, and whether the promise was kept.

Arithmetic over a run's results only. What always holds: both sides of a ratio come from the same run; a
figure whose contender was left out has no value and is not met.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.figure import Figure
from benchmarks.go_figures import go_figures
from benchmarks.pool_figures import pool_figures
from benchmarks.pyproc_figures import pyproc_figures
from benchmarks.zero_copy_figures import zero_copy_figures

MILLISECOND = 1_000_000


# Name of the promise, contender, divided by, target: at most this many times the other's p50.
AGAINST_FLOOR = (
    ("Small call, sync", "atoll", "floor", 0.5),
    ("Small call, sync, two cores pinned", "atoll-two-cores", "floor", None),
    ("Small call, sync, both ends on one core", "atoll-one-core", "floor", 1.2),
    ("Small call, async", "atoll-async", "floor", 1.0),
    ("Small call, the socket alone", "atoll-lane-off", "floor", 1.2),
    ("Small call, the socket alone, one core", "atoll-lane-off-one-core", "floor", None),
)

# Peer, target: at least this many times faster than it, by p50.
AGAINST_PEERS = (
    ("process-pool", 25.0),
    ("execnet", 10.0),
    ("pipe", 4.0),
    ("grpcio", 60.0),
    ("loky", None),
    ("pyzmq", None),
    ("rpyc", None),
    ("pyisolate", None),
    ("ray", None),
)


def collect_figures(results: dict[str, Any]) -> list[Figure]:
    """All figures of a run, in the order they are shown. What the run did not try is not in the list."""
    measured, left_out = results["contenders"], results["left_out"]
    tried = {*measured, *left_out}

    def p50(name: str) -> float | None:
        return measured[name]["nanoseconds"]["p50"] if name in measured else None

    def microseconds(*names: str) -> str:
        missing = [f"{name} was left out" for name in names if name in left_out]
        return ", ".join(missing) or " / ".join(f"{(p50(name) or 0) / 1e3:.2f} µs" for name in names)

    figures = [
        Figure(
            f"{name}, p50 over the C floor",
            "x",
            target,
            True,
            _ratio(p50(ours), p50(base)),
            microseconds(ours, base),
        )
        for name, ours, base, target in AGAINST_FLOOR
        if {ours, base} <= tried
    ]
    figures += [
        Figure(
            f"Small call, times faster than {measured.get(peer, {}).get('title', peer)}",
            "x",
            target,
            False,
            _ratio(p50(peer), p50("atoll")),
            microseconds(peer, "atoll"),
        )
        for peer, target in AGAINST_PEERS
        if {peer, "atoll"} <= tried
    ]
    figures += _startup_figures(results.get("startup", {}))
    figures += pool_figures(results.get("pool", {})) + zero_copy_figures(results.get("zero_copy", {}))
    return figures + pyproc_figures(results.get("pyproc", {})) + go_figures(results.get("go", {}))


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _startup_figures(startup: dict[str, dict[str, Any]]) -> list[Figure]:
    """A figure for each part that was tried; the part's own error is the detail where it failed."""
    makers: dict[str, Callable[[dict[str, Any]], list[Figure]]] = {
        "first_call_host": lambda part: [_first_call("host environment", part)],
        "first_call_dependency": lambda part: [_first_call("environment with numpy", part)],
        "open_environment": lambda part: [_open_environment(part)],
        "imports": _imports,
    }
    return [figure for name, make in makers.items() if name in startup for figure in make(startup[name])]


def _first_call(where: str, part: dict[str, Any]) -> Figure:
    name = f"First call, {where}, over `python -I -c pass`"
    if "error" in part:
        return Figure(name, "x", 2.0, True, None, part["error"])
    ours, empty = part["first_call"]["p50"], part["empty_process"]["p50"]
    detail = f"{ours / MILLISECOND:.1f} ms / {empty / MILLISECOND:.1f} ms"
    return Figure(name, "x", 2.0, True, ours / empty, detail)


def _open_environment(part: dict[str, Any]) -> Figure:
    name = "Opening a ready environment, without a process"
    if "error" in part:
        return Figure(name, "ms", 5.0, True, None, part["error"])
    slow = part["open"]["p99"] / MILLISECOND
    detail = f"{part['processes']} processes, {part['connections']} connections, p99 {slow:.2f} ms"
    if part["processes"] or part["connections"]:
        return Figure(name, "ms", 5.0, True, None, f"it starts something: {detail}")
    return Figure(name, "ms", 5.0, True, part["open"]["p50"] / MILLISECOND, detail)


def _imports(part: dict[str, Any]) -> list[Figure]:
    names = (
        "`import atoll` over `import asyncio`",
        "`import atoll` over `import asyncio`, whole process less an empty one",
    )
    if "error" in part:
        return [Figure(name, "x", 1.5, True, None, part["error"]) for name in names]
    figures = []
    for name, key in zip(names, ("inside_p50", "process_less_empty_p50"), strict=True):
        ours, theirs = part[key]["atoll"], part[key]["asyncio"]
        detail = f"{ours / MILLISECOND:.1f} ms / {theirs / MILLISECOND:.1f} ms"
        figures.append(Figure(name, "x", 1.5, True, _ratio(ours, theirs), detail))
    return figures
