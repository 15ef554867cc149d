# SPDX-License-Identifier: Apache-2.0
"""Segments, their store, and loans: two ends in this process, and an end that keeps to no rules.

The store is the process's one, so both ends of a pair of loans lend from, and borrow into, the same.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from mmap import PAGESIZE, mmap
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from atoll_worker import loans as loans_module
from atoll_worker import segments, shared_memory
from atoll_worker.errors import DecodeError, SegmentsExhausted
from atoll_worker.loans import CELLS, CannotLend, Loans
from atoll_worker.outbox import Outbox
from atoll_worker.segments import Segment, Store, size_class, store

KB, MB = 1 << 10, 1 << 20

pytestmark = pytest.mark.timeout(600)  # as long as all examples of a test take on a busy machine

PASSED = struct.Struct("<B7xQQ")
LEDGER, SEGMENT = 1, 2


# -- sizes -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1 << 50))
def test_a_size_class_has_room_and_wastes_little(size: int) -> None:
    """At most an eighth more, beyond the smallest; whole pages; and what fits one class is the class itself."""
    reserved = size_class(size)
    assert reserved >= max(size, 1)
    assert reserved % PAGESIZE == 0
    assert reserved <= max(64 * KB, size + max(size // 8, PAGESIZE))
    assert size_class(reserved) == reserved


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_size_classes_keep_the_order(one: int, other: int) -> None:
    """More bytes never have a smaller class."""
    assert size_class(min(one, other)) <= size_class(max(one, other))


def test_there_are_few_size_classes() -> None:
    """Eight for each doubling, so that segments fit again."""
    for exponent in range(18, 30):
        assert len({size_class((1 << exponent) + step * 1000) for step in range(1, (1 << exponent) // 1000)}) <= 9


# -- the store -------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store with a small budget, that waits for nobody."""
    made = Store()
    made.budget, made.patience = 4 * MB, 0.01
    monkeypatch.setattr(segments, "store", made)
    yield made
    gc.collect()
    made.settle()
    for segment in list(made._segments.values()):
        for _ in range(segment.users):
            made.let_go(segment)
    made.trim()
    assert (made.size, made.figures()["segments"]) == (0, 0)


def test_a_segment_is_used_again(own_store: Store) -> None:
    """The same memory; a little larger is taken too, one that is far too large is not."""
    first = own_store.allocate(300 * KB)
    own_store.let_go(first)
    assert own_store.allocate(290 * KB) is first
    own_store.let_go(first)
    small = own_store.allocate(100)
    assert small is not first
    assert own_store.figures()["recycled"] == 1
    own_store.let_go(small)


def test_two_users_and_one_goes(own_store: Store) -> None:
    """Only the last one makes it free."""
    segment = own_store.allocate(100)
    segment.users += 1
    own_store.let_go(segment)
    assert own_store.allocate(100) is not segment
    own_store.let_go(segment)
    assert own_store.allocate(100) is segment
    for one in list(own_store._segments.values()):
        own_store.let_go(one)


def test_what_was_freed_first_makes_room(own_store: Store) -> None:
    """Within the budget."""
    made = [own_store.allocate(MB) for _ in range(4)]
    for segment in (made[2], made[0], made[1]):
        own_store.let_go(segment)
    own_store.settle()
    own_store.let_go(own_store.allocate(2 * MB + 1 - MB // 4))
    own_store.settle()
    left = set(own_store._segments.values())
    assert made[2] not in left
    assert made[3] in left
    own_store.let_go(made[3])


def test_no_room_says_who_has_it(own_store: Store) -> None:
    """And how to get more; more than there ever can be is refused at once."""
    segment = own_store.allocate(4 * MB)
    own_store.patience = 60.0
    with pytest.raises(SegmentsExhausted, match=r"5,242,880 bytes .* budget of 4,194,304 .*arrays of this process"):
        own_store.allocate(5 * MB)
    own_store.patience = 0.01
    with pytest.raises(SegmentsExhausted, match="set_memory_budget"):
        own_store.allocate(100)
    own_store.let_go(segment)
    own_store.let_go(own_store.allocate(100))


def test_who_waits_gets_what_another_thread_lets_go_of(own_store: Store) -> None:
    """Without being told."""
    own_store.patience = 30.0
    segment = own_store.allocate(4 * MB)
    got: list[Segment] = []
    thread = threading.Thread(target=lambda: got.append(own_store.allocate(4 * MB)))
    thread.start()
    own_store.let_go(segment)
    thread.join(30)
    assert got == [segment]
    own_store.let_go(segment)


def test_a_budget_that_shrinks(own_store: Store) -> None:
    """What is free beyond it goes at the next look; what is used stays."""
    used, free = own_store.allocate(MB), own_store.allocate(MB)
    own_store.let_go(free)
    own_store.settle()
    own_store.budget = MB
    own_store.let_go(used)
    own_store.settle()
    assert own_store.size <= MB


def test_no_descriptor_left_is_an_oserror_and_leaves_nothing(own_store: Store) -> None:
    """The bytes go another way then."""
    with few_files(0), pytest.raises(OSError, match="Too many open files"):
        own_store.allocate(100)
    assert own_store.figures()["segments"] == 0
    own_store.let_go(own_store.allocate(100))


class few_files:
    """So many more may be opened in the block."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> None:
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = []
        # A limit is on numbers: those below the highest that are free count too.
        highest = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
        while (fd := os.open("/dev/null", os.O_RDONLY)) < highest:
            taken.append(fd)
        os.close(fd)
        self.taken = taken
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + self.count, self.limits[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)
        for fd in self.taken:
            os.close(fd)


def test_memory_is_found_by_its_address(own_store: Store) -> None:
    """Whose it is and where in it, to the last byte; not beyond, and not once it is gone."""
    one, two = own_store.allocate(100), own_store.allocate(300 * KB)
    with own_store.lock:
        for segment in (one, two):
            assert own_store.find(segment.address, segment.size) == (segment, 0)
            assert own_store.find(segment.address + segment.size - 1, 1) == (segment, segment.size - 1)
            assert own_store.find(segment.address + 1, segment.size) is None
    addresses = [segment.address for segment in (one, two)]
    own_store.let_go(one)
    own_store.let_go(two)
    own_store.trim()
    with own_store.lock:
        assert [own_store.find(address, 1) for address in addresses] == [None, None]


class Accounts(RuleBasedStateMachine):
    """Allocations and their ends in any order: memory within the budget, each piece had by one at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.store.budget, self.store.patience = 3 * MB, 0.0
        self.used: list[tuple[Segment, int]] = []
        self.number = 0

    @rule(size=st.one_of(st.integers(1, 200 * KB), st.integers(1, 2 * MB)))
    def allocate(self, size: int) -> None:
        room = self.store.budget - sum(segment.size for segment, _ in self.used)
        try:
            segment = self.store.allocate(size)
        except SegmentsExhausted:
            assert size_class(size) > room
            return
        assert segment.size >= size
        assert segment not in [one for one, _ in self.used]
        self.number += 1
        segment.memory[:8] = self.number.to_bytes(8, "little")
        self.used.append((segment, self.number))

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        segment, number = self.used.pop(data.draw(st.integers(0, len(self.used) - 1)))
        assert segment.memory[:8] == number.to_bytes(8, "little")
        self.store.let_go(segment)

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        segment, number = data.draw(st.sampled_from(self.used))
        segment.users += 1
        self.used.append((segment, number))

    @rule()
    def trim(self) -> None:
        self.store.trim()
        assert self.store.figures()["recycled"] == 0

    @invariant()
    def it_adds_up(self) -> None:
        figures = self.store.figures()
        used = {id(segment): segment.size for segment, _ in self.used}
        assert figures["bytes"] == sum(used.values()) + figures["recycled_bytes"]
        assert figures["bytes"] <= self.store.budget
        assert figures["segments"] == len(used) + figures["recycled"] == len(self.store._starts)
        assert self.store._starts == sorted(self.store._starts)

    def teardown(self) -> None:
        for segment, _ in self.used:
            self.store.let_go(segment)
        self.store.trim()
        assert self.store.size == 0


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_many_threads(own_store: Store) -> None:
    """Each finds in its memory what it wrote there, whatever the others do."""
    own_store.patience = 30.0
    wrong: list[object] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for number in range(150):
                size = chance.choice([100, 70 * KB, 200 * KB, 400 * KB])
                segment = own_store.allocate(size)
                mark = (seed * 1000 + number).to_bytes(8, "little")
                segment.memory[:8] = segment.memory[size - 8 : size] = mark
                if chance.random() < 0.3:
                    held = own_store.keep(segment)
                    if bytes(memoryview(held).cast("B")[:8]) != mark:
                        wrong.append(mark)
                    del held
                else:
                    if segment.memory[size - 8 : size] != mark:
                        wrong.append(mark)
                    own_store.let_go(segment)
                if chance.random() < 0.05:
                    own_store.trim()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    own_store.settle()
    assert own_store.figures()["recycled"] == own_store.figures()["segments"]


# -- two ends --------------------------------------------------------------------------------------------------------


class Pair:
    """Two ends of loans in this process; what one is told to forget, the other forgets."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # As the runtime has it: without Python's own class around it.
        self.one, self.other = Loans(ours, "the other"), Loans(theirs, "the one")
        self.forgotten: list[int] = []
        self.one.on_forget = self.forgotten.append
        self.other.on_forget = lambda number: None

    def deliver(self) -> None:
        while self.forgotten:
            self.other.forget(self.forgotten.pop())

    def lend(self, segment: Any, writable: bool = False) -> tuple[int, int]:
        with store.lock:
            return self.one.lend(segment, writable)

    def close(self) -> None:
        self.one.close()
        self.other.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends."""
    made = Pair()
    yield made
    made.close()


@pytest.fixture
def segment() -> Iterator[Segment]:
    """A segment, of which the test is a user."""
    made = store.allocate(256 * KB)
    made.memory[: made.size] = b"\5" * made.size
    yield made
    store.let_go(made)
    made.memory = None  # type: ignore[assignment] - pytest keeps what fixtures gave until all of them have ended


def settle() -> dict[str, Any]:
    gc.collect()
    return store.figures()


def test_lent_borrowed_and_given_back(pair: Pair, segment: Segment) -> None:
    """The borrower reads the lender's memory; when its last view is gone, the loan has ended."""
    number, cell = pair.lend(segment)
    view = pair.other.borrow(number, cell)
    assert segment.users == 2
    assert settle()["borrowed"] == 1
    assert bytes(view[:3]) == b"\5\5\5"
    segment.memory[0] = 6
    assert view[0] == 6
    part = view[100:200]
    del view
    assert settle()["lent"] == 1
    del part
    assert settle()["lent"] == 0
    assert segment.users == 1


def test_what_the_borrower_writes_is_its_own(pair: Pair, segment: Segment) -> None:
    """And is gone when the memory is lent again, by the same mapping."""
    view = pair.other.borrow(*pair.lend(segment))
    view[:] = bytes(len(view))
    assert segment.memory[:2] == b"\5\5"
    del view
    settle()
    view = pair.other.borrow(*pair.lend(segment))
    assert bytes(view) == b"\5" * segment.size


def test_lent_to_be_written_to(pair: Pair, segment: Segment) -> None:
    """Both see it; and not any more once it was lent to readers, except by who could before."""
    view = pair.other.borrow(*pair.lend(segment, writable=True), writable=True)
    view[3] = 77
    assert segment.memory[3] == 77
    assert pair.one.can_write(segment)
    del view
    fresh = store.allocate(100)
    with store.lock:
        cell = pair.one.lend(fresh)
    assert not pair.one.can_write(fresh)
    store.let_go(fresh)
    view = pair.other.borrow(*cell)
    with pytest.raises(DecodeError, match="cannot be mapped"):
        pair.other.borrow(cell[0], 5, writable=True)
    del view


def test_one_descriptor_for_many_loans(pair: Pair, segment: Segment) -> None:
    """A segment is passed once; each loan is a private mapping while it lasts, and mappings are used again."""
    views = [pair.other.borrow(*pair.lend(segment)) for _ in range(5)]
    views[0][0] = 1
    assert [view[0] for view in views] == [1, 5, 5, 5, 5]
    views.clear()
    settle()
    (borrowed,) = pair.other._borrowed.values()
    assert len(borrowed.idle) == 5
    del borrowed


def test_what_was_not_sent_is_taken_back(pair: Pair, segment: Segment) -> None:
    """Once, however often it is said; its cell is free again."""
    number, cell = pair.lend(segment)
    with store.lock:
        pair.one.take_back(cell)
        pair.one.take_back(cell)
    settle()
    assert segment.users == 1
    assert pair.lend(segment) == (number, cell)


def test_a_segment_that_is_gone_is_forgotten_over_there(pair: Pair) -> None:
    """Its mapping and descriptor go, at once or with the last view."""
    kept = store.allocate(100)
    gone = store.allocate(300 * KB)
    views = [pair.other.borrow(*pair.lend(one)) for one in (kept, gone)]
    del views[1:]
    settle()
    for one in (kept, gone):
        store.let_go(one)
    store.trim()
    assert pair.forgotten == [gone.number]
    pair.deliver()
    assert set(pair.other._borrowed) == {kept.number}
    pair.other.forget(kept.number)  # too early: it is in use
    assert bytes(views[0][:1])
    views.clear()
    settle()
    store.trim()
    assert settle()["segments"] == 0


def test_all_cells_in_use(pair: Pair, segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    """No further loan until one has ended; the memory is as it was."""
    monkeypatch.setattr(loans_module, "CELLS", 8)
    lent = [pair.lend(segment) for _ in range(7)]  # the eighth cell is for the answer
    with pytest.raises(CannotLend):
        pair.lend(segment)
    assert segment.users == 8
    view = pair.other.borrow(*lent[3])
    del view
    settle()
    assert pair.lend(segment)[1] == lent[3][1]


def test_too_many_descriptors_on_their_way(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the socket does not take cannot be lent, and is not counted as lent; later it can."""
    made, lent = [], []
    monkeypatch.setattr(store, "most_borrowed", 5000)
    refused = False
    while not refused:
        made.append(store.allocate(100))
        try:
            lent.append(pair.lend(made[-1]))
        except CannotLend:
            refused = True
    assert made[-1].users == 1
    for place in lent:
        pair.other.borrow(*place)
    pair.lend(made[-1])
    for one in made:
        store.let_go(one)
    pair.close()
    store.trim()


def test_only_so_many_are_passed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the other side's descriptors last; one that nobody uses makes room."""
    monkeypatch.setattr(store, "most_borrowed", 4)
    made = [store.allocate(100) for _ in range(6)]
    for one in made[:4]:
        pair.lend(one)
    with pytest.raises(CannotLend):
        pair.lend(made[4])
    lent = [cell for cell, thing in pair.one._out.items() if thing is made[0]]
    with store.lock:
        pair.one.take_back(lent[0])
    store.let_go(made[0])
    settle()
    pair.lend(made[4])
    assert pair.forgotten == [made[0].number]
    for one in made[1:]:
        store.let_go(one)


def test_the_other_end_is_gone(pair: Pair, segment: Segment) -> None:
    """What it had is back; what this side has of it stays as long as it is used."""
    view = pair.other.borrow(*pair.lend(segment))
    pair.lend(segment)
    pair.one.close()
    pair.one.close()
    settle()
    assert segment.users == 1
    pair.other.close()
    assert view[0] == 5
    with pytest.raises(CannotLend):
        pair.lend(segment)
    del view
    assert settle()["borrowed"] == 0


def test_no_descriptor_left_over_here(pair: Pair, segment: Segment) -> None:
    """It is copied, and the loan ends; the lender passes it once more, and then it is borrowed."""
    view = pair.other.borrow(*pair.lend(segment))  # the ledger has arrived
    fresh = store.allocate(100)
    fresh.memory[:3] = b"abc"
    place = pair.lend(fresh)
    with few_files(0):
        copy = pair.other.borrow(*place)
    assert bytes(copy[:3]) == b"abc"
    assert settle()["borrowed"] == 1
    assert fresh.users == 1
    again = pair.other.borrow(*pair.lend(fresh))
    assert settle()["borrowed"] == 2
    assert len(again) == fresh.size
    del view, again, copy
    store.let_go(fresh)


def test_no_descriptor_left_for_a_mapping(pair: Pair, segment: Segment) -> None:
    """As above, when the segment itself is known already."""
    view = pair.other.borrow(*pair.lend(segment))
    place = pair.lend(segment)
    with few_files(0):
        copy = pair.other.borrow(*place)
    assert copy[0] == 5
    settle()
    assert segment.users == 2
    again = pair.other.borrow(*pair.lend(segment))
    assert settle()["borrowed"] == 2
    del view, again, copy


def test_no_descriptor_left_for_what_is_written_to(pair: Pair, segment: Segment) -> None:
    """A copy would not do: an error that says why, and the loan has ended."""
    view = pair.other.borrow(*pair.lend(segment))
    fresh = store.allocate(100)
    place = pair.lend(fresh, writable=True)
    with few_files(0), pytest.raises(DecodeError, match="no descriptor left"):
        pair.other.borrow(*place, writable=True)
    settle()
    assert fresh.users == 1
    del view
    store.let_go(fresh)


def test_no_descriptor_left_from_the_beginning(pair: Pair, segment: Segment) -> None:
    """Not even for the ledger: all is copied, and given back once there is one."""
    places = [pair.lend(segment) for _ in range(5)]
    with few_files(0):
        copies = [pair.other.borrow(*place) for place in places[:4]]
    assert {copy[0] for copy in copies} == {5}
    assert settle()["borrowed"] == 0
    assert segment.users == 6  # nobody could say that it was copied
    views = [pair.other.borrow(*pair.lend(segment)) for _ in range(4)]  # by then the ledger has been passed again
    settle()
    assert segment.users < 6
    views.append(pair.other.borrow(*places[4]))
    assert {view[0] for view in views} == {5}
    assert settle()["borrowed"] > 0
    views.clear()
    settle()
    assert segment.users == 1


def test_what_was_passed_twice_is_forgotten_once(pair: Pair, segment: Segment) -> None:
    """The second of the two may be on its way still."""
    first = pair.other.borrow(*pair.lend(segment))
    fresh = store.allocate(100)
    _, cell = pair.lend(fresh)
    with store.lock:
        pair.one.take_back(cell)
    view = pair.other.borrow(*pair.lend(fresh))  # passed once more, since nobody knows what became of the first
    del view, first
    settle()
    number = fresh.number
    store.let_go(fresh)
    store.trim()
    pair.deliver()
    assert number not in pair.other._borrowed
    assert not pair.other._receive()
    assert number not in pair.other._borrowed


def test_what_was_copied_and_taken_back_is_passed_again(pair: Pair, segment: Segment) -> None:
    """A copy of what was passed, but not lent in the end, is not taken for what is lent later."""
    view = pair.other.borrow(*pair.lend(segment))
    fresh, other = store.allocate(100), store.allocate(100)
    fresh.memory[:3] = b"old"
    other.memory[:3] = b"yes"
    _, cell = pair.lend(fresh)
    with store.lock:
        pair.one.take_back(cell)
    place = pair.lend(other)
    with few_files(0):
        assert bytes(pair.other.borrow(*place)[:3]) == b"yes"
    settle()
    fresh.memory[:3] = b"new"
    assert bytes(pair.other.borrow(*pair.lend(fresh))[:3]) == b"new"
    fresh.memory[:3] = b"two"
    place = pair.lend(fresh)
    with few_files(0):
        assert bytes(pair.other.borrow(*place)[:3]) == b"two"
    del view
    settle()
    store.let_go(fresh)
    store.let_go(other)


def test_finalizers_at_any_point(pair: Pair, segment: Segment) -> None:
    """The garbage collector runs all the time, on this thread and another, and cycles hold views: nothing stands
    still, and all is given back."""
    threshold = gc.get_threshold()
    done = threading.Event()

    def collect() -> None:
        while not done.is_set():
            gc.collect(0)

    thread = threading.Thread(target=collect)
    gc.set_threshold(1)
    thread.start()
    try:
        for number in range(300):
            ring: list[Any] = [pair.other.borrow(*pair.lend(segment))]
            ring.append(ring)
            own = store.allocate(100)
            ring.append(store.keep(own))
            del ring, own
            if number % 50 == 0:
                store.trim()
                pair.deliver()
    finally:
        done.set()
        gc.set_threshold(*threshold)
        thread.join(30)
    assert not thread.is_alive()
    assert settle()["lent"] == 0
    assert segment.users == 1


def test_many_threads_lend_and_give_back(pair: Pair) -> None:
    """Over one pair of ends."""
    wrong: list[object] = []

    def work(seed: int) -> None:
        try:
            for number in range(100):
                segment = store.allocate(300 * KB)
                mark = (seed * 1000 + number).to_bytes(8, "little")
                segment.memory[:8] = mark
                view = pair.other.borrow(*pair.lend(segment))
                store.let_go(segment)
                if bytes(view[:8]) != mark:
                    wrong.append(mark)
                view[:8] = bytes(8)
                del view
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert settle()["lent"] == 0
    assert settle()["segments"] <= 10


# -- an end that keeps to no rules -----------------------------------------------------------------------------------


class Liar:
    """Passes whatever it likes to a pair's honest end."""

    def __init__(self) -> None:
        ours, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        self.honest = Loans(ours, "a liar")
        self.honest.on_forget = lambda number: None
        self.cells: mmap | None = None

    def pass_on(self, kind: int, number: int, size: int, *fds: int, close: bool = True) -> None:
        self.send(PASSED.pack(kind, number, size), *fds, close=close)

    def send(self, data: bytes, *fds: int, close: bool = True) -> None:
        try:
            socket.send_fds(self.sock, [data], list(fds))
        finally:
            if close:
                for fd in set(fds):
                    os.close(fd)

    def open_ledger(self) -> None:
        fd = shared_memory.create(CELLS)
        self.cells = mmap(fd, CELLS)
        self.pass_on(LEDGER, 0, CELLS, fd)

    def pass_memory(self, number: int, size: int = 16 * PAGESIZE) -> None:
        self.pass_on(SEGMENT, number, size, shared_memory.create(size))

    def close(self) -> None:
        self.honest.close()
        self.sock.close()
        if self.cells is not None:
            self.cells.close()


@pytest.fixture
def liar() -> Iterator[Liar]:
    """One, that has passed its ledger; and afterwards no descriptor more is open."""
    before = set(os.listdir("/proc/self/fd"))
    made = Liar()
    made.open_ledger()
    yield made
    gc.collect()
    store.settle()
    made.close()
    del made
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def use(liar: Liar, number: int = 50) -> None:
    """It still works."""
    liar.honest.forget(number)
    liar.pass_memory(number)
    view = liar.honest.borrow(number, 3)
    assert not any(view)
    view[0] = 1
    del view
    assert liar.cells is not None
    assert liar.cells[3] == 1
    assert len(liar.honest._borrowed) <= 2 * store.most_borrowed


def pipe() -> int:
    read, write = os.pipe()
    os.close(write)
    return read


def small() -> int:
    return shared_memory.create(PAGESIZE)


WRONG: dict[str, Callable[[Liar], object]] = {
    "nothing": lambda liar: None,
    "a pipe": lambda liar: liar.pass_on(SEGMENT, 1, PAGESIZE, pipe()),
    "a folder": lambda liar: liar.pass_on(SEGMENT, 1, PAGESIZE, os.open("/", os.O_RDONLY)),
    "a socket": lambda liar: liar.pass_on(SEGMENT, 1, PAGESIZE, socket.socket(socket.AF_UNIX).detach()),
    "a file": lambda liar: liar.pass_on(SEGMENT, 1, PAGESIZE, os.open(os.__file__, os.O_RDONLY)),
    "not sealed": lambda liar: liar.pass_on(SEGMENT, 1, 1, os.memfd_create("liar", os.MFD_ALLOW_SEALING)),
    "less than announced": lambda liar: liar.pass_on(SEGMENT, 1, 2 * PAGESIZE, small()),
    "far less than announced": lambda liar: liar.pass_on(SEGMENT, 1, (1 << 64) - PAGESIZE, small()),
    "no size": lambda liar: liar.pass_on(SEGMENT, 1, 0, small()),
    "half a page": lambda liar: liar.pass_on(SEGMENT, 1, PAGESIZE // 2, small()),
    "no descriptor": lambda liar: liar.pass_on(SEGMENT, 1, PAGESIZE),
    "another number": lambda liar: liar.pass_on(SEGMENT, 2, PAGESIZE, small()),
    "an unknown kind": lambda liar: liar.pass_on(3, 1, PAGESIZE, small()),
    "kind 0": lambda liar: liar.pass_on(0, 1, PAGESIZE, small()),
    "a second ledger": lambda liar: liar.pass_on(LEDGER, 1, CELLS, shared_memory.create(CELLS)),
    "a small ledger": lambda liar: liar.pass_on(LEDGER, 1, PAGESIZE, small()),
    "too short": lambda liar: liar.send(b"x", small()),
    "empty": lambda liar: liar.send(b"", small()),
    "garbage": lambda liar: liar.send(os.urandom(24), small()),
    "a flood": lambda liar: flood(liar, lambda number: liar.pass_on(SEGMENT, 1000 + number, PAGESIZE, small())),
    "a flood of nothing": lambda liar: flood(liar, lambda number: liar.pass_on(SEGMENT, 1000 + number, PAGESIZE)),
    "a flood of pipes": lambda liar: flood(liar, lambda number: liar.pass_on(SEGMENT, 1000 + number, 1, pipe())),
    "hung up": lambda liar: liar.sock.shutdown(socket.SHUT_RDWR),
}


def flood(liar: Liar, pass_one: Callable[[int], object]) -> None:
    """As much as the socket takes."""
    try:
        for number in range(5000):
            pass_one(number)
    except BlockingIOError:
        return


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_passed_is_not_what_was_said(liar: Liar, kind: str) -> None:
    """The loan is an error, however often; what came is closed; the next segment that is right is borrowed."""
    assert liar.honest.borrow is not None
    use(liar, 49)
    WRONG[kind](liar)
    while True:
        try:
            liar.honest.borrow(1, 3)
        except DecodeError as error:
            if "was mentioned, but not passed" in str(error):
                break  # all that came was looked at
        else:
            pytest.fail("borrowed what is none")
    if kind != "hung up":
        use(liar)


def test_more_than_announced_is_not_reached(liar: Liar) -> None:
    """The memory is as large as was said, though more came."""
    liar.pass_on(SEGMENT, 1, PAGESIZE, shared_memory.create(16 * PAGESIZE))
    view = liar.honest.borrow(1, 0)
    assert len(view) == PAGESIZE


def test_three_descriptors_for_one(liar: Liar) -> None:
    """The others are closed."""
    use(liar)
    before = len(os.listdir("/proc/self/fd"))
    liar.pass_on(SEGMENT, 1, PAGESIZE, small(), pipe(), os.open("/", os.O_RDONLY))
    liar.pass_on(SEGMENT, 2, PAGESIZE, *(small() for _ in range(60)))
    views = [liar.honest.borrow(number, 0) for number in (1, 2)]
    assert len(os.listdir("/proc/self/fd")) == before + 4  # a descriptor and a mapping each
    del views


def test_a_number_is_used_again(liar: Liar) -> None:
    """Who borrowed it keeps what it had; the second memory is closed."""
    liar.pass_memory(1)
    view = liar.honest.borrow(1, 0)
    liar.pass_memory(1, 32 * PAGESIZE)
    liar.pass_memory(2)
    other = liar.honest.borrow(2, 1)
    assert len(liar.honest.borrow(1, 2)) == len(view) == len(other)
    del view, other
    liar.honest.forget(1)
    liar.pass_memory(1, 32 * PAGESIZE)
    assert len(liar.honest.borrow(1, 0)) == 32 * PAGESIZE


@pytest.mark.parametrize("cell", [CELLS, CELLS + 1, (1 << 32) - 1])
def test_a_cell_that_there_is_not(liar: Liar, cell: int) -> None:
    """Nothing is written there."""
    liar.pass_memory(1)
    with pytest.raises(DecodeError, match=f"cell {cell}"):
        liar.honest.borrow(1, cell)
    with pytest.raises(DecodeError, match="not passed"):
        liar.honest.borrow(2, cell)
    use(liar)


@pytest.mark.parametrize("seals", [0x8, 0x10])
def test_a_ledger_that_cannot_be_written_to(seals: int) -> None:
    """Sealed against writers, before it is passed or after: no loan can be given back then."""
    import fcntl

    liar = Liar()
    fd = shared_memory.create(CELLS)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    liar.pass_on(LEDGER, 0, CELLS, fd)
    with pytest.raises(DecodeError, match="cells"):
        liar.honest.borrow(1, 0)
    liar.open_ledger()
    use(liar)
    liar.close()


def test_a_segment_that_is_huge_and_holds_nothing(liar: Liar) -> None:
    """More than this machine has cannot be mapped; what can be is looked at piece by piece."""
    for number, size in enumerate((1 << 46, (1 << 63) - PAGESIZE)):
        liar.pass_on(SEGMENT, number, size, shared_memory.create(size))
        with pytest.raises(DecodeError, match="cannot be mapped"):
            liar.honest.borrow(number, 0)
    size = 4 << 30
    liar.pass_on(SEGMENT, 9, size, shared_memory.create(size))
    view = liar.honest.borrow(9, 1)
    view[size - 1] = 3
    del view
    view = liar.honest.borrow(9, 1)
    assert view[size - 1] == 0
    del view
    use(liar)


def test_it_cannot_make_memory_smaller_afterwards(liar: Liar) -> None:
    """While it is borrowed, and reached to its last byte."""
    fd = shared_memory.create(16 * PAGESIZE)
    liar.pass_on(SEGMENT, 1, 16 * PAGESIZE, fd, close=False)
    view = liar.honest.borrow(1, 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    assert not any(view[-PAGESIZE:])
    os.close(fd)


def test_holes_in_memory_are_zeros(liar: Liar) -> None:
    """It may take its pages back while they are borrowed."""
    import ctypes

    fd = shared_memory.create(16 * PAGESIZE)
    os.pwrite(fd, b"\7" * 16 * PAGESIZE, 0)
    liar.pass_on(SEGMENT, 1, 16 * PAGESIZE, fd, close=False)
    view = liar.honest.borrow(1, 0)
    assert view[5000] == 7
    libc = ctypes.CDLL(None, use_errno=True)
    keep_size_and_punch = 0x3
    assert libc.fallocate(fd, keep_size_and_punch, ctypes.c_int64(0), ctypes.c_int64(16 * PAGESIZE)) == 0
    assert not any(view)
    os.close(fd)


def test_a_flood_leaves_descriptors_for_others(liar: Liar, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many it passes, it is one that only so many are kept of; and FORGET makes room."""
    monkeypatch.setattr(store, "most_borrowed", 10)
    use(liar)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(2000):
        liar.pass_memory(number)
        if number % 100 == 99:
            with pytest.raises(DecodeError):
                liar.honest.borrow(100_000, 0)
    assert len(os.listdir("/proc/self/fd")) <= before + 20
    with pytest.raises(DecodeError, match="no descriptor left for it"):
        liar.honest.borrow(1999, 0)
    for number in range(20):
        liar.honest.forget(number)
    use(liar, 3000)


def test_a_flood_that_never_ends_stops_nobody(liar: Liar) -> None:
    """Messages come as fast as they are taken: who looks for a segment, or is told to forget one, is not kept."""
    done = threading.Event()

    def send() -> None:
        while not done.is_set():
            try:
                liar.pass_on(SEGMENT, 7, PAGESIZE)
            except BlockingIOError:
                continue

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            with pytest.raises(DecodeError, match="not passed"):
                liar.honest.borrow(1, 0)
            liar.honest.forget(2)
    finally:
        done.set()
        for thread in threads:
            thread.join(30)


def test_memory_of_the_liars_own_lent_on_and_taken_back(liar: Liar, pair: Pair) -> None:
    """What came from a liar can be lent on; should it go, who has it keeps it."""
    liar.pass_memory(1)
    view = liar.honest.borrow(1, 0)
    found = pair.one.find(address(view), len(view))
    assert found is not None
    held, offset = found
    assert offset == 0
    place = pair.lend(held)
    there = pair.other.borrow(*place)
    assert len(there) == len(view)
    del held, found
    liar.honest.forget(1)
    liar.close()
    assert not any(there)
    pair.deliver()
    del there, view
    gc.collect()


def address(view: memoryview) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(view))


# -- cells that are lied about ---------------------------------------------------------------------------------------


def cells_of(pair: Pair) -> mmap:
    """What the borrower has of the lender's ledger."""
    cells = pair.other._their_cells
    assert cells is not None
    return cells


def test_cells_with_garbage_in_them(pair: Pair, segment: Segment) -> None:
    """States that there are not, and cells of no loan, mean nothing; what is given back then still is."""
    view = pair.other.borrow(*pair.lend(segment))
    chance = random.Random(1)
    for _ in range(20):
        for index in range(1, 2000):
            cells_of(pair)[index] = chance.choice([0, 1, 2, 3, 128, 255])
        settle()
    assert segment.users == 2
    del view
    settle()
    assert segment.users == 1
    assert len(set(pair.one._free_cells)) == len(pair.one._free_cells)


def test_given_back_too_early_and_twice(pair: Pair, segment: Segment) -> None:
    """The lender counts it once. Its memory may be used for something else, and that is all."""
    number, cell = pair.lend(segment)
    view = pair.other.borrow(number, cell)
    for state in (1, 2, 1, 255, 1):
        cells_of(pair)[cell] = state
        settle()
    assert segment.users == 1
    assert view[0] == 5
    again = pair.other.borrow(*pair.lend(segment))  # the very cell
    assert segment.users == 2
    del view  # ends the new loan too early, once more
    settle()
    assert again[0] == 5
    del again
    settle()
    assert segment.users == 1


def test_said_to_be_lost_again_and_again(pair: Pair, segment: Segment) -> None:
    """The descriptor is passed anew each time, and not kept twice; when no more go through, nothing can be lent."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(1000):
        try:
            number, cell = pair.lend(segment)
        except CannotLend:
            break
        view = pair.other.borrow(number, cell)
        del view
        cells_of(pair)[cell] = 2
        store.settle()
    assert len(os.listdir("/proc/self/fd")) <= before + 5
    assert segment.users == 1


# -- FORGET ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(0, 1 << 64 - 1))
@settings(max_examples=30, deadline=None)
def test_forget_of_any_number_at_any_time(numbers: list[int], other: int) -> None:
    """Unknown, known, in use, twice."""
    liar = Liar()
    liar.open_ledger()
    views = []
    for number in numbers:
        if number in liar.honest._borrowed:
            views.append(liar.honest.borrow(number, len(views)))
            liar.honest.forget(number)
        else:
            liar.pass_memory(number)
            liar.honest.forget(other + 10)
    assert not any(any(view[:10]) for view in views)
    views.clear()
    gc.collect()
    liar.close()
    assert settle()["borrowed"] == 0


def test_who_does_not_listen_is_not_waited_for() -> None:
    """A peer that stands still is told as much as the socket takes; whoever holds the store's lock goes on, and the
    rest follows once it listens again."""
    ours, theirs = socket.socketpair()
    outbox = Outbox(ours)
    for number in range(5000):
        outbox.forget(number)
    received = b""
    theirs.settimeout(30)
    sender = threading.Thread(target=outbox.send, args=(32, 0))
    sender.start()
    while len(received) < 5000 * 24 + 16:
        received += theirs.recv(1 << 16)
    sender.join(30)
    numbers = [struct.unpack_from("<Q", received, 24 * index + 16)[0] for index in range(5000)]
    assert numbers == list(range(5000))
    assert received[-16] == 32
    ours.close()
    theirs.close()
