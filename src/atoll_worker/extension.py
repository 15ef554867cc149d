# SPDX-License-Identifier: Apache-2.0
"""Extensions: a pack of code whose public methods, and whose nodes, its host calls.

The same in a worker and, for a pack that is not isolated, in the host. What always holds: a pack is one file or one
package, loaded under the name of its file or folder where that is free; one object of its ``ExtensionBase`` class is
made, then ``on_module_loaded`` is called. What does not belong here: what proxies look like in the host
(``atoll.extensions``).
"""

from __future__ import annotations

import os
import sys

from .completion import complete, is_coroutine
from .host_modules import explain
from .lent import unlend
from .node_description import describe_node, function_of, id_of, kind_of
from .node_interface import Hidden, hidden_now, told
from .service import (
    FunctionTable,
    Service,
    is_async_generator_function,
    is_coroutine_function,
    is_generator_function,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

# Names in an extension's function table, beside those of its methods.
DESCRIBE_EXTENSION = "__extension__"
RUN_NODE = "__run_node__"

# Files of the frames between a pack's code and what loads it.
_NOT_OF_PACKS = (os.path.dirname(os.path.abspath(__file__)) + os.sep, "<frozen importlib")

_NOT_CALLED = frozenset(("on_module_loaded", "on_unload"))


class ExtensionBase:
    """Base of an extension: its public methods, plain or ``async``, are what its host can call.

    A pack needs a class of its own only for methods of its own: one that defines nodes, by ``NODE_CLASS_MAPPINGS`` or
    ``comfy_entrypoint``, has them called as it is.

    Attributes:
        nodes: node classes by id; what the pack's module defines, until ``on_module_loaded`` says otherwise.
    """

    nodes: Dict[str, Any] = {}  # noqa: RUF012 - every extension gets its own

    def on_module_loaded(self, module: ModuleType) -> Any:
        """Called once, when the pack's module was loaded; awaited if it is ``async``. What it raises makes loading the
        extension fail."""

    def on_unload(self) -> Any:
        """Called when the extension is closed or reloaded in order (not when its worker is killed); awaited if it is
        ``async``."""

    def get_node_ids(self) -> List[str]:
        """The ids of its nodes."""
        return list(self.nodes)

    def get_node_schema(self, node_id: str) -> Any:
        """What a node says of itself, as plain data.

        Raises:
            LookupError: there is no such node.
        """
        return describe_node(node_id, self._node_class(node_id))

    async def execute_node(self, node_id: str, **inputs: Any) -> Any:
        """Run a node once, with an object of its own if it needs one.

        Raises:
            LookupError: there is no such node.
        """
        cls = self._node_class(node_id)
        target = cls if kind_of(cls) == "v3" else cls()
        result = getattr(target, function_of(cls))(**inputs)
        return await result if is_coroutine(result) else result

    def _node_class(self, node_id: str) -> Any:
        try:
            return self.nodes[node_id]
        except KeyError:
            known = ", ".join(map(str, self.nodes)) or "none"
            raise LookupError(f"the extension has no node {node_id!r}; its nodes are: {known}") from None


# -- loading -----------------------------------------------------------------------------------------------------------


def load_pack(path: str) -> ModuleType:
    """Import a ``.py`` file or a package's folder, under its own name if that is free.

    Raises:
        FileNotFoundError: there is no such file, or no ``__init__.py`` in the folder.
        Exception: whatever its code raises; then nothing of it stays loaded.
    """
    from _frozen_importlib import module_from_spec
    from _frozen_importlib_external import (
        EXTENSION_SUFFIXES,
        ExtensionFileLoader,
        FileFinder,
        SourceFileLoader,
        spec_from_file_location,
    )

    class Loader(SourceFileLoader):
        """By microseconds, as ``runtime.load_file``: a pack is loaded again after every change."""

        def path_stats(self, path: str) -> Any:
            stats = dict(super().path_stats(path))
            stats["mtime"] = int(stats["mtime"] * 1e6)
            return stats

    class Submodules:
        """Finds the pack's own modules, to be loaded by the same loader."""

        @staticmethod
        def find_spec(fullname: str, folders: Any, target: Any = None) -> Any:
            if not fullname.startswith(name + "."):
                return None
            for folder in folders or ():
                finder = FileFinder(folder, (ExtensionFileLoader, EXTENSION_SUFFIXES), (Loader, [".py"]))
                spec = finder.find_spec(fullname)
                if spec is not None and spec.loader is not None:
                    return spec
            return None

    path = os.path.abspath(path)
    is_package = os.path.isdir(path)
    file = os.path.join(path, "__init__.py") if is_package else path
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: there is no such file; an extension is a .py file or a package's folder")
    name = _free_name(os.path.basename(path) if is_package else os.path.basename(path)[: -len(".py")])
    locations = [path] if is_package else None
    spec = spec_from_file_location(name, file, loader=Loader(name, file), submodule_search_locations=locations)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = module_from_spec(spec)
    sys.modules[name] = module
    if is_package:
        Submodules.pack = name  # type: ignore[attr-defined]
        sys.meta_path.insert(0, Submodules)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        unload_pack(module)
        raise
    return module


def _free_name(name: str) -> str:
    standard = getattr(sys, "stdlib_module_names", ())  # from Python 3.10 on
    if name.isidentifier() and name not in sys.modules and name not in standard and name != "atoll":
        return name
    base = "atoll_extension_" + "".join(c if c.isalnum() else "_" for c in name)
    name, number = base, 1
    while name in sys.modules:
        number += 1
        name = f"{base}_{number}"
    return name


def unload_pack(module: ModuleType) -> None:
    """Forget a pack's modules, so that it can be loaded anew."""
    name = module.__name__
    sys.meta_path[:] = [one for one in sys.meta_path if getattr(one, "pack", None) != name]
    for known in list(sys.modules):
        if known == name or known.startswith(name + "."):
            del sys.modules[known]


async def make_extension(module: ModuleType) -> ExtensionBase:
    """The one object of a pack's extension class, with the pack's nodes, and told of its module.

    Raises:
        ValueError: there are several such classes, or neither one nor any node.
    """
    cls = _extension_class(module)
    nodes = await _nodes_of(module)
    if cls is ExtensionBase and not nodes:
        raise ValueError(
            f"{module.__file__} is no extension: it has no class that derives from ExtensionBase, no "
            "NODE_CLASS_MAPPINGS that names nodes and no comfy_entrypoint()"
        )
    extension: ExtensionBase = cls()
    extension.nodes = nodes
    await _awaited(extension.on_module_loaded(module))
    if not isinstance(extension.nodes, dict):
        raise ValueError(
            f"{module.__file__}: {cls.__name__}.nodes is {extension.nodes!r:.100}, expected node classes by id"
        )
    return extension


def _extension_class(module: ModuleType) -> Any:
    found = {
        one for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, ExtensionBase) and one is not ExtensionBase
        and (one.__module__ == module.__name__ or one.__module__.startswith(module.__name__ + "."))
    }  # fmt: skip
    leaves = [one for one in found if not any(one in other.__mro__[1:] for other in found)]
    if len(leaves) > 1:
        names = " and ".join(sorted(one.__name__ for one in leaves))
        raise ValueError(f"{module.__file__} has several extension classes, {names}, expected one")
    return leaves[0] if leaves else ExtensionBase


async def _nodes_of(module: ModuleType) -> Dict[str, Any]:
    nodes: Dict[str, Any] = {}
    mappings = getattr(module, "NODE_CLASS_MAPPINGS", None)
    if isinstance(mappings, dict):
        nodes.update(mappings)
    elif mappings is not None:
        raise ValueError(f"{module.__file__}: NODE_CLASS_MAPPINGS is {mappings!r:.100}, expected node classes by id")
    entrypoint = getattr(module, "comfy_entrypoint", None)
    if callable(entrypoint):
        pack = await _awaited(entrypoint())
        if not hasattr(pack, "get_node_list"):
            raise ValueError(
                f"{module.__file__}: comfy_entrypoint() returned {pack!r:.100}, expected a ComfyExtension, whose "
                "get_node_list() names the node classes"
            )
        on_load = getattr(pack, "on_load", None)
        if on_load is not None:
            await _awaited(on_load())
        listed = await _awaited(pack.get_node_list())
        if not isinstance(listed, (list, tuple)):
            raise ValueError(f"{module.__file__}: get_node_list() returned {listed!r:.100}, expected node classes")
        for cls in listed:
            try:
                node_id = id_of(cls)
            except Exception:  # of this node alone: what is wrong with it is said when it is described
                node_id = getattr(cls, "__name__", repr(cls))
            nodes[node_id] = cls
    return nodes


async def _awaited(value: Any) -> Any:
    return await value if is_coroutine(value) else value


# -- nodes -------------------------------------------------------------------------------------------------------------


class _Nodes:
    """Runs an extension's nodes, and keeps the objects of those that have a state."""

    def __init__(self, extension: ExtensionBase) -> None:
        self._extension = extension
        self._objects: Dict[str, Any] = {}

    def run(
        self,
        node_id: str,
        method: str,
        token: Optional[str],
        gone: Sequence[str],
        inputs: Dict[str, Any],
        hidden: Optional[Dict[str, Any]] = None,
    ) -> Any:
        """Call a method of a node.

        Args:
            node_id: the node.
            method: its method.
            token: of the host's object whose counterpart is called; None for the class.
            gone: tokens of objects that the host has no more.
            inputs: by name.
            hidden: what the host knows of this run, by name; None if it says nothing.
        """
        for one in gone:
            self._objects.pop(one, None)
        target = self._extension._node_class(node_id)
        if token is not None:
            cls = target
            target = self._objects.get(token)
            if target is None:
                target = self._objects[token] = cls()
        known = None if hidden is None else Hidden(unlend(hidden))
        token_of_hidden = hidden_now.set(known)
        try:
            result = getattr(target, method)(**unlend(inputs))
            return told(complete(_knowing(known, result)) if is_coroutine(result) else result)
        except ImportError as error:
            explain(error)
            raise
        finally:
            hidden_now.reset(token_of_hidden)


async def _knowing(hidden: Optional[Hidden], coroutine: Any) -> Any:
    """A coroutine in the context of its run: the loop it is run by has one of its own."""
    hidden_now.set(hidden)
    return await coroutine


# -- the function table of an isolated extension -----------------------------------------------------------------------


class _ExtensionService(Service):
    """An extension as a service."""

    def __init__(self, path: str, modules: Mapping[str, Any]) -> None:
        from . import host_modules, node_interface

        node_interface.provide()
        host_modules.provide(modules)
        self._module = load_pack(path)
        self.extension = complete(make_extension(self._module))
        self._nodes = _Nodes(self.extension)

    def teardown(self) -> None:
        unloaded = self.extension.on_unload()
        if is_coroutine(unloaded):
            complete(unloaded)

    def describe(self) -> Dict[str, Any]:
        """What the host makes of it: its methods and nodes, and what was wrong with some."""
        nodes: Dict[str, Any] = {}
        refused: Dict[str, str] = {}
        for node_id, cls in self.extension.nodes.items():
            try:
                nodes[str(node_id)] = describe_node(node_id, cls)
            except Exception as error:
                explain(error)
                refused[str(node_id)] = f"{type(error).__name__}: {error}"
        methods = {name: is_coroutine_function(method) for name, method in methods_of(self.extension)}
        return {"methods": methods, "nodes": nodes, "refused": refused, "display_names": display_names(self._module)}

    def __atoll_functions__(self) -> Iterator[Tuple[str, Callable[..., Any]]]:
        yield DESCRIBE_EXTENSION, self.describe
        yield RUN_NODE, self._nodes.run
        for name, method in methods_of(self.extension):
            yield name, _crossing(method)


def display_names(module: Any) -> Dict[str, str]:
    """What a pack says that its nodes are shown as, by id."""
    names = getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", None)
    return {str(key): str(name) for key, name in names.items()} if isinstance(names, dict) else {}


def methods_of(extension: ExtensionBase) -> Iterator[Tuple[str, Callable[..., Any]]]:
    """The methods that a host may call, by name."""
    for name in dir(type(extension)):
        if name.startswith("_") or name in _NOT_CALLED or isinstance(getattr(type(extension), name), (type, property)):
            continue
        method = getattr(extension, name)
        if callable(method):
            yield name, method


def _crossing(method: Any) -> Callable[..., Any]:
    """A method that takes and gives what crosses. Of the same kind: the runtime looks whether it is a coroutine
    function or a generator function."""
    call: Any
    if is_async_generator_function(method):

        async def items_of(*args: Any, **kwargs: Any) -> Any:
            async for item in method(*unlend(args), **unlend(kwargs)):
                yield told(item)

        call = items_of
    elif is_generator_function(method):

        def items(*args: Any, **kwargs: Any) -> Any:
            for item in method(*unlend(args), **unlend(kwargs)):
                yield told(item)

        call = items
    elif is_coroutine_function(method):

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return told(await method(*unlend(args), **unlend(kwargs)))

        call = awaited
    else:

        def plain(*args: Any, **kwargs: Any) -> Any:
            return told(method(*unlend(args), **unlend(kwargs)))

        call = plain
    call.__name__, call.__doc__, call.__wrapped__ = method.__name__, method.__doc__, method
    return call  # type: ignore[no-any-return]


def table_of_extension(path: str, modules: Optional[Mapping[str, Any]] = None) -> FunctionTable:
    """The function table of a pack, in its worker, with the modules that its host offers to it."""
    table = FunctionTable()
    try:
        table.add_service(lambda: _ExtensionService(path, modules or {}))
    except BaseException as error:
        explain(error)
        # Of its traceback the author of the pack wants their own lines, not how they were come to.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_NOT_OF_PACKS):
            trace = trace.tb_next
        raise error.with_traceback(trace)  # noqa: B904 - it is the same
    return table
