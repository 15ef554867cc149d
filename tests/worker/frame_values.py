# SPDX-License-Identifier: Apache-2.0
"""Frames, series and indexes of pandas that cross, and when two are the same. Loaded by the tests and by the process
that echoes, with its own pandas: so nothing newer than Python 3.9 and pandas 1.5 is used here."""

from __future__ import annotations

import datetime
from typing import Any

import numpy
import pandas

HOUR = "H" if pandas.__version__ < "2.2" else "h"
ROWS = 3
COLUMNS: dict[Any, Any] = {
    "integer": numpy.arange(ROWS),
    "small": numpy.arange(ROWS, dtype="i1"),
    "float": numpy.array([1.5, numpy.nan, -numpy.inf]),
    "half": numpy.arange(ROWS, dtype="f2"),
    "complex": numpy.arange(ROWS) * 1j,
    "bool": [True, False, True],
    "objects": [1, "a", None],
    "lists": [[1], {"a": (2,)}, None],
    "dates": [datetime.date(2024, 2, 29), None, datetime.date(2024, 3, 1)],
    "moment": pandas.date_range("2024-02-29", periods=ROWS),
    "missing moment": [pandas.Timestamp("2024-02-29"), pandas.NaT, pandas.NaT],
    "zoned": pandas.date_range("2024-10-27", periods=ROWS, freq=HOUR, tz="Europe/Berlin"),
    "utc": pandas.date_range("2024", periods=ROWS, tz="UTC"),
    "fixed": pandas.date_range("2024", periods=ROWS, tz=datetime.timezone(datetime.timedelta(hours=-3, minutes=-30))),
    "duration": pandas.to_timedelta([1, -2, None], unit="h"),
    "category": pandas.Categorical(["a", "b", None]),
    "ordered": pandas.Categorical([3, 1, 3], categories=[3, 2, 1], ordered=True),
    "Int64": pandas.array([1, 2, None], dtype="Int64"),
    "UInt8": pandas.array([1, None, 255], dtype="UInt8"),
    "Float32": pandas.array([1.5, None, -2], dtype="Float32"),
    "boolean": pandas.array([True, None, False], dtype="boolean"),
    "string": pandas.array(["a", None, "ü"], dtype="string"),
    "period": pandas.period_range("2024", periods=ROWS, freq="M"),
    "interval": pandas.interval_range(0, ROWS),
    "scalars": [pandas.Timestamp("2024-02-29 01:02:03.000004005", tz="Asia/Tokyo"), pandas.NaT, pandas.NA],
    "more scalars": [pandas.Timedelta("1D 2h 3ns"), pandas.Period("2024-02", "M"), pandas.Interval(1.5, 2, "both")],
    5: numpy.arange(ROWS),
    ("a", 1): numpy.arange(ROWS),
    None: numpy.arange(ROWS),
}  # fmt: skip


def _frame() -> Any:
    frame = pandas.DataFrame(dict(enumerate(COLUMNS.values())))
    frame.columns = pandas.Index(list(COLUMNS), dtype=object, tupleize_cols=False)
    frame.attrs["from"] = {"a": [1]}
    return frame


FRAME = _frame()
PAIRS = pandas.MultiIndex.from_product([["a", "b"], [1, 2]], names=["letter", None])

INDEXES: list[Any] = [
    pandas.RangeIndex(5), pandas.RangeIndex(10, 0, -3, name="down"), pandas.Index([3, 1, 2], name="numbers"),
    pandas.Index([1.5, 2]), pandas.Index(["a", "b"], name=("a", "tuple")), pandas.Index(["a", 1, None], dtype=object),
    pandas.Index([("a", 1), ("b", 2)], tupleize_cols=False), pandas.Index([], dtype=object),
    pandas.Index([True, False]),
    pandas.date_range("2024", periods=4), pandas.date_range("2024", periods=4, tz="Europe/Berlin", name="zoned"),
    pandas.DatetimeIndex(["2024-01-01", "2024-02-29"]), pandas.timedelta_range("1D", periods=3),
    pandas.period_range("2024", periods=3, freq="D"), pandas.interval_range(0, 3),
    pandas.CategoricalIndex(["x", "y", "x"]), PAIRS, PAIRS[1:3], PAIRS[:0],
    pandas.MultiIndex.from_tuples([("x", pandas.NaT), (None, pandas.Timestamp("2024"))]),
]  # fmt: skip

FRAMES: list[Any] = [
    FRAME, FRAME.iloc[1:], FRAME.iloc[::-1], FRAME.iloc[:0], pandas.DataFrame(), pandas.DataFrame(index=[1, 2]),
    pandas.DataFrame(columns=["a", "b"]), pandas.DataFrame({"a": numpy.arange(4), "b": 1.5}, index=PAIRS),
    pandas.DataFrame(numpy.arange(16.0).reshape(4, 4), index=PAIRS, columns=PAIRS),
    pandas.DataFrame(numpy.asfortranarray(numpy.arange(12).reshape(3, 4))),
    pandas.DataFrame(numpy.arange(12).reshape(3, 4), columns=list("aabb")),
    pandas.DataFrame([[1, "x"]], columns=["a", "a"]),
    pandas.DataFrame({"a": range(20_000), "b": numpy.arange(20_000) / 3, "c": [str(one) for one in range(20_000)]}),
    pandas.DataFrame(numpy.ones((1000, 50), "f4")), pandas.DataFrame(numpy.ones((1000, 50), "f4")).iloc[::3, ::2],
]  # fmt: skip
SERIES: list[Any] = [FRAME.iloc[:, number] for number in range(len(COLUMNS))]
VALUES: list[Any] = [*FRAMES, *SERIES, *INDEXES]


def same(one: Any, other: Any) -> bool:
    """Equal in type, dtypes, labels, names, values and attributes."""
    try:
        if isinstance(one, pandas.DataFrame):
            pandas.testing.assert_frame_equal(one, other, check_freq=False)
        elif isinstance(one, pandas.Series):
            pandas.testing.assert_series_equal(one, other, check_freq=False)
        else:
            pandas.testing.assert_index_equal(one, other)
            return True
    except AssertionError:
        return False
    return bool(one.attrs == other.attrs)
