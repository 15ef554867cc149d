# SPDX-License-Identifier: Apache-2.0
"""One descriptor kept aside, so that what was passed can be read, and copied, when no other is left.

What always holds: ``release`` is followed by ``keep``, under the lock of whoever uses what it made room for.
"""

from __future__ import annotations

import os

_fd = -1


def keep() -> None:
    """Keep one aside, unless one is, or none can be had."""
    global _fd
    if _fd < 0:
        try:
            _fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            pass  # the next time


def release() -> None:
    """Make room for one."""
    global _fd
    fd, _fd = _fd, -1
    if fd >= 0:
        os.close(fd)
