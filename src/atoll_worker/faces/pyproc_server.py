# SPDX-License-Identifier: Apache-2.0
"""Serving calls over pyproc's wire to whoever connects: connections, their queues, the call in progress, and its end.

Data flow of one call::

    main thread                                            ear (a thread, asleep but for long calls)
    waits for any connection, reads what came
    (read_message) a request: calls the function       ─▶  the call lasts: listens to all connections meanwhile;
    writes the reply at once (write_result)                a cancellation, or the caller hanging up, interrupts it;
    waits again, a little while without sleeping           ``health`` is answered, other requests wait for their turn

One loop over all connections rather than a thread for each: threads that hand the interpreter's lock to each other take
longer for a call, and two callers' functions would run at the same time.

What always holds here: each request is answered once, in the order of its connection; one thread at a time, which has
the turn, touches connections and queues; whatever a caller sends or does not take harms its own connection only. What
does not belong here: what bytes mean (``pyproc_wire``), how values become JSON (``json_codec``), the socket's place and
the process's life (``pyproc``).
"""

from __future__ import annotations

import os
import select
import sys
from _socket import (  # `socket` itself would import `enum`
    AF_UNIX,
    SHUT_RDWR,
    SO_SNDBUF,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)
from _thread import allocate_lock, get_ident, start_new_thread
from collections import deque
from time import monotonic

from .. import completion, context, used_names
from ..errors import Cancelled
from ..interruption import MainThread
from ..json_codec import Codec
from ..service import is_coroutine_function, is_generator_function, run_to_end
from . import pyproc_wire
from .pyproc_wire import Cancellation, FrameReader, Malformed, Request, read_message, write_error, write_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Deque, Dict, List, NoReturn, Optional, Tuple, Union

    from ..service import FunctionTable

    Reply = List[bytes]  # its pieces
    Waiting = Union[Request, Reply]  # a request, or the reply to something that was none

LOG_VARIABLE = "PYPROC_LOG_LEVEL"
HEALTH = "health"

# Bytes read at once. What is larger is read into its own memory.
_CHUNK = 1 << 16
# Bytes of a reply that the kernel takes before its reader does, so that one of usual size is written at once.
_SEND_BUFFER = 1 << 20
# Requests of one connection that wait behind a call before no more are read of it, and their bytes.
_MOST_WAITING = 256
_MOST_BYTES_WAITING = pyproc_wire.MAX_FRAME

# Seconds after which a call is one that the ear attends to, and between its looks whether it lasts.
_TICK = 0.02
# Seconds that code which looks whether it was cancelled gets to return by itself; and between interruptions of code
# that goes on.
_GRACE = 0.5
# Seconds between the ear's looks whether a call lasts that has lasted for some time.
_LONGEST_WAIT = 0.2

# Seconds without any event after which an idle worker looks whether it was forgotten.
_LOOK_AROUND = 30.0

# How often to look, and let others have the processor, before sleeping (benchmarks/pyproc_wire.py): many times while
# one caller calls on and on, few while several share the processors.
_SPINS_ALONE = range(30)
_SPINS_SHARED = range(4)
_NO_SPINS = range(0)

_IN, _OUT, _BROKEN = select.POLLIN, select.POLLOUT, select.POLLERR | select.POLLHUP
_yield = getattr(os, "sched_yield", lambda: None)


def logger() -> Any:
    import logging

    return logging.getLogger("atoll_worker.pyproc")


def say(words: str, *details: object) -> None:
    """For who debugs; what happens seldom only, never each call. Imports nothing unless somebody asked."""
    if LOG_VARIABLE in os.environ:
        logger().debug(words, *details)


class Stop(KeyboardInterrupt):
    """The worker was told to end."""


# -- connections ---------------------------------------------------------------------------------------------------


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
        self.interest = _IN
        self.is_ready = False
        self.is_ended = False
        self.is_gone = False

    @property
    def is_full(self) -> bool:
        """Whether nothing more is to be read before something was answered."""
        return len(self.waiting) >= _MOST_WAITING or self.bytes_waiting > _MOST_BYTES_WAITING


class Call:
    """The one call in progress: what ``interruption`` and ``context`` ask for of a channel.

    Attributes:
        call_number: counts calls; 0 between them.
        connection: whose it is, and the id of its request.
    """

    def __init__(self) -> None:
        self.thread = get_ident()
        self.index = 0
        self.meta = None
        self.deadline = 0.0  # the wire has none
        self.call_number = 0
        self.in_user_code = False
        self.unsettled = False
        self.interrupted_call = 0
        self.cancelled_call = 0
        self.task: Any = None
        self.connection: Optional[Connection] = None
        self.request_id: Any = None
        self.reason = ""
        self.interrupt_at = 0.0

    def concerns(self, number: int) -> bool:
        """Whether the call of this number is in progress."""
        return 0 < number == self.call_number

    def do_pending(self) -> None:
        """Nothing is left for between calls."""


class _Poller:
    """As ``select.epoll``, where there is none."""

    def __init__(self) -> None:
        self._events: Dict[int, int] = {}

    def register(self, fd: int, events: int) -> None:
        self._events[fd] = events

    modify = register

    def unregister(self, fd: int) -> None:
        del self._events[fd]

    def poll(self, timeout: float = -1) -> List[Tuple[int, int]]:
        """One of its own each time: both threads may wait at once."""
        poller = select.poll()
        for fd, events in list(self._events.items()):
            poller.register(fd, events)
        return poller.poll(None if timeout < 0 else timeout * 1000)

    def close(self) -> None:
        self._events.clear()


# -- the worker ----------------------------------------------------------------------------------------------------


class Server:
    """Answers whoever connects. Made, and used, on the main thread.

    Attributes:
        call: the one in progress.
        functions: what can be called, by name.
        is_stopping: set to end ``serve``, by whoever makes sure that the main thread looks.
        is_waiting: the main thread may be asleep.
        is_fork: this process is a child that user code forked.
    """

    def __init__(self, table: FunctionTable, codec: Codec) -> None:
        self.call = Call()
        self.is_stopping = False
        self.is_waiting = False
        self._codec = codec
        self.functions: Dict[str, Callable[[Any], Any]] = {}
        self._loop: Optional[completion.Loop] = None
        self._poller: Any = select.epoll() if hasattr(select, "epoll") else _Poller()
        self._is_accepting = True
        self._connections: Dict[int, Connection] = {}
        self._ready: Deque[Connection] = deque()  # that have something waiting, each once
        self._number = 0
        self._turn = allocate_lock()
        self._bell = allocate_lock()
        self._bell.acquire()
        self._ear_sleeps = False
        self._is_cooperative = "cancelled" in used_names
        self.is_fork = False
        self._spin = os.environ.get("ATOLL_SPIN") != "0"
        self._make_callable(table)
        self._interruption = MainThread()
        self._interruption.serves(self.call)
        context.channels.append(self.call)  # type: ignore[arg-type]  # it has what code of a call asks for
        os.register_at_fork(after_in_child=self._mark_fork)

    def _make_callable(self, table: FunctionTable) -> None:
        for name, function in table.functions.items():
            if is_generator_function(function):
                function = _no_stream(name)
            elif is_coroutine_function(function):
                if self._loop is None:
                    self._loop = completion.Loop(self._on_task)
                    completion.use(self._loop)
                function = run_to_end(function)
            self.functions[name] = function
        self.functions.setdefault(HEALTH, _health)

    def _on_task(self, task: Any) -> Any:
        before, self.call.task = self.call.task, task
        return before

    def _mark_fork(self) -> None:
        self.is_fork = True

    def _end_fork(self, error: Optional[BaseException]) -> None:
        """End a child that user code forked and that fell through to here: it must not answer for the worker."""
        status = 0
        try:
            if error is not None:
                code = getattr(error, "code", 1) if isinstance(error, SystemExit) else 1
                status = code & 0xFF if type(code) is int else int(code is not None)
                if not isinstance(error, SystemExit):
                    sys.excepthook(type(error), error, error.__traceback__)
        finally:
            os._exit(status)

    # -- the main thread -------------------------------------------------------------------------------------

    def serve(self, listener: socket, is_forgotten: Callable[[], bool]) -> None:
        """Answer calls until the worker is told to end.

        Args:
            listener: who connects there is answered.
            is_forgotten: asked now and then while nobody is connected; true ends the worker.
        """
        self._listener = listener
        self._is_forgotten = is_forgotten
        self._poller.register(listener.fileno(), _IN)
        start_new_thread(self._listen_during_calls, ())
        poll = self._poller.poll
        ready = self._ready
        last = -1  # the one that called, as long as no other did
        shared = 0
        self._turn.acquire()
        while not self.is_stopping:
            events = poll(0)
            if not events and not ready:
                for _ in (_SPINS_SHARED if shared else _SPINS_ALONE) if self._spin else _NO_SPINS:
                    _yield()
                    events = poll(0)
                    if events:
                        break
                else:
                    events = self._sleep()
            for fd, event in events:
                if fd != last:
                    last = fd
                    shared = 64
                elif shared:
                    shared -= 1
                self._handle(fd, event, False)
            for _ in range(len(ready)):
                self._answer(ready.popleft())

    def _sleep(self) -> List[Tuple[int, int]]:
        """Wait until there is something to do."""
        self.is_waiting = True
        try:
            if self.is_stopping:
                return []
            loop = self._loop
            if loop is not None and loop.has_tasks and hasattr(self._poller, "fileno"):
                # Tasks that coroutines left behind go on.
                loop.run_until_readable(self._poller.fileno())
            events: List[Tuple[int, int]] = self._poller.poll(_LOOK_AROUND if self._is_accepting else 1.0)
            if not self._is_accepting:
                self._accept_again()
            elif not events and not self._connections and self._is_forgotten():
                self.is_stopping = True
            return events
        finally:
            self.is_waiting = False

    def _answer(self, connection: Connection) -> None:
        """Answer what waits first on a connection."""
        if self.is_stopping:
            return
        connection.is_ready = False
        one = connection.waiting.popleft()
        if not connection.waiting:
            connection.bytes_waiting = 0
        reply = self._reply_to(connection, one) if type(one) is Request else one
        if connection.is_gone:
            return
        self._send(connection, reply)
        if connection.waiting or connection.is_ended or connection.interest != _IN:
            self._settle(connection)

    def _reply_to(self, connection: Connection, request: Request) -> Reply:
        request_id = request.id
        codec = self._codec
        if connection.cancelled:
            reason = connection.cancelled.pop(_hashable(request_id), None)
            if reason is not None:
                return write_error(request_id, f"Cancelled: {reason}", codec)
        function = self.functions.get(request.method)
        if function is None:
            return write_error(request_id, self._not_found(request.method), codec)
        body = request.body
        if body is pyproc_wire.NOTHING:
            body = {}
        call = self.call
        call.connection = connection
        call.request_id = request_id
        self._number = call.call_number = self._number + 1
        if self._ear_sleeps:
            self._ring()
        self._turn.release()
        try:
            call.in_user_code = True
            if self.is_stopping:  # told in the very moment before
                raise Stop
            if request.headers is None:
                result = function(body)
            else:
                result = self._call_traced(function, body, request.headers)
            call.in_user_code = False
            self._turn.acquire()
            call.call_number = 0
        except BaseException as error:
            return self._raised(request, self._come_back(error))
        if self.is_fork:
            self._end_fork(None)
        try:
            return write_result(request_id, codec.encode(result), codec)
        except BaseException as error:  # looking at a value may run code of its class
            return write_error(request_id, f"{type(error).__name__}: {error}", codec)

    def _ring(self) -> None:
        """Wake the ear."""
        self._ear_sleeps = False
        try:
            self._bell.release()
        except RuntimeError:
            pass  # it was rung a moment ago

    def _call_traced(self, function: Callable[[Any], Any], body: Any, headers: Any) -> Any:
        traceparent = headers.get("traceparent") if type(headers) is dict else None
        if traceparent is None:
            return function(body)
        from ..tracing import use

        with use(traceparent, headers.get("tracestate")):
            return function(body)

    def _come_back(self, error: BaseException) -> BaseException:
        """Back from user code, which raised; returns what it raised. An interruption may still strike at any line."""
        while True:
            try:
                self.call.in_user_code = False
                if self.call.call_number:
                    self._turn.acquire()
                    self.call.call_number = 0
                return error
            except Cancelled as late:
                error = late

    def _raised(self, request: Request, error: BaseException) -> Reply:
        if self.is_fork:
            self._end_fork(error)
        if self.is_stopping and isinstance(error, Stop):
            raise error
        if self.call.cancelled_call == self._number and _is_cancellation(error):
            return write_error(request.id, f"Cancelled: {self.call.reason}", self._codec)
        try:
            from ..channel import describe_raised  # what an error needs, and a start does not

            described = describe_raised(error)
        except Exception:  # no memory, or no descriptor to import by
            described = {"type": type(error).__name__, "message": "", "text": ""}
        logger().error(
            "%s raised, called by request %.100r\n%s", request.method, request.id, described["text"].rstrip()
        )
        kind, message = described["type"], described["message"]
        return write_error(request.id, f"{kind}: {message}" if message else kind, self._codec)

    def _not_found(self, method: str) -> str:
        known = ", ".join(sorted(self.functions))
        return f"FunctionNotFound: method {method!r:.200} not found; this worker has {known}"

    # -- what comes and goes; for who has the turn -------------------------------------------------------------

    def _handle(self, fd: int, event: int, is_ear: bool) -> None:
        """Something happened at a descriptor."""
        connection = self._connections.get(fd)
        if connection is None:
            if fd == self._listener.fileno():
                self._accept()
            return
        if event & _OUT and connection.unsent is not None:
            self._send(connection, connection.unsent)
        if event & _IN:
            self._read(connection, is_ear)
        elif event & _BROKEN:
            self._drop(connection)
        # With both directions closed, what was read to its end above is all there is.
        if event & _BROKEN and connection.is_ended:
            self._drop(connection)

    def _accept(self) -> None:
        """Take in who waits."""
        while True:
            try:
                fd, _ = self._listener._accept()  # type: ignore[attr-defined]  # what `socket.accept` is made of
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # somebody who went away again
            except OSError as error:
                # No descriptors are left. Who waits is accepted when another connection is closed, or in a while.
                logger().error("no connection can be accepted at the moment: %s", error)
                self._is_accepting = False
                self._poller.modify(self._listener.fileno(), 0)
                return
            sock = socket(AF_UNIX, SOCK_STREAM, 0, fileno=fd)
            sock.setblocking(False)
            try:
                sock.setsockopt(SOL_SOCKET, SO_SNDBUF, _SEND_BUFFER)
            except OSError:
                pass  # replies of some size take more steps
            connection = Connection(sock)
            self._connections[connection.fd] = connection
            self._poller.register(connection.fd, _IN)
            say("connection %d came", connection.fd)

    def _read(self, connection: Connection, is_ear: bool) -> None:
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
            self._end(connection)
            return
        try:
            frames = reader.receive_data(data) if room is None else reader.filled(count)
        except MemoryError:
            self._drop(connection)
            return
        for frame in frames:
            self._take(connection, frame, is_ear)
        if connection.is_full:
            self._settle(connection)

    def _take(self, connection: Connection, frame: Any, is_ear: bool) -> None:
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
        if is_ear and not connection.waiting and connection.unsent is None and not self._is_calling(connection):
            if type(message) is Request and message.method == HEALTH and self.functions[HEALTH] is _health:
                body = self._codec.encode(_health({}))
                message = write_result(message.id, body, self._codec)
            if type(message) is list:
                self._send(connection, message)
                return
        connection.waiting.append(message)  # type: ignore[arg-type]  # a cancellation returned above
        if type(frame) is not Malformed:
            connection.bytes_waiting += len(frame)
        if not connection.is_ready and connection.unsent is None:
            connection.is_ready = True
            self._ready.append(connection)

    def _send(self, connection: Connection, pieces: Any) -> None:
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
            self._settle(connection)

    def _settle(self, connection: Connection) -> None:
        """Wait for what is due at a connection: its reader, or more to come; or let it go."""
        if connection.is_gone:
            return
        if connection.unsent is not None:
            interest = _OUT
        elif connection.waiting:
            if not connection.is_ready:
                connection.is_ready = True
                self._ready.append(connection)
            interest = 0 if connection.is_ended or connection.is_full else _IN
        elif not connection.is_ended:
            interest = _IN
        elif self._is_calling(connection):
            interest = 0  # only its closing is to be seen; its reply is still taken
        else:
            self._drop(connection)
            return
        if interest != connection.interest:
            connection.interest = interest
            self._poller.modify(connection.fd, interest)

    def _is_calling(self, connection: Connection) -> bool:
        return self.call.call_number != 0 and connection is self.call.connection

    def _end(self, connection: Connection) -> None:
        """The other side sends no more; it may still take replies."""
        connection.is_ended = True
        self._settle(connection)

    def _drop(self, connection: Connection) -> None:
        """The caller is gone: nobody waits for its replies any more."""
        if connection.is_gone:
            return
        if self._is_calling(connection):
            self._cancel(connection, self.call.request_id, "the caller is gone")
        say("connection %d went", connection.fd)
        connection.is_gone = True
        del self._connections[connection.fd]
        self._poller.unregister(connection.fd)
        _close(connection.sock)
        connection.waiting.clear()
        connection.unsent = None
        if connection.is_ready:
            self._ready.remove(connection)
        if not self._is_accepting:
            self._accept_again()

    def _accept_again(self) -> None:
        self._is_accepting = True
        self._poller.modify(self._listener.fileno(), _IN)

    # -- cancelling ------------------------------------------------------------------------------------------

    def _cancel(self, connection: Connection, request_id: Any, reason: str) -> None:
        """A request's caller waits for it no longer. One that is unknown, or was answered, is no concern."""
        call = self.call
        if self._is_calling(connection) and request_id == call.request_id:
            if call.cancelled_call != call.call_number:
                say("request %.100r of connection %d is cancelled: %.200s", request_id, connection.fd, reason)
                call.reason = reason
                call.cancelled_call = call.call_number
                call.interrupt_at = monotonic() + (_GRACE if self._is_cooperative else 0.0)
            return
        for one in connection.waiting:
            if type(one) is Request and one.id == request_id:
                connection.cancelled[_hashable(request_id)] = reason

    def _interrupt(self) -> None:
        """End the call in progress: its coroutine at first, from then on whatever runs."""
        call = self.call
        task = call.task
        call.interrupt_at = monotonic() + _GRACE
        if task is not None and call.cancelled_call != self._cancelled_task:
            self._cancelled_task = call.cancelled_call
            try:
                task.get_loop().call_soon_threadsafe(task.cancel)
            except RuntimeError:
                pass  # the loop is closed
            return
        call.interrupted_call = call.cancelled_call
        self._interruption.interrupt(call)

    _cancelled_task = 0  # number of the call whose task was cancelled

    # -- the ear ---------------------------------------------------------------------------------------------

    def _listen_during_calls(self) -> None:
        """On a thread of its own. Costs the calls nothing but a look: it wakes some times a second while there are
        any, and sees whether the same one is still there."""
        import _signal  # type: ignore[import-not-found]

        # They are for the main thread, which they are to wake.
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        seen = 0
        while not self.is_stopping:
            number = self.call.call_number
            if number and number == seen:
                self._listen_during(number)
            elif not number and self._number == seen:
                self._ear_sleeps = True
                if self.call.call_number == 0:
                    self._bell.acquire()
                    continue
                self._ear_sleeps = False
            seen = number or self._number
            self._bell.acquire(timeout=_TICK)

    def _listen_during(self, number: int) -> None:
        call = self.call
        wait = _TICK
        while call.call_number == number and not self.is_stopping:
            events = self._poller.poll(wait)
            with self._turn:
                if call.call_number != number:
                    return
                try:
                    for fd, event in events:
                        self._handle(fd, event, True)
                except Exception:
                    sys.excepthook(*sys.exc_info())  # the next event is listened to all the same
                wait = min(2 * wait, _LONGEST_WAIT)
                if call.cancelled_call == number:
                    wait = _TICK
                    if monotonic() >= call.interrupt_at:
                        self._interrupt()

    def close(self) -> None:
        """Let go of everything."""
        self.is_stopping = True
        if self._ear_sleeps:
            self._ring()
        context.channels.clear()
        for connection in list(self._connections.values()):
            _close(connection.sock)
        self._connections.clear()
        if self._loop is not None:
            self._loop.close()


def _close(sock: socket) -> None:
    """Hang up: also where children that user code forked have the socket too."""
    try:
        sock.shutdown(SHUT_RDWR)
    except OSError:
        pass  # the other side was faster
    sock.close()


def _health(body: Any) -> Dict[str, Any]:
    return {"status": "healthy", "pid": os.getpid()}


def _no_stream(name: str) -> Callable[[Any], NoReturn]:
    def refuse(body: Any) -> NoReturn:
        raise TypeError(f"{name} is a generator, and pyproc's wire has no streams: return a list, or call it by atoll")

    return refuse


def _hashable(request_id: Any) -> Any:
    return repr(request_id) if type(request_id) in (list, dict) else request_id


def _is_cancellation(error: BaseException) -> bool:
    return isinstance(error, Cancelled) or type(error).__name__ == "CancelledError"
