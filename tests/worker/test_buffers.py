# SPDX-License-Identifier: Apache-2.0
"""Plain memory crosses: memoryview, mmap, array.array; what Python cannot make again is named."""

from __future__ import annotations

import array
import ctypes
import mmap
from collections.abc import Iterator
from pickle import PickleBuffer
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll_worker.arrays import array_reducer_of
from atoll_worker.buffers import address_of
from atoll_worker.errors import DecodeError
from atoll_worker.values import Encoder

from .carriers import HOST, WORKER, Recording, buffers_of, passed, refusal

FORMATS = "?cbBhHiIlLqQnNfd"
SIZES = [0, 1, 7, 10_000, 100_000]


def same(one: memoryview, other: memoryview) -> bool:
    """Equal in format, shape, bytes, and whether they may be written to."""
    return (one.format, one.shape, one.readonly, one.tobytes()) == (
        other.format, other.shape, other.readonly, other.tobytes(),
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
def test_every_format(form: str) -> None:
    """All formats that Python can read, small inside the payload and large beside it."""
    for size in SIZES:
        memory = bytearray(range(256)) * (size * 8 // 256 + 1)
        if form == "?":
            memory = bytearray(byte % 2 for byte in memory)
        cast: Any = memoryview(memory)[: size * 8].cast
        view = cast(form)
        frozen = view.toreadonly()
        for decoder in (HOST, WORKER):
            assert same(passed(view, decoder), view)
            assert same(passed(frozen, decoder), frozen)


@given(
    form=st.sampled_from(FORMATS),
    shape=st.lists(st.integers(1, 5), max_size=4),
    frozen=st.booleans(),
    step=st.sampled_from([None, 1, 2, -1, 3]),
)
@settings(max_examples=200, deadline=None)
def test_whatever_shape(form: str, shape: list[int], frozen: bool, step: int | None) -> None:
    """Of any number of dimensions, strided or not."""
    itemsize = memoryview(b"").cast(form).itemsize
    count = int(numpy.prod(shape, initial=1))
    cast: Any = memoryview(bytearray(byte % 2 for byte in range(count * itemsize))).cast
    view: memoryview = cast(form, shape)
    if shape == [count] and len(shape) == 1 and step is not None:
        view = view[::step]
    if frozen:
        view = view.toreadonly()
    for decoder in (HOST, WORKER):
        arrived = passed(view, decoder)
        assert same(arrived, view)
        assert arrived.c_contiguous


def test_what_arrives_is_ones_own() -> None:
    """A view that could be written to can be, and the sender's memory stays as it was."""
    for size in (10, 100_000):
        sent = bytearray(size)
        arrived = passed(memoryview(sent))
        arrived[0] = 7
        assert not any(sent)


def test_views_of_arrays_and_of_ctypes() -> None:
    """Formats with an explicit byte order come in Python's own letters, by the size of their items."""
    arrived = passed(memoryview(numpy.arange(6).reshape(2, 3)))
    assert (arrived.format, arrived.shape, arrived.tolist()) == ("l", (2, 3), [[0, 1, 2], [3, 4, 5]])
    for kind in (ctypes.c_int32, ctypes.c_long, ctypes.c_uint16, ctypes.c_ubyte, ctypes.c_double):
        sent = memoryview((kind * 3)(1, 2, 3))
        arrived = passed(sent)
        assert arrived.tolist() == [1, 2, 3]
        assert arrived.itemsize == sent.itemsize


def test_views_that_cannot_cross() -> None:
    """A format that Python has no letter for, a released view, a shape without items: each says what to do."""
    assert "of format 'Zd', whose items Python cannot read; numpy.asarray(x)" in refusal(
        memoryview(numpy.zeros(2, "c16"))
    )
    swapped = memoryview((ctypes.c_int32.__ctype_be__ * 2)(1, 2))  # type: ignore[attr-defined]
    assert "of format '>i'" in refusal([swapped])
    released = memoryview(b"x")
    released.release()
    assert refusal({"a": released}) == "result['a']: memoryview cannot be passed by value (which was released)"
    assert "of shape (0, 3)" in refusal(memoryview(numpy.zeros((0, 3))))
    assert refusal((ctypes.c_int * 3)()).endswith("cannot be passed by value; return memoryview(x)")


def test_pickle_buffers() -> None:
    """They arrive as memory with the same bytes, of whichever type that has."""
    for size in SIZES:
        for memory in (bytes(size), bytearray(size)):
            assert bytes(passed([PickleBuffer(memory)])[0]) == memory


@pytest.fixture
def mapping() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, 20_000) as memory:
        memory[:5] = b"bytes"
        yield memory


def test_mmap(mapping: mmap.mmap) -> None:
    """It arrives as a view of its bytes; a closed one says so."""
    for decoder in (HOST, WORKER):
        arrived = passed([mapping], decoder)[0]
        assert type(arrived) is memoryview
        assert arrived == memoryview(mapping)
        assert not arrived.readonly
    with mmap.mmap(-1, 100) as small:
        assert passed(small).tobytes() == bytes(100)
    assert "which was closed" in refusal(small)


@pytest.mark.parametrize("typecode", array.typecodes.replace("w", ""))
def test_array(typecode: str) -> None:
    """``array.array`` of every type arrives as one."""
    item: Any = "x" if typecode == "u" else 3
    for size in SIZES:
        sent = array.array(typecode, [item] * size) if typecode != "u" else array.array("u", "x" * size)
        for decoder in (HOST, WORKER):
            arrived = passed(sent, decoder)
            assert type(arrived) is array.array
            assert arrived.typecode == typecode
            assert arrived == sent
            arrived.append(item)  # it has memory of its own


def test_an_array_of_characters_by_its_other_name() -> None:
    """Python 3.13 has "w" for what others know as "u"."""
    from atoll_worker.buffers import restore_array

    assert restore_array("w", 4, "ab".encode("utf-32-le")).tounicode() == "ab"
    with pytest.raises(DecodeError, match="items of 2 bytes; here they have 4"):
        restore_array("i", 2, b"ab")


def test_memory_that_is_shared_already() -> None:
    """What the carrier finds again is not stored; with strides, it is."""
    memory = bytearray(1000)
    address = ctypes.addressof(ctypes.c_ubyte.from_buffer(memory))
    assert address_of(memoryview(memory)) == address
    assert address_of(memoryview(memory)[100:].toreadonly()) == address + 100
    reducer = array_reducer_of(memoryview)
    assert reducer is not None
    carrier = Recording((address, 1000))
    reducer(memoryview(memory)[10:900], carrier)
    assert carrier.found == [(address + 10, 890)]
    assert carrier.stored == []
    reducer(memoryview(memory)[::2], carrier)
    assert len(carrier.stored) == 1


def test_the_same_view_twice() -> None:
    """One view in two places is one again, and its bytes cross once."""
    view = memoryview(bytearray(100_000))
    encoder = Encoder()
    payload = encoder.encode([view, view])
    buffers = buffers_of(encoder)
    assert len(buffers) == 1
    one, two = HOST.decode(payload, buffers)
    assert one is two


def test_what_does_not_fit() -> None:
    """A shape or format that the bytes do not have is an error of decoding."""
    from atoll_worker.buffers import restore_memoryview

    for form, shape in (("i", (3,)), ("i", (2, 2)), ("B", (5,)), ("x", (4,)), ("i", (-1,))):
        with pytest.raises((DecodeError, TypeError, ValueError)):
            restore_memoryview(form, shape, True, b"1234")
