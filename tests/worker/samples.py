# SPDX-License-Identifier: Apache-2.0
"""Values of every type that crosses, and a strategy of arbitrary ones."""

from __future__ import annotations

import datetime
import math
import uuid
import zoneinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy
from hypothesis import strategies as st

SHARED = [1, 2]
DAY = datetime.date(2024, 2, 29)
HOURS = datetime.timezone(datetime.timedelta(hours=-3, minutes=-30))
NAMED = datetime.timezone(datetime.timedelta(hours=1), "somewhere")

STANDARD: list[Any] = [
    None, True, False, 0, 1, -1, 255, 256, -(2**31), 2**31, 2**63, -(2**63) - 1, 10**100, 10**5000, -(10**5000),
    0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, 5e-324, 1 + 2j, complex(-0.0, math.nan), complex(0.0, -0.0),
    "", "text", "é€😀", "\ud800 alone", "\0", "x" * 31, "x" * 32, "x" * 33, "x" * 255, "x" * 256, "y" * 70_000,
    b"", b"\0", b"x" * 255, b"x" * 256, b"y" * 70_000, bytearray(), bytearray(b"abc"), bytearray(70_000),
    (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), tuple(range(100)), [], [1], list(range(3000)),
    {}, {"a": 1}, {1: "int", (1, 2): "tuple", None: "none", b"b": "bytes", 1.5: "float", frozenset({1}): "set"},
    {index: str(index) for index in range(2000)}, set(), {1, "a", (2,)}, frozenset(), frozenset({1, frozenset({2})}),
    set(range(2000)), range(5), range(10, -10, -3), range(10**30), slice(None), slice(1, "a", None), ...,
    DAY, datetime.date.min, datetime.date.max, datetime.time(), datetime.time(23, 59, 59, 999_999, fold=1),
    datetime.time(1, 2, tzinfo=datetime.UTC), datetime.datetime(2024, 2, 29, 1, 2, 3, 4),
    datetime.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    datetime.datetime(1, 1, 1, tzinfo=HOURS), datetime.datetime.max, datetime.timedelta(-1, 5, 7),
    datetime.timedelta.max, datetime.timedelta.min, datetime.UTC, HOURS, NAMED, zoneinfo.ZoneInfo("Asia/Tokyo"),
    Decimal("1.50"), Decimal("-0"), Decimal("NaN"), Decimal("sNaN12"), Decimal("-Infinity"), Decimal("1E+999999"),
    Fraction(-3, 4), Fraction(10**40, 7), uuid.UUID(int=0), uuid.UUID("12345678123456781234567812345678"),
    Path("/a/b"), Path("relative/ü"), PurePosixPath("."), PurePosixPath("/x"), PureWindowsPath(r"C:\x\y"),
    [[[[]]]], {"a": [{"b": ({"c": {1, 2}},)}]}, [SHARED, SHARED], [DAY, DAY, {"again": DAY}],
]  # fmt: skip

PADDED = numpy.dtype({"names": ["a", "b"], "formats": ["u1", "<f8"], "offsets": [0, 8], "itemsize": 24})
NESTED = numpy.dtype([("id", "<i4"), ("place", [("x", "<f4"), ("y", ">f4")]), ("grid", "<i2", (2, 3))])
DTYPES = [
    "?", "i1", "u1", "<i2", ">i2", "<u4", ">u4", "<i8", "<u8", ">i8", "<f2", "<f4", ">f4", "<f8", ">f8", "g",
    "<c8", "<c16", ">c16", "S1", "S7", "<U1", ">U3", "V5", "<M8[ns]", "<M8[D]", "<M8[25s]", "<m8[ms]", "<m8", ">M8[us]",
    PADDED, NESTED, numpy.dtype([("a", "u1"), ("b", "<i8")], align=True),
]  # fmt: skip


def filled(dtype: Any, shape: tuple[int, ...]) -> Any:
    """An array of any dtype whose bytes are all different, as far as they may be."""
    dtype = numpy.dtype(dtype)
    count = math.prod(shape)
    if dtype.kind in "U?":
        return (numpy.arange(count) % 2).astype(dtype).reshape(shape)
    data = (numpy.arange(count * dtype.itemsize) % 101).astype("u1")
    if dtype == TITLED:
        return numpy.zeros(shape, dtype)
    return data.view(dtype).reshape(shape)


ARRAYS: list[Any] = [
    *(filled(dtype, (3, 4)) for dtype in DTYPES),
    numpy.asfortranarray(numpy.arange(12.0).reshape(3, 4)), numpy.arange(24).reshape(4, 6)[::2, ::-3],
    numpy.array(5), numpy.array("text"), numpy.zeros(0), numpy.zeros((0, 3)), numpy.zeros((3, 0, 2), "i1"),
    numpy.arange(60, dtype="i2").reshape(3, 4, 5).transpose(1, 2, 0), numpy.broadcast_to(numpy.arange(3), (2, 3)),
    numpy.arange(100_000), numpy.asfortranarray(numpy.ones((200, 300), "c16")), numpy.zeros(100_000, NESTED)[::3],
    numpy.array(["2024-02-29", "NaT"], "M8[D]"), numpy.array([1, "a", None, [1, 2], (3,)], dtype=object),
    numpy.array([[DAY, 1.5], [{"a": 1}, b"x"]], dtype=object), numpy.array(None, dtype=object), numpy.zeros(0, object),
]  # fmt: skip

SCALARS: list[Any] = [
    numpy.bool_(True), numpy.int8(-5), numpy.uint64(2**64 - 1), numpy.float16(1.5), numpy.float32("nan"),
    numpy.float64(-0.0), numpy.longdouble(1) / 3, numpy.complex64(1 + 2j), numpy.datetime64("2024-02-29T01", "ms"),
    numpy.datetime64("NaT"), numpy.timedelta64(5, "D"), numpy.str_("text"), numpy.str_(""), numpy.bytes_(b"bytes"),
    numpy.bytes_(b""), filled(NESTED, (2,))[1], filled("V5", (2,))[0],
]  # fmt: skip

EXAMPLES = [*STANDARD, *ARRAYS, *SCALARS]


def same(one: Any, other: Any) -> bool:
    """Equal in value and type, to the last part and bit; NaN is NaN, and the two zeros differ."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (float, complex)) and not isinstance(one, numpy.generic):
        return repr(one) == repr(other)
    if isinstance(one, Decimal):
        return str(one) == str(other)
    if isinstance(one, numpy.ndarray):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        if one.dtype.hasobject:
            return same(one.ravel().tolist(), other.ravel().tolist())
        return one.tobytes() == other.tobytes()
    if isinstance(one, numpy.generic):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if isinstance(one, datetime.datetime):
        return repr(one) == repr(other)
    if isinstance(one, datetime.time):
        return repr(one) == repr(other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, (set, frozenset)):
        if len(one) > 50:
            return bool(one == other)
        return len(one) == len(other) and all(any(same(part, match) for match in other) for part in one)
    return bool(one == other)


zones = st.sampled_from([None, datetime.UTC, HOURS, NAMED, zoneinfo.ZoneInfo("Europe/Berlin")])
fixed_zones = st.sampled_from([None, datetime.UTC, HOURS, NAMED])
# Hashable ones, which may be keys.
scalars = (
    st.none() | st.booleans() | st.integers() | st.integers(-(2**70), 2**70) | st.floats(width=64)
    | st.complex_numbers() | st.text(max_size=40) | st.characters(categories=["Cs"]) | st.binary(max_size=40)
    | st.dates() | st.times(timezones=fixed_zones) | st.datetimes(timezones=zones) | st.timedeltas() | st.uuids()
    | st.decimals().filter(lambda value: not value.is_snan())
    | st.fractions() | st.sampled_from([..., Path("a"), PurePosixPath("b"), range(3), range(0, 9, 4)])
)  # fmt: skip
arrays = st.tuples(st.sampled_from(DTYPES), st.sampled_from([(), (1,), (0,), (2, 3), (3, 0), (2, 1, 2)])).map(
    lambda pair: filled(*pair)
)
numpy_scalars = st.sampled_from(SCALARS)
keys = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
anything = st.recursive(
    scalars | arrays | numpy_scalars | st.binary(max_size=40).map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=4)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
    ),
    max_leaves=15,
)
