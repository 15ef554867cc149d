# SPDX-License-Identifier: Apache-2.0
"""pyproc's wire, bytes only: however the stream is cut, the same frames come out; what is malformed is one error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll_worker.faces.pyproc_wire import (
    MAX_FRAME,
    Cancellation,
    FrameReader,
    Malformed,
    Request,
    body_of,
    read_message,
    write_error,
    write_result,
)
from atoll_worker.json_codec import Codec

CODEC = Codec("json")


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def read(reader: FrameReader, stream: bytes, sizes: list[int]) -> list[Any]:
    """Feed a stream in pieces of these sizes, again and again, as a socket would."""
    frames: list[Any] = []
    at = turn = 0
    while at < len(stream):
        piece = stream[at : at + sizes[turn % len(sizes)]]
        turn += 1
        room = reader.room()
        if room is None:
            frames += reader.receive_data(piece)
        else:
            piece = piece[: len(room)]
            room[: len(piece)] = piece
            frames += reader.filled(len(piece))
        at += len(piece)
    return [one if isinstance(one, Malformed) else bytes(one) for one in frames]


@given(
    st.lists(st.one_of(st.binary(max_size=40), st.integers(60_000, 140_000).map(bytes)), max_size=6),
    st.lists(st.one_of(st.integers(1, 9), st.integers(1, 200_000)), min_size=1, max_size=4),
)
def test_however_the_stream_is_cut_the_frames_are_the_same(payloads: list[bytes], sizes: list[int]) -> None:
    if sum(map(len, payloads)) > 5_000 * max(sizes):
        sizes = [*sizes, 70_000]
    reader = FrameReader()
    assert read(reader, b"".join(map(framed, payloads)), sizes) == payloads
    assert not reader.is_partial


@pytest.mark.parametrize("sizes", [[1], [3, 5], [64], [4, 1000], [1 << 16]])
@pytest.mark.parametrize("length", [MAX_FRAME + 1, MAX_FRAME + 777])
def test_a_frame_too_large_is_one_error_and_those_behind_it_are_read(sizes: list[int], length: int) -> None:
    text = b'{"id": 17, "method": "take", "body": "'
    reader = FrameReader()
    frames: list[Any] = reader.receive_data(framed(b"before"))
    frames += read(reader, length.to_bytes(4, "big") + text, sizes)
    left = length - len(text)
    while left:
        count = min(left, 1 << 20)
        frames += reader.receive_data(bytes(count))
        left -= count
    frames += read(reader, framed(b"behind") + framed(b"and so on"), sizes)
    assert [one for one in frames if type(one) is bytes] == [b"before", b"behind", b"and so on"]
    assert isinstance(frames[1], Malformed)
    assert frames[1].request_id == 17
    assert f"{length:,} bytes" in str(frames[1])
    assert "10,485,760" in str(frames[1])


def test_the_largest_frame_is_read_and_nothing_is_allocated_before_its_length_is_known() -> None:
    reader = FrameReader()
    assert reader.receive_data(MAX_FRAME.to_bytes(4, "big")[:3]) == []
    assert reader.room() is None
    assert reader.receive_data(MAX_FRAME.to_bytes(4, "big")[3:]) == []
    room = reader.room()
    assert room is not None
    assert len(room) == MAX_FRAME
    del room
    reader.filled(MAX_FRAME - 1)
    (frame,) = reader.filled(1)
    assert len(frame) == MAX_FRAME  # type: ignore[arg-type]


def test_what_begins_as_no_frame_is_refused_before_all_of_it_came() -> None:
    """Somebody speaks HTTP: as a length, that is more than a gigabyte."""
    (refusal,) = FrameReader().receive_data(b"GET /predict HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n")
    assert isinstance(refusal, Malformed)
    assert refusal.request_id == 0


def test_requests_plain_and_wrapped() -> None:
    plain = {"id": 7, "method": "add", "body": {"a": 1}, "headers": {"traceparent": "x"}}
    for message in (plain, {"type": "request", "payload": plain}, {**plain, "type": "request"}):
        request = read_message(json.dumps(message).encode(), CODEC)
        assert isinstance(request, Request)
        assert (request.id, request.method, request.body, request.headers) == (7, "add", {"a": 1}, {"traceparent": "x"})


def test_a_body_may_be_null_or_missing() -> None:
    for payload, body in ((b'{"id":1,"method":"f","body":null}', None), (b'{"id":1,"method":"f"}', {})):
        request = read_message(payload, CODEC)
        assert isinstance(request, Request)
        assert body_of(request) == body


def test_cancellations() -> None:
    message = read_message(b'{"type":"cancellation","payload":{"id":3,"reason":"timeout"}}', CODEC)
    assert isinstance(message, Cancellation)
    assert (message.id, message.reason) == (3, "timeout")


@pytest.mark.parametrize(
    ("payload", "request_id", "words"),
    [
        (b"", 0, "not JSON"),
        (b"{", 0, "not JSON"),
        (b'{"id":1}{', 0, "not JSON"),
        (b"\xff\xfe", 0, "not JSON"),
        (b'{"id":1,"method":"f","body":NaN}', 0, "NaN"),
        (b"[" * 200_000, 0, "not JSON"),
        (b"null", 0, "expected a JSON object"),
        (b'["id"]', 0, "expected a JSON object"),
        (b'"method"', 0, "expected a JSON object"),
        (b'{"id":4}', 4, "no method"),
        (b'{"id":4,"method":5}', 4, "method is 5"),
        (b'{"id":4,"method":null}', 4, "method is None"),
        (b'{"type":"request"}', 0, "payload"),
        (b'{"type":"request","payload":{"id":9}}', 9, "no method"),
        (b'{"type":"request","payload":{"id":9,"method":[]}}', 9, "expected text"),
        (b'{"type":"response","payload":{}}', 0, "type 'response'"),
        (b'{"type":["request"],"payload":{}}', 0, "type ['request']"),
        (b'{"type":"cancellation","payload":3}', 0, "payload"),
    ],
)
def test_what_is_malformed_says_why(payload: bytes, request_id: int, words: str) -> None:
    with pytest.raises(Malformed) as caught:
        read_message(payload, CODEC)
    assert words in str(caught.value)
    assert caught.value.request_id == request_id


@pytest.mark.parametrize("request_id", [0, 1, 2**64 - 1, -5, "seven", "é", None, True, 1.5, [1], {"a": 1}])
def test_replies_bring_the_id_back_and_always_have_a_body(request_id: Any) -> None:
    (frame,) = write_result(request_id, CODEC.encode(None), CODEC)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    assert json.loads(frame[4:]) == {"id": request_id, "ok": True, "body": None}
    (frame,) = write_error(request_id, "ValueError: no", CODEC)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    assert json.loads(frame[4:]) == {"id": request_id, "ok": False, "error": "ValueError: no"}


def test_a_result_fills_a_frame_to_the_last_byte_and_no_further() -> None:
    room = MAX_FRAME - len('{"id":1,"ok":true,"body":}')
    frame = b"".join(write_result(1, b"1" * room, CODEC))
    assert len(frame) == MAX_FRAME + 4 == int.from_bytes(frame[:4], "big") + 4
    assert frame.endswith(b"1}")
    with pytest.raises(ValueError, match="10,485,760"):
        write_result(1, b"1" * (room + 1), CODEC)


def test_errors_are_cut_and_survive_what_is_no_text() -> None:
    assert len(b"".join(write_error(1, "x" * 50_000_000, CODEC))) < 30_000
    assert json.loads(write_error(1, "half \ud800 a pair", CODEC)[0][4:])["error"] == "half \\ud800 a pair"


def test_an_id_that_leaves_no_room_is_not_sent_back() -> None:
    for size, number in ((MAX_FRAME - 1_000, "i" * (MAX_FRAME - 1_000)), (MAX_FRAME - 30, 0)):
        (frame,) = write_error("i" * size, "ValueError: no", CODEC)
        assert len(frame) <= MAX_FRAME + 4
        assert json.loads(frame[4:]) == {"id": number, "ok": False, "error": "ValueError: no"}
