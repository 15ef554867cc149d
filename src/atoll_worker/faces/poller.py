# SPDX-License-Identifier: Apache-2.0
"""Waiting for many descriptors, from several threads at once.

What does not belong here: what they are.
"""

from __future__ import annotations

import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Tuple

IN, OUT, BROKEN = select.POLLIN, select.POLLOUT, select.POLLERR | select.POLLHUP


def make_poller() -> Any:
    """A ``select.epoll``, or what does the same where there is none."""
    return select.epoll() if hasattr(select, "epoll") else Poller()


class Poller:
    """As ``select.epoll``, as far as it is used here, but for having a descriptor of its own."""

    def __init__(self) -> None:
        self._events: Dict[int, int] = {}

    def register(self, fd: int, events: int) -> None:
        """Wait for these events at a descriptor."""
        self._events[fd] = events

    modify = register

    def unregister(self, fd: int) -> None:
        """Wait for it no longer."""
        del self._events[fd]

    def poll(self, timeout: float = -1) -> List[Tuple[int, int]]:
        """What happened, after so many seconds at most."""
        poller = select.poll()  # one of its own each time: several threads may wait at once
        for fd, events in list(self._events.items()):
            poller.register(fd, events)
        return poller.poll(None if timeout < 0 else timeout * 1000)

    def close(self) -> None:
        """Wait for nothing any more."""
        self._events.clear()
