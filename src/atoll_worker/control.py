# SPDX-License-Identifier: Apache-2.0
"""The control thread: answers the host beside the calls, while user code runs.

Ping, cancellations and objects given back come in; phases, log records and objects given back go out (``outbox``). The
end of the control connection means that the host is gone. What does not belong here: calls.
"""

from __future__ import annotations

from _thread import start_new_thread

from . import lifeline, logs, stacks, wire
from .errors import RemoteProtocolError
from .outbox import Outbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Callable


class Control:
    """The worker's end of the control connection.

    Attributes:
        on_cancel: index of the data connection, id of the call, what is asked for: a constant of ``wire``.
        on_release: number of a lent object, how often it was received.
        on_forget: number of a segment that the host let go of.
    """

    def __init__(self, sock: socket) -> None:
        self._sock = sock
        self.outbox = Outbox(sock)
        self.on_cancel: Callable[[int, int, int], None] = lambda index, call_id, wish: None
        self.on_release: Callable[[int, int], None] = lambda number, received: None
        self.on_forget: Callable[[int], None] = lambda number: None

    def start(self) -> None:
        """Begin to answer, on a thread that never keeps the process alive."""
        start_new_thread(self._serve, ())

    def tell_phase(self, phase: str) -> None:
        """Let the host know what this worker is about to do, so that it can say so should the worker die of it."""
        self.outbox.send(wire.PHASE, 0, phase.encode())

    def _serve(self) -> None:
        reader = wire.FrameReader()
        try:
            while True:
                data = self._sock.recv(4096)
                if not data:
                    break
                for frame in reader.receive_data(data):
                    self._handle(frame)
        except (OSError, RemoteProtocolError):
            pass  # the same as its end: nobody is there who could be answered
        lifeline.end()

    def _handle(self, frame: wire.Frame) -> None:
        if frame.kind == wire.PING:
            self.outbox.send(wire.PONG, frame.call_id)
            if len(frame.payload) == wire.PING_PAYLOAD.size:
                logs.follow_level(*wire.PING_PAYLOAD.unpack(frame.payload))
        elif frame.kind == wire.CANCEL:
            index, wish = wire.CANCEL_PAYLOAD.unpack_from(frame.payload)
            self.on_cancel(index, frame.call_id, wish)
        elif frame.kind == wire.STACKS:
            self.outbox.send(wire.STACKS, 0, stacks.of_threads().encode("utf-8", "replace"))
        elif frame.kind == wire.RELEASE:
            for number, received in wire.RELEASED.iter_unpack(frame.payload):
                self.on_release(number, received)
        elif frame.kind == wire.FORGET:
            self.on_forget(*wire.FORGOTTEN.unpack_from(frame.payload))
