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
* A side that has no descriptor left copies what it is lent, and says so in the cell, so that the lender passes the
  segment again the next time. One descriptor is kept aside for that (``reserve``).
"""

from __future__ import annotations

import os
from _socket import CMSG_SPACE, MSG_CTRUNC, MSG_DONTWAIT, MSG_PEEK, SCM_RIGHTS, SOL_SOCKET
from _struct import Struct
from _weakref import ref as weak_reference
from collections import deque
from errno import EMFILE
from mmap import ACCESS_COPY, ACCESS_WRITE, PAGESIZE, mmap
from resource import RUSAGE_SELF, getrusage

from . import reserve, shared_memory
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
_RIGHTS = CMSG_SPACE(4 * 4)

# States of a cell: the loan lasts; it has ended; it has ended, and the segment's descriptor did not arrive.
_RETURNED, _LOST = 1, 2
# One more than how many loans there can be at a time.
CELLS = 1 << 16
# The last cell is the borrower's, to say that it has a mapping of them.
_ANSWER = -1
# Loans that are looked after as soon as there are so many.
_MUCH = 2
# Descriptors that can be on their way: a socket takes some hundreds. Who sends on and on is not listened to for ever.
_MOST_WAITING = 4096

_DONTNEED = 4  # madvise: of `mmap` from Python 3.8 on, where the C library had it
_IS_LINUX = os.uname().sysname == "Linux"
_CLOEXEC = 0x40000000 if _IS_LINUX else 0
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
        self._ledger = -1  # their descriptor, until the other side has a mapping
        self._free_cells: List[int] = []
        self._used_cells = 0
        self._out: Dict[int, Any] = {}
        self._known: Set[int] = set()
        self._unsure: Set[int] = set()  # passed, perhaps copied there, and not lent in the end: to be passed again
        self._passed_as: Dict[int, int] = {}  # where that is another number than the segment's own
        self._writable: Set[int] = set()  # of those known, what the other side can write to
        self._their_cells: Optional[mmap] = None  # of what is borrowed
        self._borrowed: Dict[int, Borrowed] = {}
        self._lost: Set[int] = set()
        # Of segments for whose descriptors there was no room, and how often they were passed.
        self._copies: Dict[int, Tuple[bytearray, int]] = {}
        self._unsaid: Dict[int, int] = {}  # states of cells, until there is a mapping to write them to
        self._is_closed = False
        with store.lock:
            reserve.keep()
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
        if number in self._known:
            self._look_for_lost()
        if not self._is_answered() and self._out:
            # With no descriptor left to map the ledger, the other side copies, and cannot say so.
            if len(self._out) & (len(self._out) - 1) == 0:
                self._pass(_LEDGER, 0, CELLS, self._ledger)
            self._unsure.update(self._known)
        if number in self._unsure and number in self._known:
            self._pass(_SEGMENT, self._passed_as.get(number, number), size, fd)
        elif number not in self._known:
            # The other side takes so many, and a few more: what is known of those it was told to forget.
            most = store.most_borrowed if self.most_passed is None else self.most_passed
            if len(self._known) >= most and not (store.let_go_of_free(self._known) or self._retract_one()):
                raise CannotLend
            self._pass(_SEGMENT, self._passed_as.get(number, number), size, fd)
            self._known.add(number)
        self._unsure.discard(number)
        if writable:
            self._writable.add(number)
        if self._free_cells:
            cell = self._free_cells.pop()
        elif self._used_cells < CELLS - 1:
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
        except (OSError, CannotLend) as error:
            os.close(fd)
            raise error if isinstance(error, CannotLend) else CannotLend from None
        self._cells, self._ledger = cells, fd

    def _is_answered(self) -> bool:
        """Whether the other side has a mapping of the cells. From then on their descriptor is not needed."""
        if self._ledger >= 0 and self._cells is not None and self._cells[_ANSWER]:
            self._close_ledger()
        return self._ledger < 0

    def _close_ledger(self) -> None:
        fd, self._ledger = self._ledger, -1
        if fd >= 0:
            os.close(fd)

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
            self._unsure.add(_number_of(thing))
            if type(thing) is Segment:
                store.let_go(thing)

    def collect(self) -> List[Any]:
        """What has been given back since, to be let go of. With the store's lock held."""
        cells = self._cells
        if cells is None:
            return []
        self._is_answered()
        if not self._out:
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

    def _look_for_lost(self) -> None:
        """What the other side had no descriptor left for is to be passed again."""
        assert self._cells is not None
        cell = self._cells.find(b"\2", 0, self._used_cells)
        while cell >= 0:
            thing = self._out.get(cell)
            if thing is not None:
                self._known.discard(_number_of(thing))
            cell = self._cells.find(b"\2", cell + 1, self._used_cells)

    def retract(self, number: int) -> None:
        """This side let go of a segment. With the store's lock held."""
        self._unsure.discard(number)
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
            if borrowed is None:
                return self._take_copy(number, cell, writable)
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
                if getattr(error, "errno", 0) == EMFILE and not writable and self._copy(number, borrowed):
                    return self._take_copy(number, cell, writable)
                self._end(cell)
                raise DecodeError(f"a segment of {borrowed.size:,} bytes cannot be mapped: {error}") from None
            held = hold(memory, borrowed.size, _give_back)
            held.mapping, held.borrowed, held.loans, held.cell = mapping, borrowed, self, cell
            if mapping is not None:
                mapping.held = weak_reference(held)
            store.add_hold(held)
        return memoryview(held).cast("B")

    def _copy(self, number: int, segment: Borrowed) -> bool:
        """Copy a segment while it is lent, since there is no descriptor left to keep it by; False if it cannot be."""
        if segment.size + sum(len(copy) for copy, _ in self._copies.values()) > store.most_copied:
            self._copies.clear()
            if segment.size > store.most_copied:
                return False
        copy = bytearray(segment.size)
        view, done = memoryview(copy), 0
        try:
            while done < segment.size:
                count = os.preadv(segment.fd, [view[done:]], done)
                if not count:
                    return False
                done += count
        except OSError:
            return False  # the memory of some systems is no file
        self._copies[number] = copy, self._copies.get(number, (copy, 0))[1] + 1
        store.count_copy(segment.size)
        return True

    def _take_copy(self, number: int, cell: int, writable: bool) -> memoryview:
        """The copy that was made of a segment; the loan ends. The lender is told to pass the segment again."""
        self._end(cell, _LOST)
        copy, passed = self._copies.pop(number)
        if passed > 1:  # for other loans, which last, so that the content is the same; or passed again before it is not
            self._copies[number] = bytearray(copy), passed - 1
        borrowed = self._borrowed.pop(number, None)
        if borrowed is not None:
            self._forget(borrowed)
        if writable:
            raise DecodeError(f"segment {number} is to be written to; this process has no descriptor left for it")
        return memoryview(copy)

    def _end(self, cell: int, state: int = _RETURNED) -> None:
        cells = self._their_cells
        if not 0 <= cell < CELLS:
            return
        if cells is None:
            self._unsaid[cell] = state
        else:
            cells[cell] = state

    def _find(self, number: int, cell: int) -> Optional[Borrowed]:
        """The segment of a loan; None if there is only a copy of it."""
        for _ in range(_MOST_WAITING):
            if number in self._copies:
                if self._receive():
                    continue  # it may have been passed again, with other content
                return None
            borrowed = self._borrowed.get(number)
            if borrowed is not None:
                if not 0 <= cell < CELLS:
                    raise DecodeError(f"a loan has cell {cell}; there are {CELLS}")
                if self._their_cells is not None:
                    return borrowed
                # By a copy its end can be said later.
                if self._receive():
                    continue
                if self._copy(number, borrowed):
                    return None
                break
            if not self._receive():
                break
        self._end(cell, _LOST)
        why = "; this process has no descriptor left for it" if number in self._lost else ""
        self._lost.discard(number)
        raise DecodeError(f"segment {number} was mentioned, but not passed{why}")

    def _receive(self) -> bool:
        """Take one descriptor that was passed; False if there is none."""
        is_short = False
        try:
            if _IS_LINUX:
                # Whether there is room for it, before it is lost.
                _, ancillary, flags, _ = self._sock.recvmsg(_PASSED.size, _RIGHTS, MSG_DONTWAIT | MSG_PEEK | _CLOEXEC)
                for fd in _descriptors(ancillary):
                    os.close(fd)
                is_short = bool(flags & MSG_CTRUNC) and not ancillary
                if is_short:
                    reserve.release()
            data, ancillary, _, _ = self._sock.recvmsg(_PASSED.size, _RIGHTS, MSG_DONTWAIT | _CLOEXEC)
        except OSError:
            reserve.keep()
            return False
        descriptors = _descriptors(ancillary)
        try:
            if len(data) != _PASSED.size:
                if data:
                    raise DecodeError("what was passed beside a descriptor is not understood")
                return False
            kind, number, size = _PASSED.unpack(data)
            self._take(kind, number, size, descriptors, is_short)
            return True
        finally:
            for fd in descriptors:
                os.close(fd)
            reserve.keep()

    def _take(self, kind: int, number: int, size: int, descriptors: List[int], is_short: bool) -> None:
        # The host keeps to what it was told, but what it says of those to forget may come later than others.
        is_flood = not self.is_trusted and len(self._borrowed) >= 2 * store.most_borrowed
        if not descriptors or (kind == _SEGMENT and is_flood):
            self._lose(number)
            return
        shared_memory.check(descriptors[0], size)
        if kind == _LEDGER and self._their_cells is None and size >= CELLS:
            self._map_cells(descriptors[0])
        elif kind == _LEDGER and size == CELLS:
            pass  # once more, before it was known over there that it arrived
        elif kind == _SEGMENT and size % PAGESIZE == 0:
            # One that came already is as good: the other side may not know yet that it did.
            if number not in self._borrowed:
                borrowed = Borrowed(self, number, descriptors.pop(0), size)
                if not is_short:
                    self._borrowed[number] = borrowed
                    self._copies.pop(number, None)
                elif not self._copy(number, borrowed):
                    self._lose(number)
        else:
            raise DecodeError("what was passed beside a descriptor is not understood")

    def _map_cells(self, fd: int) -> None:
        try:
            cells = mmap(fd, CELLS)
        except OSError as error:
            if error.errno != EMFILE:
                raise DecodeError(f"the cells for loans cannot be mapped: {error}") from None
            return  # it comes again, until it was answered
        self._their_cells = cells
        cells[_ANSWER] = _RETURNED
        for cell, state in self._unsaid.items():
            cells[cell] = state
        self._unsaid.clear()

    def _lose(self, number: int) -> None:
        if len(self._lost) < _MOST_WAITING:
            self._lost.add(number)

    def forget(self, number: int) -> None:
        """The other side let go of a segment: so does this one, of what it kept of it."""
        with store.lock:
            # All that was passed before: it may have been passed more than once, and is not passed after this.
            for _ in range(_MOST_WAITING):
                try:
                    if not self._receive():
                        break
                except DecodeError:
                    pass  # whoever borrows is told
            self._copies.pop(number, None)
            self._lost.discard(number)
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
            self._copies.clear()
            self._unsaid.clear()
            self._cells = self._their_cells = None
            self._close_ledger()
            self._sock.close()
            store.leave(self)
        out.clear()  # out of the lock: it lets go of borrowed memory
        store.settle()

    def disown(self) -> None:
        """In a forked child: loans are the parent's to give back, and the other side is the parent's peer."""
        self._is_closed = True
        self._cells = self._their_cells = None
        self._close_ledger()
        self._out = {}
        self._sock.close()


def _descriptors(ancillary: List[Any]) -> List[int]:
    """Those that came with a message."""
    return [
        fd
        for level, kind, content in ancillary
        if level == SOL_SOCKET and kind == SCM_RIGHTS
        for (fd,) in _DESCRIPTOR.iter_unpack(content[: len(content) & ~3])
    ]


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
