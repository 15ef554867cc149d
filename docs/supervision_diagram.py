# SPDX-License-Identifier: Apache-2.0
"""Draws docs/supervision.svg from the transition tables of ``atoll.pool.lifecycle``; ``generate.py`` writes it.

What always holds here: every transition of the tables is drawn, and no other; one without a path below is an error.
"""

from __future__ import annotations

from collections.abc import Mapping

from atoll.pool.lifecycle import (
    POOL_TRANSITIONS,
    WORKER_TRANSITIONS,
    PoolEvent,
    PoolState,
    WorkerState,
)

State = WorkerState | PoolState

# Where a state's box begins, and what is the matter in it.
BOXES: dict[State, tuple[int, int, str]] = {
    WorkerState.STARTING: (170, 85, "takes no calls yet"),
    WorkerState.READY: (170, 205, "takes calls"),
    WorkerState.RETIRING: (170, 325, "finishes its calls"),
    WorkerState.ENDING: (365, 325, "is being killed"),
    WorkerState.GONE: (170, 445, "its process ended"),
    PoolState.NEW: (560, 85, "nothing was asked"),
    PoolState.RUNNING: (560, 205, "replaces who ends"),
    PoolState.OPEN: (820, 205, "starts nothing"),
    PoolState.HALF_OPEN: (820, 325, "starts one probe"),
    PoolState.CLOSED: (560, 445, "nothing any more"),
}
WIDTH, HEIGHT = 150, 46

# The way from one state to another, and where its label begins (or ends).
PATHS: dict[tuple[State, State], tuple[str, int, int, str]] = {
    (WorkerState.STARTING, WorkerState.READY): ("M245,131 V203", 252, 172, "start"),
    (WorkerState.READY, WorkerState.RETIRING): ("M245,251 V323", 252, 292, "start"),
    (WorkerState.RETIRING, WorkerState.GONE): ("M245,371 V443", 252, 412, "start"),
    (WorkerState.STARTING, WorkerState.GONE): ("M170,108 H35 V478 H168", 40, 100, "start"),
    (WorkerState.READY, WorkerState.GONE): ("M170,228 H100 V458 H168", 105, 220, "start"),
    (WorkerState.STARTING, WorkerState.ENDING): ("M320,108 H475 V323", 328, 100, "start"),
    (WorkerState.READY, WorkerState.ENDING): ("M320,228 H420 V323", 328, 220, "start"),
    (WorkerState.RETIRING, WorkerState.ENDING): ("M320,348 H363", 327, 336, "start"),
    (WorkerState.ENDING, WorkerState.GONE): ("M445,371 V468 H322", 345, 460, "start"),
    (PoolState.NEW, PoolState.RUNNING): ("M635,131 V203", 642, 172, "start"),
    (PoolState.RUNNING, PoolState.OPEN): ("M710,228 H818", 716, 199, "start"),
    (PoolState.OPEN, PoolState.HALF_OPEN): ("M850,251 V323", 842, 292, "end"),
    (PoolState.HALF_OPEN, PoolState.OPEN): ("M890,325 V253", 898, 292, "start"),
    (PoolState.HALF_OPEN, PoolState.RUNNING): ("M820,348 H635 V253", 680, 340, "start"),
}

STYLE = """\
  <style>
    .box { fill: #ffffff; stroke: #37526b; stroke-width: 1.5 }
    .side { fill: #eef4f8; stroke: #9fb4c4; stroke-width: 1.5 }
    .line { stroke: #37526b; stroke-width: 2; fill: none; marker-end: url(#tip) }
    .head { font-weight: bold; font-size: 17px; fill: #22384a }
    .note { font-size: 13px; fill: #4c6172 }
    .event { font-size: 13px; fill: #1d2b36 }
    text { fill: #1d2b36 }
  </style>
  <defs>
    <marker id="tip" markerWidth="9" markerHeight="9" refX="7" refY="4" orient="auto">\
<path d="M0,0 L8,4 L0,8 z" fill="#37526b"/></marker>
  </defs>"""


def draw() -> str:
    """The whole file.

    Raises:
        LookupError: the tables hold a transition that has no path here, or the other way round.
    """
    edges = {**_edges(WORKER_TRANSITIONS), **_edges(POOL_TRANSITIONS)}
    if any((state, PoolEvent.CLOSE) not in POOL_TRANSITIONS for state in PoolState):
        raise LookupError("the arrow 'from every state' is no longer true: a state has no transition for CLOSE")
    for edge in edges.keys() ^ PATHS.keys():
        raise LookupError(f"{edge[0]} -> {edge[1]}: it is in only one of the transition tables and PATHS")
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 520" '
        'font-family="Helvetica, Arial, sans-serif" font-size="15">',
        "  <!-- Written by `make docs` from the tables of src/atoll/pool/lifecycle.py. -->",
        STYLE,
        '  <rect class="side" x="10" y="10" width="520" height="500" rx="10"/>',
        '  <rect class="side" x="545" y="10" width="445" height="500" rx="10"/>',
        '  <text class="head" x="170" y="40">a worker</text>',
        '  <text class="note" x="170" y="60">one process of the service</text>',
        '  <text class="head" x="560" y="40">its pool</text>',
        '  <text class="note" x="560" y="60">open and half-open are those of the breaker</text>',
    ]
    for state, (x, y, note) in BOXES.items():
        parts.append(
            f'  <rect class="box" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
            f'<text x="{x + 12}" y="{y + 20}">{state}</text><text class="note" x="{x + 12}" y="{y + 38}">{note}</text>'
        )
    for edge, events in edges.items():
        path, x, y, anchor = PATHS[edge]
        # One event above the line, in two lines where it is long; of two, the other below.
        lines, apart = (events[0].split(", "), 17) if len(events) == 1 else (events, 24)
        parts.append(f'  <path class="line" d="{path}"/>' + _label(lines, x, y, apart, anchor))
    closing = _label([f"{PoolEvent.CLOSE}, from every state"], 738, 460)
    parts.append('  <path class="line" d="M890,468 H712"/>' + closing)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _label(lines: list[str], x: int, y: int, apart: int = 0, anchor: str = "start") -> str:
    return "".join(
        f'<text class="event" x="{x}" y="{y + apart * index}" text-anchor="{anchor}">{line}</text>'
        for index, line in enumerate(lines)
    )


def _edges(table: Mapping[tuple[State, str], State]) -> dict[tuple[State, State], list[str]]:
    """State, next state -> the events. What changes nothing, and CLOSE, which is possible everywhere, are left out."""
    edges: dict[tuple[State, State], list[str]] = {}
    for (state, event), following in table.items():
        if state is not following and event is not PoolEvent.CLOSE:
            edges.setdefault((state, following), []).append(str(event))
    return edges
