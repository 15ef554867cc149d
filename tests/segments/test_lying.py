# SPDX-License-Identifier: Apache-2.0
"""Workers that lie about memory: an error in the call that lied, and nothing else. The host reads nothing that is not
there, keeps nothing, and goes on; so do its other services.

The workers are real ones, whose service writes descriptors, tables and pickles by hand. What does not belong here: what
the two ends of loans make of lies without a process between them (``test_loans``).
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import struct
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import atoll
from atoll_worker import adapters, array_buffer, arrays, buffers, frames, images, segments, tables, tensors
from atoll_worker.errors import DecodeError as WireError
from atoll_worker.segments import store
from atoll_worker.values import Decoder
from conditions import until
from segment_counts import until_given_back

PAGE = os.sysconf("SC_PAGE_SIZE")
ENTRY = struct.Struct("<BB2xIQQQ")
SEGMENT, SHARED, FRAME, SAME = 1, 2, 3, 4
MEMORY, BYTES, BYTEARRAY = 0, 1, 2
LEDGER, PASSED = 1, 2

SERVICE = """\
    import fcntl, gc, os, socket, struct
    from mmap import mmap
    from atoll_worker import context, expose, shared_memory
    from atoll_worker.segments import store

    MESSAGE = struct.Struct("<B7xQQ")
    kept = {}

    class Crafted:
        def __init__(self, payload, buffers):
            self.payload, self.buffers = payload, buffers

    def the_encoder():
        encoder = context.channels[0]._encoder
        if "encode" not in vars(encoder):
            honest = encoder.encode
            def encode(value):
                if type(value) is Crafted:
                    encoder._buffers.extend(memoryview(one) for one in value.buffers)
                    return value.payload
                return honest(value)
            encoder.encode = encode
        return encoder

    def the_loans():
        loans = the_encoder()._loans()
        with store.lock:
            if loans._cells is None:
                loans._open_ledger()
        return loans

    def memfd(size, seals=6):
        fd = os.memfd_create("liar", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return fd

    MAKE = {
        "memory": memfd,
        "not sealed": lambda size: memfd(size, 0),
        "half": lambda size: memfd(size // 2),
        "a pipe": lambda size: os.dup(os.pipe()[0]),
        "a folder": lambda size: os.open("/", os.O_RDONLY),
        "a file": lambda size: os.open(__file__, os.O_RDONLY),
        "a socket": lambda size: socket.socket().detach(),
    }

    @expose
    def alive():
        return os.getpid()

    @expose
    def lie(passed, payload, buffers=()):
        "Pass descriptors, then answer with these very bytes."
        sock = the_loans()._sock
        for kind, number, size, what in passed:
            rights = []
            if what is not None:
                fd = MAKE[what](size)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))]
            try:
                sock.sendmsg([MESSAGE.pack(kind, number, size)], rights)
            except BlockingIOError:
                break
            finally:
                if what is not None:
                    os.close(fd)
        return Crafted(payload, buffers)

    @expose
    def echo(x):
        return x

    @expose
    def keep(name, x):
        kept[name] = x

    @expose
    def drop(name):
        kept.pop(name)

    @expose
    def scribble(number):
        "Into all memory that was ever lent."
        for segment in store._segments.values():
            segment.memory[:] = bytes([number]) * segment.size

    @expose
    def cut(size):
        "Try to change the size of all memory that it made or was lent; whether that went through."
        fds = [segment.fd for segment in store._segments.values()]
        fds += [borrowed.fd for borrowed in the_loans()._borrowed.values()]
        done = []
        for fd in fds:
            for change in (lambda: os.ftruncate(fd, size), lambda: os.pwrite(fd, b"evil", 0)):
                try:
                    change()
                    done.append(fd)
                except PermissionError:
                    pass
        return len(fds), len(done)

    @expose
    def spoil_cells(state):
        cells = the_loans()._their_cells
        cells[:] = bytes([state]) * len(cells)

    @expose
    def forget(numbers):
        for number in numbers:
            the_loans().on_forget(number)

    @expose
    def numbers():
        return sorted(store._segments)

    @expose
    def numbers_passed():
        return sorted(the_loans()._known)

    @expose
    def die():
        os._exit(3)
"""


@pytest.fixture(scope="module")
def liar_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a service that lies."""
    file = tmp_path_factory.mktemp("lying") / "liar.py"
    file.write_text(textwrap.dedent(SERVICE))
    return file


@pytest.fixture
def liar(liar_file: Path) -> Iterator[Any]:
    """A service that lies; after the test it still answers, the same worker, and has nothing of the host's."""
    with atoll.Service(liar_file, timeout=60) as service:
        alive = service.alive()
        yield service
        assert service.alive() == alive
        assert np.array_equal(service.echo(np.arange(100_000)), np.arange(100_000))
        until_given_back()


@pytest.fixture
def honest(liar_file: Path) -> Iterator[Callable[[], None]]:
    """Checks that another service goes on as ever."""
    with atoll.Service(liar_file, name="honest", timeout=60) as service:
        expected = np.arange(200_000)

        def works() -> None:
            assert np.array_equal(service.echo(expected), expected)

        works()
        yield works


def table(*entries: tuple[int, int, int, int, int, int], count: int | None = None) -> bytes:
    """Of kind, form, cell, number, offset, length each."""
    head = struct.pack("<B3xI", 0x93, len(entries) if count is None else count)
    return head + b"".join(ENTRY.pack(*entry) for entry in entries)


class Call:
    """In a pickle, a call of a restorer."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> Any:
        return self.parts


NEXT = pickle.PickleBuffer(bytearray(1))


def pickled(value: Any) -> bytes:
    """Each ``NEXT`` in it is a NEXT_BUFFER."""
    return pickle.dumps(value, 5, buffer_callback=lambda _: False)


def items(count: int) -> bytes:
    """A pickle of a list of that many buffers."""
    return b"\x80\x05](" + b"\x97" * count + b"e."


def refused(liar: Any, passed: list[Any], payload: bytes, *buffers: bytes) -> str:
    """The message of the error that this lie is."""
    with pytest.raises(atoll.DecodeError) as caught:
        liar.lie(passed, payload, buffers)
    return str(caught.value)


ONE = [(PASSED, 7, 16 * PAGE, "memory")]


# -- descriptors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passed", "message"),
    [
        ([], "not passed"),
        ([(PASSED, 8, PAGE, "memory")], "not passed"),
        ([(PASSED, 7, PAGE, None)], "not passed"),
        ([(PASSED, 7, PAGE, "not sealed")], "sealed"),
        ([(PASSED, 7, 2 * PAGE, "half")], "announced"),
        ([(PASSED, 7, 0, "memory")], "announced"),
        ([(PASSED, 7, PAGE + 1, "memory")], "not understood"),
        ([(9, 7, PAGE, "memory")], "not understood"),
        ([(LEDGER, 0, 1 << 15, "memory")], "not understood"),
        ([(PASSED, 7, PAGE, "a pipe")], "no memory"),
        ([(PASSED, 7, PAGE, "a folder")], "no memory"),
        ([(PASSED, 7, PAGE, "a socket")], "no memory"),
        ([(PASSED, 7, 1, "a file")], "sealed"),
        ([(PASSED, 7, 1 << 46, "memory")], "cannot be mapped"),
    ],
)
def test_descriptors(liar: Any, honest: Callable[[], None], passed: list[Any], message: str) -> None:
    """Of all sorts, twice."""
    for _ in range(2):
        assert message in refused(liar, passed, table((SEGMENT, MEMORY, 0, 7, 0, 8)) + items(1))
    while "not passed" not in refused(liar, [], table((SEGMENT, MEMORY, 0, 70, 0, 8)) + items(1)):
        pass  # what is left of it
    honest()


def test_a_flood_of_descriptors(liar: Any, honest: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as go through, again and again: there are some left for everybody else."""
    monkeypatch.setattr(store, "most_borrowed", 20)
    before = len(os.listdir("/proc/self/fd"))
    for turn in range(10):
        flood = [(PASSED, 1000 * turn + number, PAGE, "memory") for number in range(100, 500)]
        assert "not passed" in refused(liar, flood, table((SEGMENT, MEMORY, 0, 7, 0, 8)) + items(1))
        honest()
    assert len(os.listdir("/proc/self/fd")) < before + 60


def test_sizes_stay_what_they_are(liar: Any) -> None:
    """Neither its own memory, once lent, nor the host's can it make smaller, larger, or write to by its descriptor."""
    mine = atoll.asarray(np.arange(100_000))
    theirs = liar.echo(np.arange(100_000, 200_000))
    kept = liar.echo(mine)
    for size in (0, PAGE, 1 << 30):
        count, done = liar.cut(size)
        assert count >= 2
        assert done == 0
    assert np.array_equal(mine, np.arange(100_000))
    assert np.array_equal(kept, mine)
    assert np.array_equal(theirs, np.arange(100_000, 200_000))


# -- tables ----------------------------------------------------------------------------------------------------------

END = 16 * PAGE
TABLES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"\x93", "cut short"),
    "no entries": (table(count=1), "cut short"),
    "more entries than bytes": (table(count=(1 << 32) - 1) + items(1), "cut short"),
    "past the end": (table((SEGMENT, 0, 0, 7, END, 1)) + items(1), "of a segment"),
    "too long": (table((SEGMENT, 0, 0, 7, 1, END)) + items(1), "of a segment"),
    "a sum that overflows": (table((SEGMENT, 0, 0, 7, (1 << 64) - 1, 2)) + items(1), "of a segment"),
    "a length that overflows": (table((SEGMENT, 0, 0, 7, 0, (1 << 64) - 1)) + items(1), "of a segment"),
    "a length that is negative": (table((SEGMENT, 0, 0, 7, 8, (1 << 64) - 8)) + items(1), "of a segment"),
    "bytes past the end": (table((SEGMENT, BYTES, 0, 7, 0, 1 << 40)) + items(1), "of a segment"),
    "a cell past the end": (table((SEGMENT, 0, 1 << 16, 7, 0, 1)) + items(1), "cell 65536"),
    "kind 0": (table((0, 0, 0, 7, 0, 1)) + items(1), "unknown kind 0"),
    "kind 5": (table((5, 0, 0, 7, 0, 1)) + items(1), "unknown kind 5"),
    "form 3": (table((SEGMENT, 3, 0, 7, 0, 1)) + items(1), "unknown form 3"),
    "the same as itself": (table((SAME, 0, 0, 0, 0, 1)) + items(1), "the same as entry 0"),
    "the same as a later one": (table((SAME, 0, 0, 1, 0, 1), (SAME, 0, 0, 0, 0, 1)) + items(2), "the same as entry 1"),
    "the same as what is wrong": (table((0, 0, 0, 7, 0, 1), (SAME, BYTES, 0, 0, 0, 1)) + items(2), "unknown kind 0"),
    "a buffer that is not there": (table((FRAME, 0, 0, 0, 0, 1)) + items(1), "more buffers than the frame"),
    "more in the pickle": (table((SEGMENT, 0, 0, 7, 0, 1)) + items(2), "buffer"),
    "no pickle": (table((SEGMENT, 0, 0, 7, 0, 1)), "pickle"),
    "another table": (table((SEGMENT, 0, 0, 7, 0, 1)) * 2, "pickle"),
    "to be written to, sealed": (table((SHARED, 0, 0, 9, 0, 1)) + items(1), "not passed"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(liar: Any, name: str) -> None:
    """Each lie by itself, where all else is right."""
    payload, message = TABLES[name]
    assert message in refused(liar, ONE, payload)
    (right,) = liar.lie(ONE, table((SEGMENT, BYTES, 0, 7, END - 3, 3)) + items(1))
    assert right == bytes(3)


def test_less_in_the_pickle_than_in_the_table(liar: Any) -> None:
    """What nobody asks for is given back."""
    payload = table(*((SEGMENT, MEMORY, cell, 7, 0, 8) for cell in range(50)))
    assert liar.lie(ONE, payload + b"\x80\x05N.") is None
    until_given_back()


numbers = st.one_of(
    st.sampled_from([0, 1, 7, 8, END - 1, END, (1 << 63), (1 << 64) - 1]), st.integers(0, (1 << 64) - 1)
)
entries = st.tuples(
    st.one_of(st.sampled_from([SEGMENT, SEGMENT, SHARED, FRAME, SAME]), st.integers(0, 255)),
    st.one_of(st.sampled_from([MEMORY, MEMORY, BYTES, BYTEARRAY]), st.integers(0, 255)),
    st.one_of(st.integers(0, 5), st.sampled_from([65535, 65536, (1 << 32) - 1])),
    st.one_of(st.just(7), st.integers(0, 3), numbers),
    st.one_of(st.integers(0, 100), numbers),
    st.one_of(st.integers(0, 100), numbers),
)


def test_tables_of_any_sort(liar: Any) -> None:
    """Every field, any number of entries, with and without buffers: a value or an error, and never more than that."""
    liar.lie(ONE, table() + b"\x80\x05N.")

    @given(st.lists(entries, max_size=8), st.integers(0, 3), st.integers(-2, 2), st.none() | st.integers(0, 100))
    @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
    def check(lies: list[Any], buffers: int, more: int, count: int | None) -> None:
        payload = table(*lies, count=count) + items(max(0, len(lies) + more))
        try:
            value = liar.lie([], payload, [b"buffer"] * buffers)
        except atoll.DecodeError:
            return
        assert all(len(one) <= max(END, 6) for one in value)

    check()
    assert liar.lie([], table((SEGMENT, BYTES, 0, 7, 0, 3)) + items(1)) == [bytes(3)]


def test_thousands_of_loans_of_one_segment(
    liar: Any, honest: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would be a mapping and a descriptor: beyond a number they are copies, or an error."""
    monkeypatch.setattr(store, "most_borrowed", 20)
    before = len(os.listdir("/proc/self/fd"))
    many = table(*((SEGMENT, MEMORY, cell, 7, 0, 8) for cell in range(3000))) + items(3000)
    value = liar.lie(ONE, many)
    assert len(value) == 3000
    assert len(os.listdir("/proc/self/fd")) < before + 60
    honest()
    for kind, form in ((SEGMENT, BYTES), (SHARED, MEMORY)):
        many = table(*((kind, form, cell, 7, 0, 8) for cell in range(3000))) + items(3000)
        assert "loans at once" in refused(liar, [], many)
    del value
    gc.collect()
    honest()


def test_copies_of_memory_that_cost_nothing(liar: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of copies of the same bytes, which were never written: only as many as could have been."""
    monkeypatch.setattr(segments, "_quarter_of_memory", lambda: 100 << 20)
    monkeypatch.setattr(store, "_budget", 100 << 20)
    size = 32 << 20
    passed = [(PASSED, 7, size, "memory")]
    for form in (BYTES, BYTEARRAY):
        lie = table(*((SEGMENT, form, 0, 7, 0, size) for _ in range(500))) + items(500)
        assert "would have to be copied" in refused(liar, passed, lie)
        again = table((SEGMENT, MEMORY, 0, 7, 0, size), *((SAME, form, 0, 0, 0, 0) for _ in range(500))) + items(501)
        assert "would have to be copied" in refused(liar, passed, again)
    monkeypatch.setattr(store, "most_borrowed", 0)
    lie = table(*((SEGMENT, MEMORY, cell, 7, 0, size) for cell in range(500))) + items(500)
    assert "would have to be copied" in refused(liar, passed, lie)
    assert len(liar.lie(passed, table((SEGMENT, BYTES, 0, 7, 0, size)) + items(1))[0]) == size


def test_own_copies_within_the_budget(liar: Any) -> None:
    """With ``writable=True``: many copies of what cost nothing are no more than the budget has room for."""
    size = 32 << 20
    atoll.set_memory_budget(100 << 20)
    store.patience = 0.01
    lie = table(*((SEGMENT, MEMORY, cell, 7, 0, size) for cell in range(500))) + items(500)
    with pytest.raises(atoll.SegmentsExhausted):
        liar.lie.options(writable=True)([(PASSED, 7, size, "memory")], lie)


def test_many_entries_take_no_longer_than_they_are(liar: Any) -> None:
    """A hundred thousand different cells, each looked at once."""
    many = table(*((SEGMENT, MEMORY, cell % 65536, cell % 3, 0, 8) for cell in range(100_000))) + items(1)
    assert "not passed" in refused(liar, ONE, many)


# -- what is made of the bytes ---------------------------------------------------------------------------------------


def decoded(value: Any, *buffers: Any) -> Any:
    """As the host decodes it."""
    return Decoder(checked=True, side="the host", read_only=True).decode(pickled(value), buffers)


MOST = (1 << 63) - 1
ARRAYS: dict[str, tuple[Any, Any, Any]] = {
    "too long": ("<f8", (9,), "C"),
    "too short": ("<f8", (7,), "C"),
    "negative": ("<f8", (-8,), "C"),
    "a product that overflows": ("<f8", (1 << 62, 1 << 62, 8), "C"),
    "no such order": ("<f8", (8,), "Z"),
    "no such dtype": ("<f9", (8,), "C"),
    "objects": ("O", (8,), "C"),
    "objects in a field": (("struct", ["a"], ["O"], [0], None, 8, False), (8,), "C"),
    "text of variable length": ("T", (4,), "C"),
    "a field outside": (("struct", ["a"], ["<f8"], [1 << 20], None, 8, False), (8,), "C"),
    "a field before": (("struct", ["a"], ["<f8"], [-8], None, 8, False), (8,), "C"),
    "a dtype of itself": (("subarray", "<f8", (1 << 31, 1 << 31)), (1,), "C"),
    "behind": ("<f8", (8,), (1, (8,))),
    "before": ("<f8", (8,), (-8, (8,))),
    "far behind": ("<f8", (8,), (MOST - 8, (8,))),
    "a step too long": ("<f8", (8,), (0, (9,))),
    "a step back": ("<f8", (8,), (0, (-8,))),
    "back from the end, once too often": ("<f8", (9,), (56, (-8,))),
    "a sum that overflows": ("|u1", ((1 << 62) + 1,), (0, (4,))),
    "another": ("|u1", ((1 << 61) + 1,), (0, (8,))),
    "to zero": ("<f8", (1 << 61, 9), (0, (0, 8))),
    "steps of other axes": ("<f8", (8,), (0, (8, 8))),
    "no steps": ("<f8", (8,), (0, ())),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("own", [False, True])
def test_arrays(name: str, own: bool) -> None:
    """Shapes, steps and dtypes for which there are no bytes."""
    spelled, shape, layout = ARRAYS[name]
    decoder = Decoder(checked=True, side="the host", read_only=True)
    with pytest.raises(WireError):
        decoder.decode(pickled(Call(arrays.restore_ndarray, spelled, shape, layout, NEXT)), [bytearray(64)], own=own)


def test_arrays_of_no_bytes() -> None:
    """numpy takes an empty buffer for one of any size."""
    for buffer in (b"", bytearray()):
        with pytest.raises(WireError, match="does not lie in 0 bytes"):
            decoded(Call(arrays.restore_ndarray, "<f8", (1000,), (0, (8,)), NEXT), buffer)
        with pytest.raises(WireError, match="does not have 0 bytes"):
            decoded(Call(arrays.restore_ndarray, "<f8", (1000,), "C", NEXT), buffer)
    assert decoded(Call(arrays.restore_ndarray, "<f8", (0, 5), (0, (8, 8)), NEXT), b"").shape == (0, 5)


lengths = st.one_of(st.integers(-1, 5), st.sampled_from([1 << 31, 1 << 62, (1 << 62) + 1, MOST, 1 << 64]))
steps = st.one_of(st.integers(-20, 20), st.sampled_from([1 << 31, 1 << 62, -(1 << 62), 1 << 63, MOST, -MOST]))


@given(
    st.sampled_from(["|u1", "<i4", "<f8", "|S3", "<c16"]),
    st.lists(st.tuples(lengths, steps), max_size=3),
    st.one_of(st.integers(-5, 70), steps),
    st.integers(0, 64),
)
@settings(max_examples=600, deadline=None)
def test_arrays_of_any_sort(spelled: str, axes: list[tuple[int, int]], offset: int, size: int) -> None:
    """An array is refused, or every item of it lies in its bytes."""
    buffer = bytearray(size)
    shape, strides = tuple(length for length, _ in axes), tuple(step for _, step in axes)
    try:
        array = decoded(Call(arrays.restore_ndarray, spelled, shape, (offset, strides), NEXT), buffer)
    except WireError:
        return
    if array.size:
        start = np.frombuffer(buffer, "u1").__array_interface__["data"][0]
        first = array.__array_interface__["data"][0]
        moves = [step * (length - 1) for step, length in zip(strides, shape, strict=True)]
        assert start <= first + sum(move for move in moves if move < 0)
        assert first + sum(move for move in moves if move > 0) + array.itemsize <= start + size


READERS: dict[str, Callable[[Any], Call]] = {
    "ndarray": lambda what: Call(arrays.restore_ndarray, "<u8", (2,), "C", what),
    "strided ndarray": lambda what: Call(arrays.restore_ndarray, "<u8", (2,), (0, (8,)), what),
    "scalar": lambda what: Call(arrays.restore_numpy_scalar, "|V16", what),
    "memoryview": lambda what: Call(buffers.restore_memoryview, "B", (16,), True, what),
    "array": lambda what: Call(buffers.restore_array, "Q", 8, what),
    "storage": lambda what: Call(tensors.restore_storage, what),
    "image": lambda what: Call(images.restore_image, "L", (4, 4), None, {}, what),
    "table": lambda what: Call(tables.restore_table, what, 2),
    "Arrow buffer": lambda what: Call(tables.restore_arrow_buffer, what),
    "schema": lambda what: Call(tables.restore_schema, what),
    "frame of polars": lambda what: Call(tables.restore_polars_frame, what, 2),
}


@pytest.mark.parametrize("reader", READERS)
def test_bytes_of_what_is_none(reader: str) -> None:
    """An array of objects has pointers for bytes; these are nobody's to read."""
    pointers = Call(arrays.restore_object_ndarray, (2,), [None, "x"], "C")
    for what in (pointers, 5, None, "text", [1], Call(arrays.restore_dtype, "<f8")):
        with pytest.raises(WireError):
            decoded(READERS[reader](what))


TENSORS = {
    "too long": ("float64", 8, 0, (9,), (1,)),
    "behind": ("float64", 8, 8, (8,), (1,)),
    "before": ("float64", 8, -8, (1,), (1,)),
    "between": ("float64", 8, 4, (1,), (1,)),
    "a step back": ("float64", 8, 0, (8,), (-1,)),
    "huge": ("float64", 8, 0, (1 << 62, 1 << 62), (1 << 62, 1)),
    "a sum that overflows": ("uint8", 1, 0, ((1 << 62) + 1,), (4,)),
    "negative": ("float64", 8, 0, (-1,), (1,)),
    "steps of other axes": ("float64", 8, 0, (8,), (1, 1)),
    "another size of items": ("float64", 1, 0, (64,), (1,)),
    "no size of items": ("float64", 0, 0, (64,), (1,)),
    "no such dtype": ("nn", 8, 0, (8,), (1,)),
    "none of torch's": ("__class__", 8, 0, (1,), (1,)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(name: str) -> None:
    """As with arrays, whether torch is here or not; what it is not here, cannot lead out of its bytes either."""
    try:
        value = decoded(
            Call(tensors.restore_tensor, Call(tensors.restore_storage, NEXT), *TENSORS[name]), bytearray(64)
        )
    except WireError:
        return
    assert type(value) is array_buffer.ArrayBuffer
    assert value.nbytes <= 64


IMAGES = {
    "too large": ("L", (9, 8)),
    "far too large": ("RGB", (100_000, 100_000)),
    "of one bit, far too large": ("1", (100_000, 100_000)),
    "negative": ("L", (-8, -8)),
    "beyond numbers": ("RGBA", (1 << 40, 1)),
    "no such mode": ("evil", (8, 8)),
    "a mode of more bytes": ("F", (8, 8)),
    "no size": ("L", ()),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str) -> None:
    """Before memory is made for one that there are no pixels for."""
    with pytest.raises(WireError):
        decoded(Call(images.restore_image, *IMAGES[name], None, {}, NEXT), bytearray(64))


# -- tables of Arrow -------------------------------------------------------------------------------------------------


def stream_of(batch: Any) -> bytearray:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytearray(sink.getvalue())


def lying_columns() -> dict[str, tuple[Any, bytes, bytes]]:
    """Columns, where in their bytes the numbers are that lead to others, and what these are to be."""
    import pyarrow as pa

    def packed(*numbers: int, kind: str = "i") -> bytes:
        return struct.pack(f"<{len(numbers)}{kind}", *numbers)

    text, places = pa.array(["abcde", "fghijkl"]), packed(0, 5, 12)
    large = pa.array(["abcde", "fghijkl"], pa.large_string())
    lists = pa.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11, 12]])
    kinds = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1, 0, 1, 0, 0], pa.int32()), pa.array(["a", "b"]))
    codes = packed(0, 1, 1, 0, 1, 0, 0)
    return {
        "past the end": (text, places, packed(0, 5, 1 << 30)),
        "all of it past the end": (text, places, packed(1 << 30, 1 << 30, 1 << 30)),
        "backwards": (text, places, packed(0, 12, 5)),
        "negative": (text, places, packed(-100, 5, 12)),
        "no text": (text, b"abcdefghijkl", b"\xff\xfebcdefghijk"),
        "far past the end": (large, packed(0, 5, 12, kind="q"), packed(0, 5, 1 << 50, kind="q")),
        "a list": (lists, places, packed(0, 5, 1 << 30)),
        "a list, backwards": (lists, places, packed(0, 12, 5)),
        "a dictionary": (kinds, codes, packed(0, 1, 1, 0, 1, 0, 2)),
        "a dictionary, negative": (kinds, codes, packed(0, 1, 1, 0, 1, 0, -5)),
    }


@pytest.mark.parametrize("name", lying_columns())
def test_columns_of_arrow(name: str) -> None:
    """Numbers in it that lead out of it, or backwards."""
    import pyarrow as pa

    column, honest, lie = lying_columns()[name]
    stream = stream_of(pa.record_batch([column], names=["x"]))
    assert stream.count(honest) == 1
    lying = stream.replace(honest, lie)
    for call in (
        Call(tables.restore_table, NEXT, len(column)),
        Call(tables.restore_record_batch, NEXT),
        Call(tables.restore_arrow_array, NEXT),
        Call(tables.restore_chunked_array, NEXT),
        Call(tables.restore_polars_frame, NEXT, len(column)),
    ):
        decoded(call, stream)
        with pytest.raises(WireError):
            decoded(call, lying)


def test_streams_of_arrow_with_bytes_changed(liar: Any) -> None:
    """Any byte of a stream: refused, or a table that can be read from end to end."""
    import pyarrow as pa

    batch = pa.record_batch(
        {
            "number": pa.array([1, None, 3]),
            "text": pa.array(["a", "bcd", None]),
            "list": pa.array([[1], [], [2, 3]]),
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
            "struct": pa.array([{"a": 1, "b": "z"}, None, {"a": 2, "b": "w"}]),
        }
    )
    stream = stream_of(batch)
    chance = np.random.default_rng(5)
    read = 0
    for place in range(len(stream)):
        changed = bytearray(stream)
        changed[place] ^= int(chance.integers(1, 256))
        try:
            table_ = decoded(Call(tables.restore_table, NEXT, 3), changed)
        except WireError:
            continue
        with contextlib.suppress(UnicodeDecodeError):  # in the names of columns, where pyarrow takes any bytes
            table_.to_pylist()
        read += 1
    assert 0 < read < len(stream)
    for end in range(0, len(stream), 7):
        with pytest.raises(WireError):
            decoded(Call(tables.restore_table, NEXT, 3), stream[:end] + bytes(end % 3))


# -- memory that changes ---------------------------------------------------------------------------------------------


def test_arrays_that_are_written_over_later(liar: Any) -> None:
    """By the worker that they came from: they have other values then, and that is all; copies of one's own do not."""
    x = np.arange(200_000)
    lent = liar.echo(x * 2)
    own = liar.echo.options(writable=True)(x * 3)
    for number in (0xFF, 0x00, 0x41):
        liar.scribble(number)
        assert lent.shape == x.shape
        assert lent.sum() is not None
        assert np.array_equal(own, x * 3)
    assert np.array_equal(x, np.arange(200_000))
    del lent, own


def test_places_of_text_that_are_written_over_later(liar: Any) -> None:
    """Once they were checked, they are what they were: the host has copied what it relies on."""
    import pandas as pd
    import pyarrow as pa

    text = pa.table({"text": [f"row {number}" for number in range(20_000)], "number": range(20_000)})
    numbers = pa.table({"number": range(50_000)})
    frame = pd.DataFrame({"kind": pd.Categorical(["a", "b", "c"] * 40_000), "text": ["some", "text", "here"] * 40_000})
    indexed = frame.set_index(["kind", "text"], append=True)
    arrived = [liar.echo(one) for one in (text, numbers, frame, indexed)]
    for number in (0xFF, 0x7F, 0x00):
        liar.scribble(number)
    assert arrived[0].equals(text)
    assert arrived[1].num_rows == 50_000
    arrived[1].validate(full=True)
    pd.testing.assert_frame_equal(arrived[2], frame)
    assert len(arrived[3].index.get_level_values("kind").value_counts()) == 3
    arrived.clear()


def test_codes_of_pandas(liar: Any) -> None:
    """Codes of categories and indexes that there are not."""
    for codes in ([0, 5], [-2, 0], [127, 1]):
        array = Call(arrays.restore_ndarray, "|i1", (2,), "C", NEXT)
        categories = Call(frames.restore_index, ("objects", Call(arrays.restore_object_ndarray, (2,), ["a", "b"], "C")),
                          None, None)  # fmt: skip
        data = bytearray(np.array(codes, "i1").tobytes())
        with pytest.raises(WireError):
            decoded(Call(frames.restore_extension_array, ("categorical", array, categories, False)), data)
        with pytest.raises(WireError):
            decoded(Call(frames.restore_multi_index, [categories], [array], [None]), data)
    places = Call(arrays.restore_ndarray, "<i8", (3,), "C", NEXT)
    text = Call(arrays.restore_ndarray, "|u1", (6,), "C", NEXT)
    for ends in ([0, 3, 1 << 40], [0, 5, 2], [-9, 0, 6]):
        with pytest.raises(WireError):
            decoded(
                Call(frames.restore_extension_array, ("text", places, text, None, "nan", "pyarrow")),
                bytearray(np.array(ends, "i8").tobytes()),
                bytearray(b"abcdef"),
            )


# -- loans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [0, 1, 2, 3, 255])
def test_cells_with_anything_in_them(liar_file: Path, honest: Callable[[], None], state: int) -> None:
    """All cells of the host's ledger, while arrays are lent and not: calls go on, and what it did not give back, since
    it wrote over its own word, is back when it is gone."""
    with atoll.Service(liar_file, timeout=60) as liar:
        mine = atoll.asarray(np.arange(100_000))
        liar.keep("a", mine)
        liar.spoil_cells(state)
        assert atoll.memory().lent == (state in (0, 3, 255))
        for _ in range(5):
            assert np.array_equal(liar.echo(mine), mine)
        liar.spoil_cells(state)
        honest()
        liar.drop("a")
        for number in range(5):
            x = np.full(100_000, number)
            assert np.array_equal(liar.echo(x), x)
        honest()
    until_given_back()


def test_forget_of_any_number(liar: Any, honest: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown, another's, in use: what is in use stays."""
    x = np.arange(100_000)
    mine, theirs = atoll.asarray(x), liar.echo(x)
    (worker,) = liar._pool.workers
    loans, heard, last = worker.loans(), [], (1 << 64) - 2
    forget = loans.forget
    monkeypatch.setattr(loans, "forget", lambda number: (forget(number), heard.append(number)))
    liar.forget([*range(200), (1 << 64) - 1])
    liar.forget([*liar.numbers() * 3, last])
    until(lambda: heard[-1:] == [last])  # on another connection than the calls
    honest()
    assert np.array_equal(theirs, x)
    assert np.array_equal(mine, x)
    honest()
    del theirs
    gc.collect()
    # It believes itself that these were passed: only it suffers from that.
    with pytest.raises(atoll.DecodeError, match="not passed"):
        liar.echo(x)
    assert np.array_equal(liar.echo(x), x)


def test_it_dies_with_memory_lent_both_ways(liar_file: Path) -> None:
    """What the host has of it stays; what it had is back."""
    with atoll.Service(liar_file, timeout=60) as service:
        x = np.arange(100_000)
        mine, theirs = atoll.asarray(x), service.echo(x)
        service.keep("a", mine)
        with pytest.raises(atoll.WorkerDied):
            service.die()
        assert np.array_equal(theirs, x)
        assert np.array_equal(service.echo(mine), x)
        del theirs
        until_given_back()


def test_no_restorer_is_left_out() -> None:
    """Whoever adds one that reads memory has it tried here."""
    readers = {READERS[name](None).parts[0].__name__ for name in READERS}
    for room in (arrays, buffers, tensors, images, tables):
        for name, restorer in room.RESTORERS.items():
            takes = restorer.__code__.co_varnames[: restorer.__code__.co_argcount]
            if "buffer" in takes or "data" in takes:
                others = {"restore_record_batch", "restore_arrow_array", "restore_chunked_array", "restore_parameter",
                          "restore_polars_series"}  # fmt: skip
                assert name in readers | others, name
    assert adapters.RESTORERS
