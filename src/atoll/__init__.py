# SPDX-License-Identifier: Apache-2.0
"""Any Python code in its own process, with its own packages and interpreter, called like a local function.

::

    import atoll

    @atoll.function(dependencies=["numpy==1.26.4"])
    def mean(values):
        import numpy
        return numpy.__version__, float(numpy.mean(values))

    mean([1, 2, 3])                                       # ('1.26.4', 2.0)

    with atoll.Service("services/vision.py") as vision:   # what the file exposes, with what its header asks for
        vision.detect(image, threshold=0.5)

Everything public is here. The rooms behind it, lowest first: ``errors``, ``manifest``, ``environments`` and
``processes``, ``pool``, ``client``, ``cli``; and ``atoll_worker``, which runs on the other side.
"""

from __future__ import annotations

import atexit as _atexit
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from atoll_worker.registry import register

from .client import Function, FunctionInfo, RemoteFunction, Service, function
from .errors import (
    AtollError,
    BuildError,
    CallTimeout,
    DecodeError,
    EncodeError,
    EnvironmentDrift,
    EnvironmentError,
    FunctionNotFound,
    FunctionSourceError,
    InterpreterNotFound,
    LocalProtocolError,
    ManifestError,
    OfflineError,
    ProtocolError,
    RemoteError,
    RemoteProtocolError,
    ResolutionError,
    SandboxUnavailable,
    ServiceClosed,
    ValuesError,
    WorkerDied,
    WorkerError,
    WorkerOutOfMemory,
    WorkerStartError,
)
from .pool.pool import shutdown

if _TYPE_CHECKING:
    from .manifest import Breaker, Recycle, Restart, Sandbox, ServiceSpec

__version__ = "0.1.0"

__all__ = [
    "AtollError",
    "Breaker",
    "BuildError",
    "CallTimeout",
    "DecodeError",
    "EncodeError",
    "EnvironmentDrift",
    "EnvironmentError",
    "Function",
    "FunctionInfo",
    "FunctionNotFound",
    "FunctionSourceError",
    "InterpreterNotFound",
    "LocalProtocolError",
    "ManifestError",
    "OfflineError",
    "ProtocolError",
    "Recycle",
    "RemoteError",
    "RemoteFunction",
    "RemoteProtocolError",
    "ResolutionError",
    "SandboxUnavailable",
    "Restart",
    "Sandbox",
    "Service",
    "ServiceClosed",
    "ServiceSpec",
    "ValuesError",
    "WorkerDied",
    "WorkerError",
    "WorkerOutOfMemory",
    "WorkerStartError",
    "__version__",
    "function",
    "register",
    "shutdown",
]


def __getattr__(name: str) -> _Any:
    if name in ("Breaker", "Recycle", "Restart", "Sandbox", "ServiceSpec"):
        from . import manifest  # these bring msgspec, which takes longer to import than all the rest

        return getattr(manifest, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Before the interpreter ends: services tear down in order, for a bounded time.
_atexit.register(shutdown)
