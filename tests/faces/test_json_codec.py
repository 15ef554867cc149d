# SPDX-License-Identifier: Apache-2.0
"""Whichever library writes the JSON, the same is written, and the same is refused."""

from __future__ import annotations

import datetime
import json
from mmap import ACCESS_COPY, mmap
from typing import Any

import numpy
import pytest

from atoll_worker.errors import EncodeError
from atoll_worker.json_codec import NAMES, Codec
from parameters import described

VALUES = [
    None,
    True,
    0,
    -(2**63),
    2**64 - 1,
    1.5,
    1e300,
    "",
    "null",
    "é ☃ 🐚",
    [],
    {},
    [None, [None], {"a": None}],
    {"a": [1, 2.5, "x", {"b": None}]},
    ["null", None, 1.0],
]


@pytest.fixture(params=NAMES)
def codec(request: pytest.FixtureRequest) -> Codec:
    return Codec(request.param)


@pytest.mark.parametrize("value", VALUES, ids=described)
def test_values_come_back(codec: Codec, value: Any) -> None:
    payload = codec.encode(value)
    assert json.loads(payload) == value
    for kind in (bytes, bytearray, memoryview, mapped):
        assert codec.decode(kind(payload)) == value


def mapped(payload: bytes) -> mmap:
    """What a worker receives large frames in."""
    memory = mmap(-1, len(payload), access=ACCESS_COPY)
    memory[:] = payload
    return memory


@pytest.mark.parametrize("one", ["x", "é", "☃", '"', "\\", "\n", "\x00", "\x1f", " ", "\x7f", "\ud800"], ids=ascii)
@pytest.mark.parametrize("place", [0, 2500, 5000])
def test_long_texts_come_back(codec: Codec, one: str, place: int) -> None:
    text = "x" * place + one + "y" * (5000 - place)
    assert json.loads(codec.encode(text)) == text


def test_text_is_written_as_it_is_not_escaped(codec: Codec) -> None:
    assert codec.encode("日本語") == '"日本語"'.encode()


def test_half_a_pair_of_surrogates_is_escaped(codec: Codec) -> None:
    assert json.loads(codec.encode(["\ud800"])) == ["\ud800"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), numpy.float64("nan")], ids=described)
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda x: x, "result"),
        (lambda x: {"a": [1, x]}, "result['a'][1]"),
        (lambda x: [None, ({"b": x},)], "result[1][0]['b']"),
        (lambda x: numpy.array([1.0, x]), "result[1]"),
    ],
    ids=["bare", "nested", "beside null", "numpy"],
)
def test_numbers_that_json_has_not_are_errors_that_name_the_place(
    codec: Codec, number: float, wrap: Any, path: str
) -> None:
    with pytest.raises(EncodeError) as caught:
        codec.encode(wrap(number))
    assert path in str(caught.value)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a":-Infinity}', "nul", "[1,]", "", " ", "{'a':1}", "1 2"])
def test_what_is_no_json_is_refused(codec: Codec, text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        codec.decode(text.encode())


@pytest.mark.parametrize("name", ["auto", "json", "msgspec"])
def test_integers_of_any_size_stay_what_they_are(name: str) -> None:
    """Whatever there is, ``auto`` does not take the one that reads them as floats."""
    assert repr(Codec(name).decode(b"[18446744073709551617, -9223372036854775809]")) == (
        "[18446744073709551617, -9223372036854775809]"
    )


def test_white_space_is_no_matter(codec: Codec) -> None:
    assert codec.decode(b' \n{ "a" : [ 1 ] }\r\n') == {"a": [1]}


class Strange:
    """Nobody knows what to make of it."""


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (Strange(), "result"),
        ({"a": [0, Strange()]}, "result['a'][1]"),
        ({"a": print}, "result['a']"),
        ([{"x": datetime.datetime.now()}, Strange()], "result[1]"),
        ({Strange: 1}, "key"),
    ],
    ids=["bare", "nested", "function", "beside a time", "key"],
)
def test_what_cannot_be_written_is_named(codec: Codec, value: Any, path: str) -> None:
    with pytest.raises(EncodeError) as caught:
        codec.encode(value)
    assert path in str(caught.value)


class Unbound:
    """As some proxies are: whatever is asked of it raises."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"unbound: {name}")

    def __repr__(self) -> str:
        raise RuntimeError("unbound")


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [1, {"x": x}], lambda x: {x: 1}], ids=["it", "in it", "key"])
def test_a_value_that_raises_at_being_looked_at(codec: Codec, wrap: Any) -> None:
    with pytest.raises(EncodeError, match=r"a call's result.* cannot be written as JSON"):
        codec.encode(wrap(Unbound()), "a call's result")


def test_what_holds_itself_and_what_is_too_deep_are_errors(codec: Codec) -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(EncodeError):
        codec.encode(circle)
    with pytest.raises((ValueError, RecursionError)):
        codec.decode(b"[" * 100_000)
    assert codec.encode([1]) == b"[1]"


def test_times_numpy_and_keys_have_a_common_form(codec: Codec) -> None:
    moment = datetime.datetime(2024, 5, 17, 12, 30, tzinfo=datetime.UTC)
    value = {
        "when": moment,
        "day": moment.date(),
        "array": numpy.arange(4).reshape(2, 2),
        "scalar": numpy.float32(0.5),
        "truth": numpy.bool_(True),
        ("value", "mean"): {moment: numpy.int64(3)},
        3: "three",
    }
    assert json.loads(codec.encode(value)) == {
        "when": "2024-05-17T12:30:00+00:00",
        "day": "2024-05-17",
        "array": [[0, 1], [2, 3]],
        "scalar": 0.5,
        "truth": True,
        "('value', 'mean')": {"2024-05-17T12:30:00+00:00": 3},
        "3": "three",
    }


def test_an_unknown_codec_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"msgpack.*auto, json, orjson, msgspec"):
        Codec("msgpack")
