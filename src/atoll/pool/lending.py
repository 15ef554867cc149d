# SPDX-License-Identifier: Apache-2.0
"""What a host lends to one worker, and that worker to it: host objects, callables, iterators, ``ref``."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any

from atoll_worker.references import CALLABLE, INVOKE, ITERATOR, OBJECT, Lending, RemoteCallable, RemoteObject

from .endings import of_parent
from .stream import Stream

if TYPE_CHECKING:
    from .pool import Pool
    from .worker import Worker

_PROXIES = {CALLABLE: RemoteCallable, OBJECT: RemoteObject, ITERATOR: Stream}


class HostLending(Lending):
    """The host's side of it.

    Args:
        pool: the pool; not kept alive.
        objects: the host objects, by name.
    """

    worker: Worker

    def __init__(self, pool: weakref.ref[Pool], service: str, objects: Mapping[str, object]) -> None:
        super().__init__(f"a worker of {service!r}", _PROXIES, self._find)
        self._pool = pool
        self._objects = objects
        _lendings.add(self)

    def _find(self, name: str) -> object:
        kind, _, rest = name.partition(":")
        if kind == "host":
            if rest in self._objects:
                return self._objects[rest]
            names = ", ".join(sorted(self._objects)) or "none"
            raise LookupError(f"the host gave no object {rest!r} to this service; it gave: {names}")
        from atoll_worker.singleton import instance_named

        return instance_named(rest)

    @property
    def borrowed(self) -> int:
        """How many of the worker's objects are in use here."""
        return len(self._borrowed)

    def _living_pool(self) -> Pool:
        process = self.worker.process
        if process is not None and process.is_parents:
            raise of_parent(f"what was borrowed from {self.whose}", process.host)
        pool = self._pool()
        if pool is None:
            raise self.worker.gone()
        return pool

    def invoke(
        self, target: int | str, method: str | None, args: Any, kwargs: Any, timeout: float | None = None
    ) -> Any:
        return self._living_pool().call(INVOKE, (target, method, args, kwargs), {}, timeout, worker=self.worker)

    def invoke_async(
        self, target: int | str, method: str | None, args: Any, kwargs: Any, timeout: float | None = None
    ) -> Awaitable[Any]:
        return self._living_pool().call_async(INVOKE, (target, method, args, kwargs), {}, timeout, worker=self.worker)

    def give_back(self, number: int, received: int) -> None:
        self.worker.release(number, received)

    def renew_locks(self) -> None:
        """In a forked child: threads of the parent may have held them."""
        self._lock = threading.Lock()
        for loan in list(self._borrowed.values()):
            proxy = loan.proxy()
            if isinstance(proxy, Stream):
                proxy.renew_lock()


_lendings: weakref.WeakSet[HostLending] = weakref.WeakSet()


def _after_fork() -> None:
    for lending in list(_lendings):
        lending.renew_locks()


os.register_at_fork(after_in_child=_after_fork)
