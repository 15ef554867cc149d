# SPDX-License-Identifier: Apache-2.0
"""One attempt at a call, with what belongs to it on the way: where it goes, what it carries, how it ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from atoll_worker.context import WITH_META
from atoll_worker.references import INVOKE
from atoll_worker.service import DESCRIBE
from atoll_worker.values import explain_unencodable

from ..errors import CallCancelled, FunctionNotFound
from . import tracing
from .channel import Channel, nesting
from .endings import UNTAKEN, check_idempotent, not_found

if TYPE_CHECKING:
    from atoll_worker.wire import Bytes

    from .options import CallOptions
    from .outs import Outs
    from .pool import Pool
    from .worker import Worker

_clock = time.monotonic

# Calls that are no function's of the service: not counted, so that metrics show the user's names alone.
_UNCOUNTED = (DESCRIBE, INVOKE)
# What calls of functions that there are not are counted under: their names are the callers' mistakes.
UNKNOWN = "(unknown)"


def shown(function: str, args: tuple[Any, ...]) -> str:
    """The name of a call for people: of a method of something borrowed, the method's."""
    return (args[1] or "__call__") if function == INVOKE else function


class Attempt:
    """One attempt at a call, with what belongs to it on the way."""

    def __init__(
        self,
        pool: Pool,
        function: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
        options: CallOptions | None,
        worker: Worker | None,
        trace: tracing.CallTrace | None,
        began: float | None = None,
    ) -> None:
        self.began = _clock() if began is None else began
        self.again = began is not None  # an attempt before had its turn, and nothing came of it
        self.pool = pool
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.timeout = timeout
        self.options = options
        self.worker = worker
        self.trace = trace
        outer = nesting.get()
        self.nest = None if outer is None else outer.find(pool, worker)
        self.channel: Channel | None = None
        self.depth = 0  # calls open on the channel before this one
        self.outcome = "refused"
        self.error: BaseException | None = None
        self.reserved = ""  # the function that is really called
        self.slack = 0.0  # seconds that it may take beside what its timeout allows
        self.kept = False  # the channel is given back by somebody else
        self.outs: Outs | None = None
        self._outer_progress: Any = None

    @property
    def deadline(self) -> float | None:
        return None if self.timeout is None else self.pool.deadline_of(self.began, self.timeout) + self.slack

    @property
    def is_background(self) -> bool:
        """Whether a thread of its own makes the call: then it need not go back to the worker that waits."""
        return self.options is not None and self.options.cancellation is not None

    @property
    def is_late(self) -> bool:
        deadline = self.deadline
        return deadline is not None and _clock() > deadline

    @property
    def was_cancelled(self) -> CallCancelled | None:
        """What to raise if the caller gave the call up."""
        cancellation = None if self.options is None else self.options.cancellation
        if cancellation is None or not cancellation.requested:
            return None
        error = CallCancelled(f"{self.pool.service}.{self.function} was cancelled ({cancellation.rung})")
        error.rung = cancellation.rung
        return error

    def encode(self, channel: Channel) -> tuple[Bytes, Sequence[Bytes]]:
        self.depth = channel.connection.conversation.depth
        options, worker = self.options, channel.worker
        meta: dict[str, Any] = {}
        if self.trace is not None:
            meta.update(self.trace.headers)
        if options is not None and options.on_progress is not None:
            meta["progress"] = True
        name, args, kwargs = self.reserved or self.function, self.args, self.kwargs
        if (meta or self.reserved) and self.worker is None and self.function not in worker.functions:
            raise not_found(self.pool.service, self.function, worker)
        if options is not None and options.retries:
            check_idempotent(self.pool.service, self.function, channel)
        if "out" in kwargs:
            from .outs import Outs

            self.outs = self.outs or Outs()
            kwargs = {**kwargs, "out": self.outs.lend(kwargs["out"], worker.loans)}
        if meta:
            name, args, kwargs = WITH_META, (meta, name, args, kwargs), {}
        encoder = channel.encoder
        try:
            payload: Bytes = encoder.encode((name, args, kwargs))
        except Exception as error:  # noqa: BLE001 - whatever it is, it says that an argument cannot cross
            if self.function == INVOKE:  # what the user passed, not what carries it
                self.args, self.kwargs = self.args[2], self.args[3]
            raise explain_unencodable(error, (("args", self.args), ("kwargs", self.kwargs))) from None
        return payload, encoder.take_buffers() if encoder.has_buffers else ()

    def begin(self) -> None:
        """About to send the call."""
        channel, options = self.channel, self.options
        assert channel is not None
        self._outer_progress = channel.on_progress
        channel.on_progress = None if options is None else options.on_progress
        if options is not None and options.cancellation is not None:
            number = channel.call_number + (not self.depth)  # the next one, unless it is within one
            what = f"{self.pool.service}.{self.function}"
            if not options.cancellation.begins(channel, number | self.depth << 48, what):
                channel.encoder.take_back()  # it will not be sent
                cancelled = self.was_cancelled
                assert cancelled is not None
                try:
                    raise cancelled
                finally:
                    del cancelled  # the error's traceback has this frame

    def end(self) -> None:
        """It was answered, or never will be."""
        channel, options = self.channel, self.options
        assert channel is not None
        channel.on_progress = self._outer_progress
        if options is not None and options.cancellation is not None:
            options.cancellation.ends()

    def give_back_kept(self) -> None:
        """Give the channel back, in the place of whoever called."""
        channel = self.channel
        assert channel is not None
        channel.used_at = _clock()
        if self.nest is not None:
            self.nest.turn.release()
        else:
            channel.owner = None
            self.pool.dispatcher.give(channel)

    def give_back(self) -> None:
        """Give the channel back, unless somebody else does."""
        if not self.kept:
            self.give_back_kept()

    def observe(self, series: Any) -> None:
        ended = _clock()
        if self.function not in _UNCOUNTED and self.outcome is not UNTAKEN:
            function = UNKNOWN if isinstance(self.error, FunctionNotFound) else self.function
            series[function, self.outcome].observe(ended - self.began, ended)
        if self.trace is not None:
            self.trace.end(self.outcome, self.error)
        self.error = None  # whose traceback has this attempt, and with it the arguments
