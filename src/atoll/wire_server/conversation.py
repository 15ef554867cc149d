# SPDX-License-Identifier: Apache-2.0
"""One connection's conversation, as the side that serves: bytes in, what they ask for out. No sockets, no loops.

What always holds here: whose turn it is follows ``atoll_worker.wire``'s tables; of the frames that go over a control
connection elsewhere, PING and CANCEL come on this one, at any time once the service is loaded; what breaks the rules
raises, and the connection is of no further use. What does not belong here: what JSON says (``messages``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from atoll_worker import wire
from atoll_worker.errors import RemoteProtocolError
from atoll_worker.wire import Conversation, FrameReader

HELLO = wire.HELLO_PAYLOAD.pack(wire.MAGIC, wire.VERSION, 1 << wire.JSON)
_ONLY_HERE = (wire.PING, wire.CANCEL)


class Load(NamedTuple):
    """The client wants to know what there is; ``payload`` is JSON."""

    payload: bytes


class Call(NamedTuple):
    """The client calls; ``payload`` is JSON."""

    payload: bytes


class Cancel(NamedTuple):
    """The client gives up the call in progress."""


class Ping(NamedTuple):
    """The client wants a sign of life; it is to carry this call id."""

    call_id: int


Event = Load | Call | Cancel | Ping


class Serving:
    """The serving side of one connection.

    Args:
        max_size: bytes of the largest payload that is taken.

    Attributes:
        is_partial: the stream stands in the middle of a frame.
    """

    def __init__(self, max_size: int) -> None:
        self._reader = FrameReader(max_size, 0)
        self._conversation = Conversation("server")
        self.get_buffer = self._reader.get_buffer

    @property
    def is_partial(self) -> bool:
        return self._reader.partial

    @property
    def is_loaded(self) -> bool:
        """Whether the client was told what there is, and may call."""
        return self._conversation.state in (wire.IDLE, wire.CALLING)

    @property
    def has_called(self) -> bool:
        """Whether there was a call, or is one."""
        return self._conversation.call_id > 0

    @property
    def is_calling(self) -> bool:
        """Whether a call is in progress."""
        return self._conversation.state == wire.CALLING

    def buffer_updated(self, count: int) -> Iterator[Event | bytes]:
        """What these bytes ask for, and bytes to be sent in between.

        Raises:
            RemoteProtocolError: they are no frames, or not in turn.
        """
        self._reader.buffer_updated(count)
        while (frame := self._reader.next_frame()) is not None:
            kind, payload = frame.kind, bytes(frame.payload)
            if kind in _ONLY_HERE:
                if not self.is_loaded:
                    raise RemoteProtocolError(f"{wire.KIND_NAMES[kind]} came before LOAD was answered")
                if kind == wire.PING:
                    yield Ping(frame.call_id)
                elif len(payload) != wire.CANCEL_PAYLOAD.size:
                    raise RemoteProtocolError(f"a CANCEL of {len(payload)} bytes; {wire.CANCEL_PAYLOAD.size} are due")
                elif self.is_calling and frame.call_id == self._conversation.call_id:
                    yield Cancel()
                continue
            if kind >= wire.PING:
                raise RemoteProtocolError(f"{wire.KIND_NAMES[kind]} is none of the frames that a service is sent")
            self._conversation.received(kind, frame.codec, frame.call_id)
            if kind == wire.HELLO:
                if not wire.check_hello(payload) & 1 << wire.JSON:
                    raise RemoteProtocolError("the client speaks no JSON, and nothing else is spoken here")
                yield self._frame(wire.HELLO, wire.RAW, HELLO)
            elif frame.codec != wire.JSON:
                raise RemoteProtocolError(f"{wire.KIND_NAMES[kind]} came in codec {frame.codec}; it is to be JSON, 2")
            else:
                yield Load(payload) if kind == wire.LOAD else Call(payload)

    def ready(self, payload: bytes) -> bytes:
        """The frame that says what there is."""
        return self._frame(wire.READY, wire.JSON, payload)

    def result(self, payload: bytes) -> bytes:
        """The frame of a result of the call in progress."""
        return self._frame(wire.RESULT, wire.JSON, payload)

    def error(self, payload: bytes) -> bytes:
        """The frame of an error of the call in progress, or of what is to be loaded."""
        return self._frame(wire.ERROR, wire.JSON, payload)

    @staticmethod
    def pong(ping: Ping, state: bytes) -> bytes:
        """The frame of a sign of life."""
        return b"".join(bytes(piece) for piece in wire.pack(wire.PONG, wire.RAW, ping.call_id, state))

    def _frame(self, kind: int, codec: int, payload: bytes) -> bytes:
        call_id = self._conversation.sending(kind)
        return b"".join(bytes(piece) for piece in wire.pack(kind, codec, call_id, payload))
