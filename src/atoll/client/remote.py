# SPDX-License-Identifier: Apache-2.0
"""One function of a service, as the host sees it: called, awaited, submitted, mapped."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Generic, Never, ParamSpec, Protocol, TypeVar, cast, overload

from ..errors import ManifestError
from ..pool import Pool
from ..pool.options import CallOptions
from ..pool.stream import Stream
from .owner import HoldsWorker, check_seconds

if TYPE_CHECKING:
    from .submitter import Call

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
T = TypeVar("T", covariant=True)
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


class PendingStream(Coroutine[Any, Any, "Stream[T]"], Generic[T]):
    """What ``aio`` gives for a generator function: ``async for item in f.aio()``; awaited, it is the stream itself.

    Also a coroutine, since before a service has started it is not known which of its functions are generators.
    """

    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Stream[T]]:
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        """As of any coroutine."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """As of any coroutine."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """As of any coroutine."""
        self._coroutine.close()

    async def __aiter__(self) -> AsyncGenerator[T, None]:
        stream = await self._coroutine
        if not isinstance(stream, Stream):
            raise TypeError(f"the function is no generator function: it returned {stream!r:.100}, so await it instead")
        async with stream:
            async for item in stream:
                yield item


class RemoteFunction(HoldsWorker, Generic[P, R]):
    """A function that runs in a worker. Call it like a local one.

    What it raises there is raised here: see ``atoll.RemoteError``. Also ``WorkerDied``, ``WorkerStartError``,
    ``CallTimeout``, ``CircuitOpen``, ``QueueFull``, ``EncodeError``, ``EnvironmentError``, ``FunctionNotFound``,
    ``ServiceClosed``.

    A coroutine function is run to its end over there; a generator function gives an ``atoll.Stream``. A callable among
    the arguments is called back, an iterator is read as it is consumed, and ``atoll.ref(x)`` stays here, for as long as
    the worker keeps what it got.
    """

    def __init__(
        self,
        pool: Pool,
        name: str,
        timeout: float | None,
        options: CallOptions | None = None,
        streams: bool | None = None,
    ) -> None:
        self._pool = pool
        self._call = pool.call
        self._name = name
        self._timeout = timeout
        self._options = options
        self._streams = streams  # whether it is a generator function; None if that is not known

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it and wait for the result."""
        return self._call(self._name, args, kwargs, self._timeout, self._options)  # type: ignore[no-any-return]

    # First, so that what returns Any, as a service's functions do, gives Any here too: nothing else is taken for Never.
    @overload
    def aio(self: RemoteFunction[P, Never], /, *args: P.args, **kwargs: P.kwargs) -> Any: ...
    @overload
    def aio(self: RemoteFunction[P, Stream[T]], /, *args: P.args, **kwargs: P.kwargs) -> PendingStream[T]: ...
    @overload
    def aio(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...
    def aio(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call it from asyncio: ``await f.aio(...)``, or ``async for item in f.aio(...)`` for a generator function.

        Cancelling the task ends the call over there.
        """
        coroutine = self._pool.call_async(self._name, args, kwargs, self._timeout, self._options)
        if self._streams is None:
            worker = next(iter(self._pool.workers), None)
            if worker is not None:
                self._streams = self._name in worker.streams
        return coroutine if self._streams is False else PendingStream(coroutine)

    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Call it in the background. It waits for its turn in the same queue as every call, and its timeout counts from
        when that has come.

        Returns:
            a ``concurrent.futures.Future`` whose ``cancel()`` also ends a call that runs.

        Raises:
            QueueFull: ``max_queue`` calls wait already.
        """
        from .submitter import Call, submitter_of

        call: Call[R] = Call()
        options = (self._options or CallOptions())._replace(cancellation=call._cancellation)
        submitter_of(self._pool).submit(
            call, lambda: cast(R, self._call(self._name, args, kwargs, self._timeout, options)), self._name
        )
        return call

    # Through these protocols type checkers match the items with the function's parameters; `Concatenate`, the obvious
    # way, works in pyright only.
    @overload
    def map(self: _OfOne[A, R], items: Iterable[A], /, *, ordered: bool = True) -> Iterator[R]: ...
    @overload
    def map(
        self: _OfTwo[A, B, R], items: Iterable[A], second: Iterable[B], /, *, ordered: bool = True
    ) -> Iterator[R]: ...
    @overload
    def map(
        self,
        items: Iterable[Any],
        second: Iterable[Any],
        third: Iterable[Any],
        /,
        *more: Iterable[Any],
        ordered: bool = True,
    ) -> Iterator[R]: ...
    def map(self, *iterables: Iterable[Any], ordered: bool = True) -> Iterator[Any]:
        """Call it with each item (or, given several iterables, with the items of each), and yield the results.

        Lazy: items are taken a few batches ahead of the results, so endless iterables will do. The calls run on all
        workers, in batches that adapt to how long an item takes. The first error ends it, after the results before it.

        Args:
            iterables: the arguments.
            ordered: False to have the results as they are ready.
        """
        from .mapping import Mapping

        mapping = Mapping(self._pool, self._name, iterables, self._timeout, self._options)
        return mapping.in_order() if ordered else mapping.as_they_come()

    def options(
        self,
        *,
        timeout: float | EllipsisType | None = ...,
        retries: int | None = None,
        on_progress: Callable[[float, float | None, str | None], object] | None = None,
        writable: bool | None = None,
    ) -> RemoteFunction[P, R]:
        """The same function with other options; the original is left as it is, and what is not given stays.

        Args:
            timeout: seconds a call may take, waiting for its turn included and starting a worker not; None for
                no limit.
            retries: how often to call again when the worker died in the middle; only for a function that is marked as
                idempotent.
            on_progress: called with ``done, total, message`` whenever the function calls ``atoll_worker.progress``, on
                the thread that waits for the call.
            writable: whether arrays of the result are copied into memory of this process and can be written to, instead
                of being read-only views of the worker's.

        Raises:
            ManifestError: a wrong value.
        """
        options = self._options or CallOptions()
        if retries is not None:
            if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
                raise ManifestError(f"option retries: found {retries!r}, expected a number of calls, 0 or more")
            options = options._replace(retries=retries)
        if on_progress is not None:
            if not callable(on_progress):
                raise ManifestError(f"option on_progress: found {on_progress!r}, expected something to call")
            options = options._replace(on_progress=on_progress)
        if writable is not None:
            if not isinstance(writable, bool):
                raise ManifestError(f"option writable: found {writable!r}, expected true or false")
            options = options._replace(writable=writable)
        return RemoteFunction(
            self._pool,
            self._name,
            self._timeout if isinstance(timeout, EllipsisType) else check_seconds("timeout", timeout),
            None if options == CallOptions() else options,
            self._streams,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r}>"
