# SPDX-License-Identifier: Apache-2.0
"""The pool of a service: takes calls to its workers, and answers what they call back.

Data flow of a call: ``call`` -> a channel from the dispatcher -> encode -> ``Connection.exchange`` -> decode. The
thread that calls does all of it; no other thread and no queue stand in between. While it waits, it serves what the
worker calls back, and a callback that calls the pool again goes back over the channel it came from. ``call`` and
``call_async`` share all but the waiting.

What does not belong here: which workers there are (``supervisor``, ``policy``), whose turn it is (``dispatcher``),
ending a call that takes too long (``escalation``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from _thread import get_ident
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from atoll_worker import wire
from atoll_worker.completion import complete, home, is_coroutine, on_thread
from atoll_worker.connection import ConnectionClosed, DeadlinePassed
from atoll_worker.context import MAP, WITH_META
from atoll_worker.errors import LocalProtocolError, RemoteError
from atoll_worker.references import INVOKE
from atoll_worker.service import DESCRIBE
from atoll_worker.tracing import in_use
from atoll_worker.values import explain_unencodable

from ..errors import (
    AtollError,
    CallCancelled,
    CallTimeout,
    DecodeError,
    EncodeError,
    FunctionNotFound,
    ManifestError,
    ProtocolError,
    QueueFull,
    ServiceClosed,
    WorkerDied,
)
from . import tracing
from .channel import Channel, Nesting, nesting
from .dispatcher import Dispatcher, QueueIsFull, WaitedTooLong
from .metrics import BATCH, Latency, Metric, PoolMetrics, Series
from .settings import PoolSettings
from .stream import Stream

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from types import FrameType

    from atoll_worker.connection import Reply
    from atoll_worker.wire import Bytes

    from .escalation import Escalation
    from .lending import HostLending
    from .options import CallOptions
    from .status import PoolStatus
    from .supervisor import Supervisor
    from .worker import Worker, WorkerPlan

_PICKLE = wire.PICKLE
_RESULT = wire.RESULT
_CALL = wire.CALL
_OK = "ok"
_WAITING = (wire.CALLING, wire.NESTED)  # states of a conversation in which it is the worker's turn
_clock = time.monotonic
_modules = sys.modules
_traced = in_use

# Seconds that workers get to tear down and exit when their service is closed.
STOP_GRACE = 3.0
# A sleep this long, in seconds, and the next call of the same function goes to sleep at once instead of polling.
_PATIENT_ABOVE = 0.0002
# Seconds of work that one batch of `map` is at most, if its items are shorter.
BATCH_SECONDS = 0.05

# Calls that are no function's of the service: not counted, so that metrics show the user's names alone.
_UNCOUNTED = (DESCRIBE, INVOKE)

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class Pool:
    """The workers of one service. Safe to use from any number of threads and event loops.

    Args:
        service: name of the service.
        plan: makes the plan of a worker; called by the first call, since it may build an environment.
        settings: how many workers, and how they are kept.
    """

    def __init__(self, service: str, plan: Callable[[], WorkerPlan], settings: PoolSettings = PoolSettings()) -> None:  # noqa: B008
        self.service = service
        self._make_plan = plan
        self.settings = settings
        self._at_close: list[Callable[[], None]] = []
        self._slow: set[str] = set()  # functions that are waited for asleep
        self._closed = False
        self._most_workers = settings.workers
        self._aio: Any = None  # the module of this name: it brings asyncio, which `import atoll` should not
        self._begin()
        _pools.add(self)

    def _begin(self) -> None:
        self._pid = os.getpid()
        # New in a forked child too: another thread of the parent may have been counting.
        self._metrics = PoolMetrics(self.service)
        self._observed = self._metrics.calls
        self._ok: dict[str, Series] = {}  # of the calls that ended well, by function
        # By a weak reference: a pool that nobody has any more is collected at once, and its workers end.
        reference = weakref.ref(self)

        def want() -> None:
            pool = reference()
            if pool is not None:
                pool.supervisor.wanted()

        self._dispatcher = Dispatcher(self.settings.concurrency, self.settings.max_queue, want)
        self._supervisor: Supervisor | None = None

    # -- workers ---------------------------------------------------------------------------------------------

    @property
    def supervisor(self) -> Supervisor:
        """Keeps the workers; made by the first call, since it brings what ``import atoll`` should not."""
        supervisor = self._supervisor
        if supervisor is None:
            from .supervisor import Supervisor

            with _making:
                supervisor = self._supervisor
                if supervisor is None:
                    supervisor = self._supervisor = Supervisor(
                        self.service,
                        self._make_plan,
                        self.settings,
                        self._dispatcher,
                        self._metrics,
                        _lending_maker(weakref.ref(self), self.service, self.settings.objects),
                    )
        return supervisor

    @property
    def workers(self) -> list[Worker]:
        """The workers that take calls, the first one first."""
        return self._dispatcher.workers

    def start(self) -> None:
        """Have workers that are ready for calls: as many as there are to be.

        Raises:
            ServiceClosed, EnvironmentError, WorkerStartError, WorkerDied, CircuitOpen: see there.
        """
        self._check_open()
        refusal = self.supervisor.refusal()
        if refusal is not None:
            raise refusal
        self.supervisor.wait_ready()
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise ServiceClosed(f"service {self.service!r} is closed")

    def scale(self, minimum: int, maximum: int, idle_timeout: float | None = None) -> None:
        """From now on there are between so many workers.

        Raises:
            ValueError: the bounds are wrong.
        """
        self._check_open()
        self.supervisor.scale(minimum, maximum, idle_timeout)
        self._most_workers = maximum
        if minimum:
            self.supervisor.wanted()

    def reload(self, timeout: float | None = None) -> None:
        """Replace every worker by one with the present code, one after another, without failing a call.

        Raises:
            what starting a replacement raised: then the workers there are go on with the code they have.
        """
        self._check_open()
        self.supervisor.reload(timeout)

    # -- calls -----------------------------------------------------------------------------------------------

    def call(
        self,
        function: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
        options: CallOptions | None = None,
        worker: Worker | None = None,
    ) -> Any:
        """Call a function and wait for its result.

        Args:
            function: its name.
            args, kwargs: its arguments.
            timeout: seconds that the call may take, waiting for its turn included, starting a worker not.
            options: what else was asked for.
            worker: the worker to call; None for any.

        Raises:
            RemoteError: the function raised.
            CallTimeout, CallCancelled: the call was ended.
            WorkerDied, WorkerStartError, EnvironmentError, CircuitOpen, QueueFull: there is no worker, or no longer.
            EncodeError, DecodeError: an argument or the result cannot cross.
            FunctionNotFound, ServiceClosed: as they say.
        """
        began = _clock()
        if (
            options is not None
            or worker is not None
            or _traced
            or "opentelemetry.trace" in _modules
            or nesting.get() is not None
        ):
            return self._call_slowly(function, args, kwargs, timeout, options, worker)
        dispatcher = self._dispatcher
        ok = self._ok
        outcome = "refused"
        channel: Channel | None = None
        try:
            # The same as _enter(), inline.
            try:
                if dispatcher.queue:
                    raise IndexError
                # That of a worker which ended was taken out as soon as that was known.
                channel = dispatcher.take()
            except IndexError:
                channel = self._enter(function, began, timeout, None)
            encoder = channel.encoder
            payload: Bytes
            buffers: Sequence[Bytes]
            try:
                payload = encoder.encode((function, args, kwargs))
            except Exception as error:  # noqa: BLE001 - whatever it is, it says that an argument cannot cross
                raise explain_unencodable(error, (("args", args), ("kwargs", kwargs))) from None
            buffers = encoder.take_buffers() if encoder.has_buffers else ()
            connection = channel.connection
            slow = self._slow
            try:
                patient = function in slow
                deadline = None if timeout is None else self._deadline(began, timeout)
                kind, _, payload, buffers = connection.exchange(_PICKLE, payload, buffers, deadline, patient)
                if kind == _CALL:
                    kind, _, payload, buffers = self._converse(channel, payload, buffers, deadline)
                if (patient or connection.asleep_for) and (connection.asleep_for > _PATIENT_ABOVE) is not patient:
                    (slow.discard if patient else slow.add)(function)
            except BaseException as error:  # noqa: BLE001 - raised again, as itself or as what it means
                outcome = "cancelled"
                attempt = _Attempt(self, function, args, kwargs, timeout, None, None, None)
                self._raise_broken(error, channel, attempt)
            channel.calls = calls = channel.calls + 1
            if calls >= channel.look_at:
                self._account(channel.worker)
            if kind == _RESULT:
                outcome = _OK
                decoder = channel.decoder
            else:
                outcome = "error"
                attempt = _Attempt(self, function, args, kwargs, timeout, None, None, None)
                self._raise_error(payload, buffers, channel, attempt)
        except BaseException as error:
            outcome = _outcome_of(error)
            raise
        finally:
            ended = _clock()
            if channel is not None:
                channel.used_at = ended
                # The same as give(), inline.
                was_retired = channel.retired
                if was_retired:
                    dispatcher.give(channel)
                else:
                    dispatcher.put(channel)
                    if channel.retired:
                        dispatcher.drop_idle(channel)
                if dispatcher.queue:
                    dispatcher.pass_on()
            series = ok.get(function)
            if series is not None and outcome is _OK:
                # The same as observe(), inline.
                if ended >= series.turn:
                    series.fold(ended)
                series.put_aside(ended - began)
                if len(series.pending) >= BATCH:
                    series.fold(ended)
            else:
                self._observed[function, outcome].observe(ended - began, ended)
                if outcome is _OK:
                    ok[function] = self._observed[function, outcome]
        result = decoder.decode(payload, buffers)
        if result.__class__ is Stream:
            result.timeout = timeout
        return result

    def _call_slowly(
        self,
        function: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
        options: CallOptions | None,
        worker: Worker | None,
    ) -> Any:
        """``call`` for whatever is not the ordinary case: with options, in a trace, to a certain worker, or from a
        callback."""
        retries = 0 if options is None else options.retries
        while True:
            trace = tracing.begin(self.service, _shown(function, args))
            attempt = _Attempt(self, function, args, kwargs, timeout, options, worker, trace)
            try:
                return self._attempt(attempt)
            except WorkerDied as error:
                if not retries or attempt.channel is None:
                    raise
                self._check_idempotent(function, attempt.channel)
                retries -= 1
                error.add_note("it is called again")

    def _attempt(self, attempt: _Attempt) -> Any:
        try:
            channel = attempt.channel = self._take(attempt)
            try:
                payload, buffers = attempt.encode(channel)
                deadline = attempt.deadline
                try:
                    attempt.begin()
                    kind, _, payload, buffers = channel.connection.exchange(_PICKLE, payload, buffers, deadline)
                    if kind == _CALL:
                        kind, _, payload, buffers = self._converse(channel, payload, buffers, deadline)
                except BaseException as error:  # noqa: BLE001 - raised again, as itself or as what it means
                    self._raise_broken(error, channel, attempt)
                finally:
                    attempt.end()
                return self._finish(attempt, channel, kind, payload, buffers)
            finally:
                attempt.give_back()
        except BaseException as error:
            attempt.outcome = _outcome_of(error)
            attempt.error = error
            raise
        finally:
            attempt.observe(self._observed)

    def _finish(self, attempt: _Attempt, channel: Channel, kind: int, payload: Bytes, buffers: Sequence[Bytes]) -> Any:
        """The answer has come."""
        worker = channel.worker
        channel.calls += 1
        if channel.calls >= channel.look_at:
            self._account(worker)
        if kind != _RESULT:
            self._raise_error(payload, buffers, channel, attempt)
        result = channel.decoder.decode(payload, buffers)
        # A batch of `map` says in its result what one of its items raised.
        attempt.outcome = "error" if attempt.reserved and result[1] is not None else "ok"
        if result.__class__ is Stream:
            result.timeout = attempt.timeout
        return result

    def _account(self, worker: Worker) -> None:
        supervisor = self.supervisor
        if worker.unproven:
            supervisor.succeeded(worker)
        if worker.calls >= supervisor.look_at_calls:
            supervisor.look(worker)

    async def call_async(
        self,
        function: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
        options: CallOptions | None = None,
        worker: Worker | None = None,
    ) -> Any:
        """As ``call``, on the running event loop. Cancelling the task ends the call."""
        aio = self._aio or self._bring_aio()
        began = _clock()
        if began > aio.give_way_at:
            await aio.give_way()
        dispatcher = self._dispatcher
        channel: Channel | None = None
        if (
            options is None
            and worker is None
            and not _traced
            and "opentelemetry.trace" not in _modules
            and nesting.get() is None
            and not dispatcher.queue
        ):
            # The ordinary case, without what only the others need.
            try:
                channel = dispatcher.take()
            except IndexError:
                pass
        if channel is None:
            return await self._call_async_slowly(function, args, kwargs, timeout, options, worker)
        outcome, result = "refused", None
        attempt: _Attempt | None = None
        try:
            channel.owner = aio.running_loop()
            encoder = channel.encoder
            payload: Bytes
            buffers: Sequence[Bytes]
            try:
                payload = encoder.encode((function, args, kwargs))
            except Exception as error:  # noqa: BLE001 - whatever it is, it says that an argument cannot cross
                raise explain_unencodable(error, (("args", args), ("kwargs", kwargs))) from None
            buffers = encoder.take_buffers() if encoder.has_buffers else ()
            connection = channel.connection
            try:
                deadline = None if timeout is None else self._deadline(began, timeout)
                if buffers or not connection.fits_slot(payload, buffers):
                    kind, _, payload, buffers = await aio.exchange(connection, _CALL, payload, buffers, deadline)
                else:
                    try:
                        kind, _, payload, buffers = connection.exchange(_PICKLE, payload, buffers, None, False, False)
                    except aio.WouldSleep:
                        kind, _, payload, buffers = await aio.answer(connection, deadline)
                while kind == _CALL:
                    kind, payload, buffers = await self._answer_async(channel, payload, buffers)
                    kind, _, payload, buffers = await aio.exchange(connection, kind, payload, buffers, deadline)
            except BaseException as error:  # noqa: BLE001 - raised again, as itself or as what it means
                attempt = _Attempt(self, function, args, kwargs, timeout, None, None, None)
                attempt.channel = channel
                await aio.end_elsewhere(partial(self._raise_broken, error, channel, attempt), error, attempt)
            channel.calls += 1
            if channel.calls >= channel.look_at:
                self._account(channel.worker)
            if kind != _RESULT:
                self._raise_error(
                    payload, buffers, channel, _Attempt(self, function, args, kwargs, timeout, None, None, None)
                )
            result = channel.decoder.decode(payload, buffers)
            outcome = _OK
        except BaseException as error:
            outcome = _outcome_of(error)
            raise
        finally:
            ended = _clock()
            if attempt is None or not attempt.kept:
                channel.used_at = ended
                channel.owner = None
                dispatcher.give(channel)
            self._observed[function, outcome].observe(ended - began, ended)
        if result.__class__ is Stream:
            result.timeout = timeout
        return result

    def _bring_aio(self) -> Any:
        from . import aio

        self._aio = aio
        return aio

    async def _call_async_slowly(
        self,
        function: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
        options: CallOptions | None,
        worker: Worker | None,
    ) -> Any:
        """``call_async`` for whatever is not the ordinary case, which now includes waiting for a worker."""
        retries = 0 if options is None else options.retries
        while True:
            trace = tracing.begin(self.service, _shown(function, args))
            attempt = _Attempt(self, function, args, kwargs, timeout, options, worker, trace)
            try:
                return await self._attempt_async(attempt)
            except WorkerDied as error:
                if not retries or attempt.channel is None:
                    raise
                self._check_idempotent(function, attempt.channel)
                retries -= 1
                error.add_note("it is called again")

    async def _attempt_async(self, attempt: _Attempt) -> Any:
        from .aio import end_elsewhere, exchange

        try:
            channel = attempt.channel = await self._take_async(attempt)
            try:
                payload, buffers = attempt.encode(channel)
                deadline = attempt.deadline
                try:
                    attempt.begin()
                    kind, _, payload, buffers = await exchange(channel.connection, _CALL, payload, buffers, deadline)
                    while kind == _CALL:
                        kind, payload, buffers = await self._answer_async(channel, payload, buffers)
                        kind, _, payload, buffers = await exchange(channel.connection, kind, payload, buffers, deadline)
                except BaseException as error:  # noqa: BLE001 - raised again, as itself or as what it means
                    await end_elsewhere(partial(self._raise_broken, error, channel, attempt), error, attempt)
                finally:
                    attempt.end()
                return self._finish(attempt, channel, kind, payload, buffers)
            finally:
                attempt.give_back()
        except BaseException as error:
            attempt.outcome = _outcome_of(error)
            attempt.error = error
            raise
        finally:
            attempt.observe(self._observed)

    # -- taking a channel ------------------------------------------------------------------------------------

    def _enter(self, function: str, began: float, timeout: float | None, worker: Worker | None) -> Channel:
        """Wait for a channel."""
        self._check_enter(worker)
        suspects: set[Channel] = set()
        try:
            while True:
                channel = self._dispatcher.enter(began, timeout, worker, lambda: self._check_turn(suspects))
                if not channel.worker.process.has_exited or worker is not None:  # type: ignore[union-attr]
                    return channel
                channel.retired = True
                self._dispatcher.give(channel)
        except QueueIsFull:
            raise self._queue_full(function) from None
        except WaitedTooLong:
            raise self._queued_too_long(function, timeout) from None

    def _check_enter(self, worker: Worker | None) -> None:
        self._check_open()
        if worker is None:
            refusal = self.supervisor.refusal()
            if refusal is not None:
                raise refusal

    def _take(self, attempt: _Attempt) -> Channel:
        nest = attempt.nest
        if nest is None or attempt.is_background:
            if attempt.worker is None and not self._dispatcher.queue:
                try:
                    channel = self._dispatcher.take()
                except IndexError:
                    pass
                else:
                    attempt.nest = None
                    return channel
        if nest is None:
            return self._enter(attempt.function, attempt.began, attempt.timeout, attempt.worker)
        left = -1.0 if attempt.timeout is None else attempt.timeout
        if not nest.turn.acquire(timeout=left):
            raise self._queued_too_long(attempt.function, attempt.timeout)
        if not nest.ended:
            return nest.channel
        nest.turn.release()
        attempt.nest = None
        return self._enter(attempt.function, attempt.began, attempt.timeout, attempt.worker)

    async def _take_async(self, attempt: _Attempt) -> Channel:
        import asyncio  # whoever gets here has imported it already

        nest = attempt.nest
        if nest is not None:
            # Calls that a callback makes side by side take turns on its one channel.
            while not nest.turn.acquire(False):
                if attempt.is_late:
                    raise self._queued_too_long(attempt.function, attempt.timeout)
                await asyncio.sleep(_TURN)
            if not nest.ended:
                return nest.channel
            nest.turn.release()
            attempt.nest = None
        loop = asyncio.get_running_loop()
        dispatcher = self._dispatcher
        if not dispatcher.queue and attempt.worker is None and not self._closed:
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
        self._check_enter(attempt.worker)
        try:
            while True:
                channel = await dispatcher.enter_async(loop, attempt.began, attempt.timeout, attempt.worker)
                if not channel.worker.process.has_exited or attempt.worker is not None:  # type: ignore[union-attr]
                    return channel
                channel.retired = True
                dispatcher.give(channel)
        except QueueIsFull:
            raise self._queue_full(attempt.function) from None
        except WaitedTooLong:
            raise self._queued_too_long(attempt.function, attempt.timeout) from None

    def _deadline(self, began: float, timeout: float) -> float:
        """When a call is late: starting the first worker does not count."""
        since = self._dispatcher.serving_since
        return timeout + (began if since is None else max(began, since))

    def _check_turn(self, suspects: set[Channel]) -> None:
        """While waiting long for a channel, on the waiting thread.

        A channel is lost when an exception of a signal handler's, such as Ctrl-C, struck between taking it and taking
        note of it. Nobody pays for preventing that on the path of a call: such a channel is found here, because no
        thread's stack holds it, two looks in a row.

        Args:
            suspects: channels that nobody held at the last look.

        Raises:
            AtollError: none would ever come, because whoever has them goes on only after this call.
        """
        dispatcher = self._dispatcher
        busy = dispatcher.busy()
        held = _held_channels()
        asyncio = sys.modules.get("asyncio")
        loop: AbstractEventLoop | None = asyncio._get_running_loop() if asyncio is not None else None
        by_loop = [channel for channel in busy if channel.owner is not None]
        if loop is not None and busy and all(channel.owner is loop for channel in busy):
            raise AtollError(
                f"a call of {self.service!r} blocks the event loop that an earlier call of it needs to go on: "
                "await the .aio() of the function here too"
            )
        thread = get_ident()
        if busy and all(held.get(channel) == thread for channel in busy) and not dispatcher.idle:
            raise AtollError(
                f"a call of {self.service!r} was made in the middle of another one on the same thread, by a "
                "signal handler or by what a registered class does when it is passed: it would wait for itself"
            )
        lost = {channel for channel in busy if channel not in held and channel not in by_loop}
        for channel in lost & suspects:
            if channel.connection.conversation.state is wire.IDLE:
                dispatcher.give(channel)
        suspects.clear()
        suspects.update(lost)

    def _queued_too_long(self, function: str, timeout: float | None) -> CallTimeout:
        return CallTimeout(
            f"{self.service}.{function} did not get its turn within {timeout:g} seconds: earlier calls are still "
            f"running, {self._dispatcher.waiting} more are waiting. Nothing was stopped"
        )

    def _queue_full(self, function: str) -> QueueFull:
        return QueueFull(
            f"{self.service}.{function} was not queued: {self._dispatcher.waiting} calls wait for a worker already, "
            f"and max_queue={self.settings.max_queue} allows no more"
        )

    # -- what the worker calls back --------------------------------------------------------------------------

    def _converse(self, channel: Channel, payload: Bytes, buffers: Sequence[Bytes], deadline: float | None) -> Reply:
        """Serve callbacks until the answer comes."""
        exchange = channel.connection.exchange
        while True:
            kind, payload, buffers = self._answer(channel, payload, buffers)
            if deadline is not None and _clock() > deadline:
                raise DeadlinePassed  # a call that calls back again and again might never be waited for
            reply = exchange(_PICKLE, payload, buffers, deadline, kind=kind)
            if reply[0] != _CALL:
                return reply
            _, _, payload, buffers = reply

    def _answer(self, channel: Channel, payload: Bytes, buffers: Sequence[Bytes]) -> tuple[int, Bytes, Sequence[Bytes]]:
        nest = Nesting(channel, self, nesting.get())
        channel.nests.append(nest)
        token = nesting.set(nest)
        result, failure = None, None
        try:
            result = channel.callback(payload, buffers)()
            if is_coroutine(result):
                result = complete(result)
        except (KeyboardInterrupt, SystemExit):
            raise  # whoever ends the call answers the worker (`_end_callbacks`)
        except BaseException as error:  # noqa: BLE001 - the worker is told
            failure = error
        finally:
            nesting.reset(token)
        with nest.turn:  # a call that it left behind comes to its end before: answers are to the innermost call
            nest.ended = True
        channel.nests.pop()
        return channel.encode_result(result) if failure is None else channel.encode_error(failure)

    async def _answer_async(
        self, channel: Channel, payload: Bytes, buffers: Sequence[Bytes]
    ) -> tuple[int, Bytes, Sequence[Bytes]]:
        import asyncio

        nest = Nesting(channel, self, nesting.get())
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
            await asyncio.sleep(_TURN)
        nest.ended = True
        nest.turn.release()
        channel.nests.pop()
        return channel.encode_result(result) if failure is None else channel.encode_error(failure)

    # -- when a call does not end with an answer -------------------------------------------------------------

    def _raise_broken(self, error: BaseException, channel: Channel, attempt: _Attempt) -> NoReturn:
        """The exchange did not end with an answer. Returns only once the call has ended, or its worker has."""
        function, timeout, conversation = attempt.function, attempt.timeout, channel.connection.conversation
        # An earlier call on this channel was never answered: whoever needs this very worker may still get it.
        is_broken = isinstance(error, LocalProtocolError) and conversation.state in _WAITING
        if isinstance(error, LocalProtocolError) and conversation.depth == attempt.depth and not is_broken:
            # Too large for a frame: nothing was sent, and the worker is as good as before.
            raise EncodeError(f"the arguments of {self.service}.{function} cannot be passed: {error}") from None
        worker = channel.worker
        if is_broken or isinstance(error, ConnectionClosed):
            channel.retired = True
            self._raise_gone(channel, attempt)
        if isinstance(error, ProtocolError):
            from .lifecycle import Cause

            channel.retired = True
            worker.end(Cause.CRASHED, f"it broke the wire's rules: {error}")
            raise WorkerDied(
                self.service,
                worker.pid,
                phase="call",
                detail=f"it was stopped, since it broke the wire's rules: {error}",
            ) from error
        if conversation.depth <= attempt.depth:
            raise error  # the call was not begun, or had ended
        from .escalation import Escalation

        late = isinstance(error, DeadlinePassed)
        what = f"{self.service}.{function}"
        why = f"{what} did not answer within {timeout:g} seconds" if late else f"{what} was given up"
        answered = False
        try:
            escalation = Escalation(channel, channel.call_number | attempt.depth << 48, why)
            try:
                answered = self._await_end(channel, attempt.depth, escalation)
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
        raise timed_out from None

    def _await_end(self, channel: Channel, depth: int, escalation: Escalation) -> bool:
        """Wait until the call in progress is answered, whatever the answer; False if the worker ended."""
        connection = channel.connection
        conversation = connection.conversation
        while True:
            try:
                self._end_callbacks(channel, depth)
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

    def _end_callbacks(self, channel: Channel, depth: int) -> None:
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

    def _raise_gone(self, channel: Channel, attempt: _Attempt) -> NoReturn:
        """The connection closed in the middle of a call."""
        function = attempt.function
        cancelled = attempt.was_cancelled
        if cancelled is not None:
            raise cancelled
        error = channel.worker.died("call")
        if self._closed:
            raise ServiceClosed(f"service {self.service!r} was closed while {function!r} was running") from None
        raise error from None  # that the connection closed says nothing more

    def _raise_error(self, payload: Bytes, buffers: Sequence[Bytes], channel: Channel, attempt: _Attempt) -> NoReturn:
        described = channel.decoder.decode(payload, buffers)
        worker, function = channel.worker, attempt.function
        error: BaseException
        try:
            own = described.get("atoll")
            if own is None:
                error = self.rebuild(described, worker)
            elif own == "FunctionNotFound":
                error = self.not_found(function, worker)
            elif own == "Cancelled":
                error = attempt.was_cancelled or CallCancelled(f"{self.service}.{function} was cancelled")
            else:
                kind = EncodeError if own == "EncodeError" else DecodeError
                error = kind(f"{self.service}.{function}: {described['message']}")
        except (KeyError, TypeError, AttributeError, ValueError) as malformed:
            raise DecodeError(f"the worker of {self.service!r} described an error wrongly: {malformed!r}") from None
        raise error

    def rebuild(self, described: dict[str, Any], worker: Worker) -> Exception:
        """What a function of this worker raised, as it is to be raised here."""
        from atoll_worker.rebuilding import rebuild

        return rebuild(described, self.service, worker.pid, f"<worker of {self.service!r}, pid {worker.pid}>")

    def not_found(self, function: str, worker: Worker) -> FunctionNotFound:
        """The error for a name that the service does not expose."""
        names = ", ".join(worker.functions)
        return FunctionNotFound(
            f"service {self.service!r} exposes no function {function!r}; it exposes: {names}",
            name=function,
        )

    def _check_idempotent(self, function: str, channel: Channel) -> None:
        if function not in channel.worker.idempotent:
            raise ManifestError(
                f"option retries of {self.service}.{function}: the function is not marked as idempotent, so it is not "
                "called again after its worker died; mark it with @expose(idempotent=True) or "
                "@atoll.function(idempotent=True) if calling it twice does no harm"
            )

    # -- several at once -------------------------------------------------------------------------------------

    def map_batch(
        self, function: str, items: list[Any], spread: bool, timeout: float | None, options: CallOptions | None
    ) -> tuple[list[Any], Exception | None]:
        """Call a function for some items, for about ``BATCH_SECONDS`` at most.

        Args:
            function: its name.
            items: the first argument of each call; or, with ``spread``, a tuple of arguments each.
            timeout: seconds that one item may take.
            options: as for ``call``.

        Returns:
            the results of the first items, and what the one after them raised.
        """
        limit = None if timeout is None else timeout + BATCH_SECONDS
        arguments = (function, items, spread, BATCH_SECONDS)
        retries = 0 if options is None else options.retries
        while True:
            trace = tracing.begin(self.service, function)
            attempted = _Attempt(self, function, arguments, {}, limit, options, None, trace)
            attempted.reserved = MAP
            try:
                results, described = self._attempt(attempted)
                break
            except WorkerDied:
                if not retries or attempted.channel is None:
                    raise
                self._check_idempotent(function, attempted.channel)
                retries -= 1
        if described is None:
            return results, None
        assert attempted.channel is not None
        return results, self.rebuild(described, attempted.channel.worker)

    def describe(self) -> dict[str, dict[str, Any]]:
        """What ``FunctionTable.describe`` says in the worker."""
        described: dict[str, dict[str, Any]] = self._call_slowly(DESCRIBE, (), {}, None, None, None)
        return described

    # -- what is known of it ---------------------------------------------------------------------------------

    @property
    def most_workers(self) -> int:
        """How many workers there may be."""
        return self._most_workers

    @property
    def waiting(self) -> int:
        """Calls that wait for a worker."""
        return self._dispatcher.waiting

    @property
    def restarts(self) -> int:
        """How many workers took the place of one that ended unexpectedly."""
        return sum(self._metrics.restarts.values())

    def in_flight(self, worker: Worker) -> int:
        """How many calls a worker is running."""
        return self._dispatcher.in_flight(worker) if worker.is_serving else 0

    def latencies(self) -> tuple[Latency, dict[str, Latency]]:
        """Quantiles of the recent past: of all calls, and by function."""
        return self._metrics.latencies()

    def status(self) -> PoolStatus:
        """How the pool is now."""
        from .status import status_of

        return status_of(self)

    def metrics(self) -> Iterator[Metric]:
        """What was counted so far, under the names that Prometheus users expect."""
        from .status import snapshot_of

        return self._metrics.metrics(snapshot_of(self))

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
        """Begin to close: no more calls are taken, and the workers are told to end. Does not wait."""
        self._closed = True
        _pools.discard(self)
        self._call_at_close()
        self._dispatcher.fail_waiting(ServiceClosed(f"service {self.service!r} was closed"))
        if self._supervisor is not None:
            self._supervisor.hang_up()

    def close(self, grace: float = STOP_GRACE) -> None:
        """Stop the workers: they tear down and exit, or are killed after ``grace`` seconds. Idempotent."""
        self.hang_up()
        if self._supervisor is not None:
            self._supervisor.close(grace)

    def __del__(self) -> None:
        # Nobody can call it any more. Not waited for: this may run at any moment, on any thread.
        supervisor = getattr(self, "_supervisor", None)
        if supervisor is not None and self._pid == os.getpid() and not self._closed:
            supervisor.abandon()


_making = threading.Lock()
_END_GRACE = 1.0
_LOOK_AGAIN = 0.1
# Seconds between two looks of a task whether it is its turn.
_TURN = 0.001


def _lending_maker(pool: weakref.ref[Pool], service: str, objects: Mapping[str, Any]) -> Callable[[], HostLending]:
    from .lending import HostLending

    return lambda: HostLending(pool, service, objects)


def _held_channels() -> dict[Channel, int]:
    """The channels that calls in progress hold, and the thread that each is on."""
    held = {}
    for thread, innermost in sys._current_frames().items():
        frame: FrameType | None = innermost
        while frame is not None:
            if frame.f_code in _HOLDERS:
                channel = frame.f_locals.get("channel")
                if channel is not None:
                    held[channel] = thread
            frame = frame.f_back
    return held


_HOLDERS = (Pool.call.__code__, Pool._attempt.__code__, Pool._raise_broken.__code__)


def _outcome_of(error: BaseException) -> str:
    if isinstance(error, RemoteError):
        return "error"
    if isinstance(error, CallTimeout):
        return "timeout"
    if isinstance(error, WorkerDied):
        return "died"
    if isinstance(error, Exception) and not isinstance(error, CallCancelled):
        return "refused"
    return "cancelled"


def _shown(function: str, args: tuple[Any, ...]) -> str:
    """The name of a call for people: of a method of something borrowed, the method's."""
    return (args[1] or "__call__") if function == INVOKE else function


class _Attempt:
    """One attempt at a call, with what belongs to it on the way."""

    def __init__(
        self,
        pool: Pool,
        function: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
        options: CallOptions | None,
        worker: Worker | None,
        trace: tracing.CallTrace | None,
    ) -> None:
        self.began = _clock()
        self.pool = pool
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.timeout = timeout
        self.options = options
        self.worker = worker
        self.trace = trace
        outer = nesting.get()
        self.nest = None if outer is None else outer.find(pool, worker)
        self.channel: Channel | None = None
        self.depth = 0  # calls open on the channel before this one
        self.outcome = "refused"
        self.error: BaseException | None = None
        self.reserved = ""  # the function that is really called
        self.kept = False  # the channel is given back by somebody else
        self._outer_progress: Any = None

    @property
    def deadline(self) -> float | None:
        return None if self.timeout is None else self.pool._deadline(self.began, self.timeout)

    @property
    def is_background(self) -> bool:
        """Whether a thread of its own makes the call: then it need not go back to the worker that waits."""
        return self.options is not None and self.options.cancellation is not None

    @property
    def is_late(self) -> bool:
        deadline = self.deadline
        return deadline is not None and _clock() > deadline

    @property
    def was_cancelled(self) -> CallCancelled | None:
        """What to raise if the caller gave the call up."""
        cancellation = None if self.options is None else self.options.cancellation
        if cancellation is None or not cancellation.requested:
            return None
        error = CallCancelled(f"{self.pool.service}.{self.function} was cancelled ({cancellation.rung})")
        error.rung = cancellation.rung
        return error

    def encode(self, channel: Channel) -> tuple[Bytes, Sequence[Bytes]]:
        self.depth = channel.connection.conversation.depth
        options, worker = self.options, channel.worker
        meta: dict[str, Any] = {}
        if self.trace is not None:
            meta.update(self.trace.headers)
        if options is not None and options.on_progress is not None:
            meta["progress"] = True
        name, args, kwargs = self.reserved or self.function, self.args, self.kwargs
        if (meta or self.reserved) and self.worker is None and self.function not in worker.functions:
            raise self.pool.not_found(self.function, worker)
        if options is not None and options.retries:
            self.pool._check_idempotent(self.function, channel)
        if meta:
            name, args, kwargs = WITH_META, (meta, name, args, kwargs), {}
        encoder = channel.encoder
        try:
            payload: Bytes = encoder.encode((name, args, kwargs))
        except Exception as error:  # noqa: BLE001 - whatever it is, it says that an argument cannot cross
            if self.function == INVOKE:  # what the user passed, not what carries it
                self.args, self.kwargs = self.args[2], self.args[3]
            raise explain_unencodable(error, (("args", self.args), ("kwargs", self.kwargs))) from None
        return payload, encoder.take_buffers() if encoder.has_buffers else ()

    def begin(self) -> None:
        """About to send the call."""
        channel, options = self.channel, self.options
        assert channel is not None
        self._outer_progress = channel.on_progress
        channel.on_progress = None if options is None else options.on_progress
        if options is not None and options.cancellation is not None:
            number = channel.call_number + (not self.depth)  # the next one, unless it is within one
            what = f"{self.pool.service}.{self.function}"
            options.cancellation.begins(channel, number | self.depth << 48, what, self.was_cancelled)

    def end(self) -> None:
        """It was answered, or never will be."""
        channel, options = self.channel, self.options
        assert channel is not None
        channel.on_progress = self._outer_progress
        if options is not None and options.cancellation is not None:
            options.cancellation.ends()

    def give_back_kept(self) -> None:
        """Give the channel back, in the place of whoever called."""
        channel = self.channel
        assert channel is not None
        channel.used_at = _clock()
        if self.nest is not None:
            self.nest.turn.release()
        else:
            channel.owner = None
            self.pool._dispatcher.give(channel)

    def give_back(self) -> None:
        """Give the channel back, unless somebody else does."""
        if not self.kept:
            self.give_back_kept()

    def observe(self, series: Any) -> None:
        ended = _clock()
        if self.function not in _UNCOUNTED:
            series[self.function, self.outcome].observe(ended - self.began, ended)
        if self.trace is not None:
            self.trace.end(self.outcome, self.error)


def pools() -> list[Pool]:
    """The pools of this process that are not closed, in no order."""
    return list(_pools)


def shutdown(grace: float = STOP_GRACE) -> None:
    """Close every pool of this process, side by side: at most ``grace`` seconds for all. Idempotent."""
    living = list(_pools)
    for pool in living:
        pool.hang_up()
    deadline = time.monotonic() + grace
    for pool in living:
        pool.close(max(0.0, deadline - time.monotonic()))


def _after_fork() -> None:
    global _making
    _making = threading.Lock()
    # The workers are the parent's. What this child calls starts workers of its own.
    for pool in list(_pools):
        if pool._supervisor is not None and pool._dispatcher.workers:
            logging.getLogger("atoll.pool").info(
                "%s: this process was forked (pid %d) and begins with a pool of its own, without workers",
                pool.service,
                os.getpid(),
            )
        pool._begin()


os.register_at_fork(after_in_child=_after_fork)
