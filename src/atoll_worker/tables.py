# SPDX-License-Identifier: Apache-2.0
"""Tables of Arrow: what pyarrow and polars have, as an Arrow IPC stream in the carrier's memory.

What always holds:

* The stream is written once, straight into its place, uncompressed; and read without a copy, so what was read keeps
  that memory alive. A table or record batch that came this way and is passed on as it is has its stream already:
  where the carrier finds that memory again, nothing is copied at all, else its bytes are, in one piece.
* Frames of polars cross as the same stream. pyarrow writes and reads it where it is there, and where it is loaded or
  the frame is large enough to be worth that; else polars does, which copies once more on either side.
* What was read is checked in full, so that no number in it leads outside of the memory: free for columns of numbers,
  about the time of a copy for text. What holds such numbers (text, lists, dictionaries) is copied before by the host,
  whose workers could change them afterwards; columns of plain numbers never are.
* Types of the user's own arrive as themselves where they are registered with the other side's pyarrow too, else as
  what they store.

What does not belong here: pandas (``frames``).
"""

from __future__ import annotations

import sys

from .adapters import Unsupported
from .arrays import bytes_that_came, library
from .buffers import store_bytes
from .errors import DecodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Tuple

    from .arrays import Carrier, Reduced, Reducer

# Bytes from which on a frame of polars is worth loading pyarrow for (0.1 s and more).
WORTH_PYARROW = 1 << 22

# -- pyarrow -------------------------------------------------------------------------------------------------------

# What was read, by id: a weak reference, and the buffer it was read from.
_streams: Dict[int, Tuple[Any, Any]] = {}


def _remember(value: Any, buffer: Any) -> None:
    import weakref

    key = id(value)
    _streams[key] = (weakref.ref(value, lambda _: _streams.pop(key, None)), buffer)


def _write(pyarrow: Any, carrier: Carrier, value: Any, schema: Any, batches: List[Any]) -> Any:
    """What stands for the stream of these batches, which ``value`` is."""
    known = _streams.get(id(value))
    if known is not None and known[0]() is value:
        return store_bytes(memoryview(known[1]), carrier, known[1].address)
    options = pyarrow.ipc.IpcWriteOptions(compression=None)

    def write(sink: Any) -> None:
        with pyarrow.ipc.new_stream(sink, schema, options=options) as writer:
            for batch in batches:
                writer.write_batch(batch)

    # Counts what is written, and keeps none of it; the sizes that pyarrow tells do not include dictionaries.
    counter = pyarrow.MockOutputStream()
    write(counter)
    nbytes = counter.size()

    def fill(memory: memoryview) -> None:
        sink = pyarrow.FixedSizeBufferWriter(pyarrow.py_buffer(memory))
        try:
            write(sink)
        finally:
            sink.close()

    if nbytes < carrier.inline:
        data = bytearray(nbytes)
        fill(memoryview(data))
        return bytes(data)
    return carrier.store(nbytes, fill)


def _open(buffer: Any) -> Tuple[Any, Any, Any]:
    """pyarrow, the buffer as one of pyarrow's, and a reader of the stream in it."""
    pyarrow, ipc = library("pyarrow", "an Arrow table"), library("pyarrow.ipc", "an Arrow table")
    memory = bytes_that_came(buffer)
    _refuse_code(pyarrow, memory)
    reader = ipc.open_stream(pyarrow.py_buffer(memory))
    if _may_change(memory) and not all(_is_plain(pyarrow.types, field.type) for field in reader.schema):
        memory = memoryview(memory.tobytes())
        reader = ipc.open_stream(pyarrow.py_buffer(memory))
    return pyarrow, pyarrow.py_buffer(memory), reader


def _may_change(memory: memoryview) -> bool:
    """Whether these bytes are a segment of another process that need not be trusted."""
    loans = getattr(memory.obj, "loans", None)
    return loans is not None and not loans.is_trusted


def _is_plain(types: Any, kind: Any) -> bool:
    """Whether no number in the memory of a column says where something else is."""
    if types.is_struct(kind):
        return all(_is_plain(types, kind.field(index).type) for index in range(kind.num_fields))
    if types.is_fixed_size_list(kind):
        return _is_plain(types, kind.value_type)
    return bool(
        types.is_primitive(kind) or types.is_decimal(kind) or types.is_fixed_size_binary(kind) or types.is_null(kind)
    )


# Types of this name are pickles, which versions before the one below load, from whomever they come (CVE-2023-47248).
_PICKLED = b"arrow.py_extension_type"
_SAFE = (14, 0, 1)


def _refuse_code(pyarrow: Any, buffer: Any) -> None:
    import re

    version = tuple(int(part) for part in re.findall(r"\d+", pyarrow.__version__)[:3])
    if version < _SAFE and re.search(re.escape(_PICKLED), buffer):
        raise DecodeError(
            f"refused to load an Arrow type that pyarrow {pyarrow.__version__} would run code for; "
            "pyarrow from 14.0.1 on does not"
        )


def _pyarrow() -> Any:
    from importlib import import_module

    import_module("pyarrow.ipc")
    return import_module("pyarrow")


def _reduce_table(value: Any, carrier: Carrier) -> Reduced:
    return restore_table, (_write(_pyarrow(), carrier, value, value.schema, value.to_batches()), value.num_rows)


def restore_table(buffer: Any, rows: int) -> Any:
    """A ``pyarrow.Table`` on the memory given."""
    _, memory, reader = _open(buffer)
    table = reader.read_all()
    table.validate(full=True)
    if table.num_rows != rows:
        raise DecodeError(f"an Arrow table of {rows:,} rows was announced, and one of {table.num_rows:,} came")
    _remember(table, memory)
    return table


def _reduce_record_batch(value: Any, carrier: Carrier) -> Reduced:
    return restore_record_batch, (_write(_pyarrow(), carrier, value, value.schema, [value]),)


def restore_record_batch(buffer: Any) -> Any:
    """A ``pyarrow.RecordBatch`` on the memory given."""
    _, memory, reader = _open(buffer)
    batch = reader.read_next_batch()
    batch.validate(full=True)
    _remember(batch, memory)
    return batch


def _one_column(pyarrow: Any, kind: Any) -> Any:
    return pyarrow.schema([pyarrow.field("", kind)])


def _reduce_array(value: Any, carrier: Carrier) -> Reduced:
    pyarrow = _pyarrow()
    schema = _one_column(pyarrow, value.type)
    batch = pyarrow.RecordBatch.from_arrays([value], schema=schema)
    return restore_arrow_array, (_write(pyarrow, carrier, value, schema, [batch]),)


def restore_arrow_array(buffer: Any) -> Any:
    """A ``pyarrow.Array`` on the memory given."""
    _, memory, reader = _open(buffer)
    array = reader.read_next_batch().column(0)
    array.validate(full=True)
    _remember(array, memory)
    return array


def _reduce_chunked_array(value: Any, carrier: Carrier) -> Reduced:
    pyarrow = _pyarrow()
    schema = _one_column(pyarrow, value.type)
    batches = [pyarrow.RecordBatch.from_arrays([chunk], schema=schema) for chunk in value.chunks]
    return restore_chunked_array, (_write(pyarrow, carrier, value, schema, batches),)


def restore_chunked_array(buffer: Any) -> Any:
    """A ``pyarrow.ChunkedArray`` on the memory given, in the chunks that it had."""
    pyarrow, memory, reader = _open(buffer)
    chunks = [batch.column(0) for batch in reader]
    array = pyarrow.chunked_array(chunks, type=reader.schema.field(0).type)
    array.validate(full=True)
    _remember(array, memory)
    return array


def _reduce_buffer(value: Any, carrier: Carrier) -> Reduced:
    if not value.is_cpu:
        raise Unsupported(value, "in the memory of a device; copy it to the memory of the processor first")
    return restore_arrow_buffer, (store_bytes(memoryview(value), carrier, value.address),)


def restore_arrow_buffer(buffer: Any) -> Any:
    """A ``pyarrow.Buffer`` of the memory given."""
    return library("pyarrow", "an Arrow buffer").py_buffer(bytes_that_came(buffer))


def _reduce_schema(value: Any, carrier: Carrier) -> Reduced:
    return restore_schema, (value.serialize().to_pybytes(),)


def restore_schema(data: bytes) -> Any:
    """A ``pyarrow.Schema``."""
    pyarrow = library("pyarrow", "an Arrow schema")
    _refuse_code(pyarrow, data)
    return library("pyarrow.ipc", "an Arrow schema").read_schema(pyarrow.py_buffer(bytes_that_came(data)))


def _refuse_reader(value: Any, carrier: Carrier) -> Reduced:
    raise Unsupported(value, "a stream of record batches is used up by reading; x.read_all() can be passed")


def _refuse_scalar(value: Any, carrier: Carrier) -> Reduced:
    raise Unsupported(value, "x.as_py() can be passed")


# -- polars --------------------------------------------------------------------------------------------------------


def _pyarrow_if_worth(nbytes: int) -> Optional[Any]:
    if nbytes < WORTH_PYARROW and "pyarrow" not in sys.modules:
        return None
    try:
        return _pyarrow()
    except ImportError:
        return None


def _write_polars(frame: Any, owner: Any, carrier: Carrier) -> Any:
    for name, dtype in frame.schema.items():
        if "Object" in str(dtype) and _holds_objects(dtype):
            raise Unsupported(owner, f"column {name!r} is of dtype {dtype}, which is Python's own; cast it first")
    pyarrow = _pyarrow_if_worth(frame.estimated_size())
    if pyarrow is not None:
        table = frame.to_arrow()
        return _write(pyarrow, carrier, table, table.schema, table.to_batches())
    from io import BytesIO

    file = BytesIO()
    frame.write_ipc_stream(file, compression="uncompressed")
    return store_bytes(file.getbuffer(), carrier)


def _holds_objects(dtype: Any) -> bool:
    inner = getattr(dtype, "inner", None)
    if inner is not None:
        return _holds_objects(inner)
    fields = getattr(dtype, "fields", None)
    if fields:
        return any(_holds_objects(field.dtype) for field in fields)
    return type(dtype).__name__ == "Object" or getattr(dtype, "__name__", "") == "Object"


def _read_polars(polars: Any, buffer: Any) -> Any:
    if _pyarrow_if_worth(memoryview(buffer).nbytes) is not None:
        table = _open(buffer)[2].read_all()
        table.validate(full=True)
        return polars.from_arrow(table)
    from io import BytesIO

    return polars.read_ipc_stream(BytesIO(bytes_that_came(buffer)), use_pyarrow=False)


def _reduce_polars_frame(value: Any, carrier: Carrier) -> Reduced:
    return restore_polars_frame, (_write_polars(value, value, carrier), value.height)


def restore_polars_frame(buffer: Any, rows: int) -> Any:
    """A ``polars.DataFrame``, on the memory given where pyarrow read it and polars stores such values as Arrow does."""
    frame = _read_polars(library("polars", "a frame of polars"), buffer)
    if frame.height != rows:
        raise DecodeError(f"a frame of {rows:,} rows was announced, and one of {frame.height:,} came")
    return frame


def _reduce_polars_series(value: Any, carrier: Carrier) -> Reduced:
    return restore_polars_series, (_write_polars(value.to_frame(), value, carrier),)


def restore_polars_series(buffer: Any) -> Any:
    """A ``polars.Series``, as above."""
    return _read_polars(library("polars", "a series of polars"), buffer).to_series()


def _refuse_lazy(value: Any, carrier: Carrier) -> Reduced:
    raise Unsupported(value, "a LazyFrame is a plan, not data; x.collect() can be passed")


# -- look-up -------------------------------------------------------------------------------------------------------

RESTORERS: Dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        restore_table, restore_record_batch, restore_arrow_array, restore_chunked_array, restore_arrow_buffer,
        restore_schema, restore_polars_frame, restore_polars_series,
    )
}  # fmt: skip
BY_NAME: Dict[Tuple[str, str], Reducer] = {
    ("pyarrow.lib", "Table"): _reduce_table,
    ("pyarrow.lib", "RecordBatch"): _reduce_record_batch,
    ("pyarrow.lib", "ChunkedArray"): _reduce_chunked_array,
    ("pyarrow.lib", "Schema"): _reduce_schema,
    ("pyarrow.lib", "RecordBatchReader"): _refuse_reader,
    ("polars.dataframe.frame", "DataFrame"): _reduce_polars_frame,
    ("polars.internals.dataframe.frame", "DataFrame"): _reduce_polars_frame,
    ("polars.series.series", "Series"): _reduce_polars_series,
    ("polars.internals.series.series", "Series"): _reduce_polars_series,
    ("polars.lazyframe.frame", "LazyFrame"): _refuse_lazy,
    ("polars.internals.lazyframe.frame", "LazyFrame"): _refuse_lazy,
}


def reducer_of(cls: type) -> Optional[Reducer]:
    """For the many classes of arrays and buffers that pyarrow has, those for types of the user's own among them."""
    for base in cls.__mro__:
        if base.__module__ == "pyarrow.lib":
            if base.__qualname__ == "Array":
                return _reduce_array
            if base.__qualname__ == "Buffer":
                return _reduce_buffer
            if base.__qualname__ == "Scalar":
                return _refuse_scalar
    return None
