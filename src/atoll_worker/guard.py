# SPDX-License-Identifier: Apache-2.0
"""What a data pickle may consist of, checked before the unpickler sees a byte of it.

``find_class`` keeps foreign code out, but the C unpickler still trusts the stream in other ways: a single PUT
opcode with a large index makes it allocate and touch tens of gigabytes. So the stream is split into opcodes here,
and only those that ``values`` itself emits are admitted. A regular expression does it at the speed of C: 0.3 µs
for a small value, about the time of loading for a large one. A value that turns out to be plain may then be
loaded by the fast unrestricted unpickler, which saves more than the check costs.

Needs Python 3.11 (possessive quantifiers), which the host has. A worker does not check what its host sends: the
host decides what runs there anyway.
"""

from __future__ import annotations

import re
from struct import Struct
from struct import error as StructError

from .errors import DecodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .wire import Bytes

# Strings up to this length are skipped inside the expressions, longer parts by `_skip`.
_SHORT = 32

# MEMOIZE APPEND(S) SETITEM(S) MARK TUPLE* EMPTY_* ADDITEMS FROZENSET NONE NEWTRUE NEWFALSE POP POP_MARK
_BARE = rb"\x94asue(t)\]}N\x85-\x89\x8f-\x9101"
# STACK_GLOBAL REDUCE NEXT_BUFFER READONLY_BUFFER: values of other than the plain types
_OTHER = rb"\x93R\x97\x98"
_WITH_ARGUMENT = (
    # SHORT_BINUNICODE: its length, then as many bytes
    rb"\x8c(?:" + b"|".join(re.escape(bytes([n])) + b"." * n for n in range(_SHORT + 1)) + rb")"
    # BININT1 BINGET, BINFLOAT, BININT2, BININT LONG_BINGET
    rb"|[Kh].|G........|M..|[Jj]...."
)
_FRAME = rb"|\x95........"


def _tokens(bare: bytes, with_argument: bytes) -> bytes:
    return rb"[" + bare + rb"]*+(?:(?:" + with_argument + rb")[" + bare + rb"]*+)*+"


# Matches a whole pickle of plain values with short strings: None, bool, int, float, str, tuple, list, dict, set,
# frozenset. Whatever it matches, any unpickler may load.
is_plain = re.compile(rb"(?s)\x80\x05" + _tokens(_BARE, _WITH_ARGUMENT + _FRAME) + rb"\.").fullmatch

_match_tokens = re.compile(rb"(?s)" + _tokens(_BARE + _OTHER, _WITH_ARGUMENT)).match

_PROTOCOL = b"\x80\x05"
_FRAME_OPCODE = 0x95
_STOP = 0x2E
_ONE_BYTE_LENGTH = b"\x8cC\x8a"  # SHORT_BINUNICODE SHORT_BINBYTES LONG1
_FOUR_BYTE_LENGTH = b"XB\x8b"  # BINUNICODE BINBYTES LONG4
_EIGHT_BYTE_LENGTH = b"\x8d\x8e\x96"  # BINUNICODE8 BINBYTES8 BYTEARRAY8
_unpack_u32 = Struct("<I").unpack_from
_unpack_u64 = Struct("<Q").unpack_from


def check(payload: Bytes) -> None:
    """Check any payload, opcode by opcode; nothing is loaded.

    Raises:
        DecodeError: it holds what a data pickle never does.
    """
    size = len(payload)
    if payload[:2] != _PROTOCOL:
        raise DecodeError("not a data pickle: it does not begin as one of protocol 5")
    at = 2
    frame_end = 0
    # An unpickler that reads from a file takes a frame as a whole, and drops what it cuts off at its end: no part may
    # reach across, or other opcodes would be loaded than are checked here.
    limit = size
    while True:
        found = _match_tokens(payload, at, limit)
        assert found is not None  # it matches the empty string
        at = found.end()
        if at >= limit:
            if at >= size:
                raise DecodeError("a data pickle that is cut short")
            limit = size
            continue
        opcode = payload[at]
        if opcode == _STOP:
            break
        if opcode == _FRAME_OPCODE and at >= frame_end:
            at += 9
            frame_end = limit = _skip_frame(payload, at, size)
        else:
            at = _skip(payload, at, limit)
    if at != size - 1:
        raise DecodeError(f"a data pickle with {size - 1 - at:,} bytes after its end")


def _skip_frame(payload: Bytes, at: int, size: int) -> int:
    """The end of a frame that begins at ``at``, after its length."""
    if at > size:
        raise DecodeError("a data pickle that is cut short")
    end = at + int(_unpack_u64(payload, at - 8)[0])
    if end > size:
        raise DecodeError(f"a frame of {end - at:,} bytes at byte {at:,} of a data pickle of {size:,}")
    return end


def _skip(payload: Bytes, at: int, limit: int) -> int:
    """The position after the length-prefixed part at ``at``, which must end before ``limit``."""
    opcode = payload[at]
    try:
        if opcode in _ONE_BYTE_LENGTH:
            end = at + 2 + payload[at + 1]
        elif opcode in _FOUR_BYTE_LENGTH:
            end = at + 5 + int(_unpack_u32(payload, at + 1)[0])
        elif opcode in _EIGHT_BYTE_LENGTH:
            end = at + 9 + int(_unpack_u64(payload, at + 1)[0])
        else:
            raise DecodeError(f"opcode {opcode:#04x} at byte {at:,} has no place in a data pickle")
    except (IndexError, StructError):
        raise DecodeError("a data pickle that is cut short") from None
    if end > limit:
        raise DecodeError(
            f"a part of {end - at:,} bytes at byte {at:,} of a data pickle, where {limit - at:,} are left"
        )
    return end
