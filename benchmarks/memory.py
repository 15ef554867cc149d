# SPDX-License-Identifier: Apache-2.0
"""Memory and processor time of a process, from what the kernel says of it."""

from __future__ import annotations

import os
from pathlib import Path


def private_bytes(pid: int) -> int:
    """Memory that this process alone has: it would be free if the process ended."""
    private = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_"):
            private += int(line.split()[1]) * 1024
    return private


def processor_nanoseconds(pid: int) -> int:
    """Processor time of all threads that a process has now, as exact as the kernel counts it."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
        except FileNotFoundError:
            continue  # it ended in the meantime
    return total


def resident_bytes(pid: int) -> int:
    """Memory of a process that is there, its own and what it shares with others."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def shared_memories(pid: int, at_least: int) -> set[int]:
    """The nameless shared memories that a process has open or mapped, of at least so many bytes; by inode number."""
    found = set()
    for kind in ("fd", "map_files"):
        folder = f"/proc/{pid}/{kind}"
        for name in os.listdir(folder):
            path = f"{folder}/{name}"
            try:
                if os.readlink(path).startswith("/memfd:"):
                    status = os.stat(path)
                    if status.st_size >= at_least:
                        found.add(status.st_ino)
            except OSError:
                continue  # it was closed in the meantime
    return found
