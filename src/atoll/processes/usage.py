# SPDX-License-Identifier: Apache-2.0
"""What processes use now: memory, processor time, threads; read from ``/proc``.

What always holds here: a process that is gone, or a system without ``/proc``, is None or zero, never an error; a look
at one process takes tens of microseconds, unless it says that it takes longer. What does not belong here: what is too
much (``limits``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from atoll_worker import shared_memory

from .tree import descendants

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class Usage:
    """What one process uses.

    Attributes:
        rss: resident memory in bytes, with what it shares with other processes.
        shared: bytes of it that are shared memory, such as arrays that were lent to it; 0 if they were not asked for.
        private: resident memory in bytes that no other process shares; None if it was not asked for, or cannot be read.
        cpu: seconds of processor time, user and system, since it started.
        state: the kernel's letter: R running, S sleeping, D in uninterruptible sleep, T stopped, Z ended.
        threads: how many threads it has.
    """

    rss: int
    shared: int
    private: int | None
    cpu: float
    state: str
    threads: int


def usage(pid: int, *, shared: bool = False, private: bool = False) -> Usage | None:
    """What a process uses; None if there is no such process.

    Args:
        pid: its process id.
        shared: also look at ``shared``.
        private: also look at ``private``, for which the kernel walks all its memory: milliseconds per gigabyte.
    """
    fields = _stat(pid)
    if fields is None:
        return None
    own = None
    if private:
        rollup = _amounts(f"/proc/{pid}/smaps_rollup")
        if rollup:
            own = rollup.get("Private_Clean", 0) + rollup.get("Private_Dirty", 0) + rollup.get("Private_Hugetlb", 0)
    return Usage(
        rss=int(fields[21]) * _PAGE,
        shared=_amounts(f"/proc/{pid}/status").get("RssShmem", 0) if shared else 0,
        private=own,
        cpu=(int(fields[11]) + int(fields[12])) / _TICKS,
        state=fields[0],
        threads=int(fields[17]),
    )


def wants_processor(pid: int) -> bool:
    """Whether any thread of a process runs, or would if it got a processor."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    return any(fields is not None and fields[0] == "R" for fields in (_stat(f"{pid}/task/{one}") for one in threads))


def tree_rss(pid: int) -> int:
    """Resident memory, in bytes, of a process and all its descendants. What they share counts for each of them."""
    found = (_stat(one) for one in (pid, *descendants(pid)))
    return sum(int(fields[21]) for fields in found if fields is not None) * _PAGE


def tree_memory(pid: int, *, exact: bool = False) -> int:
    """Memory, in bytes, that a process and its descendants hold and that cannot be read back from a file: what the
    kernel counts against a limit, less its caches. Arrays that this process lent to them are this process's, if they
    are counted exactly.

    Args:
        pid: the process at the top.
        exact: divide what several processes share among them, instead of counting it for each. Then the kernel walks
            all their memory: milliseconds per gigabyte.
    """
    total = 0
    for one in (pid, *descendants(pid)):
        found = _amounts(f"/proc/{one}/smaps_rollup") if exact else {}
        if found:
            total += found.get("Pss_Anon", 0) + found.get("Pss_Shmem", 0) + found.get("SwapPss", 0)
            if found.get("Pss_Shmem"):
                total -= _lent(one)
        else:
            found = _amounts(f"/proc/{one}/status")
            total += found.get("RssAnon", 0) + found.get("RssShmem", 0) + found.get("VmSwap", 0)
    return total


def _lent(pid: int) -> int:
    """Bytes of this process's segments that another one has mapped, as its share of them is counted."""
    name = f"/memfd:{shared_memory.NAME}-{os.getpid()} ".encode()
    total, is_ours = 0, False
    try:
        with open(f"/proc/{pid}/smaps", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    total += int(line.split()[1]) * 1024 if is_ours else 0
                elif b"-" in line[:20]:
                    is_ours = name in line
    except OSError:
        return 0
    return total


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot, which with its id names it for good. None if it is gone."""
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def _stat(pid: int | str) -> list[str] | None:
    """The fields of ``/proc/PID/stat`` from the third on, the state letter; of a thread, for ``PID/task/TID``."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name of the program, in parentheses, may hold anything.
            return file.read().rpartition(b")")[2].decode("ascii").split()
    except OSError:
        return None


def _amounts(path: str) -> dict[str, int]:
    """The lines ``Name:  123 kB`` of a file, in bytes; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    found = {}
    for line in lines:
        name, _, rest = line.partition(b":")
        if rest.endswith(b" kB"):
            found[name.decode("ascii", "replace")] = int(rest[:-3]) * 1024
    return found
