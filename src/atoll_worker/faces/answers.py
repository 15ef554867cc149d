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

# What marks an error that a validator raised; an attribute, so it crosses with the error.
_INVALID = "atoll_invalid"

# Where a result that is no object stands in its answer.
RESULT = "result"


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


def mark_invalid(error: BaseException) -> None:
    """A validator raised this."""
    try:
        setattr(error, _INVALID, True)
    except Exception:
        pass  # a class that lets nothing be set: its own kind tells, or not


def context_of(error: BaseException) -> str:
    """In which context an error of the service's was raised: what a validator raises is one of validation, and so is
    any ``ValueError``."""
    if getattr(error, _INVALID, False) is True or isinstance(error, ValueError):
        return VALIDATION
    return UNEXPECTED


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
    return params


def _kind(value: object) -> str:
    return {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")
