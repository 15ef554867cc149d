# SPDX-License-Identifier: Apache-2.0
"""What user code in a worker can ask and say during a call: ``host``, ``progress``, ``cancelled``.

The call that code belongs to is known by a context variable, so it is right in threads that serve calls, in coroutines,
and in what ``asyncio.to_thread`` runs. Code on a thread of its own belongs to the one call in progress, if there is
one."""

from __future__ import annotations

from _contextvars import ContextVar
from time import monotonic

from .completion import complete, is_coroutine, on_thread
from .errors import AtollError
from .references import CALLABLE as _CALLABLE
from .references import INVOKE, NO_CALL, Lending, RemoteCallable, RemoteIterator, RemoteMethod, RemoteObject
from .references import ITERATOR as _ITERATOR
from .references import OBJECT as _OBJECT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Awaitable, Callable, Dict, List, NoReturn, Optional, Tuple

    from .channel import Channel
    from .references import Target

PROGRESS = "__progress__"
# Calls a function with what else the caller said of the call: (meta, name, args, kwargs).
WITH_META = "__with_meta__"
# Calls a function for many items: (name, items, whether each is a tuple of arguments, seconds).
MAP = "__map__"

current_channel: ContextVar[Optional[Channel]] = ContextVar("atoll_channel", default=None)

# All channels of this worker; empty in a process that is none.
channels: List[Channel] = []


def is_worker() -> bool:
    """Whether this process is a worker of atoll: whether it has a host."""
    return bool(lendings)


def channel_now() -> Channel:
    """The channel of the call that the calling code belongs to.

    Raises:
        AtollError: there is none, or it cannot be told which.
    """
    channel = current_channel.get()
    if channel is not None:
        return channel
    if not channels:
        raise AtollError("this works in a worker only, and this process is none")
    busy = [one for one in channels if one.call_number]
    if len(busy) == 1:
        return busy[0]
    if not busy:
        raise AtollError(NO_CALL)
    raise AtollError(
        f"{len(busy)} calls are in progress, and this thread belongs to none of them: start it with "
        "contextvars.copy_context().run"
    )


def call_id_now() -> int:
    """What tells the call that the calling code belongs to from others of this worker: its number, with the index of
    its connection above 48 bits; 0 outside of a call."""
    channel = current_channel.get()
    if channel is None:
        busy = [one for one in channels if one.call_number]
        if len(busy) != 1:
            return 0
        channel = busy[0]
    return channel.call_number and channel.call_number | channel.index << 48


class WorkerLending(Lending):
    """What a worker lends to its host, and the host to it."""

    def __init__(self, give_back: Callable[[int, int], None]) -> None:
        super().__init__(
            "the host",
            {_CALLABLE: RemoteCallable, _OBJECT: RemoteObject, _ITERATOR: RemoteIterator},
            _no_names,
        )
        self._give_back = give_back

    def invoke(self, target: Target, method: Optional[str], args: Any, kwargs: Any) -> Any:
        return channel_now().ask(INVOKE, (target, method, args, kwargs), {})

    def invoke_async(self, target: Target, method: Optional[str], args: Any, kwargs: Any) -> Awaitable[Any]:
        return on_thread(self.invoke, target, method, args, kwargs)

    def serve(self, target: Target, method: Optional[str], args: Any, kwargs: Any) -> Any:
        result = super().serve(target, method, args, kwargs)
        return complete(result) if is_coroutine(result) else result

    def give_back(self, number: int, received: int) -> None:
        self._give_back(number, received)


def _no_names(name: str) -> NoReturn:
    raise LookupError(f"a worker has no object {name!r}")


class HostObject:
    """An object that the host gave to its service by name: its public methods can be called, or awaited with
    ``.aio``."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> RemoteMethod:
        if method.startswith("_"):
            raise AttributeError(f"{method!r}: only public methods of a host object can be called")
        return RemoteMethod(_lending(), "host:" + self._name, method)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _lending().invoke("host:" + self._name, None, args, kwargs)

    def __repr__(self) -> str:
        return f"<host object {self._name!r}>"


class Host:
    """``host.name`` is what the host gave as ``host={"name": ...}``."""

    def __getattr__(self, name: str) -> HostObject:
        if name.startswith("_"):
            raise AttributeError(name)
        return HostObject(name)

    def __getitem__(self, name: str) -> HostObject:
        return HostObject(name)

    def __repr__(self) -> str:
        return "<the host>"


host = Host()


def _lending() -> Lending:
    if not lendings:
        raise AtollError("this works in a worker only, and this process is none")
    return lendings[0]


# The one of this worker; empty in a process that is none.
lendings: List[Lending] = []


def progress(done: float, total: Optional[float] = None, message: Optional[str] = None) -> None:
    """Tell the caller how far this call has come: it arrives at ``.options(on_progress=...)``, before this returns.

    Does nothing where the caller did not ask for it, and outside of a worker.

    Args:
        done: how much is done, in any unit.
        total: how much there is to do, in the same unit.
        message: what is being done.
    """
    if not channels:
        return
    channel = channel_now()
    meta = channel.meta
    if meta is not None and meta.get("progress"):
        channel.ask(PROGRESS, (done, total, message), {})


def cancelled() -> bool:
    """Whether the caller of this call wants it to end, or its deadline has passed. Code that looks gets a moment to
    return by itself before it is interrupted."""
    if not channels:
        return False
    channel = channel_now()
    return channel.concerns(channel.cancelled_call) or (channel.deadline != 0.0 and monotonic() >= channel.deadline)


class Calls:
    """The functions that every worker has beside those of its service."""

    def __init__(self, functions: Dict[str, Callable[..., Any]]) -> None:
        self._functions = functions

    def with_meta(self, meta: Dict[str, Any], name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """Call a function whose caller said more of the call: ``progress`` (wanted or not), ``traceparent``."""
        channel = channel_now()
        before, channel.meta = channel.meta, meta
        try:
            function = self._functions[name]
            traceparent = meta.get("traceparent")
            if traceparent is None:
                return function(*args, **kwargs)
            from .tracing import use

            with use(traceparent, meta.get("tracestate")):
                return function(*args, **kwargs)
        finally:
            channel.meta = before

    def map(self, name: str, items: List[Any], spread: bool, seconds: float) -> Any:
        """Call a function for each item, until all are done, one raises, or it took ``seconds``.

        Returns:
            the results, and what was raised by the item after them, described, or None.
        """
        from time import perf_counter

        from .channel import describe_raised

        function = self._functions[name]
        results: List[Any] = []
        append = results.append
        until = perf_counter() + seconds
        try:
            if spread:
                for item in items:
                    append(function(*item))
                    if perf_counter() > until:
                        break
            else:
                for item in items:
                    append(function(item))
                    if perf_counter() > until:
                        break
        except Exception as error:
            return results, describe_raised(error)
        return results, None
