# SPDX-License-Identifier: Apache-2.0
"""What a new worker is connected by: sockets, pipes, lanes, and the lifeline that it ends by when this process does.

Every descriptor of the host's side is close-on-exec, so workers do not hold each other's; the child gets its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
from typing import NamedTuple

from atoll_worker import lane as lane_module
from atoll_worker.lane import Lane

from .output import Stream

# Sockets for messages whose boundaries are kept and of which none is lost. macOS has no SOCK_SEQPACKET, but there too
# nothing is lost of datagrams between two ends.
_MESSAGES = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_DGRAM) if sys.platform == "linux" else socket.SOCK_DGRAM


class DataConnection(NamedTuple):
    """The host's end of one data connection of a worker: its socket, and the fast lane beside it, if there is one."""

    sock: socket.socket
    lane: Lane | None


class Lifeline(NamedTuple):
    """The pipe whose end the kernel takes for the end of this process; see ``atoll_worker.lifeline``. A child that is
    forked lets go of it, or the worker would live as long as that child.

    Attributes:
        write: what nobody but this process holds.
        lower, upper: read ends, open files of their own, with descriptors below and above that.
    """

    lower: int
    write: int
    upper: int

    @classmethod
    def make(cls) -> Lifeline:
        """A new one; its ends are closed in programs that are started."""
        with contextlib.ExitStack() as made:
            lower, write = os.pipe()
            made.callback(os.close, lower)
            # Another thread may have let go of a number between the two.
            write = _above(lower, write)
            made.callback(os.close, write)
            try:
                upper = os.open(f"/proc/self/fd/{lower}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                upper = os.dup(lower)  # a system without it, where nothing can be armed either
            upper = _above(write, upper)
            made.pop_all()
        lifeline = cls(lower, write, upper)
        _lifelines.add(lifeline)
        return lifeline

    @property
    def passed(self) -> tuple[int, int]:
        """The read ends, as ``atoll_worker.lifeline.hold`` takes them."""
        return self.upper, self.lower

    def close(self) -> None:
        """Let go of it, in the order that ends what is left of the group."""
        _lifelines.discard(self)
        os.close(self.write)
        os.close(self.lower)
        os.close(self.upper)


# Those of this process.
_lifelines: set[Lifeline] = set()


def _after_fork() -> None:
    for lifeline in list(_lifelines):
        lifeline.close()


os.register_at_fork(after_in_child=_after_fork)


def _above(lower: int, fd: int) -> int:
    """Move a descriptor, if need be, to a number above another one; returns the number."""
    if fd > lower:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lower)
    finally:
        os.close(fd)


class Ends:
    """What a new worker is connected by.

    Args:
        ours, theirs: get what closes the host's ends, and the worker's.
        connections: how many data connections it gets.
        use_lane: give each a fast lane, where there can be one.
        kind: of socket, for the control connection.

    Without data connections there is no socket for descriptors.

    Attributes:
        control, descriptors, out, err, data: the host's ends.
        worker_control, worker_descriptors, worker_out, worker_err: the worker's.
        lifeline: both.
        worker_data: the worker's descriptors of each data connection: its socket, and its lane (-1: none).
    """

    def __init__(
        self,
        ours: contextlib.ExitStack,
        theirs: contextlib.ExitStack,
        connections: int,
        use_lane: bool,
        kind: socket.SocketKind = socket.SOCK_STREAM,
    ) -> None:
        # A daemon may have closed its standard descriptors. Ours must not get their numbers: the child's own standard
        # descriptors would be put in their place.
        while (filler := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) < 3:
            theirs.callback(os.close, filler)
        os.close(filler)
        self.control, worker_control = socket.socketpair(socket.AF_UNIX, kind)
        ours.callback(self.control.close)
        theirs.callback(worker_control.close)
        self.worker_control = worker_control.fileno()
        self.lifeline = Lifeline.make()
        ours.callback(self.lifeline.close)
        self.descriptors: socket.socket | None = None
        self.worker_descriptors = -1
        if connections:
            self.descriptors, worker_descriptors = socket.socketpair(socket.AF_UNIX, _MESSAGES)
            ours.callback(self.descriptors.close)
            theirs.callback(worker_descriptors.close)
            self.worker_descriptors = worker_descriptors.fileno()
        self.out, self.worker_out = self._pipe(ours, theirs)
        self.err, self.worker_err = self._pipe(ours, theirs)
        self.data: list[DataConnection] = []
        self.worker_data: list[tuple[int, int]] = []
        for _ in range(connections):
            sock, worker_sock = socket.socketpair()
            ours.callback(sock.close)
            theirs.callback(worker_sock.close)
            lane, lane_fd = None, -1
            if use_lane and lane_module.available():
                lane_fd = lane_module.create()
                theirs.callback(os.close, lane_fd)
                lane = Lane(lane_fd, is_host=True)
            self.data.append(DataConnection(sock, lane))
            self.worker_data.append((worker_sock.fileno(), lane_fd))

    @staticmethod
    def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
        read, write = os.pipe()
        ours.callback(os.close, read)
        theirs.callback(os.close, write)
        return read, write

    @property
    def passed(self) -> list[int]:
        """The worker's descriptors, less its standard ones."""
        data = [fd for pair in self.worker_data for fd in pair if fd >= 0]
        descriptors = [self.worker_descriptors] if self.worker_descriptors >= 0 else []
        return [self.worker_control, *self.lifeline.passed, *descriptors, *data]

    @property
    def arguments(self) -> list[str]:
        """What tells the worker the numbers of its control connection, its lifeline and, if it has one, its socket for
        descriptors."""
        descriptors = [str(self.worker_descriptors)] if self.worker_descriptors >= 0 else []
        return [str(self.worker_control), ":".join(map(str, self.lifeline.passed)), *descriptors]

    def streams(self, service: str, pid: int) -> list[Stream]:
        """What the worker prints to."""
        return [Stream(self.out, service, pid, "stdout"), Stream(self.err, service, pid, "stderr")]
