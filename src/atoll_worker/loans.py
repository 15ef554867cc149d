# SPDX-License-Identifier: Apache-2.0
"""Lending segments to the process at the other end, and borrowing its. The same on both sides.

What crosses, and how::

    descriptors   once for each segment, over a socket of their own, always before the frame that mentions it
    a loan        in the frame (``values``): number of the segment, cell, and which bytes of it
    its return    the borrower writes into the cell, in memory that the lender shared: no message, no thread to wake.
                  The lender looks there when it wants memory, or is asked for figures (``Store.settle``)
    FORGET        over the control connection: the lender let go of a segment that the borrower has a mapping of

What always holds:

* A loan ends when nothing uses the memory any more (``segments.hold``), once, never by a timer; or with the process.
* Borrowed memory is mapped privately: what is written there, even by code that ignores that an array is read-only, is
  seen by nobody else, and is gone when the memory is lent again. Only what was lent to be written to is shared.
* A mapping is kept for the next loan of the same segment: faulting pages in costs more than copying them.
* Nothing the other side says is believed: descriptors are checked (``shared_memory``), numbers and lengths against what
  was mapped. Whoever gives back too early sees its own data change, and nobody else's.
"""

from __future__ import annotations

import os
from _socket import CMSG_SPACE, MSG_DONTWAIT, SCM_RIGHTS, SOL_SOCKET
from _struct import Struct
from _weakref import ref as weak_reference
from collections import deque
from mmap import ACCESS_COPY, ACCESS_WRITE, PAGESIZE, mmap
from resource import RUSAGE_SELF, getrusage

from . import shared_memory
from .errors import DecodeError
from .segments import Segment, address_of, hold, store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any, Callable, Deque, Dict, List, Optional, Set, Tuple

# What comes with a descriptor: LEDGER or SEGMENT, number and size of the segment.
_PASSED = Struct("<B7xQQ")
_LEDGER, _SEGMENT = 1, 2
_DESCRIPTOR = Struct("@i")

# States of a cell: the loan lasts; it has ended; it has ended, and the segment's descriptor did not arrive.
_RETURNED, _LOST = 1, 2
# How many loans there can be at a time.
CELLS = 1 << 16
# Loans that are looked after as soon as there are so many.
_MUCH = 2
# Descriptors that can be on their way: a socket takes some hundreds. Who sends on and on is not listened to for ever.
_MOST_WAITING = 4096

_DONTNEED = 4  # madvise: of `mmap` from Python 3.8 on, where the C library had it
_MSG_CMSG_CLOEXEC = 0x40000000 if os.uname().sysname == "Linux" else 0
# Mappings below this are emptied without looking whether anybody wrote to them.
_LOOK_ABOVE = 1 << 19
# Pages to look at at a time.
_PAGES = 1 << 16
# Upper bytes of page map entries of pages that are not this process's own: absent, or present and the file's.
_NOT_OWN = bytes(byte for byte in range(256) if not byte & 0xC0 or byte & 0x20)


class CannotLend(Exception):
    """The other side cannot be lent it just now: its bytes are to go another way.

    Attributes:
        is_gone: because there is no other side any more.
    """

    is_gone = False


class _Gone(CannotLend):
    is_gone = True


class Borrowed:
    """A segment of the other side's.

    Attributes:
        lender: the loans it came by.
        number: its number over there.
        own_number: by which this side lends it on; 0 if it never did.
        fd: its descriptor.
        size: its bytes.
        idle: private mappings that nobody uses.
        forgotten: the other side let go of it.
    """

    __slots__ = ("fd", "forgotten", "idle", "lender", "number", "own_number", "shared", "size")

    def __init__(self, lender: Loans, number: int, fd: int, size: int) -> None:
        self.lender = lender
        self.number = number
        self.own_number = 0
        self.fd = fd
        self.size = size
        self.idle: Deque[Mapping] = deque()
        self.shared: Optional[mmap] = None
        self.forgotten = False

    def retract(self) -> None:
        """Those whom it was lent on to let go of it, too, once they do not use it. With the store's lock held."""
        number, self.own_number = self.own_number, 0  # lent on again, it has a new one: they may not have heard yet
        if number:
            for peer in store._living_peers():
                peer.retract(number)

    def __del__(self) -> None:
        try:
            os.close(self.fd)
        except (AttributeError, OSError, TypeError):
            pass  # the interpreter ends


class Mapping:
    """A private mapping of a borrowed segment; ``held`` is what keeps it in use now."""

    __slots__ = ("address", "borrowed", "faults", "held", "memory")

    def __init__(self, borrowed: Borrowed) -> None:
        self.borrowed = borrowed
        self.memory = mmap(borrowed.fd, borrowed.size, access=ACCESS_COPY)
        self.address = address_of(self.memory)
        self.held: Any = None  # a weak reference
        self.faults = 0

    def is_clean(self) -> bool:
        """Whether all of it is still the segment's, since nobody wrote to it here."""
        faults = _faults()
        if self.faults == faults:
            return True  # the first write to a page is a fault
        if not self._has_own_pages():
            self.faults = faults  # counted before it was looked at
            return True
        return False

    def _has_own_pages(self) -> bool:
        first, count = self.address // PAGESIZE, self.borrowed.size // PAGESIZE
        try:
            fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return True
        try:
            for page in range(first, first + count, _PAGES):
                wanted = 8 * min(_PAGES, first + count - page)
                entries = os.pread(fd, wanted, 8 * page)
                if len(entries) != wanted or entries[7::8].translate(None, _NOT_OWN):
                    return True
        except OSError:
            return True
        finally:
            os.close(fd)
        return False

    def renew(self) -> None:
        """What was written to it is forgotten."""
        if self.faults == _faults():
            return
        if self.borrowed.size < _LOOK_ABOVE or not self.is_clean():
            self.memory.madvise(_DONTNEED)


def _faults() -> int:
    """How often a page had to be brought to this process, ever; the kernel counts before the page can be used. It takes
    a microsecond, where looking at the pages takes one for every ten of them."""
    usage = getrusage(RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


class Loans:
    """What this side lends to one peer, and borrows from it.

    Args:
        sock: passes descriptors, as messages.
        whose: who the peer is, for messages.

    Attributes:
        is_trusted: the peer is the one that decides what runs here, so it will not change what was checked.
        on_forget: tells the peer that a segment is gone.
        is_shut_in: the peer is to see nothing that was not meant for it.
        most_passed: segments that the peer is passed descriptors of; None for as many as this side itself would take.
    """

    def __init__(self, sock: socket, whose: str) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.whose = whose
        self.is_trusted = False
        self.is_shut_in = False
        self.on_forget: Callable[[int], None] = lambda number: None
        self.most_passed: Optional[int] = None
        self._cells: Optional[mmap] = None  # of what is lent
        self._free_cells: List[int] = []
        self._used_cells = 0
        self._out: Dict[int, Any] = {}
        self._known: Set[int] = set()
        self._passed_as: Dict[int, int] = {}  # where that is another number than the segment's own
        self._writable: Set[int] = set()  # of those known, what the other side can write to
        self._their_cells: Optional[mmap] = None  # of what is borrowed
        self._borrowed: Dict[int, Borrowed] = {}
        self._lost: Set[int] = set()
        self._is_closed = False
        store.add_peer(self)

    # -- lending ---------------------------------------------------------------------------------------------

    def lend(self, thing: Any, writable: bool = False) -> Tuple[int, int]:
        """Lend a segment, or what holds borrowed memory. With the store's lock held.

        Args:
            thing: a segment, of which the caller is a user and the loan is one more; or a hold.
            writable: to be written to.

        Returns:
            its number and the loan's cell.

        Raises:
            CannotLend: there are too many loans, or too many descriptors on their way.
        """
        if self._is_closed:
            raise _Gone
        if self._cells is None:
            self._open_ledger()
        assert self._cells is not None
        if type(thing) is Segment:
            number, size, fd = thing.number, thing.size, thing.fd
            if not writable:
                thing.seal()
            if writable or self.is_shut_in:
                thing.reserve(self)
        else:
            borrowed = thing.mapping.borrowed
            if not borrowed.own_number:
                borrowed.own_number = store.next_number()
            number, size, fd = borrowed.own_number, borrowed.size, borrowed.fd
        if number not in self._known:
            # The other side takes so many, and a few more: what is known of those it was told to forget.
            most = store.most_borrowed if self.most_passed is None else self.most_passed
            if len(self._known) >= most and not (store.let_go_of_free(self._known) or self._retract_one()):
                raise CannotLend
            self._pass(_SEGMENT, self._passed_as.get(number, number), size, fd)
            self._known.add(number)
        if writable:
            self._writable.add(number)
        if self._free_cells:
            cell = self._free_cells.pop()
        elif self._used_cells < CELLS:
            cell = self._used_cells
            self._used_cells += 1
        else:
            raise CannotLend
        if type(thing) is Segment:
            thing.users += 1
        self._out[cell] = thing
        return self._passed_as.get(number, number), cell

    def _open_ledger(self) -> None:
        try:
            fd = shared_memory.create(CELLS)
        except OSError:
            raise CannotLend from None
        try:
            cells = mmap(fd, CELLS)
            self._pass(_LEDGER, 0, CELLS, fd)
        except OSError:
            raise CannotLend from None
        finally:
            os.close(fd)
        self._cells = cells

    def _pass(self, kind: int, number: int, size: int, fd: int) -> None:
        rights = [(SOL_SOCKET, SCM_RIGHTS, _DESCRIPTOR.pack(fd))]
        try:
            self._sock.sendmsg([_PASSED.pack(kind, number, size)], rights, MSG_DONTWAIT)
        except (BrokenPipeError, ConnectionError):
            raise _Gone from None
        except OSError:
            raise CannotLend from None

    def take_back(self, cell: int) -> None:
        """A loan that was not sent after all. With the store's lock held."""
        thing = self._out.pop(cell, None)
        if thing is not None:
            self._free_cells.append(cell)
            if type(thing) is Segment:
                store.let_go(thing)

    def collect(self) -> List[Any]:
        """What has been given back since, to be let go of. With the store's lock held."""
        cells = self._cells
        if cells is None or not self._out:
            return []
        returned = []
        for state in (b"\1", b"\2"):
            cell = cells.find(state, 0, self._used_cells)
            while cell >= 0:
                cells[cell] = 0
                thing = self._out.pop(cell, None)
                if thing is not None:
                    returned.append(thing)
                    self._free_cells.append(cell)
                    if state == b"\2":
                        self._known.discard(_number_of(thing))
                cell = cells.find(state, cell + 1, self._used_cells)
        return returned

    def retract(self, number: int) -> None:
        """This side let go of a segment. With the store's lock held."""
        if number in self._known:
            self._known.discard(number)
            self._writable.discard(number)
            self.on_forget(self._passed_as.pop(number, number))

    def _retract_one(self) -> bool:
        """Have the other side let go of a segment that it does not use now, if there is one."""
        unused = self._known.difference(_number_of(thing) for thing in self._out.values())
        if unused:
            number = min(unused)
            self.retract(number)
            # It may be passed again before the other side has heard of this.
            self._passed_as[number] = store.next_number()
        return bool(unused)

    @property
    def lends_much(self) -> bool:
        """Whether it is worth while to look what was given back."""
        return len(self._out) >= _MUCH

    def lent(self) -> List[Tuple[Any, int]]:
        """What is lent now, and the bytes of each."""
        return [(one, one.size if type(one) is Segment else len(one)) for one in list(self._out.values())]

    def find(self, address: int, nbytes: int) -> Optional[Tuple[Any, int]]:
        """The segment or hold whose memory this is, to be lent as it is, and where in it; else None."""
        if store.is_busy:
            return None
        with store.lock:
            found = store.find(address, nbytes)
            if found is None:
                return None
            owner, offset = found
            if type(owner) is Segment:
                return found if owner.users else None
            held = owner.held() if owner.held is not None else None
        # Its own it is not lent back: that would end only once this side looks. Not under the lock: it reads a file.
        if held is None or owner.borrowed.lender is self or not owner.is_clean():
            return None
        return held, offset

    def can_write(self, segment: Segment) -> bool:
        """Whether the other side can be lent it to write to: once it was lent to be read, only who could before."""
        return not segment.is_sealed or segment.number in self._writable

    # -- borrowing -------------------------------------------------------------------------------------------

    def borrow(self, number: int, cell: int, writable: bool = False) -> memoryview:
        """The memory of a segment that was lent, as writable bytes; the loan lasts as long as anything uses it.

        Raises:
            DecodeError: there is no such loan, or its memory cannot be had.
        """
        if store.is_busy:
            self._end(cell)
            raise DecodeError("no segment can be borrowed by what runs while shared memory is being looked after")
        with store.lock:
            borrowed = self._find(number, cell)
            mapping: Optional[Mapping] = None
            try:
                if writable:
                    if borrowed.shared is None:
                        borrowed.shared = mmap(borrowed.fd, borrowed.size, access=ACCESS_WRITE)
                    memory = borrowed.shared
                else:
                    try:
                        mapping = borrowed.idle.pop()
                    except IndexError:
                        mapping = Mapping(borrowed)
                        store.add_place(mapping.address, borrowed.size, mapping)
                    memory = mapping.memory
                    mapping.faults = _faults()
            except (OSError, ValueError) as error:
                self._end(cell)
                raise DecodeError(f"a segment of {borrowed.size:,} bytes cannot be mapped: {error}") from None
            held = hold(memory, borrowed.size, _give_back)
            held.mapping, held.borrowed, held.loans, held.cell = mapping, borrowed, self, cell
            if mapping is not None:
                mapping.held = weak_reference(held)
            store.add_hold(held)
        return memoryview(held).cast("B")

    def _end(self, cell: int, state: int = _RETURNED) -> None:
        cells = self._their_cells
        if cells is not None and 0 <= cell < CELLS:
            cells[cell] = state

    def _find(self, number: int, cell: int) -> Borrowed:
        for _ in range(_MOST_WAITING):
            borrowed = self._borrowed.get(number)
            if borrowed is not None and self._their_cells is not None:
                if not 0 <= cell < CELLS:
                    raise DecodeError(f"a loan has cell {cell}; there are {CELLS}")
                return borrowed
            if not self._receive():
                break
        self._end(cell, _LOST)
        why = "; this process has no descriptor left for it" if number in self._lost else ""
        self._lost.discard(number)
        raise DecodeError(f"segment {number} was mentioned, but not passed{why}")

    def _receive(self) -> bool:
        """Take one descriptor that was passed; False if there is none."""
        try:
            data, ancillary, _, _ = self._sock.recvmsg(
                _PASSED.size, CMSG_SPACE(4 * 4), MSG_DONTWAIT | _MSG_CMSG_CLOEXEC
            )
        except OSError:
            return False
        descriptors = [
            fd
            for level, kind, content in ancillary
            if level == SOL_SOCKET and kind == SCM_RIGHTS
            for (fd,) in _DESCRIPTOR.iter_unpack(content[: len(content) & ~3])
        ]
        try:
            if len(data) != _PASSED.size:
                if data:
                    raise DecodeError("what was passed beside a descriptor is not understood")
                return False
            kind, number, size = _PASSED.unpack(data)
            # The host keeps to what it was told, but what it says of those to forget may come later than others.
            is_flood = not self.is_trusted and len(self._borrowed) >= 2 * store.most_borrowed
            if not descriptors or (kind == _SEGMENT and is_flood):
                if len(self._lost) < _MOST_WAITING:
                    self._lost.add(number)
                return True
            shared_memory.check(descriptors[0], size)
            if kind == _LEDGER and self._their_cells is None and size >= CELLS:
                try:
                    self._their_cells = mmap(descriptors[0], CELLS)
                except OSError as error:
                    raise DecodeError(f"the cells for loans cannot be mapped: {error}") from None
            elif kind == _SEGMENT and size % PAGESIZE == 0:
                # One that came already is as good: the other side may not know yet that it did.
                if number not in self._borrowed:
                    self._borrowed[number] = Borrowed(self, number, descriptors.pop(0), size)
            else:
                raise DecodeError("what was passed beside a descriptor is not understood")
            return True
        finally:
            for fd in descriptors:
                os.close(fd)

    def forget(self, number: int) -> None:
        """The other side let go of a segment: so does this one, of what it kept of it."""
        with store.lock:
            try:
                for _ in range(_MOST_WAITING):
                    if number in self._borrowed or not self._receive():
                        break
            except DecodeError:
                pass  # whoever borrows is told
            borrowed = self._borrowed.pop(number, None)
            if borrowed is not None:
                self._forget(borrowed)

    def _forget(self, borrowed: Borrowed) -> None:
        borrowed.forgotten = True
        while borrowed.idle:
            store.remove_place(borrowed.idle.pop().address)
        borrowed.retract()

    # -- the end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """The other side is gone: what it had is back, what this side has of it stays as long as it is used."""
        with store.lock:
            if self._is_closed:
                return
            self._is_closed = True
            out, self._out = self._out, {}
            for thing in out.values():
                if type(thing) is Segment:
                    store.let_go(thing)
            borrowed, self._borrowed = self._borrowed, {}
            for one in borrowed.values():
                self._forget(one)
            self._known.clear()
            self._cells = self._their_cells = None
            self._sock.close()
            store.leave(self)
        out.clear()  # out of the lock: it lets go of borrowed memory
        store.settle()

    def disown(self) -> None:
        """In a forked child: loans are the parent's to give back, and the other side is the parent's peer."""
        self._is_closed = True
        self._cells = self._their_cells = None
        self._out = {}
        self._sock.close()


def _number_of(thing: Any) -> int:
    return int(thing.number if type(thing) is Segment else thing.mapping.borrowed.own_number)


def _give_back(held: Any) -> None:
    """Nothing uses the memory of a loan any more. Called by finalizers: it takes no lock."""
    mapping, borrowed = held.mapping, held.borrowed
    is_renewed = False
    try:
        if mapping is not None:
            mapping.held = None
            if not borrowed.forgotten:
                mapping.renew()
                is_renewed = True
    finally:  # what interrupts the code that let go may strike above, and what is raised in a finalizer is lost
        if is_renewed:
            borrowed.idle.append(mapping)
            if borrowed.forgotten:  # meanwhile
                try:
                    store.put_away(borrowed.idle.pop())
                except IndexError:
                    pass
        elif mapping is not None:
            store.put_away(mapping)
        store.drop_hold(held)
        held.loans._end(held.cell)
