# SPDX-License-Identifier: Apache-2.0
"""Exceptions as data: whatever one does when it is looked at, its description exists, can cross, and is bounded."""

from __future__ import annotations

import itertools
import json
import linecache
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy
import pytest

from atoll_worker import register, wire
from atoll_worker.channel import can_cross
from atoll_worker.connection import Connection
from atoll_worker.control import Control
from atoll_worker.errors import (
    MAX_CHAIN,
    MAX_FRAMES,
    MAX_TEXT,
    AtollError,
    DecodeError,
    EncodeError,
    LocalProtocolError,
    RemoteProtocolError,
    describe_exception,
    format_exception,
    remember_source,
)
from atoll_worker.runtime import Runtime
from atoll_worker.values import Decoder, Encoder

from .pairs import PATIENCE, Raw, forked


def described(error: BaseException, skip: int = 0) -> dict[str, Any]:
    """The description, after a journey."""
    encoder = Encoder()
    payload = encoder.encode(describe_exception(error, can_cross, skip))
    buffers = [bytearray(buffer) for buffer in encoder.take_buffers()]
    result: dict[str, Any] = Decoder(checked=True, side="the host").decode(payload, buffers)
    return result


def raised(error: BaseException) -> BaseException:
    """The same, with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def test_an_ordinary_exception() -> None:
    """Type, message, arguments, attributes, notes and frames arrive."""

    def fail() -> None:
        error = ValueError("wrong", 5)
        error.add_note("a note")
        error.code = 7  # type: ignore[attr-defined]
        raise error

    with pytest.raises(ValueError, match="wrong") as caught:
        fail()
    seen = described(caught.value)
    assert (seen["type"], seen["module"], seen["message"]) == ("ValueError", "builtins", "('wrong', 5)")
    assert (seen["args"], seen["state"], seen["notes"]) == (["wrong", 5], {"code": 7}, ["a note"])
    assert seen["bases"] == ["ValueError", "Exception", "BaseException", "object"]
    assert [frame[2:] for frame in seen["frames"]][1:] == [("fail", "raise error")]
    assert seen["frames"][1][0] == __file__
    assert seen["registered"] is None
    assert [frame[2] for frame in described(caught.value, skip=1)["frames"]] == ["fail"]


def test_chains() -> None:
    """Cause, context and whether the context is to be shown."""
    try:
        try:
            raise KeyError("first")
        except KeyError as first:
            raise ValueError("second") from first
    except ValueError as error:
        seen = described(error)
    assert seen["cause"]["type"] == "KeyError"
    assert seen["suppress_context"] is True
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second")  # noqa: B904
    except ValueError as error:
        seen = described(error)
    assert seen["context"]["message"] == "'first'"
    assert "cause" not in seen


def test_endless_chains() -> None:
    """A cause that leads back, and a chain of thousands, end."""
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    seen = described(one)
    assert seen["cause"]["message"] == "two"
    assert "cause" not in seen["cause"]
    error = first = ValueError("0")
    for index in range(1, 5000):
        error.__cause__ = ValueError(str(index))
        error = error.__cause__
    depth, link = 0, described(first)
    while "cause" in link:
        depth, link = depth + 1, link["cause"]
    assert depth == MAX_CHAIN
    assert "ValueError" in format_exception(first)


def test_groups() -> None:
    """An ExceptionGroup brings its exceptions, to a bound."""
    group = ExceptionGroup("several", [ValueError("a"), ExceptionGroup("inner", [KeyError("b")])])
    seen = described(raised(group))
    assert [one["type"] for one in seen["exceptions"]] == ["ValueError", "ExceptionGroup"]
    assert seen["exceptions"][1]["exceptions"][0]["message"] == "'b'"
    wide = ExceptionGroup("wide", [ValueError(str(index)) for index in range(10_000)])
    assert len(described(wide)["exceptions"]) == MAX_CHAIN
    nested: BaseException = ValueError("x")
    for _ in range(500):
        nested = BaseExceptionGroup("deep", [nested])
    assert described(nested)["type"] == "ExceptionGroup"


def test_no_traceback() -> None:
    """An exception that was never raised has no frames."""
    assert described(ValueError("x"))["frames"] == []


def recurse(depth: int) -> None:
    if depth == 0:
        raise ValueError("deep")
    recurse(depth - 1)


def test_many_frames() -> None:
    """Of a deep recursion the outermost and the innermost frames are kept, and the gap is counted."""
    with pytest.raises(ValueError, match="deep") as caught:
        recurse(700)
    frames = described(caught.value)["frames"]
    assert len(frames) == MAX_FRAMES + 1
    assert frames[MAX_FRAMES // 2][2] == "... 502 frames left out ..."
    assert frames[-1][3] == 'raise ValueError("deep")'


def test_builtins_with_ways_of_their_own() -> None:
    """Exceptions whose arguments are not what one sees: decoding, syntax, files, system exit."""
    with pytest.raises(UnicodeDecodeError) as decoding:
        b"\xff".decode("utf-8")
    assert described(decoding.value)["args"] == ["utf-8", b"\xff", 0, 1, "invalid start byte"]
    with pytest.raises(SyntaxError) as syntax:
        compile("a = (", "some file", "exec")
    assert described(syntax.value)["args"][1][:2] == ("some file", 1)
    with pytest.raises(FileNotFoundError) as missing:
        open("/nowhere/at/all")  # noqa: SIM115 - there is nothing to close
    assert described(missing.value)["args"] == [2, "No such file or directory"]
    for error in (
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        StopIteration(5),
        MemoryError(),
        RecursionError(),
    ):
        assert described(error)["type"] == type(error).__name__


def test_registered_exceptions() -> None:
    """The registered name tells the host which class of its own to raise."""

    class OwnError(ValueError):
        pass

    register(OwnError, name="mine")
    assert described(OwnError("x"))["registered"] == "mine"
    assert described(OwnError("x"))["bases"] == ["ValueError", "Exception", "BaseException", "object"]


# -- strange ones ----------------------------------------------------------------------------------------------------


class LyingText(str):
    """A str that is not what it seems."""

    __slots__ = ()

    def __str__(self) -> str:
        return self

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __getitem__(self, _: Any) -> str:
        raise RuntimeError("no items")


def complain(*_: object, **__: object) -> Any:
    raise RuntimeError("do not look at me")


def leave(*_: object) -> Any:
    raise SystemExit("leaving")


class StrangeMeta(type):
    __hash__ = complain  # type: ignore[assignment]

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__", "__mro__"):
            raise RuntimeError("a class without a name")
        return super().__getattribute__(name)


def make(name: str = "StrangeError", bases: tuple[type, ...] = (Exception,), **body: Any) -> BaseException:
    error = type(name, bases, body)
    result: BaseException = error.__new__(error, "argument")
    return result


class OddInitError(Exception):
    def __init__(self, one: int, two: int, *, three: int) -> None:
        super().__init__(f"{one} {two} {three}")


class OddGroup(ExceptionGroup):  # type: ignore[type-arg]
    def __new__(cls, *_: object) -> Any:
        return super().__new__(cls, "odd", [ValueError("x")])


class StrangeClassError(Exception, metaclass=StrangeMeta):
    pass


def with_dict(**state: Any) -> BaseException:
    error = ValueError("x")
    error.__dict__.update(state)
    return error


def with_args(*args: Any) -> BaseException:
    return ValueError(*args)


def holding_itself() -> BaseException:
    error = ValueError()
    error.args = (error, [error])
    return error


def with_odd_names() -> BaseException:
    error = ValueError("x")
    error.__dict__[LyingText("name")] = 1
    error.__dict__[5] = 1  # type: ignore[index]
    error.__dict__["fine"] = 1
    return error


STRANGE: dict[str, Callable[[], BaseException]] = {
    "__str__ raises": lambda: make(__str__=complain),
    "__str__ exits": lambda: make(__str__=leave),
    "__str__ gives a strange str": lambda: make(__str__=lambda self: LyingText("x")),
    "__str__ gives no str": lambda: make(__str__=lambda self: 5),
    "__repr__ of an argument raises": lambda: with_args(make(__repr__=complain)),
    "__repr__ of an argument exits": lambda: with_args(make(__repr__=leave)),
    "args is a property that raises": lambda: make(args=property(complain)),
    "args is no tuple": lambda: make(args=5),
    "__dict__ is a property that raises": lambda: make(__dict__=property(complain)),
    "__cause__ raises": lambda: make(__cause__=property(complain)),
    "__cause__ is no exception": lambda: make(__cause__=5),
    "__context__ raises": lambda: make(__context__=property(leave)),
    "__traceback__ raises": lambda: make(__traceback__=property(complain)),
    "__suppress_context__ raises": lambda: make(__suppress_context__=property(complain)),
    "__notes__ raises": lambda: make(__notes__=property(complain)),
    "__notes__ without end": lambda: make(__notes__=itertools.count()),
    "__notes__ of strange things": lambda: make(__notes__=[LyingText("x"), 5, make(__str__=complain)]),
    "__notes__ by the million": lambda: make(__notes__=["note"] * 1_000_000),
    "__getattr__ raises": lambda: make(__getattr__=complain),
    "__getattribute__ raises": lambda: make(__getattribute__=complain),
    "a group without exceptions": lambda: make(bases=(OddGroup,), exceptions=property(complain)),
    "a group of no exceptions": lambda: make(bases=(OddGroup,), exceptions=(1, "x")),
    "an odd __init__": lambda: OddInitError(1, 2, three=3),
    "a class that tells nothing": StrangeClassError,
    "a class of builtins, so it says": lambda: make(__module__="builtins"),
    "a class without a module": lambda: make(__module__=5),
    "arguments that cannot cross": lambda: with_args(object(), sys, lambda: 1, LyingText("x"), float("nan")),
    "arguments that hold it": holding_itself,
    "an argument of a million": lambda: with_args("x" * 10_000_000, b"y" * 10_000_000, list(range(3_000_000))),
    "a million arguments": lambda: with_args(*range(1_000_000)),
    "a huge message": lambda: make(__str__=lambda self: "m" * 50_000_000),
    "an integer too long to show": lambda: with_args(10**10_000),
    "surrogates": lambda: with_args("\ud800"),
    "attributes that cannot cross": lambda: with_dict(lock=object(), fine=1, huge="x" * 10_000_000),
    "a million attributes": lambda: with_dict(**{f"a{index}": index for index in range(100_000)}),
    "attributes with odd names": with_odd_names,
    "a syntax error of strange parts": lambda: SyntaxError(object(), (LyingText("f"), object(), [5], "t" * 10**7)),
    "a decoding error of a large text": lambda: UnicodeDecodeError("utf-8", b"x" * 10_000_000, 0, 1, "reason"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_strange_exceptions(name: str) -> None:
    """Describing and printing them never raises; what is said can cross, and is small beside what was said."""
    error = STRANGE[name]()
    seen = described(error)
    assert set(seen) >= {"type", "module", "registered", "bases", "message", "args", "state", "notes", "frames"}
    assert type(seen["message"]) is str
    assert len(Encoder().encode(seen)) < 4 << 20
    printed = format_exception(error)
    assert type(printed) is str
    assert len(printed) <= MAX_TEXT


def test_what_can_be_said_is_said() -> None:
    """One part that cannot be had takes no other away."""
    seen = described(raised(STRANGE["__str__ raises"]()))
    assert seen["message"] == "<cannot be shown: RuntimeError>"
    assert seen["args"] == ["argument"]
    assert seen["frames"]
    assert described(with_dict(lock=object(), fine=1))["state"] == {"fine": 1}
    assert described(with_odd_names())["state"] == {"fine": 1}
    lock, number = described(with_args(object(), 5))["args"]
    assert lock.startswith("<object object at")
    assert number == 5


def test_a_huge_message_is_cut_and_counted() -> None:
    """The beginning is kept, and its length told."""
    message = described(ValueError("x" * 1_000_000))["message"]
    assert message == "x" * MAX_TEXT + "... (1,000,000 characters)"


def test_sources_that_are_no_files() -> None:
    """A function that came as text shows its lines, though no file holds them."""
    name = "<a cell that is no file>"
    text = "def fail():\n    raise ValueError('in a cell')\n"
    namespace: dict[str, Any] = {}
    exec(compile(text, name, "exec"), namespace)
    remember_source(name, text)
    try:
        with pytest.raises(ValueError, match="in a cell") as caught:
            namespace["fail"]()
        assert described(caught.value, skip=1)["frames"] == [(name, 2, "fail", "raise ValueError('in a cell')")]
        linecache.checkcache()
        printed = format_exception(caught.value, skip=1)
        assert "raise ValueError('in a cell')" in printed
        assert "test_errors" not in printed
    finally:
        from atoll_worker import errors

        del errors._remembered[name]
        linecache.clearcache()


def test_a_long_source_line_is_cut() -> None:
    """Generated code may be one line of a megabyte."""
    name = "<one line>"
    text = "x = '" + "y" * 1_000_000 + "'; 1 / 0"
    remember_source(name, text)
    try:
        with pytest.raises(ZeroDivisionError) as caught:
            exec(compile(text, name, "exec"))
        assert len(described(caught.value)["frames"][-1][3]) <= 1_000
    finally:
        from atoll_worker import errors

        del errors._remembered[name]
        linecache.clearcache()


def test_the_error_tree() -> None:
    """Errors of values are those that Python users expect to catch, and all are AtollError."""
    assert issubclass(EncodeError, TypeError)
    assert issubclass(DecodeError, ValueError)
    for cls in (EncodeError, DecodeError, LocalProtocolError, RemoteProtocolError):
        assert issubclass(cls, AtollError)


@pytest.mark.parametrize("name", STRANGE)
def test_a_worker_survives_them(name: str) -> None:
    """Through the serve loop: a function that raises it gets an ERROR across, and the next call is answered."""

    def fail() -> None:
        raise STRANGE[name]()

    def fail_with_array() -> None:
        raise ValueError(numpy.zeros(50_000))

    def work(server: Connection, raw: Raw) -> None:
        worker = Runtime([server], Control(raw.sock), -1)
        worker.table.functions.update({"fail": fail, "array": fail_with_array, "echo": lambda value: value})
        worker._make_callable()
        worker.serve()

    def call(client: Connection, name: str, *args: Any) -> Any:
        encoder = Encoder()
        payload = encoder.encode((name, args, {}))
        deadline = time.monotonic() + PATIENCE
        reply = client.exchange(wire.PICKLE, payload, encoder.take_buffers(), deadline)
        return Decoder(checked=True, side="the host").decode(*reply[2:])

    with forked(work) as (client, _):
        assert call(client, "fail")["text"]
        assert call(client, "array")["args"][0].shape == (50_000,)
        assert call(client, "echo", 5) == 5
        assert numpy.all(call(client, "echo", numpy.ones(20_000)) == 1)  # no buffer of an earlier answer came with it


class Unbound:
    """Raises at everything that is asked of it."""

    @property
    def __class__(self) -> Any:
        raise SystemExit("unbound")

    def __repr__(self) -> str:
        raise SystemExit("unbound")

    def __call__(self) -> None: ...

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit("unbound")


class Changing(Exception):
    """What it holds can be encoded when it is tried, and not when it is sent."""

    def __init__(self) -> None:
        self.part = Interval()


class Interval:
    asked = 0

    def encode(self) -> object:
        self.asked += 1
        return 1 if self.asked == 1 else object()


def test_a_worker_survives_whatever_reporting_sets_off() -> None:
    """Results and errors that raise while they are looked at come out as an ERROR, and the next call is answered."""
    register(Interval, encode=Interval.encode, decode=lambda parts: None)

    def changing() -> None:
        raise Changing

    def fork() -> None:
        if not os.fork():
            return
        os.wait()

    def work(server: Connection, raw: Raw) -> None:
        worker = Runtime([server], Control(raw.sock), -1)
        worker.table.functions.update({"unbound": Unbound, "key": lambda: {Unbound(): 1}, "changing": changing})
        worker.table.functions.update({"fork": fork, "echo": lambda value: value})
        worker._make_callable()
        worker.serve()

    def call(client: Connection, name: str, *args: Any) -> Any:
        reply = client.exchange(wire.PICKLE, Encoder().encode((name, args, {})), (), time.monotonic() + PATIENCE)
        return Decoder(checked=True, side="the host").decode(*reply[2:])

    def call_json(client: Connection, name: str, *args: Any) -> Any:
        request = json.dumps({"function": name, "args": args}).encode()
        return json.loads(bytes(client.exchange(wire.JSON, request, (), time.monotonic() + PATIENCE)[2]))

    with forked(work) as (client, _):
        for name in ("unbound", "key"):
            assert call(client, name)["atoll"] == "EncodeError"
            assert call(client, "echo", name) == name
        assert call(client, "changing")["atoll"] == "EncodeError"
        assert call_json(client, "unbound")["message"]
        for number in range(3):
            assert call_json(client, "fork") is None
            assert call_json(client, "echo", number) == number
