# SPDX-License-Identifier: Apache-2.0
"""A function's signature -> text and JSON Schema (2020-12). Imported only when somebody asks for a description.

An annotation that has no counterpart in JSON Schema, or cannot be evaluated, becomes the schema that admits anything:
descriptions help, they never stand in the way of a call.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import enum
import inspect
import pathlib
import typing
import uuid
from typing import Any, Callable, Dict, Iterable, List, Tuple

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
_DEFAULTS = (type(None), bool, int, float, str)
_UNIONS = {typing.Union, getattr(__import__("types"), "UnionType", typing.Union)}


def describe_function(function: Callable[..., Any]) -> Dict[str, Any]:
    """``signature``, ``doc`` and ``parameters`` (a JSON Schema of type object) of a function. Never raises."""
    try:
        signature = inspect.signature(function)
        text = _signature_text(signature)
    except Exception:  # some built-in functions have none, and the text holds the repr of the defaults
        return {"signature": "(...)", "doc": inspect.getdoc(function) or "", "parameters": {"type": "object"}}
    return {
        "signature": text,
        "doc": inspect.getdoc(function) or "",
        "parameters": parameters_schema(signature, _hints_of(function)),
    }


def _hints_of(function: Callable[..., Any]) -> Dict[str, Any]:
    """The annotations that can be evaluated, each by itself: one may name what only type checkers know."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:
        pass
    names = getattr(inspect.unwrap(function), "__globals__", {})
    hints: Dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():

        def one() -> None: ...

        one.__annotations__ = {name: annotation}
        try:
            hints.update(typing.get_type_hints(one, names, include_extras=True))
        except Exception:  # noqa: S112
            continue  # this one admits anything
    return hints


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
        elif type(parameter.default) in _DEFAULTS and not _is_endless(parameter.default):
            one = {**one, "default": parameter.default}
        properties[name] = one
    if required:
        schema["required"] = required
    return schema


def _is_endless(value: Any) -> bool:
    """Infinite or no number, which JSON does not have."""
    return type(value) is float and not -float("inf") < value < float("inf")


def type_schema(hint: Any) -> Dict[str, Any]:
    """The JSON Schema of a type annotation; ``{}``, which admits anything, where there is none."""
    return _type_schema(hint, ())


def _type_schema(hint: Any, within: Tuple[Any, ...]) -> Dict[str, Any]:
    """``within``: the classes whose fields are being described; one that holds itself admits anything there."""
    try:
        return _schema_of(hint, within)
    except Exception:
        return {}  # an annotation may be any object, and a class's own annotations may not be possible to evaluate


def _schema_of(hint: Any, within: Tuple[Any, ...]) -> Dict[str, Any]:
    if hint in _SCALARS:
        return dict(_SCALARS[hint])
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is not None and hasattr(hint, "__metadata__"):  # Annotated
        schema = _type_schema(arguments[0], within)
        words = [word for word in hint.__metadata__ if isinstance(word, str)]
        return {**schema, "description": words[0]} if words else schema
    if origin in _UNIONS:
        return {"anyOf": [_type_schema(one, within) for one in arguments]}
    if origin is typing.Literal:
        return _enum_schema(arguments)
    if (
        origin is not None
        and origin in _SCALARS
        and (not arguments or isinstance(arguments[0], typing.TypeVar))
        and hint not in (Tuple[()], tuple[()])
    ):
        return dict(_SCALARS[origin])  # typing.List and the like, without arguments
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return {"type": "array", "items": _type_schema(arguments[0], within)}
        fixed = [_type_schema(one, within) for one in arguments if one != ()]  # Tuple[()] has () before Python 3.11
        return {"type": "array", "prefixItems": fixed, "minItems": len(fixed), "maxItems": len(fixed)}
    if origin in _ARRAYS:
        schema = {"type": "array", "items": _type_schema(arguments[0], within)}
        return {**schema, "uniqueItems": True} if origin in (set, frozenset) else schema
    if origin in _MAPPINGS:
        return {"type": "object", "additionalProperties": _type_schema(arguments[1], within)}
    if type(origin) is type(typing.ClassVar):  # Required and NotRequired, Final
        return _type_schema(arguments[0], within)
    if isinstance(hint, type):
        if issubclass(hint, enum.Enum):
            return _enum_schema(member.value for member in hint)
        if hint not in within and (hasattr(hint, "__dataclass_fields__") or typing.get_type_hints(hint)):
            return _object_schema(hint, (*within, hint))
    return {}


def _enum_schema(values: Iterable[Any]) -> Dict[str, Any]:
    """One of these values; anything, if JSON has no such values."""
    listed = [value.value if isinstance(value, enum.Enum) else value for value in values]
    return {"enum": listed} if all(type(value) in _DEFAULTS for value in listed) else {}


def _object_schema(cls: Any, within: Tuple[Any, ...]) -> Dict[str, Any]:
    """Dataclasses, TypedDicts and named tuples."""
    hints = typing.get_type_hints(cls, include_extras=True)
    if hasattr(cls, "__dataclass_fields__"):
        hints = {field.name: hints.get(field.name, Any) for field in dataclasses.fields(cls) if field.init}
    schema: Dict[str, Any] = {
        "type": "object",
        "title": cls.__name__,
        "properties": {name: _type_schema(hint, within) for name, hint in hints.items()},
    }
    required = getattr(cls, "__required_keys__", None)
    if required is not None:
        # Where annotations are text, these keys tell of the class's totality only.
        marks = {name: getattr(typing.get_origin(hint), "_name", None) for name, hint in hints.items()}
        required = [
            name for name in hints if marks[name] == "Required" or (name in required and marks[name] != "NotRequired")
        ]
    else:
        defaults = getattr(cls, "_field_defaults", {})
        fields = getattr(cls, "__dataclass_fields__", {})
        missing = dataclasses.MISSING
        required = [
            name
            for name in hints
            if name not in defaults
            and (name not in fields or (fields[name].default is missing and fields[name].default_factory is missing))
        ]
    if required:
        schema["required"] = sorted(required, key=list(hints).index)
    return schema
