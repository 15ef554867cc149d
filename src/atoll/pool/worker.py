# SPDX-License-Identifier: Apache-2.0
"""One worker of a service: a process, greeted, loaded and ready to be called."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from atoll_worker import wire
from atoll_worker.connection import Connection, ConnectionClosed, DeadlinePassed
from atoll_worker.outbox import Outbox

from ..environments import Environment, check_drift
from ..errors import ProtocolError, WorkerDied, WorkerOutOfMemory, WorkerStartError
from ..processes import (
    Limits,
    Mover,
    SandboxPolicy,
    Strays,
    WorkerProcess,
    is_broad,
    output_reader,
    sandbox_environ,
    start_process,
    thread_variables,
    usage,
    wants_processor,
    warden,
)
from .channel import Channel
from .lending import HostLending
from .lifecycle import Cause

if TYPE_CHECKING:
    from atoll_worker.loans import Loans

    from ..processes.template import Template

logger = logging.getLogger("atoll.pool")

# Seconds for a process that closed its connection to be seen to have ended; else it is ended.
_END_GRACE = 1.0
# Seconds for the end of a process to be seen that has ended, or was killed: the warden may get no processor.
_SEEN = 10.0
# Seconds for a worker to hear what has to be heard before its next call, and between two looks whether it lives.
_HEARD = 5.0
_LOOK_AGAIN = 0.1
# Seconds a worker gets to say where it is stuck.
_STACKS_GRACE = 1.0
# Seconds a worker that is not stuck gets to say where its threads are; of its own processor time, where it gets little,
# but no more than so many seconds besides.
_ANSWER_GRACE = 0.3
_ANSWER_LATEST = 3.0
# Seconds for each tool that reads native stacks.
_NATIVE_GRACE = 1.0

# Of pings that somebody waits for.
_numbers = itertools.count(1)


@dataclass(frozen=True)
class WorkerPlan:
    """What is needed to start a worker of a service, any number of times."""

    service: str
    entry: Mapping[str, Any]  # see atoll_worker.runtime.load_table
    environment: Environment
    sys_path: tuple[str, ...]  # put at the end of the worker's sys.path
    service_folders: tuple[str, ...]
    env_vars: Mapping[str, str]
    start_timeout: float
    limits: Limits | None = None
    sandbox: SandboxPolicy | None = None
    preload: tuple[str, ...] = ()


class Worker:
    """A worker, from the decision to start it until it is gone.

    Args:
        service: name of the service.
        number: of the worker in its pool.
        concurrency: how many calls it takes at a time.
        lending: what is lent to and borrowed from it.

    Attributes:
        channels: its data connections.
        process: the process; None until it was spawned.
        functions: names of the functions it exposes.
        streams: names of those that are generator functions.
        cooperative: its code looks whether a call was cancelled.
        about: what it said of itself: ``pid``, ``version``, ``executable``, ``prefix``, ``sys_path``, ``loaded``.
        is_serving: it takes calls; from then on the supervisor is told of its end.
        unproven: the supervisor wants to know of its next successful call.
        cause: why its process is being ended, if atoll does that.
        spare: the channels that are in no call and will get none, because the worker is to stop.
        on_free: called when it is to stop, and nothing of it is in use any more.
        on_doomed: called once, when its end has come or is being brought about: no further call is to go to it.
        ping_sent_at, pong_at: ``time.monotonic()`` of the last ping, and of the last answer.
    """

    def __init__(self, service: str, number: int, concurrency: int, lending: HostLending) -> None:
        self.service = service
        self.number = number
        self.lending = lending
        self.channels: list[Channel] = []
        self.process: WorkerProcess | None = None
        self.functions: tuple[str, ...] = ()
        self.streams: frozenset[str] = frozenset()
        self.cooperative = False
        self.idempotent: frozenset[str] = frozenset()
        self.about: dict[str, Any] = {}
        self.is_serving = False
        self.unproven = False
        self.cause: Cause | None = None
        self.why = ""
        self.spare: list[Channel] = []
        self.on_free: Callable[[], None] | None = None
        self.on_doomed: Callable[[], None] | None = None
        self.ready_at = 0.0
        self.ping_sent_at: float | None = None
        self.pong_at: float | None = None
        self._stacks_wanted: set[Event] = set()  # by everybody who waits for them
        self._pongs_wanted: dict[int, Event] = {}  # by the number of the ping
        self._stacks = ""
        self._concurrency = concurrency
        self._phase = "start"
        self._reader = wire.FrameReader()
        self._outbox: Outbox | None = None
        self._loans: Loans | None = None
        self._loans_lock = Lock()
        self._is_shut_in = False
        self._open_files: int | None = None
        lending.worker = self

    # -- starting --------------------------------------------------------------------------------------------

    def start(self, plan: WorkerPlan, preloaded: Template | None = None) -> None:
        """Start a process and load the service in it.

        Args:
            preloaded: fork the process from it, if that works out.

        Raises:
            WorkerStartError: it cannot be started, does not answer in time, or the service raised.
            WorkerDied: the process ended.
            EnvironmentDrift: it would load a pinned package from outside its environment.
        """
        deadline = time.monotonic() + plan.start_timeout
        self._is_shut_in = plan.sandbox is not None
        self._open_files = None if plan.limits is None else plan.limits.open_files
        spin = os.environ.get("ATOLL_SPIN", "1") != "0"
        use_lane = os.environ.get("ATOLL_LANE", "1") != "0"
        process = None if preloaded is None else self._fork(plan, preloaded, use_lane, spin)
        try:
            process = process or start_process(
                plan.environment.python,
                plan.service,
                _environ(plan),
                connections=self._concurrency,
                use_lane=use_lane,
                spin=spin,
                limits=plan.limits,
                sandbox=plan.sandbox,
                needed=_needed(plan) if plan.sandbox is not None else (),
            )
        except OSError as error:
            raise WorkerStartError(
                f"no worker of service {plan.service!r} can be started with {plan.environment.python}: {error}"
            ) from error
        self.process = process
        self._outbox = Outbox(process.control)
        process.on_end = self.drain  # what it said last is known to whoever learns that it has ended
        warden().listen(process.control, self._hear)
        self.channels = [
            Channel(self, index, Connection(data.sock, data.lane, "client", spin=spin))
            for index, data in enumerate(process.connections)
        ]
        try:
            self._check_wanted()
            self._greet(plan, deadline)
        except BaseException:
            self.kill()
            process.unmap()
            raise
        mover = Mover(process.python_pid)
        for channel in self.channels:
            channel.connection.on_together = mover
        self.ready_at = time.monotonic()

    def _fork(self, plan: WorkerPlan, preloaded: Template, use_lane: bool, spin: bool) -> WorkerProcess | None:
        """Fork the process; None if it has to be started."""
        from ..processes.template import CannotFork

        try:
            return preloaded.fork_process(
                plan.service,
                connections=self._concurrency,
                use_lane=use_lane,
                spin=spin,
                limits=plan.limits,
                # Should the imports never end, there is time left to start without them.
                deadline=time.monotonic() + plan.start_timeout / 2,
                given_up=lambda: self.cause is not None,
            )
        except CannotFork as error:
            self._check_wanted()
            if error.is_new:
                logger.warning(
                    "%s: workers are not forked from a process that has imported %s, but started: %s",
                    plan.service,
                    ", ".join(plan.preload),
                    # Not the error itself: who keeps the record would keep this worker.
                    str(error),
                )
        except OSError as error:
            logger.warning("%s: there can be no process to fork workers from: %s", plan.service, str(error))
        return None

    def _check_wanted(self) -> None:
        if self.cause is not None:
            raise WorkerStartError(f"the worker of service {self.service!r} was stopped: {self.why}")

    def _greet(self, plan: WorkerPlan, deadline: float) -> None:
        channel = self.channels[0]
        load = {
            "entry": dict(plan.entry),
            "sys_path": list(plan.sys_path),
            "watch": dict(plan.environment.modules),
            "log_level": self._log_level(),
        }
        try:
            frame = self._load(channel, load, deadline)
            answer: dict[str, Any] = channel.decoder.decode(frame.payload, frame.buffers)
            if frame.kind != wire.ERROR:
                for other in self.channels[1:]:
                    self._load(other, None, deadline)
        except ConnectionClosed:
            raise self.died("start") from None
        except DeadlinePassed:
            stacks = self.stacks()
            raise WorkerStartError(
                f"service {plan.service!r} was not ready after start_timeout={plan.start_timeout:g} seconds "
                f"(in phase {self._phase}); its worker was stopped" + (f". It was here:\n{stacks}" if stacks else "")
            ) from None
        except ProtocolError as error:
            raise WorkerStartError(
                f"the worker of service {plan.service!r} does not speak the wire: {error}"
            ) from error
        if frame.kind == wire.ERROR:
            doing = "set it up" if answer["phase"] == "setup" else "import it"
            raise WorkerStartError(
                f"the worker of service {plan.service!r} could not {doing}:\n\n{answer['text'].rstrip()}"
            )
        self.about = answer
        self.functions = tuple(answer["functions"])
        self.streams = frozenset(answer["streams"])
        self.idempotent = frozenset(answer["idempotent"])
        self.cooperative = bool(answer["cooperative"])
        check_drift(plan.environment, answer["sys_path"], answer["loaded"], plan.service_folders)

    @staticmethod
    def _load(channel: Channel, load: object, deadline: float) -> wire.Frame:
        connection = channel.connection
        connection.send(wire.HELLO, wire.RAW, wire.hello())
        wire.check_hello(connection.receive(deadline).payload)
        connection.send(wire.LOAD, wire.PICKLE, channel.encoder.encode(load))
        return connection.receive(deadline)

    # -- beside the calls ------------------------------------------------------------------------------------

    def _hear(self) -> bool:
        """What the worker says on its control connection; on the warden's thread. False at its end."""
        process = self.process
        assert process is not None
        try:
            data = process.control.recv(1 << 16, socket.MSG_DONTWAIT)
            for frame in self._reader.receive_data(data):
                self._handle(frame)
        except BlockingIOError:
            return True
        except ProtocolError as error:
            self.broke_rules(error)
            return False
        except OSError:
            return False
        return bool(data)

    def drain(self) -> None:
        """Take in what a worker has said until now, or said last."""
        while self._hear() and self._more_to_hear():
            pass

    def _more_to_hear(self) -> bool:
        assert self.process is not None
        try:
            return bool(self.process.control.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK))
        except OSError:
            return False

    def _handle(self, frame: wire.Frame) -> None:
        if frame.kind == wire.PONG:
            self.pong_at = time.monotonic()
            self.ping_sent_at = None
            told = self._pongs_wanted.get(frame.call_id)
            if told is not None:
                told.set()
        elif frame.kind == wire.PHASE:
            self._phase = bytes(frame.payload).decode("utf-8", "replace")
        elif frame.kind == wire.LOG:
            process = self.process
            if process is not None:
                process.records.receive(frame.call_id, bytes(frame.payload))
        elif frame.kind == wire.STACKS:
            self._stacks = bytes(frame.payload).decode("utf-8", "replace")
            for told in list(self._stacks_wanted):
                told.set()
        elif frame.kind == wire.RELEASE and len(frame.payload) % wire.RELEASED.size == 0:
            for number, received in wire.RELEASED.iter_unpack(frame.payload):
                # What was lent is the user's, and so is its destructor: not for the warden's thread.
                output_reader().always(partial(self.lending.take_back, number, received))
        elif frame.kind == wire.FORGET and len(frame.payload) == wire.FORGOTTEN.size and self._loans is not None:
            self._loans.forget(*wire.FORGOTTEN.unpack(frame.payload))

    def _send(self, kind: int, call_id: int, payload: bytes = b"") -> None:
        if self._outbox is not None:
            self._outbox.send(kind, call_id, payload)

    def ping(self) -> None:
        """Ask for a sign of life, and say from which level on log records are wanted, which may have changed."""
        if self.ping_sent_at is None:
            self.ping_sent_at = time.monotonic()
        self._send(wire.PING, 0, wire.PING_PAYLOAD.pack(self._log_level()))

    def _log_level(self) -> int:
        return logging.getLogger(f"atoll.worker.{self.service}").getEffectiveLevel()

    def cancel(self, channel: Channel, call_id: int, force: bool) -> None:
        """Ask for a call to end; with ``force``, have it interrupted."""
        self._send(wire.CANCEL, call_id, wire.CANCEL_PAYLOAD.pack(channel.index, wire.FORCE if force else wire.TELL))

    def withdraw_cancel(self, channel: Channel, call_id: int) -> None:
        """A call within another that was asked to end has ended, perhaps before the worker heard that. Returns once it
        has forgotten it: the next call of the same depth has the same id, and goes another way."""
        heard, number = Event(), next(_numbers)
        self._pongs_wanted[number] = heard
        try:
            self._send(wire.CANCEL, call_id, wire.CANCEL_PAYLOAD.pack(channel.index, wire.WITHDRAW))
            self._send(wire.PING, number)
            until = time.monotonic() + _HEARD
            while self.alive and time.monotonic() < until and not heard.wait(_LOOK_AGAIN):
                pass
        finally:
            del self._pongs_wanted[number]

    def release(self, number: int, received: int) -> None:
        """Something it lent is not needed any more."""
        outbox = self._outbox
        if outbox is not None and self.alive:
            outbox.release(number, received)
        self.check_free()

    def loans(self) -> Loans:
        """Segments lent to it and borrowed from it. Made when the first array crosses."""
        with self._loans_lock:
            if self._loans is None:
                from atoll_worker.loans import Loans
                from atoll_worker.segments import share_of_files

                assert self.process is not None
                self._loans = Loans(self.process.descriptors, f"a worker of {self.service!r} (pid {self.pid})")
                self._loans.on_forget = self._forget
                self._loans.is_shut_in = self._is_shut_in
                if self._open_files is not None:
                    self._loans.most_passed = share_of_files(self._open_files)
            return self._loans

    def _forget(self, number: int) -> None:
        """A segment that was lent to it is gone."""
        outbox = self._outbox
        if outbox is not None and self.alive:
            outbox.forget(number)

    def stacks(self) -> str:
        """The Python stacks of the worker's threads, for a message; empty if it does not answer in time."""
        from ..processes.stacks import for_message, python_stacks

        if self.process is None:
            return ""
        told = Event()
        self._stacks_wanted.add(told)
        before = usage(self.process.python_pid)
        try:
            self._send(wire.STACKS, 0)
            if told.wait(_ANSWER_GRACE) or self._tells_later(told, 0.0 if before is None else before.cpu):
                return for_message(self._stacks)
        finally:
            self._stacks_wanted.discard(told)
        # Its interpreter lock is held: asked for in this way, a process of which threads run Python may crash.
        return for_message(python_stacks(self.process.python_pid, _STACKS_GRACE))

    def _tells_later(self, told: Event, cpu: float) -> bool:
        """Whether it tells where it is after all: on a busy machine it, or who hears it here, may get no processor.

        Args:
            cpu: seconds of processor time that it had used when it was asked.
        """
        assert self.process is not None
        pid = self.process.python_pid
        warden().run(self.drain)
        until = time.monotonic() + _ANSWER_LATEST
        while not told.is_set() and time.monotonic() < until and wants_processor(pid):
            now = usage(pid)
            if now is None or now.cpu - cpu >= _ANSWER_GRACE:
                break
            told.wait(0.02)
        return told.is_set()

    def native_stacks(self) -> str:
        """The native stacks of the worker's threads, for a message; empty if they cannot be had."""
        from ..processes.stacks import for_message, native_stacks

        if self.process is None:
            return ""
        try:
            # These alone: Python's, asked for by signal, could crash a worker whose call ends after all.
            return for_message(native_stacks(self.process.python_pid, _NATIVE_GRACE))
        except OSError:
            return ""

    # -- calls -----------------------------------------------------------------------------------------------

    @property
    def calls(self) -> int:
        """How many it has answered."""
        return sum(channel.calls for channel in self.channels)

    @property
    def used_at(self) -> float:
        """``time.monotonic()`` when its last call ended, or it became ready."""
        return max(self.ready_at, *(channel.used_at for channel in self.channels))

    def let_go(self, channel: Channel) -> None:
        """A channel of this worker, which is to stop, is in no call any more."""
        self.spare.append(channel)
        self.check_free()

    def check_free(self) -> None:
        """If the worker is to stop, and nothing of it is in use any more, say so; if it has ended, close it."""
        process = self.process
        if len(self.spare) < len(self.channels) or (process is not None and process.is_parents):
            return
        if process is not None and process.has_exited:
            # Not here: this may be a finalizer, which must wait for nobody, and what was lent is the user's.
            output_reader().always(self.close)
        elif self.on_free is not None and not self.lending.borrowed:
            self.on_free()

    # -- its end ---------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """False before there is a process, once it has ended, and if it is that of the process this one was forked
        from."""
        process = self.process
        return process is not None and not process.is_parents and not process.exited.is_set()

    @property
    def pid(self) -> int:
        """Its process id; 0 before there is a process."""
        return 0 if self.process is None else self.process.pid

    def died(self, phase: str) -> WorkerDied:
        """After a connection closed: find out how the process ended, as the error to raise."""
        process = self.process
        assert process is not None
        detail = self.why
        if not process.exited.wait(_END_GRACE) and not (_has_ended(process.pid) and process.exited.wait(_SEEN)):
            process.kill()
            process.exited.wait(_SEEN)
            detail = "it had closed its connection, and was stopped"
        if phase == "start":
            warden().run(self.drain)  # the last it said may be what it was about to do
            phase = self._phase
        return self._death(phase, detail)

    def gone(self) -> WorkerDied:
        """The error for whoever needs something that lived in this worker, which has ended."""
        error = self._death("call", "what was borrowed from it is gone with it")
        error.taken = False
        return error

    def _death(self, phase: str, detail: str) -> WorkerDied:
        process = self.process
        assert process is not None
        if process.out_of_memory is not None:
            limit, use = process.out_of_memory
            return WorkerOutOfMemory(
                self.service,
                process.pid,
                limit=limit,
                use=use,
                phase=phase,
                exit_code=process.exit_code,
                signal=process.signal,
                stderr=process.last_stderr(),
            )
        return WorkerDied(
            self.service,
            process.pid,
            phase=phase,
            exit_code=process.exit_code,
            signal=process.signal,
            stderr=process.last_stderr(),
            detail=detail,
        )

    def end(self, cause: Cause, why: str) -> None:
        """Kill it without waiting, and remember why."""
        if self.cause is None:
            self.cause = cause
            self.why = why
        self.doom()
        if self.process is not None:
            self.process.kill()

    def broke_rules(self, error: ProtocolError) -> str:
        """What it sent is not of the wire: kill it without waiting. Returns why, for a message."""
        why = f"it broke the wire's rules: {error}"
        self.end(Cause.CRASHED, why)
        return why

    def doom(self) -> None:
        """No further call is to go to it."""
        told, self.on_doomed = self.on_doomed, None
        if told is not None:
            told()

    def terminate(self) -> Strays | None:
        """Ask the process to end, as a service manager would. Returns what it had started, for when it has ended."""
        process = self.process
        if process is None or process.has_exited:
            return None
        self.doom()
        strays = Strays(process.python_pid)
        with contextlib.suppress(OSError):
            os.kill(process.python_pid, signal.SIGTERM)
        return strays

    def hang_up(self) -> None:
        """Let the worker end in order: it tears the service down and exits."""
        if self.process is not None:
            for data in self.process.connections:
                with contextlib.suppress(OSError):
                    data.sock.shutdown(socket.SHUT_RDWR)

    def stop(self, grace: float) -> None:
        """``hang_up``, wait at most ``grace`` seconds, then end the whole tree."""
        process = self.process
        if process is None:
            return
        self.hang_up()
        if not process.exited.wait(grace):
            self.kill()
        self.close()

    def kill(self) -> None:
        """End the whole tree now, and wait until it has ended."""
        process = self.process
        if process is not None:
            process.kill()
            process.exited.wait(5.0)
            self.close()

    def close(self) -> None:
        """Let go of the descriptors. The process has ended, or ends by itself after ``hang_up``."""
        process = self.process
        loans = self._loans
        if loans is not None:
            loans.close()
        if process is not None:
            process.close()
            if len(self.spare) >= len(self.channels):  # else somebody is still in a call
                process.unmap()
        self.lending.clear()


def _has_ended(pid: int) -> bool:
    """Whether a process has ended, waited for or not. False where the system does not tell."""
    found = usage(pid)
    return usage(os.getpid()) is not None if found is None else found.state in ("Z", "X")


def template_for(plan: WorkerPlan, present: Template | None) -> Template | None:
    """The template that workers of this plan are to be forked from; None if they are not to be.

    Args:
        present: the one that was used so far. If it is still right it is returned; else it is still to be released.
    """
    if not plan.preload or plan.sandbox is not None:
        return None
    from ..processes.template import recipe, template

    folders = (*plan.sys_path, *(one for one in plan.service_folders if _holds_any(one, plan.preload)))
    wanted = recipe(plan.environment.python, _environ(plan), plan.preload, tuple(dict.fromkeys(folders)))
    if present is not None and present.recipe == wanted:
        return present
    return template(wanted, plan.service)


def _holds_any(folder: str, modules: Sequence[str]) -> bool:
    """Whether a folder holds one of these modules: else those who share an environment can share a template."""
    tops = {name.partition(".")[0] for name in modules}
    return any(os.path.isfile(f"{folder}/{top}.py") or os.path.isdir(f"{folder}/{top}") for top in tops)


def _environ(plan: WorkerPlan) -> dict[str, str]:
    """The process environment of a worker: this one's, less what would make another Python part of it."""
    environ = dict(os.environ)
    if not plan.environment.is_host:
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP", "__PYVENV_LAUNCHER__"):
            environ.pop(name, None)
        # So that programs which packages install are found first, as in an activated environment.
        environ["PATH"] = os.pathsep.join(
            [os.path.dirname(plan.environment.python), *filter(None, [environ.get("PATH")])]
        )
        environ["VIRTUAL_ENV"] = plan.environment.prefix
    environ.update(thread_variables(plan.limits))
    if plan.sandbox is not None:
        return sandbox_environ(environ, {**thread_variables(plan.limits), **plan.env_vars})
    environ.update(plan.env_vars)
    return environ


def _needed(plan: WorkerPlan) -> list[str]:
    """What a worker reads, and must therefore see in a sandbox: its environment, and its service's files."""
    needed = [plan.environment.prefix, *plan.environment.site_packages]
    needed += [folder for folder in (*plan.service_folders, *plan.sys_path) if not is_broad(folder)]
    if plan.entry["kind"] == "file":
        needed.append(plan.entry["path"])  # by itself, should its folder hold too much else
    return needed
