# SPDX-License-Identifier: Apache-2.0
"""A process and its descendants: who they are, how much they computed, and how to make sure that all are
gone.

Linux only, read from /proc and watched through pidfds; elsewhere nobody has descendants that could be seen.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable
from pathlib import Path

KILL_SECONDS = 10.0


def descendants(pid: int) -> list[int]:
    """The process ids of all living descendants of ``pid``."""
    found = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                ids = [int(child) for child in children.read_text().split()]
            except OSError:
                continue  # the thread ended while we looked
            found += ids
            waiting += ids
    return found


def processor_seconds(pid: int) -> float:
    """The processor time that the process and its living descendants have used so far, in seconds."""
    ticks = 0
    for process in (pid, *descendants(pid)):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Watched:
    """Processes held by descriptor, so that a number which was given to somebody else is never waited for
    or killed.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._descriptors: list[int] = []
        for pid in pids:
            try:
                self._descriptors.append(os.pidfd_open(pid))
            except (OSError, AttributeError):
                continue  # it is gone already, or this system has no pidfds

    def end(self, grace: float) -> None:
        """Waits up to ``grace`` seconds until all have ended by themselves, then kills the others and
        waits.
        """
        self._wait(grace)
        for descriptor in self._descriptors:
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended in the meantime
        self._wait(KILL_SECONDS)
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def _wait(self, seconds: float) -> None:
        """Closes and forgets the descriptors of those that end within that time."""
        deadline = time.monotonic() + seconds
        while self._descriptors and (remaining := deadline - time.monotonic()) > 0:
            for descriptor in select.select(self._descriptors, [], [], remaining)[0]:
                self._descriptors.remove(descriptor)
                os.close(descriptor)
