# SPDX-License-Identifier: Apache-2.0
"""What a message of JSON-RPC 2.0 says, and what is said back.

What always holds here: an id is given back as it came, with its type; what is no request is answered with the error
that the specification names. What does not belong here: calling.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from atoll_worker.errors import RemoteError
from atoll_worker.json_codec import write_json

from ..errors import (
    CallCancelled,
    CallTimeout,
    CircuitOpen,
    EncodeError,
    FunctionNotFound,
    QueueFull,
    WorkerDied,
    WorkerStartError,
)

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
# Of those that are left to servers; the Language Server Protocol has given some of them a meaning of its own.
RAISED = -32000
TIMEOUT = -32010
CRASHED = -32011
OVERLOADED = -32012
# The Language Server Protocol's.
REQUEST_CANCELLED = -32800

CANCEL = "$/cancelRequest"
PROGRESS = "$/progress"

Id = str | int | float | None


class Request(NamedTuple):
    """A request, or a notification.

    Attributes:
        id: to be given back.
        method: what is to be called.
        args, kwargs: what it is to be called with.
        is_notification: nobody wants an answer.
    """

    id: Id
    method: str
    args: list[Any]
    kwargs: dict[str, Any]
    is_notification: bool


class Refused(NamedTuple):
    """What is no request; this is to be sent back."""

    answer: dict[str, Any]


# A response, or an array of nothing else: to what nobody asked.
IGNORED = None
One = Request | Refused | None


def read_message(text: bytes) -> One | list[One]:
    """A message, or all of a batch."""
    try:
        message = json.loads(text.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return Refused(error_answer(None, PARSE_ERROR, f"not JSON: {error}"))
    if isinstance(message, list):
        if not message:
            return Refused(error_answer(None, INVALID_REQUEST, "a batch of nothing"))
        return [_read_one(one) for one in message]
    return _read_one(message)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _read_one(message: Any) -> One:
    if not isinstance(message, dict):
        return Refused(error_answer(None, INVALID_REQUEST, f"found {message!r:.100}, expected an object"))
    number = message.get("id")
    if isinstance(number, bool) or not isinstance(number, str | int | float | None):
        return _invalid(None, f"id: found {number!r:.100}, expected text or a number")
    if isinstance(number, float) and not -float("inf") < number < float("inf"):
        return _invalid(None, "id: it is too large a number")
    if message.get("jsonrpc") != "2.0":
        return _invalid(number, f"jsonrpc: found {message.get('jsonrpc')!r:.100}, expected '2.0'")
    if "method" not in message and ("result" in message or "error" in message):
        return IGNORED
    method, params = message.get("method"), message.get("params")
    if not isinstance(method, str):
        return _invalid(number, f"method: found {method!r:.100}, expected the name of a function")
    if not isinstance(params, list | dict | None):
        return _invalid(number, f"params: found {params!r:.100}, expected an array or an object")
    args = params if isinstance(params, list) else []
    kwargs = params if isinstance(params, dict) else {}
    return Request(number, method, args, kwargs, "id" not in message)


def _invalid(number: Id, why: str) -> Refused:
    return Refused(error_answer(number, INVALID_REQUEST, why))


# -- what is said back ---------------------------------------------------------------------------------------------


def result_answer(number: Id, result: Any) -> dict[str, Any]:
    """The answer to a request that came to something."""
    return {"jsonrpc": "2.0", "id": number, "result": result}


def error_answer(number: Id, code: int, message: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
    """The answer to a request that did not."""
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return {"jsonrpc": "2.0", "id": number, "error": error}


def progress_message(token: Id, value: Any) -> dict[str, Any]:
    """A notification for who gave this token."""
    return {"jsonrpc": "2.0", "method": PROGRESS, "params": {"token": token, "value": value}}


def raised_answer(number: Id, error: BaseException) -> dict[str, Any]:
    """The answer to a request whose call raised."""
    if isinstance(error, RemoteError):
        # With no line of the function's in its traceback, it was raised by the call itself: what was passed is not
        # what the function takes.
        by_call = isinstance(error, TypeError) and not error.remote_traceback.startswith("Traceback")
        data = {"type": error.type_name, "traceback": error.remote_traceback}
        return error_answer(number, INVALID_PARAMS if by_call else RAISED, str(error) or error.type_name, data)
    code = next((code for kinds, code in _CODES if isinstance(error, kinds)), INTERNAL_ERROR)
    return error_answer(number, code, str(error), {"type": type(error).__name__, "traceback": ""})


_CODES: tuple[tuple[tuple[type[BaseException], ...], int], ...] = (
    ((FunctionNotFound,), METHOD_NOT_FOUND),
    ((CallCancelled,), REQUEST_CANCELLED),
    ((CallTimeout,), TIMEOUT),
    ((WorkerDied, WorkerStartError), CRASHED),
    ((QueueFull, CircuitOpen), OVERLOADED),
)


def write_message(message: dict[str, Any] | list[dict[str, Any]]) -> bytes:
    """A message as JSON. A result that JSON cannot carry becomes an error of that request."""
    if isinstance(message, list):
        return b"[" + b", ".join(write_message(one) for one in message) + b"]"
    try:
        return write_json(message, "the message").encode()
    except EncodeError:
        try:
            write_json(message.get("result"), "the result")
            write_json(message.get("params", {}).get("value"), "the progress")
            reason = "the message cannot be written as JSON"
        except EncodeError as error:
            reason = str(error)
        answer = error_answer(message.get("id"), INTERNAL_ERROR, reason, {"type": "EncodeError", "traceback": ""})
        return write_json(answer, "the error").encode()
