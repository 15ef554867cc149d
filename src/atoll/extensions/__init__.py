# SPDX-License-Identifier: Apache-2.0
"""Extensions: packs of code with packages of their own, loaded into an application at run time.

::

    manager = ExtensionManager()
    pack = await manager.load_extension("nodes/my_node_pack")        # a folder with a manifest.yaml
    await pack.execute_node("MyNode", image=image)                   # any public method, sync or async
    NODE_CLASS_MAPPINGS.update(proxy_nodes(pack))                    # classes that look like the pack's own nodes

Layout, lowest first: ``config`` (what is asked for), ``offered`` (modules of the host's that packs import),
``extension`` (a loaded one, in a worker or in the host), ``nodes`` (proxy classes), ``manager``; beside them ``check``,
which reads a pack's text. A thin room above ``client``: workers, limits and errors are those of any service.
"""

from __future__ import annotations

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from .config import ExtensionConfig, load_manifest

if _TYPE_CHECKING:
    from atoll_worker.extension import ExtensionBase
    from atoll_worker.singleton import ProxiedSingleton, local

    from .check import Finding, PackReport, check_pack
    from .extension import Extension
    from .manager import ExtensionManager
    from .nodes import proxy_nodes

__all__ = [
    "Extension",
    "ExtensionBase",
    "ExtensionConfig",
    "ExtensionManager",
    "Finding",
    "PackReport",
    "ProxiedSingleton",
    "check_pack",
    "load_manifest",
    "local",
    "proxy_nodes",
]

_PLACES = {
    "Extension": "atoll.extensions.extension",
    "ExtensionBase": "atoll_worker.extension",
    "ExtensionManager": "atoll.extensions.manager",
    "Finding": "atoll.extensions.check",
    "PackReport": "atoll.extensions.check",
    "ProxiedSingleton": "atoll_worker.singleton",
    "check_pack": "atoll.extensions.check",
    "local": "atoll_worker.singleton",
    "proxy_nodes": "atoll.extensions.nodes",
}


def __getattr__(name: str) -> _Any:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(place), name)
