# SPDX-License-Identifier: Apache-2.0
"""Ending a process together with everything it started."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Process ids of all living descendants of ``pid``, as the kernel lists them now. Empty where it does not."""
    found: list[int] = []
    queue = [pid]
    while queue:
        parent = queue.pop()
        try:
            tasks = list(Path(f"/proc/{parent}/task").iterdir())
        except OSError:
            continue
        for task in tasks:
            try:
                children = [int(word) for word in (task / "children").read_text().split()]
            except (OSError, ValueError):
                continue
            found += children
            queue += children
    return found


def kill_tree(pid: int) -> None:
    """SIGKILL to ``pid``, to its process group if it leads one, and to descendants that left the group.

    The caller must not have reaped ``pid`` yet, or its number may belong to somebody else by now.
    """
    strays = descendants(pid)
    _kill(os.killpg, pid)
    for one in (pid, *strays):
        _kill(os.kill, one)


def _kill(kill: Callable[[int, int], None], pid: int) -> None:
    try:
        kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
