# SPDX-License-Identifier: Apache-2.0
"""Environments: an interpreter and its packages, resolved, locked, built, cached, repaired, pruned. uv does the work.

::

    environment_request(spec)  ->  EnvironmentRequest  ->  open_environment  ->  Environment
                                        |                     ready: read two small files, look at one link
                                        |                     else:  interpreter -> lock -> build -> publish
                                   requests/<digest>.json  ->  environments/<key>/

The rooms: ``request`` (what is asked for), ``opening`` (ready or not), ``interpreters``, ``lock``, ``build``,
``existing`` (used as it is), ``installed`` (what lies in a folder), ``cache`` (files and locks), ``upkeep`` (list,
show, prune, rebuild), ``drift`` (what a worker really loaded), ``progress``, ``uv_command``.

Importing this package imports only what opening a ready environment needs; the rest comes when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .drift import check_drift
from .environment import Environment
from .opening import open_environment
from .request import EnvironmentRequest, environment_request

if TYPE_CHECKING:
    from .cache import cache_folder
    from .interpreters import Interpreter, all_interpreters, find_interpreter
    from .upkeep import list_environments, prune_environments, rebuild_environment, show_environment

__all__ = [
    "Environment",
    "EnvironmentRequest",
    "Interpreter",
    "all_interpreters",
    "cache_folder",
    "check_drift",
    "environment_request",
    "find_interpreter",
    "list_environments",
    "open_environment",
    "prune_environments",
    "rebuild_environment",
    "show_environment",
]

_LATER = {
    "Interpreter": "interpreters",
    "all_interpreters": "interpreters",
    "cache_folder": "cache",
    "find_interpreter": "interpreters",
    "list_environments": "upkeep",
    "prune_environments": "upkeep",
    "rebuild_environment": "upkeep",
    "show_environment": "upkeep",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
