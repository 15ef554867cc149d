# SPDX-License-Identifier: Apache-2.0
"""Those who are connected to a worker under pyproc's wire: what they send, what waits, and what they are sent.

What always holds here: what waits of a connection stays in its order; whatever a caller sends or does not take harms
its own connection only; one thread at a time, which has the turn, comes in here. What does not belong here: calling
(``pyproc_server``), what bytes mean (``pyproc_wire``).
"""

from __future__ import annotations

import os
from _socket import (  # `socket` itself would import `enum`
    AF_UNIX,
    SHUT_RDWR,
    SO_SNDBUF,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)
from collections import deque

from . import pyproc_wire
from .poller import BROKEN, IN, OUT, make_poller
from .pyproc_log import logger, say
from .pyproc_wire import Cancellation, FrameReader, Malformed, Request, read_message, write_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Deque, Dict, List, Optional, Tuple, Union

    from ..json_codec import Codec
    from .pyproc_call import Call

    Reply = List[bytes]  # its pieces
    Waiting = Union[Request, Reply]  # a request, or the reply to something that was none

# Bytes read at once. What is larger is read into its own memory.
_CHUNK = 1 << 16
# Bytes of a reply that the kernel takes before its reader does, so that one of usual size is written at once.
_SEND_BUFFER = 1 << 20
# Requests of one connection that wait behind a call before no more are read of it, and their bytes.
_MOST_WAITING = 256
_MOST_BYTES_WAITING = pyproc_wire.MAX_FRAME


class Connection:
    """One caller's connection.

    Attributes:
        waiting: what is to be answered, in this order.
        bytes_waiting: of these since there were none.
        unsent: what is left of a reply that its reader did not take yet; nothing is read before it is.
        cancelled: ids of waiting requests whose callers wait no more -> why.
        interest: what is waited for at its descriptor.
        is_ready: it stands among those with something to be answered.
        is_ended: nothing more comes; replies are still taken.
        is_gone: it is closed.
    """

    __slots__ = (
        *("bytes_waiting", "cancelled", "fd", "interest", "is_ended", "is_gone", "is_ready", "reader", "sock"),
        *("unsent", "waiting"),
    )

    def __init__(self, sock: socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.reader = FrameReader()
        self.waiting: Deque[Waiting] = deque()
        self.bytes_waiting = 0
        self.unsent: Optional[List[Union[bytes, memoryview]]] = None
        self.cancelled: Dict[Any, str] = {}
        self.interest = IN
        self.is_ready = False
        self.is_ended = False
        self.is_gone = False

    @property
    def is_full(self) -> bool:
        """Whether nothing more is to be read before something was answered."""
        return len(self.waiting) >= _MOST_WAITING or self.bytes_waiting > _MOST_BYTES_WAITING

    def take_next(self) -> Waiting:
        """What is to be answered first; from now on it waits no more."""
        self.is_ready = False
        one = self.waiting.popleft()
        if not self.waiting:
            self.bytes_waiting = 0
        return one

    def take_cancellation(self, request_id: Any) -> Optional[str]:
        """Why the request of this id, which waited, is not to be begun; None if it is."""
        return self.cancelled.pop(_hashable(request_id), None)


class Connections:
    """All of them.

    Args:
        call: the one in progress.
        codec: reads what comes.
        at_once: gives the reply to a request that need not wait behind a call; None to those that do.

    Attributes:
        ready: those that have something waiting, each once.
        poll: waits for what happens at their descriptors.
        is_accepting: whether others can connect.
    """

    def __init__(self, call: Call, codec: Codec, at_once: Callable[[Request], Optional[Reply]]) -> None:
        self._call = call
        self._codec = codec
        self._at_once = at_once
        self._poller = make_poller()
        self.poll: Callable[[float], List[Tuple[int, int]]] = self._poller.poll
        self.ready: Deque[Connection] = deque()
        self.is_accepting = True
        self._by_fd: Dict[int, Connection] = {}
        self._listener: Any = None
        self._waker = -1

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._by_fd)

    def fileno(self) -> Optional[int]:
        """A descriptor that can be read when something happens at one of theirs; None where there is none."""
        return self._poller.fileno() if hasattr(self._poller, "fileno") else None

    def listen(self, listener: socket) -> None:
        """Who connects there is one of them from now on."""
        self._listener = listener
        self._poller.register(listener.fileno(), IN)

    def wake_at(self, fd: int) -> None:
        """Let ``poll`` return when this descriptor can be read, without waiting; what comes there says no more."""
        self._waker = fd
        self._poller.register(fd, IN)

    def handle(self, fd: int, event: int, is_during_call: bool) -> None:
        """Something happened at a descriptor.

        Args:
            fd: which.
            event: what, as ``poll`` has it.
            is_during_call: whoever says so is not the one who answers.
        """
        connection = self._by_fd.get(fd)
        if connection is None:
            if fd == self._listener.fileno():
                self._accept()
            elif fd == self._waker:
                self._be_woken()
            return
        if event & OUT and connection.unsent is not None:
            self.send(connection, connection.unsent)
        if event & IN:
            self._read(connection, is_during_call)
        elif event & BROKEN:
            self._drop(connection)
        # With both directions closed, what was read to its end above is all there is.
        if event & BROKEN and connection.is_ended:
            self._drop(connection)

    def _be_woken(self) -> None:
        try:
            os.read(self._waker, _CHUNK)
        except OSError:
            pass  # somebody was faster

    # -- coming ----------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        """Take in who waits."""
        while True:
            try:
                fd, _ = self._listener._accept()  # what `socket.accept` is made of
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # somebody who went away again
            except OSError as error:
                # No descriptors are left. Who waits is accepted when another connection is closed, or in a while.
                logger().error("no connection can be accepted at the moment: %s", error)
                self.is_accepting = False
                self._poller.modify(self._listener.fileno(), 0)
                return
            sock = socket(AF_UNIX, SOCK_STREAM, 0, fileno=fd)
            sock.setblocking(False)
            try:
                sock.setsockopt(SOL_SOCKET, SO_SNDBUF, _SEND_BUFFER)
            except OSError:
                pass  # replies of some size take more steps
            connection = Connection(sock)
            self._by_fd[connection.fd] = connection
            self._poller.register(connection.fd, IN)
            say("connection %d came", connection.fd)

    def accept_again(self) -> None:
        """There may be descriptors again."""
        self.is_accepting = True
        self._poller.modify(self._listener.fileno(), IN)

    # -- reading ---------------------------------------------------------------------------------------------

    def _read(self, connection: Connection, is_during_call: bool) -> None:
        """Take what came."""
        reader = connection.reader
        room = reader.room()
        try:
            if room is None:
                data = connection.sock.recv(_CHUNK)
                count = len(data)
            else:
                count = connection.sock.recv_into(room)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._drop(connection)
            return
        if not count:
            connection.is_ended = True  # replies are still taken
            self.settle(connection)
            return
        try:
            frames = reader.receive_data(data) if room is None else reader.filled(count)
        except MemoryError:
            self._drop(connection)
            return
        for frame in frames:
            self._take(connection, frame, is_during_call)
        if connection.is_full:
            self.settle(connection)

    def _take(self, connection: Connection, frame: Any, is_during_call: bool) -> None:
        """A frame came, or what could not be read."""
        message: Union[Request, Cancellation, Reply]
        try:
            if type(frame) is Malformed:
                raise frame
            message = read_message(frame, self._codec)
            if type(message) is Cancellation:
                self._cancel(connection, message.id, message.reason)
                return
        except Malformed as error:
            message = write_error(error.request_id, f"{type(error).__name__}: {error}", self._codec)
        if is_during_call and not connection.waiting and connection.unsent is None and not self._is_calling(connection):
            reply = self._at_once(message) if type(message) is Request else message
            if reply is not None:
                self.send(connection, reply)
                return
        connection.waiting.append(message)  # type: ignore[arg-type]  # a cancellation returned above
        if type(frame) is not Malformed:
            connection.bytes_waiting += len(frame)
        if not connection.is_ready and connection.unsent is None:
            connection.is_ready = True
            self.ready.append(connection)

    def _cancel(self, connection: Connection, request_id: Any, reason: str) -> None:
        """A request's caller waits for it no longer. One that is unknown, or was answered, is no concern."""
        if self._is_calling(connection) and request_id == self._call.request_id:
            if self._call.cancel(reason):
                say("request %.100r of connection %d is cancelled: %.200s", request_id, connection.fd, reason)
            return
        for one in connection.waiting:
            if type(one) is Request and one.id == request_id:
                connection.cancelled[_hashable(request_id)] = reason

    def _is_calling(self, connection: Connection) -> bool:
        return self._call.call_number != 0 and connection is self._call.connection

    # -- sending ---------------------------------------------------------------------------------------------

    def send(self, connection: Connection, pieces: Any) -> None:
        """Send a reply, or what is left of one, as far as its reader takes it."""
        try:
            sent = connection.sock.send(pieces[0]) if len(pieces) == 1 else connection.sock.sendmsg(pieces)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._drop(connection)
            return
        left: List[Union[bytes, memoryview]] = []
        for piece in pieces:
            if sent >= len(piece):
                sent -= len(piece)
            else:
                left.append(memoryview(piece)[sent:])
                sent = 0
        if left or connection.unsent is not None:
            connection.unsent = left or None
            self.settle(connection)

    def settle(self, connection: Connection) -> None:
        """Wait for what is due at a connection: its reader, or more to come; or let it go."""
        if connection.is_gone:
            return
        if connection.unsent is not None:
            interest = OUT
        elif connection.waiting:
            if not connection.is_ready:
                connection.is_ready = True
                self.ready.append(connection)
            interest = 0 if connection.is_ended or connection.is_full else IN
        elif not connection.is_ended:
            interest = IN
        elif self._is_calling(connection):
            interest = 0  # only its closing is to be seen; its reply is still taken
        else:
            self._drop(connection)
            return
        if interest != connection.interest:
            connection.interest = interest
            self._poller.modify(connection.fd, interest)

    # -- going -----------------------------------------------------------------------------------------------

    def _drop(self, connection: Connection) -> None:
        """The caller is gone: nobody waits for its replies any more."""
        if connection.is_gone:
            return
        if self._is_calling(connection):
            self._cancel(connection, self._call.request_id, "the caller is gone")
        say("connection %d went", connection.fd)
        connection.is_gone = True
        del self._by_fd[connection.fd]
        self._poller.unregister(connection.fd)
        _close(connection.sock)
        connection.waiting.clear()
        connection.unsent = None
        if connection.is_ready:
            self.ready.remove(connection)
        if not self.is_accepting:
            self.accept_again()

    def forget(self) -> None:
        """In a child that user code forked: they are its parent's, and are to see when that ends."""
        if self._listener is not None:
            self._listener.close()
        for connection in self._by_fd.values():
            connection.sock.close()
        self._by_fd.clear()
        self._poller.close()

    def close(self) -> None:
        """Hang up on all of them."""
        for connection in list(self._by_fd.values()):
            _close(connection.sock)
        self._by_fd.clear()


def _close(sock: socket) -> None:
    """Hang up: also where children that user code forked have the socket too."""
    try:
        sock.shutdown(SHUT_RDWR)
    except OSError:
        pass  # the other side was faster
    sock.close()


def _hashable(request_id: Any) -> Any:
    return repr(request_id) if type(request_id) in (list, dict) else request_id
