# SPDX-License-Identifier: Apache-2.0
"""The wire: frames, and the state machine of a conversation. Bytes in, events out; no sockets, no threads.

Everything that decides whether a frame is well formed, or may be sent or received now, lives here. Moving bytes
does not (``connection``), nor does what the bytes mean (``values``).

A **frame** is a header of 16 bytes, a payload, a buffer table and the buffers (all integers little endian)::

    kind u8 | codec u8 | buffer count u16 | payload length u32 | call id u64
    payload | buffer length u64, once per buffer | buffer, buffer, ...

A single zero byte where a frame would begin is a **wake**: it carries nothing and is skipped (see ``lane``).

Two peers: the **client** (the host) and the **server** (the worker). Exactly one of them has the turn. The client
calls; whoever was called has the turn, and either answers or calls back, one level deeper, which gives the other the
turn; an answer is always to the innermost call. So calls nest like those of functions, nothing is ever in flight in
both directions, and a re-entrant call cannot deadlock. ``CLIENT_SENDS`` and ``SERVER_SENDS`` are the whole of it.

HELLO's payload is ``HELLO_PAYLOAD``: magic, wire version, a bit per codec. The low 48 bits of a call id count the
client's calls from 1, the high 16 tell how deep it is nested; an answer carries the id of its call.
"""

from __future__ import annotations

from _struct import Struct  # what `struct` re-exports; a worker's start is counted in milliseconds
from mmap import ACCESS_COPY, mmap

from .errors import LocalProtocolError, RemoteProtocolError

TYPE_CHECKING = False  # `typing` takes 5 ms to import on Python 3.9 and 3.13
if TYPE_CHECKING:
    from typing import List, Optional, Sequence, Tuple, Union

    Bytes = Union[bytes, bytearray, memoryview, mmap]

VERSION = 1
MAGIC = b"atol"

HEADER = Struct("<BBHIQ")
HEADER_SIZE = 16
BUFFER_LENGTH = Struct("<Q")
HELLO_PAYLOAD = Struct("<4sHH")

# Frame kinds. 0 is the wake byte. 1-31 travel on data connections, 32-63 on control connections.
WAKE = 0
HELLO = 1
LOAD = 2
READY = 3
CALL = 4
RESULT = 5
ERROR = 6
PING = 32
PONG = 33
PHASE = 36
CANCEL = 37
LOG = 38
RELEASE = 39
STACKS = 40
FORGET = 41

KIND_NAMES = {
    HELLO: "HELLO",
    LOAD: "LOAD",
    READY: "READY",
    CALL: "CALL",
    RESULT: "RESULT",
    ERROR: "ERROR",
    PING: "PING",
    PONG: "PONG",
    PHASE: "PHASE",
    CANCEL: "CANCEL",
    LOG: "LOG",
    RELEASE: "RELEASE",
    STACKS: "STACKS",
    FORGET: "FORGET",
}

# Codecs of a payload.
RAW = 0
PICKLE = 1
JSON = 2
CODEC_BITS = (1 << PICKLE) | (1 << JSON)
_KNOWN_CODECS = frozenset((RAW, PICKLE, JSON))

# What the payload of a value begins with if it has cargo (see there); no pickle does.
CARGO = 0x93

# Bounds, checked before anything is allocated.
MAX_PAYLOAD = 1 << 30
MAX_BUFFERS = 4096
MAX_BUFFER = 1 << 36
MAX_FRAME = 1 << 37
MAX_DEPTH = 250  # of nested calls

# Payload of PING: the level from which on the host's logger lets records of this worker through.
PING_PAYLOAD = Struct("<i")
# Payload of CANCEL: index of the data connection, and what is asked for.
CANCEL_PAYLOAD = Struct("<IB")
TELL = 0  # say so to code that asks
FORCE = 1  # interrupt also what does not ask
WITHDRAW = 2  # the call has ended; what was asked for is not meant for the next one, which may have the same id
# Payload of RELEASE: pairs of the number of a lent object and how often it was received.
RELEASED = Struct("<QQ")

# Payload of FORGET: number of a segment that its owner let go of.
FORGOTTEN = Struct("<Q")

CALL_NUMBER = (1 << 48) - 1
_DEPTH_STEP = 1 << 48

# States of a conversation.
START = "START"
GREETED = "GREETED"
OPEN = "OPEN"
LOADING = "LOADING"
IDLE = "IDLE"  # no call is open; the client has the turn
CALLING = "CALLING"  # one call is; the server has the turn
ASKING = "ASKING"  # the server called back, perhaps from a nested call; the client has the turn
NESTED = "NESTED"  # the client called within a call back; the server has the turn
FAILED = "FAILED"

# (state, kind) -> next state, for what the client sends and what the server sends. A peer applies the first table
# to what it sends if it is the client, to what it receives if it is the server; and the second the other way round.
# Where the client answers, the state is CALLING again once no deeper call is open (`_after`).
CLIENT_SENDS = {
    (START, HELLO): GREETED,
    (OPEN, LOAD): LOADING,
    (IDLE, CALL): CALLING,
    (ASKING, CALL): NESTED,
    (ASKING, RESULT): NESTED,
    (ASKING, ERROR): NESTED,
}
SERVER_SENDS = {
    (GREETED, HELLO): OPEN,
    (LOADING, READY): IDLE,
    (LOADING, ERROR): FAILED,
    (CALLING, RESULT): IDLE,
    (CALLING, ERROR): IDLE,
    (CALLING, CALL): ASKING,
    (NESTED, CALL): ASKING,
    (NESTED, RESULT): ASKING,
    (NESTED, ERROR): ASKING,
}


class Frame:
    """One frame, as received: numbers from the header, ``payload`` and ``buffers`` as bytes-like objects."""

    __slots__ = ("buffers", "call_id", "codec", "kind", "payload")

    def __init__(self, kind: int, codec: int, call_id: int, payload: Bytes, buffers: Sequence[Bytes] = ()) -> None:
        self.kind = kind
        self.codec = codec
        self.call_id = call_id
        self.payload = payload
        self.buffers = buffers

    def __repr__(self) -> str:
        kind = KIND_NAMES.get(self.kind, self.kind)
        return f"<Frame {kind} of call {self.call_id}: {len(self.payload)} bytes, {len(self.buffers)} buffers>"


def pack(kind: int, codec: int, call_id: int, payload: Bytes, buffers: Sequence[Bytes] = ()) -> List[Bytes]:
    """The pieces of a frame, to be sent in this order. Nothing is copied.

    Raises:
        LocalProtocolError: a bound would be exceeded.
    """
    length = len(payload)
    if length > MAX_PAYLOAD:
        raise LocalProtocolError(f"a payload of {length:,} bytes; the wire carries at most {MAX_PAYLOAD:,}")
    if not buffers:
        return [HEADER.pack(kind, codec, 0, length, call_id), payload]
    count = len(buffers)
    if count > MAX_BUFFERS:
        raise LocalProtocolError(f"{count:,} buffers in one frame; the wire carries at most {MAX_BUFFERS:,}")
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    total = 0
    for view in views:
        total += view.nbytes
        if view.nbytes > MAX_BUFFER or total > MAX_FRAME:
            raise LocalProtocolError(f"a buffer of {view.nbytes:,} bytes, or {total:,} in one frame, is too large")
    table = b"".join([BUFFER_LENGTH.pack(view.nbytes) for view in views])
    return [HEADER.pack(kind, codec, count, length, call_id), payload, table, *views]


def hello() -> bytes:
    """The payload of this side's HELLO."""
    return HELLO_PAYLOAD.pack(MAGIC, VERSION, CODEC_BITS)


def check_hello(payload: Bytes) -> int:
    """The other side's codec bits.

    Raises:
        RemoteProtocolError: not a HELLO, or one of a version this side does not speak.
    """
    if len(payload) < HELLO_PAYLOAD.size:
        raise RemoteProtocolError(f"a HELLO of {len(payload)} bytes; {HELLO_PAYLOAD.size} are needed")
    magic, version, codecs = HELLO_PAYLOAD.unpack_from(payload)
    if magic != MAGIC:
        raise RemoteProtocolError(f"the other side does not speak atoll's wire: HELLO begins with {magic!r}")
    if version != VERSION:
        raise RemoteProtocolError(
            f"the other side speaks version {version} of the wire, this side version {VERSION}; "
            "install the same version of atoll on both"
        )
    return int(codecs)


class Conversation:
    """What may be sent and received, and when. One per data connection; ``role`` is ``"client"`` or ``"server"``.

    ``sending`` and ``received`` are to be told of every frame; they raise if it is out of turn.

    Attributes:
        state: see the constants above.
        call_id: of the innermost open call; when none is, of the last one.
        called_back_in: number of the last outermost call within which the other side called.
    """

    __slots__ = ("_receives", "_sends", "call_id", "called_back_in", "is_client", "state")

    def __init__(self, role: str) -> None:
        self.is_client = role == "client"
        self._sends = CLIENT_SENDS if self.is_client else SERVER_SENDS
        self._receives = SERVER_SENDS if self.is_client else CLIENT_SENDS
        self.state = START
        self.call_id = 0
        self.called_back_in = 0

    @property
    def depth(self) -> int:
        """How many calls are open."""
        if self.state in (CALLING, ASKING, NESTED):
            return (self.call_id >> 48) + 1
        return 0

    def sending(self, kind: int) -> int:
        """The call id that a frame of this kind must carry now.

        Raises:
            LocalProtocolError: it may not be sent in this state.
        """
        state = self._sends.get((self.state, kind))
        if state is None:
            raise LocalProtocolError(f"{KIND_NAMES.get(kind, kind)} cannot be sent in state {self.state}")
        if kind == CALL and self.depth >= MAX_DEPTH:
            raise LocalProtocolError(f"calls that call back are nested {MAX_DEPTH} deep; no more are allowed")
        call_id = self._id_of(kind)
        self._after(kind, state)
        return call_id

    def received(self, kind: int, codec: int, call_id: int) -> None:
        """Take note of a received frame.

        Raises:
            RemoteProtocolError: it may not come in this state, or carries the wrong call id.
        """
        state = self._receives.get((self.state, kind))
        if state is None:
            raise RemoteProtocolError(f"{KIND_NAMES.get(kind, kind)} came in state {self.state}")
        expected = self._id_of(kind)
        if call_id != expected:
            raise RemoteProtocolError(
                f"{KIND_NAMES[kind]} carries call id {call_id}, but {expected} is the one in turn"
            )
        if codec not in _KNOWN_CODECS:
            raise RemoteProtocolError(f"{KIND_NAMES[kind]} uses unknown codec {codec}")
        if kind == CALL and self.depth >= MAX_DEPTH:
            raise RemoteProtocolError(f"calls that call back are nested more than {MAX_DEPTH} deep")
        if kind == CALL and self.state is not IDLE:
            self.called_back_in = call_id & CALL_NUMBER
        self._after(kind, state)

    def _id_of(self, kind: int) -> int:
        if kind != CALL:
            return self.call_id
        return self.call_id + (1 if self.state is IDLE else _DEPTH_STEP)

    def _after(self, kind: int, state: str) -> None:
        if kind == CALL:
            self.call_id = self._id_of(CALL)
        elif self.state in (ASKING, NESTED):
            self.call_id -= _DEPTH_STEP
            if self.call_id < _DEPTH_STEP:
                state = CALLING
        self.state = state


class FrameReader:
    """Turns a stream of bytes into frames, however it is split.

    Write received bytes into ``get_buffer()`` and say how many with ``buffer_updated(n)``; then take frames from
    ``next_frame()`` until it returns None. ``receive_data(data)`` does the first two for bytes already at hand.
    Large payloads and buffers are received in place, without another copy, and memory grows no further than
    what was really received.

    Args:
        max_payload: bytes of the largest payload that is taken.
        max_buffers: most buffers of a frame.
    """

    SCRATCH = 1 << 16

    def __init__(self, max_payload: int = MAX_PAYLOAD, max_buffers: int = MAX_BUFFERS) -> None:
        self._max_payload = max_payload
        self._max_buffers = max_buffers
        self._scratch = bytearray(self.SCRATCH)
        self._view = memoryview(self._scratch)
        self._start = 0  # of unread bytes in the scratch buffer
        self._end = 0
        self._header: Optional[Tuple[int, int, int, int, int]] = None
        # A part that does not fit the scratch buffer is received into its own memory.
        self._part: Optional[Union[bytearray, mmap]] = None
        self._part_filled = 0
        self._body: Optional[Union[bytearray, mmap]] = None  # payload + buffer table
        self._lengths: List[int] = []
        self._buffers: List[Bytes] = []

    @property
    def partial(self) -> bool:
        """True when the stream stands in the middle of a frame."""
        return self._header is not None or self._end > self._start

    def get_buffer(self) -> memoryview:
        """Where the next received bytes belong; never empty."""
        if self._part is not None:
            return memoryview(self._part)[self._part_filled :]
        if self._header is None:
            self._skip_wakes()  # they may come one by one between frames that took another way
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == self.SCRATCH:
            # Only a started header or small body can be left over: move it to the front.
            left = self._end - self._start
            self._scratch[:left] = self._scratch[self._start : self._end]
            self._start, self._end = 0, left
        return self._view[self._end :]

    def buffer_updated(self, count: int) -> None:
        """``count`` bytes were written into what ``get_buffer`` returned."""
        if self._part is not None:
            self._part_filled += count
        else:
            self._end += count

    def receive_data(self, data: Bytes) -> List[Frame]:
        """All frames that these bytes complete.

        Raises:
            RemoteProtocolError: the bytes are not frames.
        """
        frames = []
        rest = memoryview(data).cast("B")
        while True:
            frame = self.next_frame()
            if frame is not None:
                frames.append(frame)
            elif rest.nbytes:
                target = self.get_buffer()
                count = min(target.nbytes, rest.nbytes)
                target[:count] = rest[:count]
                self.buffer_updated(count)
                rest = rest[count:]
            else:
                return frames

    def next_frame(self) -> Optional[Frame]:
        """The next complete frame, or None when more bytes are needed.

        Raises:
            RemoteProtocolError: the bytes are not frames.
        """
        if self._header is None and not self._take_header():
            return None
        header = self._header
        assert header is not None
        kind, codec, count, length, call_id = header
        if self._body is None:
            body = self._take(length + 8 * count)
            if body is None:
                return None
            self._body = body
            self._lengths = [BUFFER_LENGTH.unpack_from(body, length + 8 * i)[0] for i in range(count)]
            if count and (max(self._lengths) > MAX_BUFFER or sum(self._lengths) > MAX_FRAME):
                raise RemoteProtocolError(f"buffers of {self._lengths} bytes were announced, too large for a frame")
            self._buffers = []
        while len(self._buffers) < count:
            buffer = self._take(self._lengths[len(self._buffers)])
            if buffer is None:
                return None
            self._buffers.append(buffer)
        payload: Bytes = self._body
        if count:
            payload = memoryview(payload)[:length]
        frame = Frame(kind, codec, call_id, payload, self._buffers)
        self._header = self._body = None
        self._buffers = []
        return frame

    def _skip_wakes(self) -> None:
        scratch, start, end = self._scratch, self._start, self._end
        while start < end and scratch[start] == WAKE:
            start += 1
        self._start = start

    def _take_header(self) -> bool:
        self._skip_wakes()
        scratch, start, end = self._scratch, self._start, self._end
        if end - start < HEADER_SIZE:
            if start < end and scratch[start] not in KIND_NAMES:
                raise RemoteProtocolError(f"a frame of unknown kind {scratch[start]}")
            return False
        header = HEADER.unpack_from(scratch, start)
        check_header(header, self._max_payload, self._max_buffers)
        self._header = header
        self._start = start + HEADER_SIZE
        return True

    def _take(self, size: int) -> Optional[Union[bytearray, mmap]]:
        """``size`` bytes of the stream as memory of their own, or None when they have not all come yet."""
        part = self._part
        if part is None:
            available = self._end - self._start
            if available >= size:
                taken = self._scratch[self._start : self._start + size]
                self._start += size
                return taken
            part = self._part = _allocate(size)
            part[:available] = self._view[self._start : self._end]
            self._part_filled = available
            self._start = self._end = 0
        if self._part_filled < len(part):
            return None
        self._part = None
        return part


def _allocate(size: int) -> Union[bytearray, mmap]:
    """Memory for ``size`` announced bytes. Pages of a large one are only touched as bytes really arrive, so that
    a peer that announces much and sends little costs nothing."""
    if size < 1 << 20:
        return bytearray(size)
    try:
        # Private: what a process forked from this one writes there is its own.
        return mmap(-1, size, access=ACCESS_COPY)
    except OSError as error:
        raise RemoteProtocolError(f"{size:,} bytes were announced, more than can be reserved: {error}") from None


def check_header(
    header: Tuple[int, int, int, int, int], max_payload: int = MAX_PAYLOAD, max_buffers: int = MAX_BUFFERS
) -> None:
    """Raises:
    RemoteProtocolError: the numbers of a header are out of bounds.
    """
    kind, codec, count, length, _ = header
    if kind not in KIND_NAMES:
        raise RemoteProtocolError(f"a frame of unknown kind {kind}")
    if codec not in _KNOWN_CODECS:
        raise RemoteProtocolError(f"a frame with unknown codec {codec}")
    if length > max_payload or count > max_buffers:
        raise RemoteProtocolError(
            f"a frame announces {length:,} payload bytes and {count:,} buffers; "
            f"at most {max_payload:,} and {max_buffers:,} are allowed"
        )
