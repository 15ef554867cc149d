# SPDX-License-Identifier: Apache-2.0
"""One function of a service, as the host sees it: called, awaited, submitted, mapped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from ..errors import ManifestError
from ..pool import Pool
from .owner import HoldsWorker

if TYPE_CHECKING:
    from concurrent.futures import Future

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
A = TypeVar("A")
B = TypeVar("B")
A_contra = TypeVar("A_contra", contravariant=True)
B_contra = TypeVar("B_contra", contravariant=True)


class _OfOne(Protocol[A_contra, R]):
    """What can be called with one argument."""

    def __call__(self, item: A_contra, /) -> R: ...


class _OfTwo(Protocol[A_contra, B_contra, R]):
    """What can be called with two arguments."""

    def __call__(self, item: A_contra, second: B_contra, /) -> R: ...


# `map` keeps this many calls ahead of the one whose result is taken.
_AHEAD = 4


class RemoteFunction(HoldsWorker, Generic[P, R]):
    """A function that runs in a worker. Call it like a local one.

    What it raises there is raised here: see ``atoll.RemoteError``. Also ``WorkerDied``, ``WorkerStartError``,
    ``CallTimeout``, ``EncodeError``, ``EnvironmentError``, ``FunctionNotFound``, ``ServiceClosed``.
    """

    def __init__(self, pool: Pool, name: str, timeout: float | None) -> None:
        self._pool = pool
        self._call = pool.call
        self._name = name
        self._timeout = timeout

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it and wait for the result."""
        return self._call(self._name, args, kwargs, self._timeout)  # type: ignore[no-any-return]

    def aio(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Call it from asyncio: ``await f.aio(...)``. Cancelling the task stops the worker, and the next call starts
        another."""
        return self._pool.call_async(self._name, args, kwargs, self._timeout)

    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call it in the background.

        Returns:
            a ``concurrent.futures.Future``. It can be cancelled until its call begins.
        """
        from .submitter import submitter_of

        return submitter_of(self._pool).submit(lambda: cast(R, self._call(self._name, args, kwargs, self._timeout)))

    # Through these protocols type checkers match the items with the function's parameters; `Concatenate`, the obvious
    # way, works in pyright only.
    @overload
    def map(self: _OfOne[A, R], items: Iterable[A], /) -> Iterator[R]: ...
    @overload
    def map(self: _OfTwo[A, B, R], items: Iterable[A], second: Iterable[B], /) -> Iterator[R]: ...
    @overload
    def map(
        self, items: Iterable[Any], second: Iterable[Any], third: Iterable[Any], /, *more: Iterable[Any]
    ) -> Iterator[R]: ...
    def map(self, *iterables: Iterable[Any]) -> Iterator[R]:
        """Call it with each item (or, given several iterables, with the items of each), and yield the results in order.

        Lazy: items are taken a few ahead of the results, so endless iterables will do. The first error ends it.
        """
        pending: deque[Future[R]] = deque()
        submit = cast("Callable[..., Future[R]]", self.submit)
        try:
            for items in zip(*iterables, strict=False):  # as the builtin map: the shortest ends it
                pending.append(submit(*items))
                if len(pending) > _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def options(self, *, timeout: float | None) -> RemoteFunction[P, R]:
        """The same function with other options; the original is left as it is.

        Args:
            timeout: seconds a call may take, waiting for its turn included and starting a worker not; None for
                no limit.

        Raises:
            ManifestError: a timeout that is no number above zero.
        """
        return RemoteFunction(self._pool, self._name, check_timeout(timeout))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r}>"


def check_timeout(timeout: float | None) -> float | None:
    """The timeout as given.

    Raises:
        ManifestError: it is no number above zero.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < float("inf"):
        raise ManifestError(f"option timeout: found {timeout!r}, expected seconds above zero, or None for no limit")
    return timeout
