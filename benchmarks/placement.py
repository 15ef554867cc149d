# SPDX-License-Identifier: Apache-2.0
"""On which processors a contender's two sides run.

``scheduler``: wherever the kernel puts them. ``one-core``: both sides on one processor. ``two-cores``: each
side pinned to a processor of its own. The one-core mask is set on the host process before anything is
started, and inherited; two cores are set afterwards, on every thread of both sides. Linux only; elsewhere
only ``scheduler`` works.
"""

from __future__ import annotations

import os

from benchmarks.family import descendants

PLACEMENTS = ("scheduler", "one-core", "two-cores")


class PlacementError(Exception):
    """The machine has too few processors, or no way to pin a process to one."""


def processors() -> list[int]:
    """The processors this process may use, ascending."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def chosen_processors(placement: str) -> tuple[int, int]:
    """The processors of (caller, far side); -1 stands for the scheduler's choice. Raises PlacementError."""
    available = processors()
    if placement == "scheduler":
        return -1, -1
    if placement == "one-core" and available:
        return available[0], available[0]
    if placement == "two-cores" and len(available) >= 2:
        return available[0], available[1]
    raise PlacementError(f"placement {placement!r} is not possible here (usable processors: {available})")


def pin_all_threads(pid: int, processor: int) -> None:
    """Pins every thread that the process has now; the threads these start later inherit it."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            os.sched_setaffinity(int(thread), {processor})
        except ProcessLookupError:
            continue  # the thread ended while we looked


def place_caller(placement: str) -> None:
    """To be called in the host process before the far side is started."""
    caller, _ = chosen_processors(placement)
    if placement == "one-core":
        os.sched_setaffinity(0, {caller})


def place(placement: str) -> None:
    """To be called in the host process once the far side runs. Raises PlacementError when there is no far
    side.
    """
    caller, far_side = chosen_processors(placement)
    if placement != "two-cores":
        return
    children = descendants(os.getpid())
    if not children:
        raise PlacementError("the far side is no descendant of the host process, so it cannot be pinned")
    for child in children:
        pin_all_threads(child, far_side)
    pin_all_threads(os.getpid(), caller)
