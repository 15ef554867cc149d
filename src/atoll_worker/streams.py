# SPDX-License-Identifier: Apache-2.0
"""Iterators across the boundary: pulled by the side that consumes, in batches that grow with its appetite.

Back-pressure needs no rule of its own: nothing is produced that was not asked for. An ``Outlet`` stands where the
iterator lives and hands out a batch; an ``Inlet`` stands where it is consumed and asks for the next one. A batch ends
as soon as it has taken ``BATCH_SECONDS``, and grows only while items come quickly: a slow iterator's come one by one,
and a quick one's by the thousand.

What does not belong here: how a batch crosses.
"""

from __future__ import annotations

from _thread import allocate_lock
from time import perf_counter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, List, Optional, Tuple

    from .completion import OwnLoop

BATCH_SECONDS = 0.001
BATCH_BYTES = 1 << 18
MAX_BATCH = 4096
# A batch is at most this part of the items that came quickly in a row: what comes in bursts is not kept waiting for the
# next burst, but for a sixteenth of one, once.
_TRUST = 16
# A consumer that takes longer than this for an item, in seconds, gets them singly: it is not worth running ahead of it.
_SLOW_CONSUMER = 0.0005

_SMALL = frozenset((int, float, bool, type(None), complex))


def is_iterator(cls: type) -> bool:
    """Whether objects of a class are iterators, asynchronous ones included."""
    return (hasattr(cls, "__next__") and hasattr(cls, "__iter__")) or (
        hasattr(cls, "__anext__") and hasattr(cls, "__aiter__")
    )


class Outlet:
    """Hands out an iterator's items in batches."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator
        self._raised: Optional[BaseException] = None
        self._lock = allocate_lock()
        self._closed = False
        self._quick = 0  # items that came quickly in a row
        self._loop: Optional[OwnLoop] = None  # that the iterator runs on, if it is asynchronous

    def take(self, maximum: int) -> Any:
        """The next items, at least one unless it has ended, and whether it has ended.

        Raises:
            what the iterator raised, once the items before it were handed out.
        """
        if not self._lock.acquire(False):
            raise ValueError("this iterator is being advanced already, by another thread")
        try:
            if self._raised is not None:
                raised, self._raised = self._raised, None
                self._closed = True
                raise raised
            if self._closed:
                return [], True
            if hasattr(type(self._iterator), "__anext__"):
                return self._own_loop().complete(self._take_async(maximum))
            return self._take(maximum)
        finally:
            if self._closed and self._loop is not None:
                self._loop.close()
            self._lock.release()

    def _own_loop(self) -> OwnLoop:
        if self._loop is None:
            from .completion import OwnLoop

            self._loop = OwnLoop()
        return self._loop

    def __del__(self) -> None:
        if self._loop is not None:
            self._loop.close()

    def _learn(self, items: int, began: float) -> None:
        """Whether the last items came quickly."""
        took = perf_counter() - began
        if took > 2 * BATCH_SECONDS or (took > BATCH_SECONDS and items < 8):
            self._quick = 0
        else:
            self._quick += items

    def _take(self, maximum: int) -> Tuple[List[Any], bool]:
        items: List[Any] = []
        append = items.append
        began = perf_counter()
        until = began + BATCH_SECONDS
        maximum = min(maximum, 1 + self._quick // _TRUST)
        size = 0
        try:
            for item in self._iterator:
                append(item)
                if item.__class__ not in _SMALL:
                    size += size_of(item)
                if len(items) >= maximum or perf_counter() > until or size > BATCH_BYTES:
                    self._learn(len(items), began)
                    return items, False
        except BaseException as error:
            return self._ended_by(error, items)
        self._closed = True
        return items, True

    async def _take_async(self, maximum: int) -> Tuple[List[Any], bool]:
        items: List[Any] = []
        began = perf_counter()
        until = began + BATCH_SECONDS
        maximum = min(maximum, 1 + self._quick // _TRUST)
        size = 0
        try:
            async for item in self._iterator:
                items.append(item)
                size += size_of(item)
                if len(items) >= maximum or perf_counter() > until or size > BATCH_BYTES:
                    self._learn(len(items), began)
                    return items, False
        except BaseException as error:
            return self._ended_by(error, items)
        self._closed = True
        return items, True

    def _ended_by(self, error: BaseException, items: List[Any]) -> Tuple[List[Any], bool]:
        if not items or not isinstance(error, Exception):
            self._closed = True
            raise error
        self._raised = error  # after the items that came before it
        return items, False

    def close(self) -> None:
        """Let the iterator end now: a generator runs its ``finally``."""
        self._closed = True
        self._raised = None
        if hasattr(type(self._iterator), "aclose"):
            loop = self._own_loop()
            loop.complete(self._iterator.aclose())
            loop.close()
        elif hasattr(type(self._iterator), "close"):
            self._iterator.close()


def size_of(item: Any, depth: int = 3) -> int:
    """About how many bytes an item takes on the wire; of long containers, as if all were like the first ones."""
    cls = item.__class__
    if cls in _SMALL:
        return 8
    if cls is str or cls is bytes or cls is bytearray:
        return len(item)
    if depth and (cls is dict or cls is list or cls is tuple):
        parts = list(item.values() if cls is dict else item)
        some = parts[:16]
        return 16 + sum([size_of(part, depth - 1) for part in some]) * len(parts) // (len(some) or 1)
    try:
        return 64 + int(getattr(item, "nbytes", 0))
    except Exception:
        return 64


class Inlet:
    """Asks for batches, and gives out their items one by one.

    Args:
        fetch: how many at most -> (items, ended); see ``Outlet.take``.
    """

    __slots__ = ("_appetite", "_asked", "_fetched_at", "ended", "items")

    def __init__(self) -> None:
        self.items: List[Any] = []  # of the present batch, last first
        self.ended = False
        self._appetite = 1
        self._asked = 0
        self._fetched_at = 0.0

    def appetite(self) -> int:
        """How many items to ask for now: more each time, while the consumer takes them quickly."""
        if self._asked:
            each = (perf_counter() - self._fetched_at) / self._asked
            self._appetite = (
                max(1, self._appetite // 2) if each > _SLOW_CONSUMER else min(MAX_BATCH, self._appetite * 2)
            )
        return self._appetite

    def arrived(self, batch: Any) -> None:
        """Take in what was fetched.

        Raises:
            ValueError: it is not what an ``Outlet`` gives.
        """
        items, ended = batch
        if type(items) is not list or (not items and not ended):
            raise ValueError("a batch without items that is not the last one")
        self._asked = len(items)
        self._fetched_at = perf_counter()
        if len(items) < self._appetite:
            self._appetite = max(1, len(items))  # the producer is slow: none is to wait for many others
        items.reverse()
        self.items = items
        self.ended = bool(ended)

    def next(self, fetch: Callable[[int], Any]) -> Any:
        """The next item.

        Args:
            fetch: how many at most -> (items, ended); see ``Outlet.take``.

        Raises:
            StopIteration: there are no more.
        """
        while not self.items:
            if self.ended:
                raise StopIteration
            try:
                self.arrived(fetch(self.appetite()))
            except BaseException:
                self.ended = True
                raise
        return self.items.pop()
