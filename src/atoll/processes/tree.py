# SPDX-License-Identifier: Apache-2.0
"""Ending a process together with everything it started."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable


def children(pid: int) -> list[int]:
    """Process ids of the children of ``pid``, as the kernel lists them now, those of a thread in the order in which
    they came. Empty where it does not."""
    found: list[int] = []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    for task in tasks:
        try:
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found += [int(word) for word in file.read().split()]
        except (OSError, ValueError):
            continue
    return found


def descendants(pid: int) -> list[int]:
    """Process ids of all living descendants of ``pid``. Empty where the kernel does not list them."""
    found: list[int] = []
    queue = [pid]
    while queue:
        new = children(queue.pop())
        found += new
        queue += new
    return found


class Strays:
    """The descendants that a process has now, to be killed when it has ended: then nobody could tell any more whose
    they were. Held by descriptors, so that their numbers cannot have become somebody else's by then.

    Args:
        pid: the process.
    """

    def __init__(self, pid: int) -> None:
        self._descriptors: list[int] = []
        if not hasattr(os, "pidfd_open"):
            return  # an old system: what left the process group stays
        for one in descendants(pid):
            try:
                self._descriptors.append(os.pidfd_open(one))
            except (AttributeError, OSError):
                continue  # it has ended, or this process may open no more, or there are none on this system

    def kill(self) -> None:
        """SIGKILL to each that still lives. Once."""
        while self._descriptors:
            descriptor = self._descriptors.pop()
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
            finally:
                os.close(descriptor)


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
