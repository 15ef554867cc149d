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

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from atoll_worker import wire
from atoll_worker.context import MAP
from atoll_worker.service import DESCRIBE
from atoll_worker.tracing import in_use
from atoll_worker.values import explain_unencodable

from ..errors import (
    FunctionNotFound,
    ServiceClosed,
    WorkerDied,
)
from . import tracing
from .attempt import UNKNOWN, Attempt, shown
from .callbacks import answer_async, converse
from .channel import Channel, nesting
from .dispatcher import Dispatcher
from .endings import UNTAKEN, check_idempotent, outcome_of, raise_broken, raise_error, rebuild
from .metrics import BATCH, Latency, Metric, PoolMetrics, Series
from .settings import PoolSettings
from .stream import Stream
from .waiting import enter, holders, take, take_async

if TYPE_CHECKING:
    from atoll_worker.wire import Bytes

    from .lending import HostLending
    from .options import CallOptions
    from .status import PoolStatus
    from .supervisor import Supervisor
    from .worker import Worker, WorkerPlan

_PICKLE = wire.PICKLE
_CARGO = wire.CARGO
_RESULT = wire.RESULT
_CALL = wire.CALL
_OK = "ok"
_clock = time.monotonic
_modules = sys.modules
_traced = in_use

# Seconds that workers get to tear down and exit when their service is closed.
STOP_GRACE = 3.0
# Seconds for what workers said last to come to the log at the interpreter's end.
_LAST_WORDS = 2.0
# A sleep this long, in seconds, and the next call of the same function goes to sleep at once instead of polling.
_PATIENT_ABOVE = 0.0002
# Seconds of work that one batch of `map` is at most, if its items are shorter.
BATCH_SECONDS = 0.05

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
        self.closed = False
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

        self.dispatcher = Dispatcher(self.settings.concurrency, self.settings.max_queue, want)
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
                        self.dispatcher,
                        self._metrics,
                        _lending_maker(weakref.ref(self), self.service, self.settings.objects),
                    )
            if self.closed:  # since it was asked whether it is; who closed it may have found no supervisor
                supervisor.hang_up()
        return supervisor

    @property
    def workers(self) -> list[Worker]:
        """The workers that take calls, the first one first."""
        return self.dispatcher.workers

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
        if self.closed:
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
            or "out" in kwargs
        ):
            return self._call_slowly(function, args, kwargs, timeout, options, worker)
        dispatcher = self.dispatcher
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
                channel = enter(self, function, began, timeout, None)
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
                deadline = None if timeout is None else self.deadline_of(began, timeout)
                kind, _, payload, buffers = connection.exchange(_PICKLE, payload, buffers, deadline, patient)
                if kind == _CALL:
                    kind, _, payload, buffers = converse(self, channel, payload, buffers, deadline)
                if (patient or connection.asleep_for) and (connection.asleep_for > _PATIENT_ABOVE) is not patient:
                    (slow.discard if patient else slow.add)(function)
            except BaseException as error:  # noqa: BLE001 - raised again, as itself or as what it means
                outcome = "cancelled"
                attempt = Attempt(self, function, args, kwargs, timeout, None, None, None)
                raise_broken(self, error, channel, attempt)
            channel.calls = calls = channel.calls + 1
            if calls >= channel.look_at:
                self._account(channel.worker)
            if kind == _RESULT:
                outcome = _OK
                decoder = channel.decoder
                if payload[0] == _CARGO:  # borrowed from the worker: before it may be gone
                    result = decoder.decode(payload, buffers)
                    payload = b""
            else:
                outcome = "error"
                attempt = Attempt(self, function, args, kwargs, timeout, None, None, None)
                raise_error(self, payload, buffers, channel, attempt)
        except BaseException as error:
            outcome = outcome_of(error)
            if outcome is not UNTAKEN:
                if isinstance(error, FunctionNotFound):
                    function = UNKNOWN
                raise
            payload = b""
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
            elif outcome is not UNTAKEN:
                self._observed[function, outcome].observe(ended - began, ended)
                if outcome is _OK:
                    ok[function] = self._observed[function, outcome]
        if payload:
            result = decoder.decode(payload, buffers)
            if result.__class__ is Stream:
                result.timeout = timeout
        elif outcome is UNTAKEN:
            return self._call_slowly(function, args, kwargs, timeout, None, None, began)
        return result

    def _call_slowly(
        self,
        function: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
        options: CallOptions | None,
        worker: Worker | None,
        began: float | None = None,
    ) -> Any:
        """``call`` for whatever is not the ordinary case: with options, in a trace, to a certain worker, from a
        callback, or once more."""
        retries = 0 if options is None else options.retries
        while True:
            trace = tracing.begin(self.service, shown(function, args))
            attempt = Attempt(self, function, args, kwargs, timeout, options, worker, trace, began)
            try:
                return self._attempt(attempt)
            except WorkerDied as error:
                retries, began = self._again(retries, attempt, error)

    def _again(self, left: int, attempt: Attempt, error: WorkerDied) -> tuple[int, float | None]:
        """How many retries are left once the call is made again, and when that one began: None for then.

        Raises:
            WorkerDied: it is not to be made again.
            ManifestError: it may not be, since the function is not idempotent.
        """
        if not error.taken and attempt.worker is None:
            return left, attempt.began
        if not left or attempt.channel is None:
            raise error
        check_idempotent(self.service, attempt.function, attempt.channel)
        return left - 1, None

    def _attempt(self, attempt: Attempt) -> Any:
        try:
            channel = attempt.channel = take(self, attempt)
            try:
                payload, buffers = attempt.encode(channel)
                deadline = attempt.deadline
                try:
                    attempt.begin()
                    kind, _, payload, buffers = channel.connection.exchange(_PICKLE, payload, buffers, deadline)
                    if kind == _CALL:
                        kind, _, payload, buffers = converse(self, channel, payload, buffers, deadline)
                except BaseException as error:  # noqa: BLE001 - raised again, as itself or as what it means
                    raise_broken(self, error, channel, attempt)
                finally:
                    attempt.end()
                return self._finish(attempt, channel, kind, payload, buffers)
            finally:
                attempt.give_back()
        except BaseException as error:
            attempt.outcome = outcome_of(error)
            attempt.error = error
            raise
        finally:
            attempt.observe(self._observed)

    def _finish(self, attempt: Attempt, channel: Channel, kind: int, payload: Bytes, buffers: Sequence[Bytes]) -> Any:
        """The answer has come."""
        worker = channel.worker
        channel.calls += 1
        if channel.calls >= channel.look_at:
            self._account(worker)
        if kind != _RESULT:
            raise_error(self, payload, buffers, channel, attempt)
        options = attempt.options
        result = channel.decoder.decode(payload, buffers, own=options is not None and options.writable)
        if attempt.outs is not None:
            attempt.outs.finish()
        if (cancelled := attempt.was_cancelled) is not None:
            cancelled.result = result  # its code looked, and returned: whoever gave it up was told that it was
            try:
                raise cancelled
            finally:
                del cancelled, result  # the error's traceback has this frame
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
        dispatcher = self.dispatcher
        channel: Channel | None = None
        if (
            options is None
            and worker is None
            and not _traced
            and "opentelemetry.trace" not in _modules
            and nesting.get() is None
            and "out" not in kwargs
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
        attempt: Attempt | None = None
        try:
            channel.owner = aio.running_loop()
            encoder = channel.encoder
            payload: Bytes
            buffers: Sequence[Bytes]
            try:
                payload = encoder.encode((function, args, kwargs))
            except MemoryError:
                payload = await aio.when_there_is_room(partial(encoder.encode, (function, args, kwargs)))
            except Exception as error:  # noqa: BLE001 - whatever it is, it says that an argument cannot cross
                raise explain_unencodable(error, (("args", args), ("kwargs", kwargs))) from None
            buffers = encoder.take_buffers() if encoder.has_buffers else ()
            connection = channel.connection
            try:
                deadline = None if timeout is None else self.deadline_of(began, timeout)
                if buffers or not connection.fits_slot(payload, buffers):
                    kind, _, payload, buffers = await aio.exchange(connection, _CALL, payload, buffers, deadline)
                else:
                    try:
                        reply = connection.exchange(_PICKLE, payload, buffers, None, False, False)
                    except aio.WouldSleep:
                        reply = None  # waited for below: no error there should tell of this one
                    kind, _, payload, buffers = reply or await aio.answer(connection, deadline)
                while kind == _CALL:
                    kind, payload, buffers = await answer_async(self, channel, payload, buffers)
                    kind, _, payload, buffers = await aio.exchange(connection, kind, payload, buffers, deadline)
            except BaseException as error:  # noqa: BLE001 - raised again, as itself or as what it means
                attempt = Attempt(self, function, args, kwargs, timeout, None, None, None)
                attempt.channel = channel
                await aio.end_elsewhere(partial(raise_broken, self, error, channel, attempt), error, attempt)
            channel.calls += 1
            if channel.calls >= channel.look_at:
                self._account(channel.worker)
            if kind != _RESULT:
                raise_error(
                    self, payload, buffers, channel, Attempt(self, function, args, kwargs, timeout, None, None, None)
                )
            result = channel.decoder.decode(payload, buffers)
            outcome = _OK
        except BaseException as error:
            outcome = outcome_of(error)
            if outcome is not UNTAKEN:
                if isinstance(error, FunctionNotFound):
                    function = UNKNOWN
                raise
        finally:
            ended = _clock()
            if attempt is None or not attempt.kept:
                channel.used_at = ended
                channel.owner = None
                dispatcher.give(channel)
            if outcome is not UNTAKEN:
                self._observed[function, outcome].observe(ended - began, ended)
        if outcome is UNTAKEN:
            return await self._call_async_slowly(function, args, kwargs, timeout, None, None, began)
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
        began: float | None = None,
    ) -> Any:
        """``call_async`` for whatever is not the ordinary case, which now includes waiting for a worker."""
        retries = 0 if options is None else options.retries
        while True:
            trace = tracing.begin(self.service, shown(function, args))
            attempt = Attempt(self, function, args, kwargs, timeout, options, worker, trace, began)
            try:
                return await self._attempt_async(attempt)
            except WorkerDied as error:
                retries, began = self._again(retries, attempt, error)

    async def _attempt_async(self, attempt: Attempt) -> Any:
        from .aio import end_elsewhere, exchange, when_there_is_room

        try:
            channel = attempt.channel = await take_async(self, attempt)
            try:
                payload, buffers = await when_there_is_room(partial(attempt.encode, channel))
                deadline = attempt.deadline
                try:
                    attempt.begin()
                    kind, _, payload, buffers = await exchange(channel.connection, _CALL, payload, buffers, deadline)
                    while kind == _CALL:
                        kind, payload, buffers = await answer_async(self, channel, payload, buffers)
                        kind, _, payload, buffers = await exchange(channel.connection, kind, payload, buffers, deadline)
                except BaseException as error:  # noqa: BLE001 - raised again, as itself or as what it means
                    await end_elsewhere(partial(raise_broken, self, error, channel, attempt), error, attempt)
                finally:
                    attempt.end()
                return self._finish(attempt, channel, kind, payload, buffers)
            finally:
                attempt.give_back()
        except BaseException as error:
            attempt.outcome = outcome_of(error)
            attempt.error = error
            raise
        finally:
            attempt.observe(self._observed)

    def deadline_of(self, began: float, timeout: float) -> float:
        """When a call is late: starting the first worker does not count."""
        since = self.dispatcher.serving_since
        return timeout + (began if since is None else max(began, since))

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
        arguments = (function, items, spread, BATCH_SECONDS)
        retries = 0 if options is None else options.retries
        began: float | None = None
        while True:
            trace = tracing.begin(self.service, function)
            attempted = Attempt(self, function, arguments, {}, timeout, options, None, trace, began)
            attempted.reserved = MAP
            attempted.slack = BATCH_SECONDS
            try:
                results, described = self._attempt(attempted)
                break
            except WorkerDied as error:
                retries, began = self._again(retries, attempted, error)
        if described is None:
            return results, None
        assert attempted.channel is not None
        return results, rebuild(self.service, described, attempted.channel.worker)

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
        return self.dispatcher.waiting

    @property
    def restarts(self) -> int:
        """How many workers took the place of one that ended unexpectedly."""
        return sum(self._metrics.restarts.values())

    def in_flight(self, worker: Worker) -> int:
        """How many calls a worker is running."""
        return self.dispatcher.in_flight(worker) if worker.is_serving else 0

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
        if self.closed:
            self._call_at_close()

    def _call_at_close(self) -> None:
        functions, self._at_close = self._at_close, []
        for function in functions:
            function()

    def hang_up(self) -> None:
        """Begin to close: no more calls are taken, and the workers are told to end. Does not wait."""
        service = self.service
        self.closed = True
        _pools.discard(self)
        self._call_at_close()
        self.dispatcher.close(lambda: ServiceClosed(f"service {service!r} was closed"))
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
        if supervisor is not None and self._pid == os.getpid() and not self.closed:
            supervisor.abandon()


_making = threading.Lock()


def _lending_maker(pool: weakref.ref[Pool], service: str, objects: Mapping[str, Any]) -> Callable[[], HostLending]:
    from .lending import HostLending

    return lambda: HostLending(pool, service, objects)


holders.update((Pool.call.__code__, Pool._attempt.__code__, raise_broken.__code__))


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


def end() -> None:
    """At the interpreter's end: as ``shutdown``; and what the workers said last comes to the log."""
    shutdown()
    if "atoll.processes.output" in _modules:  # else there never was a worker
        from ..processes.output import finish_output

        finish_output(_LAST_WORDS)


def _after_fork() -> None:
    global _making
    _making = threading.Lock()
    # The workers are the parent's. What this child calls starts workers of its own.
    for pool in list(_pools):
        if pool._supervisor is not None and pool.dispatcher.workers:
            import logging

            logging.getLogger("atoll.pool").info(
                "%s: this process was forked (pid %d) and begins with a pool of its own, without workers",
                pool.service,
                os.getpid(),
            )
        pool.dispatcher.queue.clear()  # the parent's; nor does a call that goes on here pass on anything
        pool._begin()


os.register_at_fork(after_in_child=_after_fork)
