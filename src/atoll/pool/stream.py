# SPDX-License-Identifier: Apache-2.0
"""The items of a worker's iterator, as the host sees them."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from atoll_worker.references import ITERATOR, Lending, Proxy
from atoll_worker.streams import Inlet

if TYPE_CHECKING:
    from .lending import HostLending

T = TypeVar("T", covariant=True)


class Stream(Proxy, Generic[T]):
    """The items of a generator function, or of an iterator that a function returned: for ``for`` and ``async for``.

    They are fetched in batches that grow while they are taken quickly, and nothing is made that was not asked for. To
    stop early, ``break`` or ``close()``: the generator over there then runs its ``finally``. What it raises is raised
    here, after the items before it. Each batch has the call's timeout.
    """

    _kind = ITERATOR
    _lending: HostLending

    def __init__(self, lending: Lending, number: int) -> None:
        super().__init__(lending, number)
        self.timeout: float | None = None  # seconds that the next items may take
        self._inlet = Inlet()
        self._turn = threading.Lock()
        self._closed = False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        inlet = self._inlet
        if inlet.items:
            try:
                return inlet.items.pop()  # type: ignore[no-any-return]
            except IndexError:  # another thread took it
                pass
        with self._turn:
            return inlet.next(self._fetch)  # type: ignore[no-any-return]

    def _fetch(self, maximum: int) -> Any:
        batch = self._lending.invoke(self._number, "take", (maximum,), {}, self.timeout)
        if batch[1]:
            self._let_go()  # it has ended over there
        return batch

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        inlet = self._inlet
        while not inlet.items:
            if inlet.ended:
                raise StopAsyncIteration
            try:
                maximum = inlet.appetite()
                batch = await self._lending.invoke_async(self._number, "take", (maximum,), {}, self.timeout)
                inlet.arrived(batch)
                if batch[1]:
                    self._let_go()
            except BaseException:
                inlet.ended = True
                raise
        return inlet.items.pop()  # type: ignore[no-any-return]

    def close(self) -> None:
        """Let the generator end now. Idempotent."""
        if self._end():
            self._lending.invoke(self._number, "close", (), {}, self.timeout)

    async def aclose(self) -> None:
        """As ``close``, to be awaited."""
        if self._end():
            await self._lending.invoke_async(self._number, "close", (), {}, self.timeout)

    def _end(self) -> bool:
        """True the first time, if there is something to end over there."""
        needed = not self._closed and not self._inlet.ended and self._lending.worker.alive
        self._closed = True
        self._inlet.ended = True
        self._inlet.items = []
        return needed

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Stream[T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Stream from {self._lending.whose}{', ended' if self._inlet.ended else ''}>"
