# SPDX-License-Identifier: Apache-2.0
"""Serving calls over pyproc's wire to whoever connects: whose turn it is, the call, and its reply.

Data flow of one call::

    main thread                                            ear (a thread, asleep but for long calls)
    waits for any connection, reads what came
    (Connections.handle) a request: calls the function ─▶  the call lasts: listens to all connections meanwhile;
    sends the reply at once (Connections.send)             a cancellation, or the caller hanging up, interrupts it;
    waits again, a little while without sleeping           ``health`` is answered, other requests wait for their turn

One loop over all connections rather than a thread for each: threads that hand the interpreter's lock to each other take
longer for a call, and two callers' functions would run at the same time.

What always holds here: each request is answered once, in the order of its connection. What does not belong here: who is
connected (``pyproc_connections``), what runs during a call (``pyproc_ear``) and ends it (``pyproc_call``), what bytes
mean (``pyproc_wire``), how values become JSON (``json_codec``), the socket's place and the process's life (``pyproc``).
"""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock
from time import monotonic

from .. import completion, context
from ..errors import Cancelled
from ..service import is_coroutine_function, is_generator_function, run_to_end
from . import pyproc_wire
from .poller import IN
from .pyproc_call import Call, Stop
from .pyproc_connections import Connections
from .pyproc_ear import Ear
from .pyproc_log import logger
from .pyproc_wire import Request, write_error, write_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any, Callable, Dict, List, NoReturn, Optional, Tuple

    from ..json_codec import Codec
    from ..service import FunctionTable
    from .pyproc_connections import Connection, Reply

HEALTH = "health"

# Seconds without any event after which an idle worker looks whether it was forgotten.
_LOOK_AROUND = 30.0
# Seconds after which tasks that coroutines left behind go on for a moment, however many calls wait.
_TASKS_EVERY = 0.005

# How often to look, and let others have the processor, before sleeping (benchmarks/pyproc_wire.py): many times while
# one caller calls on and on, few while several share the processors.
_SPINS_ALONE = range(30)
_SPINS_SHARED = range(4)
_NO_SPINS = range(0)

_yield = getattr(os, "sched_yield", lambda: None)


class Server:
    """Answers whoever connects. Made, and used, on the main thread.

    Attributes:
        call: the one in progress.
        functions: what can be called, by name.
        is_fork: this process is a child that user code forked.
    """

    def __init__(self, table: FunctionTable, codec: Codec) -> None:
        self.call = Call()
        self.functions: Dict[str, Callable[[Any], Any]] = {}
        self.is_fork = False
        self._codec = codec
        self._is_stopping = False
        self._is_waiting = False  # the main thread may be asleep
        self._loop: Optional[completion.Loop] = None
        self._tasks_due = 0.0
        self._connections = Connections(self.call, codec, self._answer_at_once)
        self._turn = allocate_lock()
        self._ear = Ear(self.call, self._connections, self._turn)
        self._spin = os.environ.get("ATOLL_SPIN") != "0"
        self._make_callable(table)
        context.channels.append(self.call)  # type: ignore[arg-type]  # it has what code of a call asks for
        os.register_at_fork(after_in_child=self._mark_fork)

    def _make_callable(self, table: FunctionTable) -> None:
        for name, function in table.functions.items():
            if is_generator_function(function):
                function = _no_stream(name)
            elif is_coroutine_function(function):
                if self._loop is None:
                    self._loop = completion.Loop(self.call.on_task)
                    completion.use(self._loop)
                function = run_to_end(function)
            self.functions[name] = function
        self.functions.setdefault(HEALTH, _health)

    def _mark_fork(self) -> None:
        self.is_fork = True
        self._turn = allocate_lock()  # the ear, which is not here, may have had it
        self._connections.forget()

    def stop(self) -> None:
        """End ``serve``. Called in a signal's handler, which is on the main thread.

        Raises:
            Stop: the main thread is in user code, or asleep, and is to come back from there. Elsewhere it sees in a
                moment that it is to end. A function that catches this is its worker's last.
        """
        self._is_stopping = True
        if self.call.in_user_code or self._is_waiting:
            raise Stop("the worker was told to end")

    def wake_at(self, fd: int) -> None:
        """Wake the main thread when this descriptor, which does not block, can be read: so that it handles signals."""
        self._connections.wake_at(fd)

    # -- waiting ---------------------------------------------------------------------------------------------

    def serve(self, listener: socket, is_forgotten: Callable[[], bool]) -> None:
        """Answer calls until the worker is told to end.

        Args:
            listener: who connects there is answered.
            is_forgotten: asked now and then while nobody is connected; true ends the worker.
        """
        self._is_forgotten = is_forgotten
        connections = self._connections
        connections.listen(listener)
        self._ear.start()
        poll = connections.poll
        handle = connections.handle
        ready = connections.ready
        last = -1  # the one that called, as long as no other did
        shared = 0
        self._turn.acquire()
        while not self._is_stopping:
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
                handle(fd, event, False)
            for _ in range(len(ready)):
                self._answer(ready.popleft())
            if self._loop is not None and monotonic() > self._tasks_due:
                self._let_tasks_go_on(self._loop)

    def _let_tasks_go_on(self, loop: completion.Loop) -> None:
        self._is_waiting = True
        try:
            if not self._is_stopping and loop.has_tasks:
                loop.turn()
        finally:
            self._is_waiting = False
            self._tasks_due = monotonic() + _TASKS_EVERY

    def _sleep(self) -> List[Tuple[int, int]]:
        """Wait until there is something to do."""
        connections = self._connections
        self._is_waiting = True
        try:
            if self._is_stopping:
                return []
            loop, fd = self._loop, connections.fileno()
            if loop is not None and loop.has_tasks and fd is not None:
                loop.run_until_readable(fd)  # tasks that coroutines left behind go on
            events = connections.poll(_LOOK_AROUND if connections.is_accepting else 1.0)
            if not connections.is_accepting:
                connections.accept_again()
            elif not events and not connections and self._is_forgotten():
                self._is_stopping = True
            return events
        finally:
            self._is_waiting = False

    # -- answering -------------------------------------------------------------------------------------------

    def _answer(self, connection: Connection) -> None:
        """Answer what waits first on a connection."""
        if self._is_stopping:
            return
        one = connection.take_next()
        reply = self._reply_to(connection, one) if type(one) is Request else one
        if connection.is_gone:
            return
        self._connections.send(connection, reply)
        if connection.waiting or connection.is_ended or connection.interest != IN:
            self._connections.settle(connection)

    def _answer_at_once(self, request: Request) -> Optional[Reply]:
        """The reply to what can be answered while a call runs."""
        if request.method != HEALTH or self.functions[HEALTH] is not _health:
            return None
        return write_result(request.id, self._codec.encode(_health({})), self._codec)

    def _reply_to(self, connection: Connection, request: Request) -> Reply:
        request_id = request.id
        codec = self._codec
        if connection.cancelled:
            reason = connection.take_cancellation(request_id)
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
        call.last_number = call.call_number = call.last_number + 1
        if self._ear.is_asleep:
            self._ear.wake()
        self._turn.release()
        try:
            try:
                call.in_user_code = True
                if self._is_stopping:  # told in the very moment before
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
        except Cancelled as late:  # it struck before `_come_back` could catch it
            return self._raised(request, self._come_back(late))
        if self.is_fork:
            self._end_fork(None)
        try:
            return write_result(request_id, codec.encode(result), codec)
        except BaseException as error:  # looking at a value may run code of its class
            return write_error(request_id, f"{type(error).__name__}: {error}", codec)

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
        if self._is_stopping and isinstance(error, Stop):
            raise error
        if self.call.is_cancelled_by(error):
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

    # -- ending ----------------------------------------------------------------------------------------------

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

    def close(self) -> None:
        """Let go of everything."""
        self._is_stopping = True
        self._ear.close()
        context.channels.clear()
        self._connections.close()
        if self._loop is not None:
            self._loop.close()


def _health(body: Any) -> Dict[str, Any]:
    return {"status": "healthy", "pid": os.getpid()}


def _no_stream(name: str) -> Callable[[Any], NoReturn]:
    def refuse(body: Any) -> NoReturn:
        raise TypeError(f"{name} is a generator, and pyproc's wire has no streams: return a list, or call it by atoll")

    return refuse
