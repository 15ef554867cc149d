# SPDX-License-Identifier: Apache-2.0
"""Every error that atoll raises, in one tree.

What belongs here: classes and what they say. What does not: deciding when to raise them.

::

    AtollError
    ├── ManifestError (ValueError)            a service.yaml, PEP 723 header or option is wrong
    ├── FunctionSourceError (TypeError)       @atoll.function cannot ship this function; said at decoration
    ├── EnvironmentError
    │   ├── InterpreterNotFound               no interpreter satisfies the request
    │   ├── ResolutionError                   the resolver refused; its words are the message
    │   ├── BuildError                        installing the locked packages failed
    │   ├── OfflineError                      something must be fetched, and offline was asked for
    │   └── EnvironmentDrift                  a pinned package would be loaded from outside the environment
    ├── WorkerError
    │   ├── WorkerStartError                  the worker could not import or set up the service
    │   │   └── SandboxUnavailable            a sandbox was asked for, and cannot be had here
    │   ├── WorkerDied                        the process ended: exit code or signal, phase, last stderr lines
    │   │   └── WorkerOutOfMemory             it held more memory than it may; says the limit and the use
    │   └── ServiceCrashed (RuntimeError)     ServiceClient: the service's process could not start, or ended
    ├── ServiceFailed (ValueError)            ServiceClient: the service answered that the call came to nothing
    ├── CallTimeout (TimeoutError)            the deadline of a call passed; says how the call was ended
    ├── CallCancelled (CancelledError)        its caller gave a call up; says how the call was ended
    ├── QueueFull                             as many callers wait as may
    ├── CircuitOpen                           workers keep failing, so none is started for now; says why
    ├── FunctionNotFound (AttributeError)     the service exposes no function of that name
    ├── ServiceClosed (RuntimeError)          a call after close() or atoll.shutdown()
    ├── RemoteError                           the worker's function raised; also an instance of the original
    │                                         class where that is a builtin or was registered
    ├── ValuesError
    │   ├── EncodeError (TypeError)           a value cannot cross; says which part of which argument
    │   └── DecodeError (ValueError)          received bytes are not a value this side admits
    ├── SegmentsExhausted (MemoryError)       shared memory is used up; says who has it
    └── ProtocolError
        ├── LocalProtocolError                this side broke the wire's rules (a bug in atoll)
        └── RemoteProtocolError               the other side did

``RemoteError``, ``ValuesError``, ``SegmentsExhausted`` and ``ProtocolError`` with what is under them are shared with
the worker side and defined in ``atoll_worker.errors``.
"""

from __future__ import annotations

import signal as _signal
from collections.abc import Mapping as _Mapping
from collections.abc import Sequence
from concurrent.futures import CancelledError as _CancelledError
from typing import Any as _Any

from atoll_worker.errors import (
    AtollError,
    DecodeError,
    EncodeError,
    LocalProtocolError,
    ProtocolError,
    RemoteError,
    RemoteProtocolError,
    SegmentsExhausted,
    ValuesError,
)

__all__ = [
    "AtollError",
    "BuildError",
    "CallCancelled",
    "CallTimeout",
    "CircuitOpen",
    "DecodeError",
    "EncodeError",
    "EnvironmentDrift",
    "EnvironmentError",
    "FunctionNotFound",
    "FunctionSourceError",
    "InterpreterNotFound",
    "LocalProtocolError",
    "ManifestError",
    "OfflineError",
    "ProtocolError",
    "QueueFull",
    "RemoteError",
    "RemoteProtocolError",
    "ResolutionError",
    "SandboxUnavailable",
    "SegmentsExhausted",
    "ServiceClosed",
    "ServiceCrashed",
    "ServiceFailed",
    "ValuesError",
    "WorkerDied",
    "WorkerError",
    "WorkerOutOfMemory",
    "WorkerStartError",
]


class ManifestError(AtollError, ValueError):
    """A ``service.yaml``, a PEP 723 header or an option holds a wrong value.

    The message names the file, the key, what was found and what is expected.
    """


class FunctionSourceError(AtollError, TypeError):
    """``@atoll.function`` cannot ship this function's text; the message names what stands in the way."""


class EnvironmentError(AtollError):
    """An environment could not be found, resolved, built or trusted."""


class InterpreterNotFound(EnvironmentError):
    """No Python interpreter on this machine satisfies the request; the message lists those that were seen."""


class ResolutionError(EnvironmentError):
    """The resolver refused the dependencies. The message holds its own words, unchanged."""


class BuildError(EnvironmentError):
    """The locked packages could not be installed. The message holds the installer's own words."""


class OfflineError(EnvironmentError):
    """Something would have to be fetched, and offline mode was asked for."""


class EnvironmentDrift(EnvironmentError):
    """A package that the environment pins would be, or was, loaded from somewhere else."""


class WorkerError(AtollError):
    """Something about the worker process, not about the function it ran."""


class WorkerStartError(WorkerError):
    """The worker could not import or set up the service; the message ends with its traceback."""


class SandboxUnavailable(WorkerStartError):
    """A sandbox was asked for, and there can be none here; the message says what is missing and how to get it.

    The worker is not started: one that is shut in less than was asked for would be worse than none.
    """


class WorkerDied(WorkerError):
    """The worker process ended before it answered.

    Attributes:
        service: name of the service.
        pid: process id of the worker that died.
        exit_code: its exit status, or None when a signal ended it.
        signal: the signal that ended it, or None when it exited.
        phase: what it was doing: ``"start"``, ``"setup"`` or ``"call"``.
        stderr: its last stderr lines, oldest first.
        taken: False if it had certainly not begun the call. Such a call goes to another worker by itself, unless it
            needs this very one.
    """

    taken = True

    def __init__(
        self,
        service: str,
        pid: int,
        *,
        phase: str,
        exit_code: int | None = None,
        signal: int | None = None,
        stderr: Sequence[str] = (),
        detail: str = "",
    ) -> None:
        self.service = service
        self.pid = pid
        self.exit_code = exit_code
        self.signal = signal
        self.phase = phase
        self.stderr = tuple(stderr)
        if signal is not None:
            try:
                how = f"was killed by signal {signal} ({_signal.Signals(signal).name})"
            except ValueError:
                how = f"was killed by signal {signal}"
        elif exit_code is not None:
            how = f"exited with code {exit_code}"
        else:
            how = "closed its connection"
        message = f"the worker of service {service!r} (pid {pid}) {how} during {phase}"
        if detail:
            message += f": {detail}"
        if self.stderr:
            message += "\nits last lines on stderr:\n" + "\n".join("    " + line for line in self.stderr)
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_worker_died, (type(self), str(self), dict(self.__dict__)))


def _rebuild_worker_died(kind: type[WorkerDied], message: str, state: dict[str, object]) -> WorkerDied:
    error = kind.__new__(kind, message)
    error.args = (message,)
    error.__dict__.update(state)
    return error


class WorkerOutOfMemory(WorkerDied):
    """The worker, with everything it started, held more memory than its limit allows, and was killed for it.

    Attributes:
        limit: bytes that it may hold.
        use: bytes that it held when that was found; at least ``limit``.
    """

    def __init__(
        self,
        service: str,
        pid: int,
        *,
        limit: int,
        use: int,
        phase: str,
        exit_code: int | None = None,
        signal: int | None = None,
        stderr: Sequence[str] = (),
    ) -> None:
        self.limit = limit
        self.use = use
        detail = f"it held {_size_text(use)} of memory, and may hold {_size_text(limit)} (memory={limit})"
        super().__init__(service, pid, phase=phase, exit_code=exit_code, signal=signal, stderr=stderr, detail=detail)


class ServiceCrashed(WorkerError, RuntimeError):
    """A call of an ``atoll.ServiceClient`` got no answer: the service's process could not start, or ended. What did it
    is the ``__cause__``: a ``WorkerStartError`` or a ``WorkerDied``."""


class ServiceFailed(AtollError, ValueError):
    """A call of an ``atoll.ServiceClient`` was answered with ``success: false``. Where the service raised, that is the
    ``__cause__``.

    Attributes:
        service: name of the service.
        answer: the whole answer.
        error_type: name of the class of the error; empty if the service did not raise, but said so itself.
        context: ``"Validation error"`` or ``"Unexpected error"``; empty as above.
        traceback: as the service printed it; empty as above.
    """

    def __init__(self, service: str, answer: _Mapping[str, _Any]) -> None:
        self.service = service
        self.answer = answer
        self.error_type = str(answer.get("error_type", ""))
        self.context = str(answer.get("context", ""))
        self.traceback = str(answer.get("traceback", ""))
        said = answer.get("error", "success is false")
        super().__init__(f"{service}: {self.error_type}{': ' if self.error_type else ''}{said}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.service, dict(self.answer))


def _size_text(size: int) -> str:
    """Bytes, as people read them: decimal units, three digits."""
    if size < 1000:
        return f"{size} bytes"
    number, units = size / 1000, ["kB", "MB", "GB", "TB"]
    while number >= 999.5 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.3g} {units[0]}"


class CallTimeout(AtollError, TimeoutError):
    """The deadline of a call passed before the worker answered.

    Attributes:
        rung: what it took to end the call: ``"cooperative"`` (its code looked, and returned), ``"exception"``
            (``Cancelled`` was raised in it), ``"SIGTERM"`` or ``"SIGKILL"`` (its worker was stopped, and is replaced);
            None where it had not begun.
    """

    rung: str | None = None


class CallCancelled(AtollError, _CancelledError):
    """The caller gave the call up, and it was ended.

    Attributes:
        rung: as for ``CallTimeout``.
        result: what the function returned, where its code looked whether it was cancelled and returned.
    """

    rung: str | None = None
    result: object = None


class QueueFull(AtollError):
    """As many callers wait for a worker as ``max_queue`` allows. Nothing was started; try later, or elsewhere."""


class CircuitOpen(AtollError):
    """Workers of the service keep failing, so for now none is started and calls are refused at once.

    Attributes:
        service: name of the service.
        reason: why the last ones failed.
        retry_in: seconds until a worker is tried again; None if never.
    """

    def __init__(self, service: str, reason: str, retry_in: float | None) -> None:
        self.service = service
        self.reason = reason
        self.retry_in = retry_in
        again = "" if retry_in is None else f"; one is tried again in {retry_in:.1f} seconds"
        super().__init__(
            f"no worker of service {service!r} is started for now, since they keep failing{again}: {reason}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return CircuitOpen, (self.service, self.reason, self.retry_in)


class FunctionNotFound(AtollError, AttributeError):
    """The service exposes no function of this name; the message lists those it does expose."""


class ServiceClosed(AtollError, RuntimeError):
    """A call was made after ``close()`` or ``atoll.shutdown()``."""
