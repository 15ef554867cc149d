# SPDX-License-Identifier: Apache-2.0
"""The fast lane's memory, and a peer that writes what it wants into it."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll_worker import lane, wire
from atoll_worker.connection import Connection, ConnectionClosed, DeadlinePassed
from atoll_worker.errors import RemoteProtocolError
from atoll_worker.lane import LANE_SIZE, SLOT_SIZE, Lane

from .pairs import PATIENCE, Raw, against_raw, both_ends, echo, forked, open_at_once

FAILURES = (RemoteProtocolError, ConnectionClosed, DeadlinePassed)


def header(
    kind: int = wire.RESULT, codec: int = wire.RAW, count: int = 0, length: int = 1, call_id: int = 1
) -> tuple[int, int, int, int, int]:
    return kind, codec, count, length, call_id


# -- memory ----------------------------------------------------------------------------------------------------------


def test_the_size_is_sealed() -> None:
    """Nobody can cut the memory off under its reader, nor lift the seal; its name leads nowhere."""
    fd = lane.create()
    try:
        assert os.fstat(fd).st_size == LANE_SIZE
        for size in (0, LANE_SIZE - 1, LANE_SIZE + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert not os.get_inheritable(fd)
        assert os.fstat(fd).st_nlink == 0
    finally:
        os.close(fd)


def test_two_views_of_one_lane() -> None:
    """What one side writes is where the other reads, in both directions, and the directions do not overlap."""
    fd = lane.create()
    host, worker = Lane(fd, is_host=True), Lane(fd, is_host=False)
    os.close(fd)
    for one, other in ((host, worker), (worker, host)):
        assert one.write_number_word == other.read_number_word
        assert one.peer_asleep_word == other.my_asleep_word
        assert one.write_offset == other.read_offset
        assert one.write_number_word // 8 != one.peer_asleep_word // 8  # cache lines of their own
        one.memory[one.write_offset : one.write_offset + SLOT_SIZE] = b"x" * SLOT_SIZE
    numbers = {host.write_number_word, host.read_number_word, host.my_asleep_word, host.peer_asleep_word}
    assert len(numbers) == 4
    assert [host.words[number] for number in numbers] == [0, 0, 0, 0]
    for one in (host, worker):
        one.close()
        one.close()


def test_open_lane() -> None:
    """No descriptor, no lane."""
    assert lane.open_lane(None, is_host=True) is None
    fd = lane.create()
    opened = lane.open_lane(fd, is_host=True)
    os.close(fd)
    assert isinstance(opened, Lane)
    opened.close()


@pytest.mark.parametrize("size", [0, 100, LANE_SIZE - 128, LANE_SIZE + 1, LANE_SIZE + 64])
def test_memory_of_another_size_is_no_lane(size: int) -> None:
    """A descriptor with less memory behind it is refused when mapped, not at the first access."""
    fd = os.memfd_create("small")
    os.ftruncate(fd, size)
    with pytest.raises(ValueError, match=f"a lane of {size:,} bytes; at least 131,328 are needed"):
        Lane(fd, is_host=True)
    os.close(fd)


def test_a_host_may_choose_larger_slots() -> None:
    """What fits them goes through memory, in both directions; what does not, over the socket."""
    slot = 1 << 18
    fd = os.memfd_create("large")
    os.ftruncate(fd, 2 * (128 + slot))
    ours, theirs = socket.socketpair()
    client = open_at_once(Connection(ours, Lane(fd, is_host=True), "client"))
    server = open_at_once(Connection(theirs, Lane(fd, is_host=False), "server"))
    os.close(fd)
    room = slot - wire.HEADER_SIZE
    with ours, theirs:
        for length, by_memory in ((0, True), (SLOT_SIZE, True), (room, True), (room + 1, False), (10, True)):
            payload = os.urandom(length)
            for one, other, kind in ((client, server, wire.CALL), (server, client, wire.RESULT)):
                assert one.fits_slot(payload, ()) is by_memory
                left = one.start_send(kind, wire.RAW, payload)
                frame = other.poll_frame()
                while frame is None:
                    left = one.continue_send(left) if left else left
                    frame = other.poll_frame()
                assert bytes(frame.payload) == payload
        for one in (ours, theirs):
            with pytest.raises(BlockingIOError):
                one.recv(1)


# -- a peer that lies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patient", [False, True])
@pytest.mark.parametrize(
    "bad",
    [
        header(call_id=2), header(call_id=0), header(call_id=2**64 - 1),
        header(kind=wire.CALL), header(kind=wire.HELLO), header(kind=wire.READY), header(kind=wire.PONG),
        header(kind=0), header(kind=99), header(kind=255), header(codec=3), header(codec=255),
        header(count=1), header(count=wire.MAX_BUFFERS), header(count=65535),
        header(length=SLOT_SIZE - wire.HEADER_SIZE + 1), header(length=1 << 20), header(length=2**32 - 1),
    ],
    ids=str,
)  # fmt: skip
def test_lies_in_an_answers_header(bad: tuple[int, int, int, int, int], patient: bool) -> None:
    """Every number of a header in the slot is checked, on the fast and on the slow way."""
    with against_raw("client") as (client, raw):
        raw.put(2, bad, b"x")
        with pytest.raises(RemoteProtocolError):
            client.exchange(wire.RAW, b"", patient=patient, deadline=time.monotonic() + PATIENCE)


@pytest.mark.parametrize(
    "bad",
    [
        header(kind=wire.RESULT), header(kind=wire.HELLO), header(kind=wire.LOAD), header(kind=200),
        header(kind=wire.CALL, call_id=0), header(kind=wire.CALL, call_id=2), header(kind=wire.CALL, codec=9),
        header(kind=wire.CALL, count=2), header(kind=wire.CALL, length=SLOT_SIZE),
    ],
    ids=str,
)  # fmt: skip
def test_lies_in_a_calls_header(bad: tuple[int, int, int, int, int]) -> None:
    """As above, for the server."""
    with against_raw("server") as (server, raw):
        raw.put(2, bad, b"x")
        with pytest.raises(RemoteProtocolError):
            server.receive_call()


@pytest.mark.parametrize("number", [1, 4, 5, 6, 2**32, 2**63, 2**64 - 1])
@pytest.mark.parametrize("spin", [True, False])
def test_numbers_that_jump(number: int, spin: bool) -> None:
    """A sequence number that is not the next one is the other side's error."""
    with against_raw("client", spin=spin) as (client, raw):
        raw.put(number, header(), b"x")
        with pytest.raises(RemoteProtocolError, match=f"slot number {number} after 0"):
            client.exchange(wire.RAW, b"", deadline=time.monotonic() + PATIENCE)


def test_numbers_that_go_back() -> None:
    """A number that was seen before is the other side's error too; the same one again is no news."""
    with against_raw("client") as (client, raw):
        raw.put(2, header(), b"x")
        client.exchange(wire.RAW, b"")
        raw.publish(2)
        with pytest.raises(DeadlinePassed):
            client.exchange(wire.RAW, b"", deadline=time.monotonic() + 0.05)
        raw.publish(0)
        with pytest.raises(RemoteProtocolError, match="slot number 0 after 2"):
            client.receive(time.monotonic() + PATIENCE)


def test_an_announced_frame_that_never_comes() -> None:
    """Announcing and not sending holds a caller no longer than its deadline, or the peer's life."""
    with against_raw("client") as (client, raw):
        raw.publish(3)
        with pytest.raises(DeadlinePassed):
            client.exchange(wire.RAW, b"", deadline=time.monotonic() + 0.05)
    with against_raw("client") as (client, raw):
        raw.publish(3)
        raw.sock.close()
        with pytest.raises(ConnectionClosed):
            client.exchange(wire.RAW, b"", deadline=time.monotonic() + PATIENCE)


def test_an_announced_frame_that_is_another() -> None:
    """What comes over the socket is checked like any frame."""
    for bad in (header(call_id=5), header(kind=wire.CALL), header(kind=77), header(codec=7)):
        with against_raw("client") as (client, raw):
            raw.publish(3)
            raw.sock.send(wire.HEADER.pack(*bad) + b"x")
            with pytest.raises(RemoteProtocolError):
                client.exchange(wire.RAW, b"", deadline=time.monotonic() + PATIENCE)


def test_a_frame_that_nobody_announced() -> None:
    """A whole frame on the socket without its number in the slot is refused by who sleeps there."""
    with against_raw("client") as (client, raw):
        raw.sock.send(wire.HEADER.pack(*header()) + b"x")
        with pytest.raises(RemoteProtocolError, match="no slot announced"):
            client.exchange(wire.RAW, b"", deadline=time.monotonic() + PATIENCE)
    with against_raw("server") as (server, raw):
        raw.sock.send(wire.HEADER.pack(*header(kind=wire.CALL)) + b"x")
        with pytest.raises(RemoteProtocolError, match="no slot announced"):
            server.receive_call()


def test_bytes_that_are_no_frame_where_a_wake_belongs() -> None:
    """Noise on the socket of a sleeper is refused."""
    with against_raw("server") as (server, raw):
        raw.sock.send(b"\0\0GET / HTTP/1.1")
        with pytest.raises(RemoteProtocolError, match="unknown kind"):
            server.receive_call()


def test_a_half_announced_flood_stays_bounded() -> None:
    """Bytes of a frame that nobody announced, without end, are refused, or wait for the deadline."""
    with against_raw("client") as (client, raw):
        raw.sock.setblocking(False)
        raw.sock.send(wire.HEADER.pack(wire.RESULT, wire.RAW, 0, wire.MAX_PAYLOAD, 1) + b"x" * 50_000)
        with pytest.raises((DeadlinePassed, RemoteProtocolError)):
            client.exchange(wire.RAW, b"", deadline=time.monotonic() + 0.05)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_random_slots(data: st.DataObject) -> None:
    """Whatever stands in the slot: an answer that is right, or one of three errors."""
    with against_raw("client", spin=data.draw(st.booleans())) as (client, raw):
        near = st.integers(0, 8)
        bad = (
            data.draw(near | st.integers(0, 255)),
            data.draw(near | st.integers(0, 255)),
            data.draw(st.just(0) | st.integers(0, 65535)),
            data.draw(near | st.integers(0, 2**32 - 1)),
            data.draw(near | st.integers(0, 2**64 - 1)),
        )
        raw.put(data.draw(near | st.integers(0, 2**64 - 1)), bad, data.draw(st.binary(max_size=20)))
        if data.draw(st.booleans()):
            raw.sock.send(data.draw(st.binary(min_size=1, max_size=50)))
        try:
            kind, codec, payload, _ = client.exchange(wire.RAW, b"", deadline=time.monotonic() + 0.005)
        except FAILURES:
            return
        assert kind in (wire.RESULT, wire.ERROR)
        assert codec in (wire.RAW, wire.PICKLE, wire.JSON)
        assert len(payload) <= SLOT_SIZE


def test_a_peer_that_scribbles_all_the_time() -> None:
    """Random bytes all over the slots, while calls are made: each ends in an answer or in one of three errors, and a
    connection beside it is unharmed."""

    def scribble(_: Connection, raw: Raw) -> None:
        dice = random.Random(os.getpid())
        words = raw.lane.words
        while True:
            for _ in range(200):
                what = dice.randrange(4)
                if what == 0:
                    raw.put(
                        dice.choice((0, 2, 2, 2, 3, 4, dice.getrandbits(64))), header(length=dice.randrange(70_000))
                    )
                elif what == 1:
                    words[raw.lane.write_number_word] = 2
                elif what == 2:
                    words[dice.randrange(len(words))] = dice.getrandbits(64)
                else:
                    place = raw.lane.write_offset + dice.randrange(SLOT_SIZE - 64)
                    raw.lane.memory[place : place + 64] = dice.randbytes(64)
                if dice.random() < 0.05:
                    raw.sock.send(dice.randbytes(dice.randrange(1, 30)))

    ends = {"answer": 0, "error": 0}
    with forked(echo) as (good, _):
        for index in range(40):
            with forked(scribble, spin=index % 2 == 0) as (client, _):
                try:
                    for _ in range(10):
                        client.exchange(wire.RAW, b"x" * 100, deadline=time.monotonic() + 0.02)
                        ends["answer"] += 1
                except FAILURES:
                    ends["error"] += 1
            assert good.exchange(wire.RAW, b"unharmed", deadline=time.monotonic() + PATIENCE)[2] == b"unharmed"
    assert ends["error"] == 40


def test_what_is_checked_is_what_is_used() -> None:
    """The header is read once: an answer's payload is what lay there at that moment."""
    with both_ends() as (client, server):
        client.send(wire.CALL, wire.RAW, b"x")
        server.receive_call()
        server.reply(wire.RESULT, wire.RAW, b"before")
        payload = client.receive().payload
        shared = server._lane
        assert shared is not None
        start = shared.write_offset
        shared.memory[start : start + 64] = b"\xff" * 64
        assert payload == b"before"
