# SPDX-License-Identifier: Apache-2.0
"""Serving what a worker calls back, on the thread or the loop that waits for its answer.

A callback's own calls of the same pool go back over the channel it came from (``channel.Nesting``); those that it
leaves behind come to their end before it is answered, since an answer is to the innermost call.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from atoll_worker import wire
from atoll_worker.completion import complete, home, is_coroutine, on_thread
from atoll_worker.connection import DeadlinePassed

from .channel import Channel, Nesting, nesting
from .waiting import TURN

if TYPE_CHECKING:
    from atoll_worker.connection import Reply
    from atoll_worker.wire import Bytes

    from .pool import Pool

_PICKLE = wire.PICKLE
_CALL = wire.CALL
_clock = time.monotonic


def converse(pool: Pool, channel: Channel, payload: Bytes, buffers: Sequence[Bytes], deadline: float | None) -> Reply:
    """Serve callbacks until the answer comes."""
    exchange = channel.connection.exchange
    while True:
        kind, payload, buffers = _answer(pool, channel, payload, buffers)
        if deadline is not None and _clock() > deadline:
            raise DeadlinePassed  # a call that calls back again and again might never be waited for
        reply = exchange(_PICKLE, payload, buffers, deadline, kind=kind)
        if reply[0] != _CALL:
            return reply
        _, _, payload, buffers = reply


def _answer(
    pool: Pool, channel: Channel, payload: Bytes, buffers: Sequence[Bytes]
) -> tuple[int, Bytes, Sequence[Bytes]]:
    nest = Nesting(channel, pool, nesting.get())
    channel.nests.append(nest)
    token = nesting.set(nest)
    result, failure = None, None
    try:
        result = channel.callback(payload, buffers)()
        if is_coroutine(result):
            result = complete(result)
    except (KeyboardInterrupt, SystemExit):
        raise  # whoever ends the call answers the worker (`endings`)
    except BaseException as error:  # noqa: BLE001 - the worker is told
        failure = error
    finally:
        nesting.reset(token)
    with nest.turn:  # a call that it left behind comes to its end before: answers are to the innermost call
        nest.ended = True
    channel.nests.pop()
    try:
        return channel.encode_result(result) if failure is None else channel.encode_error(failure)
    finally:
        del result, failure  # the traceback has this frame


async def answer_async(
    pool: Pool, channel: Channel, payload: Bytes, buffers: Sequence[Bytes]
) -> tuple[int, Bytes, Sequence[Bytes]]:
    import asyncio

    nest = Nesting(channel, pool, nesting.get())
    channel.nests.append(nest)
    token = nesting.set(nest)
    result, failure = None, None
    home_token = home.set(asyncio.get_running_loop())
    try:
        # Not on the loop's thread: it may wait for anything.
        result = await on_thread(channel.callback(payload, buffers))
        if is_coroutine(result):
            result = await result
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
            raise  # not the callback gave up, but the caller
        failure = error
    finally:
        home.reset(home_token)
        nesting.reset(token)
    while not nest.turn.acquire(False):  # as in _answer()
        await asyncio.sleep(TURN)
    nest.ended = True
    nest.turn.release()
    channel.nests.pop()
    try:
        return channel.encode_result(result) if failure is None else channel.encode_error(failure)
    finally:
        del result, failure  # the traceback has this frame
