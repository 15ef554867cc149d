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
    # BININT1 BINGET, BINFLOAT, BININT2, BININT LONG_BINGET, FRAME
    rb"|[Kh].|G........|M..|[Jj]....|\x95........"
)
_START = rb"(?s)\x80\x05(?:\x95........)?"


def _tokens(bare: bytes) -> bytes:
    return rb"[" + bare + rb"]*+(?:(?:" + _WITH_ARGUMENT + rb")[" + bare + rb"]*+)*+"


# Matches a whole pickle of plain values with short strings: None, bool, int, float, str, tuple, list, dict, set,
# frozenset. Whatever it matches, any unpickler may load.
is_plain = re.compile(_START + _tokens(_BARE) + rb"\.").fullmatch

_match_start = re.compile(_START).match
_match_tokens = re.compile(rb"(?s)" + _tokens(_BARE + _OTHER)).match

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
    start = _match_start(payload)
    if start is None:
        raise DecodeError("not a data pickle: it does not begin as one of protocol 5")
    at = start.end()
    while True:
        found = _match_tokens(payload, at)
        assert found is not None  # it matches the empty string
        at = found.end()
        if at >= size:
            raise DecodeError("a data pickle that is cut short")
        if payload[at] == _STOP:
            break
        at = _skip(payload, at, size)
    if at != size - 1:
        raise DecodeError(f"a data pickle with {size - 1 - at:,} bytes after its end")


def _skip(payload: Bytes, at: int, size: int) -> int:
    """The position after the length-prefixed part at ``at``."""
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
    if end > size:
        raise DecodeError(f"a part of {end - at:,} bytes at byte {at:,} of a data pickle of {size:,}")
    return end
