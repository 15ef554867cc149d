# SPDX-License-Identifier: Apache-2.0
"""What travels beside a data pickle: the bytes of its arrays, in segments.

A payload with cargo begins with a table (integers little endian), and goes on with the data pickle, each of whose
``NEXT_BUFFER`` opcodes stands for the next entry of the table::

    0x93 | 3 zero bytes | entries u32 | entry, entry, ...
    entry: kind u8 | form u8 | 2 zero bytes | cell u32 | number u64 | offset u64 | length u64

The first byte is no beginning of a pickle, and makes whoever looks for plain values look twice. Kinds: SEGMENT (bytes
of the segment ``number``, lent with ``cell``), SHARED (the same, to be written to), FRAME (the frame's next buffer),
SAME (what entry ``number`` is). Forms: what is put in the opcode's place, the memory itself, or ``bytes`` or a
``bytearray`` made of it.

Large parts get segments of their own, so that who keeps one of them keeps no more; the others share one. What cannot be
lent just now goes into the frame's own buffers, as everything does where there are no segments.
"""

from __future__ import annotations

from _struct import Struct
from errno import EMFILE
from itertools import chain

from .errors import DecodeError, SegmentsExhausted
from .loans import CannotLend
from .segments import Segment, store
from .wire import CARGO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple

    from .loans import Loans
    from .wire import Bytes

_TABLE = Struct("<B3xI")
_ENTRY = Struct("<BB2xIQQQ")
SEGMENT, SHARED, FRAME, SAME = 1, 2, 3, 4
MEMORY, BYTES, BYTEARRAY = 0, 1, 2

# Bytes from which on a part has a segment of its own, and how many of one message may have.
OWN_SEGMENT = 1 << 18
_MOST_OWN = 64
# How many entries a table may have; and of how many segments, or cells, a value may take parts that are not copied when
# so much is borrowed that nothing should be: a little more than whoever keeps to the rules makes of bytes.
_MOST_ENTRIES = 1 << 20
_MOST_LENT = 2 * _MOST_OWN
# Bytes that are copied without asking how much memory there is.
_ALWAYS_COPIED = 1 << 26
# Bytes that take so long to copy that the other side may wake up meanwhile.
_MUCH = 1 << 19
# What begins in a segment begins at a multiple of this: what processors and Arrow like.
_ALIGNMENT = 64


class Part:
    """Some bytes of a value.

    Attributes:
        position: how many chunks of the pickle were written before it.
        length: how many bytes.
        form: what they are to become.
        thing, offset: the segment or hold that they lie in, and where; None if they are to be copied.
        fill, raw: as for ``Carrier.store``.
        same: index of the part that has the same bytes; -1 for none.
        is_shared: the other side may write to them.
    """

    __slots__ = ("fill", "form", "is_shared", "length", "offset", "position", "raw", "same", "thing")

    def __init__(self, position: int, length: int, form: int = MEMORY) -> None:
        self.position = position
        self.length = length
        self.form = form
        self.thing: Any = None
        self.offset = 0
        self.fill: Optional[Callable[[memoryview], object]] = None
        self.raw: Optional[Callable[[], Any]] = None
        self.same = -1
        self.is_shared = False

    def bytes(self) -> memoryview:
        """Them, to be sent in a frame."""
        if self.thing is not None:
            memory = self.thing.memory if type(self.thing) is Segment else self.thing
            return memoryview(memory).cast("B")[self.offset : self.offset + self.length]
        if self.raw is not None:
            return memoryview(self.raw()).cast("B")
        assert self.fill is not None
        memory = memoryview(bytearray(self.length))
        self.fill(memory)
        return memory


class Cargo:
    """Gathers the parts of one value at a time, and lends what they lie in.

    Args:
        parts: where to gather them; empty again once they were loaded.
        loans: with the side that the value goes to; None if nothing can be lent it.

    Attributes:
        announce: called before much is copied.
        cells: of what was lent for the last value.
    """

    def __init__(self, parts: List[Part], loans: Optional[Loans]) -> None:
        self._loans = loans
        self.parts = parts
        self.announce: Optional[Callable[[], None]] = None
        self._by_address: Dict[Tuple[int, int], int] = {}
        self.cells: List[int] = []

    def find(self, position: int, address: int, nbytes: int, shared: bool = False) -> bool:
        """Whether these bytes can be lent as they are; then they are a part."""
        found = None if self._loans is None else self._loans.find(address, nbytes)
        if found is None:
            return False
        part = Part(position, nbytes)
        part.thing, part.offset = found
        part.is_shared = shared
        self.parts.append(part)
        return True

    def store(
        self,
        position: int,
        nbytes: int,
        fill: Callable[[memoryview], object],
        address: int,
        raw: Optional[Callable[[], Any]],
    ) -> None:
        """Bytes that are to be copied are a part; see ``Carrier.store``."""
        part = Part(position, nbytes)
        part.fill, part.raw = fill, raw
        if address:
            # What these functions hold on to keeps the address from being another's before all is encoded.
            part.same = self._by_address.setdefault((address, nbytes), len(self.parts))
            if part.same == len(self.parts):
                part.same = -1
        self.parts.append(part)

    def insert(self, position: int, value: Any, is_bytearray: bool, fill: Callable[[memoryview], object]) -> None:
        """``bytes`` or a ``bytearray`` are a part, found once all the others are known."""
        part = Part(position, len(value), BYTEARRAY if is_bytearray else BYTES)
        part.fill, part.raw = fill, lambda: value
        before = sum(other.position <= position for other in self.parts)
        self.parts.insert(before, part)
        for other in self.parts:
            if other.same >= before:
                other.same += 1

    def begin(self) -> None:
        """Another value: what was lent for the last one was sent, and is the other side's to give back."""
        self.cells = []

    def clear(self) -> None:
        """The value will not be sent."""
        self.parts.clear()
        self._by_address.clear()

    def load(self) -> Tuple[bytes, List[memoryview]]:
        """The table for the parts, which are then forgotten, and the frame's buffers; b"" if all are in these.

        Raises:
            SegmentsExhausted: there is no room for them.
        """
        parts, loans = self.parts, self._loans
        has_forms = any(part.form for part in parts)
        entries: List[bytes] = []
        buffers: List[memoryview] = []
        self.cells = cells = []
        made: List[Segment] = []
        lent: Dict[Tuple[int, bool], Tuple[int, int]] = {}
        # What is both read and written to, as with `f(a, out=a)`, is one memory over there too.
        shared = {id(part.thing) for part in parts if part.is_shared}
        if parts[0].thing is not None and loans is not None and loans.lends_much:
            # Nothing will be allocated, perhaps for long; and borrowed memory that was lent on is another's to reuse.
            store.settle()
        try:
            if loans is not None:
                self._copy(parts, loans, made)
            for part in parts:
                kind = FRAME
                number = cell = offset = 0
                if part.same >= 0:
                    kind, number = SAME, part.same
                elif part.thing is not None and loans is not None:
                    part.is_shared = id(part.thing) in shared
                    key = id(part.thing), part.is_shared
                    place = lent.get(key)
                    if place is None:
                        place = _lend(loans, part)
                        if place is not None:
                            lent[key] = place
                            cells.append(place[1])
                    if place is not None:
                        number, cell = place
                        kind, offset = (SHARED if part.is_shared else SEGMENT), part.offset
                if kind == FRAME:
                    if part.is_shared:
                        raise OSError(EMFILE, "the memory that is to be written to cannot be passed")
                    buffers.append(part.bytes())
                entries.append(_ENTRY.pack(kind, part.form, cell, number, offset, part.length))
        except BaseException:
            self.take_back()
            raise
        finally:
            for segment in made:
                store.let_go(segment)
            self.clear()
        if len(buffers) == len(entries) and not has_forms:
            return b"", buffers
        return _TABLE.pack(CARGO, len(entries)) + b"".join(entries), buffers

    def _copy(self, parts: List[Part], loans: Loans, made: List[Segment]) -> None:
        """Copy what has no segment yet into one."""
        shared: List[Part] = []
        size = own = 0
        if self.announce is not None and sum(part.length for part in parts if part.thing is None) >= _MUCH:
            self.announce()
        for part in parts:
            if part.thing is not None or part.same >= 0:
                continue
            if part.length >= OWN_SEGMENT and own < min(_MOST_OWN, store.most_borrowed):
                own += 1
                self._copy_into(_allocate(part.length, loans, made), [part])
            else:
                part.offset = size
                size += -(-part.length // _ALIGNMENT) * _ALIGNMENT
                shared.append(part)
        if shared:
            self._copy_into(_allocate(size, loans, made), shared)

    @staticmethod
    def _copy_into(segment: Optional[Segment], parts: List[Part]) -> None:
        if segment is None:
            return
        memory = memoryview(segment.memory)
        for part in parts:
            assert part.fill is not None
            part.fill(memory[part.offset : part.offset + part.length])
            part.thing = segment
            store.count_copy(part.length)

    def take_back(self) -> None:
        """What was lent last was not sent."""
        if self._loans is not None and self.cells:
            with store.lock:
                for cell in self.cells:
                    self._loans.take_back(cell)
            self.cells = []


def _allocate(size: int, loans: Loans, made: List[Segment]) -> Optional[Segment]:
    try:
        segment = store.allocate(size, domain=loans if loans.is_shut_in else None)
    except OSError:
        return None  # no descriptor is left, or this is no time to ask: it goes through the socket
    made.append(segment)
    return segment


def _lend(loans: Loans, part: Part) -> Optional[Tuple[int, int]]:
    try:
        if store.is_busy:
            return None
        with store.lock:
            return loans.lend(part.thing, part.is_shared)
    except CannotLend as why:
        if why.is_gone:
            part.is_shared = False  # nobody will write to it: sending it fails, which says why
        return None


def unload(payload: Bytes, buffers: Sequence[Bytes], loans: Optional[Loans], own: bool) -> Tuple[List[Any], Bytes]:
    """What each ``NEXT_BUFFER`` of a payload with cargo stands for, and its data pickle.

    Args:
        payload: begins with a table.
        buffers: of its frame.
        loans: with the side it came from.
        own: copy what was lent into memory of this process.

    Raises:
        DecodeError: the table is malformed, or what it speaks of cannot be had.
    """
    view = memoryview(payload)
    if len(view) < _TABLE.size:
        raise DecodeError("a table of cargo that is cut short")
    count = _TABLE.unpack_from(view)[1]
    end = _TABLE.size + count * _ENTRY.size
    if end > len(view):
        raise DecodeError(f"a table of cargo of {count:,} entries that is cut short")
    if count > _MOST_ENTRIES:
        raise DecodeError(f"a table of cargo of {count:,} entries; at most {_MOST_ENTRIES:,} are taken")
    items: List[Any] = []
    borrowed: Dict[Tuple[int, int, bool], memoryview] = {}
    taken: Set[Tuple[int, int, bool]] = set()
    extents: Optional[Dict[Tuple[int, int], int]] = None
    copied = lent = 0
    frame = iter(buffers)
    # Of bytes: an iterator that was not used up, and has a memoryview, crashes the garbage collector of some Pythons
    # once both are in a cycle, as they are with an error and its traceback.
    table = bytes(view[_TABLE.size : end])
    entries = _ENTRY.iter_unpack(table)
    try:
        for kind, form, cell, number, offset, length in entries:
            if kind in (SEGMENT, SHARED):
                if loans is None:
                    raise DecodeError("segments have no meaning here")
                key = number, cell, kind == SHARED
                memory = borrowed.get(key)
                if memory is None:
                    is_crowded = store.is_crowded
                    if is_crowded and lent >= _MOST_LENT:
                        raise DecodeError(f"more than {_MOST_LENT} loans at once, and there are too many already")
                    taken.add(key)
                    memory = borrowed[key] = loans.borrow(number, cell, kind == SHARED)
                    extent = 0
                    if kind == SEGMENT and (own or is_crowded):
                        if extents is None:
                            extents = _extents(table)
                        extent = extents.get((number, cell), 0)
                    if extent:
                        memory = memory[:extent]
                        if not own:
                            copied = _count(copied, len(memory))
                        memory = borrowed[key] = _own(memory, own)
                    else:
                        lent += 1
                if offset + length > len(memory):
                    raise DecodeError(f"bytes {offset:,} to {offset + length:,} of a segment of {len(memory):,}")
                item: Any = memory[offset : offset + length]
            elif kind == FRAME:
                item = next(frame, None)
                if item is None:
                    raise DecodeError("a table of cargo speaks of more buffers than the frame has")
            elif kind == SAME:
                if number >= len(items):
                    raise DecodeError(f"entry {len(items)} of a table of cargo is to be the same as entry {number}")
                item = items[number]
            else:
                raise DecodeError(f"cargo of unknown kind {kind}")
            if form in (BYTES, BYTEARRAY):
                if kind != FRAME:
                    copied = _count(copied, len(item))
                item = bytes(item) if form == BYTES else bytearray(item)
            elif form != MEMORY:
                raise DecodeError(f"cargo of unknown form {form}")
            items.append(item)
        return items, view[end:]
    except (DecodeError, SegmentsExhausted, OSError) as error:
        problem = error
    # Whoever keeps the error keeps what this function has, and those that it called.
    memory = item = None
    borrowed.clear()
    items.clear()
    if loans is not None:
        _give_back(chain(((kind, form, cell, number, offset, length),), entries), loans, taken)
    raise problem.with_traceback(None)


def _give_back(entries: Iterable[Any], loans: Loans, taken: Set[Tuple[int, int, bool]]) -> None:
    """What a table speaks of is not wanted: loans that were not taken up yet are, so that they end."""
    for kind, _, cell, number, _, _ in entries:
        key = number, cell, kind == SHARED
        if kind in (SEGMENT, SHARED) and key not in taken:
            taken.add(key)
            try:
                loans.borrow(*key)
            except (DecodeError, OSError):
                pass  # it is said what the first problem was


def _count(copied: int, nbytes: int) -> int:
    """How many bytes of a value will have been copied. They need not have cost the other side anything: memory that was
    never written to is free.

    Raises:
        DecodeError: too many.
    """
    copied += nbytes
    if copied > _ALWAYS_COPIED and copied > store.most_copied:
        raise DecodeError(f"a value came of which more than {store.most_copied:,} bytes would have to be copied")
    return copied


def _extents(table: bytes) -> Dict[Tuple[int, int], int]:
    """How much of each segment, from its beginning, is to be memory of a value, by number and cell."""
    extents: Dict[Tuple[int, int], int] = {}
    for kind, form, cell, number, offset, length in _ENTRY.iter_unpack(table):
        if kind == SEGMENT and form == MEMORY:
            extents[number, cell] = max(extents.get((number, cell), 1), offset + length)
    return extents


def _own(memory: memoryview, in_segment: bool) -> memoryview:
    """A copy in memory of this process: in a segment, or in plain memory, which takes no descriptors."""
    if not in_segment:
        return memoryview(bytearray(memory))
    segment = store.allocate(len(memory))
    try:
        own = memoryview(store.keep(segment)).cast("B")[: len(memory)]
    except BaseException:
        store.let_go(segment)
        raise
    copy_bytes(own, memory)
    store.count_copy(len(memory))
    return own


def copy_bytes(target: memoryview, source: Any) -> None:
    """Copy bytes; with the interpreter lock released, where numpy is loaded and there are many."""
    if len(target) >= OWN_SEGMENT:
        import sys

        numpy = sys.modules.get("numpy")
        if numpy is not None and hasattr(numpy, "copyto"):
            numpy.copyto(numpy.frombuffer(target, "u1"), numpy.frombuffer(source, "u1"))
            return
    target[:] = source
