# SPDX-License-Identifier: Apache-2.0
"""Where a message ends: however the bytes arrive, and whatever they are."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.jsonrpc.framing import ContentLengthFraming, Framing, LineFraming, Malformed

BODIES = [b'{"a": 1}', b"[]", '{"text": "Zoë"}'.encode(), b'{"long": "' + b"x" * 500 + b'"}']


def in_pieces(framing: Framing, data: bytes, cuts: list[int]) -> list[bytes | Malformed]:
    """What comes of data that arrives cut at these places, and then ends."""
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    found: list[bytes | Malformed] = []
    for start, end in pairwise(places):
        if data[start:end]:
            found += framing.receive_data(data[start:end])
    return found + framing.receive_data(b"")


@pytest.mark.parametrize("kind", [ContentLengthFraming, LineFraming])
@given(
    numbers=st.lists(st.sampled_from(range(len(BODIES))), max_size=6), cuts=st.lists(st.integers(0, 3000), max_size=8)
)
def test_it_does_not_matter_how_bytes_arrive(kind: type[Framing], numbers: list[int], cuts: list[int]) -> None:
    bodies = [BODIES[number] for number in numbers]
    framing = kind()
    data = b"".join(framing.wrap(body) for body in bodies)
    assert in_pieces(framing, data, cuts) == bodies


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=5))
def test_any_bytes_are_taken_the_same_way_however_they_arrive(data: bytes, cuts: list[int]) -> None:
    for kind in (ContentLengthFraming, LineFraming):
        once = in_pieces(kind(100), data, [])
        # What cannot be taken apart ends the conversation: nothing after it counts.
        cut = in_pieces(kind(100), data, cuts)
        assert _until_final(once) == _until_final(cut)


def _until_final(found: list[bytes | Malformed]) -> list[object]:
    kept: list[object] = []
    for one in found:
        if isinstance(one, Malformed):
            kept.append(one.is_final)
            if one.is_final:
                break
        else:
            kept.append(one)
    return kept


# -- headers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        b"Content-Length: 2\r\n\r\n",
        b"content-length:2\r\n\r\n",
        b"Content-Type: application/vscode-jsonrpc; charset=utf-8\r\nContent-Length: 2\r\n\r\n",
        b"Content-Length: 2\n\n",
        b"Content-Length: 0002\r\nX: y\r\n\r\n",
    ],
)
def test_headers(header: bytes) -> None:
    assert ContentLengthFraming().receive_data(header + b"{}") == [b"{}"]


def test_an_empty_message() -> None:
    assert ContentLengthFraming().receive_data(b"Content-Length: 0\r\n\r\nContent-Length: 2\r\n\r\n{}") == [b"", b"{}"]


@pytest.mark.parametrize(
    "header",
    [
        b"X: y",
        b"",
        b"Content-Length: -5",
        b"Content-Length: 1e3",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: " + b"9" * 40,
        b"Content-Length:",
        "Content-Length: ²".encode("latin-1"),
    ],
)
def test_a_header_that_says_no_length_is_passed_over(header: bytes) -> None:
    framing = ContentLengthFraming()
    wrong, right = framing.receive_data(header + b"\r\n\r\nContent-Length: 2\r\n\r\n{}")
    assert isinstance(wrong, Malformed)
    assert "Content-Length" in wrong.reason
    assert not wrong.is_final
    assert right == b"{}"


def test_messages_on_lines_are_told_what_to_do() -> None:
    (wrong,) = ContentLengthFraming().receive_data(b'{"jsonrpc": "2.0", "id": 1, "method": "add"}\n')
    assert isinstance(wrong, Malformed)
    assert "--newline" in wrong.reason
    assert wrong.is_final


def test_a_header_without_end() -> None:
    framing = ContentLengthFraming()
    assert framing.receive_data(b"X" * 8000) == []
    (wrong,) = framing.receive_data(b"X" * 1000)
    assert isinstance(wrong, Malformed)
    assert wrong.is_final


def test_the_end_in_the_middle() -> None:
    for data in (b"Content-Length: 2\r\n", b"Content-Length: 2\r\n\r\n", b"Content-Length: 2\r\n\r\n{"):
        framing = ContentLengthFraming()
        assert framing.receive_data(data) == []
        (wrong,) = framing.receive_data(b"")
        assert isinstance(wrong, Malformed)
        assert wrong.is_final


# -- sizes ---------------------------------------------------------------------------------------------------------


def test_what_is_too_large_is_passed_over_and_not_kept() -> None:
    framing = ContentLengthFraming(100)
    (wrong,) = framing.receive_data(b"Content-Length: 100000\r\n\r\n")
    assert isinstance(wrong, Malformed)
    assert "100,000 bytes; at most 100 are read" in wrong.reason
    assert wrong.is_json
    for _ in range(100):
        assert framing.receive_data(b"x" * 999) == []
        assert len(framing._buffer) == 0
    assert framing.receive_data(b"y" * 100 + framing.wrap(b"{}")) == [b"{}"]
    assert framing.receive_data(framing.wrap(b"x" * 100)) == [b"x" * 100]


def test_a_line_that_is_too_long_is_passed_over_and_not_kept() -> None:
    framing = LineFraming(100)
    for _ in range(100):
        assert framing.receive_data(b"x" * 999) == []
        assert sum(map(len, framing._parts)) <= 101
    wrong, right = framing.receive_data(b"\n{}\n")
    assert isinstance(wrong, Malformed)
    assert wrong.is_json
    assert right == b"{}"
    assert framing.receive_data(b"x" * 100 + b"\r\n") == [b"x" * 100]


def test_empty_lines_are_nothing() -> None:
    assert LineFraming().receive_data(b"\n\r\n{}\r\n  \n[]\n") == [b"{}", b"[]"]
