# SPDX-License-Identifier: Apache-2.0
"""Serving a service's functions to whoever connects to a socket: connections, their calls, and the end of all.

What always holds here: whatever a client sends, or does not take, harms its own connection only, and what it may have
of memory and time is bounded; a client that goes away takes its call with it; who is told to end lets calls in progress
come to their end, for a while. Everything is on one event loop. What does not belong here: whose turn it is
(``conversation``), what JSON says (``messages``), where the socket stands (``atoll_worker.faces.unix_socket``).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import resource
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from atoll_worker import wire
from atoll_worker.errors import DecodeError, EncodeError, ProtocolError
from atoll_worker.faces.unix_socket import listen

from ..errors import AtollError, CallCancelled, CallTimeout, FunctionNotFound, ManifestError, ServiceClosed
from ..pool.stream import Stream
from . import messages
from .conversation import Call, Cancel, Load, Ping, Serving

if TYPE_CHECKING:
    from ..client import Service

logger = logging.getLogger("atoll.socket")

# Bytes of the largest request.
MAX_SIZE = 64 << 20
# Clients that are served at a time: with what else is open, within the 1,024 files that a process may usually have.
MAX_CONNECTIONS = 500
# So many more are told that there are too many; those beyond see their connection end.
_TOLD_MORE = 100
# Descriptors that are left for workers and everything else.
_OTHER_DESCRIPTORS = 200

# Seconds that a client may take to greet and to load, all in all, and between two pieces of one frame later.
PATIENCE = 10.0
# Bytes that may wait to be read by a client before no more of what it sends is read, and seconds until it takes some.
_HIGH_WATER = 1 << 20
_READING = 60.0
# Most items of a stream that go at once, and seconds to close one.
_MAX_BATCH = 4096
_CLOSING = 5.0

# Seconds that clients get to see the end of a connection that they listen at, before others are closed on which they
# may be sending a call: for so long such a call is refused, with a reason.
_LINGER = 0.25

# What is called of a stream.
NEXT, CLOSE = "__next__", "__close__"


class TooManyConnections(AtollError):
    """As many clients are connected as may."""


def serve(
    service: Service,
    path: str,
    *,
    timeout: float | None = None,
    max_size: int = MAX_SIZE,
    max_connections: int = MAX_CONNECTIONS,
    grace: float = 10.0,
) -> int:
    """Answer whoever connects, until SIGINT or SIGTERM. On the main thread.

    Args:
        service: what is called; it is started, and left open.
        path: where the socket is to stand; a socket that nobody answers at is replaced.
        timeout: seconds a call may take; None for the service's own limit.
        max_size: bytes of the largest request that is read.
        max_connections: clients that are served at a time.
        grace: seconds that calls in progress get to come to their end once a signal came.

    Returns:
        the exit status: 0 if all calls have come to their end; 128 and the signal's number if some were given up.

    Raises:
        ManifestError: the path cannot be listened at.
        AtollError: the service cannot be started.
    """
    server = Server(service, timeout if timeout is not None else service.spec.timeout, max_size, max_connections)
    return asyncio.run(server.run(path, grace))


class Server:
    """All connections of one service.

    Args:
        service: what is called.
        timeout: seconds a call may take.
        max_size: bytes of the largest request.
        max_connections: clients that are served at a time.

    Attributes:
        names: of what can be called.
        connections: those there are.
        is_ending: nothing new is begun.
        changed: a connection has ended, or a signal came.
    """

    def __init__(self, service: Service, timeout: float | None, max_size: int, max_connections: int) -> None:
        self.service = service
        self.timeout = timeout
        self.max_size = max_size
        self.max_connections = min(max_connections, _most_connections(max_connections))
        self.names = frozenset(service.functions)
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.is_ending = False
        self._signals: list[int] = []
        self.changed = asyncio.Event()
        self._state = b""
        self._state_until = 0.0

    async def run(self, path: str, grace: float) -> int:
        """As ``serve``."""
        loop = asyncio.get_running_loop()
        try:
            listener, place = listen(path, "a service")
        except OSError as error:
            raise ManifestError(f"--socket {path}: {error.strerror or error}") from None
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._on_signal, number)
            # asyncio has a socket class of its own kind only.
            accepting = await loop.create_unix_server(
                lambda: Connection(self), sock=_as_socket(listener.detach()), backlog=4096
            )
            logger.info(
                "%s is served at %s: %s", self.service.spec.name, path, ", ".join(sorted(self.names)) or "nothing"
            )
            watch = loop.create_task(self._watch())
            while not self._signals:
                await self._next_change(None)
            self.is_ending = True
            place.unlink()
            accepting.close()
            cut = await self._end(grace)
            watch.cancel()
        finally:
            listener.close()
            place.unlink()
            for number in (signal.SIGTERM, signal.SIGINT):  # once more would be in the middle of tearing down
                if loop.remove_signal_handler(number):
                    signal.signal(number, signal.SIG_IGN)
        return 128 + self._signals[0] if cut else 0

    def _on_signal(self, number: int) -> None:
        self._signals.append(number)
        self.changed.set()

    async def _next_change(self, seconds: float | None) -> None:
        """Wait until something changed, or so many seconds."""
        try:
            await asyncio.wait_for(self.changed.wait(), seconds)
        except TimeoutError:
            pass
        self.changed.clear()

    async def _end(self, grace: float) -> bool:
        """Let calls come to their end; true if some were given up."""
        loop = asyncio.get_running_loop()
        until, linger = loop.time() + grace, loop.time() + _LINGER
        for connection in list(self.connections):
            if not connection.has_called:
                connection.end_when_idle()
        while self.connections and len(self._signals) < 2:
            now = loop.time()
            if now >= until:
                break
            if now >= linger:
                for connection in list(self.connections):
                    connection.end_when_idle()
            await self._next_change(min(until, linger if now < linger else until) - now)
        cut = any(connection.is_busy for connection in self.connections)
        for connection in list(self.connections):
            connection.abort()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=_CLOSING)
        return cut

    async def _watch(self) -> None:
        """End connections that stand still in the middle of something."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(PATIENCE / 10)
            now = loop.time()
            for connection in list(self.connections):
                connection.end_if_stuck(now)

    def state(self) -> bytes:
        """What ``status().state`` says, looked up now and then only."""
        now = asyncio.get_running_loop().time()
        if now > self._state_until:
            self._state = self.service.status().state.encode()
            self._state_until = now + 0.1
        return self._state

    def about(self) -> dict[str, Any]:
        """What READY says."""
        spec = self.service.spec
        return {
            "pid": os.getpid(),
            "service": spec.name,
            "functions": sorted(self.names),
            "max_size": self.max_size,
            "in_flight": spec.workers * spec.concurrency,
        }


class Connection(asyncio.BufferedProtocol):
    """One client's connection.

    Args:
        server: whose it is.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._serving = Serving(server.max_size)
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._streams: dict[int, Stream[Any] | Iterator[Any]] = {}
        self._last_stream = 0
        self._has_begun = False  # the task of the call in progress has
        self._is_given_up = False  # the call is not to begin
        self._made_at = 0.0  # when its client connected
        self._heard_at = 0.0  # when something came last
        self._resumed_at = 0.0  # when it was listened to again
        self._unsent = 0  # bytes, as they were at `_taken_at`
        self._taken_at = 0.0
        self._is_paused = False
        self._is_closing = False

    # -- what asyncio calls ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody has connected."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(_HIGH_WATER)
        self._made_at = self._heard_at = asyncio.get_running_loop().time()
        server = self._server
        if server.is_ending or len(server.connections) >= server.max_connections + _TOLD_MORE:
            self._transport.abort()
            return
        server.connections.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where what comes belongs."""
        return self._serving.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Something came."""
        self._heard_at = asyncio.get_running_loop().time()
        try:
            for event in self._serving.buffer_updated(nbytes):
                if self._is_closing:
                    return
                if isinstance(event, bytes):
                    self._write(event)
                elif isinstance(event, Call):
                    self._begin(event)
                elif isinstance(event, Cancel):
                    self._give_up()
                elif isinstance(event, Ping):
                    self._write(self._serving.pong(event, self._server.state()))
                else:
                    self._load(event)
        except ProtocolError as error:
            self._refuse(str(error))
        except Exception:
            logger.exception("a connection")
            self.abort()

    def eof_received(self) -> bool:
        """The client says nothing more: it is not there any more, then."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is no more: nor is what was going on there."""
        self._is_closing = True
        self._server.connections.discard(self)
        self._server.changed.set()
        self._give_up()
        if self._streams:
            self._keep(asyncio.get_running_loop().create_task(self._close_streams()))

    def pause_writing(self) -> None:
        """The client does not read: so no more is read of it."""
        if self._transport is not None and not self._is_closing:
            self._is_paused = True
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It does again."""
        if self._transport is not None and not self._is_closing:
            self._is_paused = False
            self._resumed_at = asyncio.get_running_loop().time()
            self._transport.resume_reading()

    # -- ending ----------------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a call is in progress, or a stream was not read to its end."""
        return self._task is not None or bool(self._streams)

    @property
    def has_called(self) -> bool:
        """Whether its client ever did."""
        return self._serving.has_called

    def end_when_idle(self) -> None:
        """Take no more calls, and end when there is nothing in progress."""
        if not self.is_busy:
            self._close()

    def end_if_stuck(self, now: float) -> None:
        """End it if it has stood still for too long where its client has to go on."""
        if self._transport is None:
            return
        unsent = self._transport.get_write_buffer_size()
        if unsent != self._unsent or not unsent:
            self._unsent, self._taken_at = unsent, now
        silent = now - max(self._heard_at, self._resumed_at) > PATIENCE
        if unsent and now - self._taken_at > _READING:
            self._refuse(f"answers that were not read for {_READING:g} seconds")
        elif self._is_paused or self._is_closing:
            return  # nothing is heard of it
        elif now - self._made_at > PATIENCE and not self._serving.is_loaded:  # however often a byte came
            self._refuse(f"no greeting and LOAD within {PATIENCE:g} seconds")
        elif silent and self._serving.is_partial:
            self._refuse(f"a frame that did not go on for {PATIENCE:g} seconds")

    def _refuse(self, reason: str) -> None:
        logger.warning("a connection is ended: %s", reason)
        self.abort()

    def abort(self) -> None:
        """End it at once."""
        self._is_closing = True
        self._give_up()
        if self._transport is not None:
            self._transport.abort()

    def _close(self) -> None:
        """End it once what was written is sent."""
        self._is_closing = True
        if self._transport is not None:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    # -- calls -----------------------------------------------------------------------------------------------

    def _load(self, event: Load) -> None:
        server = self._server
        try:
            if len(server.connections) > server.max_connections:
                raise TooManyConnections(f"{server.max_connections} clients are connected, and no more may be")
            if messages.read_json(event.payload) is not None:
                raise DecodeError("LOAD is to be null here: the service is loaded already")
        except AtollError as error:
            described = messages.describe_error(error)
            report = {"phase": "start", "text": described["traceback"], "error": described}
            self._write(self._serving.error(messages.write_json(report)))
            self._close()
            return
        self._write(self._serving.ready(messages.write_json(server.about())))

    def _begin(self, event: Call) -> None:
        self._has_begun = self._is_given_up = False
        self._task = asyncio.get_running_loop().create_task(self._answer(event.payload))
        self._keep(self._task)

    def _give_up(self) -> None:
        """The call in progress, if there is one, is to end; it is answered all the same."""
        self._is_given_up = True
        if self._task is not None and self._has_begun:  # one that was cancelled before it began would say nothing
            self._task.cancel()

    async def _answer(self, payload: bytes) -> None:
        self._has_begun = True
        try:
            answer = self._serving.result(await self._outcome(payload))
        except _Failed as failed:
            answer = self._serving.error(failed.payload)
        self._task = None
        self._write(answer)
        if self._server.is_ending:
            self.end_when_idle()

    async def _outcome(self, payload: bytes) -> bytes:
        """The payload of a result.

        Raises:
            _Failed: it came to none.
        """
        try:
            if self._is_given_up:
                raise CallCancelled
            result = messages.write_json(await self._call(messages.read_request(payload)))
            if len(result) > wire.MAX_PAYLOAD:
                raise EncodeError(
                    f"a result of {len(result):,} bytes of JSON; at most {wire.MAX_PAYLOAD:,} can be passed"
                )
            return result
        except (asyncio.CancelledError, CallCancelled):
            raise _Failed(messages.write_error(CallCancelled("the call was cancelled"), "Cancelled")) from None
        except Exception as error:
            if not isinstance(error, AtollError):
                logger.exception("a call")
            raise _Failed(messages.write_error(error)) from None

    async def _call(self, request: messages.Request) -> Any:
        name, args = request.function, request.args
        timeout = self._server.timeout
        if request.timeout is not None:
            if request.timeout <= 0:
                raise CallTimeout(f"the deadline of a call of {name!r} had passed when it came")
            timeout = request.timeout if timeout is None else min(timeout, request.timeout)
        if name == NEXT:
            return await self._next(timeout, *args[:2])
        if name == CLOSE:
            return await self._close_stream(*args[:1])
        server = self._server
        if server.is_ending:
            raise ServiceClosed(f"service {server.service.spec.name!r} is ending, and takes no more calls")
        if name not in server.names:
            names = ", ".join(sorted(server.names))
            raise FunctionNotFound(
                f"service {server.service.spec.name!r} exposes no function {name!r:.100}; it exposes: {names}"
            )
        function = server.service.function(name)
        if timeout is not None:
            function = function.options(timeout=timeout)
        result = await function.aio(*args, **request.kwargs)
        if not request.is_stream:
            if isinstance(result, Stream):
                await result.aclose()
                raise EncodeError(f'{name!r} returned an iterator; ask for it with "stream": true')
            return result
        if not isinstance(result, Stream):
            try:
                result = iter(result)
            except TypeError:
                raise EncodeError(f"{name!r} returned nothing to iterate over, but a {type(result).__name__}") from None
        self._last_stream += 1
        self._streams[self._last_stream] = result
        return self._last_stream

    # -- streams ---------------------------------------------------------------------------------------------

    async def _next(self, timeout: float | None, number: Any = None, maximum: Any = _MAX_BATCH) -> Any:
        stream = self._streams.get(number) if isinstance(number, int) else None
        if stream is None:
            raise DecodeError(f"there is no stream {number!r:.100} on this connection, or it has ended")
        if not isinstance(maximum, int):
            raise DecodeError(f"found {maximum!r:.100}, expected how many items are wanted at most")
        maximum = max(1, min(maximum, _MAX_BATCH))
        try:
            if isinstance(stream, Stream):
                stream.timeout = timeout
                items, ended = await stream.take(maximum)
            else:
                items = list(itertools.islice(stream, maximum))
                ended = len(items) < maximum
        except BaseException:
            # It may be in the middle still, as where the call was cancelled; then nobody could close it any more.
            self._keep(asyncio.get_running_loop().create_task(self._end_stream(self._streams.pop(number, None))))
            raise
        if ended:
            self._streams.pop(number, None)
        return items, ended

    async def _close_stream(self, number: Any = None) -> None:
        stream = self._streams.pop(number, None) if isinstance(number, int) else None
        if isinstance(stream, Stream):
            stream.timeout = _CLOSING
            await stream.aclose()

    async def _close_streams(self) -> None:
        """Nobody reads them any more."""
        while self._streams:
            await self._end_stream(self._streams.popitem()[1])

    async def _end_stream(self, stream: Any) -> None:
        """Nobody reads it any more."""
        if isinstance(stream, Stream):
            stream.timeout = _CLOSING
            try:
                await stream.aclose()
            except Exception as error:  # noqa: BLE001  # also what its `finally` raises
                logger.info("a stream that nobody reads any more: %s", error)


class _Failed(Exception):
    """A call came to an error.

    Attributes:
        payload: of the frame that says so.
    """

    def __init__(self, payload: bytes) -> None:
        super().__init__()
        self.payload = payload


def _as_socket(descriptor: int) -> Any:
    import socket

    return socket.socket(fileno=descriptor)


def _most_connections(wanted: int) -> int:
    """How many connections this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft - _OTHER_DESCRIPTORS >= wanted + _TOLD_MORE:
        return wanted
    most = max(1, soft - _OTHER_DESCRIPTORS - _TOLD_MORE)
    logger.warning("%d connections at most, not %d: this process may have %d files open", most, wanted, soft)
    return most
