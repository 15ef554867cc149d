# SPDX-License-Identifier: Apache-2.0
"""Values of every type of the standard library that crosses, and when two are the same. Loaded by the tests and, under
Python 3.9 and later, by the process that echoes: so nothing newer, and no third party, is used here."""

from __future__ import annotations

import datetime
import math
import uuid
import zoneinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

UTC = datetime.timezone(datetime.timedelta(0))  # the name datetime.UTC is new in Python 3.11
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
    datetime.time(1, 2, tzinfo=UTC), datetime.datetime(2024, 2, 29, 1, 2, 3, 4),
    datetime.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    datetime.datetime(1, 1, 1, tzinfo=HOURS), datetime.datetime.max, datetime.timedelta(-1, 5, 7),
    datetime.timedelta.max, datetime.timedelta.min, UTC, HOURS, NAMED, zoneinfo.ZoneInfo("Asia/Tokyo"),
    Decimal("1.50"), Decimal("-0"), Decimal("NaN"), Decimal("sNaN12"), Decimal("-Infinity"), Decimal("1E+999999"),
    Fraction(-3, 4), Fraction(10**40, 7), uuid.UUID(int=0), uuid.UUID("12345678123456781234567812345678"),
    Path("/a/b"), Path("relative/ü"), PurePosixPath("."), PurePosixPath("/x"), PureWindowsPath(r"C:\x\y"),
    [[[[]]]], {"a": [{"b": ({"c": {1, 2}},)}]}, [SHARED, SHARED], [DAY, DAY, {"again": DAY}],
]  # fmt: skip


def same(one: Any, other: Any) -> bool:
    """Equal in value and type, to the last part and bit; NaN is NaN, and the two zeros differ."""
    if type(one) is not type(other):
        return False
    if type(one) in (float, complex):
        return repr(one) == repr(other)
    if isinstance(one, Decimal):
        return str(one) == str(other)
    if type(one).__name__ == "ndarray":
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        if one.dtype.hasobject:
            return same(one.ravel().tolist(), other.ravel().tolist())
        return one.tobytes() == other.tobytes()
    if type(one).__module__ == "numpy":
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if isinstance(one, datetime.datetime):
        return repr(one) == repr(other)
    if isinstance(one, datetime.time):
        return repr(one) == repr(other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other))  # noqa: B905 - new in Python 3.10
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, (set, frozenset)):
        if len(one) > 50:
            return bool(one == other)
        return len(one) == len(other) and all(any(same(part, match) for match in other) for part in one)
    return bool(one == other)
