# SPDX-License-Identifier: Apache-2.0
"""Arrays and scalars of numpy that cross: types times layouts. Loaded by the tests and, where numpy is there, by the
process that echoes: so nothing newer than Python 3.9 and numpy 1.26 is used here."""

from __future__ import annotations

import datetime
import math
from typing import Any

import numpy

DAY = datetime.date(2024, 2, 29)
PADDED = numpy.dtype({"names": ["a", "b"], "formats": ["u1", "<f8"], "offsets": [0, 8], "itemsize": 24})
NESTED = numpy.dtype([("id", "<i4"), ("place", [("x", "<f4"), ("y", ">f4")]), ("grid", "<i2", (2, 3))])
DTYPES = [
    "?", "i1", "u1", "<i2", ">i2", "<u4", ">u4", "<i8", "<u8", ">i8", "<f2", "<f4", ">f4", "<f8", ">f8", "g",
    "<c8", "<c16", ">c16", "S1", "S7", "<U1", ">U3", "V5", "<M8[ns]", "<M8[D]", "<M8[25s]", "<m8[ms]", "<m8", ">M8[us]",
    PADDED, NESTED, numpy.dtype([("a", "u1"), ("b", "<i8")], align=True),
]  # fmt: skip

STRUCTURES = [
    numpy.dtype([(("a title", "a"), "<i4"), ("b", "f4")]),
    numpy.dtype({"names": ["low", "high", "all"], "formats": ["<u2", "<u2", "<u4"], "offsets": [0, 2, 0]}),
    numpy.dtype({"names": ["late", "early"], "formats": ["<u2", ">u4"], "offsets": [6, 1], "itemsize": 9}),
    numpy.dtype((numpy.record, [("a", "<i4"), ("b", "S3")])),
    numpy.dtype([("g", "g"), ("t", "<M8[3us]")]),
]


def filled(dtype: Any, shape: tuple[int, ...]) -> Any:
    """An array of any dtype whose bytes are all different, as far as they may be."""
    dtype = numpy.dtype(dtype)
    count = math.prod(shape)
    if dtype.kind in "U?":
        return (numpy.arange(count) % 2).astype(dtype).reshape(shape)
    data = (numpy.arange(count * dtype.itemsize) % 101).astype("u1")
    return data.view(dtype).reshape(shape)


ARRAYS: list[Any] = [
    *(filled(dtype, (3, 4)) for dtype in DTYPES),
    numpy.asfortranarray(numpy.arange(12.0).reshape(3, 4)), numpy.arange(24).reshape(4, 6)[::2, ::-3],
    numpy.array(5), numpy.array("text"), numpy.zeros(0), numpy.zeros((0, 3)), numpy.zeros((3, 0, 2), "i1"),
    numpy.arange(60, dtype="i2").reshape(3, 4, 5).transpose(1, 2, 0), numpy.broadcast_to(numpy.arange(3), (2, 3)),
    numpy.arange(60, dtype="i2").reshape(3, 4, 5)[::-1, 1:3].transpose(2, 0, 1), numpy.broadcast_to(5.5, (300, 400)),
    numpy.lib.stride_tricks.sliding_window_view(numpy.arange(50), 7), *(filled(dtype, (3,)) for dtype in STRUCTURES),
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
