# SPDX-License-Identifier: Apache-2.0
"""The items of a worker's iterator, as the host sees them."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from atoll_worker.references import Lending, RemoteIterator

if TYPE_CHECKING:
    from .lending import HostLending

T = TypeVar("T", covariant=True)


class Stream(RemoteIterator, Generic[T]):
    """The items of a generator function, or of an iterator that a function returned: for ``for`` and ``async for``.

    They are fetched in batches that grow while they are taken quickly, and nothing is made that was not asked for. To
    stop early, ``break`` or ``close()``: the generator over there then runs its ``finally``. What it raises is raised
    here, after the items before it. Each batch has the call's timeout.
    """

    _lending: HostLending

    def __init__(self, lending: Lending, number: int) -> None:
        super().__init__(lending, number)
        self.timeout: float | None = None  # seconds that the next items may take
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

    def _ask(self, method: str, *args: Any) -> Any:
        return self._lending.invoke(self._number, method, args, {}, self.timeout)

    def _ask_async(self, method: str, *args: Any) -> Awaitable[Any]:
        return self._lending.invoke_async(self._number, method, args, {}, self.timeout)

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    if TYPE_CHECKING:

        async def __anext__(self) -> T: ...

    async def take(self, maximum: int) -> tuple[list[T], bool]:
        """The next items, at least one unless there are no more, and whether there are no more.

        What was fetched already is not waited for.

        Args:
            maximum: how many at most.
        """
        try:
            items = [await self.__anext__()]
        except StopAsyncIteration:
            return [], True
        inlet = self._inlet
        while inlet.items and len(items) < maximum:
            items.append(inlet.items.pop())
        return items, inlet.ended and not inlet.items

    def close(self) -> None:
        """Let the generator end now. Idempotent."""
        if self._end():
            self._ask("close")
        self._let_go()

    async def aclose(self) -> None:
        """As ``close``, to be awaited."""
        if self._end():
            await self._ask_async("close")
        self._let_go()

    def _end(self) -> bool:
        """True the first time, if there is something to end over there."""
        needed = not self._closed and not self._inlet.ended and self._lending.worker.alive
        self._closed = True
        self._inlet.ended = True
        self._inlet.items = []
        return needed

    def renew_lock(self) -> None:
        """In a forked child: a thread of the parent may have held it."""
        self._turn = threading.Lock()

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
