# SPDX-License-Identifier: Apache-2.0
"""What a service says of one call: a JSON object that holds the result, or the error, and how long it took.

The same on both sides. What always holds here: an answer can be written as JSON, or an error names the part that
cannot. What does not belong here: reading and writing it (``stdio``).
"""

from __future__ import annotations

from time import gmtime, strftime, time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Mapping, NoReturn, Union

# The three contexts that an error may have.
INVALID_JSON = "Invalid JSON input"
VALIDATION = "Validation error"
UNEXPECTED = "Unexpected error"

# What marks an error as of one of them; an attribute, so it crosses with the error.
_CONTEXT = "atoll_context"

# Where a result that is no object stands in its answer.
RESULT = "result"

# What a client may ask a service's function for instead of what it returns: the answer, or what an answer consists of.
ANSWER, PARTS = "answer", "parts"


def succeeded(result: Any, seconds: float) -> Dict[str, Any]:
    """The answer of a call that came to something: its result, with ``success`` and ``_meta``.

    A result that is no object stands under ``result``. One that has a ``success`` of its own keeps it: so a service
    says itself that a call came to nothing.

    Args:
        result: what the function returned; it is left as it is.
        seconds: how long it took.
    """
    answer = dict(result) if isinstance(result, dict) else {RESULT: result}
    answer.setdefault("success", True)
    own = answer.pop("_meta", None)
    answer["_meta"] = {**own, **_meta(seconds)} if isinstance(own, dict) else _meta(seconds)
    return answer


def failed(message: str, kind: str, context: str, traceback: str, seconds: float) -> Dict[str, Any]:
    """The answer of a call that raised.

    Args:
        message: what the error says.
        kind: the name of its class.
        context: one of the three above.
        traceback: as Python prints it.
        seconds: how long it took.
    """
    return {
        "success": False,
        "error": message,
        "error_type": kind,
        "context": context,
        "traceback": traceback,
        "_meta": _meta(seconds),
    }


def is_success(answer: Mapping[str, Any]) -> bool:
    """Whether the service says that the call came to something."""
    return bool(answer.get("success", True))


def _meta(seconds: float) -> Dict[str, Any]:
    now = time()
    return {
        "duration_seconds": round(seconds, 6),
        "timestamp": f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(now))}.{int(now % 1 * 1e6):06d}+00:00",
    }


def mark(error: BaseException, context: str) -> None:
    """This error is of that context."""
    try:
        setattr(error, _CONTEXT, context)
    except Exception:
        pass  # a class that lets nothing be set: its own kind tells, or not


def context_of(error: BaseException) -> str:
    """In which context an error of the service's was raised: what a validator raises is one of validation, and so is
    any ``ValueError``."""
    marked = getattr(error, _CONTEXT, None)
    if marked in (INVALID_JSON, VALIDATION):
        return str(marked)
    return VALIDATION if isinstance(error, ValueError) else UNEXPECTED


# -- numbers that are none -----------------------------------------------------------------------------------------


def check_params(params: Dict[str, Any]) -> None:
    """What ``read_params`` refuses, where parameters came as values.

    Raises:
        ValueError: NaN or an infinity is among them.
    """
    found = _not_finite(params, "the params")
    if found:
        error = ValueError(f"{found[0]} is {found[1]!r}, which is not JSON")
        mark(error, INVALID_JSON)
        raise error


def check_result(result: Any, label: str) -> None:
    """What writing it as JSON refuses, where an answer crosses as a value. Other values of Python may cross.

    Args:
        result: of any type; containers of JSON's kinds are looked into.
        label: what an error calls it.

    Raises:
        EncodeError: NaN or an infinity is in it; the message names the place.
    """
    found = _not_finite(result, label)
    if found:
        from ..errors import EncodeError

        raise EncodeError(f"{found[0]} cannot be written as JSON: there is no {found[1]!r} in JSON")


def _not_finite(value: Any, label: str) -> Any:
    """Where NaN or an infinity stands, and which; None if there is none."""
    if not _has_not_finite(value):
        return None
    waiting = [(value, label)]
    seen = set()
    while waiting:
        one, path = waiting.pop()
        if isinstance(one, float):
            if not -_INFINITY < one < _INFINITY:
                return path, one
        elif isinstance(one, (dict, list, tuple)) and id(one) not in seen:
            seen.add(id(one))
            pairs = one.items() if isinstance(one, dict) else enumerate(one)
            waiting += reversed([(part, f"{path}[{key!r:.100}]") for key, part in pairs])
    return None


def _has_not_finite(value: Any) -> bool:
    waiting = [value]
    seen = set()  # a value may hold itself
    while waiting:
        one = waiting.pop()
        if isinstance(one, float):
            if not -_INFINITY < one < _INFINITY:
                return True
        elif isinstance(one, (dict, list, tuple)) and id(one) not in seen:
            seen.add(id(one))
            parts = one.values() if isinstance(one, dict) else one
            kinds = set(map(type, parts))
            if kinds <= _FINITE:
                continue
            if kinds <= _NUMBERS and _is_sum_finite(parts):
                continue
            waiting += parts
    return False


def _is_sum_finite(numbers: Any) -> bool:
    """Whether it is plain that all of many numbers are finite, without looking at each."""
    try:
        return bool(-_INFINITY < sum(numbers) < _INFINITY)
    except OverflowError:  # a whole number beyond those with a fraction
        return False


_INFINITY = float("inf")
_FINITE = frozenset((str, int, bool, type(None), bytes))
_NUMBERS = frozenset((float, int, bool))


# -- JSON ----------------------------------------------------------------------------------------------------------


def read_params(text: Union[bytes, str]) -> Dict[str, Any]:
    """The parameters of a call from what was sent: one JSON object.

    Raises:
        ValueError: it is none, or nothing was sent; ``json.JSONDecodeError`` where it is no JSON.
    """
    import json

    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")  # some shells put a byte order mark before what they pass on
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is not UTF-8: {error}") from None
    if not text.strip():
        raise json.JSONDecodeError("standard input is empty, expected one JSON object", text, 0)

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"standard input holds {constant}, which is not JSON")

    try:
        params = json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("standard input is nested too deeply") from None
    if not isinstance(params, dict):
        raise ValueError(f"standard input is a JSON {_kind(params)}, expected one JSON object")
    found = _not_finite(params, "standard input")
    if found:
        raise ValueError(f"{found[0]} is a number that is too large")
    return params


def _kind(value: object) -> str:
    return {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")
