# SPDX-License-Identifier: Apache-2.0
"""A data connection: one stream socket, its fast lane, and the conversation spoken over them.

What belongs here: moving frames, and waiting for them. What does not: which frames are allowed (``wire``), where
they lie in shared memory (``lane``), what they mean (``values``).

Data flow of one call, when the lane is there and the frame fits its slot::

    client thread                              worker's main thread
    exchange()                                 receive()  (polls, yields, then asleep on the socket)
      copy frame into slot, publish number  ─▶   sees the number, copies the frame out
      asleep flag up? one wake byte         ─▶   (only if it was asleep)
      polls, yields, then asleep                 ... runs the function ...
      sees the number, copies it out        ◀─ reply(): copy frame into slot, publish, wake if asleep

Waiting has three steps: poll the number some tens of times (a few microseconds); poll and yield the processor some
tens of times (so that a peer on the same core gets to run); then sleep on the socket. A sleep is cut short every
so often to look again, so that even a lost wake would cost milliseconds and never a hang.

``exchange`` and ``receive``/``reply`` hold the rules of ``wire.Conversation`` for CALL, RESULT and ERROR inline,
because a call is counted in fractions of a microsecond; every other frame goes through the conversation itself.
"""

from __future__ import annotations

import os
import select
import time

from . import wire
from .errors import LocalProtocolError, RemoteProtocolError
from .lane import SLOT_SIZE
from .wire import CALL, CALLING, ERROR, HEADER_SIZE, IDLE, RESULT, Conversation, Frame, FrameReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Callable, List, Optional, Sequence

    from .lane import Lane
    from .wire import Bytes

_WAKE_BYTE = b"\0"
_pack_into = wire.HEADER.pack_into
_unpack_from = wire.HEADER.unpack_from
_sched_yield = os.sched_yield if hasattr(os, "sched_yield") else lambda: time.sleep(0)

# Chosen with benchmarks/smallcall.py: about 3 and 30 microseconds.
POLLS = 50
YIELDS = 60

# Milliseconds of the first sleeps; the last one repeats. Each ends with another look at the slot.
_NAPS = (10, 100, 1000)

# Connections in this process whose thread is waiting for a reply. With more than one, spinning would only keep the
# interpreter lock from the others.
_waiting = set()  # type: set[Connection]


class ConnectionClosed(EOFError):
    """The other side closed the connection, or its process ended."""


class DeadlinePassed(Exception):
    """The deadline given to ``receive`` or ``exchange`` passed. The connection is in the middle of a call."""


class Connection:
    """One end of a data connection. Not thread-safe: one thread at a time may use it.

    Args:
        sock: a connected stream socket; it is made non-blocking and belongs to the connection from now on.
        lane: the fast lane beside it, or None to use the socket alone.
        role: ``"client"`` or ``"server"``.
        spin: False to sleep at once instead of polling.
    """

    def __init__(self, sock: socket, lane: Optional[Lane], role: str, spin: bool = True) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.conversation = Conversation(role)
        self.spin = spin
        self.slept = False  # whether the last wait went as far as sleeping
        self.on_idle: Optional[Callable[[], None]] = None  # called once, when a sleep without deadline gets long
        self._reader = FrameReader()
        self._poller = select.poll()
        self._poller.register(sock.fileno(), select.POLLIN)
        self._polls = range(POLLS if spin else 0)
        self._yields = range(YIELDS if spin else 0)
        self._written = 0  # sequence number of the last frame this side published in its slot
        self._read = 0  # and of the last one it took from the other
        self._announced = False  # the slot said that the next frame comes over the socket
        self._lane = lane
        if lane is not None:
            self._words = lane.words
            self._memory = lane.memory
            self._read_word = lane.read_number_word

    # -- sending ---------------------------------------------------------------------------------------------

    def send(self, kind: int, codec: int, payload: Bytes, buffers: Sequence[Bytes] = ()) -> None:
        """Send one frame, waiting for the other side to take it if it is large.

        Raises:
            LocalProtocolError: it is not this side's turn, or a bound would be exceeded.
            ConnectionClosed: the other side is gone.
        """
        left = self.start_send(kind, codec, payload, buffers)
        while left:
            self._wait_writable(None)
            left = self.continue_send(left)

    def start_send(self, kind: int, codec: int, payload: Bytes, buffers: Sequence[Bytes] = ()) -> List[Bytes]:
        """As ``send``, without waiting: returns the pieces that are still to be sent with ``continue_send``."""
        conversation = self.conversation
        before = conversation.state, conversation.call_id
        call_id = conversation.sending(kind)
        try:
            pieces = wire.pack(kind, codec, call_id, payload, buffers)
        except LocalProtocolError:
            conversation.state, conversation.call_id = before  # nothing was sent: another frame may be
            raise
        return self._send_pieces(pieces)

    def _send_pieces(self, pieces: List[Bytes]) -> List[Bytes]:
        lane = self._lane
        if lane is not None:
            size = 0
            for piece in pieces:
                size += len(piece)
            fits = size <= SLOT_SIZE
            if fits:
                offset = lane.write_offset
                for piece in pieces:
                    end = offset + len(piece)
                    self._memory[offset:end] = piece
                    offset = end
            words = self._words
            words[lane.write_length_word] = size if fits else 0
            self._written = number = self._written + 1
            words[lane.write_number_word] = number
            if fits:
                lane.fence_enter()
                lane.fence_leave()
                if words[lane.peer_asleep_word]:
                    self._wake()
                return []
        return self.continue_send(pieces)

    def continue_send(self, pieces: List[Bytes]) -> List[Bytes]:
        """Send what the socket takes now; returns what it did not.

        Raises:
            ConnectionClosed: the other side is gone.
        """
        try:
            sent = self.sock.sendmsg(pieces[:64])
        except (BlockingIOError, InterruptedError):
            return pieces
        except OSError as error:
            raise ConnectionClosed(str(error)) from None
        left: List[Bytes] = []
        for piece in pieces:
            if sent >= len(piece):
                sent -= len(piece)
            elif sent:
                left.append(memoryview(piece)[sent:])
                sent = 0
            else:
                left.append(piece)
        return left

    def _wake(self) -> None:
        try:
            self.sock.send(_WAKE_BYTE)
        except BlockingIOError:
            pass  # the socket is full of bytes: the other side has enough to wake up for
        except OSError as error:
            raise ConnectionClosed(str(error)) from None

    def _wait_writable(self, deadline: Optional[float]) -> None:
        self._poller.modify(self.sock.fileno(), select.POLLOUT)
        try:
            self._poll(deadline, 1000)
        finally:
            self._poller.modify(self.sock.fileno(), select.POLLIN)

    # -- receiving -------------------------------------------------------------------------------------------

    def receive(self, deadline: Optional[float] = None) -> Frame:
        """Wait for the next frame.

        Args:
            deadline: ``time.monotonic()`` at which to give up, or None.

        Raises:
            RemoteProtocolError: the other side broke the wire's rules.
            ConnectionClosed: the other side is gone.
            DeadlinePassed: nothing came in time.
        """
        self.slept = False
        lane = self._lane
        if lane is not None:
            words = self._words
            word = self._read_word
            number = self._read
            for _ in self._polls:
                if words[word] != number:
                    break
            else:
                for _ in self._yields:
                    if words[word] != number:
                        break
                    _sched_yield()
            if words[word] == number + 1:
                memory = self._memory
                size = words[lane.read_length_word]
                kind, codec, count, length, call_id = _unpack_from(memory, lane.read_offset)
                conversation = self.conversation
                if (
                    kind == CALL
                    and conversation.state is IDLE
                    and not conversation.is_client
                    and call_id == conversation.call_id + 1
                    and length == size - HEADER_SIZE
                    and size <= SLOT_SIZE
                    and count == 0
                    and codec != 0
                ):
                    self._read = number + 1
                    conversation.state = CALLING
                    conversation.call_id = call_id
                    start = lane.read_offset + HEADER_SIZE
                    return Frame(kind, codec, call_id, memory[start : start + length])
        else:
            for _ in self._yields:
                frame = self.poll_frame()
                if frame is not None:
                    return frame
                _sched_yield()
        frame = self.poll_frame()
        if frame is None:
            frame = self._sleep_for_frame(deadline)
        return frame

    def poll_frame(self) -> Optional[Frame]:
        """The next frame if it is completely there, without waiting.

        Raises:
            RemoteProtocolError, ConnectionClosed: as ``receive``.
        """
        if self._lane is not None and not self._announced:
            frame = self._take_from_slot()
            if frame is not None or not self._announced:
                return frame
        frame = self._reader.next_frame()
        while frame is None:
            if not self._read_socket():
                return None
            frame = self._reader.next_frame()
        self._announced = False
        self.conversation.received(frame.kind, frame.codec, frame.call_id)
        return frame

    def _take_from_slot(self) -> Optional[Frame]:
        """The frame in the slot, if a new one is there; or notes that one is announced on the socket."""
        lane = self._lane
        assert lane is not None
        number = self._words[self._read_word]
        if number == self._read:
            return None
        if number != self._read + 1:
            raise RemoteProtocolError(f"slot number {number} after {self._read}")
        size = self._words[lane.read_length_word]
        self._read = number
        if size == 0:
            self._announced = True
            return None
        if not HEADER_SIZE <= size <= SLOT_SIZE:
            raise RemoteProtocolError(f"a frame of {size} bytes in a slot of {SLOT_SIZE}")
        # Copied before it is looked at: what is checked is what is used, whatever the other side writes meanwhile.
        data = self._memory[lane.read_offset : lane.read_offset + size]
        header = _unpack_from(data)
        wire.check_header(header)
        kind, codec, count, length, call_id = header
        if count:
            frames = FrameReader().receive_data(data)
            if len(frames) != 1:
                raise RemoteProtocolError(f"{len(frames)} frames in one slot")
            frame = frames[0]
        else:
            if length != size - HEADER_SIZE:
                raise RemoteProtocolError(f"{length} bytes of payload in a frame of {size} bytes")
            frame = Frame(kind, codec, call_id, data[HEADER_SIZE:])
        self.conversation.received(kind, codec, call_id)
        return frame

    def _read_socket(self) -> bool:
        """Read what the socket holds now into the reader; False if there is nothing."""
        buffer = self._reader.get_buffer()
        try:
            count = self.sock.recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise ConnectionClosed(str(error)) from None
        if count == 0:
            # What a dying peer still published in its slot counts as said.
            raise ConnectionClosed("the other side closed the connection")
        self._reader.buffer_updated(count)
        return True

    def prepare_sleep(self) -> bool:
        """Raise the asleep flag. False if there is something to look at after all; then do not sleep.

        Whoever calls this calls ``end_sleep`` afterwards, in any case.
        """
        lane = self._lane
        if lane is None or self._announced:
            return True
        self._words[lane.my_asleep_word] = 1
        lane.fence_enter()
        lane.fence_leave()
        return self._words[self._read_word] == self._read

    def end_sleep(self) -> None:
        """Lower the asleep flag."""
        if self._lane is not None:
            self._words[self._lane.my_asleep_word] = 0

    def drain_wakes(self) -> None:
        """After the socket became readable while asleep: take wake bytes, or the start of an announced frame.

        Raises:
            RemoteProtocolError: a frame came over the socket that no slot announced.
            ConnectionClosed: the other side is gone and left nothing in its slot.
        """
        if self._lane is None or self._announced:
            return
        try:
            self._read_socket()
        except ConnectionClosed:
            if self._words[self._read_word] == self._read:
                raise
            return
        if self._words[self._read_word] == self._read and self._reader.next_frame() is not None:
            raise RemoteProtocolError("a frame came over the socket that no slot announced")

    def _sleep_for_frame(self, deadline: Optional[float]) -> Frame:
        self.slept = True
        naps = 0
        while True:
            try:
                if self.prepare_sleep():
                    nap = _NAPS[min(naps, len(_NAPS) - 1)]
                    if self._poll(deadline, nap):
                        self.drain_wakes()
                    elif deadline is None and naps == 1 and self.on_idle is not None:
                        self.on_idle()
                    naps += 1
            finally:
                self.end_sleep()
            frame = self.poll_frame()
            if frame is not None:
                return frame

    def _poll(self, deadline: Optional[float], at_most_ms: int) -> bool:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeadlinePassed
            at_most_ms = min(at_most_ms, int(left * 1000) + 1)
        return bool(self._poller.poll(at_most_ms))

    # -- the path of a call ----------------------------------------------------------------------------------

    def exchange(
        self,
        codec: int,
        payload: Bytes,
        buffers: Sequence[Bytes] = (),
        deadline: Optional[float] = None,
        patient: bool = False,
    ) -> Frame:
        """Client: send a CALL and wait for its RESULT or ERROR.

        Args:
            codec: of the payload.
            payload: the encoded call.
            buffers: out-of-band buffers of the payload.
            deadline: ``time.monotonic()`` at which to give up, or None.
            patient: True to sleep at once, because the answer is known to take long.

        Raises:
            LocalProtocolError: a call is in progress, or a bound would be exceeded; nothing was sent.
            RemoteProtocolError: the other side broke the wire's rules.
            ConnectionClosed: the other side is gone.
            DeadlinePassed: no answer in time; the connection is of no further use.
        """
        lane = self._lane
        size = HEADER_SIZE + len(payload)
        conversation = self.conversation
        if lane is None or buffers or size > SLOT_SIZE or conversation.state is not IDLE:
            left = self.start_send(CALL, codec, payload, buffers)
            while left:
                self._wait_writable(deadline)
                left = self.continue_send(left)
        else:
            conversation.state = CALLING
            conversation.call_id = call_id = conversation.call_id + 1
            offset = lane.write_offset
            memory = self._memory
            words = self._words
            _pack_into(memory, offset, CALL, codec, 0, size - HEADER_SIZE, call_id)
            memory[offset + HEADER_SIZE : offset + size] = payload
            words[lane.write_length_word] = size
            self._written = number = self._written + 1
            words[lane.write_number_word] = number
            lane.fence_enter()
            lane.fence_leave()
            if words[lane.peer_asleep_word]:
                self._wake()
        _waiting.add(self)
        try:
            if patient:
                frame = self.poll_frame()
                return self._sleep_for_frame(deadline) if frame is None else frame
            if lane is None:
                return self.receive(deadline)
            self.slept = False
            words = self._words
            word = self._read_word
            read = self._read
            for _ in self._polls:
                if words[word] != read:
                    break
            else:
                if len(_waiting) == 1:
                    for _ in self._yields:
                        if words[word] != read:
                            break
                        _sched_yield()
            if words[word] == read + 1:
                size = words[lane.read_length_word]
                memory = self._memory
                kind, codec, count, length, replied = _unpack_from(memory, lane.read_offset)
                if (
                    length == size - HEADER_SIZE
                    and size <= SLOT_SIZE
                    and count == 0
                    and replied == conversation.call_id
                    and (kind == RESULT or kind == ERROR)
                ):
                    self._read = read + 1
                    conversation.state = IDLE
                    start = lane.read_offset + HEADER_SIZE
                    return Frame(kind, codec, replied, memory[start : start + length])
            frame = self.poll_frame()
            return self._sleep_for_frame(deadline) if frame is None else frame
        finally:
            _waiting.discard(self)

    def reply(self, kind: int, codec: int, payload: Bytes, buffers: Sequence[Bytes] = ()) -> None:
        """Server: answer the call in progress with RESULT or ERROR.

        Raises:
            LocalProtocolError: no call is in progress, or a bound would be exceeded; nothing was sent.
            ConnectionClosed: the other side is gone.
        """
        lane = self._lane
        size = HEADER_SIZE + len(payload)
        conversation = self.conversation
        if lane is None or buffers or size > SLOT_SIZE or conversation.state is not CALLING:
            self.send(kind, codec, payload, buffers)
            return
        conversation.state = IDLE
        offset = lane.write_offset
        memory = self._memory
        words = self._words
        _pack_into(memory, offset, kind, codec, 0, size - HEADER_SIZE, conversation.call_id)
        memory[offset + HEADER_SIZE : offset + size] = payload
        words[lane.write_length_word] = size
        self._written = number = self._written + 1
        words[lane.write_number_word] = number
        lane.fence_enter()
        lane.fence_leave()
        if words[lane.peer_asleep_word]:
            self._wake()

    def close(self) -> None:
        """Close the socket. Idempotent. The lane is unmapped when the connection is collected, not here: another
        thread may be looking at it."""
        self.sock.close()

    def __repr__(self) -> str:
        return f"<Connection {self.conversation.state} call {self.conversation.call_id}>"
