# SPDX-License-Identifier: Apache-2.0
"""numpy's arrays, scalars and dtypes are the same on the other side: values, dtype, shape and order.

Where no numpy is, they pass through."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

import atoll_worker
from atoll_worker import arrays
from atoll_worker.adapters import Unsupported
from atoll_worker.array_buffer import ArrayBuffer
from atoll_worker.arrays import Carrier, array_reducer_of
from atoll_worker.errors import DecodeError, EncodeError
from atoll_worker.values import Decoder, Encoder, explain_unencodable
from parameters import described

from .array_values import ARRAYS, DTYPES, NESTED, SCALARS, filled

SOURCE = Path(atoll_worker.__file__).parents[1]


class Carriage(Carrier):
    """Takes bytes as either side of a connection does, and counts what it copies.

    Args:
        inline: as of ``Carrier``.
        memory: an array of bytes in which arrays are found.
        frozen: gives them as bytes that cannot be written to.
    """

    def __init__(self, inline: int = 0, memory: Any = None, frozen: bool = False) -> None:
        self.inline = inline
        self.memory = memory
        self.frozen = frozen
        self.stored: list[int] = []
        self.late: list[Any] = []

    def find(self, address: int, nbytes: int) -> Any:
        if self.memory is None:
            return None
        offset = address - self.memory.ctypes.data
        if offset < 0 or offset + nbytes > self.memory.nbytes:
            return None
        return memoryview(self.memory)[offset : offset + nbytes]

    def store(self, nbytes: int, fill: Any, address: int = 0, raw: Any = None) -> Any:
        self.stored.append(nbytes)
        memory = bytearray(b"\xaa" * nbytes)
        fill(memoryview(memory))
        if raw is not None:
            assert bytes(memoryview(raw()).cast("B")) == bytes(memory)
        return bytes(memory) if self.frozen else memory


def carried(value: Any, carriage: Carrier, restorers: dict[str, Any] = arrays.OWN) -> Any:
    """What arrives of an array."""
    reducer = array_reducer_of(type(value))
    assert reducer is not None
    restorer, parts = reducer(value, carriage)
    return restorers.get(restorer.__name__, restorer)(*parts)


def passed(value: Any, **settings: Any) -> Any:
    """A value, by way of bytes."""
    encoder = Encoder()
    payload = encoder.encode(value)
    return Decoder(checked=True, side="the host", **settings).decode(payload, encoder.take_buffers())


def refusal(value: Any) -> str:
    """What the error says that passing a value raises."""
    with pytest.raises(Unsupported) as caught:
        Encoder().encode([value])
    error = explain_unencodable(caught.value, [("args", [value])])
    assert isinstance(error, EncodeError)
    return str(error)


def bytes_of(array: Any) -> Any:
    """An array's bytes; of a structure those of its fields, for what is between them some copies of numpy leave out."""
    names = array.dtype.names
    return array.tobytes() if names is None else {name: bytes_of(array[name]) for name in names}


def order_of(array: Any) -> list[int]:
    """Axes by how far apart their items are: what is the same where layout is kept."""
    return sorted(
        (axis for axis in range(array.ndim) if array.shape[axis] > 1),
        key=lambda axis: (-abs(array.strides[axis]), axis),
    )


def assert_same(one: Any, other: Any) -> None:
    """Equal in values, dtype, shape and order."""
    assert type(one) is numpy.ndarray
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    if one.dtype.kind == "O":
        assert one.tolist() == other.tolist()
    else:
        assert bytes_of(one) == bytes_of(other)
    if 0 not in one.shape:
        assert order_of(one) == order_of(other)


# -- layouts -----------------------------------------------------------------------------------------------------------

BASE = numpy.arange(6 * 8 * 10, dtype="<i4").reshape(6, 8, 10)
LAYOUTS: dict[str, Any] = {
    "c": BASE,
    "f": numpy.asfortranarray(BASE),
    "axes swapped": BASE.transpose(1, 0, 2),
    "channels first of channels last": BASE.transpose(2, 0, 1),
    "reversed": BASE[::-1],
    "all reversed": BASE[::-1, ::-1, ::-1],
    "every other": BASE[:, ::2],
    "every third, backwards": BASE[::-1, :, ::-3],
    "a crop": BASE[1:5, 2:7, 3:6],
    "a crop, channels first": BASE[1:5, 2:7].transpose(2, 0, 1),
    "a crop of fortran's": numpy.asfortranarray(BASE)[1:5, 2:7],
    "a column": BASE[:, :1, :1],
    "a broadcast scalar": numpy.broadcast_to(numpy.array(7), (3, 4)),
    "a broadcast row": numpy.broadcast_to(BASE[0, 0], (5, 10)),
    "a broadcast column": numpy.broadcast_to(BASE[:, :1, 0], (6, 9)),
    "broadcast, of every other": numpy.broadcast_to(BASE[0, 0, ::-2], (5, 5)),
    "sliding windows": numpy.lib.stride_tricks.sliding_window_view(BASE[0, 0], 4),
    "no axes": BASE[1, 2, 3, ...],
    "no items": BASE[:, :0],
    "no items, broadcast": numpy.broadcast_to(BASE[:0, 0, 0], (3, 0)),
    "one item": BASE[5:, 7:, 9:],
    "unaligned": numpy.frombuffer(b"x" + BASE.tobytes(), "<i4", 20, 1),
    "structures": numpy.zeros((4, 5), NESTED)[:, ::2],
    "one field": numpy.arange(24, dtype="u1").view([("a", "<i2"), ("b", "u1"), ("c", "u1", 5)])["b"],
}


@pytest.mark.parametrize("inline", [0, 100, 1 << 20])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str, inline: int) -> None:
    """Inside the payload, beside it, and found in the memory that it lies in."""
    array = LAYOUTS[layout]
    assert_same(carried(array, Carriage(inline)), array)
    assert_same(carried(array, Carriage(inline, frozen=True)), array)
    assert_same(carried(array, Carriage(inline), arrays.READ_ONLY), array)
    assert_same(passed([array])[0], array)


def views(memory: Any) -> st.SearchStrategy[Any]:
    """Arrays of any items and strides that lie in that memory."""

    @st.composite
    def view(draw: st.DrawFn) -> Any:
        dtype = numpy.dtype(draw(st.sampled_from([one for one in DTYPES if numpy.dtype(one).kind not in "U?"])))
        shape = draw(of_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
        strides = [draw(st.integers(-60, 60)) for _ in shape]
        before = sum(-stride * max(0, length - 1) for stride, length in zip(strides, shape, strict=True) if stride < 0)
        offset = before + draw(st.integers(0, 40))
        return numpy.ndarray(shape, dtype, memory, offset, strides)

    return view()


MEMORY = (numpy.arange(4096) % 251).astype("u1")


@given(views(MEMORY), st.sampled_from([0, 64, 1 << 20]), st.booleans())
def test_any_strides(array: Any, inline: int, frozen: bool) -> None:
    """Copied or found: the items are the same."""
    for carriage in (Carriage(inline, frozen=frozen), Carriage(inline, MEMORY)):
        for restorers in (arrays.OWN, arrays.READ_ONLY):
            arrived = carried(array, carriage, restorers)
            assert arrived.dtype == array.dtype
            assert arrived.shape == array.shape
            assert bytes_of(arrived) == bytes_of(array)


@given(
    of_numpy.arrays(
        of_numpy.scalar_dtypes() | of_numpy.array_dtypes() | of_numpy.nested_dtypes(max_itemsize=64),
        of_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    ).filter(lambda array: array.dtype.itemsize > 0 and not array.dtype.hasobject),
    st.booleans(),
    st.booleans(),
)
def test_any_array(array: Any, transposed: bool, stepped: bool) -> None:
    """Whatever numpy can make."""
    if transposed:
        array = array.T
    if stepped and array.ndim:
        array = array[::-2]
    arrived = passed([array])[0]
    assert arrived.dtype == array.dtype
    assert arrived.dtype.isalignedstruct == array.dtype.isalignedstruct
    assert arrived.shape == array.shape
    assert bytes_of(arrived) == bytes_of(array)


def test_what_lies_in_a_segment_is_not_copied() -> None:
    """Views of found memory, with any strides, are views of it on arrival."""
    memory = numpy.zeros(1 << 16, "u1")
    frame = memory[100:30100].view("<u2").reshape(100, 50, 3)
    carriage = Carriage(64, memory)
    for view in (frame, frame[::2], frame[10:50, 5:40].transpose(2, 0, 1), frame[::-1], frame.T):
        arrived = carried(view, carriage)
        assert arrived.strides == view.strides
        assert arrived.ctypes.data == view.ctypes.data
        assert arrived.flags.writeable
        assert not carried(view, carriage, arrays.READ_ONLY).flags.writeable
    assert carriage.stored == []


@pytest.mark.parametrize(
    ("layout", "nbytes"),
    [
        ("c", 1920), ("axes swapped", 1920), ("all reversed", 1920), ("every other", 960),
        ("a crop, channels first", 800), ("a broadcast row", 40), ("a broadcast column", 24),
        ("broadcast, of every other", 20), ("sliding windows", 40),
    ],
)  # fmt: skip
def test_no_byte_is_copied_that_is_none_of_the_arrays(layout: str, nbytes: int) -> None:
    """Nor one twice: of what is broadcast, only what there is."""
    carriage = Carriage(1)
    carried(LAYOUTS[layout], carriage)
    assert carriage.stored == [nbytes]


def test_what_is_broadcast_stays_so() -> None:
    """A gigabyte that is eight bytes crosses as these, at both ends; it is read-only, as it was."""
    array = numpy.broadcast_to(numpy.array(1.5), (1 << 15, 1 << 12))
    arrived = passed(array)
    assert arrived.shape == array.shape
    assert arrived.strides == (0, 0)
    assert not arrived.flags.writeable
    assert arrived[-1, -1] == 1.5


@pytest.mark.parametrize(
    "layout", ["c", "f", "reversed", "every other", "a crop", "axes swapped", "no axes", "no items"]
)
@pytest.mark.parametrize("inline", [0, 1 << 20])
@pytest.mark.parametrize("frozen", [False, True])
def test_an_array_of_ones_own_can_be_written_to(layout: str, inline: int, frozen: bool) -> None:
    array = LAYOUTS[layout]
    before = array.tolist()
    arrived = carried(array, Carriage(inline, frozen=frozen))
    arrived[...] = 99
    assert (arrived == 99).all()
    assert array.tolist() == before
    with pytest.raises(ValueError, match="read-only"):
        carried(array, Carriage(inline, frozen=frozen), arrays.READ_ONLY)[...] = 99


def test_an_array_that_came_keeps_its_memory() -> None:
    """Dropping everything else is no danger to it."""
    array = numpy.arange(50_000)[::-1]
    arrived = [passed(array) for _ in range(20)]
    assert all(numpy.array_equal(one, array) for one in arrived)


def test_what_is_between_fields_crosses_as_it_is() -> None:
    """Never what the memory it is copied into held before."""
    dtype = numpy.dtype({"names": ["a", "b"], "formats": ["u1", "<f8"], "offsets": [0, 8], "itemsize": 24})
    array = numpy.zeros(30, dtype)
    arrived = carried(array[::3], Carriage(1))
    assert set(arrived.view("u1")) == {0}


# -- dtypes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: Any) -> None:
    array = filled(dtype, (7, 5))
    for one in (array, array.T, array[::-2], array[:0], array[0, 0, ...]):
        for inline in (0, 1 << 20):
            assert_same(carried(one, Carriage(inline)), one)


STRUCTURES: list[Any] = [
    numpy.dtype([(("a title", "a"), "<i4"), ("b", "f4")]),
    numpy.dtype([("a", "u1"), ("b", "<f8"), ("c", "u1")], align=True),
    numpy.dtype([("a", "u1"), ("inner", numpy.dtype([("x", "u1"), ("y", "<i8")], align=True), (2,))], align=True),
    numpy.dtype({"names": ["low", "high", "all"], "formats": ["<u2", "<u2", "<u4"], "offsets": [0, 2, 0]}),
    numpy.dtype({"names": ["late", "early"], "formats": ["<u2", ">u4"], "offsets": [6, 1], "itemsize": 9}),
    numpy.dtype((numpy.record, [("a", "<i4"), ("b", "S3")])),
    numpy.dtype([("g", "g"), ("t", "<M8[3us]"), ("x", ml_dtypes.bfloat16)]),
    numpy.dtype([("é😀", "<i4"), ("with space", "V3")]),
]  # fmt: skip


@pytest.mark.parametrize("dtype", STRUCTURES, ids=str)
def test_structures(dtype: Any) -> None:
    """With titles, alignment, overlaps, records, long doubles; as an array, a scalar and by itself."""
    array = numpy.frombuffer(bytes(range(4 * dtype.itemsize)), dtype)
    for value in (array, array[::2], array[0], dtype):
        arrived = passed(value)
        found = arrived if value is dtype else arrived.dtype
        assert found == dtype
        assert found.fields == dtype.fields
        assert found.isalignedstruct == dtype.isalignedstruct
        assert found.type is dtype.type
        assert type(arrived) is type(value)
        if value is not dtype:
            assert bytes_of(arrived) == bytes_of(value)


@pytest.mark.parametrize(
    "name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn", "int4", "uint2"]
)
def test_dtypes_of_ml_dtypes(name: str) -> None:
    """By name, as arrays in any layout, scalars, and dtypes."""
    dtype = numpy.dtype(getattr(ml_dtypes, name))
    array = numpy.ones((30, 40)).astype(dtype)
    for one in (array, array.T, array[::2, ::-3], array[:0], numpy.broadcast_to(array[0], (3, 40))):
        arrived = passed(one)
        assert arrived.dtype is dtype
        assert arrived.shape == one.shape
        assert arrived.tobytes() == one.tobytes()
    assert passed(dtype) is dtype
    scalar = passed(array[0, 0])
    assert type(scalar) is dtype.type
    assert scalar == array[0, 0]


def test_a_dtype_of_ml_dtypes_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the dtype, and what to add."""
    encoder = Encoder()
    payload = encoder.encode(numpy.zeros(3, ml_dtypes.bfloat16))
    decoder = Decoder(checked=True, side="the host")
    with monkeypatch.context() as patch:
        patch.delattr(ml_dtypes, "bfloat16")
        with pytest.raises(DecodeError, match=r"dtype bfloat16 came, which ml_dtypes \d.* of this side does not have"):
            decoder.decode(payload)
        patch.setitem(sys.modules, "ml_dtypes", None)
        with pytest.raises(DecodeError, match=r"dtype bfloat16 came, but ml_dtypes cannot be .* add ml_dtypes to"):
            decoder.decode(payload)
    assert decoder.decode(payload).dtype == ml_dtypes.bfloat16


def test_long_doubles_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their bytes mean something else where they have other bits."""
    payload = Encoder().encode(numpy.longdouble(1) / 3)
    real = numpy.finfo(numpy.longdouble)

    class Other:
        nmant = real.nmant + 49

    monkeypatch.setattr(numpy, "finfo", lambda dtype: Other)
    with pytest.raises(DecodeError, match=f"with {real.nmant} bits of mantissa came, which numpy has not on this side"):
        Decoder(checked=True, side="the host").decode(payload)


@pytest.mark.parametrize("dtype", ["f4", ">i2", "O", "M8[25s]", "U5", "S0", NESTED, "G"], ids=str)
def test_dtypes_by_themselves(dtype: Any) -> None:
    assert passed(numpy.dtype(dtype)) == numpy.dtype(dtype)


@pytest.mark.parametrize("value", SCALARS, ids=described)
def test_scalars(value: Any) -> None:
    arrived = passed([value])[0]
    assert type(arrived) is type(value)
    assert arrived.dtype == value.dtype
    assert arrived.tobytes() == value.tobytes()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            numpy.zeros(2, [("a", "i4"), ("o", "O")]),
            "of dtype object, whose items are Python objects; alone in an array",
        ),
        (numpy.zeros(2, "V0"), "whose items have no bytes"),
        (numpy.zeros(2, numpy.dtypes.StringDType()), r"pass x.astype(object) or x.astype(str)"),
        (numpy.array([1, 2, 3, object()], object), "args[0].flat[3]: object cannot be passed"),
        (numpy.array([[1, 2], [print, 4]], object, order="F"), "args[0].flat[2]: builtin_function_or_method"),
        (numpy.zeros((2, 2)).view(numpy.matrix), "pass numpy.asarray(x)"),
        (numpy.zeros(2, [("a", "i4")]).view(numpy.recarray), "pass numpy.asarray(x)"),
        (numpy.ma.array([1, 2], mask=[0, 1]), "pass .filled() and .mask"),
    ],
    ids=described,
)
def test_what_cannot_cross_says_why(value: Any, words: str) -> None:
    message = refusal(value)
    assert words in message
    assert message.startswith("args[0]")


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_objects(order: Any) -> None:
    """Their items cross one by one, and their order stays."""
    array = numpy.empty((2, 3), object, order)
    for index in range(6):
        array.flat[index] = {"item": [index, numpy.arange(index)]}
    arrived = passed(array)
    assert arrived.shape == (2, 3)
    assert arrived.flags.c_contiguous == array.flags.c_contiguous
    assert [one["item"][0] for one in arrived.flat] == list(range(6))
    assert arrived[1, 2]["item"][1].tolist() == [0, 1, 2, 3, 4]


def test_a_file_in_memory(tmp_path: Path) -> None:
    """numpy.memmap arrives as an array."""
    mapped = numpy.memmap(tmp_path / "file", "<f4", "w+", shape=(100, 100))
    mapped[:] = numpy.arange(10_000, dtype="<f4").reshape(100, 100)
    for one in (mapped, mapped[3:], mapped[::2, ::2]):
        assert_same(passed(one), numpy.asarray(one))
    del mapped, one


# -- what is not true --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        ("<i4", (3,), "C", b"1234"),
        ("<i4", (-1,), "C", b"1234"),
        ("<i4", (1, 1), "K", b"1234"),
        ("<i4", (1 << 40,), (0, (0,)), b"123"),
        ("<i4", (2,), (0, (8,)), b"12345678"),
        ("<i4", (2,), (0, (-4,)), b"12345678"),
        ("<i4", (2,), (-4, (4,)), b"12345678"),
        ("<i4", (2,), (6, (0,)), b"12345678"),
        ("<i4", (2, 2), (0, (4,)), b"12345678"),
        ("|O", (1,), "C", b"12345678"),
        (("struct", ["a"], ["|O"], [0], None, 8, False), (1,), "C", b"12345678"),
        (("struct", ["a"], ["<i8"], [4], None, 8, False), (1,), "C", b"12345678"),
        (("struct", ["a"], ["<i8"], [1 << 40], None, 1 << 41, False), (1,), "C", b"12345678"),
        (("subarray", "<i8", (1 << 60, 1 << 60)), (1,), "C", b"12345678"),
        (("ml_dtypes", "finfo", 2), (1,), "C", b"12"),
        (("ml_dtypes", "__name__", 2), (1,), "C", b"12"),
        (("something",), (1,), "C", b"12"),
        ("numpy.float64", (1,), "C", b"12"),
        ((), (1,), "C", b"12"),
        (None, (1,), "C", b"12345678"),
        ("<i4", None, "C", b"1234"),
        ("<i4", ("1",), "C", b"1234"),
        ("<i4", (1,), None, b"1234"),
        ("<i4", (1,), "C", "1234"),
        ("|V0", (1 << 50,), "C", b""),
    ],
    ids=described,
)
@pytest.mark.parametrize("present", [True, False])
def test_a_description_that_lies(parts: Any, present: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error here, whatever the other side says of its bytes; never other memory."""
    payload = Lying().encode(parts)
    if not present:
        monkeypatch.setitem(sys.modules, "numpy", None)
    for read_only in (False, True):
        decoder = Decoder(checked=True, side="the host", read_only=read_only)
        try:
            arrived = decoder.decode(payload)
        except DecodeError:
            continue
        # Without numpy, what a dtype is does not matter as long as the bytes are there.
        assert isinstance(arrived, ArrayBuffer)
        assert not present
        assert arrived.data.nbytes == len(parts[3])
        assert arrived.nbytes in (0, len(parts[3]))


class Lying:
    """Encodes arrays that are not what they say."""

    def encode(self, parts: Any) -> bytes:
        import pickle

        class Array:
            def __reduce__(self) -> Any:
                return arrays.restore_ndarray, parts

        return pickle.dumps(Array(), 5)


# -- without numpy -----------------------------------------------------------------------------------------------------


@pytest.fixture
def without_numpy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that passes a value to where there is no numpy."""

    def arrive(value: Any) -> Any:
        encoder = Encoder()
        payload = encoder.encode(value)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "numpy", None)
            buffers = [bytearray(buffer) for buffer in encoder.take_buffers()]
            return Decoder(checked=False, side="the worker").decode(payload, buffers)

    return arrive


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_array_where_no_numpy_is(layout: str, without_numpy: Any) -> None:
    """It can be looked at, and is the same array once it is passed on."""
    array = LAYOUTS[layout]
    arrived = without_numpy(array)
    assert isinstance(arrived, ArrayBuffer)
    assert arrived.origin == "numpy"
    assert arrived.shape == array.shape
    assert arrived.nbytes == array.nbytes
    assert arrived.itemsize == array.itemsize
    assert_same(passed([arrived])[0], array)
    seen = numpy.asarray(arrived)
    assert seen.tobytes() == array.tobytes()
    assert seen.shape == array.shape


@pytest.mark.parametrize(
    "array", [array for array in ARRAYS if array.dtype != object], ids=lambda array: str(array.dtype)
)
def test_every_array_passes_through_where_no_numpy_is(array: Any, without_numpy: Any) -> None:
    arrived = without_numpy({"a": [array]})["a"][0]
    assert arrived.dtype == (array.dtype.str if array.dtype.names is None else f"|V{array.dtype.itemsize}")
    assert_same(passed(arrived), array)
    seen = numpy.asarray(arrived)
    assert seen.dtype == array.dtype or array.dtype.names is not None
    assert seen.tobytes() == array.tobytes()
    if seen.dtype.names is not None:
        assert all(seen[name].tobytes() == array[name].tobytes() for name in array.dtype.names)


def test_a_structure_where_no_numpy_is(without_numpy: Any) -> None:
    """Its fields are said as the array interface says them."""
    array = filled(numpy.dtype([("a", "u1"), ("b", "<i8"), ("c", [("x", ">f4")], 3)], align=True), (3,))
    arrived = without_numpy(array)
    assert arrived.__array_interface__["descr"][:3] == [("a", "|u1"), ("", "|V7"), ("b", "<i8")]
    seen = numpy.asarray(arrived)
    assert seen["b"].tolist() == array["b"].tolist()
    assert seen["c"]["x"].tobytes() == array["c"]["x"].tobytes()


def test_views_of_an_array_buffer(without_numpy: Any) -> None:
    """Its items, without any library."""
    assert without_numpy(BASE).view().tolist() == BASE.tolist()
    assert without_numpy(numpy.array([True, False])).view().tolist() == [True, False]
    assert without_numpy(numpy.zeros((3, 0))).view().tolist() == []
    assert without_numpy(numpy.array(2.5)).view().tolist() == 2.5
    assert memoryview(without_numpy(BASE).data).tobytes() == BASE.tobytes()
    for array, words in [(BASE.T, "does not lie in a row"), (BASE.astype(">i4"), "dtype >i4 have no format")]:
        with pytest.raises(ValueError, match=words):
            without_numpy(array).view()
    assert repr(without_numpy(BASE)) == "<ArrayBuffer: numpy array of shape (6, 8, 10) and dtype <i4>"


def test_an_array_buffer_is_found_again(without_numpy: Any) -> None:
    """Passed on, it is not copied where its memory is known."""
    arrived = without_numpy(numpy.arange(5000))
    memory = numpy.frombuffer(arrived.data, "u1")
    carriage = Carriage(64, memory)
    again = carried(arrived, carriage)
    assert carriage.stored == []
    assert numpy.shares_memory(again, memory)
    assert again.tolist() == list(range(5000))


@pytest.mark.parametrize("value", SCALARS, ids=described)
def test_scalars_where_no_numpy_is(value: Any, without_numpy: Any) -> None:
    """Python's own where it has an equal one, else they pass through."""
    arrived = without_numpy(value)
    if value.dtype.kind in "biufcSU" and value.dtype != numpy.longdouble:
        assert type(arrived) is type(value.item())
        assert arrived == value.item() or math.isnan(arrived)
    else:
        assert isinstance(arrived, ArrayBuffer)
        again = passed(arrived)
        assert type(again) is type(value)
        assert again.tobytes() == value.tobytes()


def test_what_needs_numpy_says_so(without_numpy: Any) -> None:
    for value, words in [
        (numpy.dtype("f4"), "a dtype of numpy"),
        (numpy.array([None]), "a numpy array of Python objects"),
    ]:
        with pytest.raises(DecodeError, match=rf"{words} came, but numpy cannot be imported by .*; add numpy"):
            without_numpy(value)


def test_a_numpy_that_is_broken_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not taken for one that is not there."""
    (tmp_path / "numpy.py").write_text("raise ImportError('a library is missing')")
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from atoll_worker.arrays import restore_ndarray\n"
        "restore_ndarray('<i4', (1,), 'C', b'1234')"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path), str(SOURCE)], capture_output=True, text=True)
    assert "DecodeError: a numpy array came, but numpy cannot be imported by" in ran.stderr
    assert "a library is missing" in ran.stderr
