# SPDX-License-Identifier: Apache-2.0
"""Services that several clients share, and that follow their file.

What always holds here: there is one service for a source and an interpreter; it runs what its file holds when a call is
made. What does not belong here: calls.
"""

from __future__ import annotations

import os
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from .plan import split_entry
from .service import Service

if TYPE_CHECKING:
    from ..manifest import ServiceSpec
    from .service_client import ServiceClient


class WarmService:
    """A service that all clients of the same source, without options of their own, share.

    Args:
        source: as of the client.
        options: of ``atoll.Service``.
        spec: what they come to.
    """

    def __init__(self, source: str, options: dict[str, Any], spec: ServiceSpec) -> None:
        self.service = Service(source, **options)
        place, _ = split_entry(spec.entry)
        self._file = place if os.path.isabs(place) else None
        self._stamp = self._stamp_now()
        self._clients: weakref.WeakSet[ServiceClient] = weakref.WeakSet()
        self._reloading = threading.Lock()

    def _stamp_now(self) -> tuple[int, int] | None:
        """Tells the file from what it was before; None if there is none to be looked at."""
        if self._file is None:
            return None
        try:
            stat = os.stat(self._file)
        except OSError:
            return None  # a worker that runs needs it no more
        return stat.st_mtime_ns, stat.st_size

    @property
    def is_closed(self) -> bool:
        """Whether it takes no calls any more."""
        return self.service._pool.closed

    def is_current(self) -> bool:
        """Whether the service runs what its file holds."""
        stamp = self._stamp_now()
        return stamp is None or stamp == self._stamp

    def current(self) -> Service:
        """The service, once it runs what its file holds now.

        Raises:
            WorkerStartError, WorkerDied, EnvironmentError, ManifestError: what it holds now cannot be started.
        """
        if self.is_current():
            return self.service
        with self._reloading:
            stamp = self._stamp_now()
            if stamp is not None and stamp != self._stamp:
                self.service.reload()
                self._stamp = stamp
        return self.service

    def join(self, client: ServiceClient) -> None:
        """A client calls it."""
        self._clients.add(client)

    def leave(self, client: ServiceClient) -> None:
        """A client was closed; the last of them closes the service."""
        with _lock:
            self._clients.discard(client)
            last = not self._clients
        if last:
            self.service.close()

    def renew_lock(self) -> None:
        """In a forked child: a thread of the parent may have held it."""
        self._reloading = threading.Lock()


_services: dict[tuple[str, object], WarmService] = {}
_lock = threading.Lock()


def warm_service(client: ServiceClient, source: str, options: dict[str, Any], spec: ServiceSpec) -> WarmService:
    """What a client shares with others of its kind; its own, if it has options that only it may want.

    Args:
        client: who asks; it is told of by ``leave`` when it is closed.
        source: of its service.
        options: of ``atoll.Service``.
        spec: what they come to.
    """
    key = (source, options.get("environment"))
    shared = not set(options) - {"environment", "timeout"}
    with _lock:
        warm = _services.get(key) if shared else None
        if warm is None or warm.is_closed:
            warm = WarmService(source, options, spec)
            if shared:
                _services[key] = warm
                # Else its environment would be kept in use by a service that takes no calls any more.
                warm.service._pool.at_close(partial(_forget, key))
        warm.join(client)
        return warm


def _forget(key: tuple[str, object]) -> None:
    warm = _services.get(key)
    if warm is not None and warm.is_closed:
        _services.pop(key, None)


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    for warm in _services.values():
        warm.renew_lock()


os.register_at_fork(after_in_child=_after_fork)
