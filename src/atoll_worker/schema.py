# SPDX-License-Identifier: Apache-2.0
"""A function's signature -> text and JSON Schema (2020-12). Imported only when somebody asks for a description.

An annotation that has no counterpart in JSON Schema, or cannot be evaluated, becomes the schema that admits anything:
descriptions help, they never stand in the way of a call.
"""

from __future__ import annotations

import collections.abc
import datetime
import enum
import inspect
import pathlib
import typing
import uuid
from typing import Any, Callable, Dict, List

_SCALARS: Dict[Any, Dict[str, Any]] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    None: {"type": "null"},
    type(None): {"type": "null"},
    bytes: {"type": "string", "contentEncoding": "base64"},
    datetime.datetime: {"type": "string", "format": "date-time"},
    datetime.date: {"type": "string", "format": "date"},
    datetime.time: {"type": "string", "format": "time"},
    datetime.timedelta: {"type": "string", "format": "duration"},
    uuid.UUID: {"type": "string", "format": "uuid"},
    pathlib.Path: {"type": "string"},
    list: {"type": "array"},
    tuple: {"type": "array"},
    set: {"type": "array", "uniqueItems": True},
    frozenset: {"type": "array", "uniqueItems": True},
    dict: {"type": "object"},
}
_ARRAYS = (list, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Set)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_UNIONS = {typing.Union, getattr(__import__("types"), "UnionType", typing.Union)}


def describe_function(function: Callable[..., Any]) -> Dict[str, Any]:
    """``signature``, ``doc`` and ``parameters`` (a JSON Schema of type object) of a function. Never raises."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return {"signature": "(...)", "doc": inspect.getdoc(function) or "", "parameters": {"type": "object"}}
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:
        # A name that exists only for type checkers: the other annotations are lost too, the names are not.
        hints = {}
    return {
        "signature": _signature_text(signature),
        "doc": inspect.getdoc(function) or "",
        "parameters": parameters_schema(signature, hints),
    }


def _signature_text(signature: inspect.Signature) -> str:
    """As it was written: annotations that are text already are shown without quotes."""
    parameters = [
        parameter.replace(annotation=_Shown(parameter.annotation))
        if isinstance(parameter.annotation, str)
        else parameter
        for parameter in signature.parameters.values()
    ]
    returns = signature.return_annotation
    return str(
        signature.replace(
            parameters=parameters, return_annotation=_Shown(returns) if isinstance(returns, str) else returns
        )
    )


class _Shown:
    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def parameters_schema(signature: inspect.Signature, hints: Dict[str, Any]) -> Dict[str, Any]:
    """The JSON Schema of an object that holds the arguments by name."""
    properties: Dict[str, Any] = {}
    required: List[str] = []
    schema: Dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            schema["additionalProperties"] = type_schema(hints[name]) if name in hints else True
            continue
        one = type_schema(hints[name]) if name in hints else {}
        if parameter.kind is parameter.VAR_POSITIONAL:
            one = {"type": "array", "items": one}
        elif parameter.default is parameter.empty:
            required.append(name)
        elif isinstance(parameter.default, (bool, int, float, str, type(None))):
            one = {**one, "default": parameter.default}
        properties[name] = one
    if required:
        schema["required"] = required
    return schema


def type_schema(hint: Any) -> Dict[str, Any]:
    """The JSON Schema of a type annotation; ``{}``, which admits anything, where there is none."""
    try:
        if hint in _SCALARS:
            return dict(_SCALARS[hint])
    except TypeError:
        return {}  # not hashable
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is not None and hasattr(typing, "Annotated") and hasattr(hint, "__metadata__"):
        schema = type_schema(arguments[0])
        words = [word for word in hint.__metadata__ if isinstance(word, str)]
        return {**schema, "description": words[0]} if words else schema
    if origin in _UNIONS:
        return {"anyOf": [type_schema(one) for one in arguments]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return {"type": "array", "items": type_schema(arguments[0])}
        fixed = [type_schema(one) for one in arguments]
        return {"type": "array", "prefixItems": fixed, "minItems": len(fixed), "maxItems": len(fixed)}
    if origin in _ARRAYS:
        schema = {"type": "array", "items": type_schema(arguments[0])}
        return {**schema, "uniqueItems": True} if origin in (set, frozenset) else schema
    if origin in _MAPPINGS:
        return {"type": "object", "additionalProperties": type_schema(arguments[1])}
    if isinstance(hint, type):
        if issubclass(hint, enum.Enum):
            return {"enum": [member.value for member in hint]}
        if hasattr(hint, "__dataclass_fields__") or typing.get_type_hints(hint):
            return _object_schema(hint)
    return {}


def _object_schema(cls: Any) -> Dict[str, Any]:
    """Dataclasses, TypedDicts and named tuples."""
    hints = typing.get_type_hints(cls, include_extras=True)
    schema: Dict[str, Any] = {
        "type": "object",
        "title": cls.__name__,
        "properties": {name: {} if hint is cls else type_schema(hint) for name, hint in hints.items()},
    }
    required = getattr(cls, "__required_keys__", None)
    if required is None:
        defaults = getattr(cls, "_field_defaults", {})
        fields = getattr(cls, "__dataclass_fields__", {})
        missing = __import__("dataclasses").MISSING
        required = [
            name
            for name in hints
            if name not in defaults
            and (name not in fields or (fields[name].default is missing and fields[name].default_factory is missing))
        ]
    if required:
        schema["required"] = sorted(required, key=list(hints).index)
    return schema
