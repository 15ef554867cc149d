# SPDX-License-Identifier: Apache-2.0
"""A call on an asyncio event loop: the same connection, waited for by the loop instead of by a thread.

After sending it looks at the slot for some 20 microseconds, in which a small function answers; only then does it
ask the loop to wait. So that a row of quick calls does not keep the loop from everything else, ``give_way`` comes
before each.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar

from atoll_worker import wire
from atoll_worker.connection import Connection, DeadlinePassed, WouldSleep
from atoll_worker.errors import SegmentsExhausted

if TYPE_CHECKING:
    from atoll_worker.connection import Reply
    from atoll_worker.wire import Bytes


T = TypeVar("T")

running_loop = asyncio.get_running_loop

# Seconds.
_GIVE_WAY_EVERY = 1e-3
# A sleep is cut short this often to look again, so that a lost wake would never be a hang.
_LOOK_AGAIN = 1.0

# Seconds between two looks whether shared memory was given back.
_ROOM_EVERY = 0.002

# When a call is to let the loop do other things first; public, so that a call need not ask in vain.
give_way_at = 0.0


class Attempt(Protocol):
    """A call that has a channel."""

    kept: bool

    def give_back(self) -> None: ...

    def give_back_kept(self) -> None: ...


async def give_way() -> None:
    """Let the loop do other things; to be done once ``give_way_at`` has passed."""
    global give_way_at
    await asyncio.sleep(0)
    give_way_at = time.monotonic() + _GIVE_WAY_EVERY


async def when_there_is_room(encode: Callable[[], T]) -> T:
    """What ``encode`` returns, called again for some time while shared memory is used up: on a loop it does not wait
    for that itself.

    Raises:
        SegmentsExhausted: nothing was given back in time.
        other: what ``encode`` raises.
    """
    until = 0.0
    while True:
        try:
            return encode()
        except SegmentsExhausted:
            from atoll_worker.segments import store

            until = until or time.monotonic() + store.patience
            if time.monotonic() >= until:
                raise
        await asyncio.sleep(_ROOM_EVERY)


async def exchange(
    connection: Connection, kind: int, payload: Bytes, buffers: Sequence[Bytes], deadline: float | None
) -> Reply:
    """As ``Connection.exchange``, on the running event loop."""
    if kind != wire.CALL and deadline is not None and time.monotonic() > deadline:
        raise DeadlinePassed  # a call that calls back again and again might never be waited for
    if connection.fits_slot(payload, buffers):
        try:
            return connection.exchange(wire.PICKLE, payload, buffers, sleep=False, kind=kind)
        except WouldSleep:
            pass
    else:
        loop = asyncio.get_running_loop()
        left = connection.start_send(kind, wire.PICKLE, payload, buffers)
        while left:
            await _wait(loop, connection, loop.add_writer, loop.remove_writer, deadline)
            left = connection.continue_send(left)
    return await answer(connection, deadline)


async def answer(connection: Connection, deadline: float | None) -> Reply:
    """Wait for the next frame."""
    loop = asyncio.get_running_loop()
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


async def end_elsewhere(raise_it: Callable[[], NoReturn], error: BaseException, attempt: Attempt) -> NoReturn:
    """Have a call that did not end with an answer ended on a thread, and raise what ``raise_it`` raises.

    A task that was cancelled does not wait for that: the thread gives the channel back.
    """
    if isinstance(error, Exception) and not isinstance(error, (DeadlinePassed, EOFError)):
        raise_it()  # nothing that takes time
    attempt.kept = isinstance(error, (asyncio.CancelledError, GeneratorExit))
    if attempt.kept:

        def end() -> None:
            try:
                raise_it()
            except BaseException:  # noqa: BLE001 - whoever called has left
                attempt.give_back_kept()

        threading.Thread(target=end, name="atoll-end", daemon=True).start()
        raise error
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[BaseException] = loop.create_future()
    # Whoever comes second, the thread or the task that leaves, sees to it that the channel is given back.
    meeting = threading.Lock()
    has_ended = False

    def run() -> None:
        nonlocal has_ended
        try:
            raise_it()
        except BaseException as raised:  # noqa: BLE001 - raised again on the loop
            with meeting:
                has_ended = True
                is_left = attempt.kept
            if is_left:
                attempt.give_back_kept()
                return
            with contextlib.suppress(RuntimeError):  # the loop was closed under its task
                loop.call_soon_threadsafe(finish, raised)

    def finish(raised: BaseException) -> None:
        if not outcome.done():
            outcome.set_result(raised)

    threading.Thread(target=run, name="atoll-end", daemon=True).start()
    try:
        raised = await outcome
    except BaseException:  # cancelled meanwhile, or its loop was closed
        with meeting:
            attempt.kept = not has_ended
        raise
    raise raised from raised.__cause__


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
