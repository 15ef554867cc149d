# SPDX-License-Identifier: Apache-2.0
"""One worker of a service: a process, greeted, loaded and ready to be called."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from atoll_worker import wire
from atoll_worker.connection import Connection, ConnectionClosed, DeadlinePassed
from atoll_worker.values import Decoder, Encoder

from ..environments import Environment, check_drift
from ..errors import ProtocolError, WorkerDied, WorkerOutOfMemory, WorkerStartError
from ..processes import (
    Limits,
    Mover,
    SandboxPolicy,
    WorkerProcess,
    is_broad,
    sandbox_environ,
    start_process,
    thread_variables,
)

# Seconds for a process that closed its connection to be seen to have ended; else it is ended.
_END_GRACE = 1.0
# Seconds a worker gets to say where it is stuck.
_STACKS_GRACE = 0.2


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


class Worker:
    """A started worker. ``call`` it from one thread at a time.

    Attributes:
        connection: its data connection; ready for calls.
        process: the process.
        functions: names of the functions it exposes.
        about: what it said of itself: ``pid``, ``version``, ``executable``, ``prefix``, ``sys_path``, ``loaded``.
    """

    def __init__(self, plan: WorkerPlan) -> None:
        """Start a process and load the service in it.

        Raises:
            WorkerStartError: it cannot be started, does not answer in time, or the service raised.
            WorkerDied: the process ended.
            EnvironmentDrift: it would load a pinned package from outside its environment.
        """
        self._plan = plan
        self._control_reader = wire.FrameReader()
        self.encoder = Encoder()
        self.decoder = Decoder(checked=True, side="the host")
        deadline = time.monotonic() + plan.start_timeout
        try:
            self.process: WorkerProcess = start_process(
                plan.environment.python,
                plan.service,
                _environ(plan),
                use_lane=os.environ.get("ATOLL_LANE", "1") != "0",
                spin=os.environ.get("ATOLL_SPIN", "1") != "0",
                limits=plan.limits,
                sandbox=plan.sandbox,
                needed=_needed(plan) if plan.sandbox is not None else (),
            )
        except OSError as error:
            raise WorkerStartError(
                f"no worker of service {plan.service!r} can be started with {plan.environment.python}: {error}"
            ) from error
        data = self.process.connections[0]
        self.connection = Connection(
            data.sock,
            data.lane,
            "client",
            spin=os.environ.get("ATOLL_SPIN", "1") != "0",
        )
        try:
            self._greet(deadline)
            self.connection.on_together = Mover(self.process.python_pid)
        except BaseException:
            self.kill()
            raise

    def _greet(self, deadline: float) -> None:
        plan = self._plan
        connection = self.connection
        try:
            connection.send(wire.HELLO, wire.RAW, wire.hello())
            wire.check_hello(connection.receive(deadline).payload)
            load = {"entry": dict(plan.entry), "sys_path": list(plan.sys_path), "watch": dict(plan.environment.modules)}
            connection.send(wire.LOAD, wire.PICKLE, self.encoder.encode(load))
            frame = connection.receive(deadline)
        except ConnectionClosed:
            self.raise_died("start")
        except DeadlinePassed:
            phase = self._phase("start")  # first, since stacks() would read past it
            stacks = self.stacks()
            raise WorkerStartError(
                f"service {plan.service!r} was not ready after start_timeout={plan.start_timeout:g} seconds "
                f"(in phase {phase}); its worker was stopped" + (f". It was here:\n{stacks}" if stacks else "")
            ) from None
        except ProtocolError as error:
            raise WorkerStartError(
                f"the worker of service {plan.service!r} does not speak the wire: {error}"
            ) from error
        answer: dict[str, Any] = self.decoder.decode(frame.payload, frame.buffers)
        if frame.kind == wire.ERROR:
            doing = "set it up" if answer["phase"] == "setup" else "import it"
            raise WorkerStartError(
                f"the worker of service {plan.service!r} could not {doing}:\n\n{answer['text'].rstrip()}"
            )
        self.functions: tuple[str, ...] = tuple(answer["functions"])
        self.about = answer
        check_drift(plan.environment, answer["sys_path"], answer["loaded"], plan.service_folders)

    @property
    def alive(self) -> bool:
        """False once the process has ended."""
        return not self.process.exited.is_set()

    def raise_died(self, phase: str) -> NoReturn:
        """After the connection closed: find out how the process ended, and raise that."""
        process = self.process
        detail = ""
        if not process.exited.wait(_END_GRACE):
            process.kill()
            process.exited.wait(_END_GRACE)
            detail = "it had closed its connection, and was stopped"
        if process.out_of_memory is not None:
            limit, use = process.out_of_memory
            raise WorkerOutOfMemory(
                self._plan.service,
                process.pid,
                limit=limit,
                use=use,
                phase=self._phase(phase),
                exit_code=process.exit_code,
                signal=process.signal,
                stderr=process.last_stderr(),
            ) from None
        raise WorkerDied(
            self._plan.service,
            process.pid,
            phase=self._phase(phase),
            exit_code=process.exit_code,
            signal=process.signal,
            stderr=process.last_stderr(),
            detail=detail,
        ) from None  # that the connection closed says nothing more

    def _phase(self, phase: str) -> str:
        """What the worker last said it was about to do, while it had not said that it was ready."""
        if phase == "start":
            for frame in self._read_control(0.0):
                if frame.kind == wire.PHASE:
                    phase = bytes(frame.payload).decode()
        return phase

    def stacks(self) -> str:
        """The Python stacks of the worker's threads, for a message; empty if it does not answer in time."""
        from ..processes.stacks import for_message, python_stacks

        return for_message(python_stacks(self.process.python_pid, _STACKS_GRACE))

    def _read_control(self, timeout: float) -> list[wire.Frame]:
        control = self.process.control
        try:
            control.settimeout(timeout)
            return self._control_reader.receive_data(control.recv(1 << 16))
        except (OSError, ProtocolError):
            return []

    def hang_up(self) -> None:
        """Let the worker end in order: it tears the service down and exits."""
        with contextlib.suppress(OSError):
            self.process.connections[0].sock.shutdown(socket.SHUT_RDWR)

    def stop(self, grace: float) -> None:
        """``hang_up``, wait at most ``grace`` seconds, then end the whole tree."""
        self.hang_up()
        if not self.process.exited.wait(grace):
            self.kill()
        self.close()

    def kill(self) -> None:
        """End the whole tree now, and wait until it has ended."""
        self.process.kill()
        self.process.exited.wait(5.0)
        self.close()

    def close(self) -> None:
        """Let go of the descriptors. The process has ended, or ends by itself after ``hang_up``."""
        self.connection.close()
        self.process.control.close()


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
