# SPDX-License-Identifier: Apache-2.0
"""The host's end of one data connection of a worker, and what the worker calls back over it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from atoll_worker import wire
from atoll_worker.channel import describe_raised
from atoll_worker.completion import is_coroutine
from atoll_worker.context import PROGRESS
from atoll_worker.references import INVOKE, READ
from atoll_worker.values import Decoder, Encoder, explain_unencodable

from ..errors import DecodeError, EncodeError

if TYPE_CHECKING:
    from atoll_worker.connection import Connection
    from atoll_worker.wire import Bytes

    from .worker import Worker

_LABELS = (("args", 1), ("kwargs", 2))


class Channel:
    """One data connection. For one call at a time.

    Attributes:
        worker: whose it is.
        index: which of the worker's connections it is.
        retired: it is to take no further call.
        owner: the event loop whose task has it; None if a thread has it, or nobody.
        look_at: once this many calls were answered, the supervisor wants to know.
        on_progress: what the caller wants to be told with; None for nothing.
        nests: the callbacks in progress, innermost last.
    """

    __slots__ = (
        "calls",
        "connection",
        "decoder",
        "encoder",
        "index",
        "look_at",
        "nests",
        "on_progress",
        "owner",
        "retired",
        "used_at",
        "worker",
    )

    def __init__(self, worker: Worker, index: int, connection: Connection) -> None:
        self.worker = worker
        self.index = index
        self.connection = connection
        self.encoder = Encoder(worker.lending, worker.loans)
        self.encoder.announce = connection.announce
        self.encoder.for_arguments(True)
        self.decoder = Decoder(
            checked=True, side="the host", lending=worker.lending, read_only=True, loans=worker.loans
        )
        self.retired = False
        self.owner: object = None
        self.on_progress: Callable[[float, float | None, str | None], object] | None = None
        self.nests: list[Nesting] = []
        self.calls = 0
        self.look_at = 1 << 62
        self.used_at = 0.0

    @property
    def call_number(self) -> int:
        """Number of the outermost call in progress, or of the last one."""
        return self.connection.conversation.call_id & wire.CALL_NUMBER

    # -- callbacks -------------------------------------------------------------------------------------------

    def callback(self, payload: Bytes, buffers: Sequence[Bytes]) -> Callable[[], Any]:
        """What the worker called, ready to be run; what decoding raises, it raises.

        Running it may return a coroutine.
        """
        try:
            name, args, kwargs = self.decoder.decode(payload, buffers, _LABELS)
            function = self._function(name)
        except Exception as error:  # noqa: BLE001 - the worker is told
            refusal = error if isinstance(error, DecodeError) else DecodeError(f"a malformed call: {error!r}")

            def refuse() -> None:
                raise refusal

            return refuse
        return lambda: function(*args, **kwargs)

    def _function(self, name: object) -> Callable[..., Any]:
        if name == INVOKE:
            return self.worker.lending.serve
        if name == READ:
            return self.worker.lending.read
        if name == PROGRESS:
            return self._progress
        raise DecodeError(f"the host has no function {name!r}")

    def _progress(self, done: float, total: float | None, message: str | None) -> object:
        if self.on_progress is not None:
            result = self.on_progress(done, total, message)
            if is_coroutine(result):
                return result  # to be awaited
        return None

    def encode_result(self, result: object) -> tuple[int, Bytes, Sequence[Bytes]]:
        """The answer to a callback that returned: kind, payload, buffers."""
        encoder = self.encoder
        encoder.for_arguments(False)
        try:
            return wire.RESULT, encoder.encode(result), encoder.take_buffers()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it says that the result cannot cross
            message = str(explain_unencodable(error, (("result", result),)))
            return self.encode_described({"atoll": "EncodeError", "message": message})
        finally:
            encoder.for_arguments(True)

    def encode_error(self, error: BaseException) -> tuple[int, Bytes, Sequence[Bytes]]:
        """The answer to a callback that raised: kind, payload, buffers."""
        if isinstance(error, (DecodeError, EncodeError)) and error.__traceback__ is None:
            return self.encode_described({"atoll": type(error).__name__, "message": str(error)})
        return self.encode_described(describe_raised(error))

    def encode_described(self, described: dict[str, Any]) -> tuple[int, Bytes, Sequence[Bytes]]:
        """An ERROR: kind, payload, buffers."""
        return wire.ERROR, self.encoder.encode(described), self.encoder.take_buffers()


class Nesting:
    """A callback in progress: calls that it makes to the same pool go back over the channel it came from, where the
    worker's thread waits for nothing else.

    Attributes:
        channel: where it came from.
        pool: identity of the pool it came from.
        depth: how many calls are open, the callback included.
        turn: held by the nested call that is in progress.
        outer: the callback around it.
    """

    __slots__ = ("channel", "depth", "ended", "outer", "pool", "turn")

    def __init__(self, channel: Channel, pool: object, outer: Nesting | None) -> None:
        self.channel = channel
        self.pool = pool
        self.depth = channel.connection.conversation.depth
        self.turn: threading.Lock | threading.Semaphore = threading.Lock()
        self.outer = outer
        self.ended = False

    def find(self, pool: object, worker: Worker | None) -> Nesting | None:
        """The innermost callback in progress that came from this pool; and from this worker, if one is named."""
        nesting: Nesting | None = self
        while nesting is not None:
            if nesting.pool is pool and not nesting.ended and worker in (None, nesting.channel.worker):
                return nesting
            nesting = nesting.outer
        return None


# The callback that the present code runs in. A context variable: coroutines and `asyncio.to_thread` carry it along.
nesting: ContextVar[Nesting | None] = ContextVar("atoll_nesting", default=None)


def _after_fork() -> None:
    nest = nesting.get()
    nesting.set(None)  # the parent's
    while nest is not None:  # left by what goes on here; nobody waits for threads that only the parent has
        nest.turn = threading.Semaphore(1 << 20)
        nest = nest.outer


os.register_at_fork(after_in_child=_after_fork)
