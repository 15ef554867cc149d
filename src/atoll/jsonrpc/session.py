# SPDX-License-Identifier: Apache-2.0
"""A conversation in JSON-RPC: messages arrive on one stream, are calls of a service, and are answered on another.

What always holds here: reading goes on whatever is being called, and whether or not anybody reads the answers; the
answer to a request is sent once; at the end of the stream what was asked is still answered. One thread reads, one
writes, everything else is on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import select
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from atoll_worker.json_codec import write_json

from ..errors import AtollError, EncodeError, FunctionNotFound
from ..pool.stream import Stream
from . import messages
from .framing import Framing, Malformed
from .messages import Id, Refused, Request

if TYPE_CHECKING:
    from ..client import Service

logger = logging.getLogger("atoll.jsonrpc")

_READ_SIZE = 1 << 16
# Bytes that may wait to be written before a stream waits for whoever reads.
_MOST_WAITING = 1 << 20

# Seconds between two looks whether somebody waits for the last answers; and for them to be written after a signal.
_LOOK_AGAIN = 0.5

# What a caller of the Language Server Protocol's adds to the parameters to be told of progress, and given items early.
_PROGRESS_TOKEN = "workDoneToken"  # noqa: S105
_ITEMS_TOKEN = "partialResultToken"  # noqa: S105


def serve(service: Service, framing: Framing, read_from: int, write_to: int, timeout: float | None = None) -> int:
    """Answer requests until the stream ends, or a signal says so. On the main thread.

    Args:
        service: what is called; it is started, and left open.
        framing: of both streams.
        read_from: descriptor that requests come from.
        write_to: descriptor that answers go to.
        timeout: seconds a call may take; None for the service's own limit.

    Returns:
        the exit status: 0 at the end of the stream; 1 if nobody reads the answers any more, or what came could not be
        taken apart; 128 and its number after a signal.

    Raises:
        AtollError: the service cannot be started.
    """
    session = Session(service, framing, timeout if timeout is not None else service.spec.timeout)
    return asyncio.run(session.run(read_from, write_to))


class Session:
    """One conversation.

    Args:
        service: what is called.
        framing: of the streams.
        timeout: seconds a call may take.
    """

    def __init__(self, service: Service, framing: Framing, timeout: float | None) -> None:
        self._service = service
        self._names = frozenset(service.functions)
        self._framing = framing
        self._timeout = timeout
        self._tasks: set[asyncio.Task[Any]] = set()
        self._by_id: dict[tuple[type, Id], asyncio.Task[Any]] = {}
        self._ended = asyncio.Event()
        self._status = 0
        self._is_given_up = False

    async def run(self, read_from: int, write_to: int) -> int:
        """As ``serve``."""
        loop = asyncio.get_running_loop()
        self._out = _Writer(write_to, loop, partial(self._end, 1))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, 128 + number)
        threading.Thread(target=self._read, args=(read_from, loop), name="atoll-jsonrpc-read", daemon=True).start()
        await self._ended.wait()
        while self._tasks:
            await asyncio.wait(self._tasks, timeout=_LOOK_AGAIN)
            if self._tasks and self._out.has_no_reader():
                self._end(1)
        self._out.finish()
        while await asyncio.to_thread(self._out.is_writing, _LOOK_AGAIN):
            if self._status >= 128:
                break  # who was told to end does not wait for somebody who does not read
        return self._status

    def _end(self, status: int) -> None:
        """Take no more requests; those that are on their way are given up if a signal said so, or nobody listens."""
        is_signal = status >= 128
        if is_signal or not self._ended.is_set() or self._out.is_broken:
            self._status = status
        self._ended.set()
        # Once: who is asked again is not given the time to end in order. A second signal means just that.
        if is_signal or (self._out.is_broken and not self._is_given_up):
            self._is_given_up = True
            for task in self._tasks:
                task.cancel()

    # -- reading ---------------------------------------------------------------------------------------------

    def _read(self, read_from: int, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            try:
                data = os.read(read_from, _READ_SIZE)
            except OSError as error:
                logger.warning("requests cannot be read: %s", error)
                data = b""
            try:
                loop.call_soon_threadsafe(self._take, data)
            except RuntimeError:
                return  # the loop is closed
            if not data:
                return

    def _take(self, data: bytes) -> None:
        if self._ended.is_set():
            return
        for one in self._framing.receive_data(data):
            if not isinstance(one, Malformed):
                self._take_message(one)
                continue
            code = messages.INVALID_REQUEST if one.is_json else messages.PARSE_ERROR
            self._send(messages.error_answer(None, code, one.reason))
            if one.is_final:
                self._end(1)
                return
        if not data:
            self._end(0)

    def _take_message(self, text: bytes) -> None:
        message = messages.read_message(text)
        if not isinstance(message, list):
            self._begin(message, self._send)
            return
        batch = _Batch(len(message), self._send_all)
        for one in message:
            self._begin(one, batch.add)

    def _begin(self, message: messages.One, answer: Callable[[dict[str, Any] | None], None]) -> None:
        """Begin with what a message asks for; ``answer`` is called once, with None if there is nothing to say."""
        if not isinstance(message, Request):
            answer(message.answer if isinstance(message, Refused) else None)
            return
        if message.method == messages.CANCEL:
            number = message.kwargs.get("id")
            task = self._by_id.get((type(number), number)) if isinstance(number, str | int | float) else None
            if task is not None:
                task.cancel()
            answer(None if message.is_notification else messages.result_answer(message.id, None))
            return
        key = (type(message.id), message.id)
        if not message.is_notification and message.id is not None:
            if key in self._by_id:
                reason = f"id: {message.id!r:.100} is that of another request, which is not answered yet"
                answer(messages.error_answer(message.id, messages.INVALID_REQUEST, reason))
                return
        elif message.is_notification and message.method.startswith("$/"):
            answer(None)  # such may be ignored, says the Language Server Protocol
            return
        task = asyncio.get_running_loop().create_task(self._answer_to(message))
        self._tasks.add(task)
        if not message.is_notification and message.id is not None:
            self._by_id[key] = task
        task.add_done_callback(partial(self._answered, message, key, answer))

    def _answered(
        self,
        request: Request,
        key: tuple[type, Id],
        answer: Callable[[dict[str, Any] | None], None],
        task: asyncio.Task[dict[str, Any]],
    ) -> None:
        self._tasks.discard(task)
        if self._by_id.get(key) is task:
            del self._by_id[key]
        if task.cancelled():
            said = messages.error_answer(request.id, messages.REQUEST_CANCELLED, f"{request.method} was cancelled")
        else:
            said = task.result()
        if not request.is_notification:
            answer(said)
            return
        if "error" in said:
            logger.warning("notification %s: %s", request.method, said["error"]["message"])
        answer(None)

    # -- calling ---------------------------------------------------------------------------------------------

    async def _answer_to(self, request: Request) -> dict[str, Any]:
        try:
            return messages.result_answer(request.id, await self._call(request))
        except AtollError as error:
            return messages.raised_answer(request.id, error)
        except Exception as error:
            logger.exception("request %s", request.method)
            return messages.raised_answer(request.id, error)

    async def _call(self, request: Request) -> Any:
        if request.method not in self._names:
            names = ", ".join(sorted(self._names))
            raise FunctionNotFound(
                f"service {self._service.spec.name!r} exposes no function {request.method!r}; it exposes: {names}"
            )
        kwargs = dict(request.kwargs)
        progress = _Progress(request.method, _token(kwargs, _PROGRESS_TOKEN), self._send)
        items_token = _token(kwargs, _ITEMS_TOKEN)
        function = self._service.function(request.method).options(
            timeout=self._timeout, on_progress=progress.report if progress.token is not None else None
        )
        try:
            result = await function.aio(*request.args, **kwargs)
            if isinstance(result, Stream):
                async with result:
                    return await self._items(result, items_token)
            return result
        finally:
            progress.end()

    async def _items(self, stream: Stream[Any], token: Id) -> list[Any]:
        """The items of a stream; none if they were given early, to who gave a token."""
        items: list[Any] = []
        async for item in stream:
            if token is None:
                items.append(item)
            else:
                write_json(item, "an item")  # or it would be an error nobody could attribute
                self._send(messages.progress_message(token, [item]))
                await self._out.drained()
        return items

    # -- writing ---------------------------------------------------------------------------------------------

    def _send(self, message: dict[str, Any] | None) -> None:
        if message is not None:
            self._out.write(self._framing.wrap(messages.write_message(message)))

    def _send_all(self, answers: list[dict[str, Any]]) -> None:
        if answers:
            self._out.write(self._framing.wrap(messages.write_message(answers)))


class _Batch:
    """Gathers the answers to several requests that came as one message."""

    def __init__(self, count: int, send: Callable[[list[dict[str, Any]]], None]) -> None:
        self._missing = count
        self._send = send
        self._answers: list[dict[str, Any]] = []

    def add(self, answer: dict[str, Any] | None) -> None:
        """The answer to one of them, None if there is none."""
        if answer is not None:
            self._answers.append(answer)
        self._missing -= 1
        if not self._missing:
            self._send(self._answers)


class _Progress:
    """Tells a caller how far a call is, in the form of the Language Server Protocol, with the figures beside.

    Attributes:
        token: the caller's; None if it did not ask.
    """

    def __init__(self, method: str, token: Id, send: Callable[[dict[str, Any]], None]) -> None:
        self.token = token
        self._method = method
        self._send = send
        self._has_begun = False

    def report(self, done: float, total: float | None, message: str | None) -> None:
        """The function says how far it is."""
        self._begin()
        value: dict[str, Any] = {"kind": "report", "done": done}
        if total is not None:
            value["total"] = total
            if total > 0:
                value["percentage"] = max(0, min(100, int(100 * done / total)))
        if message is not None:
            value["message"] = message
        try:
            write_json(value, "progress")
        except EncodeError as error:
            logger.warning("%s: %s", self._method, error)
            return
        self._send(messages.progress_message(self.token, value))

    def _begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._send(messages.progress_message(self.token, {"kind": "begin", "title": self._method}))

    def end(self) -> None:
        """The call is over."""
        if self._has_begun:
            self._send(messages.progress_message(self.token, {"kind": "end"}))


class _Writer:
    """Writes on a thread of its own, so that who does not read stops nobody but those who have much to say.

    Args:
        fd: where to.
        loop: that of ``drained``.
        on_break: called on the loop when nobody reads any more.

    Attributes:
        is_broken: nobody reads any more; what is written is thrown away.
    """

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop, on_break: Callable[[], None]) -> None:
        self.is_broken = False
        self._fd = fd
        self._loop = loop
        self._on_break = on_break
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._waiting = 0  # bytes
        self._drained = asyncio.Event()
        self._drained.set()
        self._thread = threading.Thread(target=self._run, name="atoll-jsonrpc-write", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Have this written. On the loop."""
        self._waiting += len(data)
        if self._waiting > _MOST_WAITING:
            self._drained.clear()
        self._queue.put(data)

    def has_no_reader(self) -> bool:
        """Whether it is known that nobody will read what is written."""
        if not self.is_broken:
            poll = select.poll()
            poll.register(self._fd, 0)
            self.is_broken = any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
        return self.is_broken

    async def drained(self) -> None:
        """Wait until little waits to be written."""
        await self._drained.wait()

    def finish(self) -> None:
        """Nothing more is to be written."""
        self._queue.put(None)

    def is_writing(self, patience: float) -> bool:
        """Whether something is left to be written after so many seconds. Not on the loop."""
        self._thread.join(patience)
        return self._thread.is_alive()

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            try:
                rest = memoryview(b"" if self.is_broken else data)
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
            except OSError as error:
                self.is_broken = True
                logger.info("answers cannot be written any more: %s", error)
                self._tell(self._on_break)
            self._tell(self._written, len(data))

    def _tell(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            pass  # the loop is closed

    def _written(self, size: int) -> None:
        self._waiting -= size
        if self._waiting <= _MOST_WAITING:
            self._drained.set()


def _token(kwargs: dict[str, Any], name: str) -> Id:
    """A token among the parameters, which is none of the function's."""
    token = kwargs.pop(name, None)
    return token if isinstance(token, str | int) and not isinstance(token, bool) else None
