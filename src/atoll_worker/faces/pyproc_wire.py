# SPDX-License-Identifier: Apache-2.0
"""pyproc's wire: bytes in, requests and cancellations out; results in, bytes out. No sockets, no threads.

A frame is its length, four bytes, big-endian, and as many bytes of JSON. A request is ``{"id", "method", "body"}``,
with ``headers`` if the caller belongs to a trace, or the same as ``{"type": "request", "payload": ...}``. Its reply is
``{"id", "ok": true, "body"}`` or ``{"id", "ok": false, "error"}``. ``{"type": "cancellation", "payload": {"id",
"reason"}}`` has no reply.

What always holds here: a length is looked at before anything is allocated; a frame that is too large is passed over,
byte by byte, and is one error, so that the frames behind it are understood; what is malformed is an error of the one
frame. What does not belong here: what a request comes to (``pyproc``).
"""

from __future__ import annotations

from ..errors import RemoteProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Union

    from ..json_codec import Bytes, Codec

    Message = Union["Request", "Cancellation"]

MAX_FRAME = 10 << 20  # bytes of JSON
# From here on a frame is read into memory of its own, and written from where its parts are, rather than put together.
_LARGE = 1 << 16
# Of a frame that is too large: bytes to wait for, in which its id is looked for.
_BEGINNING = 32


class Malformed(RemoteProtocolError):
    """A frame that is no request and no cancellation.

    Attributes:
        request_id: of the request, as far as it could be told; 0 if it could not.
    """

    def __init__(self, message: str, request_id: Any = 0) -> None:
        super().__init__(message)
        self.request_id = request_id


class Request:
    """A call to be answered."""

    __slots__ = ("body", "headers", "id", "method")

    def __init__(self, id: Any, method: str, body: Any, headers: Any) -> None:
        self.id = id
        self.method = method
        self.body = body
        self.headers: Optional[Dict[str, Any]] = headers


class Cancellation:
    """The caller of the request of this id waits for it no longer."""

    __slots__ = ("id", "reason")

    def __init__(self, id: Any, reason: str) -> None:
        self.id = id
        self.reason = reason


class FrameReader:
    """Takes what a stream brings, and gives the frames in it."""

    def __init__(self) -> None:
        self._pieces = b""  # what came of a frame that is not complete; of a large one, nothing
        self._large: Optional[bytearray] = None
        self._have = 0  # bytes of the large one
        self._to_skip = 0  # bytes of one that is too large
        self._too_large = 0  # its length, as long as it was not told

    @property
    def is_partial(self) -> bool:
        """Whether a frame has begun and is not there yet."""
        return bool(self._pieces or self._large is not None or self._to_skip)

    def room(self) -> Optional[memoryview]:
        """Where the next bytes of a large frame belong, to be told with ``filled``; None to use ``receive_data``."""
        return None if self._large is None else memoryview(self._large)[self._have :]

    def filled(self, count: int) -> List[Union[Bytes, Malformed]]:
        """``count`` bytes were put into ``room()``; returns the frame, if that was all of it."""
        assert self._large is not None
        self._have += count
        if self._have < len(self._large):
            return []
        frame, self._large = self._large, None
        return [frame]

    def receive_data(self, data: bytes) -> List[Union[Bytes, Malformed]]:
        """What came; returns the frames, without their lengths, that it completes, and errors in the place of those
        that cannot be read."""
        if not self._pieces and not self._to_skip and int.from_bytes(data[:4], "big") == len(data) - 4 <= MAX_FRAME:
            return [data[4:]]  # the usual case: one frame, and all of it
        frames: List[Union[Bytes, Malformed]] = []
        data = self._pieces + data
        self._pieces = b""
        at = 0
        while True:
            if self._to_skip:
                at = self._skip(data, at, frames)
                if self._to_skip or self._pieces:
                    return frames
            left = len(data) - at
            if left < 4:
                break
            length = int.from_bytes(data[at : at + 4], "big")
            if length > MAX_FRAME:
                self._to_skip = self._too_large = length
                at += 4
                continue
            if left - 4 < length:
                if length >= _LARGE:
                    self._large = bytearray(length)
                    self._have = left - 4
                    self._large[: self._have] = data[at + 4 :]
                    return frames
                break
            frames.append(data[at + 4 : at + 4 + length])
            at += 4 + length
        self._pieces = data[at:]
        return frames

    def _skip(self, data: bytes, at: int, frames: List[Union[Bytes, Malformed]]) -> int:
        """Pass over what there is of a frame that is too large; returns where it ends in ``data``."""
        if self._too_large:
            if len(data) - at < _BEGINNING:
                self._pieces = data[at:]
                return at
            frames.append(_refusal(self._too_large, data[at : at + 1024]))
            self._too_large = 0
        passed = min(self._to_skip, len(data) - at)
        self._to_skip -= passed
        return at + passed


def _refusal(length: int, beginning: bytes) -> Malformed:
    import re

    found = re.search(rb'"id"\s*:\s*(\d{1,20})\b', beginning)
    return Malformed(
        f"a frame of {length:,} bytes came, and {MAX_FRAME:,} are the most: send large data in several calls, or its "
        "place instead of it",
        int(found[1]) if found else 0,
    )


def read_message(payload: Bytes, codec: Codec) -> Message:
    """What a frame says.

    Raises:
        Malformed: it is no JSON, or no request and no cancellation.
    """
    try:
        message = codec.decode(payload)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the frame is not JSON: {error}") from None
    except MemoryError:
        raise Malformed(f"there is no memory for what {len(payload):,} bytes of JSON say") from None
    try:
        method = message["method"]
        if type(method) is str:
            return Request(message.get("id", 0), method, message.get("body", NOTHING), message.get("headers"))
    except (KeyError, TypeError):
        pass
    return _unwrap(message)


NOTHING: Dict[str, Any] = {}  # replaced by one of its own before anybody sees it; see `body_of`


def body_of(request: Request) -> Any:
    """The request's body; an empty object where it came without one."""
    return {} if request.body is NOTHING else request.body


def _unwrap(message: Any) -> Message:
    if type(message) is not dict:
        raise Malformed(f"expected a JSON object as a request, not {_shown(message)}")
    request_id = message.get("id", 0)
    if "method" in message:
        raise Malformed(f"the request's method is {_shown(message['method'])}, expected text", request_id)
    kind = message.get("type")
    if kind is None:
        raise Malformed("the request has no method", request_id)
    payload = message.get("payload")
    if kind not in ("request", "cancellation"):
        raise Malformed(f'a message of type {_shown(kind)} came; there are "request" and "cancellation"', request_id)
    if type(payload) is not dict:
        raise Malformed(f"the payload of a message of type {kind!r} is {_shown(payload)}, expected an object")
    if kind == "cancellation":
        return Cancellation(payload.get("id", 0), str(payload.get("reason") or "cancelled"))
    method = payload.get("method")
    if type(method) is not str:
        problem = "has no method" if method is None else f"has the method {_shown(method)}, expected text"
        raise Malformed(f"the request {problem}", payload.get("id", 0))
    return Request(payload.get("id", 0), method, payload.get("body", NOTHING), payload.get("headers"))


def _shown(value: Any) -> str:
    return f"{value!r:.100}"


# -- replies -------------------------------------------------------------------------------------------------------


def write_result(request_id: Any, body: bytes, codec: Codec) -> List[bytes]:
    """The frame that answers a request, in one piece or, where the body is large, in several.

    Args:
        request_id: as it came.
        body: the result as JSON.
        codec: writes ids that are no numbers.

    Raises:
        ValueError: it would be longer than a frame may be.
    """
    shown = b"%d" % request_id if type(request_id) is int else codec.encode(request_id)
    length = len(shown) + len(body) + 25
    if length > MAX_FRAME:
        raise ValueError(
            f"the result is {len(body):,} bytes as JSON, and a frame holds at most {MAX_FRAME:,}: return it in parts, "
            "or write it to a file and return its path"
        )
    if length < _LARGE:
        return [b'%b{"id":%b,"ok":true,"body":%b}' % (length.to_bytes(4, "big"), shown, body)]
    return [b'%b{"id":%b,"ok":true,"body":' % (length.to_bytes(4, "big"), shown), body, b"}"]


MAX_ERROR = 20_000  # characters


def write_error(request_id: Any, error: str, codec: Codec) -> List[bytes]:
    """The frame that says why a request came to nothing."""
    if len(error) > MAX_ERROR:
        error = f"{error[:MAX_ERROR]}... ({len(error):,} characters)"
    if not error.isascii():
        error = error.encode("utf-8", "backslashreplace").decode()
    try:
        payload = codec.encode({"id": request_id, "ok": False, "error": error})
    except Exception:  # an id that can be read, and not be written
        payload = b""
    if not 0 < len(payload) <= MAX_FRAME:  # one that leaves no room for anything else
        payload = codec.encode({"id": 0, "ok": False, "error": error})
    return [len(payload).to_bytes(4, "big") + payload]
