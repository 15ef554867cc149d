# SPDX-License-Identifier: Apache-2.0
"""Taking a channel for a call: at once, from the callback it is made in, or after waiting in the queue.

What belongs here: everything between "a call wants a channel" and the dispatcher, and what is found out while that
takes long: a call that would wait for itself, a channel that got lost. What does not: whose turn it is
(``dispatcher``).
"""

from __future__ import annotations

import sys
import time
from _thread import get_ident
from collections.abc import Callable
from typing import TYPE_CHECKING

from atoll_worker import wire

from ..errors import AtollError, CallTimeout, QueueFull
from .dispatcher import QueueIsFull, WaitedTooLong

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from types import CodeType, FrameType

    from .attempt import Attempt
    from .channel import Channel
    from .pool import Pool
    from .worker import Worker

# Seconds between two looks of a task whether it is its turn.
TURN = 0.001

# Seconds after which a channel that was taken, and on which no call begins, is given up.
LOST_AFTER = 60.0

# The code that holds a channel in a local variable of this name while it is taken.
holders: set[CodeType] = set()


# By thread: what is to be told when it begins to wait. A granted channel may depend on that thread.
told_of_waiting: dict[int, Callable[[], None]] = {}


def begin_to_wait() -> None:
    """This thread is going to wait for a call."""
    tell = told_of_waiting.get(get_ident())
    if tell is not None:
        tell()


def enter(
    pool: Pool, function: str, began: float, timeout: float | None, worker: Worker | None, again: bool = False
) -> Channel:
    """Wait for a channel; for ``again`` see ``Dispatcher.enter``."""
    _check_enter(pool, worker)
    begin_to_wait()
    unmoved: dict[Channel, tuple[float, int]] = {}
    try:
        while True:
            channel = pool.dispatcher.enter(began, timeout, worker, lambda: _check_turn(pool, unmoved), again)
            if not channel.worker.process.has_exited or worker is not None:  # type: ignore[union-attr]
                return channel
            channel.retired = True
            pool.dispatcher.give(channel)
            again = True
    except QueueIsFull:
        raise queue_full(pool, function) from None
    except WaitedTooLong:
        raise _queued_too_long(pool, function, timeout) from None


def _check_enter(pool: Pool, worker: Worker | None) -> None:
    pool._check_open()
    if worker is None:
        refusal = pool.supervisor.refusal()
        if refusal is not None:
            raise refusal


def take(pool: Pool, attempt: Attempt) -> Channel:
    nest = attempt.nest
    cancellation = None if attempt.options is None else attempt.options.cancellation
    if cancellation is not None and cancellation.place is not None:
        place, cancellation.place = cancellation.place, None
        try:
            channel = pool.dispatcher.claim(place)
        except WaitedTooLong:  # it was given up in this very moment
            pass
        else:
            if not channel.worker.process.has_exited:  # type: ignore[union-attr]
                return channel
            channel.retired = True
            pool.dispatcher.give(channel)
            attempt.again = True
    may_pass = attempt.again or not pool.dispatcher.queue
    if (nest is None or attempt.is_background) and attempt.worker is None and may_pass:
        try:
            channel = pool.dispatcher.take()
        except IndexError:
            pass
        else:
            attempt.nest = None
            return channel
    if nest is None:
        return enter(pool, attempt.function, attempt.began, attempt.timeout, attempt.worker, attempt.again)
    left = -1.0 if attempt.timeout is None else attempt.timeout
    _check_room()
    if not nest.turn.acquire(timeout=left):
        raise _queued_too_long(pool, attempt.function, attempt.timeout)
    if not nest.ended:
        return nest.channel
    nest.turn.release()
    attempt.nest = None
    return enter(pool, attempt.function, attempt.began, attempt.timeout, attempt.worker)


def _check_room(frames: int = 12) -> None:
    """To nest calls is to go deep. Whoever has the turn must come to give it back: so many frames are still to be had.

    Raises:
        RecursionError: they are not.
    """
    if frames:
        _check_room(frames - 1)


async def take_async(pool: Pool, attempt: Attempt) -> Channel:
    import asyncio  # whoever gets here has imported it already

    nest = attempt.nest
    if nest is not None:
        _check_room()
        # Calls that a callback makes side by side take turns on its one channel.
        while not nest.turn.acquire(False):
            if attempt.is_late:
                raise _queued_too_long(pool, attempt.function, attempt.timeout)
            await asyncio.sleep(TURN)
        if not nest.ended:
            return nest.channel
        nest.turn.release()
        attempt.nest = None
    loop = asyncio.get_running_loop()
    dispatcher = pool.dispatcher
    again = attempt.again
    if (again or not dispatcher.queue) and attempt.worker is None and not pool.closed:
        try:
            channel = dispatcher.take()
        except IndexError:
            pass
        else:
            if not channel.worker.process.has_exited:  # type: ignore[union-attr]
                channel.owner = loop
                return channel
            channel.retired = True
            dispatcher.give(channel)
    _check_enter(pool, attempt.worker)
    try:
        while True:
            channel = await dispatcher.enter_async(loop, attempt.began, attempt.timeout, attempt.worker, again)
            if not channel.worker.process.has_exited or attempt.worker is not None:  # type: ignore[union-attr]
                return channel
            channel.retired = True
            dispatcher.give(channel)
            again = True
    except QueueIsFull:
        raise queue_full(pool, attempt.function) from None
    except WaitedTooLong:
        raise _queued_too_long(pool, attempt.function, attempt.timeout) from None


def _check_turn(pool: Pool, unmoved: dict[Channel, tuple[float, int]]) -> None:
    """While waiting long for a channel, on the waiting thread.

    A channel is lost when an exception of a signal handler's, such as Ctrl-C, struck between taking it and taking
    note of it. Nobody pays for preventing that on the path of a call: a channel that is taken and on which no call
    begins for a long time is found here. Should somebody have it after all, such as a thread that gets no processor, it
    must never be used by two: its worker is ended, and replaced.

    Args:
        unmoved: the taken channels without a call, since when, and how many calls they had answered by then.

    Raises:
        AtollError: none would ever come, because whoever has them goes on only after this call.
    """
    dispatcher = pool.dispatcher
    busy = dispatcher.busy()
    asyncio = sys.modules.get("asyncio")
    loop: AbstractEventLoop | None = asyncio._get_running_loop() if asyncio is not None else None
    if loop is not None and busy and all(channel.owner is loop for channel in busy):
        raise AtollError(
            f"a call of {pool.service!r} blocks the event loop that an earlier call of it needs to go on: "
            "await the .aio() of the function here too"
        )
    held = _held_here()
    if busy and all(channel in held for channel in busy) and not dispatcher.idle:
        raise AtollError(
            f"a call of {pool.service!r} was made in the middle of another one on the same thread, by a "
            "signal handler or by what a registered class does when it is passed: it would wait for itself"
        )
    now = time.monotonic()
    for channel in busy:
        if channel.owner is not None or channel.connection.conversation.state is not wire.IDLE:
            unmoved.pop(channel, None)
            continue
        since, calls = unmoved.setdefault(channel, (now, channel.calls))
        if calls != channel.calls:
            unmoved[channel] = now, channel.calls
        elif now - since > LOST_AFTER:
            from .lifecycle import Cause

            channel.worker.end(Cause.CANCELLED, "one of its connections was taken, and never used")


def _queued_too_long(pool: Pool, function: str, timeout: float | None) -> CallTimeout:
    return CallTimeout(
        f"{pool.service}.{function} did not get its turn within {timeout:g} seconds: earlier calls are still "
        f"running, {pool.dispatcher.waiting} more are waiting. Nothing was stopped"
    )


def queue_full(pool: Pool, function: str) -> QueueFull:
    """What who finds the queue full is told."""
    return QueueFull(
        f"{pool.service}.{function} was not queued: {pool.dispatcher.waiting} calls wait for a worker already, "
        f"and max_queue={pool.settings.max_queue} allows no more"
    )


def _held_here() -> set[Channel]:
    """The channels that calls in progress on this thread hold. Only its own stack is looked at: those of other threads
    change under whoever looks."""
    held = set()
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code in holders:
            channel = frame.f_locals.get("channel")
            if channel is not None:
                held.add(channel)
        frame = frame.f_back
    return held
