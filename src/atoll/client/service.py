# SPDX-License-Identifier: Apache-2.0
"""``atoll.Service``: the functions of a file, folder or module, in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ..manifest import load_spec
from ..pool import Pool
from ..pool.endings import not_found
from ..pool.settings import settings_of
from .owner import PoolOwner, check_objects
from .remote import RemoteFunction

if TYPE_CHECKING:
    from ..manifest import Breaker, Recycle, Restart, Sandbox
    from ..pool.worker import WorkerPlan


class FunctionInfo(NamedTuple):
    """What a service says of one of its functions.

    Attributes:
        signature: as it was written, such as ``(image, threshold: float = 0.5) -> dict``.
        doc: its docstring, or an empty string.
        parameters: JSON Schema (2020-12) of an object that holds the arguments by name.
    """

    signature: str
    doc: str
    parameters: Mapping[str, Any]


class Service(PoolOwner):
    """A service: its exposed functions are attributes.

    The first call, ``start()`` or ``with`` builds its environment if need be and starts its worker.

    Args:
        source: a file with an optional PEP 723 header; a folder with a ``service.yaml``; or
            ``"package.module[:Class]"``.
        name: in messages and logs; by default taken from the source.
        dependencies: requirements, such as ``"numpy==1.26.4"``.
        python: a version (``"3.12"``), a specifier (``">=3.11"``) or the path of an interpreter.
        environment: path of an existing interpreter or virtual environment, of a ``requirements.txt``, or of a folder
            with ``pyproject.toml`` and ``uv.lock``.
        env_vars: environment variables to set for the worker.
        start_timeout: seconds a worker may take until it is ready; building the environment does not count.
        timeout: seconds a call may take; None for no limit.
        workers: processes that run the service, each with a copy of what it loads.
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
        host: objects of this process that the service may call, by name: there, ``from atoll_worker import host`` and
            ``host.NAME.method(...)``. Their public methods are called on the thread that waits for the call.

    What is given here goes before what the source says.

    Raises:
        ManifestError: the source or an option is wrong.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        dependencies: Sequence[str] | None = None,
        python: str | None = None,
        environment: str | os.PathLike[str] | None = None,
        env_vars: Mapping[str, str] | None = None,
        start_timeout: float | None = None,
        timeout: float | None = None,
        workers: int | None = None,
        concurrency: int | None = None,
        max_queue: int | None = None,
        restart: Restart | Mapping[str, Any] | None = None,
        breaker: Breaker | Mapping[str, Any] | None = None,
        recycle: Recycle | Mapping[str, Any] | None = None,
        health_interval: float | EllipsisType | None = ...,
        preload: Sequence[str] | None = None,
        memory: int | str | None = None,
        memory_budget: int | str | None = None,
        cpus: float | None = None,
        nice: int | None = None,
        open_files: int | None = None,
        sandbox: Sandbox | Mapping[str, Any] | None = None,
        host: Mapping[str, object] | None = None,
    ) -> None:
        options: dict[str, Any] = {
            "name": name,
            "dependencies": dependencies,
            "python": python,
            "environment": environment,
            "env_vars": env_vars,
            "start_timeout": start_timeout,
            "timeout": timeout,
            "workers": workers,
            "concurrency": concurrency,
            "max_queue": max_queue,
            "restart": restart,
            "breaker": breaker,
            "recycle": recycle,
            "preload": preload,
            "memory": memory,
            "memory_budget": memory_budget,
            "cpus": cpus,
            "nice": nice,
            "open_files": open_files,
            "sandbox": sandbox,
        }
        given = {key: value for key, value in options.items() if value is not None}
        if health_interval is not ...:  # None is a value here: no looks at all
            given["health_interval"] = health_interval
        self._spec = spec = load_spec(source, **given)
        planned = False

        def plan() -> WorkerPlan:
            nonlocal planned
            from .plan import plan_service

            # For a reload the source is read again: it may ask for other packages by now.
            current = load_spec(source, **given) if planned else spec
            planned = True
            return plan_service(current)

        self._pool = Pool(spec.name, plan, settings_of(spec, check_objects(host)))
        self._functions: dict[str, FunctionInfo] | None = None

    @property
    def functions(self) -> Mapping[str, FunctionInfo]:
        """The exposed functions: name -> signature, docstring, JSON Schema of the parameters. Starts the worker."""
        if self._functions is None:
            self._functions = {name: FunctionInfo(**one) for name, one in self._pool.describe().items()}
        return self._functions

    def call(self, function: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function by its name, also where an attribute of this class has the same.

        Raises:
            TypeError: the name is no text.
        """
        if not isinstance(function, str):
            raise TypeError(f"call() takes the name of a function first, not {function!r:.100}")
        return self._pool.call(function, args, kwargs, self._spec.timeout)

    def reload(self, timeout: float | None = None) -> None:
        super().reload(timeout)
        self._functions = None  # they may be others by now

    reload.__doc__ = PoolOwner.reload.__doc__

    def function(self, name: str) -> RemoteFunction[..., Any]:
        """A function by its name, for ``.aio``, ``.submit``, ``.map`` and ``.options``."""
        return RemoteFunction(self._pool, name, self._spec.timeout)

    def __getattr__(self, name: str) -> RemoteFunction[..., Any]:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        worker = next(iter(self._pool.workers), None)
        if worker is not None and name not in worker.functions:
            raise not_found(self._pool.service, name, worker)
        remote = self.function(name)
        self.__dict__[name] = remote  # found without this method from now on
        return remote

    def __dir__(self) -> list[str]:
        worker = next(iter(self._pool.workers), None)
        return sorted({*super().__dir__(), *(worker.functions if worker is not None else ())})

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        pid = self.pid
        return f"<atoll.Service {self._spec.name!r} {'not running' if pid is None else f'pid {pid}'}>"
