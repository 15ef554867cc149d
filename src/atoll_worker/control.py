# SPDX-License-Identifier: Apache-2.0
"""The control thread: answers the host beside the calls, while user code runs.

Ping and stack dumps in, phases out. The end of the control connection means that the host is gone. What does not belong
here: calls.
"""

from __future__ import annotations

import sys
from _thread import start_new_thread

from . import lifeline, wire
from .errors import RemoteProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket


class Control:
    """The worker's end of the control connection."""

    def __init__(self, sock: socket) -> None:
        self._sock = sock

    def start(self) -> None:
        """Begin to answer, on a thread that never keeps the process alive."""
        start_new_thread(self._serve, ())

    def tell_phase(self, phase: str) -> None:
        """Let the host know what this worker is about to do, so that it can say so should the worker die of it."""
        self._send(wire.PHASE, 0, phase.encode())

    def _send(self, kind: int, call_id: int, payload: bytes) -> None:
        try:
            self._sock.sendall(b"".join(wire.pack(kind, wire.RAW, call_id, payload)))
        except OSError:
            pass  # the host is gone; `_serve` sees it too

    def _serve(self) -> None:
        reader = wire.FrameReader()
        try:
            while True:
                data = self._sock.recv(4096)
                if not data:
                    break
                for frame in reader.receive_data(data):
                    if frame.kind == wire.PING:
                        self._send(wire.PONG, frame.call_id, b"")
                    elif frame.kind == wire.STACKS:
                        self._send(wire.STACKS_REPLY, frame.call_id, format_stacks().encode("utf-8", "replace"))
        except (OSError, RemoteProtocolError):
            pass  # the same as its end: nobody is there who could be answered
        lifeline.end()


def format_stacks() -> str:
    """The Python stacks of all threads but the calling one, as tracebacks."""
    import traceback
    from _thread import get_ident

    parts = []
    for ident, frame in sys._current_frames().items():
        if ident != get_ident():
            parts.append(f"thread {ident}:\n" + "".join(traceback.format_stack(frame)))
    return "\n".join(parts)
