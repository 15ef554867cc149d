# SPDX-License-Identifier: Apache-2.0
"""Signatures as text and JSON Schema: many annotations, and those that have no counterpart."""

# ruff: noqa: PT014, UP007, UP045 - one annotation in several spellings, which ruff takes for the same

from __future__ import annotations

import collections.abc
import datetime
import enum
import functools
import json
import typing
import uuid
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, NotRequired, Optional, TypedDict, Union

import pytest

from atoll_worker.schema import describe_function, type_schema
from atoll_worker.values import Encoder
from parameters import described

INTEGER = {"type": "integer"}
TEXT = {"type": "string"}


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Odd(enum.Enum):
    RED = object()


@dataclass
class Box:
    width: int
    label: str = "none"
    tags: list[str] = field(default_factory=list)
    made: int = field(init=False, default=0)
    count: ClassVar[int] = 0
    start: InitVar[int] = 1


@dataclass
class Node:
    value: int
    parent: Optional[Node] = None
    children: list[Node] = field(default_factory=list)


class Total(TypedDict):
    name: str
    age: NotRequired[int]


class Partial(TypedDict, total=False):
    name: str


class Point(NamedTuple):
    x: int
    y: int = 0


@dataclass
class Broken:
    other: NotThere  # type: ignore[name-defined]  # noqa: F821


TOTAL = {
    "type": "object", "title": "Total", "properties": {"name": TEXT, "age": INTEGER}, "required": ["name"],
}  # fmt: skip
BOX = {
    "type": "object", "title": "Box", "required": ["width"],
    "properties": {"width": INTEGER, "label": TEXT, "tags": {"type": "array", "items": TEXT}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (int, INTEGER), (float, {"type": "number"}), (str, TEXT), (bool, {"type": "boolean"}), (None, {"type": "null"}),
        (bytes, {"type": "string", "contentEncoding": "base64"}), (Path, TEXT),
        (datetime.datetime, {"type": "string", "format": "date-time"}),
        (uuid.UUID, {"type": "string", "format": "uuid"}),
        (list, {"type": "array"}), (list, {"type": "array"}), (dict, {"type": "object"}), (dict, {"type": "object"}),
        (tuple, {"type": "array"}), (tuple, {"type": "array"}), (set, {"type": "array", "uniqueItems": True}),
        (list[int], {"type": "array", "items": INTEGER}), (list[int], {"type": "array", "items": INTEGER}),
        (set[str], {"type": "array", "items": TEXT, "uniqueItems": True}),
        (collections.abc.Sequence[int], {"type": "array", "items": INTEGER}),
        (dict[str, list[int]], {"type": "object", "additionalProperties": {"type": "array", "items": INTEGER}}),
        (collections.abc.Mapping[str, int], {"type": "object", "additionalProperties": INTEGER}),
        (tuple[int, ...], {"type": "array", "items": INTEGER}),
        (tuple[int, str], {"type": "array", "prefixItems": [INTEGER, TEXT], "minItems": 2, "maxItems": 2}),
        (tuple[()], {"type": "array", "prefixItems": [], "minItems": 0, "maxItems": 0}),
        (Optional[int], {"anyOf": [INTEGER, {"type": "null"}]}), (int | str, {"anyOf": [INTEGER, TEXT]}),
        (Union[int, str, None], {"anyOf": [INTEGER, TEXT, {"type": "null"}]}),
        (Literal["a", 1, None], {"enum": ["a", 1, None]}), (Literal[Colour.RED], {"enum": ["red"]}),
        (Literal[b"x"], {}),
        (Annotated[int, "how many", 5], {"type": "integer", "description": "how many"}),
        (Annotated[int, 5], INTEGER),
        (Colour, {"enum": ["red", "blue"]}), (Odd, {}), (Box, BOX), (list[Box], {"type": "array", "items": BOX}),
        (Total, TOTAL),
        (Partial, {"type": "object", "title": "Partial", "properties": {"name": TEXT}}),
        (Point, {"type": "object", "title": "Point", "properties": {"x": INTEGER, "y": INTEGER}, "required": ["x"]}),
        (Any, {}), (object, {}), (type, {}), (typing.TypeVar("T"), {}), (typing.Callable[[int], str], {}),
        (collections.abc.Callable[[int], str], {}),
        (typing.Sequence, {}), (Broken, {}), ([], {}), (5, {}), ("text", {}),
        (typing.NewType("Named", int), {}), (Exception, {}), (Ellipsis, {}),
    ],
    ids=described,
)  # fmt: skip
def test_types(hint: Any, schema: dict[str, Any]) -> None:
    """Each annotation, and the schema that admits anything where there is no counterpart."""
    assert type_schema(hint) == schema
    json.dumps(type_schema(hint))


def test_a_class_that_holds_itself() -> None:
    """Recursion ends: inside itself a class admits anything."""
    assert type_schema(Node) == {
        "type": "object",
        "title": "Node",
        "required": ["value"],
        "properties": {
            "value": INTEGER,
            "parent": {"anyOf": [{}, {"type": "null"}]},
            "children": {"type": "array", "items": {}},
        },
    }


def future(image: bytes, size: int = 5, *more: str, deep: bool = False, **rest: float) -> Optional[Box]:
    """Takes all sorts.

    With a second paragraph.
    """
    return None


def test_a_function_with_all_sorts_of_parameters() -> None:
    """Future annotations are evaluated for the schema and shown as they were written."""
    seen = describe_function(future)
    assert seen["signature"] == (
        "(image: bytes, size: int = 5, *more: str, deep: bool = False, **rest: float) -> Optional[Box]"
    )
    assert seen["doc"] == "Takes all sorts.\n\nWith a second paragraph."
    assert seen["parameters"] == {
        "type": "object",
        "properties": {
            "image": {"type": "string", "contentEncoding": "base64"},
            "size": {"type": "integer", "default": 5},
            "more": {"type": "array", "items": TEXT},
            "deep": {"type": "boolean", "default": False},
        },
        "required": ["image"],
        "additionalProperties": {"type": "number"},
    }


def test_defaults() -> None:
    """Defaults that JSON has are in the schema; others only make the parameter optional."""

    def f(a=None, b="x", c=1.5, d=(1, 2), e=float("nan"), f=float("inf"), g=Colour.RED, h=object): ...  # type: ignore[no-untyped-def]  # fmt: skip

    parameters = describe_function(f)["parameters"]
    assert parameters["properties"] == {
        "a": {"default": None}, "b": {"default": "x"}, "c": {"default": 1.5},
        "d": {}, "e": {}, "f": {}, "g": {}, "h": {},
    }  # fmt: skip
    assert "required" not in parameters
    assert parameters["additionalProperties"] is False


def test_annotations_that_cannot_be_evaluated() -> None:
    """A name that is not there costs the types, not the names, and is shown as written."""

    def f(a: NotThere, b: int) -> Neither: ...  # type: ignore[name-defined]  # noqa: F821

    seen = describe_function(f)
    assert seen["signature"] == "(a: NotThere, b: int) -> Neither"
    assert list(seen["parameters"]["properties"]) == ["a", "b"]
    assert seen["parameters"]["required"] == ["a", "b"]


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("not to be shown")


class Callable:
    """An object that is called."""

    def __call__(self, x: int) -> int:
        return x

    def method(self, y: str) -> None: ...


def with_unshowable_default(a: Any = Unshowable()) -> None:  # noqa: B008
    """Documented all the same."""


@pytest.mark.parametrize(
    "function",
    [
        len,
        print,
        int,
        min,
        dict.get,
        Callable(),
        Callable().method,
        functools.partial(future, b""),
        with_unshowable_default,
        5,
    ],
    ids=described,
)  # fmt: skip
def test_anything_is_described(function: Any) -> None:
    """Built-in functions, objects, partial functions: never an error, and always something that can cross."""
    seen = describe_function(function)
    assert set(seen) == {"signature", "doc", "parameters"}
    assert seen["parameters"]["type"] == "object"
    Encoder().encode(seen)


def test_methods_leave_self_out() -> None:
    """What a caller gives is what is described."""
    assert list(describe_function(Callable().method)["parameters"]["properties"]) == ["y"]
    assert list(describe_function(Callable())["parameters"]["properties"]) == ["x"]
    assert describe_function(with_unshowable_default)["doc"] == "Documented all the same."


def test_one_annotation_that_cannot_be_evaluated() -> None:
    """It alone admits anything; the others keep their schema."""

    def function(a: int, b: Nowhere, *rest: str, c: Elsewhere.Too = None) -> NotHere: ...  # type: ignore[name-defined]  # noqa: F821

    properties = describe_function(function)["parameters"]["properties"]
    assert properties == {"a": INTEGER, "b": {}, "rest": {"type": "array", "items": TEXT}, "c": {"default": None}}
