# SPDX-License-Identifier: Apache-2.0
"""Who may call now, and on which channel: first come, first served, for threads and asyncio tasks alike.

A channel is a data connection of a worker; it takes one call at a time. Idle ones lie in a list, the one used last on
top: its worker's caches are warm, and the others may fall idle for good. With several channels a worker, the worker
with the fewest calls goes first. Who finds none waits in one queue, whichever way it waits. Passing through an empty
queue costs one ``list.pop``.

What does not belong here: starting workers (``supervisor``), and what is done with a channel.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from .channel import Channel
    from .worker import Worker

# Seconds after which a thread that waits looks whether its turn can come at all.
_LONG = 0.1


class QueueIsFull(Exception):
    """As many wait as may."""


class WaitedTooLong(Exception):
    """The deadline passed in the queue."""


class _Waiter:
    """One place in the queue. ``outcome`` is set by whoever grants; ``abandoned`` by whoever gave up waiting. Exactly
    one of the two passes on a channel that came too late.

    Args:
        wake: wakes the one who waits; raises RuntimeError if nobody is there any more.
        owner: the event loop it waits on, if it is a task.
        worker: the worker that it needs a channel of; None for any.
        ticket: says who came first.
    """

    __slots__ = ("abandoned", "lock", "outcome", "owner", "ticket", "wake", "worker")

    def __init__(self, wake: Callable[[], object], owner: object, worker: Worker | None) -> None:
        self.wake = wake
        self.owner = owner
        self.worker = worker
        self.ticket = -1  # until it joins
        self.outcome: Channel | BaseException | None = None
        self.abandoned = False
        self.lock = threading.Lock()

    def grant(self, outcome: Channel | BaseException) -> bool:
        """False if it gave up before, or was told something else."""
        with self.lock:
            if self.abandoned or self.outcome is not None:
                return False
            self.outcome = outcome
        try:
            self.wake()
        except RuntimeError:
            return self.abandon() is None  # its event loop was closed with the task in the queue
        return True

    def abandon(self) -> Channel | None:
        """Give up; returns the channel that came after all."""
        with self.lock:
            outcome, self.outcome, self.abandoned = self.outcome, None, True
        return outcome if outcome is not None and not isinstance(outcome, BaseException) else None

    def result(self) -> Channel:
        outcome = self.outcome
        assert outcome is not None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def _nobody() -> None:
    """Nobody is to be woken."""


class Dispatcher:
    """The channels of a pool, and the queue of those who wait for one.

    Args:
        concurrency: channels a worker.
        most_waiting: how many may wait.
        wanted: called when somebody begins to wait, and there may be too few workers; must not wait itself.
    """

    def __init__(self, concurrency: int, most_waiting: int, wanted: Callable[[], None]) -> None:
        # Public for the path of a call, which inlines take() and give().
        self.idle: list[Channel] = []
        self.queue: deque[_Waiter] = deque()
        self.take: Callable[[], Channel] = self.idle.pop if concurrency == 1 else self._take_least_loaded
        self.put = self.idle.append
        self.serving_since: float | None = None  # when the first of the present workers became ready
        self._workers: list[Worker] = []
        self._most_waiting = most_waiting
        self._wanted = wanted
        # The same waiters as in `queue`, by the worker they need: who is next is found at once, however many wait.
        self._lines: dict[Worker | None, deque[_Waiter]] = {}
        self._tickets = itertools.count()
        self._closed: Callable[[], BaseException] | None = None  # makes what those who come from now on are told
        # Reentrant: a signal handler may call the service while its thread is in here.
        self._lock = threading.RLock()

    # -- workers ---------------------------------------------------------------------------------------------

    @property
    def workers(self) -> list[Worker]:
        """The workers that take calls."""
        return list(self._workers)

    @property
    def waiting(self) -> int:
        """How many stand in the queue."""
        return len(self.queue)

    def add(self, worker: Worker) -> None:
        """Calls may go to this worker from now on."""
        with self._lock:
            self._workers.append(worker)
            if self.serving_since is None:
                self.serving_since = time.monotonic()
        for channel in worker.channels:
            self.put(channel)
        self.pass_on()

    def retire(self, worker: Worker) -> None:
        """No further call goes to this worker, but for those that need this very one."""
        with self._lock:
            if worker in self._workers:
                self._workers.remove(worker)
            if not self._workers:
                self.serving_since = None
            for channel in worker.channels:
                channel.retired = True
        for channel in worker.channels:
            self.drop_idle(channel)  # a busy one is left out by `give`
        self.pass_on()  # to those who need this very one: they found nothing while a channel was in our hands

    def ended(self, worker: Worker) -> None:
        """The worker is gone, and those who need this very one are told."""
        self.retire(worker)
        self._fail_those_who(lambda waiter: waiter.worker is worker, worker.gone)
        worker.check_free()

    def in_flight(self, worker: Worker) -> int:
        """How many calls a worker is answering."""
        idle = self.idle.copy() + worker.spare
        return sum(1 for channel in worker.channels if channel not in idle)

    # -- passing through -------------------------------------------------------------------------------------

    def _take_least_loaded(self) -> Channel:
        with self._lock:
            idle = self.idle
            if not idle:
                raise IndexError
            free: dict[int, int] = {}
            for channel in idle:
                free[id(channel.worker)] = free.get(id(channel.worker), 0) + 1
            # max() prefers the first, and the list ends with the channel used last.
            chosen = max(reversed(idle.copy()), key=lambda channel: free[id(channel.worker)])
            try:
                idle.remove(chosen)
            except ValueError:  # its worker was retired just now
                return self._take_least_loaded()
            return chosen

    def give(self, channel: Channel) -> None:
        """A call is through."""
        self._put_back(channel)
        if self.queue:
            self.pass_on()

    def _put_back(self, channel: Channel) -> None:
        was_retired = channel.retired
        if was_retired:
            channel.worker.let_go(channel)
        else:
            self.put(channel)
            if channel.retired:  # it was between the two lines above
                self.drop_idle(channel)

    def drop_idle(self, channel: Channel) -> None:
        """A channel that is not to be taken any more, if it lies among the idle ones."""
        try:
            self.idle.remove(channel)
        except ValueError:
            return
        channel.worker.let_go(channel)

    def enter(
        self,
        entered: float,
        timeout: float | None,
        worker: Worker | None = None,
        check: Callable[[], None] | None = None,
        again: bool = False,
    ) -> Channel:
        """Wait for a channel, on the calling thread.

        Args:
            entered: ``time.monotonic()`` when it came.
            timeout: seconds it may wait while there are workers; waiting for the first one to start does not count.
            worker: the worker it needs a channel of; None for any.
            check: called once it takes long; what it raises ends the waiting.
            again: it had its turn, and nothing came of it: it waits before all who had none, however many these are.

        Raises:
            QueueIsFull, WaitedTooLong: as they say.
            AtollError: no worker can be had; see ``fail_waiting`` and ``close``.
        """
        turn = threading.Lock()
        turn.acquire()
        waiter = _Waiter(turn.release, None, worker)
        try:
            self._join(waiter, again=again)
            while True:
                left = self._left(entered, timeout)
                turn.acquire(timeout=_LONG if left is None else max(0.0, min(left, _LONG)))
                if waiter.outcome is not None:  # also if whoever granted it was interrupted before it could wake us
                    return waiter.result()
                if left is not None and left <= 0:
                    break
                if check is not None:
                    check()
        except QueueIsFull:  # it never stood there
            raise
        except BaseException:  # KeyboardInterrupt, above all, wherever it strikes
            self.give_up(waiter)
            raise
        return self._too_late(waiter)

    async def enter_async(
        self,
        loop: AbstractEventLoop,
        entered: float,
        timeout: float | None,
        worker: Worker | None = None,
        again: bool = False,
    ) -> Channel:
        """As ``enter``, for a task of the running event loop."""
        import asyncio  # whoever gets here has imported it already

        turn: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not turn.done():
                turn.set_result(None)

        waiter = _Waiter(lambda: loop.call_soon_threadsafe(finish), loop, worker)
        try:
            self._join(waiter, again=again)
            while True:
                left = self._left(entered, timeout)
                await asyncio.wait((turn,), timeout=1.0 if left is None else max(0.0, min(left, 1.0)))
                if waiter.outcome is not None:
                    return waiter.result()
                if left is not None and left <= 0:
                    break
        except QueueIsFull:
            raise
        except BaseException:
            self.give_up(waiter)
            raise
        return self._too_late(waiter)

    def reserve(self, wake: Callable[[_Waiter], object], owner: object, starting: int) -> _Waiter:
        """A place in the queue that no thread stands in, to be claimed once ``wake`` was called.

        Args:
            wake: called with the place on any thread, perhaps before this returns.
            owner: what has the channel from then on until it is claimed.
            starting: while there is no worker, so many more may wait: they will be served as soon as there are.

        Raises:
            QueueIsFull: as it says.
        """
        place = _Waiter(lambda: wake(place), owner, None)
        return self._join(place, starting)

    def claim(self, place: _Waiter) -> Channel:
        """What a place was granted.

        Raises:
            WaitedTooLong: it was given up before.
            AtollError: no worker can be had; see ``fail_waiting``.
        """
        place.wake = _nobody  # or it would be in a circle with itself
        channel = self._too_late(place)
        channel.owner = None
        return channel

    def _join(self, waiter: _Waiter, starting: int = 0, again: bool = False) -> _Waiter:
        worker = waiter.worker
        with self._lock:
            waiter.ticket = -next(self._tickets) if again else next(self._tickets)
            closed = self._closed if worker is None else None
            if worker is None and closed is None and not again and self._is_full(starting):
                # There may be one all the same, if those who wait need other workers.
                channel = None if None in self._lines else self._find(None)
                if channel is None:
                    raise QueueIsFull
                channel.owner = waiter.owner
                waiter.grant(channel)
                return waiter
            if closed is None:
                line = self._lines.setdefault(worker, deque())
                if again:
                    self.queue.appendleft(waiter)
                    line.appendleft(waiter)
                else:
                    self.queue.append(waiter)
                    line.append(waiter)
        if closed is not None:  # since it asked whether it may come
            waiter.grant(closed())
            return waiter
        if worker is not None and not worker.alive:
            self._fail_those_who(lambda one: one is waiter, worker.gone)
        self.pass_on()
        if worker is None and waiter.outcome is None:
            self._wanted()
        return waiter

    def _is_full(self, starting: int) -> bool:
        # While there is no worker, one is let in: otherwise none would ever be wanted.
        most = self._most_waiting if self.serving_since is not None else max(1, self._most_waiting + starting)
        return len(self._lines.get(None, ())) >= most

    def _leave(self, waiter: _Waiter) -> None:
        """It waits no more."""
        with self._lock:
            # It may have done so already; or been interrupted when it stood in one of the two.
            line = self._lines.get(waiter.worker)
            if line is not None:
                with contextlib.suppress(ValueError):
                    line.remove(waiter)
                if not line:
                    del self._lines[waiter.worker]
            with contextlib.suppress(ValueError):
                self.queue.remove(waiter)

    def _left(self, entered: float, timeout: float | None) -> float | None:
        since = self.serving_since
        if timeout is None or since is None:
            return None
        return max(entered, since) + timeout - time.monotonic()

    def give_up(self, waiter: _Waiter) -> None:
        """It does not want its turn any more. Idempotent."""
        waiter.wake = _nobody
        channel = waiter.abandon()
        if channel is not None:
            self.give(channel)
        self._leave(waiter)

    def _too_late(self, waiter: _Waiter) -> Channel:
        outcome = waiter.outcome
        channel = waiter.abandon()
        if channel is not None:
            return channel
        self._leave(waiter)
        if isinstance(outcome, BaseException):
            raise outcome
        raise WaitedTooLong

    def pass_on(self) -> None:
        """Grant idle channels to those who wait, in order."""
        while self.queue:
            with self._lock:
                pair = self._match()
            if pair is None:
                return
            waiter, channel = pair
            channel.owner = waiter.owner
            if not waiter.grant(channel):
                self._put_back(channel)

    def _match(self) -> tuple[_Waiter, Channel] | None:
        first = [next(iter(line), None) for line in list(self._lines.values())]
        for waiter in sorted(filter(None, first), key=lambda waiter: waiter.ticket):
            channel = self._find(waiter.worker)
            if channel is not None:
                self._leave(waiter)
                return waiter, channel
        return None

    def _find(self, worker: Worker | None) -> Channel | None:
        if worker is None:
            try:
                return self.take()
            except IndexError:
                return None
        for idle in (worker.spare, self.idle):
            for channel in reversed(idle.copy()):
                if channel.worker is worker:
                    try:
                        idle.remove(channel)
                    except ValueError:
                        continue  # taken meanwhile by who came straight through
                    return channel
        return None

    # -- when there is nobody to call ------------------------------------------------------------------------

    def close(self, error: Callable[[], BaseException]) -> None:
        """Nobody waits for a worker any more: those who do are told so, and those who still come."""
        with self._lock:
            self._closed = error
        self._fail_those_who(lambda waiter: waiter.worker is None, error)

    def fail_waiting(self, error: BaseException) -> None:
        """No worker can be had: those who wait are told so."""
        self._fail_those_who(lambda waiter: waiter.worker is None, lambda: error)

    def _fail_those_who(self, chosen: Callable[[_Waiter], bool], error: Callable[[], BaseException]) -> None:
        with self._lock:
            failed = [waiter for waiter in tuple(self.queue) if chosen(waiter)]
            for waiter in failed:
                self._leave(waiter)
        for waiter in failed:
            waiter.grant(error())

    def busy(self) -> list[Channel]:
        """The channels of the present workers that somebody has taken: not those that were given back for good, by who
        saw first that their worker has ended."""
        idle = self.idle.copy()
        return [
            channel
            for worker in self.workers
            for channel in worker.channels
            if channel not in idle and channel not in worker.spare.copy()
        ]
