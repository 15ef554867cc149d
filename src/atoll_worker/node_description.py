# SPDX-License-Identifier: Apache-2.0
"""What a node class says of itself, as plain data for its host: of either of ComfyUI's interfaces.

What always holds here: a class is only read, and what is wrong with one is a ``TypeError`` that names the node. What
does not belong here: running nodes (``extension``); what stands for their host's interface (``node_interface``).
"""

from __future__ import annotations

from .node_interface import MARK, described
from .service import is_coroutine_function

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Tuple

_OPTIONAL_METHODS = {
    "v1": ("IS_CHANGED", "VALIDATE_INPUTS", "check_lazy_status"),
    "v3": ("fingerprint_inputs", "validate_inputs", "check_lazy_status"),
}


def kind_of(cls: Any) -> str:
    """``"v1"`` or ``"v3"``: which of ComfyUI's interfaces a node class has."""
    return "v3" if hasattr(cls, "define_schema") or hasattr(cls, "DEFINE_SCHEMA") else "v1"


def function_of(cls: Any) -> str:
    """The name of the method that runs a node."""
    return "execute" if kind_of(cls) == "v3" else str(getattr(cls, "FUNCTION", "execute"))


def described_schema(cls: Any) -> Any:
    """A V3 node's schema, as what its host evaluates, or as plain data."""
    define = getattr(cls, "DEFINE_SCHEMA", None) or cls.define_schema
    schema = define()
    node_id = getattr(schema, "node_id", None)
    if isinstance(node_id, str):  # of the host's own interface: the pack runs in the host
        return {MARK: [[(), {"node_id": node_id}]]}
    return described(schema)


def describe_node(node_id: str, cls: Any) -> Dict[str, Any]:
    """What a host must know of a node to make a class that looks like it. Plain data.

    Raises:
        TypeError: what it says of itself is no data, or it is no node; the message names the node.
    """
    try:
        _check_node(node_id, cls)
        kind = kind_of(cls)
        function = function_of(cls)
        about: Dict[str, Any] = {
            "kind": kind,
            "name": getattr(cls, "__name__", str(node_id)),
            "doc": getattr(cls, "__doc__", None) or "",
            "function": function,
            "is_async": is_coroutine_function(getattr(cls, function, None)),
            "parameters": _parameters(getattr(cls, function, None)),
            "methods": {
                name: {"parameters": _parameters(member), "is_async": is_coroutine_function(member)}
                for name in _OPTIONAL_METHODS[kind]
                for member in [_own(cls, name)]
                if member is not None
            },
        }
        if kind == "v3":
            id_of(cls)
            about["schema"] = described_schema(cls)
        elif hasattr(cls, "INPUT_TYPES"):
            about["input_types"] = described(cls.INPUT_TYPES())
        about["attributes"] = dict(_attributes(cls))
    except TypeError as error:
        raise TypeError(f"node {node_id!r}: {error}") from error
    except RecursionError as error:
        raise TypeError(f"node {node_id!r}: what it says of itself is nested without end") from error
    return about


def _check_node(node_id: Any, cls: Any) -> None:
    if not isinstance(node_id, str):
        raise TypeError(f"its id is {node_id!r:.100}, expected text")
    if not isinstance(cls, type):
        raise TypeError(f"it is {cls!r:.100}, expected a class")
    if kind_of(cls) == "v1" and not isinstance(getattr(cls, "FUNCTION", None), str):
        said = repr(cls.FUNCTION) if hasattr(cls, "FUNCTION") else "missing"
        raise TypeError(f"its FUNCTION is {said:.100}, expected the name of the method that runs it")
    if not callable(getattr(cls, function_of(cls), None)):
        raise TypeError(f"it has no method {function_of(cls)!r}, which is to run it")


def _attributes(cls: Any) -> Iterator[Tuple[str, Any]]:
    """What a host reads of a class. What is no data is the pack's own, but for the types of its results."""
    for name in dir(cls):
        if not name.isupper() or name.startswith("_"):
            continue
        try:
            member = getattr(cls, name)
            if not callable(member):
                yield name, described(member)
        except Exception:
            if name == "RETURN_TYPES":
                raise


def _own(cls: Any, name: str) -> Any:
    """A method that the pack itself defines."""
    for one in getattr(cls, "__mro__", ()):
        if name in vars(one):
            return getattr(cls, name) if not one.__module__.startswith(("comfy_api", "atoll_worker")) else None
    return None


def _parameters(function: Any) -> List[Tuple[str, str]]:
    """The names and kinds of what a method takes, but for the object or class."""
    from inspect import Parameter, signature

    try:
        found = list(signature(function).parameters.values())
    except (TypeError, ValueError):
        return [("inputs", "VAR_KEYWORD")]
    if found and found[0].name in ("self", "cls") and found[0].kind is not Parameter.KEYWORD_ONLY:
        del found[0]
    return [(one.name, one.kind.name) for one in found]


def id_of(cls: Any) -> str:
    """The id that a V3 node's schema names.

    Raises:
        TypeError: it names none.
    """
    schema = described_schema(cls)
    if not isinstance(schema, dict):
        raise TypeError(f"its schema is {schema!r:.100}, expected io.Schema(...)")
    if schema.get("node_id"):
        return str(schema["node_id"])
    for step in schema.get(MARK, ()):
        if not isinstance(step, str):
            args, kwargs = step
            node_id = kwargs.get("node_id") or (args[0] if args else None)
            if node_id:
                return str(node_id)
    raise TypeError("its schema names no node_id")
