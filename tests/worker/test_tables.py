# SPDX-License-Identifier: Apache-2.0
"""Tables of pyarrow and polars cross as Arrow streams: with every type, sliced or not, without a copy where they are
read, and found again when they are passed on."""

from __future__ import annotations

import datetime
import gc
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy
import polars
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll_worker import tables
from atoll_worker.arrays import array_reducer_of
from atoll_worker.errors import DecodeError
from atoll_worker.values import Decoder, Encoder

from .carriers import HOST, WORKER, Recording, buffers_of, passed, refusal

DAY = datetime.date(2024, 2, 29)
NOW = datetime.datetime(2024, 2, 29, 1, 2, 3, 4)
ARRAYS: list[Any] = [
    pyarrow.array([1, None, 3]), pyarrow.array([], pyarrow.int8()), pyarrow.array([True, None, False]),
    pyarrow.array([1.5, float("nan"), None], pyarrow.float32()), pyarrow.array([1.5], pyarrow.float64()),
    pyarrow.array(["a", None, "ü" * 100]), pyarrow.array([b"", None, b"x"]),
    pyarrow.array(["a"], pyarrow.large_string()),
    pyarrow.array(["x", "y", "x", None]).dictionary_encode(), pyarrow.array([None, None]), pyarrow.array([DAY, None]),
    pyarrow.array([NOW], pyarrow.timestamp("us", "Europe/Berlin")), pyarrow.array([datetime.timedelta(1)]),
    pyarrow.array([datetime.time(1, 2)]), pyarrow.array([Decimal("1.50"), None]),
    pyarrow.array([[1, 2], None, []]), pyarrow.array([[1, 2], [3, 4]], pyarrow.list_(pyarrow.int8(), 2)),
    pyarrow.array([{"a": 1, "b": ["x"]}, None]), pyarrow.array([[("k", 1)]], pyarrow.map_("string", "int64")),
    pyarrow.array([b"1234"], pyarrow.binary(4)), pyarrow.array([{"a": {"b": [{"c": "deep"}]}}]),
    pyarrow.UnionArray.from_sparse(
        pyarrow.array([0, 1], "int8"), [pyarrow.array([1, 2]), pyarrow.array(["x", "y"])]
    ),
    pyarrow.ListArray.from_arrays([0, 2, 3], pyarrow.array(["x", "y", "x"]).dictionary_encode()),
    pyarrow.array(range(10_000)), pyarrow.array([f"text {index}" for index in range(10_000)]),
]  # fmt: skip
TABLE = pyarrow.table(
    {"number": [1, 2, None], "text": pyarrow.array(["x", "y", "x"]).dictionary_encode(), "list": [[1], None, [2, 3]]},
    metadata={"whose": "ours"},
)
LARGE = pyarrow.table({"number": numpy.arange(50_000), "text": [f"text {index}" for index in range(50_000)]})


class Celsius(pyarrow.ExtensionType):
    """A type of the user's own."""

    def __init__(self) -> None:
        super().__init__(pyarrow.float64(), "tests.celsius")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    def __arrow_ext_class__(self) -> Any:
        return CelsiusArray

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> Celsius:
        return cls()


class CelsiusArray(pyarrow.ExtensionArray):
    """Its arrays, of a class of the user's own."""


def test_types_are_the_same() -> None:
    """All arrays, both ways, alone, sliced, as a column, and in chunks."""
    for decoder in (HOST, WORKER):
        for array in ARRAYS:
            for one in (array, array[1:], array[:0], array[-2:]):
                arrived = passed([one], decoder)[0]
                assert arrived.type == array.type
                assert str(arrived.to_pylist()) == str(one.to_pylist())  # NaN is not equal to itself
                arrived.validate(full=True)
            table = pyarrow.table({"column": array})
            assert identical(passed(table, decoder), table)
            chunked = pyarrow.chunked_array([array, array[:0], array[1:]])
            arrived = passed(chunked, decoder)
            assert str(arrived.to_pylist()) == str(chunked.to_pylist())
            assert [len(chunk) for chunk in arrived.chunks] == [len(chunk) for chunk in chunked.chunks]
    none = pyarrow.chunked_array([], pyarrow.string())
    assert passed(none).equals(none)
    assert passed(none).num_chunks == 0


def test_tables() -> None:
    """Tables and record batches: sliced, empty, without columns, large, with metadata, with a name twice."""
    twice = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array(["x"])], names=["a", "a"])
    chunks = pyarrow.concat_tables([TABLE, TABLE.slice(1), TABLE.slice(0, 0)])
    for table in (TABLE, TABLE.slice(1, 1), TABLE.slice(0, 0), TABLE.schema.empty_table(), LARGE, chunks, twice):
        for decoder in (HOST, WORKER):
            arrived = passed(table, decoder)
            assert type(arrived) is pyarrow.Table
            assert arrived.equals(table, check_metadata=True)
    assert passed(pyarrow.table({})).equals(pyarrow.table({}))
    for batch in (*LARGE.to_batches(), TABLE.slice(1).to_batches()[0], TABLE.to_batches()[0].slice(0, 0)):
        arrived = passed(batch)
        assert type(arrived) is pyarrow.RecordBatch
        assert arrived.equals(batch)


def test_dictionaries_that_differ_from_chunk_to_chunk() -> None:
    """Each chunk keeps its own."""
    chunks = [pyarrow.array(words).dictionary_encode() for words in (["a", "b"], ["c"], ["b", "a"])]
    chunked = pyarrow.chunked_array(chunks)
    assert passed(chunked).to_pylist() == ["a", "b", "c", "b", "a"]
    assert passed(pyarrow.table({"words": chunked})).to_pydict() == {"words": ["a", "b", "c", "b", "a"]}


def test_schemas_and_buffers() -> None:
    """With metadata; a buffer of any size."""
    schema = TABLE.schema.with_metadata({"a": "b"})
    assert passed(schema).equals(schema, check_metadata=True)
    for size in (0, 5, 100_000):
        buffer = pyarrow.py_buffer(b"x" * size)
        assert passed(buffer).equals(buffer)
        writable = pyarrow.allocate_buffer(size)
        memoryview(writable).cast("B")[:] = b"y" * size
        assert passed(writable).to_pybytes() == b"y" * size


def test_types_of_the_users_own() -> None:
    """Registered, they arrive as themselves, their arrays' own classes too; where they are not, as what they store."""
    array = pyarrow.ExtensionArray.from_storage(Celsius(), pyarrow.array([1.5, None]))
    assert type(array) is CelsiusArray
    pyarrow.register_extension_type(Celsius())
    try:
        arrived = passed(array)
        assert type(arrived) is CelsiusArray
        assert arrived.equals(array)
        assert passed(pyarrow.table({"a": array})).schema.field("a").type == Celsius()
    finally:
        pyarrow.unregister_extension_type("tests.celsius")
    assert passed(array).equals(array.storage)


def test_what_was_read_is_not_copied() -> None:
    """The columns lie in the memory that came, and keep it."""
    encoder = Encoder()
    payload = encoder.encode(LARGE)
    (buffer,) = buffers_of(encoder)
    before = dict(tables._streams)
    arrived = HOST.decode(payload, [buffer])
    assert len(tables._streams) == len(before) + 1
    start = pyarrow.py_buffer(buffer).address
    for column in arrived.columns:
        for part in column.chunk(0).buffers():
            assert part is None or start <= part.address < start + len(buffer)
    column = arrived.column(0)
    del arrived
    with pytest.raises(BufferError):
        buffer.clear()  # somebody still has its memory
    del column, part
    gc.collect()
    buffer.clear()
    assert tables._streams.keys() <= before.keys()


def test_what_is_written_is_written_once() -> None:
    """Straight into the carrier's memory, as large as needed to the byte, uncompressed."""
    carrier = Recording()
    reducer = array_reducer_of(pyarrow.Table)
    assert reducer is not None
    reducer(LARGE, carrier)
    (memory,) = carrier.stored
    assert LARGE.nbytes <= len(memory) < LARGE.nbytes + 4096
    assert pyarrow.ipc.open_stream(memory).read_all().equals(LARGE)
    # A slice takes no more than it has.
    reducer(LARGE.slice(100, 10), carrier)
    assert len(carrier.stored[1]) < 2000


@pytest.mark.parametrize(
    "value",
    [LARGE, LARGE.to_batches()[0], LARGE.column(1), LARGE.column(0).chunk(0)],
    ids=lambda value: type(value).__name__,
)
def test_passing_on_what_came(value: Any) -> None:
    """Where the carrier finds the stream again, nothing is written; else its bytes are copied as they are."""
    encoder = Encoder()
    payload = encoder.encode(value)
    (buffer,) = buffers_of(encoder)
    arrived = HOST.decode(payload, [buffer])
    reducer = array_reducer_of(type(value))
    assert reducer is not None
    address = pyarrow.py_buffer(buffer).address
    carrier = Recording((address, len(buffer)))
    restore, arguments = reducer(arrived, carrier)
    assert carrier.found == [(address, len(buffer))]
    assert carrier.stored == []
    assert restore(*arguments).equals(value)
    carrier = Recording()
    reducer(arrived, carrier)
    assert carrier.stored == [buffer]
    assert passed(arrived).equals(value)


def test_what_cannot_cross() -> None:
    """Readers, scalars: with words."""
    reader = pyarrow.RecordBatchReader.from_batches(TABLE.schema, TABLE.to_batches())
    assert "x.read_all() can be passed" in refusal([reader])
    assert refusal(pyarrow.scalar(1)).endswith("Int64Scalar cannot be passed by value (x.as_py() can be passed)")


def test_streams_that_lie() -> None:
    """Numbers that lead outside of the memory, a stream that is cut short, too few rows: errors of decoding."""
    encoder = Encoder()
    text = pyarrow.array(["a", "bb"])
    words = pyarrow.array(["a", "bb", "a", "bb", "bb"]).dictionary_encode()
    for value, honest, lie in (
        (text, [0, 1, 3], [0, 1, 1 << 30]),
        (pyarrow.table({"a": text}), [0, 1, 3], [0, 7, 3]),
        (pyarrow.chunked_array([text]), [0, 1, 3], [-9, 1, 3]),
        (pyarrow.RecordBatch.from_arrays([pyarrow.array([[5], [6, 7]])], names=["a"]), [0, 1, 3], [0, 1, 1 << 20]),
        (pyarrow.table({"a": words}), [0, 1, 0, 1, 1], [0, 1, 99, 1, 1]),
    ):
        payload = encoder.encode(value)
        assert HOST.decode(payload).equals(value)
        before, after = (numpy.array(numbers, "i4").tobytes() for numbers in (honest, lie))
        assert payload.count(before) == 1
        with pytest.raises(DecodeError, match="could not be put together"):
            HOST.decode(payload.replace(before, after))
    payload = encoder.encode(LARGE)
    (buffer,) = buffers_of(encoder)
    with pytest.raises(DecodeError):
        HOST.decode(payload, [buffer[: len(buffer) // 2]])
    with pytest.raises(DecodeError):
        HOST.decode(payload, [bytearray(len(buffer))])
    with pytest.raises(DecodeError, match="rows was announced"):
        tables.restore_table(buffer, 7)


def test_types_that_are_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old versions of pyarrow would run code to load them; there, they are refused before it looks."""
    marked = pyarrow.field("a", "int64", metadata={"ARROW:extension:name": "arrow.py_extension_type"})
    table = pyarrow.table([[1]], schema=pyarrow.schema([marked]))
    assert passed(table).num_rows == 1
    assert passed(table.schema).equals(table.schema)
    monkeypatch.setattr(pyarrow, "__version__", "14.0.0")
    for value in (table, table.schema, table.to_batches()[0]):
        with pytest.raises(DecodeError, match=r"an Arrow type that pyarrow 14\.0\.0 would run code for"):
            passed(value)
    assert passed(TABLE).equals(TABLE)


# -- polars ----------------------------------------------------------------------------------------------------------

FRAME = polars.DataFrame(
    {
        "enum": polars.Series(["a", "b", None], dtype=polars.Enum(["a", "b", "c"])),
        "category": polars.Series(["x", "y", None], dtype=polars.Categorical),
        "text": ["a", None, "long enough not to be stored beside its length"],
        "list": [[1], None, [2, 3]],
        "struct": [{"a": 1, "b": "x"}, None, {"a": 2, "b": None}],
        "date": [DAY, None, DAY],
        "time": [datetime.time(1), None, datetime.time(2)],
        "duration": [datetime.timedelta(1), None, datetime.timedelta(2)],
        "zoned": polars.Series([NOW] * 3).dt.replace_time_zone("Europe/Berlin"),
        "decimal": [Decimal("1.50"), None, Decimal("2")],
        "binary": [b"a", None, b""],
        "null": [None, None, None],
        "array": polars.Series([[1, 2], [3, 4], None], dtype=polars.Array(polars.Int8, 2)),
        "bool": [True, None, False],
        "float": [1.5, None, float("inf")],
    }
)


@pytest.fixture(params=["pyarrow", "polars alone"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """With pyarrow, and as if it were not installed."""
    if request.param == "polars alone":
        monkeypatch.setattr(tables, "_pyarrow_if_worth", lambda nbytes: None)
    return request.param


@pytest.mark.usefixtures("way")
def test_frames_of_polars() -> None:
    """Every type, sliced, empty, and series with their names."""
    for frame in (FRAME, FRAME[1:], FRAME[:0], FRAME[::2], polars.DataFrame(), polars.from_arrow(LARGE)):
        for decoder in (HOST, WORKER):
            arrived = passed([frame], decoder)[0]
            assert type(arrived) is polars.DataFrame
            assert arrived.schema == frame.schema
            assert arrived.equals(frame)
    for series in FRAME:
        arrived = passed(series)
        assert (arrived.name, arrived.dtype) == (series.name, series.dtype)
        assert arrived.equals(series)


def test_one_writes_with_pyarrow_and_one_reads_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the reverse: the streams are the same."""
    for writes, reads in ((True, False), (False, True)):
        encoder = Encoder()
        with monkeypatch.context() as patch:
            if not writes:
                patch.setattr(tables, "_pyarrow_if_worth", lambda nbytes: None)
            payload = encoder.encode([FRAME, polars.from_arrow(LARGE)])
        buffers = buffers_of(encoder)
        with monkeypatch.context() as patch:
            if not reads:
                patch.setattr(tables, "_pyarrow_if_worth", lambda nbytes: None)
            one, two = HOST.decode(payload, buffers)
        assert one.equals(FRAME)
        assert two.equals(polars.from_arrow(LARGE))


def test_pyarrow_is_loaded_for_large_frames_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small one is not worth it, unless it is loaded anyway; and where it is missing, polars does all."""
    assert tables._pyarrow_if_worth(1) is pyarrow
    monkeypatch.delitem(sys.modules, "pyarrow")
    assert tables._pyarrow_if_worth(tables.WORTH_PYARROW - 1) is None
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert tables._pyarrow_if_worth(tables.WORTH_PYARROW) is None


def test_numbers_of_polars_are_not_copied() -> None:
    """They lie in the memory that came, and keep it."""
    frame = polars.DataFrame({"a": numpy.arange(50_000)})
    encoder = Encoder()
    payload = encoder.encode(frame)
    (buffer,) = buffers_of(encoder)
    arrived = WORKER.decode(payload, [buffer])
    array = arrived["a"].to_numpy(allow_copy=False)
    assert numpy.shares_memory(array, numpy.frombuffer(buffer, "u1"))


def test_what_polars_cannot_pass() -> None:
    """A plan, and columns of Python's objects: by name."""
    assert "x.collect() can be passed" in refusal(FRAME.lazy())
    objects = polars.DataFrame({"a": [1], "lock": polars.Series([object()], dtype=polars.Object)})
    assert "column 'lock' is of dtype Object" in refusal({"frame": objects})
    assert "column 'lock' is of dtype Object" in refusal(objects["lock"])


def test_rows_that_were_announced() -> None:
    """A frame with fewer is an error of decoding."""
    encoder = Encoder()
    encoder.encode(polars.from_arrow(LARGE))
    (buffer,) = buffers_of(encoder)
    with pytest.raises(DecodeError, match="rows was announced"):
        tables.restore_polars_frame(buffer, 7)


# -- whatever table --------------------------------------------------------------------------------------------------

cells = {
    "int64": st.integers(-(2**63), 2**63 - 1),
    "double": st.floats(),
    "string": st.text(max_size=20),
    "bool": st.booleans(),
    "binary": st.binary(max_size=20),
}


@st.composite
def arrow_tables(draw: st.DrawFn) -> Any:
    rows = draw(st.integers(0, 20))
    columns = {}
    for name in draw(st.lists(st.text(max_size=5), max_size=5, unique=True)):
        kind = draw(st.sampled_from(list(cells)))
        values = draw(st.lists(st.none() | cells[kind], min_size=rows, max_size=rows))
        array = pyarrow.array(values, kind)
        columns[name] = array.dictionary_encode() if draw(st.booleans()) and kind == "string" else array
    table = pyarrow.table(columns)
    return table.slice(draw(st.integers(0, rows)), draw(st.integers(0, rows)))


def identical(one: Any, other: Any) -> bool:
    """Equal, where NaN is NaN."""
    return bool(one.schema == other.schema) and str(one.to_pydict()) == str(other.to_pydict())


@given(arrow_tables(), st.sampled_from([HOST, WORKER]))
@settings(max_examples=100, deadline=None)
def test_whatever_table(table: Any, decoder: Decoder) -> None:
    """Tables, and frames of polars made from them."""
    assert identical(passed(table, decoder), table)
    if not any("\0" in name for name in table.column_names):  # of which polars itself panics
        frame = polars.from_arrow(table)
        assert passed(frame, decoder).equals(frame, null_equal=True)
