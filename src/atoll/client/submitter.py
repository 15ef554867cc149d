# SPDX-License-Identifier: Apache-2.0
"""Calls in the background: the threads behind ``RemoteFunction.submit`` and ``.map``."""

from __future__ import annotations

import contextvars
import os
import queue
import threading
import weakref
from _thread import get_ident
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import CallCancelled
from ..pool import Pool, tracing
from ..pool.channel import nesting
from ..pool.dispatcher import QueueIsFull
from ..pool.endings import of_parent
from ..pool.options import Cancellation
from ..pool.waiting import begin_to_wait, queue_full, told_of_waiting

if TYPE_CHECKING:
    from ..pool.dispatcher import _Waiter

R = TypeVar("R")


class Call(Future[R]):
    """A call in the background: a ``concurrent.futures.Future`` that can also be cancelled while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self._cancellation = Cancellation()
        self._pid = os.getpid()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            self._condition = threading.Condition()  # a thread of the parent's may hold the one it had
            if not self.done():
                raise of_parent("this call", self._pid)

    def cancel(self) -> bool:
        """Give the call up. One that waits never begins; one that runs is ended: its code is told, then interrupted, at
        last its worker is killed. ``result()`` then raises ``CallCancelled``.

        Returns:
            False if it has ended already, or belongs to the process that this one was forked from.
        """
        if self._pid != os.getpid():
            return False
        if super().cancel():
            leave, self._cancellation.on_leave = self._cancellation.on_leave, None
            if leave is not None:
                leave()
            return True
        if self.done():
            return False
        self._cancellation.cancel()
        return True

    def result(self, timeout: float | None = None) -> R:
        """The result, once it is there.

        Args:
            timeout: seconds to wait.

        Raises:
            what the call raised; CallCancelled; TimeoutError if it is not there in time; AtollError in a forked child
            of the process that it belongs to, unless it had ended before.
        """
        self._check_process()
        if not self.done():
            begin_to_wait()
        try:
            return super().result(timeout)
        except CancelledError as error:
            if isinstance(error, CallCancelled):
                raise
            raise CallCancelled("the call was cancelled before it began") from None
        finally:
            del self  # who is in the error's traceback, and has it

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What it raised, once it has ended; otherwise as ``result``."""
        self._check_process()
        return super().exception(timeout)

    def cancelled(self) -> bool:
        """Whether it was cancelled, and has ended because of that."""
        if super().cancelled():
            return True
        return self.done() and isinstance(self.exception(), CallCancelled)


class _Hands:
    """Threads that make calls, as many as can run at a time. Daemons: a call that never ends must not keep the program
    from ending, which a ThreadPoolExecutor's thread would.

    Args:
        most_threads: how many calls can run at a time.
        lends: these calls have their channels already: if a thread waits all the same, there is one more.
    """

    def __init__(self, most_threads: Callable[[], int], *, lends: bool) -> None:
        self._most_threads = most_threads
        self._lends = lends
        self._queue: queue.SimpleQueue[tuple[Call[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._lock = threading.RLock()  # a finalizer may stop it where its own thread has the lock
        self._stopped = False
        self._threads = 0
        self._free = 0  # threads that wait for a call, less the calls that are on their way to one

    def make(self, future: Call[Any], call: Callable[[], Any]) -> bool:
        """Make the call as soon as a thread is free, and settle the future. False after ``stop``: nothing is done."""
        with self._lock:
            if self._stopped:
                return False
            if self._free <= 0 and self._threads < self._most_threads():
                self._add()
            self._free -= 1
            self._queue.put((future, call))
            return True

    def _lend_one(self) -> None:
        """One of the threads is going to wait: for a channel that was granted to a call without a thread, perhaps. It
        makes a call again whose worker died, or is in a callback of the user's that calls. So there is one more."""
        with self._lock:
            if not self._stopped:
                self._add()

    def _add(self) -> None:
        threading.Thread(target=self._run, name="atoll-submit", daemon=True).start()
        self._threads += 1
        self._free += 1

    def stop(self) -> None:
        """Let the threads end once the queue is empty."""
        with self._lock:
            self._stopped = True
            for _ in range(self._threads):
                self._queue.put(None)

    def _run(self) -> None:
        if self._lends:
            told_of_waiting[get_ident()] = self._lend_one
        try:
            self._make_all()
        finally:
            told_of_waiting.pop(get_ident(), None)

    def _make_all(self) -> None:
        while (item := self._queue.get()) is not None:
            future, call = item
            _settle(future, call)
            del item, future, call  # or the last result would live until the next call
            with self._lock:
                if self._free >= 0 and self._threads > self._most_threads() and not self._stopped:
                    self._threads -= 1
                    return
                self._free += 1


class Submitter:
    """Makes the calls of one pool in the background.

    A submitted call stands in the pool's queue in a place of its own, beside those who wait themselves, and gets a
    thread when its turn has come. The batches of ``map`` wait here instead, a few of each, and their threads stand in
    the queue: ``max_queue`` is not for them.

    Args:
        pool: whose calls; kept alive by calls that wait, and by nothing else here.
        service: its name.
        most_threads: how many calls can run at a time.
    """

    def __init__(self, pool: weakref.ref[Pool], service: str, most_threads: Callable[[], int]) -> None:
        self._pool = pool
        self._service = service
        self._most_threads = most_threads
        self._hands = _Hands(most_threads, lends=True)
        self._mapping = _Hands(most_threads, lends=False)
        self._waiting: dict[Call[Any], Callable[[], Any]] = {}  # what stands in the queue
        self.pid = os.getpid()

    def submit(self, future: Call[R], call: Callable[[], R], function: str) -> None:
        """Make the call when its turn has come, and settle the future.

        The call belongs to the trace that is current here.

        Raises:
            QueueFull: as many wait as may.
        """
        if self._is_nested(future, call):
            return
        pool = self._pool()
        assert pool is not None  # somebody is calling it
        is_refused = pool.closed or pool.supervisor.refusal() is not None
        if is_refused:
            self._make(self._hands, future, call)  # to be refused as every other
            return
        cancellation = future._cancellation
        self._waiting[future] = _with_trace(call)

        def turn_has_come(place: _Waiter) -> None:
            call = self._waiting.pop(future, None)
            if call is None:
                return  # it was cancelled
            cancellation.place = place
            self._make(self._hands, future, call, isinstance(place.outcome, BaseException))

        dispatcher = pool.dispatcher
        try:
            place = dispatcher.reserve(turn_has_come, self, self._most_threads())
        except QueueIsFull:
            self._waiting.pop(future, None)
            raise queue_full(pool, function) from None

        def leave() -> None:
            self._waiting.pop(future, None)
            dispatcher.give_up(place)

        cancellation.on_leave = leave
        if future.running() or (future.done() and not future.cancelled()):  # so quickly
            cancellation.on_leave = None
        if pool.closed and self._waiting.pop(future, None) is not None:  # while this was going on
            dispatcher.give_up(place)
            self._make(self._hands, future, call)

    def submit_batch(self, future: Call[R], call: Callable[[], R]) -> None:
        """As ``submit``, for a batch of ``map``, which is never refused."""
        self.check_process()
        if not self._is_nested(future, call):
            self._make(self._mapping, future, _with_trace(call))

    @staticmethod
    def _is_nested(future: Call[R], call: Callable[[], R]) -> bool:
        """Whether this is within a callback, which may wait for the call: perhaps on the only thread that makes calls,
        for the only worker. Then it is on its way, on a thread of its own."""
        if nesting.get() is None:
            return False
        context = contextvars.copy_context()
        threading.Thread(
            target=_settle, args=(future, partial(context.run, call)), name="atoll-submit", daemon=True
        ).start()
        return True

    @staticmethod
    def _make(hands: _Hands, future: Call[R], call: Callable[[], R], is_refused: bool = True) -> None:
        try:
            if hands.make(future, call):
                return
            if not is_refused:  # its turn came while the pool is being closed
                threading.Thread(target=_settle, args=(future, call), name="atoll-submit", daemon=True).start()
                return
        except RuntimeError as error:  # there can be no thread
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
            raise
        _settle(future, call)  # at once: it says that its service is closed

    def check_process(self) -> None:
        """Raises:
        AtollError: it belongs to the process that this one was forked from.
        """
        if self.pid != os.getpid():
            raise of_parent(f"the map of {self._service!r}", self.pid)

    def stop(self) -> None:
        """Let the threads end once there is nothing for them to do."""
        if self.pid == os.getpid():  # a forked child has no such threads
            self._hands.stop()
            self._mapping.stop()


def _with_trace(call: Callable[[], R]) -> Callable[[], R]:
    """The call with the trace of whoever submits it."""
    return partial(contextvars.copy_context().run, call) if tracing.may_trace() else call


def _settle(future: Call[Any], call: Callable[[], Any]) -> None:
    if future.set_running_or_notify_cancel():
        future._cancellation.on_leave = None  # which leads to the future: its result would live in a circle
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)
            del future, call  # the error's traceback has this frame


_submitters: weakref.WeakKeyDictionary[Pool, Submitter] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def submitter_of(pool: Pool) -> Submitter:
    """The submitter of a pool."""
    with _lock:
        submitter = _submitters.get(pool)
        if submitter is None or submitter.pid != os.getpid():
            settings, reference = pool.settings, weakref.ref(pool)

            def most_threads() -> int:
                living = reference()
                workers = 0 if living is None else living.most_workers
                return max(workers, settings.workers) * settings.concurrency

            submitter = _submitters[pool] = Submitter(reference, pool.service, most_threads)
            weakref.finalize(pool, submitter.stop)
            pool.at_close(submitter.stop)
        return submitter


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    told_of_waiting.clear()


os.register_at_fork(after_in_child=_after_fork)
