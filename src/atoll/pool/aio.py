# SPDX-License-Identifier: Apache-2.0
"""A call on an asyncio event loop: the same connection, waited for by the loop instead of by a thread.

After sending it looks at the slot for some 20 microseconds, in which a small function answers; only then does it
ask the loop to wait. So that a row of quick calls does not keep the loop from everything else, ``give_way`` comes
before each.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from atoll_worker import wire
from atoll_worker.connection import Connection, DeadlinePassed, WouldSleep

if TYPE_CHECKING:
    from atoll_worker.connection import Reply
    from atoll_worker.wire import Bytes

    from .worker import Worker

# Seconds.
_GIVE_WAY_EVERY = 1e-3
# A sleep is cut short this often to look again, so that a lost wake would never be a hang.
_LOOK_AGAIN = 1.0

_gave_way_at = 0.0


async def give_way() -> None:
    """Let the loop do other things, if that was not done lately."""
    global _gave_way_at
    if time.monotonic() - _gave_way_at > _GIVE_WAY_EVERY:
        await asyncio.sleep(0)
        _gave_way_at = time.monotonic()


async def exchange(
    connection: Connection, codec: int, payload: Bytes, buffers: Sequence[Bytes], deadline: float | None
) -> Reply:
    """As ``Connection.exchange``, on the running event loop."""
    if connection.fits_slot(payload, buffers):
        try:
            return connection.exchange(codec, payload, buffers, sleep=False)
        except WouldSleep:
            loop = asyncio.get_running_loop()
    else:
        loop = asyncio.get_running_loop()
        left = connection.start_send(wire.CALL, codec, payload, buffers)
        while left:
            await _wait(loop, connection, loop.add_writer, loop.remove_writer, deadline)
            left = connection.continue_send(left)
    frame = connection.poll_frame()
    while frame is None:
        try:
            if connection.prepare_sleep() and await _wait(
                loop, connection, loop.add_reader, loop.remove_reader, deadline
            ):
                connection.drain_wakes()
        finally:
            connection.end_sleep()
        frame = connection.poll_frame()
    return frame.kind, frame.codec, frame.payload, frame.buffers


class Starting:
    """The start of a worker, on a thread of its own, for a task that has the turn.

    A thread of its own and a daemon, because an event loop that ends waits for the threads of its executor. Exactly one
    of the two, task or thread, gives the turn back: the thread if the task went away before the start was done.

    Args:
        start: has a worker ready.
        leave: gives the turn back.
    """

    def __init__(self, start: Callable[[], Worker], leave: Callable[[], None]) -> None:
        self._start = start
        self._leave = leave
        self._lock = threading.Lock()
        self._done = False
        self._abandoned = False
        self._loop = asyncio.get_running_loop()
        self._result: asyncio.Future[Worker] = self._loop.create_future()
        threading.Thread(target=self._run, name="atoll-start", daemon=True).start()

    async def wait(self) -> Worker:
        """The worker, when it is ready; raises what starting it raised."""
        return await self._result

    def leave(self) -> None:
        """The task is through with its turn, or was cancelled."""
        with self._lock:
            self._abandoned = not self._done
        if self._done:
            self._leave()

    def _run(self) -> None:
        worker: Worker | None = None
        raised: BaseException | None = None
        try:
            worker = self._start()
        except BaseException as error:  # noqa: BLE001 - raised again by `wait`
            raised = error
        with self._lock:
            self._done = True
        if self._abandoned:
            self._leave()
            return
        try:
            self._loop.call_soon_threadsafe(self._finish, worker, raised)
        except RuntimeError:
            pass  # the loop was closed under its task, which will call `leave` when it is collected

    def _finish(self, worker: Worker | None, raised: BaseException | None) -> None:
        if self._result.done():
            return  # cancelled
        if worker is not None:
            self._result.set_result(worker)
        elif raised is not None:
            self._result.set_exception(raised)


async def _wait(
    loop: asyncio.AbstractEventLoop,
    connection: Connection,
    add: Callable[..., object],
    remove: Callable[[int], object],
    deadline: float | None,
) -> bool:
    """Wait until the socket is ready, False if it was time to look again.

    Raises:
        DeadlinePassed: the deadline did.
    """
    ready: asyncio.Future[bool] = loop.create_future()

    def finish(value: bool) -> None:
        if not ready.done():
            ready.set_result(value)

    patience = _LOOK_AGAIN
    if deadline is not None:
        patience = min(patience, deadline - time.monotonic())
        if patience <= 0:
            raise DeadlinePassed
    fd = connection.sock.fileno()
    timer = loop.call_later(patience, finish, False)
    add(fd, finish, True)
    try:
        return await ready
    finally:
        timer.cancel()
        remove(fd)
