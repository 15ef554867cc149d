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


class SegmentsExhausted(AtollError, MemoryError):
    """The memory budget for segments is used up, and nothing was given back in time. The message names who has what."""


class ProtocolError(AtollError):
    """The rules of the wire were broken."""


class LocalProtocolError(ProtocolError):
    """This side tried to do what the wire does not allow in the present state."""


class RemoteProtocolError(ProtocolError):
    """The other side sent what the wire does not allow: a malformed frame, or one out of turn."""


class Cancelled(BaseException):
    """Raised in a function whose call was cancelled, or has outlived its deadline. Clean up in ``finally``, and let it
    pass."""


class RemoteError(AtollError):
    """An exception that a worker's function raised, here again in the host; or one of the host's, in a worker.

    What is raised is an instance of a class that derives from both ``RemoteError`` and the original class (if
    that is a builtin, or was registered), or else from the nearest builtin ancestor of the original. ``str()`` is the
    original's message, ``__cause__``, ``__context__`` and ``__notes__`` are those of the original, and the traceback
    continues into the other side's frames.

    Attributes:
        type_name: module and qualified name of the original class.
        remote_traceback: the traceback as the other side printed it.
        service: name of the service.
        pid: process id of the other side.
    """

    type_name: str = ""
    remote_traceback: str = ""
    service: str = ""
    pid: int = 0


# -- exceptions as data --------------------------------------------------------------------------------------------

MAX_TEXT = 20_000  # characters of a message or note
MAX_LINE = 1_000  # characters of a source line
MAX_PARTS = 100  # arguments, and attributes
MAX_PART = 1 << 20  # encoded bytes of one of them
MAX_NOTES = 100
MAX_FRAMES = 200
MAX_CHAIN = 20


def describe_exception(error: BaseException, encodable: Callable[[Any], bool], skip: int = 0) -> Dict[str, Any]:
    """An exception as plain data, together with its causes, contexts, notes and frames. Never raises.

    Args:
        error: what was raised.
        encodable: tells whether a value can cross and is small enough to; arguments that cannot are sent as their
            ``repr``, attributes are left out.
        skip: how many of the outermost frames to leave out, because they are atoll's own.
    """
    return _describe(error, encodable, skip, {})


# What some builtins keep neither in their arguments nor in their dictionary.
_BESIDE_ARGS = (
    (OSError, ("filename", "filename2")),
    (ImportError, ("name", "path")),
    ((NameError, AttributeError), ("name",)),
)


def _describe(
    error: BaseException, encodable: Callable[[Any], bool], skip: int, seen: Dict[int, bool]
) -> Dict[str, Any]:
    seen[id(error)] = True
    cls = type(error)

    def parts() -> List[Any]:
        if isinstance(error, SyntaxError):
            place = [error.filename, error.lineno, error.offset, error.text]
            if hasattr(error, "end_lineno"):  # from Python 3.10 on
                place += [error.end_lineno, error.end_offset]
            return [_plain(error.msg, encodable), tuple(_plain(part, encodable) for part in place)]
        return [_plain(part, encodable) for part in error.args[:MAX_PARTS]]

    def state() -> Dict[str, Any]:
        found = {}
        for name, part in list((getattr(error, "__dict__", None) or {}).items())[:MAX_PARTS]:
            if type(name) is str and name != "__notes__" and _passes(name, encodable) and _passes(part, encodable):
                found[name] = part
        for builtin, names in _BESIDE_ARGS:
            if isinstance(error, builtin):
                for name in names:
                    part = getattr(error, name, None)
                    if part is not None and _passes(part, encodable):
                        found[name] = part
        return found

    def notes() -> List[str]:
        noted = getattr(error, "__notes__", ())
        return [_text(lambda: note) for note in (noted[:MAX_NOTES] if isinstance(noted, (list, tuple)) else (noted,))]  # noqa: B023

    # One that was rebuilt here is of the class it had where it was raised.
    origin = _attempt(lambda: error.type_name if issubclass(cls, RemoteError) else "", "")  # type: ignore[attr-defined]
    module, _, name = origin.rpartition(".") if type(origin) is str else ("", "", "")
    described: Dict[str, Any] = {
        "type": name or _text(lambda: cls.__qualname__),
        "module": (module or "builtins") if name else _text(lambda: cls.__module__),
        "registered": _attempt(lambda: _registered_name(cls), None),
        "bases": _attempt(lambda: [_text(lambda: base.__name__) for base in cls.__mro__ if _is_builtin(base)], []),  # noqa: B023
        "message": _text(lambda: str(error)),
        "args": _attempt(parts, []),
        "state": _attempt(state, {}),
        "notes": _attempt(notes, []),
        "frames": _attempt(lambda: describe_frames(error.__traceback__, skip), []),
        "suppress_context": _attempt(lambda: bool(error.__suppress_context__), False),
    }
    if len(seen) <= MAX_CHAIN:
        for key, other in (
            ("cause", _attempt(lambda: error.__cause__, None)),
            ("context", _attempt(lambda: error.__context__, None)),
        ):
            if isinstance(other, BaseException) and id(other) not in seen:
                described[key] = _describe(other, encodable, 0, seen)
        if "BaseExceptionGroup" in described["bases"]:
            group = _attempt(lambda: list(error.exceptions[:MAX_CHAIN]), [])  # type: ignore[attr-defined]
            described["exceptions"] = [
                _describe(one, encodable, 0, seen) for one in group if isinstance(one, BaseException)
            ]
    return described


def _attempt(make: Callable[[], Any], otherwise: Any) -> Any:
    """What ``make`` gives, or ``otherwise``: a strange class may do anything when it is looked at."""
    try:
        return make()
    except BaseException:
        return otherwise


def _is_builtin(cls: type) -> bool:
    return cls.__module__ == "builtins"


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
            number = traceback.tb_lineno or 0  # there is None where an instruction belongs to no line
            line = linecache.getline(code.co_filename, number, traceback.tb_frame.f_globals)
            frames.append((code.co_filename, number, code.co_name, line.strip()[:MAX_LINE]))
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
    except BaseException as strange:
        return f"{_own_name(type(error))} (its traceback cannot be printed: {_own_name(type(strange))})\n"


_own_name = type.__dict__["__name__"].__get__  # whatever a metaclass makes of it


def _text(make: Callable[[], object]) -> str:
    try:
        text = str.__str__(str(make()))  # a subclass of str could not cross, and need not tell the truth
    except BaseException as strange:
        return f"<cannot be shown: {_own_name(type(strange))}>"
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + f"... ({len(text):,} characters)"


def _registered_name(cls: type) -> Optional[str]:
    known = by_class(cls)
    return None if known is None else known.name


def _plain(value: Any, encodable: Callable[[Any], bool]) -> Any:
    return value if _passes(value, encodable) else _text(lambda: repr(value))


def _passes(value: Any, encodable: Callable[[Any], bool]) -> bool:
    if type(value) is str:
        return len(value) <= MAX_TEXT
    return bool(_attempt(lambda: encodable(value), False))
