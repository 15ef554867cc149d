# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is: first come, first served, for threads and asyncio tasks alike.

One call at a time is in progress on a connection. Who comes while it is taken waits in one queue, whichever way it
waits. Passing through an empty turnstile costs one uncontended lock.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

# Seconds after which a thread that waits looks whether its turn can come at all.
_LONG = 0.1


class _Waiter:
    """One place in the queue. ``granted`` is set by whoever leaves; ``abandoned`` by whoever gave up waiting. Exactly
    one of the two passes on a turn that came too late.

    Args:
        wake: wakes the one who waits; raises RuntimeError if nobody is there any more.
        loop: the event loop it waits on, if it is a task.
    """

    __slots__ = ("abandoned", "granted", "lock", "loop", "wake")

    def __init__(self, wake: Callable[[], object], loop: AbstractEventLoop | None = None) -> None:
        self.wake = wake
        self.loop = loop
        self.granted = False
        self.abandoned = False
        self.lock = threading.Lock()

    def grant(self) -> bool:
        with self.lock:
            if self.abandoned:
                return False
            self.granted = True
        try:
            self.wake()
        except RuntimeError:
            return self.abandon()  # its event loop was closed with the task in the queue
        return True

    def abandon(self) -> bool:
        """False if the turn came after all."""
        with self.lock:
            came, self.granted, self.abandoned = self.granted, False, True
            return not came


class Turnstile:
    """Lets one through at a time. Whoever came through calls ``leave``."""

    def __init__(self) -> None:
        # Public for the path of a call, which inlines try_enter() and leave().
        busy = threading.Lock()
        self.take = busy.acquire
        self.give = busy.release
        self.queue: deque[_Waiter] = deque()

    @property
    def waiting(self) -> int:
        """How many stand in the queue."""
        return len(self.queue)

    def try_enter(self) -> bool:
        """Come through if nobody is there or waits; no waiting."""
        return not self.queue and self.take(False)

    def enter(
        self, deadline: float | None = None, check: Callable[[set[AbstractEventLoop | None]], None] | None = None
    ) -> bool:
        """Wait for one's turn; False if the deadline (of ``time.monotonic()``) passed first.

        Once that takes long, ``check`` is called with the event loops of those who stand before; what it raises ends
        the waiting.
        """
        if self.try_enter():
            return True
        turn = threading.Lock()
        turn.acquire()
        waiter = _Waiter(turn.release)
        self.queue.append(waiter)
        self.pass_on()
        try:
            left = _LONG if deadline is None else max(0.0, deadline - time.monotonic())
            if turn.acquire(timeout=min(left, _LONG)):
                return True
            if check is not None:
                check({one.loop for one in itertools.takewhile(lambda one: one is not waiter, tuple(self.queue))})
            if deadline is None:
                turn.acquire()
                return True
            if turn.acquire(timeout=max(0.0, deadline - time.monotonic())):
                return True
        except BaseException:  # KeyboardInterrupt, above all
            if not waiter.abandon():
                self.leave()
            raise
        return not waiter.abandon()

    async def enter_async(self, deadline: float | None = None) -> bool:
        """As ``enter``, for a task of the running event loop."""
        if self.try_enter():
            return True
        import asyncio  # whoever gets here has imported it already

        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not turn.done():
                turn.set_result(None)

        waiter = _Waiter(lambda: loop.call_soon_threadsafe(finish), loop)
        self.queue.append(waiter)
        self.pass_on()
        try:
            async with asyncio.timeout_at(None if deadline is None else loop.time() + deadline - time.monotonic()):
                await turn
        except TimeoutError:
            return not waiter.abandon()
        except BaseException:
            if not waiter.abandon():
                self.leave()
            raise
        return True

    def leave(self) -> None:
        """Let the next one through."""
        self.give()
        if self.queue:
            self.pass_on()

    def pass_on(self) -> None:
        """Grant the turn to the first in the queue, if nobody has it."""
        # Whoever holds `busy` here holds it for the waiter that is granted next. A waiter that queued up between
        # somebody's look at the queue and their release of `busy` calls this itself.
        while self.queue and self.take(False):
            try:
                waiter = self.queue.popleft()
            except IndexError:
                self.give()
                continue
            if waiter.grant():
                return
            self.give()
