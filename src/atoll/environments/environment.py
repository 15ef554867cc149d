# SPDX-License-Identifier: Apache-2.0
"""What the rest of the host knows of an environment, and what keeps it from being pruned.

What always holds here: an ``Environment`` that exists was complete when it was opened. What does not belong here:
how it came to be (``build``) and where it lies (``cache``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


class Use:
    """A mark that this process uses an environment: a shared file lock, held as long as this object lives.

    The kernel drops the lock when the process ends, however it ends, so nothing is ever "in use" by the dead.
    """

    __slots__ = ("__weakref__", "_fd")

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        fd, self._fd = self._fd, -1  # the default is for the interpreter's end, when globals may be gone
        if fd >= 0:
            close(fd)


@dataclass(frozen=True)
class Environment:
    """An interpreter and the packages that go with it, ready to start workers.

    Attributes:
        key: names it in the cache; ``"host"`` for the host's own interpreter and packages.
        python: absolute path of the interpreter to execute.
        prefix: what the worker's ``sys.prefix`` must be.
        version: major, minor, micro.
        pinned: normalised distribution name -> locked version; empty for host and existing environments, which atoll
            did not lock.
        modules: top-level import name -> distribution that owns it.
        site_packages: folders that packages may be loaded from.
        is_host: whether it is the host's own.
    """

    key: str
    python: str
    prefix: str
    version: tuple[int, int, int]
    pinned: Mapping[str, str]
    modules: Mapping[str, str]
    site_packages: tuple[str, ...]
    is_host: bool
    # Kept for its lifetime only: while any copy of this object lives, prune leaves the environment alone.
    use: Use | None = field(default=None, repr=False, compare=False)
