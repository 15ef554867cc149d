# SPDX-License-Identifier: Apache-2.0
"""Moving a worker off the processor that its host runs on.

Linux wakes a process on the processor of whoever woke it. For two that then talk without sleeping this is the wrong
place: each must yield for the other to run, and a call takes almost twice as long. The scheduler parts them by itself,
after some milliseconds. Here it is done at once, if there is a processor with nothing to do: on a busy one the worker
would be far worse off. What the worker may run on is the same afterwards.
"""

from __future__ import annotations

import os
import threading
import time

# Seconds between two moves. Doubled, up to the longest, each time the scheduler undoes a move at once.
_SHORTEST = 0.005
_LONGEST = 1.0


class Mover:
    """Call it when host and worker were found on one processor.

    Args:
        pid: process id of the worker; its main thread is moved, which is the one that answers calls.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._interval = _SHORTEST
        self._last = 0.0
        # Of two threads that call the worker one at a time: the other would take the mask of a move for the worker's.
        self._turn = threading.Lock()

    def __call__(self) -> None:
        """Move the worker to another processor, if that is possible and was not done lately. Never raises."""
        now = time.monotonic()
        since = now - self._last
        if since < self._interval:
            return
        self._interval = min(2 * self._interval, _LONGEST) if since < 4 * self._interval else _SHORTEST
        self._last = now
        if not self._turn.acquire(blocking=False):
            return
        try:
            allowed = os.sched_getaffinity(self._pid)
            if len(allowed) > 1 and _runnable() <= len(allowed):
                others = allowed - {_processor(self._pid)}
                try:
                    os.sched_setaffinity(self._pid, others)
                finally:  # whatever interrupts this thread
                    os.sched_setaffinity(self._pid, allowed)
        except (AttributeError, OSError, ValueError, IndexError):
            pass  # no such call, no /proc, or the worker has just ended: the scheduler parts them in its own time
        finally:
            self._turn.release()


def _runnable() -> int:
    """How many threads of this machine run, or would if they could: at most as many as there are processors, with two
    of them on one, means that one processor has nothing to do."""
    with open("/proc/loadavg", "rb") as file:
        return int(file.read().split()[3].partition(b"/")[0])


def _processor(pid: int) -> int:
    """The processor that the main thread of a process ran on last."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The name of the program, in parentheses, may hold anything; the processor is the 39th field.
        return int(file.read().rpartition(b")")[2].split()[36])
