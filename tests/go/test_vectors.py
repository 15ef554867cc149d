# SPDX-License-Identifier: Apache-2.0
"""The frames of vectors.json, read and written by this side; the Go client's tests do the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atoll_worker import wire
from atoll_worker.errors import RemoteProtocolError

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())


def _named(part: str) -> list[Any]:
    return [pytest.param(one, id=one["name"]) for one in VECTORS[part]]


@pytest.mark.parametrize("vector", _named("frames"))
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_frames_are_read_however_they_are_split(vector: dict[str, Any], step: int) -> None:
    data = b"\0" + bytes.fromhex(vector["bytes"]) + b"\0\0"
    reader = wire.FrameReader()
    frames = [frame for start in range(0, len(data), step) for frame in reader.receive_data(data[start : start + step])]
    (frame,) = frames
    assert (frame.kind, frame.codec, frame.call_id) == (vector["kind"], vector["codec"], vector["call_id"])
    assert bytes(frame.payload).hex() == vector["payload"]
    assert [bytes(buffer).hex() for buffer in frame.buffers] == vector["buffers"]


@pytest.mark.parametrize("vector", _named("frames"))
def test_frames_are_written(vector: dict[str, Any]) -> None:
    buffers = [bytes.fromhex(text) for text in vector["buffers"]]
    pieces = wire.pack(vector["kind"], vector["codec"], vector["call_id"], bytes.fromhex(vector["payload"]), buffers)
    assert b"".join(bytes(piece) for piece in pieces).hex() == vector["bytes"]


@pytest.mark.parametrize("vector", _named("malformed"))
def test_malformed_frames_are_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        wire.FrameReader().receive_data(bytes.fromhex(vector["bytes"]))


@pytest.mark.parametrize("vector", _named("refused_hellos"))
def test_hellos_of_others_are_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        wire.check_hello(bytes.fromhex(vector["payload"]))


def test_vectors_are_those_of_this_wire() -> None:
    assert VECTORS["version"] == wire.VERSION
    kinds = {one["kind"] for one in VECTORS["frames"]}
    assert kinds == set(wire.KIND_NAMES), "a kind of frame without a vector: see make_vectors.py"
