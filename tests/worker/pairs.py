# SPDX-License-Identifier: Apache-2.0
"""Two ends of a data connection, for tests: both in this process, or the server's end in a forked child."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from atoll_worker import lane, wire
from atoll_worker.connection import Connection, ConnectionClosed
from atoll_worker.lane import Lane

# Seconds that something which happens at once may take on a machine that is busy with other things.
PATIENCE = 30.0


def open_at_once(connection: Connection) -> Connection:
    """As if the greeting and the loading were over."""
    connection.conversation.state = wire.IDLE
    return connection


@contextmanager
def both_ends(with_lane: bool = True, spin: bool = True) -> Iterator[tuple[Connection, Connection]]:
    """Client and server in this process, ready for calls."""
    ours, theirs = socket.socketpair()
    fd = lane.create() if with_lane else None
    try:
        client = Connection(ours, lane.open_lane(fd, is_host=True), "client", spin)
        server = Connection(theirs, lane.open_lane(fd, is_host=False), "server", spin)
        yield open_at_once(client), open_at_once(server)
    finally:
        ours.close()
        theirs.close()
        if fd is not None:
            os.close(fd)


class Raw:
    """A peer that keeps to no rules: the socket and the memory of the lane, to be written at will."""

    def __init__(self, sock: socket.socket, shared: Lane | None) -> None:
        self.sock = sock
        self._lane = shared

    @property
    def lane(self) -> Lane:
        assert self._lane is not None
        return self._lane

    def put(self, number: int, header: tuple[int, int, int, int, int], payload: bytes = b"") -> None:
        """A frame into the slot, with whatever header and sequence number."""
        start = self.lane.write_offset
        end = start + wire.HEADER_SIZE
        self.lane.memory[start:end] = wire.HEADER.pack(*header)
        self.lane.memory[end : end + len(payload)] = payload
        self.publish(number)

    def publish(self, number: int) -> None:
        """A sequence number, and a wake byte to be sure."""
        self.lane.words[self.lane.write_number_word] = number
        self.sock.send(b"\0")


@contextmanager
def against_raw(role: str, with_lane: bool = True, spin: bool = True) -> Iterator[tuple[Connection, Raw]]:
    """A well-behaved end of the given role, and a raw one, in this process."""
    ours, theirs = socket.socketpair()
    fd = lane.create() if with_lane else None
    try:
        good = open_at_once(Connection(ours, lane.open_lane(fd, role == "client"), role, spin))
        yield good, Raw(theirs, lane.open_lane(fd, role != "client"))
    finally:
        ours.close()
        theirs.close()
        if fd is not None:
            os.close(fd)


class Child:
    """A forked process that holds the other end."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """The exit code, or minus the signal."""
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def wait_until_asleep(self) -> None:
        """Return when the child sleeps in the kernel."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with open(f"/proc/{self.pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "S":
                    return
            os.sched_yield()
        raise AssertionError("the child never fell asleep")


Serve = Callable[[Connection, Raw], None]


@contextmanager
def forked(
    serve: Serve, with_lane: bool = True, spin: bool = True, make: type[Connection] = Connection
) -> Iterator[tuple[Connection, Child]]:
    """The client's end, and a child process that runs ``serve`` with the server's. The child ends with 0 when
    ``serve`` returns or the connection is closed, and with 70 and a traceback on stderr when it raises."""
    ours, theirs = socket.socketpair()
    fd = lane.create() if with_lane else None
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            ours.close()
            mine = lane.open_lane(fd, is_host=False)
            serve(open_at_once(make(theirs, mine, "server", spin)), Raw(theirs, mine))
            code = 0
        except ConnectionClosed:
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    child = Child(pid)
    theirs.close()
    try:
        yield open_at_once(make(ours, lane.open_lane(fd, is_host=True), "client", spin)), child
    finally:
        ours.close()
        if fd is not None:
            os.close(fd)
        if child.pid:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            child.wait()


def echo(connection: Connection, _: Raw) -> None:
    """Answers every call with its own payload and buffers."""
    while True:
        _, codec, payload, buffers = connection.receive_call()
        connection.reply(wire.RESULT, codec, payload, buffers)
