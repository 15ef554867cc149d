# SPDX-License-Identifier: Apache-2.0
"""The wire as bytes: two peers in memory, every transition, random splits, corrupted and lying bytes."""

from __future__ import annotations

import os
import resource

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll_worker import wire
from atoll_worker.errors import LocalProtocolError, RemoteProtocolError
from atoll_worker.wire import CLIENT_SENDS, HEADER, KIND_NAMES, SERVER_SENDS, Conversation, Frame, FrameReader

from .forking import in_child

DEEPER = 1 << 48  # what a call id grows by with each call within a call
# Every state, with the call ids it may be found with: the seventh call, and calls nested in it.
STATES = {
    wire.START: [0],
    wire.GREETED: [0],
    wire.OPEN: [0],
    wire.LOADING: [0],
    wire.IDLE: [0, 7],
    wire.CALLING: [7],
    wire.ASKING: [7 + DEEPER, 7 + 3 * DEEPER, 7 + 247 * DEEPER],
    wire.NESTED: [7 + 2 * DEEPER, 7 + 4 * DEEPER, 7 + 248 * DEEPER],
    wire.FAILED: [0],
}
CASES = [(state, call_id) for state, call_ids in STATES.items() for call_id in call_ids]
CODECS = [wire.RAW, wire.PICKLE, wire.JSON]


class Peer:
    """One end, in memory."""

    def __init__(self, role: str) -> None:
        self.conversation = Conversation(role)
        self.reader = FrameReader()

    def send(self, kind: int, payload: bytes = b"", codec: int = wire.PICKLE) -> bytes:
        return b"".join(wire.pack(kind, codec, self.conversation.sending(kind), payload))

    def receive(self, data: bytes) -> list[Frame]:
        frames = self.reader.receive_data(data)
        for frame in frames:
            self.conversation.received(frame.kind, frame.codec, frame.call_id)
        return frames


def test_two_peers_greet_load_and_call() -> None:
    """A whole conversation, from the greeting to calls that succeed and fail, ends in step on both sides."""
    client, server = Peer("client"), Peer("server")
    (greeting,) = server.receive(client.send(wire.HELLO, wire.hello(), wire.RAW))
    assert wire.check_hello(greeting.payload) == wire.CODEC_BITS
    (greeting,) = client.receive(server.send(wire.HELLO, wire.hello(), wire.RAW))
    assert wire.check_hello(greeting.payload) == wire.CODEC_BITS
    server.receive(client.send(wire.LOAD, b"what"))
    client.receive(server.send(wire.READY, b"ready"))
    for number, answer in enumerate([wire.RESULT, wire.ERROR, wire.RESULT], 1):
        (call,) = server.receive(client.send(wire.CALL, b"call %d" % number))
        assert (call.call_id, bytes(call.payload)) == (number, b"call %d" % number)
        (reply,) = client.receive(server.send(answer, b"answer"))
        assert (reply.kind, reply.call_id) == (answer, number)
    assert client.conversation.state == server.conversation.state == wire.IDLE


def conversing() -> tuple[Peer, Peer]:
    """A client and a server between which no call is open yet."""
    client, server = Peer("client"), Peer("server")
    for kind, sender, receiver in (
        (wire.HELLO, client, server),
        (wire.HELLO, server, client),
        (wire.LOAD, client, server),
        (wire.READY, server, client),
    ):
        receiver.receive(sender.send(kind))
    return client, server


def state_of(peer: Peer) -> tuple[str, int, int]:
    conversation = peer.conversation
    return conversation.state, conversation.call_id, conversation.depth


def test_calls_within_calls() -> None:
    """Fifty deep and back, twice: what was called answers or calls back, and an answer is to the innermost call."""
    client, server = conversing()
    for number in (1, 2):
        peers = [client, server]
        for depth in range(50):
            sender, receiver = peers
            (call,) = receiver.receive(sender.send(wire.CALL, b"down %d" % depth))
            assert (call.call_id & wire.CALL_NUMBER, call.call_id >> 48) == (number, depth)
            assert bytes(call.payload) == b"down %d" % depth
            assert client.conversation.depth == server.conversation.depth == depth + 1
            expected = wire.CALLING if depth == 0 else wire.ASKING if receiver is client else wire.NESTED
            assert client.conversation.state == server.conversation.state == expected
            with pytest.raises(LocalProtocolError):
                sender.conversation.sending(wire.CALL)  # it is the other's turn
            peers.reverse()
        for depth in reversed(range(50)):
            sender, receiver = peers
            kind = wire.ERROR if depth % 3 else wire.RESULT
            (answer,) = receiver.receive(sender.send(kind, b"up"))
            assert (answer.kind, answer.call_id) == (kind, number + depth * DEEPER)
            assert client.conversation.depth == server.conversation.depth == depth
            with pytest.raises(LocalProtocolError):
                sender.conversation.sending(wire.RESULT)
            peers.reverse()
        assert state_of(client) == state_of(server) == (wire.IDLE, number, 0)


def test_several_calls_back_one_after_another() -> None:
    """After a call back was answered the worker may make another, or answer."""
    client, server = conversing()
    server.receive(client.send(wire.CALL))
    for _ in range(3):
        client.receive(server.send(wire.CALL))
        for _ in range(2):
            server.receive(client.send(wire.CALL))
            client.receive(server.send(wire.RESULT))
        server.receive(client.send(wire.ERROR))
    client.receive(server.send(wire.RESULT))
    assert state_of(client) == state_of(server) == (wire.IDLE, 1, 0)


def test_no_deeper_than_may_be() -> None:
    """Whoever would nest calls deeper than MAX_DEPTH is at fault, and the conversation goes on as before."""
    client, server = conversing()
    sender, receiver = client, server
    for _ in range(wire.MAX_DEPTH):
        receiver.receive(sender.send(wire.CALL))
        sender, receiver = receiver, sender
    deepest = state_of(client)
    assert deepest == state_of(server) == (deepest[0], 1 + (wire.MAX_DEPTH - 1) * DEEPER, wire.MAX_DEPTH)
    with pytest.raises(LocalProtocolError, match=f"nested {wire.MAX_DEPTH} deep"):
        sender.conversation.sending(wire.CALL)
    with pytest.raises(RemoteProtocolError, match=f"nested more than {wire.MAX_DEPTH} deep"):
        receiver.conversation.received(wire.CALL, wire.PICKLE, 1 + wire.MAX_DEPTH * DEEPER)
    assert state_of(client) == state_of(server) == deepest
    for _ in range(wire.MAX_DEPTH):
        receiver.receive(sender.send(wire.RESULT))
        sender, receiver = receiver, sender
    assert state_of(client) == state_of(server) == (wire.IDLE, 1, 0)


@given(st.lists(st.tuples(st.sampled_from(["call", "answer", "out of turn", "lie"]), st.integers(0, 2**64 - 1))))
@settings(max_examples=200, deadline=None)
def test_random_conversations(steps: list[tuple[str, int]]) -> None:
    """Whatever calls, calls back and answers follow one another, both sides agree on depth, turn and call; and neither
    a frame out of turn nor one with another id changes that."""
    client, server = conversing()
    calls: list[int] = []  # ids of the open ones
    number = 0
    for step, chance in steps:
        agreed = state_of(client)
        assert agreed == state_of(server)
        assert agreed[2] == len(calls)
        sender, receiver = (server, client) if len(calls) % 2 else (client, server)  # who has the turn
        kind = (wire.RESULT, wire.ERROR)[chance % 2] if calls and chance % 3 else wire.CALL
        if step == "call" and len(calls) < wire.MAX_DEPTH:
            number += not calls
            calls.append(number + len(calls) * DEEPER)
            (frame,) = receiver.receive(sender.send(wire.CALL))
            assert frame.call_id == calls[-1]
        elif step == "answer" and calls:
            (frame,) = receiver.receive(sender.send(kind if kind != wire.CALL else wire.RESULT))
            assert frame.call_id == calls.pop()
        elif step == "out of turn":
            with pytest.raises(LocalProtocolError):
                receiver.conversation.sending(kind)
            with pytest.raises(RemoteProtocolError):
                sender.conversation.received(kind, wire.PICKLE, agreed[1])
        elif step == "lie":
            right = calls[-1] if kind != wire.CALL else (calls[-1] + DEEPER if calls else number + 1)
            if chance != right:
                with pytest.raises(RemoteProtocolError):
                    receiver.conversation.received(kind, wire.PICKLE, chance)
    assert state_of(client) == state_of(server)
    assert client.conversation.depth == len(calls)


def test_a_failed_load_ends_the_conversation() -> None:
    """After ERROR to LOAD neither side may say anything more."""
    client, server = Peer("client"), Peer("server")
    server.receive(client.send(wire.HELLO))
    client.receive(server.send(wire.HELLO))
    server.receive(client.send(wire.LOAD))
    client.receive(server.send(wire.ERROR))
    for peer in (client, server):
        for kind in KIND_NAMES:
            with pytest.raises(LocalProtocolError, match="FAILED"):
                peer.conversation.sending(kind)
            with pytest.raises(RemoteProtocolError, match="FAILED"):
                peer.conversation.received(kind, wire.RAW, peer.conversation.call_id)


def in_state(role: str, state: str, call_id: int) -> Conversation:
    conversation = Conversation(role)
    conversation.state, conversation.call_id = state, call_id
    return conversation


def after(state: str, call_id: int, kind: int) -> tuple[int, str, int] | None:
    """Call id of the frame, state and call id afterwards, if a frame of this kind is sent; None if it may not be.
    Said without the tables: by who has the turn, and how deep the calls are."""
    depth = call_id >> 48
    answer = kind in (wire.RESULT, wire.ERROR)
    if state == wire.START and kind == wire.HELLO:
        return call_id, wire.GREETED, call_id
    if state == wire.GREETED and kind == wire.HELLO:
        return call_id, wire.OPEN, call_id
    if state == wire.OPEN and kind == wire.LOAD:
        return call_id, wire.LOADING, call_id
    if state == wire.LOADING and kind in (wire.READY, wire.ERROR):
        return call_id, wire.IDLE if kind == wire.READY else wire.FAILED, call_id
    if state == wire.IDLE and kind == wire.CALL:
        return call_id + 1, wire.CALLING, call_id + 1
    if state in (wire.CALLING, wire.ASKING, wire.NESTED) and kind == wire.CALL:
        deeper = call_id + DEEPER
        return deeper, wire.NESTED if state == wire.ASKING else wire.ASKING, deeper
    if state == wire.CALLING and answer:
        return call_id, wire.IDLE, call_id
    if state == wire.NESTED and answer:
        return call_id, wire.ASKING, call_id - DEEPER
    if state == wire.ASKING and answer:
        return call_id, wire.CALLING if depth == 1 else wire.NESTED, call_id - DEEPER
    return None


CLIENT_HAS_THE_TURN = (wire.START, wire.OPEN, wire.IDLE, wire.ASKING)


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize(("state", "call_id"), CASES)
def test_every_transition(role: str, state: str, call_id: int) -> None:
    """In every state, at every depth, exactly what is right is admitted; what is refused changes nothing."""
    may_send = state != wire.FAILED and (state in CLIENT_HAS_THE_TURN) == (role == "client")
    may_receive = state != wire.FAILED and not may_send
    for kind in [*KIND_NAMES, 99]:
        conversation = in_state(role, state, call_id)
        expected = after(state, call_id, kind) if may_send else None
        if expected is None:
            with pytest.raises(LocalProtocolError, match=f"{KIND_NAMES.get(kind, kind)}.*{state}"):
                conversation.sending(kind)
            assert (conversation.state, conversation.call_id) == (state, call_id)
        else:
            assert (conversation.sending(kind), conversation.state, conversation.call_id) == expected

        conversation = in_state(role, state, call_id)
        expected = after(state, call_id, kind) if may_receive else None
        if expected is None:
            with pytest.raises(RemoteProtocolError, match=f"{KIND_NAMES.get(kind, kind)}.*{state}"):
                conversation.received(kind, wire.PICKLE, call_id)
            assert (conversation.state, conversation.call_id) == (state, call_id)
            continue
        right, state_after, call_id_after = expected
        # Another call's, another depth's, and none at all.
        lies = {right - 1, right + 1, right + DEEPER, right - DEEPER, right ^ DEEPER, right & wire.CALL_NUMBER}
        lies |= {0, call_id, 2**64 - 1}
        for wrong in sorted(lie for lie in lies - {right} if 0 <= lie < 2**64):
            with pytest.raises(RemoteProtocolError, match=f"call id {wrong}, but {right}"):
                conversation.received(kind, wire.PICKLE, wrong)
        with pytest.raises(RemoteProtocolError, match="unknown codec 3"):
            conversation.received(kind, 3, right)
        assert (conversation.state, conversation.call_id) == (state, call_id)
        conversation.received(kind, wire.PICKLE, right)
        assert (conversation.state, conversation.call_id) == (state_after, call_id_after)


def test_the_tables_are_complete() -> None:
    """Whatever the client may send the server may receive, no turn is of both, and every state is reached."""
    assert not CLIENT_SENDS.keys() & SERVER_SENDS.keys()
    reached = {wire.START}
    both = {**CLIENT_SENDS, **SERVER_SENDS}
    while more := {then for (before, _), then in both.items() if before in reached} - reached:
        reached |= more
    assert reached == set(STATES)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "HELLO of 0 bytes"),
        (b"atol\1\0", "HELLO of 6 bytes"),
        (b"HTTP/1.1", "does not speak atoll's wire"),
        (wire.HELLO_PAYLOAD.pack(wire.MAGIC, wire.VERSION + 1, 6), f"version {wire.VERSION + 1}"),
    ],
)
def test_a_wrong_hello(payload: bytes, message: str) -> None:
    """A greeting by somebody else is the other side's error, and says what came."""
    with pytest.raises(RemoteProtocolError, match=message):
        wire.check_hello(payload)


def test_a_longer_hello_is_admitted() -> None:
    """A later minor revision may append to the greeting."""
    assert wire.check_hello(wire.hello() + b"more") == wire.CODEC_BITS


# -- frames through a stream -----------------------------------------------------------------------------------------

a_frame = st.tuples(
    st.sampled_from(sorted(KIND_NAMES)),
    st.sampled_from(CODECS),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=200) | st.integers(0, 200_000).map(lambda size: b"p" * size),
    st.lists(st.binary(max_size=100) | st.integers(0, 150_000).map(lambda size: b"b" * size), max_size=5),
)


def whole(frame: Frame) -> tuple[int, int, int, bytes, list[bytes]]:
    return (
        frame.kind,
        frame.codec,
        frame.call_id,
        bytes(frame.payload),
        [bytes(buffer) for buffer in frame.buffers],
    )


@given(st.lists(a_frame, max_size=6), st.data())
@settings(max_examples=150, deadline=None)
def test_frames_come_out_as_they_went_in(
    frames: list[tuple[int, int, int, bytes, list[bytes]]], data: st.DataObject
) -> None:
    """However the stream is split, and wherever wakes lie between frames, the same frames come out."""
    stream = b""
    for frame in frames:
        stream += b"\0" * data.draw(st.integers(0, 3)) + b"".join(wire.pack(*frame))
    stream += b"\0" * data.draw(st.integers(0, 3))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    reader = FrameReader()
    received = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += reader.receive_data(stream[start:end])
    assert [whole(frame) for frame in received] == frames
    assert not reader.partial


def test_byte_by_byte() -> None:
    """The finest split of all."""
    stream = b"\0" + b"".join(wire.pack(wire.CALL, wire.PICKLE, 1, b"payload", [b"", b"one"])) + b"\0\0"
    reader = FrameReader()
    frames = [frame for index in range(len(stream)) for frame in reader.receive_data(stream[index : index + 1])]
    assert [whole(frame) for frame in frames] == [(wire.CALL, wire.PICKLE, 1, b"payload", [b"", b"one"])]


def test_partial_tells_the_middle_of_a_frame() -> None:
    """``partial`` is true from the first byte of a frame to the one before its last, and wakes are no part of one."""
    stream = b"".join(wire.pack(wire.CALL, wire.PICKLE, 1, b"p" * 100, [b"b" * 100]))
    reader = FrameReader()
    assert not reader.partial
    for byte in stream[:-1]:
        assert reader.receive_data(bytes([byte])) == []
        assert reader.partial
    assert len(reader.receive_data(stream[-1:])) == 1
    reader.receive_data(b"\0\0")
    assert not reader.partial


def test_wakes_alone_never_fill_the_reader() -> None:
    """Wake bytes may come by the million between frames that took another way: there is always room to receive."""
    reader = FrameReader()
    for _ in range(3 * FrameReader.SCRATCH):
        buffer = reader.get_buffer()
        assert buffer.nbytes > 0
        buffer[0] = 0
        reader.buffer_updated(1)
    assert reader.next_frame() is None
    assert len(reader.receive_data(b"".join(wire.pack(wire.PING, wire.RAW, 1, b"")))) == 1


@given(st.lists(a_frame, min_size=1, max_size=3), st.data())
@settings(max_examples=200, deadline=None)
def test_corrupted_bytes(frames: list[tuple[int, int, int, bytes, list[bytes]]], data: st.DataObject) -> None:
    """Bytes changed at random give frames or the other side's error, never anything else."""
    stream = bytearray(b"".join(b"".join(wire.pack(*frame)) for frame in frames))
    for _ in range(data.draw(st.integers(1, 8))):
        # Mostly in the first header and table, where it matters.
        place = data.draw(st.integers(0, min(len(stream), 60) - 1) | st.integers(0, len(stream) - 1))
        stream[place] = data.draw(st.integers(0, 255))
    reader = FrameReader()
    try:
        received = reader.receive_data(stream)
    except RemoteProtocolError:
        return
    for frame in received:
        assert frame.kind in KIND_NAMES
        assert frame.codec in CODECS


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_noise(noise: bytes) -> None:
    """Bytes that never were frames do as little harm."""
    try:
        FrameReader().receive_data(noise)
    except RemoteProtocolError:
        pass


# -- lying sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ((9, wire.RAW, 0, 0, 1), "unknown kind 9"),
        ((255, wire.RAW, 0, 0, 1), "unknown kind 255"),
        ((wire.CALL, 3, 0, 0, 1), "unknown codec 3"),
        ((wire.CALL, 255, 0, 0, 1), "unknown codec 255"),
        ((wire.CALL, wire.PICKLE, 0, wire.MAX_PAYLOAD + 1, 1), "at most"),
        ((wire.CALL, wire.PICKLE, 0, 2**32 - 1, 1), "at most"),
        ((wire.CALL, wire.PICKLE, wire.MAX_BUFFERS + 1, 0, 1), "at most"),
    ],
)
def test_a_malformed_header_is_the_others_error(header: tuple[int, int, int, int, int], message: str) -> None:
    """Every number of a header has bounds, checked in the stream and, by the same function, in a slot."""
    with pytest.raises(RemoteProtocolError, match=message):
        FrameReader().receive_data(HEADER.pack(*header))
    with pytest.raises(RemoteProtocolError, match=message):
        wire.check_header(header)


def test_an_unknown_kind_is_refused_at_its_first_byte() -> None:
    """No waiting for a header's other fifteen bytes, which another protocol may never send."""
    with pytest.raises(RemoteProtocolError, match=f"unknown kind {ord('G')}"):
        FrameReader().receive_data(b"G")


class Sized(bytes):
    """Bytes that say they are more than they are, so that a test of bounds needs no memory."""

    length = 0

    def __len__(self) -> int:
        return self.length


def test_what_is_too_large_to_send_is_ones_own_error() -> None:
    """The bounds a reader enforces are kept by the writer, whose error it is otherwise."""
    huge = Sized()
    huge.length = wire.MAX_PAYLOAD + 1
    with pytest.raises(LocalProtocolError, match="payload of 1,073,741,825 bytes"):
        wire.pack(wire.CALL, wire.PICKLE, 1, huge)
    with pytest.raises(LocalProtocolError, match="4,097 buffers"):
        wire.pack(wire.CALL, wire.PICKLE, 1, b"", [b""] * (wire.MAX_BUFFERS + 1))
    assert len(wire.pack(wire.CALL, wire.PICKLE, 1, b"", [b"x"] * wire.MAX_BUFFERS)) == 3 + wire.MAX_BUFFERS


def test_buffers_too_large_to_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """One buffer beyond its bound, or all together beyond the frame's. With small bounds, for want of memory."""
    monkeypatch.setattr(wire, "MAX_BUFFER", 100)
    monkeypatch.setattr(wire, "MAX_FRAME", 250)
    assert len(wire.pack(wire.CALL, wire.PICKLE, 1, b"", [bytes(100), bytes(100), bytes(50)])) == 6
    for sizes in ([101], [100, 100, 51]):
        with pytest.raises(LocalProtocolError, match="too large"):
            wire.pack(wire.CALL, wire.PICKLE, 1, b"", [bytes(size) for size in sizes])


def test_more_than_a_frame_may_hold_is_refused_when_announced() -> None:
    """One buffer beyond its bound, or all together beyond the frame's, before a byte of them came."""
    for lengths in ([wire.MAX_BUFFER + 1], [wire.MAX_BUFFER] * 3, [2**64 - 1], [1, 2**63]):
        head = HEADER.pack(wire.CALL, wire.PICKLE, len(lengths), 0, 1)
        table = b"".join(wire.BUFFER_LENGTH.pack(length) for length in lengths)
        with pytest.raises(RemoteProtocolError, match="too large for a frame"):
            FrameReader().receive_data(head + table)


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_announcing_much_touches_no_memory() -> None:
    """A peer that announces gigabytes and sends little costs what it sent."""
    gigabyte = 1 << 30
    head = HEADER.pack(wire.CALL, wire.PICKLE, 0, gigabyte, 1)
    before = resident()
    reader = FrameReader()
    assert reader.receive_data(head + b"x" * 100_000) == []
    others = []
    for _ in range(8):
        other = FrameReader()
        table = wire.BUFFER_LENGTH.pack(gigabyte)
        assert other.receive_data(HEADER.pack(wire.CALL, wire.PICKLE, 1, 0, 1) + table + b"few") == []
        others.append(other)
    assert resident() - before < 16 << 20
    for other in others:
        buffer = other.get_buffer()
        assert buffer.nbytes == gigabyte - 3
        buffer.release()


def test_what_cannot_be_reserved_is_refused() -> None:
    """An announced size that the machine has no room for is the other side's error, not a MemoryError. In a child with
    little address space, so that it holds on every machine."""

    def run() -> None:
        table = wire.BUFFER_LENGTH.pack(wire.MAX_BUFFER)
        with pytest.raises(RemoteProtocolError, match="more than can be reserved"):
            FrameReader().receive_data(HEADER.pack(wire.CALL, wire.PICKLE, 1, 0, 1) + table)

    in_child(run, 1 << 30)


def test_large_parts_are_private_memory() -> None:
    """What a forked process writes into a received buffer is not seen by this one: it was received by value."""
    size = 2 << 20
    (frame,) = FrameReader().receive_data(b"".join(wire.pack(wire.CALL, wire.PICKLE, 1, b"", [b"a" * size])))
    view = memoryview(frame.buffers[0])
    pid = os.fork()
    if pid == 0:
        view[0] = ord("b")
        os._exit(0)
    os.waitpid(pid, 0)
    assert view[0] == ord("a")


def test_a_frame_shows_what_it_is() -> None:
    """Its representation names the kind and the sizes, and no payload."""
    (frame,) = FrameReader().receive_data(b"".join(wire.pack(wire.CALL, wire.PICKLE, 3, b"secret", [b"x"])))
    shown = repr(frame)
    assert "CALL" in shown
    assert "6 bytes" in shown
    assert "secret" not in shown
