# SPDX-License-Identifier: Apache-2.0
"""Limits of a worker: memory, processors, priority, open files.

Two ways to hold a worker to them, and which one is used is decided where it is started:

- **cgroup v2**, where there is a group that this process may make groups in (``cgroups``): the kernel counts the memory
  and the processor time of the whole worker, with everything it starts.
- **per process** otherwise: processors by affinity, in whole ones; memory by ``MemoryWatch``, which looks at the
  worker's tree and kills it when it holds too much, with a limit of data (RLIMIT_DATA) behind it for what grows faster
  than the watch looks.

Priority and open files are per process in both. What always holds here: the limits are in force before any of the
user's code runs, since a worker loads nothing until its host has said what. What does not belong here: how limits are
written in a manifest.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import WorkerStartError
from .cgroups import WorkerGroup, worker_groups
from .tree import descendants
from .usage import tree_memory
from .warden import warden

# A worker needs some descriptors for itself: its standard ones, its connections, the files it imports.
FEWEST_OPEN_FILES = 16

# What the libraries that start threads by the number of processors can be told; torch obeys the first.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",
)

# The watch looks again before a worker could have filled the rest at this rate, in bytes per second, and within these
# bounds, in seconds: one with much room left costs next to nothing.
_FILL_RATE = 4e9
_SHORTEST_LOOK = 0.02
_LONGEST_LOOK = 0.25
# RLIMIT_DATA counts what is reserved and writable, used or not, such as the stacks of threads: room for that.
_DATA_ROOM = 1 << 30
# Added to how badly the kernel wants to kill a process when the whole machine runs out: rather than its host.
_OOM_SCORE = 500


@dataclass(frozen=True)
class Limits:
    """What one worker may use. None: no limit.

    Attributes:
        memory: bytes, for the worker with all its descendants.
        cpus: processors, such as 0.5 or 2.
        nice: priority from -20 (first) to 19 (last); None for the host's own.
        open_files: descriptors that each of its processes may have open.

    Raises:
        ValueError: a limit that nothing could run under.
    """

    memory: int | None = None
    cpus: float | None = None
    nice: int | None = None
    open_files: int | None = None

    def __post_init__(self) -> None:
        if self.memory is not None and self.memory <= 0:
            raise ValueError(f"memory={self.memory} is not a limit; expected a number of bytes greater than zero")
        if self.cpus is not None and not 0 < self.cpus < math.inf:
            raise ValueError(f"cpus={self.cpus} is not a limit; expected a number greater than zero, such as 0.5 or 2")
        if self.nice is not None and not -20 <= self.nice <= 19:
            raise ValueError(f"nice={self.nice} is not a priority; expected a number from -20 (first) to 19 (last)")
        if self.open_files is not None and self.open_files < FEWEST_OPEN_FILES:
            raise ValueError(
                f"open_files={self.open_files} is too few for a worker to start; expected {FEWEST_OPEN_FILES} or more"
            )

    def __bool__(self) -> bool:
        return not (self.memory is self.cpus is self.nice is self.open_files is None)


def thread_variables(limits: Limits | None) -> dict[str, str]:
    """Environment variables that keep numeric libraries from starting more threads than there are processors for."""
    if limits is None or limits.cpus is None:
        return {}
    return dict.fromkeys(_THREAD_VARIABLES, str(max(1, math.floor(limits.cpus))))


class Limited(Protocol):
    """A process that can be held to limits: what the memory watch needs of it."""

    pid: int
    has_exited: bool
    out_of_memory: tuple[int, int] | None

    def kill(self) -> None:
        """End the whole tree."""


def apply_limits(process: Limited, limits: Limits) -> WorkerGroup | None:
    """Hold a process, and what it started so far, to limits. Before it runs any of the user's code.

    Returns:
        the group it was put into; None if there is none. The caller must ``remove`` it when the process has ended.

    Raises:
        WorkerStartError: a limit cannot be set; the message says which, and why.
    """
    if not sys.platform.startswith("linux") and (limits.memory or limits.cpus or limits.open_files):
        raise WorkerStartError("limits of memory, processors and open files need Linux; only nice can be set here")
    pids = (process.pid, *descendants(process.pid))
    if limits.open_files is not None:
        _limit_files(pids, limits.open_files)
    if limits.nice is not None:
        _set_priority(pids, limits.nice)
    group = None
    groups = worker_groups() if limits.memory is not None or limits.cpus is not None else None
    if groups is not None:
        memory = limits.memory if "memory" in groups.controllers else None
        cpus = limits.cpus if "cpu" in groups.controllers else None
        if memory is not None or cpus is not None:
            group = groups.add(pids, memory=memory, cpus=cpus)
    if limits.cpus is not None and (group is None or not group.limits_cpus):
        _limit_processors(pids, limits.cpus)
    if limits.memory is not None:
        for pid in pids:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
                file.write(str(_OOM_SCORE))
        if group is None or not group.limits_memory:
            _limit_data(pids, 2 * limits.memory + _DATA_ROOM)
            MemoryWatch(process, limits.memory).start()
    return group


def enforcement(controllers: Sequence[str] | None) -> Mapping[str, str]:
    """What each limit is held by, in words, where these controllers are (None: no cgroup to use)."""
    found = controllers or ()
    return {
        "memory": "cgroup" if "memory" in found else "a watch of the worker's processes, and RLIMIT_DATA behind it",
        "cpus": "cgroup" if "cpu" in found else "affinity, in whole processors",
        "nice": "setpriority",
        "open_files": "RLIMIT_NOFILE",
    }


class MemoryWatch:
    """Looks at what a process tree holds, and kills it when that is more than it may: on the warden's thread.

    It looks the more often the less room is left. What it counts first may count shared memory twice, which is cheap;
    only if that is too much is it counted exactly.
    """

    def __init__(self, process: Limited, limit: int) -> None:
        # The timer alone must not keep the process's descriptors open; until its end the warden keeps it.
        self._process = weakref.ref(process)
        self._limit = limit
        self._counted_at = 0.0  # when it was last counted exactly, and found to be within the limit
        self._counted = 0  # what the cheap count said then

    def start(self) -> None:
        """Begin to look."""
        warden().after(_SHORTEST_LOOK, self._look)

    def _look(self) -> None:
        process = self._process()
        if process is None or process.has_exited:
            return
        use = tree_memory(process.pid)
        if use > self._limit and self._is_worth_counting(use):
            exact = tree_memory(process.pid, exact=True)
            if exact > self._limit:
                process.out_of_memory = (self._limit, exact)
                process.kill()
                return
            self._counted_at, self._counted = time.monotonic(), use
        room = max(0, self._limit - use)
        warden().after(min(max(room / _FILL_RATE, _SHORTEST_LOOK), _LONGEST_LOOK), self._look)

    def _is_worth_counting(self, use: int) -> bool:
        """Counting takes milliseconds per gigabyte: not each time for a tree that shares much and stays as it is."""
        return use > self._counted + self._limit // 20 or time.monotonic() > self._counted_at + 1.0


# Workers are spread over the processors: each begins where the one before it ended, and each host somewhere else.
_next_processor = itertools.count(os.getpid())


def _limit_processors(pids: Sequence[int], cpus: float) -> None:
    count = math.ceil(cpus)
    allowed = sorted(os.sched_getaffinity(0))
    if count >= len(allowed):
        return
    chosen = {allowed[next(_next_processor) % len(allowed)] for _ in range(count)}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(pid, chosen)


def _limit_files(pids: Sequence[int], count: int) -> None:
    import resource

    for pid in pids:
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, count))
        except ProcessLookupError:
            pass
        except (OSError, ValueError) as error:
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            raise WorkerStartError(
                f"open_files={count} cannot be set: {error}. The most that this process may give is {hard} "
                "(`ulimit -Hn`)"
            ) from None


def _limit_data(pids: Sequence[int], size: int) -> None:
    import resource

    for pid in pids:
        with contextlib.suppress(OSError, ValueError):  # the watch stands without it
            hard = resource.prlimit(pid, resource.RLIMIT_DATA)[1]
            if hard == resource.RLIM_INFINITY or size < hard:
                resource.prlimit(pid, resource.RLIMIT_DATA, (size, size))


def _set_priority(pids: Sequence[int], nice: int) -> None:
    for pid in pids:
        try:
            os.setpriority(os.PRIO_PROCESS, pid, nice)
        except ProcessLookupError:
            pass
        except OSError as error:
            own = os.getpriority(os.PRIO_PROCESS, 0)
            raise WorkerStartError(
                f"nice={nice} cannot be set: {error.strerror}. This process runs at {own}, and without privileges a "
                "worker can only get a higher number"
            ) from None
