# SPDX-License-Identifier: Apache-2.0
"""Sending on a control connection: from any thread, and from finalizers, which may run at any moment on any of them.

The same on both sides. A frame is never split by another one. What a finalizer has to say is left for whoever sends, if
somebody is sending just now: perhaps the very thread that the finalizer runs on.
"""

from __future__ import annotations

from _collections import deque  # type: ignore[import-not-found]  # `collections` takes milliseconds
from _socket import MSG_DONTWAIT
from _thread import allocate_lock

from . import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Deque, Tuple


# Bytes of a frame that a socket takes as a whole, or not at all.
_SMALL = 1024


class Outbox:
    """Sends frames on the blocking socket of a control connection, in the order they were given."""

    def __init__(self, sock: socket) -> None:
        self._sock = sock
        self._sending = allocate_lock()
        self._waiting: Deque[Tuple[int, int, bytes]] = deque()

    def send(self, kind: int, call_id: int, payload: bytes = b"") -> None:
        """Send a frame; or leave it to the thread that is sending just now. That the other side is gone is no error
        here: whoever reads from it is told."""
        self._waiting.append((kind, call_id, payload))
        while self._waiting and self._sending.acquire(False):
            try:
                while self._waiting:
                    kind, call_id, payload = self._waiting.popleft()
                    self._sock.sendall(b"".join(wire.pack(kind, wire.RAW, call_id, payload)))
            except OSError:
                self._waiting.clear()
            finally:
                self._sending.release()

    def release(self, number: int, received: int) -> None:
        """Give a lent object back."""
        self.send(wire.RELEASE, 0, wire.RELEASED.pack(number, received))

    def forget(self, number: int) -> None:
        """Let the other side know that a segment is gone. Waits for nobody: if it does not read just now, what it keeps
        of the segment stays there until something else is sent."""
        self._waiting.append((wire.FORGET, 0, wire.FORGOTTEN.pack(number)))
        while self._waiting and self._sending.acquire(False):
            try:
                while self._waiting:
                    kind, call_id, payload = self._waiting[0]
                    frame = b"".join(wire.pack(kind, wire.RAW, call_id, payload))
                    if len(frame) > _SMALL:
                        self._sock.sendall(frame)  # somebody else's, left to this thread
                    else:
                        self._sock.send(frame, MSG_DONTWAIT)
                    self._waiting.popleft()
            except BlockingIOError:
                return
            except OSError:
                self._waiting.clear()
            finally:
                self._sending.release()
