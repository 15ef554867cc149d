# SPDX-License-Identifier: Apache-2.0
"""Proxy classes for the nodes of an extension: to their host they look like the originals, and run in the extension.

What always holds: what a node says of itself is asked once, when its extension is loaded, so a busy node never keeps
its host waiting for a schema; a schema, and what a result says to the interface, is made with the host's own, of which
only public names are used, whatever the pack says. What does not belong here: how values cross (``extension``).
"""

from __future__ import annotations

import copy
import enum
import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from atoll_worker.node_interface import MARK, OWN_CLASS, ROOTS, Expression, NodeOutput

from ..errors import AtollError
from .extension import Extension, IsolatedExtension, new_token

# Attributes of a V1 node that are made here.
_MADE = frozenset(("INPUT_TYPES", "IS_CHANGED", "VALIDATE_INPUTS"))


class AnyType(str):
    """The name of a type that goes with every other: unequal to none."""

    __slots__ = ()

    def __ne__(self, other: object) -> bool:
        return False

    __eq__ = str.__eq__
    __hash__ = str.__hash__


def proxy_nodes(extension: Extension, interface: ModuleType | None = None) -> dict[str, type]:
    """Classes that look like an extension's nodes, by id: for ``NODE_CLASS_MAPPINGS.update(...)``.

    Those of an extension in this process are its own.

    Args:
        extension: a loaded one.
        interface: the module that has ``io``, for nodes with a schema; ``comfy_api.latest`` if not given.

    Raises:
        AtollError: a node has a schema and there is no such module, or it has not what the schema asks for.
    """
    if not isinstance(extension, IsolatedExtension):
        return dict(extension.nodes)  # type: ignore[attr-defined]
    made: dict[str, type] = {}
    for node_id, about in extension.nodes.items():
        make = _schema_node if about["kind"] == "v3" else _plain_node
        made[node_id] = make(extension, node_id, about, interface)
    return made


# -- V1 ----------------------------------------------------------------------------------------------------------------


def _plain_node(
    extension: IsolatedExtension, node_id: str, about: Mapping[str, Any], interface: ModuleType | None
) -> type:
    """A class with ``INPUT_TYPES`` and ``FUNCTION``. Each of its objects has one of its own over there."""
    gone: list[str] = []

    def __init__(self: Any) -> None:
        self._atoll_token = token = new_token()
        weakref.finalize(self, gone.append, token).atexit = False

    members: dict[str, Any] = {
        "__init__": __init__,
        "__doc__": about["doc"],
        "__module__": __name__,
        **{name: _restored(one) for name, one in about["attributes"].items() if name not in _MADE},
    }
    if "input_types" in about:
        input_types = about["input_types"]
        members["INPUT_TYPES"] = classmethod(lambda cls: _restored(input_types))

    def forward(name: str, described: Mapping[str, Any], of_object: bool) -> Callable[..., Any]:
        def take_gone() -> list[str]:
            taken = gone[:]
            del gone[: len(taken)]
            return taken

        def token_of(one: Any) -> str | None:
            return one._atoll_token if of_object else None

        def made(one: Any, result: Any) -> Any:
            return _Maker(node_id, interface, one if isinstance(one, type) else type(one)).of(_plain(result))

        function: Callable[..., Any]
        signature = _signature("self" if of_object else "cls", described["parameters"])
        if described["is_async"]:

            async def run_async(self: Any, *args: Any, **inputs: Any) -> Any:
                bound = _bound(signature, self, args, inputs)
                return made(self, await extension.run_node_async(node_id, name, token_of(self), take_gone(), bound))

            function = run_async
        else:

            def run(self: Any, *args: Any, **inputs: Any) -> Any:
                bound = _bound(signature, self, args, inputs)
                return made(self, extension.run_node(node_id, name, token_of(self), take_gone(), bound))

            function = run
        return _named(function, name, signature)

    members[about["function"]] = forward(about["function"], about, True)
    for name, described in about["methods"].items():
        of_object = name == "check_lazy_status"
        function = forward(name, described, of_object)
        members[name] = function if of_object else classmethod(function)
    return type(about["name"], (), members)


def _plain(result: Any) -> Any:
    """A V1 host knows tuples and dictionaries only."""
    if isinstance(result, NodeOutput):
        if not result.kwargs:
            return result.args
        return {"result": result.args, **{key: one for key, one in result.kwargs.items() if one is not None}}
    return result


# -- V3 ----------------------------------------------------------------------------------------------------------------


def _schema_node(
    extension: IsolatedExtension, node_id: str, about: Mapping[str, Any], interface: ModuleType | None
) -> type:
    """A class with ``define_schema`` and ``execute``, of the host's ``io.ComfyNode``."""
    module = interface if interface is not None else _interface(node_id)
    io = module.io

    def define_schema(cls: type) -> Any:
        return _Maker(node_id, module, cls).of(about["schema"])

    def forward(name: str, described: Mapping[str, Any]) -> Any:
        signature = _signature("cls", described["parameters"])
        function: Callable[..., Any]
        if described["is_async"]:

            async def run_async(cls: type, *args: Any, **inputs: Any) -> Any:
                bound = _bound(signature, cls, args, inputs)
                result = await extension.run_node_async(node_id, name, None, (), bound, _hidden_of(cls, io))
                return _Maker(node_id, module, cls).of(result)

            function = run_async
        else:

            def run(cls: type, *args: Any, **inputs: Any) -> Any:
                bound = _bound(signature, cls, args, inputs)
                result = extension.run_node(node_id, name, None, (), bound, _hidden_of(cls, io))
                return _Maker(node_id, module, cls).of(result)

            function = run
        return classmethod(_named(function, name, signature))

    define_schema(io.ComfyNode)  # what is wrong with it is said now
    members = {
        "__doc__": about["doc"],
        "__module__": __name__,
        "define_schema": classmethod(define_schema),
        "execute": forward("execute", about),
        **{name: forward(name, described) for name, described in about["methods"].items()},
    }
    return type(about["name"], (io.ComfyNode,), members)


def _interface(node_id: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module("comfy_api.latest")
    except ImportError as error:
        raise AtollError(
            f"node {node_id!r} has a schema, which needs comfy_api.latest in this process: {error}; or give the module "
            "that has io: proxy_nodes(extension, interface=...)"
        ) from error


def _hidden_of(cls: Any, io: Any) -> dict[str, Any] | None:
    """What the host tells a node of this run: those of ``io.Hidden`` that it set on the class; None if it set none."""
    hidden = getattr(cls, "hidden", None)
    if hidden is None:
        return None
    known = getattr(io, "Hidden", None)
    names = known.__members__ if isinstance(known, type) and issubclass(known, enum.Enum) else vars(hidden)
    said = {name: getattr(hidden, name, None) for name in names}
    return {name: value for name, value in said.items() if value is not None}


class _Maker:
    """Makes what a pack wrote with the interface, by this process's.

    It names nothing but what the interface itself defines: a pack is not trusted to have anything else called.

    Args:
        node_id: the node, for messages.
        interface: the module that has ``io``; ``comfy_api.latest``, once it is needed, if None.
        cls: what the node's own class is here.
    """

    def __init__(self, node_id: str, interface: ModuleType | None, cls: type) -> None:
        self._node_id = node_id
        self._interface = interface
        self._cls = cls

    def of(self, value: Any) -> Any:
        """A value, with everything in it made.

        Raises:
            AtollError: the interface has not what is asked for.
        """
        if isinstance(value, dict):
            if MARK not in value:
                return {key: self.of(one) for key, one in value.items()}
            if value[MARK] == "any":
                return AnyType(value["text"])
            return self._follow(value.get("root", "io"), value[MARK])
        if type(value) is Expression:
            return self._cls if value._root == OWN_CLASS else self._follow(value._root, value._steps)
        if type(value) is NodeOutput:
            return self._module().io.NodeOutput(*self.of(value.args), **self.of(value.kwargs))
        if type(value) in (list, tuple):
            return type(value)(self.of(one) for one in value)
        return value

    def _module(self) -> Any:
        if self._interface is None:
            self._interface = _interface(self._node_id)
        return self._interface

    def _follow(self, root: str, steps: Sequence[Any]) -> Any:
        module = self._module()
        start = getattr(module, root, None) if root in ROOTS else None
        if start is None:
            raise self._missing(root)
        found, path, made = start, root, False
        for step in steps:
            if isinstance(step, str):
                path += f".{step}"
                if made and step == "as_dict":  # of what is shown, which some ask for right away
                    found = getattr(found, step, None)
                    if not callable(found):
                        raise self._missing(path)
                    continue
                public = not step.startswith("_") and (found is start or isinstance(found, type))
                member = getattr(found, step, None) if public else None
                if not _is_of_interface(member, module.io):
                    raise self._missing(path)
                found = member
            else:
                args, kwargs = (self.of(one) for one in step)
                try:
                    found = found(*args, **kwargs)
                except TypeError as error:
                    raise AtollError(f"node {self._node_id!r} calls {path} as this process cannot: {error}") from error
                path += "(...)"
                made = True
        return found

    def _missing(self, path: str) -> AtollError:
        return AtollError(f"node {self._node_id!r} uses {path}, which this process's comfy_api has not")


def _is_of_interface(member: Any, io: Any) -> bool:
    own = getattr(io, "__name__", "").partition(".")[0]
    if isinstance(member, enum.Enum):
        member = type(member)
    if not isinstance(member, type) and not inspect.isfunction(member):
        return False
    return member.__module__.partition(".")[0] == own


# -- both --------------------------------------------------------------------------------------------------------------


def _restored(value: Any) -> Any:
    """What ``described`` made plain, for a V1 host."""
    if isinstance(value, dict):
        if value.get(MARK) == "any":
            return AnyType(value["text"])
        return {key: _restored(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_restored(one) for one in value]
    if isinstance(value, tuple):
        return tuple(_restored(one) for one in value)
    return copy.copy(value)


def _signature(first: str, parameters: list[tuple[str, str]]) -> inspect.Signature:
    """That of the original, but for defaults: those are the extension's."""
    kinds = {kind.name: kind for kind in inspect._ParameterKind}
    found = [inspect.Parameter(first, inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for name, kind in parameters:
        optional = kinds[kind] not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        found.append(inspect.Parameter(name, kinds[kind], default=None if optional else inspect.Parameter.empty))
    return inspect.Signature(found)


def _bound(signature: inspect.Signature, one: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> dict[str, Any]:
    """What a node is called with, by name. Hosts pass names; so a call by position is the exception."""
    if not args:
        return inputs
    bound = signature.bind_partial(one, *args, **inputs)
    return dict(list(bound.arguments.items())[1:])


def _named(function: Callable[..., Any], name: str, signature: inspect.Signature) -> Callable[..., Any]:
    function.__name__ = name
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function
