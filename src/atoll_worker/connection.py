# SPDX-License-Identifier: Apache-2.0
"""A data connection: one stream socket, its fast lane, and the conversation spoken over them.

What belongs here: moving frames, and waiting for them. What does not: which frames are allowed (``wire``), where
they lie in shared memory (``lane``), what they mean (``values``).

Data flow of one call, when the lane is there and the frame fits its slot::

    client thread                              worker's main thread
    exchange()                                 receive_call()  (polls, yields, then asleep on the socket)
      copy frame into slot, publish number  ─▶   sees the number, copies the frame out
      asleep flag up? one wake byte         ─▶   (only if it was asleep)
      polls, yields, then asleep                 ... runs the function ...
      sees the number, copies it out        ◀─ reply(): copy frame into slot, publish, wake if asleep

Waiting has three steps: poll the number some tens of times (a few microseconds); poll and yield the processor some
tens of times (so that a peer on the same core gets to run); then sleep on the socket. A sleep is cut short every
so often to look again, so that even a lost wake would cost milliseconds and never a hang.

``exchange``, ``receive_call`` and ``reply`` hold the rules of ``wire.Conversation`` for the outermost CALL, RESULT and
ERROR inline, because a call is counted in fractions of a microsecond; every other frame, and all within a call, goes
through the conversation itself.
"""

from __future__ import annotations

import os
import select
import time

from . import wire
from .errors import LocalProtocolError, RemoteProtocolError
from .wire import CALL, CALLING, ERROR, HEADER_SIZE, IDLE, RESULT, Conversation, Frame, FrameReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Callable, List, Optional, Sequence, Tuple

    from .lane import Lane
    from .wire import Bytes

    Reply = Tuple[int, int, Bytes, Sequence[Bytes]]

_WAKE_BYTE = b"\0"
_IS_LINUX = os.uname().sysname == "Linux"
_pack_into = wire.HEADER.pack_into
_unpack_from = wire.HEADER.unpack_from
_sched_yield = os.sched_yield if hasattr(os, "sched_yield") else lambda: time.sleep(0)

# About 3 microseconds of polls at 0.05 each, and at least 12 of yields at 0.2 each. First guesses that do well in
# benchmarks/smallcall.py; other counts were not compared.
_MANY_POLLS = range(50)
_FEW_POLLS = range(2)
_YIELDS = range(60)
_NONE = range(0)
# Seconds to yield after a frame was announced: copying 50 MB takes less.
_EXPECTING = 0.005
_TOGETHER = 16
# Seconds that some yields take only if others had the processor meanwhile. They keep it for milliseconds, also when the
# next call comes; who sleeps is woken, and gets it back at once. With twelve others on two processors, by hand: 36,000
# calls/s of four callers in Go instead of 23,000, and 42 us a call of one of them instead of 55.
_CROWD = 0.0003
_CROWDED_CALLS = 200

# Milliseconds of the first sleeps; the last one repeats. Each ends with another look at the slot.
_NAPS = (10, 100, 1000)

_ANSWERS = (RESULT, ERROR)
_CODECS = (wire.PICKLE, wire.JSON, wire.RAW)  # the usual one first

# Connections in this process whose threads are polling and yielding.
_yielding = set()  # type: set[Connection]


class ConnectionClosed(EOFError):
    """The other side closed the connection, or its process ended."""


class NotRead(ConnectionClosed):
    """The other side was gone before it had read all that was written to the socket."""


class DeadlinePassed(Exception):
    """The deadline given to ``receive`` or ``exchange`` passed. The connection is in the middle of a call."""


class WouldSleep(Exception):
    """The answer is not there yet, and the caller of ``exchange`` said that it must not sleep."""


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
        self.asleep_for = 0.0  # seconds that the last wait slept; 0.0 if it did not go that far
        self.on_idle: Optional[Callable[[], None]] = None  # called once, when a sleep without deadline gets long
        self.on_wait: Optional[Callable[[], None]] = None  # called before each sleep; may wait for the socket itself
        # Called before a reply while calls within the one to be answered are in progress, with the id of the latter.
        self.before_deep_reply: Optional[Callable[[int], None]] = None
        # Called when both ends have shared one processor for some calls in a row.
        self.on_together: Optional[Callable[[], None]] = None
        self._together = 0
        self._crowded = 0  # waits for a call that are to be slept through, because others want the processor
        self._reader = FrameReader()
        self._poller = select.poll()
        self._poller.register(sock.fileno(), select.POLLIN)
        self._polls = _MANY_POLLS if spin else _NONE
        self._yields = _YIELDS if spin else _NONE
        self._written = 0  # sequence number of the last frame this side sent, without the announcing bit
        self._read = 0  # and of the last one it saw from the other side, with it
        self._announced = False  # the slot said that the next frame comes over the socket
        self._lane = lane
        self._room = 0 if lane is None else lane.slot_size - HEADER_SIZE  # what fits a slot beside the header
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
        if lane is None:
            return self.continue_send(pieces)
        words = self._words
        self._written = number = self._written + 2
        # Buffers of their own are large, or would not be: their frames go over the socket.
        if len(pieces) > 2 or len(pieces[1]) > self._room:
            words[lane.write_number_word] = number + 1
            lane.fence[(number >> 1) & 1]()  # not needed here, but it is every other one's turn
            return self.continue_send(pieces)
        start = lane.write_offset
        middle = start + HEADER_SIZE
        self._memory[start:middle] = pieces[0]
        self._memory[middle : middle + len(pieces[1])] = pieces[1]
        words[lane.write_number_word] = number
        lane.fence[(number >> 1) & 1]()
        if words[lane.peer_asleep_word]:
            self._wake()
        return []

    def continue_send(self, pieces: List[Bytes]) -> List[Bytes]:
        """Send what the socket takes now; returns what it did not.

        Raises:
            NotRead: the other side is gone.
        """
        try:
            sent = self.sock.sendmsg(pieces[:64])
        except (BlockingIOError, InterruptedError):
            return pieces
        except OSError as error:
            raise NotRead(str(error)) from None
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

    def announce(self) -> None:
        """A frame will follow as soon as much has been copied: let the other side wake up meanwhile."""
        if self._lane is not None and self._words[self._lane.peer_asleep_word]:
            try:
                self._wake()
            except ConnectionClosed:
                pass  # whoever sends that frame is told

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
        self.asleep_for = 0.0
        frame = self.poll_frame()
        for _ in _NONE if self._crowded else self._yields:
            if frame is not None:
                break
            _sched_yield()
            frame = self.poll_frame()
        return self._sleep_for_frame(deadline) if frame is None else frame

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
            if frame is None and not self._reader.partial:
                return None  # nothing but wakes came; a stream of them must not keep this side from its deadline
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
        if number & ~1 != (self._read & ~1) + 2:
            raise RemoteProtocolError(f"slot number {number} after {self._read}")
        self._read = number
        if number & 1:
            self._announced = True
            return None
        # Copied before it is looked at: what is checked is what is used, whatever the other side writes meanwhile.
        header = _unpack_from(self._memory, lane.read_offset)
        wire.check_header(header)
        kind, codec, count, length, call_id = header
        if count or length > self._room:
            raise RemoteProtocolError(f"a frame of {length:,} bytes and {count} buffers in a slot")
        self.conversation.received(kind, codec, call_id)
        start = lane.read_offset + HEADER_SIZE
        return Frame(kind, codec, call_id, self._memory[start : start + length])

    def _read_socket(self) -> bool:
        """Read what the socket holds now into the reader; False if there is nothing."""
        buffer = self._reader.get_buffer()
        try:
            count = self.sock.recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionResetError as error:
            # Linux says so of a Unix socket that was closed with something unread in it, and otherwise reports the end.
            raise (NotRead if _IS_LINUX else ConnectionClosed)(str(error)) from None
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
        lane.sleep_barrier.acquire()
        lane.sleep_barrier.release()
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
        began = time.monotonic()
        naps = 0
        while True:
            try:
                if self.prepare_sleep():
                    if self.on_wait is not None:
                        self.on_wait()
                    nap = _NAPS[min(naps, len(_NAPS) - 1)]
                    if self._poll(deadline, nap):
                        self.drain_wakes()
                        self.end_sleep()
                        self._yield_while_expecting()
                    elif deadline is None and naps == 1 and self.on_idle is not None:
                        self.on_idle()
                    naps += 1
            except ConnectionClosed:
                raise  # with the flag up: it takes nothing any more, which the other side may ask (`was_taken`)
            except BaseException:
                self.end_sleep()
                raise
            self.end_sleep()
            frame = self.poll_frame()
            if frame is not None:
                self.asleep_for = time.monotonic() - began
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
        sleep: bool = True,
        kind: int = CALL,
    ) -> Reply:
        """Send a CALL, or the RESULT or ERROR of a call back, and wait for what the other side says to it: RESULT,
        ERROR or, within the call, a CALL of its own.

        Args:
            codec: of the payload.
            payload: the encoded call or answer.
            buffers: out-of-band buffers of the payload.
            deadline: ``time.monotonic()`` at which to give up, or None.
            patient: True to sleep at once, because the answer is known to take long.
            sleep: False to raise ``WouldSleep`` instead of going to sleep; for callers who wait in another way, with a
                frame that ``fits_slot``.
            kind: of the frame to send.

        Returns:
            kind, codec, payload and buffers of the frame that came.

        Raises:
            LocalProtocolError: it is not this side's turn, or a bound would be exceeded; nothing was sent.
            RemoteProtocolError: the other side broke the wire's rules.
            ConnectionClosed: the other side is gone.
            DeadlinePassed: no answer in time; the connection is of no further use.
        """
        lane = self._lane
        length = len(payload)
        conversation = self.conversation
        self.asleep_for = 0.0
        if lane is None or buffers or length > self._room or conversation.state is not IDLE:
            left = self.start_send(kind, codec, payload, buffers)
            while left:
                self._wait_writable(deadline)
                left = self.continue_send(left)
            frame: Optional[Frame]
            if lane is None:
                frame = self._sleep_for_frame(deadline) if patient else self.receive(deadline)
                return frame.kind, frame.codec, frame.payload, frame.buffers
            words = self._words
            # Deeper in a call, and where this side is the server, what comes goes through the conversation.
            call_id = conversation.call_id if conversation.state is CALLING and conversation.is_client else -1
        else:
            conversation.state = CALLING
            conversation.call_id = call_id = conversation.call_id + 1
            words = self._words
            memory = self._memory
            offset = lane.write_offset
            _pack_into(memory, offset, CALL, codec, 0, length, call_id)
            offset += HEADER_SIZE
            memory[offset : offset + length] = payload
            self._written = number = self._written + 2
            words[lane.write_number_word] = number
            lane.fence[(number >> 1) & 1]()
            if words[lane.peer_asleep_word]:
                self._wake()
        word = self._read_word
        read = self._read
        if not patient:
            for _ in self._polls:
                if words[word] != read:
                    break
            else:
                self._yield_while_alone(word, read)
            if words[word] == read + 2:
                kind, codec, count, length, replied = _unpack_from(self._memory, lane.read_offset)
                if length <= self._room and count == 0 and replied == call_id and kind in _ANSWERS and codec in _CODECS:
                    self._read = read + 2
                    conversation.state = IDLE
                    start = lane.read_offset + HEADER_SIZE
                    return kind, codec, self._memory[start : start + length], ()
        frame = self.poll_frame()
        if frame is None:
            if not sleep:
                raise WouldSleep
            frame = self._sleep_for_frame(deadline)
        return frame.kind, frame.codec, frame.payload, frame.buffers

    def was_taken(self, error: ConnectionClosed) -> bool:
        """Client, after ``error`` ended the outermost call: False if the other side has certainly not seen that call.

        It costs an ordinary call nothing. A server lowers its asleep flag before it takes a frame from its slot, so one
        that was gone with the flag up had slept through; and a frame of which something was left in the socket was not
        complete. Where it was awake, or had read all of the frame, nobody can tell, and the answer is True.
        """
        conversation = self.conversation
        if conversation.called_back_in == conversation.call_id & wire.CALL_NUMBER:
            return True  # and what was not read, or slept through, was the answer to that
        lane = self._lane
        if lane is None or self._words[lane.write_number_word] & 1:
            return not isinstance(error, NotRead)
        # What is left in the socket there is but a wake.
        return not self._words[lane.peer_asleep_word] or self._words[self._read_word] != self._read

    def fits_slot(self, payload: Bytes, buffers: Sequence[Bytes]) -> bool:
        """Whether such a frame is sent without waiting for the other side."""
        return self._lane is not None and not buffers and len(payload) <= self._room

    def _yield_while_alone(self, word: int, read: int) -> None:
        """Poll and yield the processor, as long as no other thread of this process does: then spinning would only keep
        the interpreter lock from it."""
        words = self._words
        _yielding.add(self)
        try:
            yields = 0
            for yields in self._yields:  # noqa: B007 - what it was last is the point
                if words[word] != read or len(_yielding) > 1:
                    break
                _sched_yield()
            self._learn(yields)
        finally:
            _yielding.discard(self)

    def _yield_while_expecting(self) -> None:
        """After a wake that nothing came with: what it announces is being copied, for some milliseconds at most."""
        if self._lane is None or self._announced or not self._yields or _yielding:
            return
        words, word, read = self._words, self._read_word, self._read
        until = time.monotonic() + _EXPECTING
        while words[word] == read and time.monotonic() < until:
            _sched_yield()

    def _learn(self, yields: int) -> None:
        """What came after a single yield came from this very processor, where polling only keeps the other side from
        running; what took several did not. The scheduler may put two that talk on one processor at any time."""
        if yields == 1:
            self._polls = _FEW_POLLS
            self._together += 1
            if self._together == _TOGETHER and self.on_together is not None:
                self._together = 0
                self.on_together()
        elif yields > 2:
            self._polls = _MANY_POLLS
            self._together = 0

    def receive_call(self) -> Reply:
        """Server: wait for the next CALL; as ``receive``, but quicker.

        Returns:
            kind, codec, payload and buffers of the call.
        """
        lane = self._lane
        if lane is not None:
            words = self._words
            word = self._read_word
            read = self._read
            for _ in self._polls:
                if words[word] != read:
                    break
            else:
                if not self._crowded:
                    began = time.monotonic()
                    yields = 0
                    for yields in self._yields:  # noqa: B007 - as above
                        if words[word] != read:
                            break
                        _sched_yield()
                    self._learn(yields)
                    if yields and time.monotonic() - began > _CROWD:
                        self._crowded = _CROWDED_CALLS
                else:
                    self._crowded -= 1
            if words[word] == read + 2:
                kind, codec, count, length, call_id = _unpack_from(self._memory, lane.read_offset)
                conversation = self.conversation
                if (
                    kind == CALL
                    and conversation.state is IDLE
                    and call_id == conversation.call_id + 1
                    and length <= self._room
                    and count == 0
                    and codec in _CODECS
                ):
                    self._read = read + 2
                    conversation.state = CALLING
                    conversation.call_id = call_id
                    start = lane.read_offset + HEADER_SIZE
                    return kind, codec, self._memory[start : start + length], ()
        frame = self.receive()
        return frame.kind, frame.codec, frame.payload, frame.buffers

    def reply(self, kind: int, codec: int, payload: Bytes, buffers: Sequence[Bytes] = ()) -> None:
        """Server: answer the call in progress with RESULT or ERROR.

        Raises:
            LocalProtocolError: no call is in progress, or a bound would be exceeded; nothing was sent.
            ConnectionClosed: the other side is gone.
        """
        lane = self._lane
        length = len(payload)
        conversation = self.conversation
        if lane is None or buffers or length > self._room or conversation.state is not CALLING or kind not in _ANSWERS:
            if conversation.state is not CALLING and self.before_deep_reply is not None:
                self.before_deep_reply(conversation.call_id & wire.CALL_NUMBER)
            self.send(kind, codec, payload, buffers)
            return
        conversation.state = IDLE
        words = self._words
        memory = self._memory
        offset = lane.write_offset
        _pack_into(memory, offset, kind, codec, 0, length, conversation.call_id)
        offset += HEADER_SIZE
        memory[offset : offset + length] = payload
        self._written = number = self._written + 2
        words[lane.write_number_word] = number
        lane.fence[(number >> 1) & 1]()
        if words[lane.peer_asleep_word]:
            try:
                self._wake()
            except ConnectionClosed:
                # The answer may arrive all the same, and another call be made: none is taken; see `_sleep_for_frame`.
                words[lane.my_asleep_word] = 1
                raise

    def close(self) -> None:
        """Close the socket. Idempotent. The lane is unmapped when the connection is collected, not here: another
        thread may be looking at it."""
        self.sock.close()

    def __repr__(self) -> str:
        return f"<Connection {self.conversation.state} call {self.conversation.call_id}>"
