# SPDX-License-Identifier: Apache-2.0
"""What a request says in JSON, and what is said back, as ``docs/wire.md`` has it.

What always holds here: what is no request, and what cannot be written as JSON, is an error of that call that says so.
What does not belong here: calling.
"""

from __future__ import annotations

import functools
import traceback
from typing import Any, NamedTuple

from atoll_worker.errors import AtollError, DecodeError, EncodeError, RemoteError
from atoll_worker.json_codec import Codec

from ..errors import WorkerDied


class Request(NamedTuple):
    """A call that is asked for.

    Attributes:
        function: name of it.
        args, kwargs: what it is to be called with.
        timeout: seconds until its caller gives up; None if that was not said.
        is_stream: the iterator that it returns is to be kept.
    """

    function: str
    args: list[Any]
    kwargs: dict[str, Any]
    timeout: float | None
    is_stream: bool


@functools.cache
def _codec() -> Codec:
    return Codec()


def read_json(payload: bytes) -> Any:
    """Raises:
    DecodeError: it is no JSON.
    """
    try:
        return _codec().decode(payload)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not JSON: {error}") from None


def write_json(value: Any) -> bytes:
    """Raises:
    EncodeError: JSON cannot carry it; the message names the part that it cannot.
    """
    return _codec().encode(value)


def read_request(payload: bytes) -> Request:
    """What is asked for.

    Raises:
        DecodeError: it is no request.
    """
    call = read_json(payload)
    if not isinstance(call, dict) or not isinstance(call.get("function"), str):
        raise DecodeError('a call is a JSON object whose "function" is the name of one')
    name, args, kwargs = call["function"], call.get("args", []), call.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise DecodeError(f'"args" of a call of {name!r:.100} must be an array, and "kwargs" an object')
    timeout = call.get("timeout")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float)):
        raise DecodeError(f'"timeout" of a call of {name!r:.100} must be a number of seconds, not {timeout!r:.100}')
    return Request(name, args, kwargs, timeout, bool(call.get("stream")))


def describe_error(error: BaseException, own: str | None = None) -> dict[str, Any]:
    """What an error is, for the client.

    Args:
        error: what a call came to.
        own: the name that atoll's own error goes by, if it is not that of its class.
    """
    notes = [note for note in getattr(error, "__notes__", ()) if isinstance(note, str)]
    if isinstance(error, RemoteError):
        module, _, name = error.type_name.rpartition(".")
        return {
            "type": name,
            "module": module or "builtins",
            "message": str(error),
            "notes": notes,
            "traceback": error.remote_traceback,
        }
    described: dict[str, Any] = {
        "type": type(error).__name__,
        "module": type(error).__module__,
        "message": str(error),
        "notes": notes,
        "traceback": "".join(traceback.format_exception_only(error)),
    }
    if isinstance(error, AtollError):
        described["atoll"] = own or type(error).__name__
    if isinstance(error, WorkerDied):
        described["died"] = {name: getattr(error, name) for name in ("pid", "exit_code", "signal", "phase", "stderr")}
    return described


def write_error(error: BaseException, own: str | None = None) -> bytes:
    """The payload of an error."""
    try:
        return write_json(describe_error(error, own))
    except EncodeError as strange:  # text that has no form in UTF-8
        return write_json(describe_error(EncodeError(f"the error cannot be written: {strange}")))
