# SPDX-License-Identifier: Apache-2.0
"""One worker process: its beginning, its end, and how to bring that about."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence

import atoll_worker

from .cgroups import WorkerGroup
from .ends import DataConnection, Ends, Lifeline
from .limits import Limits, apply_limits
from .output import Stream, output_reader
from .records import WorkerRecords
from .sandbox import Gate, SandboxPolicy, sandboxed_process, wrap
from .tree import kill_tree
from .warden import warden

# The program that every worker is.
ENTRY = os.path.join(os.path.dirname(os.path.abspath(atoll_worker.__file__)), "__main__.py")

# Seconds to wait, once a process has ended, for the rest of what it printed.
_LAST_WORDS = 0.5

# Seconds for a process that was killed to have ended.
_KILL_PATIENCE = 5.0

_alive: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


class WorkerProcess:
    """A worker process, from the moment it was spawned.

    Attributes:
        pid: its process id, and that of the process group it leads.
        connections: the host's ends of its data connections; one at least.
        control: the host's end of its control connection.
        descriptors: the host's end of the socket that passes descriptors of segments.
        exited: set once it has ended and was reaped.
        exit_code, signal: how it ended; one of them is None, or both if somebody else reaped it.
        records: what it said through ``logging``.
        on_end: called by the warden, on its thread, when it has ended and nobody knows yet.
        on_exit: called by the warden, on its thread, once it has ended.
        host: id of the process that it belongs to.
        is_parents: that is the one this one was forked from; nothing here may reach it.
        out_of_memory: its limit and what it held, in bytes, if it was killed for holding more; set before ``exited``.
    """

    def __init__(
        self,
        pid: int,
        connections: Sequence[DataConnection],
        control: socket.socket,
        descriptors: socket.socket,
        lifeline: Lifeline,
        streams: Sequence[Stream],
        service: str,
        *,
        is_sandboxed: bool = False,
    ) -> None:
        self.pid = pid
        self.connections = connections
        self.control = control
        self.descriptors = descriptors
        self.exited = threading.Event()
        self.has_exited = False  # as `exited.is_set()`, at a tenth of its price
        self.exit_code: int | None = None
        self.signal: int | None = None
        self.host = os.getpid()
        self.is_parents = False
        self.out_of_memory: tuple[int, int] | None = None
        self._group: WorkerGroup | None = None
        self._is_sandboxed = is_sandboxed
        self._python_pid: int | None = None
        self._lifeline = lifeline
        self._streams = streams
        self._reaped = False
        self._abandoned = False
        self.records = WorkerRecords(service, pid)
        self.on_end: Callable[[], None] | None = None
        self.on_exit: Callable[[], None] | None = None
        self._kill_lock = threading.Lock()

    def reap(self) -> None:
        """Called by the warden, on its thread, once the process has ended."""
        with self._kill_lock:
            status = self._wait()
            self._reaped = True
        if status is not None and self._is_sandboxed and 128 < status < 128 + signal.NSIG:
            status = 128 - status  # how bubblewrap passes on that a signal ended what it ran
        if status is not None and status < 0:
            self.signal = -status
        else:
            self.exit_code = status
        if self._group is not None:
            self.out_of_memory = self._group.out_of_memory()
            self._group.remove()
        self._lifeline.close()
        # A descendant may still hold the other ends: callers must not wait for it.
        for sock in self._sockets():
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if self._abandoned:
            self.close()
        if self.on_end is not None:
            self.on_end()
            self.on_end = None
        self.has_exited = True
        self.exited.set()
        if self.on_exit is not None:
            self.on_exit()
        streams = self._streams

        def drop() -> None:
            for stream in streams:
                output_reader().drop(stream)

        warden().after(2 * _LAST_WORDS, drop)

    def _wait(self) -> int | None:
        """End what it left behind in its group, and reap it; how it ended, None if that cannot be known."""
        # Before reaping, while the number is surely its own.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:
            return None  # SIGCHLD is ignored in this process, or somebody waits for any child

    def open_pidfd(self) -> int:
        """A new descriptor that stands for it, to be watched."""
        return os.pidfd_open(self.pid)

    @property
    def python_pid(self) -> int:
        """Process id of the interpreter: ``pid``, except in a sandbox, where that is its keeper's. Known for certain
        once it greeted; ``pid`` until then."""
        if not self._is_sandboxed:
            return self.pid
        if self._python_pid is None:
            self._python_pid = sandboxed_process(self.pid)
        return self._python_pid or self.pid

    def join(self, group: WorkerGroup | None) -> None:
        """It was put into this group, which is to be removed at its end."""
        with self._kill_lock:
            if not self._reaped:
                self._group = group
                return
        if group is not None:
            group.remove()

    def kill(self) -> None:
        """SIGKILL to the whole tree. Does nothing if the process was reaped already, or is not this one's to end."""
        if self.is_parents:
            return
        with self._kill_lock:
            if not self._reaped:
                kill_tree(self.pid)

    def abandon(self, grace: float) -> None:
        """Nobody will use it any more: kill it after ``grace`` seconds if need be, and close the sockets at its end."""
        self._abandoned = True
        self.kill_after(grace)

    def kill_after(self, seconds: float) -> None:
        """As ``kill``, in ``seconds``, without waiting."""
        # Until it has ended the warden keeps it; the timer alone must not keep its descriptors open.
        reference = weakref.ref(self)

        def kill() -> None:
            process = reference()
            if process is not None:
                process.kill()

        warden().after(seconds, kill)

    def last_stderr(self) -> list[str]:
        """The last lines on stderr and the last log records from WARNING on, by time, oldest first. After the end,
        waits briefly for them to arrive."""
        stream = self._streams[1]
        if self.exited.is_set():
            stream.ended.wait(_LAST_WORDS)
        return self.records.last_words(stream.last)

    def forget(self) -> None:
        """In a forked child: let go of the parent's descriptors. And of the lanes, so that a call in progress here
        cannot answer for the parent: it fails at the next look at them."""
        self.is_parents = True
        for sock in self._sockets():
            sock.close()
        self.unmap()

    def unmap(self) -> None:
        """Let go of the lanes, which nobody may be looking at. Not left to the garbage collector: some programs
        switch it off."""
        for one in self.connections:
            if one.lane is not None:
                one.lane.close()

    def close(self) -> None:
        """Let go of the connections. Waits for nobody: perhaps the warden waits for this very thread to begin, which
        runs a finalizer first."""
        warden().drop(self.control)
        for one in self.connections:
            one.sock.close()
        self.descriptors.close()

    def _sockets(self) -> list[socket.socket]:
        return [*(one.sock for one in self.connections), self.control, self.descriptors]


def spawn(
    command: Sequence[str],
    environ: Mapping[str, str],
    out: int,
    err: int,
    passed: Sequence[int],
    stdin: int = subprocess.DEVNULL,
) -> int:
    """Start a program in a session of its own; its process id. On the warden's thread, which then watches it."""
    child = subprocess.Popen(
        command,
        stdin=stdin,
        stdout=out,
        stderr=err,
        pass_fds=passed,
        env=dict(environ),
        start_new_session=True,
    )
    # The warden reaps it, by pidfd; Popen must not believe that it still has to.
    child.returncode = 0
    return child.pid


def begin(process: WorkerProcess) -> None:
    """A new process is there: read what it prints, and have it known to children of this process."""
    for stream in process._streams:
        output_reader().add(stream)
    _alive.add(process)


def give_up(process: WorkerProcess) -> None:
    """End a new process that is of no use, and wait until it is gone."""
    process.kill()
    process.exited.wait(_KILL_PATIENCE)
    process.close()


def start_process(
    python: str,
    service: str,
    environ: Mapping[str, str],
    *,
    connections: int = 1,
    use_lane: bool = True,
    spin: bool = True,
    limits: Limits | None = None,
    sandbox: SandboxPolicy | None = None,
    needed: Sequence[str] = (),
) -> WorkerProcess:
    """Spawn a worker process; it greets over its first data connection when it is up.

    Args:
        python: absolute path of the interpreter.
        service: name of the service, for the log.
        environ: the whole environment of the process.
        connections: how many data connections it gets, one for each call that it may answer at a time.
        use_lane: give each a fast lane, where there can be one.
        spin: let it poll before it sleeps.
        limits: what it may use; in force before any of the user's code runs.
        sandbox: what it may reach; None to not shut it in.
        needed: files and folders that it reads, and must see in a sandbox: its environment's and its service's.

    Raises:
        OSError: it cannot be started; the message says why.
        WorkerStartError: a limit cannot be set.
        SandboxUnavailable: a sandbox was asked for, and there can be none.
    """
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        ends = Ends(ours, theirs, connections, use_lane)
        passed = ends.passed
        command = [python, "-I", ENTRY, *ends.arguments, "1" if spin else "0"]
        command += [f"{data}:{lane}" for data, lane in ends.worker_data]
        gate = None
        if sandbox is not None:
            memory = limits.memory if limits is not None else None
            gate = Gate(wrap(command, sandbox, [*needed, os.path.dirname(ENTRY)], memory=memory))
            ours.callback(gate.close)
            theirs.callback(gate.close_theirs)
            command = gate.command
            passed += gate.passed

        def spawn_worker() -> WorkerProcess:
            assert ends.descriptors is not None
            stdin = subprocess.DEVNULL if gate is None else gate.stdin
            pid = spawn(command, environ, ends.worker_out, ends.worker_err, passed, stdin)
            process = WorkerProcess(
                pid,
                ends.data,
                ends.control,
                ends.descriptors,
                ends.lifeline,
                ends.streams(service, pid),
                service,
                is_sandboxed=sandbox is not None,
            )
            warden().watch(process)
            return process

        process = warden().run(spawn_worker)
        # From here on the process has what is its own, and lets go of it at its end.
        ours.pop_all()
        begin(process)
    try:
        if gate is not None:
            gate.wait()
        if limits is not None:
            process.join(apply_limits(process, limits))
    except BaseException:
        give_up(process)
        raise
    finally:
        if gate is not None:
            gate.close()  # which lets it begin
    return process


def _after_fork() -> None:
    for process in list(_alive):
        process.forget()
    _alive.clear()


os.register_at_fork(after_in_child=_after_fork)
