# SPDX-License-Identifier: Apache-2.0
"""Calls in the background: the threads behind ``RemoteFunction.submit`` and ``.map``."""

from __future__ import annotations

import contextvars
import os
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, TypeVar

from ..errors import CallCancelled, QueueFull
from ..pool import Pool, tracing
from ..pool.channel import nesting
from ..pool.endings import of_parent
from ..pool.options import Cancellation

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
        try:
            return super().result(timeout)
        except CancelledError as error:
            if isinstance(error, CallCancelled):
                raise
            raise CallCancelled("the call was cancelled before it began") from None

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What it raised, once it has ended; otherwise as ``result``."""
        self._check_process()
        return super().exception(timeout)

    def cancelled(self) -> bool:
        """Whether it was cancelled, and has ended because of that."""
        if super().cancelled():
            return True
        return self.done() and isinstance(self.exception(), CallCancelled)


class Submitter:
    """Threads that make the submitted calls of one pool, as many as it can run at a time. Daemons: a call that never
    ends must not keep the program from ending, which a ThreadPoolExecutor's thread would.

    Args:
        most_threads: how many calls are made at a time.
        most_waiting: how many may wait.
    """

    def __init__(self, service: str, most_threads: Callable[[], int], most_waiting: int) -> None:
        self._service = service
        self._most_threads = most_threads
        self._most_waiting = most_waiting
        self._queue: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stopped = False
        self._threads = 0
        self._free = 0  # threads that wait for a call, less the calls that are on their way to one
        self.pid = os.getpid()

    def submit(self, future: Future[R], call: Callable[[], R], *, bounded: bool = True) -> None:
        """Make the call when its turn has come, and settle the future.

        Args:
            bounded: refuse it if too many wait.

        The call belongs to the trace that is current here.

        Raises:
            QueueFull: as many wait as may.
        """
        if nesting.get() is not None:
            # In a callback, which may wait for it: perhaps on the only thread that makes calls, for the only worker.
            context = contextvars.copy_context()
            threading.Thread(
                target=_settle, args=(future, partial(context.run, call)), name="atoll-submit", daemon=True
            ).start()
            return
        if tracing.may_trace():  # with the trace of whoever submits it
            call = partial(contextvars.copy_context().run, call)
        with self._lock:
            stopped = self._stopped
            if not stopped:
                if self._free <= 0 and self._threads < self._most_threads():
                    threading.Thread(target=self._run, name="atoll-submit", daemon=True).start()
                    self._threads += 1
                    self._free += 1
                elif bounded and self._free <= 0 and self._queue.qsize() >= self._most_waiting:
                    raise QueueFull(
                        f"{self._queue.qsize()} calls of {self._service!r} wait already, and "
                        f"max_queue={self._most_waiting} allows no more"
                    )
                self._free -= 1
                self._queue.put((future, call))
        if stopped:
            _settle(future, call)  # at once: it says that its service is closed

    def check_process(self) -> None:
        """Raises:
        AtollError: it belongs to the process that this one was forked from.
        """
        if self.pid != os.getpid():
            raise of_parent(f"the map of {self._service!r}", self.pid)

    def stop(self) -> None:
        """Let the threads end once the queue is empty."""
        if self.pid == os.getpid():  # a forked child has no such threads
            with self._lock:
                self._stopped = True
                for _ in range(self._threads):
                    self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            future, call = item
            _settle(future, call)
            del item, future, call  # or the last result would live until the next call
            with self._lock:
                self._free += 1


def _settle(future: Future[Any], call: Callable[[], Any]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)


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

            submitter = _submitters[pool] = Submitter(pool.service, most_threads, settings.max_queue)
            weakref.finalize(pool, submitter.stop)
            pool.at_close(submitter.stop)
        return submitter


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
