# SPDX-License-Identifier: Apache-2.0
"""Where a message ends: after as many bytes as a header says, as in the Language Server Protocol, or with its line.

Bytes in, messages out. What always holds here: no more than the largest message is kept, and what cannot be a message
is told, and passed over where it is known how far. What does not belong here: what a message says.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

# Bytes of a message, unless said otherwise.
MAX_SIZE = 64 << 20
# Bytes of a header, its lines and the empty one after them.
_MAX_HEADER = 8 << 10


class Malformed(NamedTuple):
    """What was received instead of a message.

    Attributes:
        reason: what is wrong.
        is_json: whether it may be JSON all the same, and is refused for another reason.
        is_final: nothing that comes after it can be understood.
    """

    reason: str
    is_json: bool = False
    is_final: bool = False


class Framing(Protocol):
    """Takes a stream of bytes apart, and puts one together."""

    def receive_data(self, data: bytes) -> list[bytes | Malformed]:
        """The messages that are complete with these bytes; empty bytes are the end of the stream."""
        ...

    def wrap(self, message: bytes) -> bytes:
        """A message as it is sent."""
        ...


class ContentLengthFraming:
    """``Content-Length: N``, other header lines, an empty line, and N bytes.

    Args:
        max_size: bytes of the largest message that is read; a larger one is passed over.
    """

    def __init__(self, max_size: int = MAX_SIZE) -> None:
        self._max_size = max_size
        self._buffer = bytearray()
        self._missing: int | None = None  # bytes of the message whose header was read
        self._skip = 0  # bytes to pass over

    def receive_data(self, data: bytes) -> list[bytes | Malformed]:
        """See ``Framing``."""
        found: list[bytes | Malformed] = []
        self._buffer += data
        while True:
            if self._skip:
                passed = min(self._skip, len(self._buffer))
                del self._buffer[:passed]
                self._skip -= passed
                if self._skip:
                    break
            if self._missing is None and not self._read_header(found):
                break
            if self._missing is not None:
                if len(self._buffer) < self._missing:
                    break
                found.append(bytes(self._buffer[: self._missing]))
                del self._buffer[: self._missing]
                self._missing = None
        if not data and (self._buffer or self._missing or self._skip):
            found.append(Malformed("the stream ended in the middle of a message", is_final=True))
        return found

    def _read_header(self, found: list[bytes | Malformed]) -> bool:
        """Read a header, if there is one; what is wrong with it is added to what was found."""
        buffer = self._buffer
        ends = [(at, size) for mark, size in ((b"\r\n\r\n", 4), (b"\n\n", 2)) if (at := buffer.find(mark)) >= 0]
        if not ends:
            if buffer.startswith((b"{", b"[")):
                reason = "a message without a header (Content-Length); messages on lines of their own need --newline"
                found.append(Malformed(reason, is_final=True))
                buffer.clear()
            elif len(buffer) > _MAX_HEADER:
                found.append(Malformed(f"a header of more than {_MAX_HEADER} bytes", is_final=True))
                buffer.clear()
            return False
        at, size = min(ends)
        lines = bytes(buffer[:at]).decode("latin-1").splitlines()
        del buffer[: at + size]
        fields = [line.partition(":") for line in lines]
        lengths = [value.strip() for name, _, value in fields if name.strip().lower() == "content-length"]
        if len(lengths) != 1 or not (lengths[0].isascii() and lengths[0].isdigit()) or len(lengths[0]) > 18:
            said = f"found {', '.join(lengths)!r:.100}" if lengths else "found none"
            found.append(Malformed(f"a header without one Content-Length that is a number: {said}"))
            return True
        length = int(lengths[0])
        if length > self._max_size:
            found.append(Malformed(f"a message of {length:,} bytes; at most {self._max_size:,} are read", is_json=True))
            self._skip = length
        else:
            self._missing = length
        return True

    def wrap(self, message: bytes) -> bytes:
        """See ``Framing``."""
        return b"Content-Length: %d\r\n\r\n%b" % (len(message), message)


class LineFraming:
    """Each message is a line.

    Args:
        max_size: bytes of the longest line that is read; a longer one is passed over.
    """

    def __init__(self, max_size: int = MAX_SIZE) -> None:
        self._max_size = max_size
        self._parts: list[bytes] = []
        self._size = 0

    def receive_data(self, data: bytes) -> list[bytes | Malformed]:
        """See ``Framing``."""
        found: list[bytes | Malformed] = []
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._take(line)
            self._end(found)
        self._take(rest)
        if not data:
            self._end(found)  # the last line need not be ended
        return found

    def _take(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= self._max_size + 1:  # a carriage return may be its last
            self._parts.append(part)
        else:
            self._parts.clear()

    def _end(self, found: list[bytes | Malformed]) -> None:
        line = b"".join(self._parts).strip()
        if self._size > self._max_size + 1:
            found.append(
                Malformed(f"a line of {self._size:,} bytes; at most {self._max_size:,} are read", is_json=True)
            )
        elif line:
            found.append(line)
        self._parts.clear()
        self._size = 0

    def wrap(self, message: bytes) -> bytes:
        """See ``Framing``."""
        return message + b"\n"
