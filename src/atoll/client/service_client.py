# SPDX-License-Identifier: Apache-2.0
"""``ServiceClient`` and ``ServicePool``: calling a ``ServiceBase`` with one object, and getting one answer.

What always holds here: an answer has ``success`` and ``_meta``, whichever way it came; a call is a call of the
service's function ``process`` like any other, in the one pool that the service has. What does not belong here: what an
answer is made of (``atoll_worker.faces.answers``).
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic, perf_counter
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from atoll_worker.faces import answers

from ..errors import (
    AtollError,
    CallCancelled,
    ManifestError,
    RemoteError,
    ServiceClosed,
    ServiceCrashed,
    ServiceFailed,
    WorkerDied,
    WorkerStartError,
)
from ..manifest import load_spec
from ..manifest.sources import MANIFEST_NAMES
from ..pool.options import CallOptions
from ..pool.stream import Stream
from .owner import HoldsWorker, check_seconds
from .plan import split_entry
from .service import Service
from .warm import WarmService, warm_service

if TYPE_CHECKING:
    from ..manifest import ServiceSpec
    from ..pool.status import PoolStatus
    from .submitter import Call

# The function of a ServiceBase.
PROCESS = "process"
# What a call of this package's function ``process`` asks for instead of its result: see atoll_worker.faces.stdio.
_ANSWER = {"_answer": answers.ANSWER}
_PARTS = {"_answer": answers.PARTS}
# Seconds between two looks whether a worker has answered a ping.
_LOOK_AGAIN = 0.002


class ServiceClient(HoldsWorker):
    """Calls a service that is a ``ServiceBase``: one object in, one answer out.

    The first call starts a worker, which stays for the calls after it, and for other clients of the same file; when the
    file changes, the next call has it replaced. A worker makes one call at a time: for several, see ``ServicePool``.

    Args:
        service: a file, a folder with a ``service.yaml``, or ``"package.module[:Class]"``, as for ``atoll.Service``.
        python_executable: the interpreter, with its packages, to run the service with. By default what the service's
            header asks for; without one, this process's interpreter and packages.
        warm: False to start a process for every call, and end it after.
        timeout: seconds a call may take, starting a process not included; None for no limit.
        options: any other of ``atoll.Service``. A client with options has its workers for itself.

    Raises:
        ManifestError: there is no such service, or an option is wrong.
    """

    def __init__(
        self,
        service: str | os.PathLike[str],
        python_executable: str | os.PathLike[str] | None = None,
        *,
        warm: bool = True,
        timeout: float | None = None,
        **options: Any,
    ) -> None:
        source = os.fspath(service)
        if python_executable is not None:
            if "environment" in options:
                raise ManifestError("options python_executable and environment: give one of the two")
            environment = _interpreter(source, python_executable)
            if environment is not None:
                options["environment"] = environment
        if timeout is not None:
            options["timeout"] = timeout
        # Checked here, where it is written, and not at the first call.
        self._spec: ServiceSpec = load_spec(source, **{key: one for key, one in options.items() if key != "host"})
        self._source = _absolute(source)
        self._options = options
        self._is_warm = warm
        self._closed = False
        self._warm: WarmService | None = None

    # -- calls -----------------------------------------------------------------------------------------------

    def call(
        self,
        params: Mapping[str, Any] | None = None,
        timeout: float | EllipsisType | None = ...,
        check_success: bool = True,
    ) -> dict[str, Any]:
        """Call the service, and wait for the answer.

        Args:
            params: what ``process`` gets; nothing is an empty object.
            timeout: seconds for this call; None for no limit.
            check_success: False to have an answer of ``success: false`` returned like any other.

        Returns:
            the result, with ``success`` and ``_meta``. A result that is no object stands under ``result``; so do the
                items of a generator, as a list.

        Raises:
            ServiceFailed: the service raised, or answered ``success: false``. A ValueError.
            ServiceCrashed: its process could not start, or ended. A RuntimeError.
            CallTimeout: it took too long. A TimeoutError.
            EncodeError, QueueFull, CircuitOpen, EnvironmentError, ServiceClosed: as for every call.
        """
        return self._call(_params(params), timeout, check_success, None)

    def _call(
        self,
        params: Mapping[str, Any],
        timeout: float | EllipsisType | None,
        check_success: bool,
        options: CallOptions | None,
    ) -> dict[str, Any]:
        began = perf_counter()
        try:
            with self._running() as service:
                began = perf_counter()
                result = service._pool.call(PROCESS, (params,), _ANSWER, self._seconds(timeout), options)
                if isinstance(result, Stream):
                    with result:
                        result = answers.succeeded(_items(result, options), perf_counter() - began)
        except AtollError as error:
            result = self._answer_of(error, perf_counter() - began, check_success)
        return self._checked(result, check_success)

    async def call_async(
        self,
        params: Mapping[str, Any] | None = None,
        timeout: float | EllipsisType | None = ...,
        check_success: bool = True,
    ) -> dict[str, Any]:
        """As ``call``, from asyncio. Cancelling the task ends the call over there."""
        given = _params(params)
        began = perf_counter()
        service = None
        try:
            service = await self._service_async()
            began = perf_counter()
            result = await service._pool.call_async(PROCESS, (given,), _ANSWER, self._seconds(timeout))
            if isinstance(result, Stream):
                async with result:
                    result = answers.succeeded([item async for item in result], perf_counter() - began)
        except AtollError as error:
            result = self._answer_of(error, perf_counter() - began, check_success)
        finally:
            await self._let_go_async(service)
        return self._checked(result, check_success)

    def call_stream(
        self, params: Mapping[str, Any] | None = None, timeout: float | EllipsisType | None = ...
    ) -> Iterator[Any]:
        """Call a service whose ``process`` is a generator, and yield its items as they come. The result of another
        ``process`` is the only item.

        Args:
            params: as for ``call``.
            timeout: seconds until the next items are there.

        Raises:
            as ``call``, after the items before.
        """
        given = _params(params)
        try:
            with self._running() as service:
                result = service._pool.call(PROCESS, (given,), _PARTS, self._seconds(timeout))
                if not isinstance(result, Stream):
                    yield result
                    return
                with result:
                    yield from result
        except AtollError as error:
            raise self._raised(error) from error

    async def call_stream_async(
        self, params: Mapping[str, Any] | None = None, timeout: float | EllipsisType | None = ...
    ) -> AsyncIterator[Any]:
        """As ``call_stream``, for ``async for``."""
        given = _params(params)
        service = None
        try:
            service = await self._service_async()
            result = await service._pool.call_async(PROCESS, (given,), _PARTS, self._seconds(timeout))
            if not isinstance(result, Stream):
                yield result
                return
            async with result:
                async for item in result:
                    yield item
        except AtollError as error:
            raise self._raised(error) from error
        finally:
            await self._let_go_async(service)

    def submit(
        self,
        params: Mapping[str, Any] | None = None,
        timeout: float | EllipsisType | None = ...,
        check_success: bool = True,
    ) -> Call[dict[str, Any]]:
        """As ``call``, in the background.

        Returns:
            a ``concurrent.futures.Future`` whose ``cancel()`` also ends a call that runs.

        Raises:
            QueueFull: ``max_queue`` calls wait already.
        """
        from .submitter import Call, submitter_of

        given = _params(params)
        if not self._is_warm:
            raise AtollError("a client with warm=False starts a process for every call: use threads around call()")
        pool = self._service()._pool
        future: Call[dict[str, Any]] = Call()
        options = CallOptions(cancellation=future._cancellation)
        submitter_of(pool).submit(future, lambda: self._call(given, timeout, check_success, options), PROCESS)
        return future

    def map(
        self, items: Iterable[Mapping[str, Any]], timeout: float | EllipsisType | None = ..., check_success: bool = True
    ) -> Iterator[dict[str, Any]]:
        """Call the service with each of many objects, on all its workers, and yield the answers in order.

        Lazy: no more calls are under way than two for each worker. The first error ends it, and the calls after it.

        Args:
            items: the objects.
            timeout, check_success: as for ``call``.
        """
        waiting: deque[Call[dict[str, Any]]] = deque()
        at_a_time = 2 * self._spec.workers * self._spec.concurrency
        try:
            for item in items:
                waiting.append(self.submit(item, timeout, check_success))
                if len(waiting) >= at_a_time:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for call in waiting:
                call.cancel()

    # -- its life --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Have the worker ready, so that the first call need not wait for it.

        Raises:
            ServiceCrashed: it cannot start.
            EnvironmentError: its environment cannot be had.
        """
        try:
            with self._running() as service:
                service.start()
        except AtollError as error:
            raise self._raised(error) from error

    def health(self, timeout: float = 5.0) -> dict[str, Any]:
        """Whether the service can be called: it is started if need be, and every worker is asked for a sign of life,
        which it gives also in the middle of a call.

        Args:
            timeout: seconds in which a worker must answer.

        Returns:
            ``status`` (``"healthy"`` or ``"unhealthy"``), ``service``, ``pid`` (of a worker, or None), ``workers``,
                ``in_flight`` and ``queue`` (calls), ``restarts``, ``uptime_seconds`` (of the oldest worker); where it
                is not healthy also ``error``.
        """
        try:
            with self._running() as service:
                service.start()
                silent = _silent_workers(service, timeout)
                status = service.status()
        except AtollError as error:
            found = dict.fromkeys(("workers", "in_flight", "queue", "restarts", "uptime_seconds"), 0)
            return {"status": "unhealthy", "service": self.name, "pid": None, **found, "error": str(error)}
        ready = [one for one in status.workers if one.state == "ready" and one.pid not in silent]
        answer: dict[str, Any] = {
            "status": "healthy" if ready else "unhealthy",
            "service": self.name,
            "pid": ready[0].pid if ready else None,
            "workers": len(ready),
            "in_flight": status.in_flight,
            "queue": status.queue,
            "restarts": status.restarts,
            "uptime_seconds": max((one.age for one in ready), default=0.0),
        }
        if not ready:
            pids = ", ".join(map(str, silent))
            answer["error"] = f"no worker gave a sign of life within {timeout:g} seconds (asked: pid {pids or 'none'})"
        return answer

    def status(self) -> PoolStatus:
        """How its workers are now; see ``atoll.Service.status``.

        Raises:
            AtollError: it has none between calls (``warm=False``).
        """
        if not self._is_warm:
            raise AtollError("a client with warm=False has no workers between calls")
        return self._service().status()

    @property
    def name(self) -> str:
        """Name of the service."""
        return self._spec.name

    @property
    def pid(self) -> int | None:
        """Process id of a present worker; None while there is none."""
        return None if self._warm is None else self._warm.service.pid

    def close(self) -> None:
        """Stop the worker, unless another client of the same service, that is not closed, shares it. Idempotent."""
        self._closed = True
        warm, self._warm = self._warm, None
        if warm is not None:
            warm.leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<atoll.{type(self).__name__} {self.name!r}>"

    @classmethod
    def discover(cls, folder: str | os.PathLike[str], **options: Any) -> dict[str, Self]:
        """A client for every service of a folder that has a function ``process``: of its ``.py`` files, and of its
        folders with a ``service.yaml``. They are read, not run; none is started.

        Args:
            folder: where to look, not in folders of folders.
            options: as of this class.

        Returns:
            the clients by the names of their services. What cannot be read is left out, and logged as a warning.

        Raises:
            ManifestError: there is no such folder, or two services in it have the same name.
        """
        from .discovery import has_process, sources_in

        found: dict[str, Self] = {}
        for source in sources_in(os.fspath(folder)):
            if not has_process(source):
                continue
            client = cls(source, **options)
            other = found.get(client.name)
            if other is not None:
                raise ManifestError(
                    f"{other._source} and {source} are both called {client.name!r}; name one of them with "
                    "`name:` in a service.yaml, or in the [tool.atoll] table of its header"
                )
            found[client.name] = client
        return found

    # -- its service -----------------------------------------------------------------------------------------

    def _service(self) -> Service:
        """The service, as its file is now."""
        return self._shared().current()

    def _shared(self) -> WarmService:
        if self._closed:
            raise ServiceClosed(f"this client of {self.name!r} was closed")
        warm = self._warm
        if warm is None or warm.is_closed:
            warm = self._warm = warm_service(self, self._source, self._options, self._spec)
        return warm

    @contextmanager
    def _running(self) -> Iterator[Service]:
        if self._is_warm:
            yield self._service()
            return
        service = self._cold()
        try:
            yield service
        finally:
            service.close()

    def _cold(self) -> Service:
        if self._closed:
            raise ServiceClosed(f"this client of {self.name!r} was closed")
        return Service(self._source, **self._options)

    async def _service_async(self) -> Service:
        if not self._is_warm:
            return self._cold()
        warm = self._shared()
        if warm.is_current():
            return warm.service
        import asyncio

        return await asyncio.to_thread(warm.current)

    async def _let_go_async(self, service: Service | None) -> None:
        if service is not None and not self._is_warm:
            import asyncio

            await asyncio.shield(asyncio.to_thread(service.close))

    def _seconds(self, timeout: float | EllipsisType | None) -> float | None:
        return self._spec.timeout if isinstance(timeout, EllipsisType) else check_seconds("timeout", timeout)

    # -- answers ---------------------------------------------------------------------------------------------

    def _checked(self, answer: Any, check_success: bool) -> dict[str, Any]:
        if check_success and not answers.is_success(answer):
            raise ServiceFailed(self.name, answer)
        return answer  # type: ignore[no-any-return]

    def _answer_of(self, error: AtollError, seconds: float, check_success: bool) -> dict[str, Any]:
        """The answer that an error of the service's stands for; raises what is none."""
        raised = self._raised(error, seconds)
        if isinstance(raised, ServiceFailed) and not check_success:
            return dict(raised.answer)
        if raised is error:
            raise error
        raise raised from error

    def _raised(self, error: AtollError, seconds: float = 0.0) -> AtollError:
        """What to raise for what a call raised."""
        if isinstance(error, WorkerDied | WorkerStartError):
            return ServiceCrashed(str(error))
        if not isinstance(error, RemoteError):
            return error
        message = str(error)
        if isinstance(error, TypeError) and "'_answer'" in message:
            return ManifestError(
                f"{self._source}: its function {PROCESS!r} is not that of a ServiceBase; call it with atoll.Service"
            )
        kind, context = type(error).__qualname__, answers.context_of(error)
        return ServiceFailed(self.name, answers.failed(message, kind, context, error.remote_traceback, seconds))


class ServicePool(ServiceClient):
    """A ``ServiceClient`` with several workers of its own, each of which makes one call at a time.

    Args:
        service: as for ``ServiceClient``.
        workers: processes that run the service, each with a copy of what it loads.
        python_executable: as for ``ServiceClient``.
        timeout: as for ``ServiceClient``; waiting for a worker counts.
        options: any other of ``atoll.Service``, such as ``max_queue``.
    """

    def __init__(
        self,
        service: str | os.PathLike[str],
        workers: int = 4,
        python_executable: str | os.PathLike[str] | None = None,
        *,
        timeout: float | None = None,
        **options: Any,
    ) -> None:
        if "warm" in options:
            raise ManifestError("option warm of atoll.ServicePool: its workers are always warm")
        super().__init__(service, python_executable, timeout=timeout, workers=workers, **options)

    def scale(self, min: int, max: int, idle: float | None = None) -> None:
        """From now on keep between ``min`` and ``max`` workers; see ``atoll.Service.scale``."""
        self._service().scale(min, max, idle)


def _items(stream: Stream[Any], options: CallOptions | None) -> list[Any]:
    """All items, unless the call is given up between two of them.

    Raises:
        CallCancelled: it is.
    """
    items = []
    cancellation = None if options is None else options.cancellation
    for item in stream:
        if cancellation is not None and cancellation.requested:
            raise CallCancelled("the call was cancelled between two items")
        items.append(item)
    return items


def _params(params: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise TypeError(f"params: found {params!r:.100}, expected an object: a mapping of names to values")
    return params if type(params) is dict else dict(params)


def _absolute(source: str) -> str:
    """A source that means the same wherever this process goes."""
    place, class_name = split_entry(source)
    path = os.path.abspath(os.path.expanduser(place))
    if not os.path.isfile(path) and not any(os.path.isfile(os.path.join(path, one)) for one in MANIFEST_NAMES):
        return source  # a module, which a folder may be too
    return path if class_name is None else f"{path}:{class_name}"


def _interpreter(source: str, python: str | os.PathLike[str]) -> str | None:
    """The interpreter that was asked for, as an option of a service; None if it is what there would be without.

    Raises:
        ManifestError: there is no such program.
    """
    asked = os.fspath(python)
    path = os.path.expanduser(asked)
    if os.sep not in path:
        path = shutil.which(path) or path
    if not (asked and os.access(path, os.X_OK)):  # a folder may be that of a virtual environment
        raise ManifestError(
            f"option python_executable: found {asked!r}, expected the path of an interpreter, or the name of one on "
            "PATH; there is no such program"
        )
    path = os.path.abspath(path)
    if path == os.path.abspath(sys.executable):
        spec = load_spec(source)
        if not (spec.environment or spec.dependencies or spec.python or spec.lock):
            return None  # this process's packages too, wherever it has them from
    return path


def _silent_workers(service: Service, timeout: float) -> list[int]:
    """Process ids of those workers that give no sign of life within that many seconds."""
    workers = [one for one in service._pool.workers if one.alive]
    asked = monotonic()
    for worker in workers:
        worker.ping()
    pause = threading.Event()
    while True:
        silent = [one for one in workers if one.alive and (one.pong_at is None or one.pong_at < asked)]
        if not silent or monotonic() > asked + timeout:
            return [one.pid for one in silent]
        pause.wait(_LOOK_AGAIN)
