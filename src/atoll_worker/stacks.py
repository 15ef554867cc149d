# SPDX-License-Identifier: Apache-2.0
"""A worker's Python stacks, for whoever may look into the process: the worker's half of ``atoll.processes.stacks``.

At the start the worker makes a small file in memory and has ``faulthandler`` write all threads' stacks to it whenever
``SIGNAL`` comes. That handler is C code which needs neither the interpreter lock nor a thread of ours, so it also tells
where a worker is whose interpreter lock is held for minutes by C code. The host finds the file by its name among the
process's descriptors; a process that has none must never be sent the signal, which would end it.

What always holds here: nothing is imported that is not built into the interpreter. What does not belong here: reading
the stacks.
"""

from __future__ import annotations

import os
import sys
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List

# The name of the file, as /proc/PID/fd shows it after "/memfd:".
NAME = "atoll-stacks"

# SIGRTMAX - 1 of every Linux. A realtime signal, which no terminal sends and no shell; not the last one, which some
# debuggers and profilers take.
SIGNAL = 63

_FIRST_DESCRIPTOR = 200  # out of the reach of code that closes descriptors by number, as the runtime's own are

_fd = -1
_main_thread = get_ident()  # whoever imports this first


def offer() -> bool:
    """From now on, write this process's Python stacks when ``SIGNAL`` comes. False where that is impossible.

    To be called again in a child that was forked, whose stacks would otherwise go to its parent's file.
    """
    global _fd
    try:
        import faulthandler
    except ImportError:
        return False  # an interpreter that was built without it
    if not hasattr(os, "memfd_create") or not hasattr(faulthandler, "register"):
        return False
    try:
        fd = _create()
        # By number, not as a file object: there is nothing for user code to close, and nothing to keep alive.
        faulthandler.register(SIGNAL, file=fd, all_threads=True, chain=False)
    except (OSError, RuntimeError, ValueError):  # ValueError: there is no such signal here
        return False
    if _fd >= 0:
        try:
            os.close(_fd)
        except OSError:
            pass  # user code was first
    _fd = fd
    return True


def of_threads() -> str:
    """The stacks of all threads but the calling one, as ``faulthandler`` writes them, the main thread's first.

    For a worker that answers. It holds the interpreter lock, so it looks at nobody who runs: what comes by ``SIGNAL``
    may crash a process of which several threads run Python, and is for one that does not answer.
    """
    found: List[str] = []
    for thread, innermost in sys._current_frames().items():
        if thread == get_ident():
            continue
        lines = [f"Thread 0x{thread:016x} (most recent call first):"]
        frame = innermost
        while frame is not None and len(lines) <= 100:
            lines.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
            frame = frame.f_back  # type: ignore[assignment]
        found.insert(0 if thread == _main_thread else len(found), "\n".join(lines))
    return "\n\n".join(found)


def tell_crashes() -> bool:
    """When C code crashes, write that thread's Python stack to stderr first, where it is among the worker's last lines.

    User code that calls ``faulthandler.enable`` itself simply has its own way from then on.
    """
    try:
        import faulthandler

        faulthandler.enable(file=2, all_threads=False)
    except (ImportError, OSError, RuntimeError, ValueError):
        return False
    return True


def _create() -> int:
    import fcntl

    low = os.memfd_create(NAME, os.MFD_CLOEXEC)
    try:
        fd = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _FIRST_DESCRIPTOR)
    except OSError:
        fd = low  # a low limit on open files
    else:
        os.close(low)
    # Appending, so that whoever reads it can cut it back to nothing: the next dump begins where the file ends.
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    return fd
