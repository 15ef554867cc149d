# SPDX-License-Identifier: Apache-2.0
"""Values through a real worker: what goes in comes out, of the same type; what cannot cross is named exactly."""

from __future__ import annotations

import datetime
import enum
import math
import threading
import uuid
import zoneinfo
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest

import atoll
from atoll_worker.lane import SLOT_SIZE

Write = Callable[[str, str], Path]


def echo() -> atoll.Function[..., Any]:
    @atoll.function
    def echo(value):  # type: ignore[no-untyped-def]
        return value

    return echo


VALUES = [
    None, True, False, 0, -1, 2**63, -(2**64), 10**4000, 0.0, -0.0, 1e308, math.inf, -math.inf, 3.5 + 2j,
    "", "text", "Ω ☃ 🐍", "\0", "\ud800 a lone surrogate", "x" * 100_000,
    b"", b"\0\xff", b"x" * 100_000, bytearray(b""), bytearray(b"abc"),
    (), (1,), (1, (2, (3,))), [], [1, [2, [3]]], {}, {1: "a", "b": 2, (3, 4): None, None: 5, 1.5: b""},
    set(), {1, 2}, frozenset(), frozenset({(1, 2)}),
    range(5), range(10, 0, -3), slice(None), slice(1, None, 2), ...,
    datetime.date(2024, 2, 29), datetime.time(23, 59, 59, 999999), datetime.datetime(2024, 1, 1, 12, 30),
    datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), datetime.timedelta(days=-3, microseconds=7),
    datetime.datetime(2024, 6, 1, 12, fold=1, tzinfo=datetime.timezone(datetime.timedelta(hours=5.5), "here")),
    Decimal("1.10"), Decimal("-Infinity"), Fraction(-3, 7), uuid.UUID(int=7),
    Path("/a/b"), PurePosixPath("a/b"), PureWindowsPath(r"c:\a"),
]  # fmt: skip


@pytest.mark.parametrize("where", ["alone", "nested"])
def test_every_plain_type(where: str) -> None:
    function = echo()
    for value in VALUES:
        sent = value if where == "alone" else {"in": [(value, value)], "out": None}
        came = function(sent)
        assert came == sent
        inner = came if where == "alone" else came["in"][0][0]
        assert type(inner) is type(value)
        assert repr(inner) == repr(value)


def test_nan_and_zones() -> None:
    function = echo()
    assert math.isnan(function(math.nan))
    assert function(Decimal("NaN")).is_nan()
    when = datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris"))
    came = function(when)
    assert came == when
    assert came.tzinfo is when.tzinfo


def test_references_are_kept() -> None:
    inner = [1]
    loop: list[Any] = [inner, inner]
    loop.append(loop)
    came = echo()(loop)
    assert came[0] is came[1]
    assert came[2] is came


def test_sizes_around_the_slots() -> None:
    """Whether a frame goes through the slot or the socket, and where exactly it changes, is not to be noticed."""
    function = echo()
    for size in [*range(SLOT_SIZE - 120, SLOT_SIZE + 40), 2 * SLOT_SIZE]:
        assert function(bytes(size)) == bytes(size)
        assert function("x" * size) == "x" * size


def test_large_then_small_then_large() -> None:
    function = echo()
    for size in [10, 10**6, 3, 10**7, 70_000, 60_000, 0, 8191, 8192, 8193]:
        data = b"ab" * size
        assert function(data) == data
        assert function(size) == size


def test_a_hundred_megabytes() -> None:
    function = echo()
    data = np.random.default_rng(1).bytes(100_000_000)
    assert function(data) == data
    array = np.frombuffer(data, dtype=np.uint8)
    came = function(array)
    assert np.array_equal(came, array)


DTYPES = ["?", "i1", "u2", "<i4", ">i4", "i8", "f2", "f4", ">f8", "c8", "c16", "S5", "U3", "M8[ns]", "m8[us]", "V4"]


def test_arrays_of_every_dtype() -> None:
    function = echo()
    for dtype in DTYPES:
        array = np.arange(48).astype("u1").view("u1")
        array = np.zeros((2, 3), dtype) if dtype in ("S5", "U3", "V4") else array[:6].astype(dtype).reshape(2, 3)
        came = function(array)
        assert came.dtype == array.dtype
        assert came.shape == (2, 3)
        assert came.tobytes() == array.tobytes()
        assert not came.flags.writeable


def test_arrays_of_every_shape() -> None:
    function = echo()
    base = np.arange(24.0).reshape(2, 3, 4)
    for array in [
        base, base.T, base[:, ::2], base[::-1], np.asfortranarray(base), base[0, 0], np.array(5.0), np.empty((0, 3)),
        np.empty(0), base.transpose(1, 0, 2), np.broadcast_to(np.arange(3), (4, 3)), np.arange(100_000.0)[::3],
        np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]), np.array([1, "a", None], dtype=object),
    ]:  # fmt: skip
        came = function(array)
        assert type(came) is np.ndarray
        assert came.dtype == array.dtype
        assert came.shape == array.shape
        assert came.tolist() == array.tolist()
    scalar = function(np.float32(1.5))
    assert type(scalar) is np.float32
    assert scalar == 1.5


class Colour(enum.Enum):
    RED = 1
    BLUE = "blue"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    tags: tuple[str, ...] = ()


Pair = namedtuple("Pair", "left right")

GEOMETRY = """\
import enum
from collections import namedtuple
from dataclasses import dataclass
from atoll_worker import expose, register

@register
class Colour(enum.Enum):
    RED = 1
    BLUE = "blue"

@register
class Access(enum.Flag):
    READ = 1
    WRITE = 2

@register
@dataclass(frozen=True)
class Point:
    x: float
    y: float
    tags: tuple = ()

Pair = register(namedtuple("Pair", "left right"))

@expose
def echo(value): return value

@expose
def kinds(values):
    return [type(value) in (Colour, Access, Point, Pair) for value in values]

class Unregistered: pass

@expose
def foreign():
    return {"deep": [1, Unregistered()]}
"""


def test_registered_classes(write: Write) -> None:
    for cls in (Colour, Access, Point, Pair):
        atoll.register(cls)
    with atoll.Service(write("geometry.py", GEOMETRY)) as geometry:
        values = [Colour.RED, Colour.BLUE, Access.READ | Access.WRITE, Point(1, 2, ("a",)), Pair(1, [2])]
        assert geometry.kinds(values) == [True] * 5
        came = geometry.echo(values)
        assert came == values
        assert [type(value) for value in came] == [type(value) for value in values]
        assert came[0] is Colour.RED
        nested = {"a": Point(1, 2), "b": (Pair(Colour.BLUE, Point(3, 4)),)}
        assert geometry.echo(nested) == nested
        with pytest.raises(atoll.EncodeError, match=r"result\['deep'\]\[1\]: geometry.Unregistered"):
            geometry.foreign()
        assert geometry.echo(1) == 1


class Unregistered:
    def __init__(self) -> None:
        self.lock = threading.Lock()


@dataclass
class Holder:
    """Registered here only."""

    inner: object


def test_arguments_that_cannot_cross_are_named() -> None:
    function = echo()
    atoll.register(Holder)
    for argument, words in [
        (threading.Lock(), r"args\[0\]: _thread.lock"),
        ({"a": [1, {"b": (0, threading.Lock())}]}, r"args\[0\]\['a'\]\[1\]\['b'\]\[1\]: _thread.lock"),
        ([Unregistered()], r"args\[0\]\[0\]: .*Unregistered"),
        (Holder(threading.Lock()), r"args\[0\].inner: _thread.lock"),
        ([lambda: 1, threading.Lock()], r"args\[0\]\[1\]: _thread.lock"),
        (int, r"args\[0\]: the class builtins.int"),
        (OrderedDict(a=1), r"args\[0\]: collections.OrderedDict"),
        ({threading.Lock(): 1}, r"args\[0\] \(the key .*: _thread.lock"),
        (np.array([1, threading.Lock()], dtype=object), r"args\[0\].flat\[1\]: _thread.lock"),
    ]:
        with pytest.raises(atoll.EncodeError, match=words) as caught:
            function(argument)
        assert isinstance(caught.value, TypeError)
    with pytest.raises(atoll.EncodeError, match=r"kwargs\['value'\]\[0\]: _thread.lock"):
        function(value=[threading.Lock()])
    with pytest.raises(atoll.DecodeError, match="Holder"):
        function(Holder(1))  # registered on this side only
    with pytest.raises(atoll.DecodeError, match="Holder"):
        function(Holder(open))
    pid = function.pid
    assert function(1) == 1
    assert function.pid == pid


def test_what_is_lent_among_the_arguments_comes_home_as_itself() -> None:
    """Callables and iterators cross as proxies; back here they are what they were. In a result they need ``ref``."""
    function = echo()

    def one() -> int:
        return 1

    for callable_argument in (one, lambda: 1, open, "text".upper):
        assert function(callable_argument) is callable_argument
        assert function({"deep": [callable_argument]})["deep"][0] is callable_argument
    items = (n for n in range(3))
    assert list(function(items)) == [0, 1, 2]

    @atoll.function
    def make(what: str) -> object:
        return {"function": lambda: 1, "iterator": iter([1, 2, 3])}[what]

    with pytest.raises(atoll.EncodeError, match=r"result: function"):
        make("function")
    assert list(make("iterator")) == [1, 2, 3]


def test_nesting_that_is_too_deep_is_an_error_of_the_call() -> None:
    function = echo()
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(atoll.EncodeError):
        function(deep)
    assert function([[[[]]]]) == [[[[]]]]

    @atoll.function
    def make(depth: int) -> object:
        value: list[Any] = []
        for _ in range(depth):
            value = [value]
        return value

    with pytest.raises(atoll.EncodeError):
        make(100_000)
    assert make(3) == [[[[]]]]
    while deep:
        deep = deep.pop()


def test_an_array_result_without_numpy_here_or_there_is_said_clearly() -> None:
    @atoll.function
    def pretend(value: object) -> str:
        return type(value).__name__

    assert pretend(np.zeros(3)) == "ndarray"


def test_results_are_the_callers_own() -> None:
    function = echo()
    first = function([1, {"a": bytearray(b"x")}])
    second = function([1, {"a": bytearray(b"x")}])
    first[1]["a"][0] = 0
    assert second[1]["a"] == bytearray(b"x")
    array = np.zeros(100_000)
    came = function(array)
    assert not numpy_can_write(came)
    own = came.copy()
    own[0] = 1
    assert array[0] == 0
    assert function(array)[0] == 0


def numpy_can_write(array: Any) -> bool:
    try:
        array[0] = 1
    except ValueError:
        return False
    return True
