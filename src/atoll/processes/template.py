# SPDX-License-Identifier: Apache-2.0
"""Templates: processes that have imported what workers need, and that workers are forked from in milliseconds.

One for each environment, list of modules and environment variables, shared by all pools of this process that want the
same; it ends with the last of them. What happens in it, and when it is safe to fork, stands in
``atoll_worker.template``.

A worker that was forked is the template's child, not this process's: the kernel tells others only that it ended,
through a pidfd, and how, for as long as nobody waited for it. So the template waits for a child only when it is told to
(``reap``), and until then the child's number is its own. Should the template end first, somebody else waits for it
(init); then its number may belong to another process, which is looked at before anything is sent to a number. What it
started is reached without one: this process keeps both ends of the lifeline, and the kernel ends the group that is
tied to it (``atoll_worker.lifeline``).

What a template says is text, and nothing that it says is believed that the kernel does not say too: it runs user code.

What does not belong here: when a worker is started another way instead (``atoll.pool``).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from atoll_worker.template import LONGEST_MESSAGE, MOST_DESCRIPTORS

from .ends import Ends, Lifeline
from .limits import Limits, apply_limits
from .output import Stream, output_reader
from .process import ENTRY, WorkerProcess, begin, give_up, spawn
from .warden import warden

# Seconds for a template that is asked for a worker to answer.
_ANSWER_PATIENCE = 10.0
# Seconds until its pipes are let go of, which a stray process may still hold.
_LAST_WORDS = 1.0


class CannotFork(Exception):
    """No worker can be forked; the message says why. Another kind of start may work.

    Attributes:
        is_new: this is said for the first time.
    """

    def __init__(self, reason: str, is_new: bool) -> None:
        super().__init__(reason)
        self.is_new = is_new


class Recipe(NamedTuple):
    """What makes one template different from another.

    Attributes:
        python: absolute path of the interpreter.
        environ: names and values, sorted: the whole environment of the process.
        modules: what to import, in this order.
        folders: put at the end of ``sys.path`` before.
    """

    python: str
    environ: tuple[tuple[str, str], ...]
    modules: tuple[str, ...]
    folders: tuple[str, ...]


def recipe(python: str, environ: Mapping[str, str], modules: tuple[str, ...], folders: tuple[str, ...]) -> Recipe:
    """The recipe for workers that are started with these."""
    return Recipe(python, tuple(sorted(environ.items())), modules, folders)


class _TemplateProcess:
    """One template process, from the moment it was spawned.

    Attributes:
        is_ready: workers can be forked from it.
        has_ended: it was reaped.
    """

    def __init__(
        self, owner: Template, pid: int, control: socket.socket, lifeline: Lifeline, streams: list[Stream]
    ) -> None:
        self.pid = pid
        self.is_ready = False
        self.has_ended = False
        self.ended = threading.Event()
        self._owner = owner
        self._control = control
        self._lifeline = lifeline
        self._streams = streams
        self._lock = threading.Lock()

    def open_pidfd(self) -> int:
        """A new descriptor that stands for it, to be watched."""
        return os.pidfd_open(self.pid)

    def reap(self) -> None:
        """Called by the warden, on its thread, once the process has ended."""
        with self._lock:
            # What imported modules started goes with it; workers have groups of their own.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            status: int | None = None
            with contextlib.suppress(ChildProcessError):
                status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self.has_ended = True
        self.hear()  # its last words
        warden().ignore(self._control)
        self._control.close()
        self._lifeline.close()
        how = "its process ended" if status is None else _how(status)
        self._owner._process_ended(self, how)
        self.ended.set()
        streams = self._streams

        def drop() -> None:
            for stream in streams:
                output_reader().drop(stream)

        warden().after(_LAST_WORDS, drop)

    def send(self, words: list[str], descriptors: list[int]) -> bool:
        """Say something; False if it is gone, or does not listen."""
        data = "\0".join(words).encode("utf-8", "surrogateescape")
        try:
            if descriptors:
                socket.send_fds(self._control, [data], descriptors, socket.MSG_DONTWAIT)
            else:
                self._control.send(data, socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def reap_child(self, pid: int) -> None:
        """Let the template wait for a child that ended."""
        if not self.has_ended:
            self.send(["reap", str(pid)], [])

    def hear(self) -> bool:
        """What it says; on the warden's thread. False at its end."""
        while True:
            try:
                # Not recv_fds, which passes no flags on.
                data, ancillary, _, _ = self._control.recvmsg(
                    LONGEST_MESSAGE, socket.CMSG_SPACE(4), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            word, _, text = data.decode("utf-8", "replace").partition("\0")
            passed = [int.from_bytes(content[:4], sys.byteorder) for _, _, content in ancillary if len(content) >= 4]
            self._owner._process_said(self, word, text, passed)

    def kill(self) -> None:
        """End it, and what its imports started; not the workers that were forked from it."""
        with self._lock:
            if not self.has_ended:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)

    def forget(self) -> None:
        """In a forked child: let go of the parent's descriptors."""
        self._control.close()


class Template:
    """A template for one recipe, counted; its process is started when it is first needed, and again should it end.

    Use ``template`` and ``release``.
    """

    def __init__(self, recipe: Recipe, service: str) -> None:
        self.recipe = recipe
        self._service = service  # for the log: the one that wanted it first
        self._users = 1
        self._changed = threading.Condition()
        self._process: _TemplateProcess | None = None
        self._refusal = ""  # why no process of this recipe will do
        self._starts = 0
        self._told: set[str] = set()
        self._turn = threading.Lock()  # one fork at a time
        self._asking = False
        self._answer: tuple[str, str, list[int]] | None = None
        self._released = False

    @property
    def pid(self) -> int:
        """Process id of the template; 0 without one."""
        process = self._process
        return 0 if process is None else process.pid

    # -- from any thread -------------------------------------------------------------------------------------

    def fork_process(
        self,
        service: str,
        *,
        connections: int,
        use_lane: bool,
        spin: bool,
        limits: Limits | None,
        deadline: float,
        given_up: Callable[[], bool],
    ) -> WorkerProcess:
        """Fork a worker; see ``start_process``. The first one waits until everything is imported.

        Args:
            deadline: ``time.monotonic()`` until which to wait for that.
            given_up: whether the worker is wanted no more; looked at whenever ``wake`` is called.

        Raises:
            CannotFork: there will be no worker this way.
            WorkerStartError: a limit cannot be set.
        """
        with self._turn:
            template = self._ready(deadline, given_up)
            with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
                ends = Ends(ours, theirs, connections, use_lane)
                descriptors = [ends.worker_out, ends.worker_err, *ends.passed]
                if len(descriptors) > MOST_DESCRIPTORS:
                    raise self._cannot(f"{connections} calls at a time take more descriptors than can be passed")
                lanes = ["1" if lane >= 0 else "0" for _, lane in ends.worker_data]
                pidfd = self._ask(template, ["fork", "1" if spin else "0", *lanes], descriptors)
                ours.callback(os.close, pidfd)
                pid = _pid_of(pidfd)
                if pid <= 0:
                    raise self._cannot("the worker that was forked had ended at once")
                process = ForkedProcess(ends, pid, service, template, pidfd)
                warden().run(lambda: warden().watch(process))
                # From here on the process has what is its own, and lets go of it at its end.
                ours.pop_all()
                begin(process)
        try:
            if limits is not None:
                process.join(apply_limits(process, limits))
        except BaseException:
            give_up(process)
            raise
        return process

    def wake(self) -> None:
        """Somebody who waits may have given up."""
        with self._changed:
            self._changed.notify_all()

    def _cannot(self, reason: str) -> CannotFork:
        is_new = reason not in self._told
        self._told.add(reason)
        return CannotFork(reason, is_new)

    def _ready(self, deadline: float, given_up: Callable[[], bool]) -> _TemplateProcess:
        """The process, once it is ready."""
        if self._process is None and not self._refusal and not self._released and not given_up():
            starts = self._starts
            warden().run(self._start)
            if starts:
                # Not waited for: a worker that starts plainly is there as soon.
                self._told.clear()
                raise self._cannot("the process to fork from had ended, and is started again")
        with self._changed:
            process = self._process
            if process is not None and not process.is_ready:
                if self._starts > 1:
                    raise self._cannot("the process to fork from is being started again")

                def settled() -> bool:
                    return process.is_ready or process is not self._process or self._released or given_up()

                if not self._changed.wait_for(settled, deadline - time.monotonic()):
                    self._refusal = "importing took too long"
                    process.kill()
            if self._refusal:
                raise self._cannot(self._refusal)
            if process is None or not process.is_ready or process is not self._process or given_up():
                raise CannotFork("it is wanted no more", is_new=False)
            return process

    def _ask(self, template: _TemplateProcess, words: list[str], descriptors: list[int]) -> int:
        """Ask for a fork; the new process's pidfd."""
        with self._changed:
            if not template.send(words, descriptors):
                raise self._cannot("the process to fork from has ended, or does not listen")
            self._asking = True
            self._changed.wait_for(lambda: self._answer is not None or self._process is not template, _ANSWER_PATIENCE)
            self._asking = False
            answer, self._answer = self._answer, None
        if answer is None:
            # Whatever it forks from here on nobody would know of.
            template.kill()
            raise self._cannot("the process to fork from ended, or did not answer, when it was asked")
        word, text, received = answer
        if word == "forked" and received:
            return received[0]
        for fd in received:
            os.close(fd)
        with self._changed:
            self._refusal = text or "what it said was not understood"
        template.kill()
        raise self._cannot(self._refusal)

    # -- on the warden's thread ------------------------------------------------------------------------------

    def _start(self) -> None:
        """Spawn the process, and have it import."""
        self._starts += 1
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            ends = Ends(ours, theirs, 0, use_lane=False, kind=socket.SOCK_SEQPACKET)
            command = [self.recipe.python, "-I", ENTRY, "template", *ends.arguments]
            pid = spawn(command, dict(self.recipe.environ), ends.worker_out, ends.worker_err, ends.passed)
            streams = ends.streams(self._service, pid)
            process = _TemplateProcess(self, pid, ends.control, ends.lifeline, streams)
            warden().watch(process)
            ours.pop_all()
        for stream in streams:
            output_reader().add(stream)
        warden().listen(ends.control, process.hear)
        process.send(["preload", *self.recipe.modules, "", *self.recipe.folders], [])
        self._process = process
        _living.add(process)

    def _process_said(self, process: _TemplateProcess, word: str, text: str, descriptors: list[int]) -> None:
        with self._changed:
            if process is not self._process or (process.is_ready and not self._asking):
                for fd in descriptors:
                    os.close(fd)
                return
            if not process.is_ready:
                process.is_ready = word == "ready"
                if not process.is_ready:
                    self._refusal = text or "what it said was not understood"
                    process.kill()
            else:
                self._answer = word, text, descriptors
            self._changed.notify_all()

    def _process_ended(self, process: _TemplateProcess, how: str) -> None:
        _living.discard(process)
        with self._changed:
            if process is self._process:
                self._process = None
                if not process.is_ready and not self._refusal and not self._released:
                    # It would end the same way again.
                    self._refusal = f"the process that imports {', '.join(self.recipe.modules)} {how}"
            self._changed.notify_all()


class ForkedProcess(WorkerProcess):
    """A worker that a template forked: a child of the template's."""

    def __init__(self, ends: Ends, pid: int, service: str, template: _TemplateProcess, pidfd: int) -> None:
        streams = ends.streams(service, pid)
        assert ends.descriptors is not None
        super().__init__(pid, ends.data, ends.control, ends.descriptors, ends.lifeline, streams, service)
        self._template = template
        self._pidfd = pidfd

    def open_pidfd(self) -> int:
        return os.dup(self._pidfd)

    def _is_known(self) -> bool:
        """Whether the kernel still knows it, ended or not, so that its number is its own."""
        try:
            signal.pidfd_send_signal(self._pidfd, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    def kill(self) -> None:
        with self._kill_lock:
            known = not self._reaped and self._is_known()
        if known:
            super().kill()

    def _wait(self) -> int | None:
        status = None
        try:
            if self._is_known():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
                status = _status_of(self.pid)
                self._template.reap_child(self.pid)
            # If the template has ended, and it is this process that orphans are given to.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        finally:
            os.close(self._pidfd)
        return status

    def forget(self) -> None:
        super().forget()
        if not self._reaped:
            with contextlib.suppress(OSError):
                os.close(self._pidfd)


def _pid_of(pidfd: int) -> int:
    """The process id that a pidfd stands for, as the kernel has it; -1 if it was reaped."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        return next((int(line[4:]) for line in file if line.startswith("Pid:")), -1)


def _status_of(pid: int) -> int | None:
    """How a process ended that nobody waited for yet: its exit code, or less than zero, a signal."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if fields[0] != b"Z":
        return None
    return os.waitstatus_to_exitcode(int(fields[49]))


def _how(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"exited with code {status}"


# -- the templates of this process ---------------------------------------------------------------------------------

_templates: dict[Recipe, Template] = {}
_lock = threading.Lock()
_living: set[_TemplateProcess] = set()


def template(recipe: Recipe, service: str) -> Template:
    """The template for a recipe; to be released when it is not needed any more."""
    with _lock:
        found = _templates.get(recipe)
        if found is None:
            found = _templates[recipe] = Template(recipe, service)
        else:
            found._users += 1
        return found


def release(one: Template, *, outdated: bool = False) -> threading.Event | None:
    """It is not needed any more; with its last user it ends. Does not wait.

    Args:
        outdated: whoever wants one for the same recipe from now on gets a new one, which imports anew.

    Returns:
        what is set once its process has ended, if it is to.
    """
    with _lock:
        one._users -= 1
        is_last = one._users == 0
        if (is_last or outdated) and _templates.get(one.recipe) is one:
            del _templates[one.recipe]
    if not is_last:
        return None
    with one._changed:
        one._released = True
        process = one._process
        one._changed.notify_all()
    if process is None:
        return None
    process.kill()
    return process.ended


def _after_fork() -> None:
    global _lock, _templates, _living
    _lock = threading.Lock()
    for process in list(_living):
        process.forget()
    _templates, _living = {}, set()


os.register_at_fork(after_in_child=_after_fork)
