# SPDX-License-Identifier: Apache-2.0
"""What user code says through ``logging`` goes to the host as records, with level, logger, time, thread and call.

``logging`` takes milliseconds to import, so it is not imported here: when user code imports it, it is made ready.

No handler is added anywhere. Had the root logger one, a user's ``logging.basicConfig(...)`` would do nothing. Instead
the step that hands a record to handlers, ``Logger.callHandlers``, is another one:

- A record goes to the host if it reaches the root logger, or a handler that prints it on this process's standard output
  or error; then that handler is passed over, so that what is said arrives once, with its level.
- All other handlers, such as files, get what they always get. A logger that keeps its records to itself
  (``propagate = False``) and to such handlers keeps them from the host too.
- A logger's level decides as always. The root logger's, WARNING elsewhere, is what the host's logger lets through,
  until user code sets another. What the host's logger does not let through is not sent, and not printed either.

In a child that user code forked, everything is as without this module. Whatever goes wrong here never reaches the code
that logs. What does not belong here: how bytes reach the host.
"""

from __future__ import annotations

import os
import sys
from _thread import _local

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from logging import Handler, Logger, LogRecord
    from types import ModuleType
    from typing import Any, Callable, List, Optional, Sequence, Tuple

    Send = Callable[[int, bytes], object]

# Characters of a message, of an exception's text, and of any name, that cross.
MAX_MESSAGE = 20_000
MAX_NAME = 300


class _State:
    """Where records go. One for the process, since ``logging`` is one too."""

    def __init__(self) -> None:
        self.send: Optional[Send] = None
        self.current_call: Callable[[], int] = int
        self.level = 0
        self.pid = 0
        self.root_level: Optional[int] = None  # what was set here on the root logger
        self.is_hooked = False
        # Set while a thread delivers a record: what its arguments say while they become text is not delivered.
        self.delivering = _local()


_state = _State()


def install(send: Send, level: int, current_call: Callable[[], int]) -> None:
    """Have records sent to the host from now on, also if ``logging`` is imported later. Again, in a process that was
    forked from one that had it, it replaces what was given before.

    Args:
        send: gets the number of the call and a payload, a pickled tuple that ``atoll.processes.records`` reads. It is
            called on any thread, also from finalizers: it must not wait for a lock that the same thread may hold.
        level: the level from which on the host's logger lets records through.
        current_call: the number of the call that the calling code belongs to, 0 if to none.
    """
    _state.send = send
    _state.current_call = current_call
    _state.level = level
    _state.pid = os.getpid()
    logging = sys.modules.get("logging")
    if logging is not None and hasattr(logging, "captureWarnings"):  # imported, to its end
        _hook(logging)
        set_level(level)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def set_level(level: int) -> None:
    """The host's logger lets through records from ``level`` on. The root logger's level follows, unless user code has
    set another."""
    _state.level = level
    logging = sys.modules.get("logging")
    if logging is not None and _state.is_hooked:
        root = logging.getLogger()
        if root.level == (logging.WARNING if _state.root_level is None else _state.root_level):
            _state.root_level = level
            root.setLevel(level)


def follow_level(level: int) -> None:
    """The host says, now and then, what its logger lets through. Never raises: user code may have changed logging."""
    if level != _state.level:
        try:
            set_level(level)
        except Exception:
            pass  # the next record is sent by the level as it is known


# -- when logging is imported --------------------------------------------------------------------------------------


class _Finder:
    """Stands first on ``sys.meta_path`` until ``logging`` is imported."""

    def find_spec(
        self, name: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
    ) -> Optional[ModuleSpec]:
        if name != "logging":
            return None
        for finder in sys.meta_path:
            find: Optional[Callable[..., Optional[ModuleSpec]]] = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find is not None and finder is not self else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """Runs the module as its own loader does, and then makes it ready. Nobody gets to see it afterwards."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # for who looks for the module without importing it

    def create_module(self, spec: ModuleSpec) -> Optional[ModuleType]:
        module: Optional[ModuleType] = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        loader = module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = loader
        loader.exec_module(module)
        try:
            sys.meta_path.remove(self._finder)
        except ValueError:
            pass  # code that put the list in order
        try:
            _hook(module)
            set_level(_state.level)
        except Exception:
            pass  # a module of the user's own of this name, say


def _hook(logging: Any) -> None:
    if _state.is_hooked:
        return
    original = logging.Logger.callHandlers

    def callHandlers(self: Logger, record: LogRecord) -> None:
        if not _deliver(logging, self, record):
            original(self, record)

    callHandlers.__doc__ = original.__doc__
    logging.Logger.callHandlers = callHandlers
    _state.is_hooked = True


# -- a record ------------------------------------------------------------------------------------------------------


def _deliver(logging: Any, logger: Logger, record: LogRecord) -> bool:
    """Do all that is to be done with a record; False if that is what it would be without this module."""
    send = _state.send
    delivering = _state.delivering
    if send is None or getattr(delivering, "now", False) or os.getpid() != _state.pid:
        return False
    delivering.now = True
    try:
        handlers, crosses = _handlers_of(logging, logger)
        if not crosses:
            return False
        if record.levelno >= _state.level:
            send(_call_number(), describe(record))
    except Exception:
        return False
    finally:
        delivering.now = False
    for handler in handlers:
        if record.levelno >= handler.level:
            handler.handle(record)
    return True


def _call_number() -> int:
    try:
        return _state.current_call()
    except Exception:
        return 0  # the thread belongs to none, or to several


def _handlers_of(logging: Any, logger: Logger) -> Tuple[List[Handler], bool]:
    """The handlers that are to get a record of this logger, and whether the host is."""
    handlers: List[Handler] = []
    prints = False
    current: Optional[Logger] = logger
    while current is not None:
        for handler in current.handlers:
            if _prints(logging, handler):
                prints = True
            else:
                handlers.append(handler)
        if not current.propagate:
            # With no handler at all, it would be printed as a last resort.
            return handlers, prints or current is logging.root or not handlers
        current = current.parent
    return handlers, True


def _prints(logging: Any, handler: Any) -> bool:
    """Whether a handler writes to this process's standard output or error."""
    if isinstance(handler, logging.StreamHandler):
        stream = getattr(handler, "stream", None)
    else:
        stream = getattr(getattr(handler, "console", None), "file", None)  # as rich's has it
    return stream is not None and (
        stream is sys.stderr or stream is sys.stdout or stream is sys.__stderr__ or stream is sys.__stdout__
    )


def describe(record: LogRecord) -> bytes:
    """A record as it crosses: a pickled tuple of plain values, whatever user code put into the record.

    Level, its name, logger, time in seconds since the epoch, thread, message, text of the exception and of the stack,
    file, line, function.
    """
    from _pickle import dumps  # it imports others, and takes milliseconds

    return dumps(
        (
            int(record.levelno),
            _text(record.levelname, MAX_NAME),
            _text(record.name, MAX_NAME),
            float(record.created),
            _text(record.threadName, MAX_NAME),
            _message(record),
            _exception(record),
            _text(record.pathname, MAX_NAME),
            int(record.lineno or 0),
            _text(record.funcName, MAX_NAME),
        ),
        5,
    )


def _text(value: object, limit: int) -> str:
    """At most ``limit`` characters of a value's text; of class ``str``, not of one derived from it."""
    if value is None:
        return ""
    text = str.__str__(str(value))
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()  # half a pair that no handler could write
    if len(text) <= limit:
        return text
    half = (limit - 40) // 2  # how it begins and how it ends
    return f"{text[:half]} ... {len(text) - 2 * half} characters ... {text[-half:]}"


def _message(record: LogRecord) -> str:
    try:
        return _text(record.getMessage(), MAX_MESSAGE)
    except Exception as error:
        try:
            said = _text(record.msg, MAX_MESSAGE // 2) if isinstance(record.msg, str) else type(record.msg).__name__
            arguments = len(record.args or ())
            return f"{said} (could not be put together with its {arguments} arguments: {_text(error, MAX_NAME)})"
        except Exception:
            return f"a message that could not be put together: {type(error).__name__}"


def _exception(record: LogRecord) -> str:
    parts: List[str] = []
    try:
        if record.exc_text:
            parts.append(_text(record.exc_text, MAX_MESSAGE))
        elif record.exc_info and record.exc_info[0] is not None:
            from traceback import format_exception

            parts.append(_text("".join(format_exception(*record.exc_info)).rstrip("\n"), MAX_MESSAGE))
    except Exception as error:
        parts.append(f"an exception that could not be described: {type(error).__name__}")
    try:
        if record.stack_info:
            parts.append(_text(record.stack_info, MAX_MESSAGE))
    except Exception:
        pass  # the message is what matters
    return "\n".join(parts)


# -- for services --------------------------------------------------------------------------------------------------


class _Log:
    """A service's own logger: ``logging``'s root logger, which the host knows by the name of the service. ``logging``
    is imported when it is first used."""

    def __init__(self) -> None:
        self.__doc__ = type(self).__doc__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        import logging

        return getattr(logging.getLogger(), name)

    def __repr__(self) -> str:
        return "<log of this service>"


if TYPE_CHECKING:
    log: Logger
else:
    log = _Log()
