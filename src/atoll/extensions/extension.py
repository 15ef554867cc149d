# SPDX-License-Identifier: Apache-2.0
"""A loaded extension: its public methods are attributes, plain or to be awaited, as its author wrote them.

``IsolatedExtension`` has them run in a worker, ``HostExtension`` here; who uses one need not know which it is. What
always holds: data goes by value, and any other object, such as a model, stays where it is and is used by its methods.
What does not belong here: proxy classes for nodes (``nodes``).
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import os
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atoll_worker.completion import complete, is_coroutine
from atoll_worker.extension import (
    DESCRIBE_EXTENSION,
    RUN_NODE,
    display_names,
    load_pack,
    make_extension,
    methods_of,
    unload_pack,
)
from atoll_worker.lent import lend

from ..client.owner import HoldsWorker, PoolOwner, check_objects
from ..client.plan import plan_extension
from ..errors import FunctionNotFound, ServiceClosed
from ..pool import Pool
from ..pool.settings import settings_of
from ..pool.stream import Stream
from .offered import check_modules, objects_of, told_of

if TYPE_CHECKING:
    from types import ModuleType

    from atoll_worker.extension import ExtensionBase

    from ..manifest import ServiceSpec
    from ..pool.worker import WorkerPlan
    from .config import ExtensionConfig

_SKIPPED = frozenset(("__pycache__", ".git", ".venv", "node_modules"))


def _stamp(path: str) -> frozenset[tuple[str, int, int]]:
    """Tells a pack's files from what they were: of each its path, time and size."""
    if os.path.isfile(path):
        return frozenset(_stat(path))
    found: set[tuple[str, int, int]] = set()
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        for name in files:
            if name.endswith((".py", ".yaml", ".yml")):
                found.update(_stat(os.path.join(folder, name)))
    return frozenset(found)


def _stat(path: str) -> list[tuple[str, int, int]]:
    try:
        stat = os.stat(path)
    except OSError:  # deleted this moment
        return []
    return [(path, stat.st_mtime_ns, stat.st_size)]


class Extension:
    """What both kinds have in common.

    Attributes:
        name: its name.
        config: what it was loaded with.
    """

    def __init__(self, read: Callable[[], ExtensionConfig]) -> None:
        self._read = read  # for a reload: the manifest may say otherwise by then
        self.config = read()
        self.name = self.config.name
        self._path = self.config.path()
        self._seen = _stamp(self._path)
        self._renewing = threading.RLock()

    @property
    def is_isolated(self) -> bool:
        """Whether it runs in a process of its own."""
        return self.config.isolated

    async def load(self) -> None:
        """Build its environment if need be, start it and learn its methods."""
        raise NotImplementedError

    async def reload(self) -> None:
        """Load its present files.

        Raises:
            AtollError: they cannot be loaded; then what was loaded before goes on.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Unload it. Later calls raise ``ServiceClosed``. Idempotent."""
        raise NotImplementedError

    def _renew(self, reload: Callable[[], object]) -> None:
        """Reload if its files changed since this was last asked, or it was last loaded. Calls that come meanwhile wait:
        none of them is run by files that are no more."""
        if self.config.hot_reload:
            with self._renewing:
                now = _stamp(self._path)
                before, self._seen = self._seen, now
                if now != before:
                    reload()


class Workers(PoolOwner):
    """The workers of an isolated extension: their status, metrics and number."""

    def __init__(self, pool: Pool, spec: ServiceSpec) -> None:
        self._pool = pool
        self._spec = spec


class IsolatedExtension(HoldsWorker, Extension):
    """An extension in a worker of its own."""

    def __init__(self, read: Callable[[], ExtensionConfig]) -> None:
        super().__init__(read)
        self._spec = spec = self.config.spec()
        self._modules = check_modules(self.config.modules)
        objects = {**check_objects(self.config.host), **objects_of(self._modules)}
        self._pool = Pool(spec.name, self._plan, settings_of(spec, objects))
        self._about: dict[str, Any] = {}
        self._loading = threading.Lock()

    def _plan(self) -> WorkerPlan:
        plan = plan_extension(self._spec)
        return dataclasses.replace(plan, entry={**plan.entry, "modules": told_of(self._modules)})

    async def load(self) -> None:
        await asyncio.to_thread(self._load)

    def _load(self) -> None:
        with self._loading:
            self._pool.start()
            self._about = self._pool.call(DESCRIBE_EXTENSION, (), {}, None)
        hidden = sorted(name for name in self._about["methods"] if hasattr(type(self), name))
        if hidden or self._about["refused"]:
            import logging

            if hidden:
                logging.getLogger("atoll.extensions").warning(
                    "extension %s: %s: attributes of every extension have these names, so call the pack's methods "
                    "with .call(NAME)",
                    self.name,
                    ", ".join(hidden),
                )
            for node_id, why in self._about["refused"].items():
                logging.getLogger("atoll.extensions").warning(
                    "extension %s: node %s is left out: %s", self.name, node_id, why
                )

    async def reload(self) -> None:
        await asyncio.to_thread(self._reload)

    def _reload(self) -> None:
        config = self._read()
        spec = config.spec()
        before = self._spec
        self._path = config.path()
        self._seen = _stamp(self._path)
        self._spec = spec
        try:
            self._pool.reload()
        except BaseException:
            self._spec = before
            raise
        self.config = config
        self._load()

    def close(self) -> None:
        self._pool.close()

    @property
    def workers(self) -> Workers:
        """The processes that run it: ``workers.status()``, ``workers.metrics()``, ``workers.scale(...)``."""
        return Workers(self._pool, self._spec)

    @property
    def nodes(self) -> Mapping[str, Any]:
        """Of each node, by its id, what it says of itself: plain data."""
        return copy.deepcopy(self._about.get("nodes", {}))

    @property
    def display_names(self) -> Mapping[str, str]:
        """What the pack says that its nodes are shown as."""
        return dict(self._about.get("display_names", {}))

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method by its name and wait for it, whatever kind it is."""
        self._renew(self._reload)
        return _received(self._pool.call(method, lend(args), lend(kwargs), self._spec.timeout))

    async def call_async(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """As ``call``, to be awaited. Cancelling the task ends the call over there."""
        if self.config.hot_reload:
            await asyncio.to_thread(self._renew, self._reload)
        return _received(await self._pool.call_async(method, lend(args), lend(kwargs), self._spec.timeout))

    def run_node(
        self,
        node_id: str,
        method: str,
        token: str | None,
        gone: Sequence[str],
        inputs: Mapping[str, Any],
        hidden: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a method of a node; see ``nodes``."""
        return self.call(RUN_NODE, node_id, method, token, list(gone), dict(inputs), hidden)

    async def run_node_async(
        self,
        node_id: str,
        method: str,
        token: str | None,
        gone: Sequence[str],
        inputs: Mapping[str, Any],
        hidden: Mapping[str, Any] | None = None,
    ) -> Any:
        """As ``run_node``, to be awaited."""
        return await self.call_async(RUN_NODE, node_id, method, token, list(gone), dict(inputs), hidden)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        methods = self._about.get("methods", {})
        if name not in methods:
            raise _no_method(self.name, name, methods)
        return ExtensionMethod(self, name, methods[name])

    def __repr__(self) -> str:
        return f"<extension {self.name!r}, isolated>"


class ExtensionMethod:
    """A method of an isolated extension: called as its author wrote it, or by ``aio``, to be awaited in any case."""

    __slots__ = ("_extension", "_is_async", "_name")

    def __init__(self, extension: IsolatedExtension, name: str, is_async: bool) -> None:
        self._extension = extension
        self._name = name
        self._is_async = is_async

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self._extension.call_async if self._is_async else self._extension.call
        return call(self._name, *args, **kwargs)

    async def aio(self, *args: Any, **kwargs: Any) -> Any:
        """As a call, to be awaited."""
        return await self._extension.call_async(self._name, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<method {self._name!r} of {self._extension!r}>"


class HostExtension(Extension):
    """An extension in this process: no packages of its own, no limits, the same interface."""

    def __init__(self, read: Callable[[], ExtensionConfig]) -> None:
        super().__init__(read)
        self._module: ModuleType | None = None
        self._object: ExtensionBase | None = None
        self._closed = False

    async def load(self) -> None:
        module = load_pack(self.config.path())
        try:
            self._object = await make_extension(module)
        except BaseException:
            unload_pack(module)
            raise
        self._module = module

    async def reload(self) -> None:
        module, before = self._module, self._object
        self.config = self._read()
        self._path = self.config.path()
        self._seen = _stamp(self._path)
        kept = _take_out(module)
        try:
            await self.load()
        except BaseException:
            _put_back(kept)
            self._module, self._object = module, before
            raise
        if before is not None:
            unloaded = before.on_unload()
            if is_coroutine(unloaded):
                await unloaded

    def close(self) -> None:
        self._closed = True
        loaded, self._object = self._object, None
        if loaded is not None:
            unloaded = loaded.on_unload()
            if is_coroutine(unloaded):
                complete(unloaded)
        if self._module is not None:
            unload_pack(self._module)
            self._module = None

    @property
    def nodes(self) -> Mapping[str, Any]:
        """The node classes themselves, by id."""
        return dict(self._loaded().nodes)

    @property
    def display_names(self) -> Mapping[str, str]:
        """What the pack says that its nodes are shown as."""
        return display_names(self._module)

    def _loaded(self) -> ExtensionBase:
        if self._object is None:
            raise ServiceClosed(f"extension {self.name!r} is {'closed' if self._closed else 'not loaded'}")
        return self._object

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method by its name; of a coroutine function, the coroutine."""
        return self._method(method)(*args, **kwargs)

    def _method(self, name: str) -> Callable[..., Any]:
        self._renew(lambda: complete(self.reload()))
        methods = dict(methods_of(self._loaded()))
        if name not in methods:
            raise _no_method(self.name, name, methods)
        return methods[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        return self._method(name)

    def __repr__(self) -> str:
        return f"<extension {self.name!r}, in this process>"


def _take_out(module: ModuleType | None) -> list[tuple[str, ModuleType, list[Any]]]:
    """A pack's modules, taken out of the way of their successors."""
    import sys

    if module is None:
        return []
    name = module.__name__
    finders = [one for one in sys.meta_path if getattr(one, "pack", None) == name]
    kept = [(key, one, finders) for key, one in sys.modules.items() if key == name or key.startswith(name + ".")]
    unload_pack(module)
    return kept


def _put_back(kept: list[tuple[str, ModuleType, list[Any]]]) -> None:
    import sys

    for name, module, finders in kept:
        sys.modules[name] = module
        sys.meta_path[:0] = [one for one in finders if one not in sys.meta_path]


def _no_method(extension: str, name: str, methods: Mapping[str, Any]) -> FunctionNotFound:
    known = ", ".join(sorted(methods)) or "none"
    return FunctionNotFound(f"extension {extension!r} has no public method {name!r}; it has: {known}")


def _received(value: Any) -> Any:
    if isinstance(value, Stream):
        return value
    from atoll_worker.node_interface import come_back

    return come_back(value)


def new_token() -> str:
    """What tells one object of a node from every other."""
    return uuid.uuid4().hex
