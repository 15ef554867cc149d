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
``processes``, ``pool``, ``client``, ``jsonrpc`` and ``extensions``, ``cli``; and ``atoll_worker``, which runs on the
other side.
"""

from __future__ import annotations

import atexit as _atexit
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from atoll_worker.references import RemoteObject, ref
from atoll_worker.registry import register

from .client import Function, FunctionInfo, RemoteFunction, Service, function
from .errors import (
    AtollError,
    BuildError,
    CallCancelled,
    CallTimeout,
    CircuitOpen,
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
    QueueFull,
    RemoteError,
    RemoteProtocolError,
    ResolutionError,
    SandboxUnavailable,
    SegmentsExhausted,
    ServiceClosed,
    ServiceCrashed,
    ServiceFailed,
    ValuesError,
    WorkerDied,
    WorkerError,
    WorkerOutOfMemory,
    WorkerStartError,
)
from .pool.pool import end as _end
from .pool.pool import shutdown
from .pool.stream import Stream
from .pool.tracing import traceparent

if _TYPE_CHECKING:
    from atoll_worker.allocation import asarray, empty
    from atoll_worker.array_buffer import ArrayBuffer
    from atoll_worker.device_array import DeviceArray
    from atoll_worker.singleton import ProxiedSingleton, local

    from .client.service_client import ServiceClient, ServicePool
    from .client.submitter import Call
    from .manifest import Breaker, Recycle, Restart, Sandbox, ServiceSpec
    from .memory_status import MemoryStatus, memory, set_memory_budget, trim_memory
    from .pool.status import PoolStatus, WorkerStatus

__version__ = "0.1.0"

__all__ = [
    "ArrayBuffer",
    "AtollError",
    "Breaker",
    "BuildError",
    "Call",
    "CallCancelled",
    "CallTimeout",
    "CircuitOpen",
    "DecodeError",
    "DeviceArray",
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
    "MemoryStatus",
    "OfflineError",
    "PoolStatus",
    "ProtocolError",
    "ProxiedSingleton",
    "QueueFull",
    "Recycle",
    "RemoteError",
    "RemoteFunction",
    "RemoteObject",
    "RemoteProtocolError",
    "ResolutionError",
    "Restart",
    "Sandbox",
    "SandboxUnavailable",
    "SegmentsExhausted",
    "Service",
    "ServiceClient",
    "ServiceClosed",
    "ServiceCrashed",
    "ServiceFailed",
    "ServicePool",
    "ServiceSpec",
    "Stream",
    "ValuesError",
    "WorkerDied",
    "WorkerError",
    "WorkerOutOfMemory",
    "WorkerStartError",
    "WorkerStatus",
    "__version__",
    "asarray",
    "empty",
    "function",
    "local",
    "memory",
    "ref",
    "register",
    "set_memory_budget",
    "shutdown",
    "traceparent",
    "trim_memory",
]


def __getattr__(name: str) -> _Any:
    if name == "Call":
        from .client.submitter import Call

        return Call
    if name in ("ServiceClient", "ServicePool"):
        from .client import service_client

        return getattr(service_client, name)
    if name in ("PoolStatus", "WorkerStatus"):
        from .pool import status

        return getattr(status, name)
    if name in ("asarray", "empty"):
        from atoll_worker import allocation

        return getattr(allocation, name)
    if name == "ArrayBuffer":
        from atoll_worker.array_buffer import ArrayBuffer

        return ArrayBuffer
    if name == "DeviceArray":
        from atoll_worker.device_array import DeviceArray

        return DeviceArray
    if name in ("MemoryStatus", "memory", "set_memory_budget", "trim_memory"):
        from . import memory_status

        return getattr(memory_status, name)
    if name in ("ProxiedSingleton", "local"):
        from atoll_worker import singleton

        return getattr(singleton, name)
    if name in ("Breaker", "Recycle", "Restart", "Sandbox", "ServiceSpec"):
        from . import manifest  # these bring msgspec, which takes longer to import than all the rest

        return getattr(manifest, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Before the interpreter ends: services tear down in order, for a bounded time.
_atexit.register(_end)
