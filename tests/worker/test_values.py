# SPDX-License-Identifier: Apache-2.0
"""Values -> bytes -> values: every type, its edges, and the words for what cannot cross."""

from __future__ import annotations

import datetime
import enum
import sys
import threading
from collections import OrderedDict, defaultdict, deque
from dataclasses import InitVar, dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy
import pytest
from hypothesis import given, settings

from atoll_worker import register
from atoll_worker.adapters import Unsupported
from atoll_worker.errors import DecodeError, EncodeError
from atoll_worker.values import INLINE_BUFFER, Decoder, Encoder, explain_unencodable

from .samples import EXAMPLES, anything, same

DECODERS = [Decoder(checked=True, side="the host"), Decoder(checked=False, side="the worker")]


def passed(value: Any, decoder: Decoder = DECODERS[0]) -> Any:
    """The value as it arrives; its buffers come as memory of their own, as the wire receives them."""
    encoder = Encoder()
    payload = encoder.encode(value)
    return decoder.decode(payload, [bytearray(buffer) for buffer in encoder.take_buffers()])


def refusal(value: Any, *labels: str) -> str:
    """The message that says why a value cannot cross."""
    parts = [(label, value[index]) for index, label in enumerate(labels)] if labels else [("result", value)]
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is, it is explained
        Encoder().encode(value)
    error = explain_unencodable(caught.value, parts)
    assert isinstance(error, EncodeError)
    assert isinstance(error, TypeError)
    return str(error)


@pytest.mark.parametrize("value", EXAMPLES, ids=lambda value: type(value).__name__)
def test_every_type(value: Any) -> None:
    """What arrives is equal in value and type, by the checked and by the unchecked way, alone and inside others."""
    for decoder in DECODERS:
        assert same(passed(value, decoder), value)
        arrived = passed([{"deep": (value, [value])}], decoder)
        assert same(arrived[0]["deep"][0], value)


@given(anything)
@settings(max_examples=300, deadline=None)
def test_whatever_value(value: Any) -> None:
    """Nested values of all types arrive as they were."""
    for decoder in DECODERS:
        assert same(passed(value, decoder), value)


def test_an_encoder_is_used_again() -> None:
    """One encoder for all calls: nothing of a value, or of a failure, is left to the next."""
    encoder = Encoder()
    big = numpy.arange(10_000)
    for _ in range(3):
        assert DECODERS[0].decode(encoder.encode([1, "x"])) == [1, "x"]
        assert not encoder.has_buffers
        encoder.encode(big)
        assert encoder.has_buffers
        assert len(encoder.take_buffers()) == 1
        with pytest.raises(Unsupported):
            encoder.encode([big, object()])
        assert not encoder.has_buffers
        assert not encoder.take_buffers()


def test_an_encoder_keeps_nothing_alive() -> None:
    """After encoding, no reference to any part of the value stays."""

    class Tracked(list):  # type: ignore[type-arg]
        pass

    register(Tracked, encode=list, decode=Tracked)
    value = Tracked([1])
    before = sys.getrefcount(value)
    encoder = Encoder()
    encoder.encode([value, {"a": value}])
    assert sys.getrefcount(value) == before


# -- references ------------------------------------------------------------------------------------------------------


def test_aliases_stay_aliases() -> None:
    """The same object twice is one object twice again; equal ones that were two stay two."""
    inner = [1]
    one, two, other = passed((inner, inner, [1]))
    assert one is two
    assert one is not other
    array = numpy.arange(5000)
    one, two = passed([array, array])
    assert one is two


def test_a_list_that_holds_itself() -> None:
    """Cycles through lists and dicts arrive as cycles."""
    loop: list[Any] = [1]
    loop.append(loop)
    arrived = passed(loop)
    assert arrived[0] == 1
    assert arrived[1] is arrived
    table: dict[str, Any] = {}
    table["list"] = [table, (table,)]
    arrived = passed(table)
    assert arrived["list"][0] is arrived
    assert arrived["list"][1][0] is arrived


def test_a_cycle_through_an_object_is_an_error_with_words() -> None:
    """A dataclass that holds itself cannot be taken apart into values; this is said, and nothing breaks."""
    register(Link)
    link = Link(None)
    link.next = link
    assert "holds itself" in refusal(link)
    array = numpy.empty(1, dtype=object)
    array[0] = array
    try:
        assert "holds itself" in refusal(array)
    finally:
        array[0] = None  # numpy's arrays are not collected in cycles


@pytest.mark.parametrize("depth", [10, 100, 300])
def test_deep_values_arrive(depth: int) -> None:
    """Nesting that no recursion limit forbids."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    arrived = passed(value)
    for _ in range(depth):
        (arrived,) = arrived
    assert arrived == []


@pytest.mark.parametrize("make", [lambda inner: [inner], lambda inner: (inner,), lambda inner: {"k": inner}])
def test_too_deep_is_an_error_that_says_how_deep(make: Any) -> None:
    """A hundred thousand levels are refused, and the message counts them and names the argument."""
    value: Any = 1
    for _ in range(100_000):
        value = make(value)
    message = refusal([("shallow",), value], "args[0]", "args[1]")
    assert message.startswith("args[1] is nested too deeply to be passed (100,000 levels)")


def test_too_deep_through_objects() -> None:
    """Levels of registered dataclasses count like those of lists."""
    register(Link)
    chain: Any = None
    for _ in range(5_000):
        chain = Link(chain)
    assert "(5,000 levels)" in refusal(chain)


# -- registered classes ----------------------------------------------------------------------------------------------


@dataclass
class Link:
    next: Any


@dataclass(frozen=True)
class Frozen:
    name: str
    size: int = 3
    count: ClassVar[int] = 7
    start: InitVar[int] = 1
    made: int = field(init=False, default=5)


@dataclass
class Slotted:
    __slots__ = ("a", "b")
    a: int
    b: list[Any]
    shared: ClassVar[str] = "of the class"


@dataclass
class Strict:
    age: int

    def __post_init__(self) -> None:
        if self.age < 0:
            raise ValueError("no such age")


class Colour(enum.Enum):
    RED = "red"
    BLUE = (1, 2)
    ALSO_RED = "red"  # noqa: PIE796 - an alias


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Rights(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


class Point(NamedTuple):
    x: int
    y: Any = None


class Interval:
    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high


@pytest.mark.parametrize("decoder", DECODERS)
def test_registered_classes(decoder: Decoder) -> None:
    """Dataclasses (frozen, with slots), enums, flags and named tuples cross as themselves."""
    for cls in (Link, Frozen, Slotted, Strict, Colour, Level, Rights, Point):
        assert register(cls) is cls
    values: list[Any] = [
        Link([Link(None)]), Frozen("n"), Slotted(1, [2]), Strict(3), Colour.RED, Colour.BLUE, Colour.ALSO_RED,
        Level.HIGH, Rights.READ, Rights.READ | Rights.RUN, Rights(0), Point(1), Point(1, Point(2, "x")),
    ]  # fmt: skip
    for value in values:
        arrived = passed(value, decoder)
        assert type(arrived) is type(value)
        assert arrived == value
    assert passed(Colour.RED, decoder) is Colour.RED
    assert passed(Frozen("n"), decoder).made == 5
    assert "count" not in passed(Frozen("n"), decoder).__dict__
    assert passed({Colour.RED: Level.LOW, Frozen("k"): 1}, decoder) == {Colour.RED: Level.LOW, Frozen("k"): 1}


def test_init_does_not_run_again() -> None:
    """A dataclass arrives as it was, even where __post_init__ would now refuse it."""
    register(Strict)
    value = Strict(1)
    value.age = -1
    assert passed(value).age == -1


def test_a_class_with_its_own_codec() -> None:
    """``encode`` and ``decode`` take any class across, nested too; what they raise is explained."""
    register(Interval, encode=lambda value: (value.low, value.high), decode=lambda parts: Interval(*parts))
    arrived = passed({"where": [Interval(1, 2)]})["where"][0]
    assert (type(arrived), arrived.low, arrived.high) == (Interval, 1, 2)
    register(Interval, encode=lambda value: 1 / 0, decode=Interval)
    assert "ZeroDivisionError" in refusal(Interval(1, 2))
    register(Interval, encode=lambda value: 1, decode=lambda parts: Interval(*parts))
    with pytest.raises(DecodeError, match="could not be put together: TypeError"):
        passed(Interval(1, 2))


def test_names_on_the_wire() -> None:
    """Two sides may call their classes differently, as long as the registered name is one."""
    register(Point, name="geometry.Point")
    payload = Encoder().encode(Point(1, 2))
    assert b"geometry.Point" in payload
    Other = NamedTuple("Other", [("x", int), ("y", int)])  # noqa: UP014 - made here on purpose
    with pytest.raises(ValueError, match=r"'geometry\.Point' is the registered name of .*test_values\.Point"):
        register(Other, name="geometry.Point")


def forgotten(value: Any, cls: type) -> bytes:
    """A payload with an object of a class that is then unknown here."""
    from atoll_worker import registry

    register(cls)
    payload = Encoder().encode(value)
    del registry._by_class[cls], registry._by_name[cls.__name__]
    return payload


def test_a_class_unknown_here_is_named_with_its_path() -> None:
    """Which part, which class, on which side, and what to do."""
    payload = forgotten({"cfg": [1, Link(2)]}, Link)
    with pytest.raises(DecodeError) as caught:
        DECODERS[0].decode(payload)
    assert str(caught.value) == (
        "result['cfg'][1] is of class 'Link', which is not registered in the host: call atoll.register on it there"
    )
    payload = forgotten(("name", (1, {"k": Link(2)}), {}), Link)
    with pytest.raises(DecodeError) as caught:
        DECODERS[1].decode(payload, (), (("args", 1), ("kwargs", 2)))
    assert str(caught.value) == (
        "args[1]['k'] is of class 'Link', which is not registered in the worker: call atoll_worker.register on it there"
    )


@pytest.mark.parametrize(
    ("here", "there", "message"),
    [
        (
            dataclass(type("Same", (), {"__annotations__": {"a": int}})),
            "b",
            r"fields \['b'\] on this side, but \['a'\]",
        ),
        (enum.Enum("Same", "a"), "b", "has no member 'a' on this side"),
        (NamedTuple("Same", [("a", int)]), "b c", "named tuple Same on this side"),
    ],
)
def test_classes_that_differ(here: Any, there: str, message: str) -> None:
    """Fields or members that the other side's class does not have are an error that names both."""
    from atoll_worker import registry

    register(here, name="Same")
    payload = Encoder().encode(here["a"] if issubclass(here, enum.Enum) else here(1))
    del registry._by_class[here], registry._by_name["Same"]
    if issubclass(here, enum.Enum):
        other: Any = enum.Enum("Same", there)
    elif issubclass(here, tuple):
        other = NamedTuple("Same", [(name, int) for name in there.split()])  # type: ignore[misc]
    else:
        other = dataclass(type("Same", (), {"__annotations__": {there: int}}))
    register(other, name="Same")
    with pytest.raises(DecodeError, match=message):
        DECODERS[0].decode(payload)


def test_what_register_refuses() -> None:
    """Things that are no classes, classes of no known kind, and half a codec."""
    with pytest.raises(TypeError, match="takes a class"):
        register("Point")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="only enums, dataclasses, named tuples and exceptions"):
        register(Interval)
    with pytest.raises(TypeError, match="go together"):
        register(Interval, encode=list)


def test_registering_again_replaces() -> None:
    """A class that is defined again, as in a notebook, takes the place of the first."""

    def define() -> type:
        @dataclass
        class Cell:
            value: int

        return Cell

    first, second = define(), define()
    register(first)
    register(second)
    assert type(passed(second(1))) is second
    assert "cannot be passed by value" in refusal(first(1))


# -- what cannot cross -----------------------------------------------------------------------------------------------


class Config:
    def __init__(self) -> None:
        self.lock = threading.Lock()


def test_the_path_to_what_cannot_cross() -> None:
    """The message leads to the very part, through every kind of container."""
    lock = threading.Lock()
    register(Link)
    register(Point)
    register(Interval, encode=lambda value: value.__dict__, decode=lambda parts: None)
    thread_lock = "_thread.lock cannot be passed by value"
    assert refusal([(1,), {"cfg": Link(lock)}], "args[0]", "args[1]") == f"args[1]['cfg'].next: {thread_lock}"
    assert refusal(lock) == f"result: {thread_lock}"
    assert refusal([1, (2, [lock])]) == f"result[1][1][0]: {thread_lock}"
    assert refusal({"a": {3: lock}}) == f"result['a'][3]: {thread_lock}"
    assert refusal({lock: 1}).startswith("result (the key <unlocked _thread.lock")
    assert refusal({1, lock}) == f"result (an item of the set): {thread_lock}"
    assert refusal(Point(1, lock)) == f"result.y: {thread_lock}"
    assert refusal(Interval(1, lock)) == f"result (encoded)['high']: {thread_lock}"  # type: ignore[arg-type]
    assert refusal(numpy.array([1, lock], dtype=object)) == f"result.flat[1]: {thread_lock}"
    assert refusal({"x" * 100: lock}) == f"result['{'x' * 56}...]: {thread_lock}"


def plain_function() -> None: ...


def test_the_reason_for_what_cannot_cross() -> None:
    """Code, classes, unregistered classes, and what is nearly a value each get a hint of their own."""
    assert refusal(Config()) == f"result: {__name__}.Config cannot be passed by value"
    assert refusal(plain_function).endswith("'plain_function' is code, and only values cross")
    assert refusal(len).endswith("'len' is code, and only values cross")
    assert f"the class {__name__}.Config" in refusal(Config)
    assert "register(Link), on both sides, lets it cross" in refusal(Link(1))
    assert "register(Colour)" in refusal(Colour.RED)
    assert "register(Point)" in refusal(Point(1))
    for value in (
        OrderedDict(a=1),
        defaultdict(list),
        ValueError("x"),
        iter([]),
        (one for one in []),
        sys,
        NotImplemented,
    ):
        assert "cannot be passed by value" in refusal(value)
    register(KeyError)
    assert "an exception can be raised across" in refusal(KeyError("x"))


class Unbound:
    """As a stand-in of werkzeug's that nothing stands behind."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("unbound")

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("unbound")

    def __call__(self) -> None: ...

    def __repr__(self) -> str:
        raise RuntimeError("unbound")


def test_a_value_that_raises_at_being_looked_at() -> None:
    """Whatever describing it sets off, the answer is an EncodeError, with the path where there is one."""
    unbound = f"{__name__}.Unbound cannot be passed by value"
    assert refusal(Unbound()) == f"result: {unbound}"
    assert refusal([1, {"x": Unbound()}]) == f"result[1]['x']: {unbound}"
    assert refusal({Unbound(): 1}) == f"result (the key of type Unbound): {unbound}"
    assert refusal(Unbound).startswith("result: the class ")
    deep: Any = Unbound()
    for _ in range(100_000):
        deep = [deep]
    assert "nested too deeply" in refusal(deep)


def test_a_class_that_raises_at_being_looked_at() -> None:
    """Without any words of its own, the message still says which argument it was in."""

    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            if name in ("__module__", "__dataclass_fields__", "__qualname__"):
                raise RuntimeError("no")
            return super().__getattribute__(name)

    strange = Meta("Strange", (), {})()
    error = explain_unencodable(Unsupported(strange), (("args", [strange]), ("kwargs", {})))
    assert type(error) is EncodeError
    assert str(error) == "args, kwargs cannot be passed by value, and looking for the reason raised RuntimeError"


def test_what_to_pass_instead() -> None:
    """Subclasses of what crosses, what makes values one by one, and subclasses of arrays."""
    for value, instead in (
        (OrderedDict(a=1), "dict(x)"),
        (defaultdict(list), "dict(x)"),
        (LikeInt(1), "int(x)"),
        (LikeStr("x"), "str(x)"),
        (type("L", (list,), {})(), "list(x)"),
        (deque([1]), "list(x)"),
        ({}.keys(), "list(x)"),
        ((one for one in []), "a list"),
        (numpy.ma.masked_array([1, 2], [0, 1]), ".filled() and .mask"),
        (numpy.zeros(2).view(LikeArray), "numpy.asarray(x)"),
    ):
        assert refusal(value).endswith(f"cannot be passed by value; return {instead}")


class LikeArray(numpy.ndarray): ...  # type: ignore[type-arg]


class LikeInt(int): ...


class LikeStr(str):
    __slots__ = ()


@pytest.mark.parametrize("value", [LikeInt(5), LikeStr("x"), type("D", (dict,), {})(), type("L", (list,), {})()])
def test_subclasses_are_not_their_bases(value: Any) -> None:
    """An object of a subclass is refused, rather than turned into its base on the way."""
    assert "cannot be passed by value" in refusal([value])


@pytest.mark.parametrize(
    "dtype", [numpy.dtype([("a", "O")]), numpy.dtype("V0"), numpy.dtype([])], ids=["object field", "V0", "no field"]
)
def test_dtypes_that_cannot_cross(dtype: Any) -> None:
    """A structured dtype with objects inside, or items without bytes, are named."""
    assert "of dtype" in refusal(numpy.zeros(2, dtype))


# -- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, INLINE_BUFFER - 1, INLINE_BUFFER, 100_000])
@pytest.mark.parametrize("frozen", [True, False])
def test_received_arrays_are_ones_own(size: int, frozen: bool) -> None:
    """An array arrives writable, whether or not the sent one was, and however it travelled."""
    array = numpy.zeros(size, "u1")
    array.flags.writeable = not frozen
    encoder = Encoder()
    payload = encoder.encode(array)
    buffers = encoder.take_buffers()
    assert len(buffers) == (size >= INLINE_BUFFER)
    arrived = DECODERS[0].decode(payload, [bytearray(buffer) for buffer in buffers])
    arrived[:] = 7
    assert not array.any()
    assert arrived.flags.writeable


def test_layout_is_kept() -> None:
    """Fortran order arrives as Fortran order, without a copy of the sender's; what is strided arrives packed."""
    order = numpy.asfortranarray(numpy.ones((100, 200)))
    encoder = Encoder()
    encoder.encode(order)
    (buffer,) = encoder.take_buffers()
    assert numpy.shares_memory(numpy.frombuffer(buffer), order)
    assert passed(order).flags.f_contiguous
    assert passed(numpy.ones((100, 200))[::2]).flags.c_contiguous


def test_object_arrays_nest() -> None:
    """Arrays inside object arrays stay arrays, 0-d ones too."""
    array = numpy.empty(3, dtype=object)
    array[0], array[1], array[2] = numpy.arange(3), numpy.array(5), [1, 2]
    arrived = passed(array)
    assert arrived.dtype == object
    assert same(arrived[0], numpy.arange(3))
    assert same(arrived[1], numpy.array(5))
    assert arrived[2] == [1, 2]


# -- small print -----------------------------------------------------------------------------------------------------


def test_timezone_without_offset_is_utc_itself() -> None:
    """As with pickle: the one object that code compares with ``is``."""
    assert passed(datetime.UTC) is datetime.UTC


def test_not_a_data_pickle() -> None:
    """Without the opcode check too, a payload that is none is the error of decoding."""
    for junk in (b"", b"junk", b"\x80\x05", b"\x80\x05K"):
        for decoder in DECODERS:
            with pytest.raises(DecodeError):
                decoder.decode(junk)
