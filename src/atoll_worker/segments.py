# SPDX-License-Identifier: Apache-2.0
"""Segments: this process's pieces of shared memory, and who uses them. The same on both sides.

A segment is memory that this process made and writes; others are lent it (``loans``). What always holds:

* It has no name, is sealed, and goes with the processes that have it; nothing is left behind.
* It is used as long as somebody counts as a user: an array of the user's own (``Hold``), or a loan. Then it is kept to
  be used again, since fresh memory costs many times a copy in page faults, and trimmed when the budget needs room.
* Finalizers run at any moment, on any thread, perhaps one that holds the lock here. So they only put aside what was let
  go of; ``settle`` takes note, and whoever wants memory or asks for figures calls it. A finalizer of the user's, or a
  signal handler, that wants memory while its own thread holds the lock is refused it, instead of waiting for ever.
* Memory that one peer can write to, or that was lent to one that is shut in (a sandbox), serves that peer only from
  then on: another one's data never lies where it could be changed, or seen, by who has no business with it.

A child that was forked from this process shares its memory. So what was in use then stays as it is until the child has
ended, too; and the child's own memory is new.
"""

from __future__ import annotations

import gc
import os
import sys
from _thread import RLock
from _weakref import ref as weak_reference
from bisect import bisect_right
from collections import deque
from errno import EDEADLK
from mmap import ACCESS_WRITE, PAGESIZE, mmap
from time import monotonic, sleep

from . import shared_memory
from .errors import SegmentsExhausted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Deque, Dict, List, Optional, Protocol, Set, Tuple

    class Peer(Protocol):
        """One that segments are lent to."""

        whose: str

        def collect(self) -> List[Any]:
            """What it has given back since."""

        def retract(self, number: int) -> None:
            """A segment of this number is gone."""

        def lent(self) -> List[Tuple[Any, int]]:
            """What it has now: each segment or loan, and the bytes of it."""


# Bytes from which on a size is rounded up, and steps to the doubled size: at most an eighth more is reserved.
_SMALLEST = 1 << 16
_STEPS = 8
# Whether other processes are to be able to write to a segment: it need not be so, should be so, or must be so. One that
# was sealed stays so when it is used again.
NO, RATHER, ONLY = 0, 1, 2
# A free segment up to this many times as large as needed is taken rather than a new one made.
_ROOMIER = 2
# Free segments that are kept; each takes two descriptors.
_MOST_FREE = 256
# Seconds to wait for memory that others have, and between two looks.
PATIENCE = 5.0
_LOOK_AGAIN = 0.001


def size_class(size: int) -> int:
    """The bytes to reserve for this many: few different sizes, so that segments fit again."""
    if size <= _SMALLEST:
        return _SMALLEST
    step = max(PAGESIZE, 1 << (size - 1).bit_length() - 1 >> _STEPS.bit_length() - 1)
    return -(-size // step) * step


class Segment:
    """A piece of this process's shared memory.

    Attributes:
        number: by which other processes know it; never used again.
        size: bytes.
        fd: its descriptor.
        memory: its mapping, writable and seen by everybody.
        address: where the mapping begins.
        users: how many arrays and loans there are.
        is_sealed: nobody else can write to it who has not been lent it for that before.
        domain: the only peer that it is to be used again for; None for any that is not shut in.
        is_exposed: it is not to be used again at all.
    """

    __slots__ = (
        "__weakref__",
        "address",
        "domain",
        "fd",
        "freed_at",
        "is_exposed",
        "is_sealed",
        "memory",
        "number",
        "size",
        "users",
    )

    def __init__(self, number: int, size: int, domain: Optional[Peer] = None) -> None:
        self.number = number
        self.size = size
        self.domain = domain
        self.is_exposed = False
        self.fd = shared_memory.create(size)
        try:
            self.memory = mmap(self.fd, size, access=ACCESS_WRITE)
        except BaseException:
            os.close(self.fd)
            raise
        self.address = address_of(self.memory)
        self.users = 1
        self.is_sealed = False
        self.freed_at = 0

    def reserve(self, peer: Peer) -> None:
        """From now on it is this peer's alone to use again."""
        if self.domain is None:
            self.domain = peer
        elif self.domain is not peer:
            self.is_exposed = True

    def seal(self) -> None:
        """Nobody can map it to write to it from now on; this process goes on writing."""
        if not self.is_sealed:
            self.is_sealed = True
            shared_memory.seal_against_writers(self.fd)

    def __repr__(self) -> str:
        return f"<Segment {self.number}: {self.size:,} bytes, {self.users} users>"


def address_of(memory: mmap) -> int:
    """Where a writable mapping begins."""
    import ctypes

    return ctypes.addressof(ctypes.c_ubyte.from_buffer(memory))


def _make_let_go(self: Any) -> None:
    try:
        let_go = self.let_go
    except AttributeError:
        return  # it was never given
    let_go(self)


_hold_types: Dict[int, Any] = {}


def hold(memory: mmap, size: int, let_go: Callable[[Any], None]) -> Any:
    """An object that exports a writable mapping's memory, and calls ``let_go`` once nothing uses that any more.

    Whatever is made from a ``memoryview`` of it keeps it alive: arrays, tensors, tables and views of those.
    """
    kind = _hold_types.get(size)
    if kind is None:
        import ctypes

        base: Any = ctypes.c_ubyte * size
        kind = type(base)("Hold", (base,), {"__del__": _make_let_go})
        if len(_hold_types) > 256:
            _hold_types.clear()
        _hold_types[size] = kind
    held = kind.from_buffer(memory)
    held.let_go = let_go
    return held


class Store:
    """The segments of this process. There is one: ``store``.

    Attributes:
        lock: held for every change of who uses what, here and in ``loans``; never by a finalizer.
        budget: bytes that segments may have altogether.
        patience: seconds to wait for room.
        most_borrowed: how many loans this process keeps; of what comes beyond that it makes copies.
        copies: how often bytes were copied into a segment; ``copied`` is how many bytes those were.
    """

    def __init__(self) -> None:
        self.patience = PATIENCE
        self.most_borrowed = _most_borrowed()
        self._budget: Optional[int] = None
        self._last_number = 0
        self._begin()

    def _begin(self) -> None:
        self.lock = RLock()
        self.copies = 0
        self.copied = 0
        self.created = 0
        self.size = 0
        self._segments: Dict[int, Segment] = {}
        self._free: List[Segment] = []
        self._free_count = 0
        self._let_go: Deque[Segment] = deque()
        self._peers: List[Any] = []  # weak references
        self._starts: List[int] = []  # of memory that may be lent as it is, in order
        self._places: List[Tuple[int, Any]] = []  # the end of each, and whose it is
        self._forks: List[_Fork] = []
        self._holds: Dict[int, Any] = {}  # weak references to what keeps borrowed memory, by id
        self._put_away: Deque[Any] = deque()

    @property
    def budget(self) -> int:
        if self._budget is None:
            text = os.environ.get("ATOLL_MEMORY_BUDGET", "")
            self._budget = int(text) if text.isdigit() else _quarter_of_memory()
        return self._budget

    @budget.setter
    def budget(self, value: int) -> None:
        self._budget = value

    @property
    def most_copied(self) -> int:
        """Bytes of one value that may be copied out of segments: as many as whoever made it could have written."""
        return max(self.budget, _quarter_of_memory())

    def next_number(self) -> int:
        """A number that this process has not used before. With the lock held."""
        self._last_number += 1
        return self._last_number

    # -- memory ----------------------------------------------------------------------------------------------

    def allocate(self, size: int, for_writers: int = NO, domain: Optional[Peer] = None) -> Segment:
        """A segment of at least this many bytes, used by the caller: what ``let_go`` is called with in the end.

        Args:
            size: bytes.
            for_writers: NO, RATHER or ONLY one that is not sealed.
            domain: the peer that it is for alone; see ``Segment.domain``.

        Raises:
            SegmentsExhausted: the budget is used up, and nothing was given back in time.
            OSError: the operating system has no more; or this thread is in the midst of asking for some.
        """
        if self.is_busy:
            raise OSError(EDEADLK, "shared memory cannot be had by what runs while it is being looked after")
        deadline = 0.0
        while True:
            with self.lock:
                self._settle()
                segment = self._take(size, for_writers, domain)
                if segment is not None:
                    return segment
                if size_class(size) > self.budget or monotonic() >= deadline > 0.0:
                    raise SegmentsExhausted(self._explain(size))
            if not deadline:
                # What only a cycle keeps, such as that of an error and its traceback, nobody needs.
                gc.collect()
                # An event loop must not wait: the very tasks that would give something back could not.
                deadline = monotonic() + (0.0 if _is_on_loop() else self.patience)
                continue
            sleep(_LOOK_AGAIN)

    def _take(self, size: int, for_writers: int, domain: Optional[Peer]) -> Optional[Segment]:
        best, rank = None, (False, 0)
        for segment in self._free:
            if segment.domain is not domain or (for_writers == ONLY and segment.is_sealed):
                continue
            if size <= segment.size <= size * _ROOMIER + _SMALLEST:
                # Those that are sealed go to readers first, so that there are others for who wants to be written to.
                its_rank = segment.is_sealed == bool(for_writers), segment.size
                if best is None or its_rank < rank:
                    best, rank = segment, its_rank
        if best is not None:
            self._free.remove(best)
            best.users = 1
            return best
        needed = size_class(size)
        while self.size + needed > self.budget and self._free:
            self._destroy(min(self._free, key=_freed_at))
        if self.size + needed > self.budget:
            return None
        try:
            segment = Segment(self.next_number(), needed, domain)
        except OSError:
            if not self._free:
                raise
            while self._free:  # each has two descriptors
                self._destroy(self._free[-1])
            segment = Segment(self.next_number(), needed, domain)
        self.created += 1
        self.size += needed
        self._segments[segment.number] = segment
        self.add_place(segment.address, needed, segment)
        return segment

    def _destroy(self, segment: Segment) -> None:
        self._free.remove(segment)
        self._drop(segment)

    def _drop(self, segment: Segment) -> None:
        del self._segments[segment.number]
        self.remove_place(segment.address)
        self.size -= segment.size
        for peer in self._living_peers():
            peer.retract(segment.number)
        os.close(segment.fd)

    def count_copy(self, nbytes: int) -> None:
        """So many bytes were copied into a segment."""
        with self.lock:
            self.copies += 1
            self.copied += nbytes

    def let_go(self, segment: Segment) -> None:
        """One user less. From anywhere, finalizers included."""
        self._let_go.append(segment)

    @property
    def is_busy(self) -> bool:
        """Whether this very thread is in the midst of something here, and runs what it did not ask for."""
        return self.lock._is_owned()  # type: ignore[attr-defined, no-any-return]

    def settle(self) -> None:
        """Take note of what was let go of, here and at the other ends."""
        if self.is_busy:
            return
        with self.lock:
            self._settle()

    def leave(self, peer: Peer) -> None:
        """A peer is gone: what served it alone serves anybody. With the lock held."""
        for segment in self._segments.values():
            if segment.domain is peer:
                segment.domain = None

    def _settle(self) -> None:
        if self._forks:
            self._forks = [fork for fork in self._forks if not fork.has_ended()]
        for peer in self._living_peers():
            returned = peer.collect()
            for one in returned:
                if type(one) is Segment:
                    self._let_go.append(one)
            del returned  # borrowed memory that was lent on is let go of here
        self._clear_away()
        while self._let_go:
            segment = self._let_go.popleft()
            segment.users -= 1
            if not segment.users and self._segments.get(segment.number) is segment:
                self._free_count += 1
                segment.freed_at = self._free_count
                self._free.append(segment)
                if segment.is_exposed:
                    self._destroy(segment)
        while self._free and (self.size > self.budget or len(self._free) > min(self.most_borrowed, _MOST_FREE)):
            self._destroy(min(self._free, key=_freed_at))

    def let_go_of_free(self, numbers: Set[int]) -> bool:
        """Make room for another descriptor among those of these numbers: nobody uses the one that is let go of, if
        there is one. With the lock held."""
        free = [segment for segment in self._free if segment.number in numbers]
        if free:
            self._destroy(min(free, key=_freed_at))
        return bool(free)

    def trim(self) -> None:
        """Let go of all memory that nobody uses."""
        if self.is_busy:
            return
        with self.lock:
            self._settle()
            while self._free:
                self._destroy(self._free[-1])

    # -- finding it again ------------------------------------------------------------------------------------

    def add_place(self, start: int, size: int, owner: Any) -> None:
        """Memory of ``owner`` lies here. With the lock held."""
        self._clear_away()
        place = start + size, owner  # made before: nothing may come between the two lists
        index = bisect_right(self._starts, start)
        self._starts.insert(index, start)
        self._places.insert(index, place)

    def remove_place(self, start: int) -> None:
        """Not any more. With the lock held."""
        index = bisect_right(self._starts, start) - 1
        if index >= 0 and self._starts[index] == start:
            del self._starts[index]
            del self._places[index]

    def _clear_away(self) -> None:
        while self._put_away:
            mapping = self._put_away.popleft()
            self.remove_place(mapping.address)
            mapping.borrowed.retract()

    def put_away(self, mapping: Any) -> None:
        """A mapping is not needed any more, but still in its place. From anywhere, finalizers included."""
        self._put_away.append(mapping)

    def find(self, address: int, nbytes: int) -> Optional[Tuple[Any, int]]:
        """Whose memory this is, and where in it; None if it is no shared memory. With the lock held."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        end, owner = self._places[index]
        if address + nbytes > end:
            return None
        return owner, address - self._starts[index]

    def keep(self, segment: Segment) -> Any:
        """An object that exports a segment's memory, and is its user in the place of the caller."""
        held = hold(segment.memory, segment.size, _let_go_segment)
        held.segment = segment
        return held

    # -- whom it is lent to ----------------------------------------------------------------------------------

    def add_peer(self, peer: Peer) -> None:
        """One that segments will be lent to."""
        with self.lock:
            self._peers.append(weak_reference(peer))

    def _living_peers(self) -> List[Any]:
        peers = [reference() for reference in self._peers]
        if None in peers:
            self._peers = [reference for reference in self._peers if reference() is not None]
        return [peer for peer in peers if peer is not None]

    @property
    def is_crowded(self) -> bool:
        """Whether so much is borrowed that descriptors would run out: each takes two."""
        return len(self._holds) >= self.most_borrowed

    def add_hold(self, held: Any) -> None:
        """Something keeps borrowed memory, until ``drop_hold``."""
        self._holds[id(held)] = weak_reference(held)

    def drop_hold(self, held: Any) -> None:
        """Not any more. From anywhere, finalizers included."""
        self._holds.pop(id(held), None)

    def _living_holds(self) -> List[Any]:
        references = list(self._holds.values())
        return [held for reference in references for held in (reference(),) if held is not None]

    # -- figures ---------------------------------------------------------------------------------------------

    def figures(self) -> Dict[str, Any]:
        """What there is now; see ``atoll.memory``."""
        is_busy = self.is_busy
        with self.lock:
            if not is_busy:
                self._settle()
            free = sum(segment.size for segment in self._free)
            peers = [(peer.whose, peer.lent()) for peer in self._living_peers()]
            lent = {id(one): size for _, things in peers for one, size in things if type(one) is Segment}
            borrowed = self._living_holds()
            return {
                "segments": len(self._segments),
                "bytes": self.size,
                "lent": len(lent),
                "lent_bytes": sum(lent.values()),
                "recycled": len(self._free),
                "recycled_bytes": free,
                "borrowed": len(borrowed),
                "borrowed_bytes": sum(len(held) for held in borrowed),
                "copies": self.copies,
                "copied_bytes": self.copied,
                "created": self.created,
                "budget": self.budget,
                "holders": self._holders(),
            }

    def _holders(self) -> Dict[str, Tuple[int, int]]:
        """Who has how many segments, of how many bytes."""
        holders: Dict[str, Tuple[int, int]] = {}
        lent: Dict[int, int] = {}
        for peer in self._living_peers():
            sizes = {}
            for one, size in peer.lent():
                sizes[id(one)] = size
                lent[id(one)] = lent.get(id(one), 0) + 1
            if sizes:
                count, total = holders.get(peer.whose, (0, 0))
                holders[peer.whose] = (count + len(sizes), total + sum(sizes.values()))
        own = [segment.size for segment in self._segments.values() if segment.users > lent.get(id(segment), 0)]
        if own:
            holders["arrays of this process"] = (len(own), sum(own))
        return holders

    def _explain(self, size: int) -> str:
        holders = ", ".join(
            f"{whose}: {count} segment{'s' if count > 1 else ''}, {total:,} bytes"
            for whose, (count, total) in self._holders().items()
        )
        return (
            f"no segment of {size:,} bytes can be had within the memory budget of {self.budget:,} bytes, of which "
            f"{self.size:,} are in use ({holders or 'by nobody'}); let go of arrays that came from, or went to, other "
            "processes, or raise the budget (atoll.set_memory_budget in the host, memory_budget= of a service for its "
            "workers)"
        )

    # -- forks -----------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """If a child is to share memory that is in use, this process must know when it ends."""
        is_busy = self.is_busy
        with self.lock:
            if not is_busy:
                self._settle()
            used = [segment for segment in self._segments.values() if segment.users]
            holds = self._living_holds()
            if used or holds:
                self._forks.append(_Fork(used, holds))

    def after_fork_in_parent(self) -> None:
        """The child's end of the pipe is the child's."""
        for fork in self._forks:
            fork.in_parent()

    def after_fork_in_child(self) -> None:
        """What was here is the parent's: this process begins anew."""
        forks = self._forks
        for peer in self._living_peers():
            peer.disown()
        segments = self._segments
        self._begin()
        for fork in forks:
            fork.in_child()
        # Arrays on them keep their memory; their descriptors are not needed here.
        for segment in segments.values():
            os.close(segment.fd)


class _Fork:
    """A child that was forked while memory was in use: that stays in use until the child has ended."""

    def __init__(self, used: List[Segment], holds: List[Any]) -> None:
        # The child holds the write end, until it ends or becomes another program.
        self._read, self._write = os.pipe()
        self._used = used
        self._holds = holds
        for segment in used:
            segment.users += 1

    def in_parent(self) -> None:
        if self._write >= 0:
            os.close(self._write)
            self._write = -1

    def in_child(self) -> None:
        os.close(self._read)
        self._used, self._holds = [], []

    def has_ended(self) -> bool:
        import select

        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        if not poll.poll(0):
            return False
        os.close(self._read)
        for segment in self._used:
            store.let_go(segment)
        return True


def _let_go_segment(held: Any) -> None:
    store.let_go(held.segment)


def _freed_at(segment: Segment) -> int:
    return segment.freed_at


def _is_on_loop() -> bool:
    """Whether this thread runs an event loop, which must not wait."""
    events = sys.modules.get("asyncio.events")
    return events is not None and events._get_running_loop() is not None


def share_of_files(files: int) -> int:
    """How many segments of others, or free ones, a process keeps that may open so many files: each takes two."""
    return max(8, min(files // 8, 4096)) if files > 0 else 4096


def _most_borrowed() -> int:
    try:
        import resource

        return share_of_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    except (ImportError, OSError, ValueError):
        return 16


def _quarter_of_memory() -> int:
    """Bytes: a quarter of what this process may have, by the machine or by its control group."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        memory = 16 << 30
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            memory = min(memory, int(file.read()))
    except (OSError, ValueError):
        pass  # there is none, or it says "max"
    return memory // 4


store = Store()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: store.before_fork(),
        after_in_parent=lambda: store.after_fork_in_parent(),
        after_in_child=lambda: store.after_fork_in_child(),
    )
