# SPDX-License-Identifier: Apache-2.0
"""Where a worker is: its Python stacks and its native ones, at any time, whatever it is doing.

The Python stacks come from the worker itself: it holds a file in memory to which ``faulthandler`` writes when a certain
realtime signal comes (see ``atoll_worker.stacks``). That needs no thread and no interpreter lock over there. The native
stacks are read from outside, by the first of elfutils' ``eu-stack``, ``gdb`` and ``py-spy`` that is there and may look
into the process; without any, ``/proc`` still tells what each thread waits for.

What always holds here: the signal goes only to a process that was seen to hold that file and to catch the signal, since
it would end any other; everything is bounded in time; the worker runs on afterwards, also when a tool had to be killed
in the middle; nothing is left in the worker's file. What does not belong here: when stacks are wanted, and where they
are shown.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from atoll_worker.stacks import NAME, SIGNAL

from ..errors import WorkerError
from .tree import children, descendants

# Lines of each kind in an error message.
SHORT = 40

# Seconds between two looks at a worker that is about to write.
_PAUSE = 0.001
# Seconds without a byte after which a dump counts as complete, should the kernel not tell that the handler returned,
# and no thread that may be in it run or wait for a processor.
_SETTLED = 0.05
# A dump has at most 100 threads of 100 frames; what is longer was not written by faulthandler.
_LONGEST = 1 << 24

_Frames = Callable[[str], list[str]]


class Stacks(NamedTuple):
    """Where a worker is.

    Attributes:
        python: the Python stack of every thread, innermost frame first; empty if the worker did not answer in time.
        native: the native stack of every thread, or what is known of it.
    """

    python: str
    native: str


def stacks(pid: int, *, timeout: float = 0.5, native_timeout: float = 10.0) -> Stacks:
    """The Python and native stacks of a worker of this user.

    Args:
        pid: the worker's process id, or that of the sandbox around it.
        timeout: seconds for the worker to write its Python stacks. It does so at once, unless it is stopped.
        native_timeout: seconds for each tool that reads native stacks; large libraries take gdb that long.

    Raises:
        WorkerError: there is no such process, it belongs to another user, or it is no worker of atoll.
    """
    pid = worker_at(pid)
    return Stacks(python_stacks(pid, timeout), native_stacks(pid, native_timeout))


def short_stacks(pid: int, *, timeout: float = 0.2, native_timeout: float = 1.0, lines: int = SHORT) -> Stacks:
    """As ``stacks``, for an error message: bounded, and empty where nothing is to be had. Raises nothing.

    At most about ``lines`` lines of each; of every thread the innermost frames stay, since they say where it is.
    """
    try:
        python, native = stacks(pid, timeout=timeout, native_timeout=native_timeout)
    except (WorkerError, OSError):
        return Stacks("", "")
    return Stacks(for_message(python, lines), for_message(native, lines))


def python_stacks(pid: int, timeout: float = 0.5) -> str:
    """The Python stacks of a process, innermost frame first; empty if it offers none or does not answer in time.

    The main thread comes first. What C code is waiting for in a system call that no signal may interrupt, such as
    ``nanosleep``, ends early; Python's own functions begin it again.

    Args:
        pid: process id of a worker, or of the sandbox around one.
        timeout: seconds to wait for the answer, and for another process that is asking at the same time.
    """
    deadline = time.monotonic() + timeout
    for one in _around(pid):
        try:
            with _opened(one) as (worker, file):
                return _ask(one, worker, file, deadline)
        except (_NotOffered, OSError):
            continue
    return ""


def native_stacks(pid: int, timeout: float = 2.0) -> str:
    """The native stacks of all threads of a process, innermost frame first; empty if there is no such process.

    Args:
        pid: process id; one that this user may trace, or only what each thread waits for is told.
        timeout: seconds for each tool that is tried.
    """
    pid = next((one for one in _around(pid) if _offer(one) is not None), pid)
    failures: list[str] = []
    for name, arguments, frames in _TOOLS:
        tool = shutil.which(name)
        if tool is None:
            continue
        found, failure = _run_tool([tool, *(argument.format(pid=pid) for argument in arguments)], pid, timeout, frames)
        if found:
            return "\n".join(found)
        failures.append(f"{name}: {failure}")
    waiting = _waiting(pid)
    if not waiting:
        return ""
    why = "; ".join(failures) if failures else "none of eu-stack (elfutils), gdb and py-spy is installed"
    return "\n".join([f"No native frames ({why}{_restriction() if failures else ''}).", *waiting])


def for_message(text: str, lines: int = SHORT) -> str:
    """Stacks for an error message, of either kind: at most about ``lines`` lines.

    Of Python stacks the user's frames, with the text of the source where it can be read here; atoll's own thread and
    outer frames are left out.
    """
    if _FRAME.search(text) is None:
        return shorten(text, lines)
    threads = [_of_the_user(one) for one in text.split("\n\n") if one]
    # The text of a frame's line makes two lines of it.
    return _with_source(shorten("\n\n".join(filter(None, threads)), max(1, lines // 2)))


def shorten(text: str, lines: int = SHORT) -> str:
    """At most about ``lines`` lines of stacks: every thread keeps its innermost frames, as many as fit.

    A thread begins with a line that is not indented and does not begin with ``#``; its innermost frame comes first.
    """
    threads: list[list[str]] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        if not threads or not (line[0].isspace() or line[0] == "#"):
            threads.append([])
        threads[-1].append(line)
    if sum(map(len, threads)) <= lines:
        return "\n".join(line for thread in threads for line in thread)
    # A thread's heading, its innermost frame, and how many more there are.
    left_out = max(0, len(threads) - max(1, lines // 3))
    if left_out:
        threads = threads[:-left_out]  # the main thread comes first
    room = lines
    kept: list[str] = []
    # The shortest first, so that what they do not need is there for the others.
    shares: dict[int, int] = {}
    for position, index in enumerate(sorted(range(len(threads)), key=lambda index: len(threads[index]))):
        share = max(3, room // (len(threads) - position))
        shares[index] = min(share, len(threads[index]))
        room -= shares[index]
    for index, thread in enumerate(threads):
        share = shares[index]
        if len(thread) <= share:
            kept += thread
        else:
            kept += [*thread[: share - 1], f"  … {len(thread) - share + 1} more"]
    if left_out:
        kept.append(f"({left_out} more threads)")
    return "\n".join(kept)


# -- the worker's own answer ---------------------------------------------------------------------------------------


class _NotOffered(Exception):
    """The process writes no stacks on request."""


def worker_at(pid: int) -> int:
    """The process that offers stacks: ``pid``, or the one in the sandbox that ``pid`` is.

    Raises:
        WorkerError: there is none, and why.
    """
    for one in _around(pid):
        if _offer(one) is not None:
            return one
    try:
        owner = Path(f"/proc/{pid}").stat().st_uid
    except (OSError, ValueError, OverflowError):
        raise WorkerError(f"there is no process {pid}; `ps` lists those there are") from None
    if _is_zombie(pid):
        raise WorkerError(f"process {pid} has ended, and only waits for its parent to notice")
    try:
        os.listdir(f"/proc/{pid}/fd")
    except PermissionError:
        whose = _user_name(owner)
        raise WorkerError(
            f"process {pid} belongs to {whose}, and may not be looked into; run this as {whose}"
            if owner != os.geteuid()
            else f"process {pid} is yours, but may not be looked into (it is not dumpable)"
        ) from None
    except OSError:
        raise WorkerError(f"process {pid} ended just now") from None
    below = [one for one in descendants(pid) if _offer(one) is not None]
    hint = f"; workers below it: {', '.join(map(str, below))}" if below else ""
    raise WorkerError(f"process {pid} ({_command(pid)}) is no worker of atoll, or one that offers no stacks{hint}")


def _around(pid: int) -> Iterator[int]:
    """``pid`` itself; and where that is bubblewrap, or what keeps it, what runs in the sandbox."""
    queue = [pid]
    while queue:
        one = queue.pop(0)
        yield one
        if _name(one) == "bwrap":
            queue += children(one)
        elif _name(one) == "sh":
            queue += (child for child in children(one) if _name(child) == "bwrap")


def _offer(pid: int) -> str | None:
    """Path of the file that the process writes its stacks to; None if it has none, or may not be looked into."""
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    for name in sorted(names, key=int, reverse=True):  # the worker keeps it high up
        try:
            if os.readlink(f"{folder}/{name}").partition(" ")[0] == f"/memfd:{NAME}":
                return f"{folder}/{name}"
        except OSError:
            continue
    return None


@contextlib.contextmanager
def _opened(pid: int) -> Iterator[tuple[int, int]]:
    """Descriptors of the process and of its file.

    Raises:
        _NotOffered: it has no such file, or does not catch the signal.
        OSError: it ended.
    """
    with contextlib.ExitStack() as closing:
        if not hasattr(os, "pidfd_open"):
            raise _NotOffered  # an old system: nothing makes sure that the signal goes to the right process
        # First, so that everything found out below is of the very process that the signal goes to.
        try:
            process = os.pidfd_open(pid)
        except AttributeError:
            raise _NotOffered from None  # a Python, or a system, without
        closing.callback(os.close, process)
        path = _offer(pid)
        if path is None:
            raise _NotOffered
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        closing.callback(os.close, file)
        if not _mask(_status(f"/proc/{pid}/status"), "SigCgt"):
            raise _NotOffered  # user code took the handler away: the signal would end it
        yield process, file


def _ask(pid: int, process: int, file: int, deadline: float) -> str:
    if _state(pid) == "T" or not _lock(file, deadline):
        return ""  # stopped: it would write once it runs on, when nobody reads it any more
    status = _status(f"/proc/{pid}/status")
    # Asked before and not answered yet: a stopped process. It would write as often as it was asked.
    pending = _mask(status, "ShdPnd")
    blocked = _blocking(pid)
    os.ftruncate(file, 0)
    if not pending:
        signal.pidfd_send_signal(process, SIGNAL)
    size, since = 0, time.monotonic()
    while True:
        grown = os.fstat(file).st_size
        now = time.monotonic()
        if grown != size:
            size, since = grown, now
        if size:
            # Complete once the handler has returned: until then its thread blocks the signal.
            writing = {task: state for task, state in _blocking(pid).items() if task not in blocked}
            if not writing and not _mask(_status(f"/proc/{pid}/status"), "ShdPnd"):
                break
            # One that is silent since it has to wait for a processor has not ended.
            if now - since > _SETTLED and not {"R", "D"}.intersection(writing.values()):
                break
        if now > deadline:
            break
        time.sleep(_PAUSE)
    data = os.pread(file, _LONGEST, 0)
    os.ftruncate(file, 0)
    threads = data.decode("ascii", "backslashreplace").strip("\0\n").split("\n\n")
    return "\n\n".join(reversed(threads))  # faulthandler begins with the youngest


def _lock(file: int, deadline: float) -> bool:
    """Only one process at a time may ask a worker; False if another one still does at the deadline."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                raise
        else:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)


def _status(path: str) -> dict[str, str]:
    """The lines of a ``status`` file of /proc; empty if the process is gone."""
    try:
        text = Path(path).read_text(errors="replace")
    except OSError:
        return {}
    return {key: value.strip() for key, colon, value in (line.partition(":") for line in text.splitlines()) if colon}


def _mask(status: dict[str, str], name: str) -> bool:
    """Whether ``SIGNAL`` is in one of a process's signal masks."""
    return bool(int(status.get(name, "0"), 16) >> (SIGNAL - 1) & 1)


def _blocking(pid: int) -> dict[str, str]:
    """The threads that block ``SIGNAL`` now, and the letter of the state of each."""
    threads = {str(task): _status(f"{task}/status") for task in Path(f"/proc/{pid}/task").glob("*")}
    return {task: status.get("State", "")[:1] for task, status in threads.items() if _mask(status, "SigBlk")}


_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)')
_OWN_FILE = re.compile(r"atoll_worker/\w+\.py$")


def _of_the_user(thread: str) -> str:
    """A thread without the frames of atoll that user code was called from; empty if it is the control thread."""
    heading, *frames = thread.splitlines()
    matches = [_FRAME.fullmatch(frame) for frame in frames]
    outermost = matches[-1] if matches else None
    if outermost is not None and outermost["file"].endswith("atoll_worker/control.py"):
        return ""
    kept = len(frames)
    while kept:
        match = matches[kept - 1]
        if match is None or not _OWN_FILE.search(match["file"]):
            break
        kept -= 1
    return "\n".join([heading, *frames[: kept or len(frames)]])  # waiting for a call, it is nowhere else


def _with_source(text: str) -> str:
    import linecache

    lines: list[str] = []
    for line in text.splitlines():
        lines.append(line)
        match = _FRAME.fullmatch(line)
        if match is not None:
            linecache.checkcache(match["file"])  # it may have been changed since somebody looked
            source = linecache.getline(match["file"], int(match["line"])).strip()
            if source:
                lines.append(f"    {source}")
    return "\n".join(lines)


# -- tools that read native stacks ---------------------------------------------------------------------------------


def _run_tool(command: list[str], pid: int, timeout: float, frames: _Frames) -> tuple[list[str], str]:
    """The frames that a tool prints, or why there are none."""
    was_stopped = _is_stopped(pid)
    environ = {**os.environ, "DEBUGINFOD_URLS": "", "LC_ALL": "C.UTF-8"}  # frames now, not after a download
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environ,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        if not was_stopped:
            # The stop that a tracer sends to begin with outlives the tracer. Also where it was not obeyed yet.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGCONT)
        return [], f"not done within {timeout:g} seconds"
    except OSError as error:
        return [], str(error)
    found = frames(done.stdout.decode("utf-8", "replace"))
    if found:
        return found, ""
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return [], said[-1].strip() if said else f"exited with code {done.returncode}"


def _frames_of_elfutils(text: str) -> list[str]:
    """Of ``#0  0x00007f25 name - /path/of/library.so``: the name and the library's file."""
    found: list[str] = []
    has_frames = False
    for line in text.splitlines():
        if line.startswith("TID "):
            found.append(f"Thread {line[4:].rstrip(':')}:")
        elif line.startswith("#"):
            has_frames = True
            number, _, rest = line.partition(" ")
            address, _, name = rest.strip().partition(" ")
            name, _, module = name.strip().rpartition("- ")
            where = f" ({os.path.basename(module.strip())})" if module else ""
            found.append(f"{number:<4} {name.strip().partition('@')[0] or address}{where}")
    return found if has_frames else []


def _frames_of_gdb(text: str) -> list[str]:
    found: list[str] = []
    has_frames = False
    for line in text.splitlines():
        if line.startswith("Thread "):
            thread = re.search(r"LWP (\d+)", line) or re.search(r"process (\d+)", line)
            found.append(f"Thread {thread[1]}:" if thread else line.rstrip())
        elif found and line.startswith("#"):
            has_frames = True
            found.append(re.sub(r"^(#\d+\s+)0x[0-9a-f]+ in ", r"\1", line.rstrip()))
    return found if has_frames else []


def _frames_of_py_spy(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    first = next((index for index, line in enumerate(lines) if line.startswith("Thread ")), len(lines))
    return lines[first:] if any(line[0].isspace() for line in lines[first:]) else []


# Fastest first: milliseconds, half a second, seconds. gdb must not run what libraries or home folders bring for it.
_TOOLS: tuple[tuple[str, tuple[str, ...], _Frames], ...] = (
    ("eu-stack", ("-m", "-n", "256", "-p", "{pid}"), _frames_of_elfutils),
    (
        "gdb",
        ("-nx", "-nh", "-batch", "-iex", "set auto-load off", "-iex", "set debuginfod enabled off",
         "-ex", "set pagination off", "-ex", "thread apply all -ascending bt 256", "-p", "{pid}"),
        _frames_of_gdb,
    ),
    ("py-spy", ("dump", "--native", "--pid", "{pid}"), _frames_of_py_spy),
)  # fmt: skip


# -- what the kernel tells without a tool --------------------------------------------------------------------------


def _waiting(pid: int) -> list[str]:
    """For every thread: its name, state, what it waits for, and the mapped file that it runs in, as far as readable."""
    maps = _maps(pid)
    found: list[str] = []
    try:
        threads = sorted(os.listdir(f"/proc/{pid}/task"), key=int)
    except OSError:
        return []
    for thread in threads:
        status = _status(f"/proc/{pid}/task/{thread}/status")
        if not status:
            continue
        found.append(f"Thread {thread} ({status.get('Name', '?')}): {status.get('State', '?')}")
        waits = _text(f"/proc/{pid}/task/{thread}/wchan")
        if waits not in ("", "0"):
            found.append(f"  waits in the kernel's {waits}")
        call = _text(f"/proc/{pid}/task/{thread}/syscall").split()
        if call and call[0] not in ("running", "-1"):
            found.append(f"  in system call number {call[0]}")
        if len(call) >= 3:
            found += [f"  in {file}" for low, high, file in maps if low <= int(call[-1], 16) < high]
    return found


def _maps(pid: int) -> list[tuple[int, int, str]]:
    found = []
    for line in _text(f"/proc/{pid}/maps").splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 6:
            low, _, high = words[0].partition("-")
            found.append((int(low, 16), int(high, 16), words[5]))
    return found


def _restriction() -> str:
    """What keeps tools from looking, if the kernel says so."""
    scope = _text("/proc/sys/kernel/yama/ptrace_scope")
    return f"; kernel.yama.ptrace_scope is {scope}" if scope not in ("", "0") else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _name(pid: int) -> str:
    return _text(f"/proc/{pid}/comm")


def _command(pid: int) -> str:
    return " ".join(_text(f"/proc/{pid}/cmdline").replace("\0", " ").split())[:60] or _name(pid)


def _state(pid: int) -> str:
    return _text(f"/proc/{pid}/stat").rpartition(")")[2].strip()[:1]


def _is_stopped(pid: int) -> bool:
    return _state(pid) in ("T", "t")


def _is_zombie(pid: int) -> bool:
    return _state(pid) in ("Z", "X")


def _user_name(uid: int) -> str:
    import pwd

    try:
        return f"user {pwd.getpwuid(uid).pw_name!r}"
    except KeyError:
        return f"user id {uid}"
