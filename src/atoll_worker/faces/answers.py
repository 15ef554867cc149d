# SPDX-License-Identifier: Apache-2.0
"""What a service says of one call: a JSON object that holds the result, or the error, and how long it took.

The same on both sides. What always holds here: an answer can be written as JSON, or an error names the part that
cannot. What does not belong here: reading and writing it (``stdio``).
"""

from __future__ import annotations

from time import gmtime, strftime, time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Mapping, NoReturn, Set, Union

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
    """One by one while they are few, as in most calls."""
    waiting = [value]
    seen: Set[int] = set()  # a value may hold itself
    while waiting:
        if len(waiting) > _FEW:
            return _has_level_not_finite(waiting, seen)
        one = waiting.pop()
        kind = type(one)
        if kind in _FINITE:
            continue
        if issubclass(kind, float):
            if not -_INFINITY < one < _INFINITY:
                return True
        elif issubclass(kind, (dict, list, tuple)) and id(one) not in seen:
            seen.add(id(one))
            if issubclass(kind, dict):
                waiting += one.values()
            elif not (one and type(one[0]) is float and _is_sum_finite(one)):
                waiting += one
    return False


def _has_level_not_finite(level: List[Any], seen: Set[int]) -> bool:
    """Level by level, so that loops over many are those of C."""
    from itertools import chain

    depth = count = 0
    while level:
        kinds = set(map(type, level)) - _FINITE
        if not all(-_INFINITY < one < _INFINITY for one in _those_of(float, level, kinds)):
            return True
        dicts, sequences = _those_of(dict, level, kinds), _those_of((list, tuple), level, kinds)
        depth += 1
        count += len(level)
        if depth > _DEEP or count > _MANY:  # it may hold itself, or the same part very often
            dicts, sequences = _not_in(seen, dicts), _not_in(seen, sequences)
        level = list(chain(chain.from_iterable(map(dict.values, dicts)), chain.from_iterable(sequences)))
    return False


def _those_of(base: Any, values: List[Any], kinds: Set[type]) -> List[Any]:
    """Those of many values that are of a class, where ``kinds`` are the classes that there are."""
    wanted = {kind for kind in kinds if issubclass(kind, base)}
    return [one for one in values if type(one) in wanted] if wanted else []


def _not_in(seen: Set[int], values: List[Any]) -> List[Any]:
    """Those that were not seen before, each once; from now on they were."""
    by_id = {id(one): one for one in values if id(one) not in seen}
    seen.update(by_id)
    return list(by_id.values())


def _is_sum_finite(values: Any) -> bool:
    """Whether these are numbers, and plainly none of them is infinite: then their sum is not."""
    try:
        total = sum(values)
    except Exception:  # something else is among them, or a whole number beyond those with a fraction
        return False
    return type(total) is float and -_INFINITY < total < _INFINITY


_INFINITY = float("inf")
_FINITE = frozenset((str, int, bool, type(None), bytes))
# Parts that are looked at one by one; and levels, and parts of them, before it is remembered which were seen.
_FEW, _DEEP, _MANY = 500, 50, 5_000_000


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
