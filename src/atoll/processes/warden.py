# SPDX-License-Identifier: Apache-2.0
"""The warden: one permanent thread per host process that spawns every worker and watches every worker.

One thread, so that a spawn and a death are never handled at once, and permanent, because some of what a child inherits
is tied to the thread that spawned it and ends with it. It watches by pidfd: a death is known at once, and a reaped
process id is never mistaken for another process. What does not belong here: reading what workers print (``output``; a
log handler may block), and anything that calls user code.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from atoll_worker import reserve

if TYPE_CHECKING:
    from socket import socket

logger = logging.getLogger("atoll.processes")

T = TypeVar("T")

# Where there is no pidfd, living children are looked at this often, in seconds.
_LOOK_INTERVAL = 0.05


class Watched(Protocol):
    """What the warden watches."""

    pid: int

    def open_pidfd(self) -> int:
        """A new descriptor that stands for the process."""

    def reap(self) -> None:
        """The process has ended: called once, on the warden's thread. Must wait for it, which returns at once."""


class Warden:
    """See the module. Use the one that ``warden()`` returns."""

    def __init__(self) -> None:
        self._commands: deque[Callable[[], None]] = deque()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._poll = select.poll()
        self._poll.register(self._wake_read, select.POLLIN)
        self._watched: dict[int, Watched] = {}  # by pidfd
        self._unwatchable: list[Watched] = []  # where there is no pidfd
        self._heard: dict[int, tuple[socket, Callable[[], bool]]] = {}  # by descriptor
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_number = 0
        reserve.keep()  # while there are descriptors
        self._thread = threading.Thread(target=self._run, name="atoll-warden", daemon=True)
        self._thread.start()

    def run(self, function: Callable[[], T]) -> T:
        """Call ``function`` on the warden's thread and return what it returns, or raise what it raises."""
        if threading.current_thread() is self._thread:
            return function()
        done = threading.Lock()
        done.acquire()
        result: list[T] = []
        raised: list[BaseException] = []

        def command() -> None:
            try:
                result.append(function())
            except BaseException as error:  # noqa: BLE001 - raised again on the calling thread
                raised.append(error)
            finally:
                done.release()

        self.post(command)
        done.acquire()
        if raised:
            raise raised[0]
        return result[0]

    def after(self, seconds: float, function: Callable[[], None]) -> None:
        """Call ``function`` on the warden's thread in ``seconds``."""

        due = time.monotonic() + seconds

        def command() -> None:
            self._timer_number += 1
            heapq.heappush(self._timers, (due, self._timer_number, function))

        self.post(command)

    def listen(self, sock: socket, hear: Callable[[], bool]) -> None:
        """Call ``hear`` on the warden's thread whenever there is something to read, until it returns False.

        It must neither wait nor call user code.
        """
        fd = sock.fileno()

        def command() -> None:
            if sock.fileno() == fd:  # not closed meanwhile
                self._heard[fd] = sock, hear
                self._poll.register(fd, select.POLLIN)

        self.post(command)

    def ignore(self, sock: socket) -> None:
        """Stop listening; the socket may be closed when this returns."""
        fd = sock.fileno()
        if fd >= 0:
            self.run(lambda: self._ignore(fd, sock))

    def drop(self, sock: socket) -> None:
        """Stop listening, and close the socket. Does not wait for it."""

        def command() -> None:
            self._ignore(sock.fileno(), sock)
            sock.close()

        if threading.current_thread() is self._thread:
            command()
        else:
            self.post(command)

    def _ignore(self, fd: int, sock: socket) -> None:
        known = self._heard.get(fd)
        if known is not None and known[0] is sock:
            del self._heard[fd]
            with contextlib.suppress(KeyError):
                self._poll.unregister(fd)

    def watch(self, process: Watched) -> None:
        """Begin to watch a process: a child of this one, unless it has a pidfd. On the warden's thread only."""
        try:
            pidfd = process.open_pidfd()
        except (AttributeError, OSError):
            self._unwatchable.append(process)
            return
        self._watched[pidfd] = process
        self._poll.register(pidfd, select.POLLIN)

    def post(self, command: Callable[[], None]) -> None:
        """Call a function on the warden's thread, soon. It must neither wait nor call user code."""
        self._commands.append(command)
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def _run(self) -> None:
        while True:
            try:
                self._step()
            except Exception:
                # The last line of defence: without the warden no worker could be started or watched any more.
                logger.exception("the warden stumbled, and goes on")

    def _step(self) -> None:
        for fd, _ in self._poll.poll(self._patience_ms()):
            if fd == self._wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
            elif fd in self._heard:
                sock, hear = self._heard[fd]
                if not hear():
                    self._ignore(fd, sock)
            elif fd in self._watched:
                process = self._watched.pop(fd)
                self._poll.unregister(fd)
                os.close(fd)
                process.reap()
        # Those there are by now: whoever posts one after another keeps nobody's end from being seen.
        for _ in range(len(self._commands)):
            self._commands.popleft()()
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()
        for process in list(self._unwatchable):
            try:
                has_ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            except ChildProcessError:
                has_ended = True
            if has_ended:
                self._unwatchable.remove(process)
                process.reap()

    def _patience_ms(self) -> int | None:
        if self._commands:
            return 0  # what woke it for these may have been read already, before one of them raised
        waits = []
        if self._timers:
            waits.append(self._timers[0][0] - time.monotonic())
        if self._unwatchable:
            waits.append(_LOOK_INTERVAL)
        return max(0, int(min(waits) * 1000) + 1) if waits else None

    def forget(self) -> None:
        """In a forked child: let go of the parent's descriptors. The parent's workers are none of its business."""
        for fd in (self._wake_read, self._wake_write, *self._watched):
            with contextlib.suppress(OSError):
                os.close(fd)


_warden: Warden | None = None
_lock = threading.Lock()


def warden() -> Warden:
    """The warden of this process, started if need be."""
    global _warden
    if _warden is not None:  # without the lock, which a finalizer may find taken by its own thread
        return _warden
    with _lock:
        if _warden is None:
            _warden = Warden()
        return _warden


def _after_fork() -> None:
    global _warden, _lock
    _lock = threading.Lock()
    if _warden is not None:
        _warden.forget()
        _warden = None


os.register_at_fork(after_in_child=_after_fork)
