# SPDX-License-Identifier: Apache-2.0
"""A described exception (``errors.describe_exception``) -> an exception to raise on this side.

No class path from the other side is ever imported: classes are builtins, or were registered here. Nothing of a
registered class's or builtin's ``__init__`` needs to succeed.
"""

from __future__ import annotations

import ast
import builtins
import linecache
from types import CodeType, TracebackType

from .errors import RemoteError
from .registry import by_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Raised on this side these would not mean "the function failed" but do something: end the program, end a loop.
_NEVER_AS_THEMSELVES = (StopIteration, StopAsyncIteration, GeneratorExit, SystemExit, KeyboardInterrupt)

_BaseExceptionGroup = getattr(builtins, "BaseExceptionGroup", None)  # from Python 3.11 on

_classes: dict[tuple[str, type[BaseException] | None], type[RemoteError]] = {}


def rebuild(described: dict[str, Any], service: str, pid: int, place: str) -> RemoteError:
    """The exception to raise for what the other side described.

    Args:
        described: see ``describe_exception``; its ``text`` is the traceback as the other side printed it.
        service: name of the service.
        pid: process id of the other side.
        place: what to call the other side in the traceback.
    """
    error = _rebuild_one(described, service, pid, place)
    error.remote_traceback = str(described.get("text", ""))
    try:
        return error
    finally:
        del error  # or the frames of its traceback would keep it, and it them: until the next collection


def _rebuild_one(described: dict[str, Any], service: str, pid: int, place: str) -> RemoteError:
    error = _instance(described, [_rebuild_one(one, service, pid, place) for one in described.get("exceptions", ())])
    name, module = str(described["type"]), str(described["module"])
    error.type_name = name if module == "builtins" else f"{module}.{name}"
    error.service = service
    error.pid = pid
    for note in described["notes"]:
        if hasattr(error, "add_note"):
            error.add_note(note)
        else:  # before Python 3.11
            error.__dict__.setdefault("__notes__", []).append(note)
    error.__traceback__ = _traceback(described["frames"], place)
    if "context" in described:
        error.__context__ = _rebuild_one(described["context"], service, pid, place)
    if "cause" in described:
        error.__cause__ = _rebuild_one(described["cause"], service, pid, place)
    error.__suppress_context__ = described["suppress_context"]
    try:
        return error
    finally:
        del error  # as above


def _instance(described: dict[str, Any], members: list[RemoteError]) -> RemoteError:
    args = tuple(described["args"])
    original = _original_class(described)
    cls = _class_for(str(described["type"]), original)
    message = str(described["message"])
    error: RemoteError
    if original is not None and _BaseExceptionGroup is not None and issubclass(original, _BaseExceptionGroup):
        if not members:
            original, cls = None, _class_for(str(described["type"]), None)
        else:
            args = (str(args[0]) if args else message, members)
    try:
        error = cls.__new__(cls, *args)
        if original is not None and original.__module__ == "builtins":
            # Fills what is not in `args`: OSError.errno, UnicodeDecodeError.start, SyntaxError.lineno ...
            original.__init__(error, *args)
    except Exception:
        cls = _class_for(str(described["type"]), None)
        error = cls.__new__(cls, message)
        args = (message,)
    error.args = args
    for key, part in described["state"].items():
        if isinstance(key, str) and not key.startswith("__"):
            try:
                setattr(error, key, part)
            except Exception:  # noqa: S112 - a read-only property; the message is what matters
                continue
    # What the original's own __str__ made of its arguments, whether or not the class is known here.
    try:
        differs = BaseException.__str__(error) != message if original is None else str(error) != message
    except Exception:
        differs = True
    if differs:
        error._message = message  # type: ignore[attr-defined]
    return error


def _original_class(described: dict[str, Any]) -> type[BaseException] | None:
    """The registered class, or the nearest builtin ancestor."""
    registered = described.get("registered")
    if isinstance(registered, str):
        known = by_name(registered)
        if known is not None and issubclass(known.cls, BaseException):
            return None if issubclass(known.cls, _NEVER_AS_THEMSELVES) else known.cls
    for name in described["bases"]:
        cls = getattr(builtins, name, None)
        if isinstance(cls, type) and issubclass(cls, BaseException):
            if issubclass(cls, _NEVER_AS_THEMSELVES) or cls in (BaseException, Exception):
                return None
            if cls is _BaseExceptionGroup:
                return None  # may hold what must not be raised here
            return cls
    return None


def _class_for(name: str, original: type[BaseException] | None) -> type[RemoteError]:
    key = (name, original)
    cls = _classes.get(key)
    if cls is None:
        bases = (RemoteError,) if original is None else (RemoteError, original)
        namespace = {
            "__module__": "atoll.remote",
            "__qualname__": name,
            "__doc__": f"{name}, raised on the other side.",
            "__str__": _str,
            "__reduce__": _reduce,
        }
        if original is not None and issubclass(original, MemoryError):
            namespace["__new__"] = Exception.__new__  # its own makes no objects of a class with two bases
        try:
            cls = type(name.rpartition(".")[2], bases, namespace)
        except TypeError:  # a registered class that cannot be derived from, or not together with RemoteError
            cls = type(name.rpartition(".")[2], (RemoteError,), namespace)
        if len(_classes) < 10_000:  # a worker that makes up names must not fill the host's memory
            _classes[key] = cls
    return cls


def _str(self: Any) -> str:
    message = self.__dict__.get("_message")
    if message is not None:
        return str(message)
    # The class made here comes first, then RemoteError and its bases, then the original.
    for base in type(self).__mro__[1:]:
        if "__str__" in base.__dict__ and not issubclass(base, RemoteError):
            if base is BaseException and any(
                "__str__" in later.__dict__ for later in type(self).__mro__ if later not in (base, object, type(self))
            ):
                continue
            return str(base.__dict__["__str__"](self))
    return BaseException.__str__(self)


def _reduce(self: Any) -> tuple[Any, ...]:
    """Pickled (by a test runner, or another pool) as a plain RemoteError that says the same."""
    state = {key: self.__dict__.get(key) for key in ("type_name", "remote_traceback", "service", "pid")}
    return _unpickle, (type(self).__name__, str(self), state)


def _unpickle(name: str, message: str, state: dict[str, Any]) -> RemoteError:
    error = RemoteError(message)
    error.__dict__.update(state)
    return error


# -- frames --------------------------------------------------------------------------------------------------------


def _traceback(frames: list[Any], boundary: str) -> TracebackType | None:
    """A traceback whose entries show the remote frames, below one that marks the border between the processes."""
    result: TracebackType | None = None
    for filename, line, function, text in reversed([(boundary, 1, "call", ""), *frames]):
        result = _entry(str(filename), int(line), str(function), str(text), result)
    try:
        return result
    finally:
        del result  # its frames lead back to this one


def _without_columns(source: str) -> CodeType:
    """Code that knows its lines only: Python would underline its columns in the remote line."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.stmt, ast.expr)):
            node.col_offset = node.end_col_offset = -1
    return compile(tree, "<atoll>", "exec")


_RAISING = _without_columns("raise LookupError")


def _entry(filename: str, line: int, function: str, text: str, below: TracebackType | None) -> TracebackType | None:
    names = (
        {"co_name": function, "co_qualname": function} if hasattr(_RAISING, "co_qualname") else {"co_name": function}
    )
    code: CodeType = _RAISING.replace(co_filename=filename, co_firstlineno=max(line, 1), **names)  # type: ignore[arg-type]
    try:
        exec(code, {"__name__": "atoll.remote"})  # noqa: S102 - the code is the one raise statement above
    except LookupError as error:
        own = error.__traceback__
        assert own is not None
        frame = own.tb_next
        assert frame is not None
        if text and not linecache.getline(filename, line):
            # A file that only the worker can read, such as a notebook's cell: lend the one line that is shown.
            cached = linecache.cache.get(filename)
            lines = list(cached[2]) if cached is not None and len(cached) == 4 else []
            lines += ["\n"] * (line - len(lines)) if line < 100_000 else []
            if len(lines) >= line:
                lines[line - 1] = text + "\n"
                linecache.cache[filename] = (1, None, lines, filename)
        try:
            return TracebackType(below, frame.tb_frame, frame.tb_lasti, max(line, 1))
        finally:
            del own, frame, below
    return below
