# SPDX-License-Identifier: Apache-2.0
"""The pool of a service: makes sure there is a worker, and takes calls to it, one at a time, in the order they came.

For now a pool has one worker. A worker that died, was stopped because a call timed out, or whose connection is in an
unknown state is never called again: the next call starts another.

Data flow of a call: ``call`` -> turnstile -> encode -> ``Connection.exchange`` -> decode. The thread that calls
does all of it; no other thread and no queue stand in between.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from atoll_worker import errors as shared_errors
from atoll_worker import wire
from atoll_worker.connection import ConnectionClosed, DeadlinePassed
from atoll_worker.service import DESCRIBE
from atoll_worker.values import explain_unencodable

from ..errors import (
    AtollError,
    CallTimeout,
    DecodeError,
    EncodeError,
    FunctionNotFound,
    ProtocolError,
    ServiceClosed,
    WorkerDied,
)
from .turnstile import Turnstile

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from types import FrameType

    from atoll_worker.wire import Bytes

    from .worker import Worker, WorkerPlan

_PICKLE = wire.PICKLE
_RESULT = wire.RESULT

# Seconds that a worker gets to tear down and exit when its service is closed.
STOP_GRACE = 3.0
# A sleep this long, in seconds, and the next call of the same function goes to sleep at once instead of polling.
_PATIENT_ABOVE = 0.0002

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class Pool:
    """The worker of one service. Safe to use from any number of threads and event loops.

    Args:
        service: name of the service.
        plan: makes the plan of a worker; called once, by the first call, since it may build an environment.
    """

    def __init__(self, service: str, plan: Callable[[], WorkerPlan]) -> None:
        self._service = service
        self._make_plan = plan
        self._plan: WorkerPlan | None = None
        self._worker: Worker | None = None
        self._turnstile = Turnstile()
        self._closed = False
        self._at_close: list[Callable[[], None]] = []
        self._pid = os.getpid()
        self._loop: AbstractEventLoop | None = None  # of the task that has the turn
        self._slow: set[str] = set()  # functions that are waited for asleep
        _pools.add(self)

    # -- a worker --------------------------------------------------------------------------------------------

    @property
    def worker(self) -> Worker | None:
        """The present worker, if one was started; it may have died since."""
        return self._worker

    def start(self) -> Worker:
        """Have a worker that is ready for calls, waiting for one's turn.

        Raises:
            ServiceClosed, EnvironmentError, WorkerStartError, WorkerDied: see there.
        """
        self._turnstile.enter()
        try:
            return self._ready_worker()
        finally:
            self._turnstile.leave()

    def _ready_worker(self) -> Worker:
        """The worker, started if need be. Only for whoever has the turn."""
        worker = self._worker
        self._check_open()
        if worker is not None and not worker.process.has_exited:
            return worker
        if worker is not None:
            worker.close()
            self._worker = None
        if self._plan is None:
            self._plan = self._make_plan()
        from .worker import Worker  # brings subprocess and more, which `import atoll` should not

        started = Worker(self._plan)
        self._worker = started
        try:
            self._check_open()  # close() may have been called from another thread meanwhile, and have seen no worker
        except ServiceClosed:
            self._discard()
            raise
        return started

    def _check_open(self) -> None:
        if self._closed:
            raise ServiceClosed(f"service {self._service!r} is closed")

    def _discard(self) -> None:
        """Stop the worker at once: its connection is in an unknown state. The next call starts another."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()

    # -- calls -----------------------------------------------------------------------------------------------

    def call(self, function: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> Any:
        """Call a function and wait for its result.

        Args:
            function: its name.
            args, kwargs: its arguments.
            timeout: seconds that the call may take, waiting for its turn included, starting a worker not.

        Raises:
            RemoteError: the function raised.
            CallTimeout: the deadline passed; the worker was stopped.
            WorkerDied, WorkerStartError, EnvironmentError: there is no worker, or no longer.
            EncodeError, DecodeError: an argument or the result cannot cross.
            FunctionNotFound, ServiceClosed: as they say.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        turnstile = self._turnstile
        # The same as try_enter(), inline.
        if (turnstile.queue or not turnstile.take(False)) and not turnstile.enter(deadline, self._check_turn):
            self._raise_queued_too_long(function, timeout)
        try:
            worker = self._worker
            if worker is None or self._closed or worker.process.has_exited:
                worker = self._ready_worker()
                deadline = None if timeout is None else time.monotonic() + timeout
            encoder = worker.encoder
            payload: Bytes
            buffers: Sequence[Bytes]
            try:
                payload = encoder.encode((function, args, kwargs))
            except Exception as error:  # noqa: BLE001 - whatever it is, it says that an argument cannot cross
                raise explain_unencodable(error, (("args", args), ("kwargs", kwargs))) from None
            buffers = encoder.take_buffers() if encoder.has_buffers else ()
            connection = worker.connection
            slow = self._slow
            try:
                patient = function in slow
                kind, _, payload, buffers = connection.exchange(_PICKLE, payload, buffers, deadline, patient)
                if (connection.asleep_for > _PATIENT_ABOVE) is not patient:
                    (slow.discard if patient else slow.add)(function)
            except BaseException as error:  # noqa: BLE001 - raised again, as itself or as what it means
                self._raise_broken(error, worker, function, timeout)
        finally:
            turnstile.give()  # the same as leave(), inline
            if turnstile.queue:
                turnstile.pass_on()
        if kind == _RESULT:
            return worker.decoder.decode(payload, buffers)
        self._raise_error(payload, buffers, worker, function)

    async def call_async(
        self, function: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None
    ) -> Any:
        """As ``call``, on the running event loop. Cancelling the task stops the worker."""
        import asyncio  # whoever gets here has imported it already

        from .aio import Starting, exchange, give_way

        await give_way()
        deadline = None if timeout is None else time.monotonic() + timeout
        turnstile = self._turnstile
        if not turnstile.try_enter() and not await turnstile.enter_async(deadline):
            self._raise_queued_too_long(function, timeout)
        self._loop = asyncio.get_running_loop()
        leave = turnstile.leave
        try:
            worker = self._worker
            if worker is None or self._closed or worker.process.has_exited:
                # Starting a process, and perhaps building an environment, is no work for the loop's own thread. If
                # this task is cancelled meanwhile, the start goes on, and has the turn until it ends.
                starting = Starting(self._ready_worker, turnstile.leave)
                leave = starting.leave
                worker = await starting.wait()
                deadline = None if timeout is None else time.monotonic() + timeout
            encoder = worker.encoder
            payload: Bytes
            buffers: Sequence[Bytes]
            try:
                payload = encoder.encode((function, args, kwargs))
            except Exception as error:  # noqa: BLE001 - whatever it is, it says that an argument cannot cross
                raise explain_unencodable(error, (("args", args), ("kwargs", kwargs))) from None
            try:
                kind, _, payload, buffers = await exchange(
                    worker.connection,
                    wire.PICKLE,
                    payload,
                    encoder.take_buffers() if encoder.has_buffers else (),
                    deadline,
                )
            except BaseException as error:  # noqa: BLE001 - raised again, as itself or as what it means
                self._raise_broken(error, worker, function, timeout)
        finally:
            self._loop = None
            leave()
        if kind == wire.RESULT:
            return worker.decoder.decode(payload, buffers)
        self._raise_error(payload, buffers, worker, function)

    def describe(self) -> dict[str, dict[str, Any]]:
        """What ``FunctionTable.describe`` says in the worker."""
        described: dict[str, dict[str, Any]] = self.call(DESCRIBE, (), {}, None)
        return described

    def _check_turn(self, loops_before: set[AbstractEventLoop | None]) -> None:
        """While waiting long for one's turn, on the waiting thread.

        Raises:
            AtollError: it would never come, because whoever has it, or stands before, goes on only after this call.
        """
        asyncio = sys.modules.get("asyncio")
        loop = asyncio._get_running_loop() if asyncio is not None else None
        if loop is not None and (loop is self._loop or loop in loops_before):
            raise AtollError(
                f"a call of {self._service!r} blocks the event loop that an earlier call of it needs to go on: "
                "await the .aio() of the function here too"
            )
        inner: FrameType | None = sys._getframe(1)
        while inner is not None and inner.f_code is not Pool.call.__code__:  # the call that waits
            inner = inner.f_back
        outer = None if inner is None else inner.f_back
        while outer is not None:
            code = outer.f_code
            if code is Pool.call.__code__ or code is Pool.call_async.__code__:
                names = outer.f_locals
                if names["self"] is self and "kind" not in names:  # which it has once it was answered
                    raise AtollError(
                        f"a call of {self._service!r} was made in the middle of another one on the same thread, by a "
                        "signal handler or by what a registered class does when it is passed: it would wait for itself"
                    )
            outer = outer.f_back

    def _raise_queued_too_long(self, function: str, timeout: float | None) -> NoReturn:
        raise CallTimeout(
            f"{self._service}.{function} did not get its turn within {timeout:g} seconds: earlier calls are still "
            f"running, {self._turnstile.waiting} more are waiting. Nothing was stopped"
        )

    def _raise_broken(self, error: BaseException, worker: Worker, function: str, timeout: float | None) -> NoReturn:
        """The exchange did not end with an answer."""
        if isinstance(error, shared_errors.LocalProtocolError) and worker.connection.conversation.state == wire.IDLE:
            # Too large for a frame: nothing was sent, and the worker is as good as before.
            raise EncodeError(f"the arguments of {self._service}.{function} cannot be passed: {error}") from None
        if isinstance(error, ConnectionClosed):
            if self._closed:
                self._discard()
                raise ServiceClosed(f"service {self._service!r} was closed while {function!r} was running") from None
            self._worker = None
            try:
                worker.raise_died("call")
            finally:
                worker.close()
        if isinstance(error, DeadlinePassed):
            stacks = worker.stacks()
            self._discard()
            where = f" It was here:\n{stacks}" if stacks else " It did not say where it was."
            raise CallTimeout(
                f"{self._service}.{function} did not answer within {timeout:g} seconds; its worker (pid "
                f"{worker.process.pid}) was stopped, and the next call starts another.{where}"
            ) from None
        self._discard()
        if isinstance(error, ProtocolError):
            raise WorkerDied(
                self._service,
                worker.process.pid,
                phase="call",
                detail=f"it was stopped, since it broke the wire's rules: {error}",
            ) from error
        raise error

    def _raise_error(self, payload: Bytes, buffers: Sequence[Bytes], worker: Worker, function: str) -> NoReturn:
        described = worker.decoder.decode(payload, buffers)
        try:
            own = described.get("atoll")
            if own is None:
                from atoll_worker.rebuilding import rebuild

                pid = worker.process.pid
                error: Exception = rebuild(described, self._service, pid, f"<worker of {self._service!r}, pid {pid}>")
            elif own == "FunctionNotFound":
                error = self.not_found(function, worker)
            else:
                kind = EncodeError if own == "EncodeError" else DecodeError
                error = kind(f"{self._service}.{function}: {described['message']}")
        except (KeyError, TypeError, AttributeError, ValueError) as malformed:
            raise DecodeError(f"the worker of {self._service!r} described an error wrongly: {malformed!r}") from None
        raise error

    def not_found(self, function: str, worker: Worker) -> FunctionNotFound:
        """The error for a name that the service does not expose."""
        names = ", ".join(worker.functions)
        return FunctionNotFound(
            f"service {self._service!r} exposes no function {function!r}; it exposes: {names}",
            name=function,
        )

    # -- the end ---------------------------------------------------------------------------------------------

    def at_close(self, function: Callable[[], None]) -> None:
        """Call ``function`` when the pool is closed, or now if it is."""
        self._at_close.append(function)
        if self._closed:
            self._call_at_close()

    def _call_at_close(self) -> None:
        functions, self._at_close = self._at_close, []
        for function in functions:
            function()

    def hang_up(self) -> None:
        """Begin to close: no more calls are taken, and the worker is told to end. Does not wait."""
        self._closed = True
        _pools.discard(self)
        self._call_at_close()
        worker = self._worker
        if worker is not None:
            worker.hang_up()

    def close(self, grace: float = STOP_GRACE) -> None:
        """Stop the worker: it tears down and exits, or is killed after ``grace`` seconds. Idempotent."""
        self.hang_up()
        worker = self._worker
        if worker is not None:
            worker.stop(grace)
            self._worker = None

    def __del__(self) -> None:
        # Nobody can call it any more. Not waited for: this may run at any moment, on any thread.
        worker = getattr(self, "_worker", None)
        if worker is not None and self._pid == os.getpid() and not self._closed:
            worker.hang_up()
            worker.process.abandon(STOP_GRACE)


def pools() -> list[Pool]:
    """The pools of this process that are in use: neither closed nor collected."""
    return list(_pools)


def shutdown(grace: float = STOP_GRACE) -> None:
    """Close every pool of this process, side by side: at most ``grace`` seconds for all. Idempotent."""
    closing = pools()
    for pool in closing:
        pool.hang_up()
    deadline = time.monotonic() + grace
    for pool in closing:
        pool.close(max(0.0, deadline - time.monotonic()))


def _after_fork() -> None:
    # The workers are the parent's. What this child calls starts workers of its own.
    for pool in list(_pools):
        pool._worker = None
        pool._turnstile = Turnstile()
        pool._pid = os.getpid()


os.register_at_fork(after_in_child=_after_fork)
