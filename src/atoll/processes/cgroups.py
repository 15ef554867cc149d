# SPDX-License-Identifier: Apache-2.0
"""Control groups (version 2): one group for each limited worker, below one that this process may make groups in.

What always holds here: no process is moved but this one, from a group that is its own into a child of it, and workers;
a group is named after the process that made it, so that what a dead host left is recognised and removed by the next;
where groups cannot be used there are none, without an error. What does not belong here: what a limit means for the user
(``limits``).

A group may be used in one of three ways, looked for in this order: ``ATOLL_CGROUP`` names one that was prepared
(``0``: use none); this process's own group, if its controllers are handed down, or if it is alone there and can
step aside into a child, as the kernel asks (``systemd-run --user --scope -p Delegate=yes``); the group above its own,
if that hands down controllers, as in a systemd user session.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Sequence

from .usage import start_time
from .warden import warden

_USEFUL = ("memory", "cpu")
# Microseconds in which a worker may run for its share of processor time.
_PERIOD = 100_000
_NAME = re.compile(r"atoll-(\d+)-(\d+)-\d+")
# A group can be removed once the kernel has let go of its last process: seconds between two tries, and how many.
_RETRY, _TRIES = 0.05, 40


class WorkerGroup:
    """The group of one worker.

    Attributes:
        folder: where it lies.
        limits_memory, limits_cpus: what it limits.
    """

    def __init__(self, folder: str, memory: int | None, cpus: float | None) -> None:
        self.folder = folder
        self.limits_memory = memory is not None
        self.limits_cpus = cpus is not None
        self._memory = memory

    def out_of_memory(self) -> tuple[int, int] | None:
        """The limit and the most that was used, in bytes, if the kernel killed a process for it."""
        if self._memory is None:
            return None
        events = dict(line.split() for line in _read(self.folder, "memory.events").splitlines())
        if int(events.get("oom_kill", 0)) == 0:
            return None
        peak = _read(self.folder, "memory.peak").strip()  # from Linux 5.19 on
        return self._memory, int(peak) if peak.isdigit() else self._memory

    def remove(self) -> None:
        """End what is left in it, and remove it: at once, or soon, on the warden's thread. Never raises."""
        with contextlib.suppress(OSError):
            _write(self.folder, "cgroup.kill", "1")  # from Linux 5.14 on
        self._remove(_TRIES)

    def _remove(self, tries: int) -> None:
        try:
            _remove_folder(self.folder)
        except FileNotFoundError:
            pass
        except OSError:
            if tries:
                warden().after(_RETRY, lambda: self._remove(tries - 1))


class WorkerGroups:
    """A group to make workers' groups in.

    Attributes:
        folder: where it lies.
        controllers: what its children can be limited by.
    """

    def __init__(self, folder: str, controllers: Sequence[str]) -> None:
        self.folder = folder
        self.controllers = tuple(controllers)
        self._numbers = itertools.count()

    def add(self, pids: Sequence[int], *, memory: int | None, cpus: float | None) -> WorkerGroup | None:
        """Make a group, and move processes into it; None if that fails, which leaves nothing behind.

        Args:
            pids: what to move.
            memory: bytes, swap not allowed; None for no limit.
            cpus: processors; None for no limit.
        """
        mine = f"atoll-{os.getpid()}-{start_time(os.getpid()) or 0}-"
        while True:
            folder = os.path.join(self.folder, mine + str(next(self._numbers)))
            try:
                _make_folder(folder)
                break
            except FileExistsError:
                continue
            except OSError:
                return None
        try:
            if memory is not None:
                _write(folder, "memory.max", str(memory))
                # The worker as a whole: half of one would answer nobody, and nobody would know why.
                _write(folder, "memory.oom.group", "1")
                with contextlib.suppress(OSError):  # where swap is not counted
                    _write(folder, "memory.swap.max", "0")
            if cpus is not None:
                _write(folder, "cpu.max", f"{max(1000, round(cpus * _PERIOD))} {_PERIOD}")
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    _write(folder, "cgroup.procs", str(pid))
        except OSError:
            WorkerGroup(folder, None, None).remove()
            return None
        return WorkerGroup(folder, memory, cpus)

    def sweep(self) -> None:
        """Remove the groups of hosts that are gone. One that still holds a process stays."""
        try:
            names = os.listdir(self.folder)
        except OSError:
            return
        for name in names:
            match = _NAME.fullmatch(name)
            if match and start_time(int(match[1])) != int(match[2]):
                with contextlib.suppress(OSError):
                    _remove_folder(os.path.join(self.folder, name))


def find_groups(
    mounts: str = "/proc/self/mountinfo", own: str = "/proc/self/cgroup", *, prepare: bool = True
) -> WorkerGroups | None:
    """Where this process can make groups for workers; None if it cannot.

    Args:
        mounts, own: the kernel's lists of mounts, and of the groups that this process is in.
        prepare: step aside, if that is what it takes; else only find out that it could.
    """
    asked = os.environ.get("ATOLL_CGROUP", "")
    if asked == "0":
        return None
    if asked:
        return _usable(asked)
    folder = own_group(mounts, own)
    if folder is None:
        return None
    return _usable(folder) or _step_aside(folder, prepare) or _usable(os.path.dirname(folder))


def own_group(mounts: str = "/proc/self/mountinfo", own: str = "/proc/self/cgroup") -> str | None:
    """The folder of the group that this process is in; None without version 2."""
    try:
        with open(own, encoding="utf-8") as file:
            group = next(line[3:].rstrip("\n") for line in file if line.startswith("0::"))
        with open(mounts, encoding="utf-8") as file:
            # ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS ... - TYPE SOURCE OPTIONS
            root, place = next(line.split()[3:5] for line in file if " - cgroup2 " in line)
    except (OSError, StopIteration):
        return None
    if root != "/":
        group = group.removeprefix(root)  # a part of the tree is mounted, as in a container
    if group.startswith("/.."):
        return None
    return place.rstrip("/") + group.rstrip("/")


def _usable(folder: str) -> WorkerGroups | None:
    """Groups in this folder, if children of it can be made, limited and joined."""
    controllers = [one for one in _USEFUL if one in _read(folder, "cgroup.subtree_control").split()]
    if not controllers or not os.access(folder, os.W_OK | os.X_OK):
        return None
    # To move a process, one must be allowed to write here, above where it comes from and where it goes.
    if not os.access(os.path.join(folder, "cgroup.procs"), os.W_OK):
        return None
    probe = WorkerGroups(folder, controllers)
    group = probe.add((), memory=1 << 30 if "memory" in controllers else None, cpus=1 if "cpu" in controllers else None)
    if group is None:
        return None
    group.remove()
    return probe


def _step_aside(folder: str, prepare: bool) -> WorkerGroups | None:
    """If this process is alone in a group of its own: move it into a child, so that controllers can be handed down."""
    if _read(folder, "cgroup.procs").split() != [str(os.getpid())]:
        return None
    controllers = [one for one in _USEFUL if one in _read(folder, "cgroup.controllers").split()]
    if not controllers or not os.access(os.path.join(folder, "cgroup.subtree_control"), os.W_OK):
        return None
    if not prepare:
        return WorkerGroups(folder, controllers)
    aside = os.path.join(folder, "atoll-host")
    try:
        os.makedirs(aside, exist_ok=True)
        _write(aside, "cgroup.procs", str(os.getpid()))
    except OSError:
        return None
    try:
        _write(folder, "cgroup.subtree_control", " ".join("+" + one for one in controllers))
    except OSError:
        with contextlib.suppress(OSError):
            _write(folder, "cgroup.procs", str(os.getpid()))
            os.rmdir(aside)
        return None
    return _usable(folder)


# The kernel fills a folder with files when it is made, and they go with it; what plays the kernel in tests must do so.
_make_folder = os.mkdir
_remove_folder = os.rmdir


def _read(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name), encoding="ascii") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""


def _write(folder: str, name: str, text: str) -> None:
    # Unbuffered, and never created: the kernel's answer is this call's.
    fd = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    finally:
        os.close(fd)


_groups: WorkerGroups | None = None
_looked = False


def worker_groups() -> WorkerGroups | None:
    """Where this process makes its workers' groups; looked for once, with what dead hosts left there removed."""
    global _groups, _looked
    if not _looked:
        _groups = find_groups()
        if _groups is not None:
            _groups.sweep()
        _looked = True
    return _groups
