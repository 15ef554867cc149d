# SPDX-License-Identifier: Apache-2.0
"""Modules of the host's that a pack imports: what runs in the host stays there, and what is data is read from there.

What always holds: only what the host offers can be imported, and of it only functions and classes of its own, which
are called there, and plain data; importing any other module of ComfyUI says that it is not there, and what to do.
``comfy_api`` is no such module (``node_interface``).
"""

from __future__ import annotations

import sys

from .context import channel_now, lendings
from .errors import AtollError
from .lent import lend, unlend
from .references import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Callable, List, Mapping
else:
    ModuleType = type(sys)  # `types` need not be imported for it

# Modules that are ComfyUI itself, which no isolated process has -> what a pack can do instead.
OF_HOST = {
    "server": "routes and messages to the browser are the host's: pass an object of the host's, and call it",
    "execution": "the queue and the executor are the host's",
    "nodes": "other nodes are the host's: take their results as inputs",
    "folder_paths": "the host knows its folders: it can offer this module",
    "node_helpers": "ComfyUI's own code: the host can offer this module",
    "comfy": "ComfyUI's own code: take models as inputs, which are passed as references, or have the host offer it",
    "comfy_extras": "ComfyUI's own code: take models as inputs, which are passed as references",
    "comfy_execution": "the executor is the host's; expansions cannot be built there",
    "latent_preview": "previews are the host's",
    "model_management": "the host manages its models",
    "app": "ComfyUI's own code",
}


def provide(modules: Mapping[str, Mapping[str, Any]]) -> None:
    """Let what the host offers be imported, in this process.

    Args:
        modules: by name ``functions``, a list of names, and ``data``, values by name.
    """
    for name in modules:
        parent = ""
        for part in name.split(".")[:-1]:
            parent = f"{parent}.{part}" if parent else part
            if parent not in sys.modules and parent not in modules:
                sys.modules[parent] = HostModule(parent, {"functions": (), "data": {}})
    for name, offered in modules.items():
        sys.modules[name] = HostModule(name, offered)
    for name in modules:
        above, _, last = name.rpartition(".")
        if above:
            vars(sys.modules[above])[last] = sys.modules[name]


class HostModule(ModuleType):
    """A module of the host's: its functions run there, and its data is read from there.

    While no call is in progress, as when the pack is imported, functions cannot be called, and data is what it was
    when this process was started.
    """

    def __init__(self, name: str, offered: Mapping[str, Any]) -> None:
        super().__init__(name, "A module of the host's.")
        self.__path__: List[str] = []  # others may be below it
        self.__dict__["_offered"] = offered

    def __getattr__(self, name: str) -> Any:
        offered = self.__dict__["_offered"]
        if name.startswith("_"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name in offered["functions"]:
            return _forwarding(self.__name__, name)
        if name not in offered["data"]:
            raise AttributeError(
                f"the host's module {self.__name__} offers no {name!r} to this pack: only functions and classes of its "
                "own, which are called there, and plain data"
            )
        try:
            channel = channel_now()
        except AtollError:
            return offered["data"][name]
        return channel.ask(READ, ("host:" + key_of(self.__name__), name), {})


def key_of(module: str) -> str:
    """What the host knows a module by that it offers. No name that a host object may have."""
    return f"module {module}"


def _forwarding(module: str, name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            channel_now()
        except AtollError as error:
            raise AtollError(
                f"{module}.{name} is the host's, and is called while a node or method runs or says of itself what it "
                f"takes, not while the pack is imported: {error}"
            ) from None
        return unlend(lendings[0].invoke("host:" + key_of(module), name, lend(args), lend(kwargs)))

    call.__name__ = call.__qualname__ = name
    call.__module__ = module
    return call


def explain(error: BaseException) -> None:
    """Have an import that failed, because what it asks for is ComfyUI's, say so and what to do.

    Not in the import system: packs look there whether ComfyUI is there, and it is not.
    """
    name = getattr(error, "name", None) if isinstance(error, ImportError) else None
    top = name.partition(".")[0] if isinstance(name, str) else ""
    here = sys.modules.get(top)
    if top == "comfy_api":
        hint = "of its interface there is comfy_api.latest"
    elif top in OF_HOST and (here is None or isinstance(here, HostModule)):
        hint = f'{OF_HOST[top]}. The host can offer modules: ExtensionConfig(..., modules={{"{name}": {name}}})'
    else:
        return
    assert isinstance(error, ImportError)
    error.msg = f"{error.msg}: an isolated pack runs without ComfyUI; {hint}"
