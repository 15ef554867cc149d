# SPDX-License-Identifier: Apache-2.0
"""Calls in the background: the thread behind ``RemoteFunction.submit`` and ``.map``."""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from ..pool import Pool

R = TypeVar("R")


class Submitter:
    """A thread that makes the submitted calls of one pool, in order. A daemon: a call that never ends must not keep the
    program from ending, which a ThreadPoolExecutor's thread would."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stopped = False
        self.pid = os.getpid()
        threading.Thread(target=self._run, name="atoll-submit", daemon=True).start()

    def submit(self, call: Callable[[], R]) -> Future[R]:
        """Make the call when its turn has come."""
        future: Future[R] = Future()
        with self._lock:
            stopped = self._stopped
            if not stopped:
                self._queue.put((future, call))
        if stopped:
            _settle(future, call)  # at once: it says that its service is closed
        return future

    def stop(self) -> None:
        """Let the thread end once the queue is empty."""
        if self.pid == os.getpid():  # a forked child has no such thread
            with self._lock:
                self._stopped = True
                self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            future, call = item
            _settle(future, call)
            del item, future, call  # or the last result would live until the next call


def _settle(future: Future[Any], call: Callable[[], Any]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)


_submitters: weakref.WeakKeyDictionary[Pool, Submitter] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def submitter_of(pool: Pool) -> Submitter:
    """The submitter of a pool, started if need be."""
    with _lock:
        submitter = _submitters.get(pool)
        if submitter is None or submitter.pid != os.getpid():
            submitter = _submitters[pool] = Submitter()
            weakref.finalize(pool, submitter.stop)
            pool.at_close(submitter.stop)
        return submitter


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
