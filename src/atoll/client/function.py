# SPDX-License-Identifier: Apache-2.0
"""``@atoll.function``: one function, with its own dependencies, called like a local one."""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, overload

from ..manifest import function_spec
from ..pool import Pool
from ..pool.settings import settings_of
from ..pool.stream import Stream
from .owner import PoolOwner, check_objects
from .remote import RemoteFunction

if TYPE_CHECKING:
    from ..manifest import Breaker, Recycle, Restart, Sandbox, ServiceSpec
    from ..pool.worker import WorkerPlan
    from .source import FunctionSource

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
T = TypeVar("T")


class Function(RemoteFunction[P, R], PoolOwner, Generic[P, R]):
    """A function that runs in a worker of its own; made by ``atoll.function``.

    Its environment is built, and its worker started, by the first call.
    """

    def __init__(
        self,
        local: Callable[P, R],
        source: FunctionSource,
        spec: ServiceSpec,
        objects: Mapping[str, object],
        idempotent: bool,
    ) -> None:
        def plan() -> WorkerPlan:
            from .plan import plan_function

            return plan_function(spec, source, idempotent)

        super().__init__(
            Pool(spec.name, plan, settings_of(spec, objects)), source.name, spec.timeout, streams=source.is_stream
        )
        self._local = local
        self._spec = spec
        functools.update_wrapper(self, local)

    @property
    def local(self) -> Callable[P, R]:
        """The plain function, to call in this process."""
        return self._local


class _Decorator(Protocol):
    """What ``atoll.function(...)`` with options gives."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> Function[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, Iterator[T] | AsyncIterator[T]], /) -> Function[P, Stream[T]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Function[P, R]: ...


@overload
def function(function: Callable[P, Coroutine[Any, Any, T]], /) -> Function[P, T]: ...
@overload
def function(function: Callable[P, Iterator[T] | AsyncIterator[T]], /) -> Function[P, Stream[T]]: ...
@overload
def function(function: Callable[P, R], /) -> Function[P, R]: ...
@overload
def function(
    *,
    name: str | None = None,
    dependencies: Sequence[str] = (),
    python: str | None = None,
    environment: str | os.PathLike[str] | None = None,
    env_vars: Mapping[str, str] | None = None,
    start_timeout: float = 60.0,
    timeout: float | None = None,
    workers: int = 1,
    concurrency: int = 1,
    max_queue: int = 100_000,
    restart: Restart | Mapping[str, Any] | None = None,
    breaker: Breaker | Mapping[str, Any] | None = None,
    recycle: Recycle | Mapping[str, Any] | None = None,
    health_interval: float | None = 10.0,
    preload: Sequence[str] = (),
    memory: int | str | None = None,
    memory_budget: int | str | None = None,
    cpus: float | None = None,
    nice: int | None = None,
    open_files: int | None = None,
    sandbox: Sandbox | Mapping[str, Any] | None = None,
    host: Mapping[str, object] | None = None,
    idempotent: bool = False,
) -> _Decorator: ...
def function(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Run a function in a process of its own, with its own packages and interpreter.

    The function's text is shipped, so it uses its parameters and what it imports and defines itself; anything else is
    refused here, by name. Without ``dependencies``, ``python`` and ``environment`` the worker has this process's
    interpreter and packages.

    Args:
        name: of the service, in messages and logs; the function's name if not given.
        dependencies: requirements, such as ``"numpy==1.26.4"``.
        python: a version (``"3.12"``), a specifier (``">=3.11"``) or the path of an interpreter.
        environment: path of an existing interpreter or virtual environment, of a ``requirements.txt``, or of a folder
            with ``pyproject.toml`` and ``uv.lock``.
        env_vars: environment variables to set for the worker.
        start_timeout: seconds a worker may take until it is ready; building the environment does not count.
        timeout: seconds a call may take; None for no limit.
        workers: processes that run the function, each with a copy of what it loads.
        concurrency: calls that one worker runs at the same time, on threads.
        max_queue: calls that may wait for a worker; one more is refused at once.
        restart: how a worker that ended unexpectedly is replaced: an ``atoll.Restart``, or a mapping of its fields.
        breaker: when to stop starting workers that only fail: an ``atoll.Breaker``, or a mapping of its fields.
        recycle: when to replace a worker that works: an ``atoll.Recycle``, or a mapping of its fields.
        health_interval: seconds between two looks whether a worker still answers; None for none.
        preload: modules to import once, in a process that new workers are forked from.
        memory: how much a worker may use: bytes, or text such as ``"2GB"`` or ``"512MiB"``; None for no limit.
        memory_budget: shared memory that a worker may have for arrays that it returns: bytes, or text such as
            ``"2GB"``; None for a quarter of the machine's memory.
        cpus: processors a worker may use, such as 0.5 or 2; None for no limit.
        nice: scheduling priority of a worker, from -20 (first) to 19 (last); None for this process's own.
        open_files: files and sockets a worker may have open at the same time; None for this process's own limit.
        sandbox: what a worker may reach, an ``atoll.Sandbox`` or a mapping of its fields; None for no sandbox.
        host: objects of this process that the function may call, by name: ``from atoll_worker import host``, inside of
            it, and ``host.NAME.method(...)``.
        idempotent: calling it twice does no more than calling it once, so ``.options(retries=...)`` may be asked for.

    Raises:
        FunctionSourceError: the function cannot be shipped; the message names why.
        ManifestError: a wrong option.
    """
    if function is None:
        return lambda decorated: _make(decorated, options)
    return _make(function, options)


def _make(local: Callable[..., Any], options: dict[str, Any]) -> Function[..., Any]:
    from .source import source_of  # brings ast and inspect

    source = source_of(local)
    objects = check_objects(options.pop("host", None))
    idempotent = bool(options.pop("idempotent", False))
    # Only for health_interval does None differ from the default: no looks at all.
    given = {key: value for key, value in options.items() if value is not None or key == "health_interval"}
    name = given.pop("name", source.name if local.__name__ == "<lambda>" else local.__name__)
    return Function(local, source, function_spec(name, **given), objects, idempotent)
