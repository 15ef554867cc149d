# SPDX-License-Identifier: Apache-2.0
"""Exceptions as data, both ways, and the errors that both sides share.

What always holds here: describing an exception never raises and never imports anything named by the exception;
everything described is made of plain values and bounded in size. What does not belong here: raising a described
exception again (the host does that, in ``atoll.pool.remote_error``).
"""

from __future__ import annotations

from .registry import by_class

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Callable, Dict, List, Optional, Tuple


class AtollError(Exception):
    """Base of every error that atoll itself raises."""


class ValuesError(AtollError):
    """A value could not be turned into bytes, or bytes into a value."""


class EncodeError(ValuesError, TypeError):
    """A value cannot be passed. The message names the exact part, such as ``args[1]['cfg'].lock``."""


class DecodeError(ValuesError, ValueError):
    """Received bytes do not describe a value that this side admits."""


class ProtocolError(AtollError):
    """The rules of the wire were broken."""


class LocalProtocolError(ProtocolError):
    """This side tried to do what the wire does not allow in the present state."""


class RemoteProtocolError(ProtocolError):
    """The other side sent what the wire does not allow: a malformed frame, or one out of turn."""


# -- exceptions as data --------------------------------------------------------------------------------------------

MAX_TEXT = 20_000  # characters of a message or note
MAX_FRAMES = 200
MAX_CHAIN = 20


def describe_exception(error: BaseException, encodable: Callable[[Any], bool], skip: int = 0) -> Dict[str, Any]:
    """An exception as plain data, together with its causes, contexts, notes and frames. Never raises.

    Args:
        error: what was raised.
        encodable: tells whether a value can cross; arguments that cannot are sent as their ``repr``.
        skip: how many of the outermost frames to leave out, because they are atoll's own.
    """
    return _describe(error, encodable, skip, {})


def _describe(
    error: BaseException, encodable: Callable[[Any], bool], skip: int, seen: Dict[int, bool]
) -> Dict[str, Any]:
    seen[id(error)] = True
    cls = type(error)
    described: Dict[str, Any] = {
        "type": _text(lambda: cls.__qualname__),
        "module": _text(lambda: cls.__module__),
        "registered": _registered_names(cls),
        "bases": [base.__name__ for base in cls.__mro__ if base.__module__ == "builtins"],
        "message": _text(lambda: str(error)),
        "args": [],
        "state": {},
        "notes": [],
        "frames": [],
        "suppress_context": bool(error.__suppress_context__),
    }
    try:
        described["args"] = [_plain(part, encodable) for part in error.args]
        state = getattr(error, "__dict__", None) or {}
        described["state"] = {
            name: part for name, part in state.items() if name != "__notes__" and _passes(part, encodable)
        }
        described["notes"] = [_text(lambda: str(note)) for note in getattr(error, "__notes__", ())][:100]  # noqa: B023
        if isinstance(error, SyntaxError):
            described["args"] = [error.msg, (error.filename, error.lineno, error.offset, error.text)]
        described["frames"] = describe_frames(error.__traceback__, skip)
    except Exception:
        pass  # whatever a strange class does when it is looked at, what was gathered so far is sent
    if len(seen) <= MAX_CHAIN:
        cause, context = error.__cause__, error.__context__
        if cause is not None and id(cause) not in seen:
            described["cause"] = _describe(cause, encodable, 0, seen)
        if context is not None and id(context) not in seen:
            described["context"] = _describe(context, encodable, 0, seen)
        group = getattr(error, "exceptions", None)
        if "ExceptionGroup" in described["bases"] or "BaseExceptionGroup" in described["bases"]:
            described["exceptions"] = [_describe(one, encodable, 0, seen) for one in (group or ())[:MAX_CHAIN]]
    return described


_remembered: Dict[str, str] = {}


def remember_source(filename: str, text: str) -> None:
    """Let tracebacks show the lines of a file that may not exist here, such as a notebook's cell."""
    _remembered[filename] = text


def _lend_sources() -> None:
    import linecache

    for filename, text in _remembered.items():
        if not linecache.getlines(filename):
            linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)


def describe_frames(traceback: Optional[TracebackType], skip: int = 0) -> List[Tuple[str, int, str, str]]:
    """File, line number, function and source line of every frame, outermost first."""
    import linecache

    _lend_sources()
    frames = []
    while traceback is not None:
        if skip > 0:
            skip -= 1
        else:
            code = traceback.tb_frame.f_code
            # co_qualname, which the interpreter's own tracebacks do not show, is left aside on purpose
            line = linecache.getline(code.co_filename, traceback.tb_lineno, traceback.tb_frame.f_globals)
            frames.append((code.co_filename, traceback.tb_lineno, code.co_name, line.strip()))
        traceback = traceback.tb_next
    if len(frames) > MAX_FRAMES:
        half = MAX_FRAMES // 2
        gap = ("<atoll>", 0, f"... {len(frames) - MAX_FRAMES} frames left out ...", "")
        frames = [*frames[:half], gap, *frames[-half:]]
    return frames


def format_exception(error: BaseException, skip: int = 0) -> str:
    """The traceback as Python prints it, less the outermost ``skip`` frames. Never raises."""
    import traceback

    try:
        _lend_sources()
        shown = error.__traceback__
        for _ in range(skip):
            shown = shown.tb_next if shown is not None else None
        return "".join(traceback.format_exception(type(error), error, shown))[-MAX_TEXT:]
    except Exception as strange:
        return f"{type(error).__qualname__} (its traceback cannot be printed: {type(strange).__qualname__})\n"


def _text(make: Callable[[], object]) -> str:
    try:
        text = str(make())
    except Exception as strange:
        return f"<cannot be shown: {type(strange).__qualname__}>"
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + f"... ({len(text):,} characters)"


def _registered_names(cls: type) -> Optional[str]:
    known = by_class(cls)
    return None if known is None else known.name


def _plain(value: Any, encodable: Callable[[Any], bool]) -> Any:
    return value if _passes(value, encodable) else _text(lambda: repr(value))


def _passes(value: Any, encodable: Callable[[Any], bool]) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    return encodable(value)
