# SPDX-License-Identifier: Apache-2.0
"""Bytes in, what they ask for out: however they are split, and whatever they are."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.wire_server import messages
from atoll.wire_server.conversation import HELLO, Call, Cancel, Event, Load, Ping, Serving
from atoll_worker import wire
from atoll_worker.errors import DecodeError, RemoteProtocolError


def frame(kind: int, codec: int, call_id: int, payload: bytes = b"") -> bytes:
    return struct.pack("<BBHIQ", kind, codec, 0, len(payload), call_id) + payload


def feed(serving: Serving, data: bytes, step: int = 1 << 20) -> list[Event | bytes]:
    """What some bytes ask for, given in pieces; LOAD and calls are answered at once."""
    found: list[Event | bytes] = []
    for start in range(0, len(data), step):
        rest = data[start : start + step]
        while rest:
            space = serving.get_buffer()
            count = min(len(space), len(rest))
            space[:count] = rest[:count]
            rest = rest[count:]
            for event in serving.buffer_updated(count):
                found.append(event)
                if isinstance(event, Load):
                    serving.ready(b"{}")
                elif isinstance(event, Call) and event.payload != b"wait":
                    serving.result(b"1")
    return found


GREETING = frame(wire.HELLO, wire.RAW, 0, wire.hello()) + frame(wire.LOAD, wire.JSON, 0, b"null")


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_a_conversation(step: int) -> None:
    serving = Serving(1000)
    assert feed(serving, b"\0" + GREETING, step) == [frame(wire.HELLO, wire.RAW, 0, HELLO), Load(b"null")]
    assert serving.is_loaded
    assert not serving.has_called
    cancel = struct.pack("<IB", 0, 1)
    said = (
        frame(wire.CALL, wire.JSON, 1, b"one")
        + frame(wire.PING, wire.RAW, 9)
        + frame(wire.CANCEL, wire.RAW, 1, cancel)  # it has ended
        + frame(wire.CALL, wire.JSON, 2, b"wait")
        + frame(wire.CANCEL, wire.RAW, 1, cancel)
        + frame(wire.CANCEL, wire.RAW, 2, cancel)
        + frame(wire.PING, wire.RAW, 10)
    )
    assert feed(serving, said, step) == [Call(b"one"), Ping(9), Call(b"wait"), Cancel(), Ping(10)]
    assert serving.is_calling
    assert serving.error(b"{}") == frame(wire.ERROR, wire.JSON, 2, b"{}")
    assert not serving.is_calling
    assert serving.pong(Ping(10), b"running") == frame(wire.PONG, wire.RAW, 10, b"running")
    assert not serving.is_partial
    feed(serving, frame(wire.CALL, wire.JSON, 3, b"four")[:-1])
    assert serving.is_partial


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.booleans(), st.integers(1, 50))
def test_whatever_comes_is_refused_or_understood(data: bytes, is_greeted: bool, step: int) -> None:
    serving = Serving(1000)
    try:
        feed(serving, (GREETING if is_greeted else b"") + data, step)
    except RemoteProtocolError:
        pass


_KINDS = st.sampled_from([*wire.KIND_NAMES, 0, 99])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(_KINDS, st.integers(0, 3), st.integers(0, 3), st.binary(max_size=9)), max_size=8))
def test_whichever_frames_come_are_refused_or_understood(frames: list[tuple[int, int, int, bytes]]) -> None:
    serving = Serving(1000)
    feed(serving, GREETING)
    try:
        feed(serving, b"".join(frame(*one) for one in frames))
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"7", b"{", b"\xff", b"NaN", b'{"function":null}', b'{"function":"f","kwargs":[]}'],
)
def test_what_is_no_request(payload: bytes) -> None:
    with pytest.raises(DecodeError):
        messages.read_request(payload)


def test_requests() -> None:
    assert messages.read_request(b'{"function":"f"}') == ("f", [], {}, None, False)
    request = b'{"function":"f","args":[1],"kwargs":{"a":2},"timeout":0.5,"stream":true,"more":0}'
    assert messages.read_request(request) == ("f", [1], {"a": 2}, 0.5, True)


def test_an_error_that_has_no_form_in_utf_8_is_one_all_the_same() -> None:
    assert b"ValueError" in messages.write_error(ValueError("\ud800"))
