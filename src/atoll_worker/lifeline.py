# SPDX-License-Identifier: Apache-2.0
"""A worker ends when its host does, whatever either is doing.

The host holds the write end of a pipe that nobody writes to; the kernel closes it when the host ends, however it
ends. The read end is armed so that the kernel itself then sends SIGKILL to this worker's whole process group
(F_SETSIG and F_SETOWN of a descriptor with O_ASYNC): no thread has to run, so it works while C code holds the
interpreter lock. Unlike PR_SET_PDEATHSIG it needs no ctypes, which would take half of a worker's start, and it does not
depend on which thread of the host started the worker. Where the kernel has no F_SETSIG, the control thread notices the
end of its connection instead.

The arming belongs to the open file that all copies of the descriptor share, so the host can do it for a child that
knows nothing of it, such as an installer, as long as that child keeps the read end open.

The kernel sends the signal only while a read end that was armed is open. A worker's own goes with it, and what it left
in its group is still to end: so the host keeps read ends too, should it be killed before it has seen to them. Which of
its descriptors then close first is not for it to say:

- The kernel lets go of the descriptors of a process that was killed in rising order, and then closes, in falling order,
  the files that nobody else has; it may be held up between the two. So there is a read end below the write end, an open
  file that no worker keeps. (With one that a worker keeps: the worker finds its connection closed, ends and closes it,
  before its host comes to close the write end.)
- A child that the host was just forking has copies of all, and closes them one by one, in rising order, before it runs
  another program. So there is a read end above the write end as well, which is the one that the worker keeps.

A worker arms both.
"""

from __future__ import annotations

import fcntl
import os


def arm(fd: int, owner: int) -> bool:
    """Have the kernel send SIGKILL when the last write end of the pipe behind ``fd`` closes; False if it cannot.

    Args:
        fd: a read end, which has to stay open somewhere.
        owner: a process id, or the negative of a process group's.
    """
    if not hasattr(fcntl, "F_SETSIG"):
        return False
    fcntl.fcntl(fd, fcntl.F_SETOWN, owner)
    fcntl.fcntl(fd, fcntl.F_SETSIG, 9)  # SIGKILL; importing `signal` would import `enum`
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
    return True


def hold(fd: int, *others: int) -> None:
    """Tie this process group to a pipe by its read ends, of which ``others`` are closed here: the host keeps them. Ends
    the process if the host is gone already."""
    group = os.getpgrp()
    # The host starts every worker as the leader of a group of its own; without that, only this process is tied.
    owner = -group if group == os.getpid() else os.getpid()
    is_armed = [arm(one, owner) for one in (fd, *others)]
    for one in others:
        os.close(one)
    if not is_armed[0]:
        return
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
