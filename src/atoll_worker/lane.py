# SPDX-License-Identifier: Apache-2.0
"""The fast lane: a pair of slots in shared memory, beside the socket of a data connection.

A frame that fits is copied into the slot of its direction and published by the slot's sequence
number, which grows by two; others are announced by an odd number and travel over the socket. Whoever waits polls the
number, then yields the processor between polls, then raises its **asleep** flag and blocks on the socket; a writer that
sees the flag up sends one wake byte. What always holds:

* A slot has one writer, and at most one unread frame (one call is in progress at a time).
* The frame is stored before the number. The lane is used only where stores become visible in order (x86-64).
* Between raising the flag and the last look at the number, and between storing the number and looking at the
  flag, stands a fence: so at least one of the two sides sees the other, and no wake is lost. The fence is to take
  a lock of the lane's own, or to release it if it is taken: either is a locked instruction, which no load or store
  passes. (Both in a row would do the same, and cost twice.)
* The peer may lie or write at any time: numbers are read once, checked, and a frame is copied before it is parsed.

Waiting is not done here (``connection`` does it); this room knows the layout and nothing else. The mapping::

    one slot per direction, host to worker first, each half of the file:
        0    sequence number u64                (its writer's cache line)
        64   asleep flag of its reader u64      (its reader's cache line)
        128  frame; SLOT_SIZE bytes, or as many as whoever made the file chose
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from mmap import mmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional, Tuple

SLOT_SIZE = 1 << 16
_FRAME = 128  # where it begins
LANE_SIZE = 2 * (_FRAME + SLOT_SIZE)


def available() -> bool:
    """True where the lane can be used: memfd exists, and stores become visible in order."""
    return hasattr(os, "memfd_create") and os.uname().machine in ("x86_64", "AMD64")


def create() -> int:
    """A file descriptor (close-on-exec) of zeroed shared memory for one lane, sealed against any change of size.

    A mapping of a sealed file can never be truncated under its reader, so touching it never raises SIGBUS.
    """
    import fcntl

    fd = os.memfd_create("atoll-lane", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, LANE_SIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Lane:
    """This side's view of a lane. The attributes are meant for ``Connection``, which inlines their use.

    ``words`` is the mapping as 64-bit numbers; ``*_word`` are indexes into it, ``*_offset`` are byte offsets.
    """

    __slots__ = (
        "fence",
        "memory",
        "my_asleep_word",
        "peer_asleep_word",
        "read_number_word",
        "read_offset",
        "sleep_barrier",
        "slot_size",
        "words",
        "write_number_word",
        "write_offset",
    )

    def __init__(self, fd: int, is_host: bool) -> None:
        """Maps ``fd``, which may be closed afterwards."""
        size = os.fstat(fd).st_size
        stride = size // 2
        if size < LANE_SIZE or size % 128:
            raise ValueError(f"a lane of {size:,} bytes; at least {LANE_SIZE:,} are needed, and a multiple of 128")
        self.slot_size = stride - _FRAME
        self.memory: mmap = mmap(fd, size)
        self.words: memoryview = memoryview(self.memory).cast("Q")
        # Locks of this lane's own, since only an uncontended one is certain to execute a locked instruction. The first
        # is for frames and taken by every other one: index it with the number's second bit. The second is for sleeps.
        barrier = allocate_lock()
        self.fence: Tuple[Callable[[], object], Callable[[], object]] = (barrier.release, barrier.acquire)
        self.sleep_barrier = allocate_lock()
        to_worker, to_host = 0, stride
        write, read = (to_worker, to_host) if is_host else (to_host, to_worker)
        self.write_number_word = write // 8
        self.peer_asleep_word = (write + 64) // 8
        self.write_offset = write + _FRAME
        self.read_number_word = read // 8
        self.my_asleep_word = (read + 64) // 8
        self.read_offset = read + _FRAME

    def close(self) -> None:
        """Unmap. Idempotent."""
        self.words.release()
        self.memory.close()


def open_lane(fd: Optional[int], is_host: bool) -> Optional[Lane]:
    """The lane behind ``fd``, or None without one."""
    return None if fd is None else Lane(fd, is_host)
