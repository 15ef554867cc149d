# SPDX-License-Identifier: Apache-2.0
"""Values as JSON and back, many times a second: by msgspec or orjson where the user's environment has them, else by the
standard library, at its fastest.

What always holds here, whichever it is: NaN and the infinities are errors in both directions, never ``null`` and never
what is no JSON; what cannot be written is an error that names the part; and what the fast way does not know, but JSON
has a common form for, is written all the same: dates and times in ISO 8601, what numpy made as numbers and lists, keys
of other kinds as text. What does not belong here: what the JSON means.
"""

from __future__ import annotations

from .errors import EncodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mmap import mmap
    from typing import Any, Callable, NoReturn, Tuple, Union

    Bytes = Union[bytes, bytearray, memoryview, mmap]
    # Name, and functions that write and read.
    Made = Tuple[str, Callable[[Any], bytes], Callable[[Bytes], Any]]

AUTOMATIC, STANDARD, ORJSON, MSGSPEC = "auto", "json", "orjson", "msgspec"
NAMES = (AUTOMATIC, STANDARD, ORJSON, MSGSPEC)


class Codec:
    """One way to write and read JSON.

    Args:
        name: one of ``NAMES``; ``auto`` takes what there is.

    Attributes:
        name: which it came to.
        decode: bytes to a value; raises ValueError, or RecursionError where it is nested too deeply.

    Raises:
        ValueError: there is no such codec.
        ImportError: the library it needs is not in this environment.
    """

    def __init__(self, name: str = AUTOMATIC) -> None:
        if name not in NAMES:
            raise ValueError(f"there is no JSON codec {name!r}; there are {', '.join(NAMES)}")
        self.name, self._write, self.decode = _MAKERS[name]()

    def encode(self, value: Any, label: str = "result") -> bytes:
        """A value as JSON, in UTF-8.

        Args:
            value: what to write.
            label: what an error calls it.

        Raises:
            EncodeError: JSON cannot carry it; the message names the part that it cannot.
        """
        try:
            payload: bytes = self._write(value)
        except Exception:  # also what a value raises at being looked at
            payload = write_json(_plain(value, 0, label), label).encode()
        return payload


class _Rules:
    """How the standard library's compiled reader is to read; the same as ``json.JSONDecoder``'s, but strict."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")


def _standard() -> Made:
    """The compiled parts alone. Around them, ``json.dumps`` makes an encoder anew for each value, which for a small one
    takes longer than writing it (benchmarks/pyproc_wire.py), and ``json`` itself takes milliseconds to import."""
    try:
        import _json

        scan = _json.make_scanner(_Rules)  # type: ignore[arg-type]  # it asks for no more than these attributes
        pieces = _json.make_encoder(None, _unknown, _json.encode_basestring, None, ":", ",", False, False, False)
        if "".join(pieces([1.5, "é", None], 0)) != '[1.5,"é",null]' or scan('{"a":[1.5]}', 0) != ({"a": [1.5]}, 11):
            raise NotImplementedError
    except Exception:  # a Python whose parts are other ones
        import json

        return (
            STANDARD,
            lambda value: json.dumps(value, allow_nan=False, separators=(",", ":")).encode(),
            lambda payload: json.loads(str(payload, "utf-8"), parse_constant=_Rules.parse_constant),
        )

    def write(value: Any) -> bytes:
        try:
            if type(value) is str and len(value) > _LONG:
                text = value.encode()
                if not any(map(text.__contains__, _ESCAPED)):
                    return b"".join((b'"', text, b'"'))  # several times as quick as looking at each character
            return "".join(pieces(value, 0)).encode()
        except UnicodeEncodeError:  # half a pair of surrogates has an escape, but no UTF-8
            import json

            return json.dumps(value, allow_nan=False).encode()

    def read(payload: Bytes) -> Any:
        text = str(payload, "utf-8")
        try:
            value, end = scan(text, 0)
        except StopIteration:
            end = -1
        if end == len(text):
            return value
        import json  # white space before or behind it, or an error that says where

        return json.loads(text, parse_constant=_Rules.parse_constant)

    return STANDARD, write, read


def _unknown(value: Any) -> NoReturn:
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


def _orjson() -> Made:
    import orjson  # the user's own, if there

    dumps = orjson.dumps
    loads = orjson.loads

    def read(payload: Bytes) -> Any:
        # It takes what large frames are received in, an mmap, only as a view.
        return loads(payload if type(payload) is bytes else memoryview(payload))

    def write(value: Any) -> bytes:
        payload: bytes = dumps(value)
        return payload if b"null" not in payload else _if_finite(value, payload)

    return ORJSON, write, read


def _msgspec() -> Made:
    import msgspec.json  # the user's own, if there

    encode = msgspec.json.Encoder().encode

    def write(value: Any) -> bytes:
        payload: bytes = encode(value)
        return payload if b"null" not in payload else _if_finite(value, payload)

    return MSGSPEC, write, msgspec.json.Decoder().decode


def _automatic() -> Made:
    for make in (_msgspec, _orjson):  # the latter makes floats of integers beyond 64 bits
        try:
            return make()
        except Exception:
            pass  # it is not there, or half
    return _standard()


_MAKERS = {AUTOMATIC: _automatic, STANDARD: _standard, ORJSON: _orjson, MSGSPEC: _msgspec}


def _if_finite(value: Any, payload: bytes) -> bytes:
    """These libraries write NaN as ``null``: where a ``null`` stands, somebody has to look.

    Raises:
        ValueError: there was a number that JSON has no form for.
    """
    waiting = [value]
    while waiting:
        one = waiting.pop()
        kind = type(one)
        if kind is dict:
            waiting += one.values()
        elif kind is list or kind is tuple:
            waiting += one
        elif isinstance(one, float) and not -_INFINITY < one < _INFINITY:
            raise ValueError(f"there is no {one!r} in JSON")
        elif kind not in _PLAIN:  # of the user's own: let the other way say
            raise ValueError(f"a {kind.__name__} is not looked into")
    return payload


_INFINITY = float("inf")
_LONG = 2000  # characters
_ESCAPED = b'"\\\n\r\t' + bytes(range(32))  # what does not stand in JSON as it is, what is frequent first
_PLAIN = (str, int, bool, float, type(None))


def _plain(value: Any, depth: int, label: str) -> Any:
    """The same of plain containers and scalars, as far as there is a common form; the rest is left as it is.

    Raises:
        EncodeError: a part raises at being looked at.
    """
    if depth > 100:
        return value
    kind = type(value)  # what the value itself says of its class may be anything
    if kind in _PLAIN:
        return value
    try:
        return _plain_form(value, kind, depth, label)
    except EncodeError:
        raise
    except Exception as error:
        raise EncodeError(f"{label} cannot be written as JSON: {_named(kind)} in it raises {error!r:.100}") from None


def _plain_form(value: Any, kind: Any, depth: int, label: str) -> Any:
    if issubclass(kind, dict):
        return {_key(key): _plain(one, depth + 1, label) for key, one in value.items()}
    if issubclass(kind, (list, tuple)):
        return [_plain(one, depth + 1, label) for one in value]
    if kind.__module__ == "numpy" and hasattr(kind, "tolist"):
        made = value.tolist()
        return value if type(made) is kind else _plain(made, depth + 1, label)
    if _is_time(value):
        return value.isoformat()
    return value


def _key(key: Any) -> Any:
    if type(key) in _PLAIN:
        return key
    if type(key).__module__ == "numpy" and hasattr(type(key), "item"):
        return _key(key.item())
    if _is_time(key):
        return key.isoformat()
    # Any number of names, as a table has them whose columns have several levels.
    return str(key) if type(key) is tuple else key


def _is_time(value: Any) -> bool:
    import datetime

    # One that is not equal to itself is none, as NaN is no number.
    return issubclass(type(value), (datetime.date, datetime.time)) and bool(value == value)


# -- errors that name the part ----------------------------------------------------------------------------------------


def write_json(value: Any, label: str) -> str:
    """A value as JSON on one line, ASCII only.

    Args:
        value: what to write.
        label: what an error calls it.

    Raises:
        EncodeError: JSON cannot carry it; the message names the part that it cannot.
    """
    import json

    try:
        return json.dumps(value, allow_nan=False)
    except Exception as error:  # also what a value raises at being looked at
        path, why = _culprit(value, label, 0) or (label, str(error))
        raise EncodeError(f"{path} cannot be written as JSON: {why}") from None


def _culprit(value: Any, path: str, depth: int) -> Any:
    """The first part that JSON cannot carry, and why; None if there is none to be found."""
    kind = type(value)
    if value is None or issubclass(kind, (int, str)):
        return None
    if issubclass(kind, float):
        return None if -float("inf") < value < float("inf") else (path, f"there is no {value!r} in JSON")
    if depth > 100:
        return path[:200] + "...", "it is nested too deeply, or holds itself"
    if issubclass(kind, dict):
        for key, one in value.items():
            if not (key is None or issubclass(type(key), (str, int, float))):
                return path, f"a key of it is {_named(type(key))}, expected text"
            found = _culprit(one, f"{path}[{key!r:.100}]", depth + 1)
            if found:
                return found
        return None
    if issubclass(kind, (list, tuple)):
        for index, one in enumerate(value):
            found = _culprit(one, f"{path}[{index}]", depth + 1)
            if found:
                return found
        return None
    return path, f"it is {_named(kind)}"


def _named(kind: Any) -> str:
    return f"a {kind.__module__}.{kind.__qualname__}".replace("a builtins.", "a ")
