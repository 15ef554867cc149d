# SPDX-License-Identifier: Apache-2.0
"""Frames, series and indexes of pandas cross with their dtypes, labels, names and attributes; and are one's own."""

from __future__ import annotations

import datetime
import sys
import threading
from typing import Any

import numpy
import pandas
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll_worker import frames
from atoll_worker.arrays import array_reducer_of
from atoll_worker.errors import DecodeError
from atoll_worker.values import Decoder, Encoder

from .carriers import HOST, WORKER, Recording, buffers_of, passed, refusal
from .frame_values import COLUMNS, FRAME, FRAMES, INDEXES, SERIES, same

TEXT = ["a", None, "ü", "", "long enough " * 10]


@pytest.mark.parametrize("decoder", [HOST, WORKER])
def test_everything_of_pandas(decoder: Decoder) -> None:
    """All dtypes, layouts and kinds of index, as frames, series and indexes."""
    for value in (*FRAMES, *SERIES, *INDEXES):
        arrived = passed([value], decoder)[0]
        assert type(arrived) is type(value)
        assert same(arrived, value), value


@pytest.mark.parametrize("dtype", ["str", "string", "string[python]", "string[pyarrow]"])
@pytest.mark.parametrize("loaded", [True, False])
def test_text(dtype: str, loaded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strings of every kind, from a sender that has pyarrow loaded, and from one that has not."""
    if not loaded:
        monkeypatch.setattr(frames, "_take_text", lambda array: None)
    series = pandas.Series(TEXT * 1000, dtype=dtype, name="text")
    for one in (series, series[3:], series[::-2], series[:0], series.dropna(), series[:3]):
        assert same(passed(one), one)
    assert same(passed(pandas.Index(series)), pandas.Index(series))


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_text_of_objects(missing: Any) -> None:
    """Columns of objects that are strings stay that: with the objects for what is missing, and few for few strings."""
    distinct = [f"text {index}" for index in range(2000)]
    for items in (distinct, ["few", "strings"] * 2000, [*distinct, missing], [missing, "one"] * 2000, [missing] * 1000):
        series = pandas.Series(items, dtype=object)
        if len(set(map(type, items))) == 1 and type(items[0]) is str:
            assert frames._take(series.array)[0] == "text objects"
        arrived = passed(series)
        assert arrived.dtype == object
        assert repr(arrived.tolist()) == repr(items)
        assert same(passed(pandas.DataFrame({"a": series})), pandas.DataFrame({"a": series}))
        texts = [[item for item in column if type(item) is str] for column in (arrived, items)]
        assert len(set(map(id, texts[0]))) <= len(set(map(id, texts[1])))
        index = pandas.Index(series, dtype=object)
        assert same(passed(index), index)
    for items in ([*distinct, 1], [*distinct, missing, 1.5], [*distinct, "\ud800"], [*distinct, numpy.str_("x")]):
        series = pandas.Series(items, dtype=object)
        assert frames._take(series.array)[0] == "objects"
        assert [type(item) for item in passed(series)] == [type(item) for item in items]


def test_text_where_pyarrow_is_not() -> None:
    """The receiver makes its strings itself."""
    ends, data = numpy.array([0, 1, 1, 3], "i8"), numpy.frombuffer("aü".encode(), "u1")
    missing = numpy.array([False, True, False])
    assert frames._strings_of(ends, data, missing).tolist() == ["a", None, "ü"]
    for places in ([0, 2, 1, 3], [-1, 1, 1, 3], [0, 1, 1, 9]):
        with pytest.raises(DecodeError, match="not in order"):
            frames._strings_of(numpy.array(places), data, None)


def test_text_that_is_no_unicode() -> None:
    """Half a surrogate pair has no place in Arrow's layout: it crosses as an object."""
    series = pandas.Series(["a", "\ud800"], dtype="string[python]")
    assert passed(series).tolist() == ["a", "\ud800"]


def test_text_whose_places_lie() -> None:
    """Numbers that lead outside of the text are an error of decoding."""
    data = numpy.zeros(3, "u1")
    for ends in ([0, 1 << 40], [5, 1], [-5, 3]):
        with pytest.raises((DecodeError, pyarrow.ArrowInvalid)):
            frames.restore_series(("text", numpy.array(ends, "i8"), data, None, "nan", "pyarrow"), None, None, {})
    with pytest.raises(DecodeError, match="whose places are no numbers"):
        frames.restore_series(("text", numpy.zeros(2, "f8"), data, None, "nan", "pyarrow"), None, None, {})


def test_columns_of_arrow() -> None:
    """Dtypes of Arrow's own, nested ones too."""
    frame = pandas.DataFrame(
        {
            "number": pandas.array([1, None, 3], dtype="int64[pyarrow]"),
            "list": pandas.Series([[1], None, []], dtype=pandas.ArrowDtype(pyarrow.list_(pyarrow.int64()))),
            "moment": pandas.Series([1, 2, None], dtype=pandas.ArrowDtype(pyarrow.timestamp("us", "UTC"))),
        }
    )
    assert same(passed(frame), frame)
    assert same(passed(frame["number"][1:]), frame["number"][1:])


def test_units_of_time() -> None:
    """Seconds stay seconds."""
    for unit in ("s", "ms", "us", "ns"):
        frame = pandas.DataFrame({"plain": pandas.date_range("2024", periods=3, unit=unit)})
        frame["zoned"] = frame["plain"].dt.tz_localize("America/New_York")
        frame["long"] = frame["plain"] - frame["plain"][0]
        assert same(passed(frame), frame)
        stamp = pandas.Timestamp("2024-02-29 12:00", tz="Asia/Tokyo").as_unit(unit)
        arrived = passed([stamp])[0]
        assert (arrived, arrived.unit, str(arrived.tz)) == (stamp, unit, "Asia/Tokyo")


def test_time_zones() -> None:
    """By name; those that are an offset, as such; one that only a file knows is refused by the name of its column."""
    import zoneinfo

    for zone in ("UTC", "Europe/Berlin", datetime.UTC, zoneinfo.ZoneInfo("Asia/Tokyo")):
        index = pandas.date_range("2024", periods=3, tz=zone)
        assert same(passed(index), index)

    class Strange(datetime.tzinfo):
        def utcoffset(self, moment: datetime.datetime | None) -> datetime.timedelta | None:
            return None if moment is None else datetime.timedelta(hours=1)

        def dst(self, moment: datetime.datetime | None) -> datetime.timedelta:
            return datetime.timedelta(0)

    frame = pandas.DataFrame({"when": pandas.DatetimeIndex(["2024-01-01"]).tz_localize("UTC")})
    frame["strange"] = frame["when"].dt.tz_convert(Strange())
    assert "column 'strange' is in the time zone" in refusal(frame)


def test_frequencies() -> None:
    """A frequency is kept, by whichever of its names this pandas knows."""
    for freq in ("D", "ME", "QE-MAR", "2h", "15min", "YE", "W-SUN"):
        index = pandas.date_range("2024", periods=5, freq=freq)
        assert passed(index).freq == index.freq
    for old in ("M", "Q-MAR", "2H", "15T", "A-DEC", "W-SUN"):
        index = pandas.date_range(
            "2024", periods=5, freq=frames._with_alias(old, lambda name: pandas.tseries.frequencies.to_offset(name))
        )
        restored = frames.restore_index(("numpy", index.to_numpy()), None, old)
        assert restored.freq == index.freq
    with pytest.raises(ValueError, match="knows no frequency 'nonsense'"):
        frames._with_alias("nonsense", pandas.tseries.frequencies.to_offset)
    restored = frames.restore_index(("numpy", index.to_numpy()), None, "nonsense")
    assert restored.freq is None


def test_arrays_and_scalars() -> None:
    """What ``pandas.array`` makes, and scalars inside plain containers."""
    for name, values in COLUMNS.items():
        array = pandas.Series(values, copy=False).array
        arrived = passed({"a": array})["a"]
        assert type(arrived) is type(array), name
        assert arrived.dtype == array.dtype
        assert same(pandas.Series(arrived), pandas.Series(array))
    assert passed(pandas.NaT) is pandas.NaT
    assert passed([pandas.NA])[0] is pandas.NA
    for scalar in (
        pandas.Timedelta("1D 3ns"),
        pandas.Period("2024-02", "M"),
        pandas.Interval(1, 2),
        pandas.Timestamp(0),
    ):
        assert passed(scalar) == scalar
        assert type(passed(scalar)) is type(scalar)


@pytest.mark.parametrize("decoder", [HOST, WORKER])
def test_what_arrives_is_ones_own(decoder: Decoder) -> None:
    """Frames may be written to, small and large, whether or not arrays that arrive may; the sender's stays."""
    for rows in (3, 10_000):
        for frame in (
            pandas.DataFrame(
                {"a": numpy.arange(rows), "b": ["x"] * rows, "c": pandas.array([1] * rows, dtype="Int64")}
            ),
            pandas.DataFrame(numpy.zeros((rows, 3)), columns=list("abc")),
        ):
            before = frame.copy()
            arrived = passed([frame, frame["a"].to_numpy()], decoder)[0]
            arrived.loc[0, "a"] = 7
            arrived.loc[1, "c"] = 8
            arrived["new"] = arrived["a"] * 2
            assert arrived.loc[0, "new"] == 14
            series = passed(frame["a"], decoder)
            series.iloc[0] = 9
            assert series.iloc[0] == 9
            assert same(frame, before)


def test_columns_are_copied_once_and_stay_where_they_are() -> None:
    """Each column is stored once; what came is used as it is, one block stays one block."""
    frame = pandas.DataFrame({"a": numpy.arange(10_000), "b": numpy.arange(10_000) / 2, "c": ["x"] * 10_000})
    encoder = Encoder()
    payload = encoder.encode(frame)
    buffers = buffers_of(encoder)
    arrived = HOST.decode(payload, buffers)
    views = [numpy.frombuffer(buffer, "u1") for buffer in buffers]
    for name in "ab":
        assert any(numpy.shares_memory(arrived[name].to_numpy(), view) for view in views)
    block = pandas.DataFrame(numpy.ones((1000, 20)))
    encoder = Encoder()
    payload = encoder.encode(block)
    (buffer,) = buffers_of(encoder)
    arrived = HOST.decode(payload, [buffer])
    assert numpy.shares_memory(arrived.to_numpy(), numpy.frombuffer(buffer, "u1"))


def test_columns_that_are_shared_already() -> None:
    """What the carrier finds again is not stored."""
    values = numpy.arange(10_000)
    address = values.__array_interface__["data"][0]
    frame = pandas.DataFrame({"a": values, "b": numpy.arange(10_000) * 1.5}, copy=False)
    reducer = array_reducer_of(pandas.DataFrame)
    assert reducer is not None
    _, (columns, *_) = reducer(frame, Recording())
    column = columns[0][1]
    carrier = Recording((address, values.nbytes))
    array_reducer = array_reducer_of(numpy.ndarray)
    assert array_reducer is not None
    array_reducer(column, carrier)
    assert carrier.found == [(address, values.nbytes)]


def test_what_cannot_cross_is_named_by_its_column() -> None:
    """Objects of no known type, and dtypes without a place on the wire."""
    lock = threading.Lock()
    words = "_thread.lock cannot be passed by value"
    assert refusal({"f": pandas.DataFrame({"ok": [1], "bad": [lock]})}) == f"result['f']['bad'].iloc[0]: {words}"
    assert refusal(pandas.DataFrame({5: [[1, lock]]})) == f"result[5].iloc[0][1]: {words}"
    assert refusal(pandas.Series([1, lock])) == f"result.iloc[1]: {words}"
    assert refusal(pandas.DataFrame([1], index=pandas.Index([lock], dtype=object))) == f"result.index[0]: {words}"
    sparse = pandas.DataFrame({"fine": [1, 2], "sparse": pandas.arrays.SparseArray([0, 1])})
    assert "column 'sparse' is of dtype Sparse[int64, 0]" in refusal(sparse)
    assert "of dtype Sparse[int64, 0]" in refusal(sparse["sparse"])


class Special(pandas.DataFrame):
    """As geopandas has them."""


def test_subclasses_are_not_their_bases() -> None:
    """A frame of a subclass is refused, with what to pass."""
    assert refusal(Special([1])).endswith("test_frames.Special cannot be passed by value; return pandas.DataFrame(x)")


def test_where_pandas_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that says which library to add where."""
    encoder = Encoder()
    payload = encoder.encode(FRAME)
    buffers = buffers_of(encoder)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(DecodeError, match=r"a value of pandas came, but pandas cannot be imported by .*add pandas"):
        HOST.decode(payload, buffers)


def test_parts_that_do_not_fit() -> None:
    """Lengths, codes and kinds that are not right are errors of decoding."""
    index = pandas.RangeIndex(2)
    with pytest.raises(DecodeError, match="column 0 of a frame has 3 values, its index 2"):
        frames.restore_frame([("numpy", numpy.arange(3))], index, pandas.Index(["a"]), {})
    with pytest.raises(DecodeError, match="no array of the kind 'nonsense'"):
        frames.restore_series(("nonsense",), index, None, {})
    with pytest.raises(DecodeError, match="no time zone is called 'dateutil//etc/localtime'"):
        frames.restore_timestamp(numpy.datetime64(0, "s"), "dateutil//etc/localtime")
    with pytest.raises(ValueError, match="codes need to be"):
        frames.restore_series(("categorical", numpy.array([0, 9]), pandas.Index(["a"]), False), index, None, {})


@st.composite
def any_frames(draw: st.DrawFn) -> Any:
    rows = draw(st.integers(0, 15))
    columns = []
    kinds: dict[str, Any] = {
        "int64": st.integers(-(2**63), 2**63 - 1), "float64": st.floats(), "bool": st.booleans(),
        "object": st.none() | st.integers() | st.text(max_size=5) | st.tuples(st.booleans()),
        "string": st.none() | st.text(max_size=9), "str": st.none() | st.text(max_size=9),
        "Int64": st.none() | st.integers(-(2**63), 2**63 - 1), "boolean": st.none() | st.booleans(),
        "category": st.none() | st.sampled_from("abc"), "datetime64[us]": st.none() | st.datetimes(),
    }  # fmt: skip
    for kind in draw(st.lists(st.sampled_from(list(kinds)), max_size=6)):
        values = draw(st.lists(kinds[kind], min_size=rows, max_size=rows))
        columns.append(pandas.Series(values, dtype=kind, index=range(rows)))
    frame = pandas.DataFrame(dict(enumerate(columns)), index=range(rows))
    label = st.text(max_size=4) | st.integers(0, 3) | st.none() | st.tuples(st.integers(0, 1), st.text(max_size=1))
    labels = draw(st.lists(label, min_size=len(columns), max_size=len(columns)))
    frame.columns = pandas.Index(labels, dtype=object, tupleize_cols=False)
    if draw(st.booleans()):
        frame = frame.iloc[draw(st.permutations(range(rows)))]
    return frame


@given(any_frames(), st.sampled_from([HOST, WORKER]))
@settings(max_examples=100, deadline=None)
def test_whatever_frame(frame: Any, decoder: Decoder) -> None:
    """Frames of any dtypes, labels (twice too) and order."""
    assert same(passed(frame, decoder), frame)
