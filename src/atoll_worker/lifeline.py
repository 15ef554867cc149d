# SPDX-License-Identifier: Apache-2.0
"""A worker ends when its host does, whatever either is doing.

The host holds the write end of a pipe that nobody writes to; the kernel closes it when the host ends, however it
ends. Here the read end is armed so that the kernel itself then sends SIGKILL to this worker's whole process group
(F_SETSIG and F_SETOWN of a descriptor with O_ASYNC): no thread has to run, so it works while C code holds the
interpreter lock. Unlike PR_SET_PDEATHSIG it needs no ctypes, which would take half of a worker's start, and it does not
depend on which thread of the host started the worker. Where the kernel has no F_SETSIG, the control thread notices the
end of its connection instead.
"""

from __future__ import annotations

import fcntl
import os


def hold(fd: int) -> None:
    """Tie this process group to the pipe behind ``fd``. Ends the process if the host is gone already."""
    if not hasattr(fcntl, "F_SETSIG"):
        return
    group = os.getpgrp()
    # The host starts every worker as the leader of a group of its own; without that, only this process is tied.
    fcntl.fcntl(fd, fcntl.F_SETOWN, -group if group == os.getpid() else os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, 9)  # SIGKILL; importing `signal` would import `enum`
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
    try:
        if os.read(fd, 1) == b"":
            end()  # it ended before the pipe was armed
    except BlockingIOError:
        pass


def end() -> None:
    """End this worker and everything it started, at once."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), 9)
    os._exit(1)
