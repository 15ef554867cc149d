# SPDX-License-Identifier: Apache-2.0
"""What runs inside the isolated process. Standard library only, Python 3.9+, never imports ``atoll``.

A service's author imports from here::

    from atoll_worker import Service, expose, register           # what can be called, what can cross
    from atoll_worker import ServiceBase                            # a service that is also a program of its own
    from atoll_worker import cancelled, host, log, progress, ref    # during a call

The host loads this package by its place on disk and runs ``__main__``; nothing is installed into the service's
environment. Layout, lowest first: ``wire`` and ``lane`` (bytes), ``registry``, ``errors``, ``guard``, ``adapters``,
``arrays`` with the rooms that it names, and ``values`` (what crosses), ``shared_memory``, ``segments``, ``loans`` and
``cargo`` (the bytes of arrays), ``streams`` and ``references`` (what is lent), ``connection`` (moving it), ``service``
(what can be called), ``channel`` (calls both ways), ``context`` (what user code sees of its call), ``control`` and
``runtime`` (the process), ``faces`` (other ways in).
"""

from .registry import register
from .service import Service, expose

__all__ = [
    "ArrayBuffer",
    "Cancelled",
    "DeviceArray",
    "ExtensionBase",
    "ProxiedSingleton",
    "SegmentsExhausted",
    "Service",
    "ServiceBase",
    "asarray",
    "cancelled",
    "empty",
    "expose",
    "host",
    "local",
    "log",
    "progress",
    "ref",
    "register",
    "run_worker",
    "traceparent",
]

TYPE_CHECKING = False
if TYPE_CHECKING:  # what `__getattr__` gives
    from .allocation import asarray, empty
    from .array_buffer import ArrayBuffer
    from .context import cancelled, host, progress
    from .device_array import DeviceArray
    from .errors import Cancelled, SegmentsExhausted
    from .extension import ExtensionBase
    from .faces.pyproc import run_worker
    from .faces.stdio import ServiceBase
    from .logs import log
    from .references import ref
    from .singleton import ProxiedSingleton, local
    from .tracing import traceparent

# Which of these user code asked for.
used_names = set()  # type: set[str]

_PLACES = {
    "ArrayBuffer": "array_buffer",
    "Cancelled": "errors",
    "DeviceArray": "device_array",
    "ExtensionBase": "extension",
    "SegmentsExhausted": "errors",
    "ProxiedSingleton": "singleton",
    "ServiceBase": "faces.stdio",
    "asarray": "allocation",
    "cancelled": "context",
    "empty": "allocation",
    "host": "context",
    "local": "singleton",
    "log": "logs",
    "progress": "context",
    "ref": "references",
    "run_worker": "faces.pyproc",
    "traceparent": "tracing",
}


def __getattr__(name: str) -> object:
    # Loaded when they are asked for: a worker's start is counted in milliseconds.
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    used_names.add(name)
    return getattr(import_module("." + place, __name__), name)
