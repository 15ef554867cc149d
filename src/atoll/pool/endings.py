# SPDX-License-Identifier: Apache-2.0
"""What a call comes to when its exchange does not end with a result: an error of the function's, a deadline, a caller
who gives up, a worker that died.

What always holds: ``raise_broken`` returns only once the call has ended over there, or its worker has; so a channel
that is given back afterwards is in no call. What does not belong here: the steps that end a call (``escalation``).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from atoll_worker import wire
from atoll_worker.connection import ConnectionClosed, DeadlinePassed
from atoll_worker.errors import LocalProtocolError, RemoteError

from ..errors import (
    AtollError,
    CallCancelled,
    CallTimeout,
    DecodeError,
    EncodeError,
    FunctionNotFound,
    ManifestError,
    ProtocolError,
    SegmentsExhausted,
    ServiceClosed,
    WorkerDied,
)
from .channel import Channel

if TYPE_CHECKING:
    from atoll_worker.wire import Bytes

    from .attempt import Attempt
    from .escalation import Escalation
    from .pool import Pool
    from .worker import Worker

_PICKLE = wire.PICKLE
_CALL = wire.CALL
_WAITING = (wire.CALLING, wire.NESTED)  # states of a conversation in which it is the worker's turn
# What a worker says of results, by name.
_OWN_ERRORS: dict[str, type[AtollError]] = {"EncodeError": EncodeError, "SegmentsExhausted": SegmentsExhausted}
# How an attempt ended whose worker was gone before it took the call. It does not count: the next one does.
UNTAKEN = "untaken"
_END_GRACE = 1.0
_LOOK_AGAIN = 0.1
_clock = time.monotonic


def raise_broken(pool: Pool, error: BaseException, channel: Channel, attempt: Attempt) -> NoReturn:
    """The exchange did not end with an answer. Returns only once the call has ended, or its worker has."""
    function, timeout, conversation = attempt.function, attempt.timeout, channel.connection.conversation
    process = channel.worker.process
    assert process is not None
    if process.is_parents:  # forked in the middle of it: the answer, and the worker, are the parent's
        channel.retired = True
        if not isinstance(error, Exception):
            raise error
        raise of_parent(f"the call of {pool.service}.{function}", process.host) from None
    # An earlier call on this channel was never answered: whoever needs this very worker may still get it.
    is_broken = isinstance(error, LocalProtocolError) and conversation.state in _WAITING
    if isinstance(error, LocalProtocolError) and conversation.depth == attempt.depth and not is_broken:
        # Too large for a frame: nothing was sent, and the worker is as good as before.
        channel.encoder.take_back()
        raise EncodeError(f"the arguments of {pool.service}.{function} cannot be passed: {error}") from None
    worker = channel.worker
    if is_broken or isinstance(error, ConnectionClosed):
        channel.retired = True
        _raise_gone(pool, channel, attempt, error)
    if isinstance(error, ProtocolError):
        channel.retired = True
        why = worker.broke_rules(error)
        raise WorkerDied(pool.service, worker.pid, phase="call", detail=f"it was stopped, since {why}") from error
    if conversation.depth <= attempt.depth:
        raise error  # the call was not begun, or had ended
    from .escalation import Escalation

    late = isinstance(error, DeadlinePassed)
    what = f"{pool.service}.{function}"
    why = f"{what} did not answer within {timeout:g} seconds" if late else f"{what} was given up"
    answered = False
    try:
        escalation = Escalation(channel, channel.call_number | attempt.depth << 48, why)
        try:
            answered = _await_end(channel, attempt.depth, escalation)
        finally:
            escalation.over()
    finally:
        if not answered:
            from .lifecycle import Cause

            channel.retired = True
            if not worker.process.has_exited:  # type: ignore[union-attr]
                worker.end(Cause.CANCELLED, why)  # a second Ctrl-C may strike anywhere above
    if not late:
        if escalation.interrupted is not None:
            raise escalation.interrupted
        raise error
    stacks = escalation.stacks
    where = f" It was here:\n{stacks}" if stacks else ""
    if answered:
        then = f"it was ended ({escalation.rung}), and its worker (pid {worker.pid}) goes on."
    else:
        then = f"its worker (pid {worker.pid}) was stopped ({escalation.rung}), and is replaced."
    timed_out = CallTimeout(f"{what} did not answer within {timeout:g} seconds; {then}{where}")
    timed_out.rung = escalation.rung
    try:
        raise timed_out from None
    finally:
        del timed_out


def _await_end(channel: Channel, depth: int, escalation: Escalation) -> bool:
    """Wait until the call in progress is answered, whatever the answer; False if the worker ended."""
    connection = channel.connection
    conversation = connection.conversation
    while True:
        try:
            _end_callbacks(channel, depth)
            if conversation.depth <= depth:
                return True
            if conversation.state is wire.ASKING:
                kind, payload, buffers = channel.encode_described({"atoll": "Cancelled", "message": "cancelled"})
                connection.send(kind, _PICKLE, payload, buffers)
            frame = connection.receive()
            with contextlib.suppress(Exception):  # nobody wants it; what came with it is given back
                channel.decoder.decode(frame.payload, frame.buffers)
        except (ConnectionClosed, ProtocolError):
            channel.worker.process.exited.wait(_END_GRACE)  # type: ignore[union-attr]
            return False
        except KeyboardInterrupt as again:  # it is not to take its time
            escalation.interrupted = again
            escalation.hurry()


def _end_callbacks(channel: Channel, depth: int) -> None:
    """No callback within the call that began at this depth calls any more, and none of its calls is in progress.

    Raises:
        ConnectionClosed: the worker ended meanwhile.
    """
    nests = channel.nests
    mine = next((index for index, nest in enumerate(nests) if nest.depth > depth), None)
    if mine is None:
        return
    nest = nests[mine]
    while not nest.turn.acquire(timeout=_LOOK_AGAIN):
        if channel.worker.process.has_exited:  # type: ignore[union-attr]
            raise ConnectionClosed
    nest.ended = True
    nest.turn.release()
    del nests[mine:]


def _raise_gone(pool: Pool, channel: Channel, attempt: Attempt, closed: BaseException) -> NoReturn:
    """The connection closed in the middle of a call."""
    function = attempt.function
    cancelled = attempt.was_cancelled
    if cancelled is not None:
        try:
            raise cancelled
        finally:
            del cancelled
    error = channel.worker.died("call")
    if not attempt.depth and isinstance(closed, ConnectionClosed):
        error.taken = channel.connection.was_taken(closed)
    if pool.closed:
        raise ServiceClosed(f"service {pool.service!r} was closed while {function!r} was running") from None
    try:
        raise error from None  # that the connection closed says nothing more
    finally:
        del error


def raise_error(pool: Pool, payload: Bytes, buffers: Sequence[Bytes], channel: Channel, attempt: Attempt) -> NoReturn:
    described = channel.decoder.decode(payload, buffers)
    worker, function = channel.worker, attempt.function
    error: BaseException
    try:
        own = described.get("atoll")
        if own is None:
            error = rebuild(pool.service, described, worker)
        elif own == "FunctionNotFound":
            error = not_found(pool.service, function, worker)
        elif own == "Cancelled":
            error = attempt.was_cancelled or CallCancelled(f"{pool.service}.{function} was cancelled")
        else:
            kind = _OWN_ERRORS.get(own, DecodeError)
            error = kind(f"{pool.service}.{function}: {described['message']}")
    except (KeyError, TypeError, AttributeError, ValueError) as malformed:
        raise DecodeError(f"the worker of {pool.service!r} described an error wrongly: {malformed!r}") from None
    try:
        raise error
    finally:
        del error  # its traceback has this frame, and those with the arguments


def rebuild(service: str, described: dict[str, Any], worker: Worker) -> Exception:
    """What a function of this worker raised, as it is to be raised here."""
    from atoll_worker.rebuilding import rebuild

    return rebuild(described, service, worker.pid, f"<worker of {service!r}, pid {worker.pid}>")


def not_found(service: str, function: str, worker: Worker) -> FunctionNotFound:
    """The error for a name that the service does not expose."""
    names = ", ".join(worker.functions)
    return FunctionNotFound(
        f"service {service!r} exposes no function {function!r}; it exposes: {names}",
        name=function,
    )


def check_idempotent(service: str, function: str, channel: Channel) -> None:
    if function not in channel.worker.idempotent:
        raise ManifestError(
            f"option retries of {service}.{function}: the function is not marked as idempotent, so it is not "
            "called again after its worker died; mark it with @expose(idempotent=True) or "
            "@atoll.function(idempotent=True) if calling it twice does no harm"
        )


def of_parent(what: str, host: int) -> AtollError:
    """The error for whoever uses in a forked child what needs a worker of the parent."""
    return AtollError(f"{what} belongs to process {host}, from which this one was forked: ask for it anew here")


def outcome_of(error: BaseException) -> str:
    if isinstance(error, RemoteError):
        return "error"
    if isinstance(error, CallTimeout):
        return "timeout"
    if isinstance(error, WorkerDied):
        return "died" if error.taken else UNTAKEN
    if isinstance(error, Exception) and not isinstance(error, CallCancelled):
        return "refused"
    return "cancelled"
