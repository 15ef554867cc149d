# SPDX-License-Identifier: Apache-2.0
"""``RemoteFunction.map``: many small calls as few large ones.

Items are sent in batches that grow until one takes about ``_BATCH_SECONDS``; a worker gives back what it has after
``atoll.pool.pool.BATCH_SECONDS``, and the rest is sent again in parts, so that items which turn out to take long spread
over all workers. A few batches a worker are under way: endless iterables are fine, and memory stays bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from itertools import islice
from sys import getsizeof
from time import perf_counter
from typing import Any

from ..pool import Pool
from ..pool.options import CallOptions
from .submitter import Call, submitter_of

# Seconds of work that a batch should be.
_BATCH_SECONDS = 0.01
_MOST_ITEMS = 10_000
# Bytes that the items or results of a batch are about, at most, if they are large.
_BATCH_BYTES = 4_000_000
# Batches under way for every call that can run at a time: one runs, one waits.
_AHEAD = 2


class _Batch:
    """Some items on their way."""

    __slots__ = ("call", "error", "items", "results", "seconds")

    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.results: list[Any] = []
        self.error: Exception | None = None
        self.seconds = 0.0
        self.call: Call[None] = Call()  # not of the batch: in a circle, results would live until one is looked for


class Mapping:
    """One call of ``map``.

    Args:
        pool: whose function it is.
        function: its name.
        iterables: the arguments: the items of one, or of several taken together.
        timeout: seconds that one item may take.
        options: of each call.
    """

    def __init__(
        self,
        pool: Pool,
        function: str,
        iterables: tuple[Iterable[Any], ...],
        timeout: float | None,
        options: CallOptions | None,
    ) -> None:
        self._pool = pool
        self._function = function
        self._spread = len(iterables) != 1
        # As the builtin map: the shortest ends it.
        self._items: Iterator[Any] = zip(*iterables, strict=False) if self._spread else iter(iterables[0])
        self._timeout = timeout
        self._options = options
        self._submitter = submitter_of(pool)
        self._size = 1
        self._ended = False
        self._source_error: Exception | None = None  # raised once the results of the items before are out

    def in_order(self) -> Iterator[Any]:
        """The results in the order of the items."""
        under_way: deque[_Batch] = deque()
        try:
            while True:
                self._fill(under_way)
                if not under_way:
                    if self._source_error is not None:
                        raise self._source_error
                    return
                batch = under_way[0]
                batch.call.result()
                under_way.popleft()
                under_way.extendleft(reversed(self._finish(batch)))  # on their way before the results are taken
                yield from batch.results
                if batch.error is not None:
                    raise batch.error
        finally:
            _give_up(under_way)

    def as_they_come(self) -> Iterator[Any]:
        """The results in the order in which they are ready."""
        under_way: deque[_Batch] = deque()
        try:
            while True:
                self._fill(under_way)
                if not under_way:
                    if self._source_error is not None:
                        raise self._source_error
                    return
                wait([batch.call for batch in under_way], return_when=FIRST_COMPLETED)
                done = [batch for batch in under_way if batch.call.done()]
                for batch in done:
                    under_way.remove(batch)
                    batch.call.result()
                    under_way.extend(self._finish(batch))
                for batch in done:
                    yield from batch.results
                    if batch.error is not None:
                        raise batch.error
        finally:
            _give_up(under_way)

    @property
    def _at_a_time(self) -> int:
        """How many calls can run at a time."""
        return self._pool.most_workers * self._pool.settings.concurrency

    def _fill(self, under_way: deque[_Batch]) -> None:
        if under_way or not self._ended:
            self._submitter.check_process()
        most = _AHEAD * self._at_a_time
        while not self._ended and len(under_way) < most:
            items: list[Any] = []
            try:
                items.extend(islice(self._items, self._size))
            except Exception as error:  # noqa: BLE001 - raised again in its turn
                self._source_error = error
            if len(items) < self._size:
                self._ended = True
            if items:
                under_way.append(self._send(items))

    def _send(self, items: list[Any]) -> _Batch:
        batch = _Batch(items)
        options = (self._options or CallOptions())._replace(cancellation=batch.call._cancellation)

        def run() -> None:
            began = perf_counter()
            batch.results, batch.error = self._pool.map_batch(
                self._function, batch.items, self._spread, self._timeout, options
            )
            batch.seconds = perf_counter() - began

        # A few at a time, whatever max_queue says: they wait there instead of in the caller's hands.
        self._submitter.submit_batch(batch.call, run)
        return batch

    def _finish(self, batch: _Batch) -> list[_Batch]:
        """Learn from a batch; the rest of it is sent again, in as many parts as can run at a time."""
        done = len(batch.results)
        if batch.error is None and done:
            each = batch.seconds / done
            if done == len(batch.items) and batch.seconds < _BATCH_SECONDS:
                self._size = min(_MOST_ITEMS, 2 * self._size, int(_BATCH_SECONDS / each) + 1)
            elif batch.seconds > 2 * _BATCH_SECONDS:
                self._size = max(1, min(self._size, int(_BATCH_SECONDS / each)))
            large = max(_bytes_of(batch.items[0]), _bytes_of(batch.results[0]))
            if large * self._size > _BATCH_BYTES:
                self._size = max(1, _BATCH_BYTES // large)
        rest = [] if batch.error is not None else batch.items[done:]
        size = max(1, -(-len(rest) // self._at_a_time))
        return [self._send(rest[start : start + size]) for start in range(0, len(rest), size)]


def _bytes_of(value: object) -> int:
    """Roughly what a value takes; of what holds others, what it says of itself."""
    return max(getsizeof(value, 0), getattr(value, "nbytes", 0))


def _give_up(under_way: deque[_Batch]) -> None:
    for batch in under_way:
        batch.call.cancel()
