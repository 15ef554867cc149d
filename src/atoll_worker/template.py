# SPDX-License-Identifier: Apache-2.0
"""A template: a process that has imported what workers need, and that workers are forked from.

``python -I .../atoll_worker/__main__.py template CONTROL LIFELINE`` waits on its control connection for what to do:

    preload (modules and folders)    -> ready | failed (why) | unsafe (why)
    fork (how, with descriptors)     -> forked (with a pidfd) | unsafe (why)
    reap (process id)                no answer

The answers are text, not pickles: what is imported here is the user's, and the host trusts none of it.

**When it is safe to fork.** A child has one thread, the one that forked. Whatever another thread was about stays half
done: a lock that it held is held for good. So there must be no other thread, neither of Python's nor of C code's. Some
libraries start threads when they are imported and know about forks: OpenBLAS, which numpy and scipy bring, ends its
threads in a handler (``pthread_atfork``) that runs before each fork, and starts them again when they are needed. No
list of such libraries is kept here. Once everything is imported there is a **rehearsal**: a child is forked that only
ends. What ends its threads for a fork has ended them then; a thread that is still there belongs to code that does not
know about forks, and nothing is ever forked. A fork that hangs, in a handler, is noticed in the rehearsal too. Beside
threads, a child shares with its siblings what it does not know it shares: a GPU's context, which does not outlive a
fork, and connections, on which the siblings would talk at once. What was imported must have opened neither. All this is
looked at again before each fork.

**What children share.** Memory, page by page, until one of them writes to it: a hundred workers hold numpy once.
``gc.freeze`` takes what was imported out of the garbage collector's sight, which would otherwise write to each object
that it looks at, and so have each page copied. They also share the seed of ``hash()``. Random numbers differ:
``random`` sees to that by itself, and numpy's global generator is seeded anew here. A generator that a preloaded module
made is the same in all of them; torch's is the same in every process that starts, forked or not.

**A child that has ended** stays known to the kernel (a "zombie") until the host says ``reap``, so that no other process
gets its number while the host still means this one.

What does not belong here: what a worker does (``runtime``).
"""

from __future__ import annotations

import os
import sys
from _socket import AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socket

from . import lifeline, stacks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional, Sequence, Set, Tuple

# As many as the kernel lets pass at once.
MOST_DESCRIPTORS = 253
LONGEST_MESSAGE = 1 << 16

# How the rehearsal's child ends: not as anything ends by itself. Seconds that it may take.
_REHEARSED = 77
_PATIENCE = 10
# How often it is looked, a millisecond apart, whether the last thread has gone.
_LOOKS = 100

_STANDARD = (0, 1, 2)


def main(argv: List[str]) -> Optional[List[str]]:
    """Run a template until the host hangs up.

    Args:
        argv: descriptors of the control connection and of the lifeline's read ends.

    Returns:
        in a child that was forked, the arguments for ``runtime.main``; None in the template itself, at its end.
    """
    # Not above: the host imports this module for its numbers. The workers are to have it from the start.
    from . import runtime, values  # noqa: F401 - `values` is what a worker imports for its first one

    (control_fd,), lifeline_fds = (runtime.out_of_reach(text) for text in argv[:2])
    lifeline.hold(*lifeline_fds)
    stacks.offer()
    stacks.tell_crashes()
    runtime.take_own_folder_off_path()
    runtime.collect_from_here()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    return Template(socket(AF_UNIX, SOCK_SEQPACKET, 0, fileno=control_fd), lifeline_fds[0]).serve()


class Template:
    """The conversation with the host; see the module."""

    def __init__(self, control: socket, lifeline_fd: int) -> None:
        self._control = control
        self._lifeline = lifeline_fd
        self._own = _open_descriptors()  # what was open before anything was imported

    def serve(self) -> Optional[List[str]]:
        """Do what the host says. Returns as ``main`` does."""
        while True:
            words, descriptors = self._receive()
            if not words:
                return None
            if words[0] == "preload":
                self._preload(words[1:])
            elif words[0] == "fork":
                argv = self._fork(words[1:], descriptors)
                if argv is not None:
                    return argv
            elif words[0] == "reap":
                try:
                    os.waitpid(int(words[1]), os.WNOHANG)
                except ChildProcessError:
                    pass  # code that was imported waits for any child
            for fd in descriptors:
                os.close(fd)

    def _receive(self) -> Tuple[List[str], List[int]]:
        try:
            data, ancillary, _, _ = self._control.recvmsg(
                LONGEST_MESSAGE, CMSG_SPACE(4 * MOST_DESCRIPTORS), MSG_CMSG_CLOEXEC
            )
        except OSError:
            return [], []
        descriptors: List[int] = []
        for level, kind, content in ancillary:
            if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
                descriptors += memoryview(content[: len(content) // 4 * 4]).cast("i")
        return (data.decode("utf-8", "surrogateescape").split("\0") if data else []), descriptors

    def _answer(self, word: str, text: str = "", descriptor: int = -1) -> None:
        data = f"{word}\0{text}".encode("utf-8", "backslashreplace")[: LONGEST_MESSAGE // 2]
        ancillary = [] if descriptor < 0 else [(SOL_SOCKET, SCM_RIGHTS, descriptor.to_bytes(4, sys.byteorder))]
        try:
            self._control.sendmsg([data], ancillary)
        except OSError:
            pass  # the host is gone; the next receive ends this process

    # -- preloading ------------------------------------------------------------------------------------------

    def _preload(self, words: List[str]) -> None:
        modules, folders = words[: words.index("")], words[words.index("") + 1 :]
        sys.path.extend(folder for folder in folders if folder not in sys.path)
        for name in modules:
            try:
                __import__(name)
            except BaseException as error:
                said = str(error).strip().splitlines() or [""]
                self._answer("failed", f"importing {name} raised {type(error).__name__}: {said[0]}")
                return
        reason = rehearse() or self._unsafe(())
        if reason:
            self._answer("unsafe", reason)
            return
        import gc

        gc.collect()
        gc.freeze()
        self._answer("ready")

    def _unsafe(self, descriptors: Sequence[int]) -> str:
        """Why there must be no fork now; empty if there may be one. ``descriptors`` are the child's to be."""
        opened = _open_descriptors() - self._own - set(descriptors)
        return _threads() or _gpu(opened) or _connections(opened)

    # -- forking ---------------------------------------------------------------------------------------------

    def _fork(self, words: List[str], descriptors: List[int]) -> Optional[List[str]]:
        """In the child, the arguments for ``runtime.main``; None in the template."""
        reason = self._unsafe(descriptors)
        if reason:
            self._answer("unsafe", reason)
            return None
        _flush()
        try:
            pid = os.fork()
        except OSError as error:
            self._answer("unsafe", f"fork: {error}")  # no more processes or memory; a plain start will say so itself
            return None
        if pid == 0:
            return self._become_worker(words, descriptors)
        pidfd = os.pidfd_open(pid)  # type: ignore[attr-defined,unused-ignore]
        self._answer("forked", "", pidfd)
        os.close(pidfd)
        return None

    def _become_worker(self, words: List[str], descriptors: List[int]) -> List[str]:
        """What differs between a child that was forked and a process that was started; the rest is ``runtime``'s."""
        os.setsid()
        self._control.close()
        os.close(self._lifeline)
        remaining = iter(descriptors)
        for number in _STANDARD[1:]:
            fd = next(remaining)
            os.dup2(fd, number)
            os.close(fd)
        control, kept, other, passing = (next(remaining) for _ in range(4))
        argv = [str(control), f"{kept}:{other}", str(passing), words[0]]
        for has_lane in words[1:]:
            data = next(remaining)
            argv.append(f"{data}:{next(remaining) if has_lane == '1' else -1}")
        _seed()
        return argv


def rehearse() -> str:
    """Fork a child that only ends, so that libraries prepare for forks as they do; why that failed, or empty."""
    import select
    import time
    import warnings

    if not hasattr(os, "pidfd_open"):
        return "this Python, or this system, has no pidfd"
    _flush()
    with warnings.catch_warnings():
        # From Python 3.12 on a fork beside threads is warned about. Here the question is whether they are still there.
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        os._exit(_REHEARSED)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        os.waitpid(pid, 0)
        return f"there is no pidfd here: {error.strerror}"
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_PATIENCE * 1000):
            os.kill(pid, 9)
            return f"a child that was forked did not get as far as to end, in {_PATIENCE} seconds"
        # As the host will have to learn it.
        status = _status(pid)
        if status != _REHEARSED << 8:
            return f"/proc does not tell how a process ended ({status} instead of {_REHEARSED << 8})"
        # A thread that was waited for is listed for a moment longer.
        for _ in range(_LOOKS):
            if not _threads():
                break
            time.sleep(0.001)
        return ""
    finally:
        os.close(pidfd)
        os.waitpid(pid, 0)


def _status(pid: int) -> int:
    """How a process ended, as ``waitpid`` would have it; -1 if it cannot be told."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[49])
    except (OSError, ValueError, IndexError):
        return -1


def _threads() -> str:
    try:
        tasks = os.listdir("/proc/self/task")
    except OSError:
        return "there is no /proc to look for threads in"
    if len(tasks) < 2:
        return ""
    threading = sys.modules.get("threading")
    if threading is not None:
        names = [one.name for one in threading.enumerate() if one is not threading.main_thread()]
        if names:
            return f"{_counted(len(names), 'thread')} of Python's {_are(len(names))} running ({', '.join(names[:5])})"
    names = sorted({_thread_name(task) for task in tasks if int(task) != os.getpid()})
    number = len(tasks) - 1
    return f"{_counted(number, 'thread')} of C code {_are(number)} running ({', '.join(names[:5])})"


def _thread_name(task: str) -> str:
    try:
        with open(f"/proc/self/task/{task}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _gpu(opened: Set[int]) -> str:
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        return "torch has initialised CUDA, whose context does not outlive a fork"
    for fd in opened:
        target = _target(fd)
        if target.startswith(("/dev/nvidia", "/dev/kfd", "/dev/dri/")):
            return f"a GPU is in use ({target}), whose context does not outlive a fork"
    return ""


def _connections(opened: Set[int]) -> str:
    for fd in opened:
        target = _target(fd)
        if target.startswith("socket:"):
            return f"a socket is open (descriptor {fd}), which all workers would share"
        if target == "anon_inode:[eventpoll]":
            return f"an event loop's descriptor is open ({fd}), which all workers would share"
    return ""


def _open_descriptors() -> Set[int]:
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return set()
    return {fd for fd in numbers if _target(fd)}  # less the one that listed the folder


def _target(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""  # closed meanwhile


def _flush() -> None:
    """What waits in buffers is this process's to print, and must not be printed by each child again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass  # another stream that user code put there
    try:
        import ctypes

        ctypes.PyDLL(None).fflush(None)
    except Exception:
        pass  # an interpreter that was built without it


def _seed() -> None:
    """Random numbers of its own for each child. ``random`` seeds itself in a child."""
    random = sys.modules.get("numpy.random")
    if random is not None:
        try:
            random.seed()
        except Exception:
            pass  # a module of the user's own of this name, say
